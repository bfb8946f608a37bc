use super::*;

fn watcher(path: &str) -> Arc<Watcher> {
    Watcher::new(&Path::new(path).unwrap(), None)
}

#[test]
fn a_token_is_its_own_for_as_long_as_its_watch_lives() {
    let mut watches = Watches::new(16);
    let [first, second, third] = ["/a", "/b", "/c"].map(watcher);
    assert_eq!(watches.add(&first), Added::Register(1));
    watches.last_token = u32::MAX - 1;
    assert_eq!(watches.add(&second), Added::Register(u32::MAX));
    assert_eq!(watches.add(&third), Added::Register(2));
    assert_eq!(watches.len(), 3);
}
