use super::*;

fn keys(keys: &[(&str, &str)]) -> BTreeMap<String, String> {
    keys.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn a_disk_is_what_its_backend_says() {
    let disk = Disk::of(&keys(&[("params", "/srv/d.img"), ("mode", "r"), ("dev", "xvda")])).unwrap();
    assert_eq!(disk, Disk { params: "/srv/d.img".to_owned(), mode: Mode::Read });
    for without in ["params", "mode"] {
        let mut keys = keys(&[("params", "/srv/d.img"), ("mode", "w")]);
        keys.insert(without.to_owned(), String::new());
        let empty = Disk::of(&keys).unwrap_err().to_string();
        keys.remove(without);
        let missing = Disk::of(&keys).unwrap_err().to_string();
        assert!(missing.starts_with(&format!("the backend has no {without}:")), "{missing}");
        assert_eq!(missing, empty);
    }
    assert_eq!(Saved::of(&keys(&[("params", "/dev/sda")])), None);
    let saved = Saved::of(&keys(&[("params", "/srv/d.img"), ("node", "/dev/loop3")])).unwrap();
    assert_eq!((&*saved.node, saved.params.as_deref()), ("/dev/loop3", Some("/srv/d.img")));
}

#[test]
fn what_a_guest_has_is_read_from_its_backend() {
    let image = tempfile::NamedTempFile::new().unwrap();
    let path = image.path().to_str().unwrap();
    let file = target::medium(image.path());
    let medium = |kind: &str, physical_device: Option<&str>, params: String| {
        let user = User {
            kind: kind.to_owned(),
            physical_device: physical_device.map(str::to_owned),
            params: Some(params),
            ..User::default()
        };
        user.into_use().map(|found| found.medium)
    };
    assert!(file.is_some());
    assert_eq!(medium("qdisk", None, format!("aio:{path}")), file);
    assert_eq!(medium("vbd3", None, path.to_owned()), file);
    // Its script has not come to it yet; when it does, it finds ours.
    assert_eq!(medium("vbd", None, path.to_owned()), None);
    let device = Some(Medium::Device(Numbers { major: 0xca, minor: 0x1f }));
    assert_eq!(medium("vbd", Some("ca:1f"), path.to_owned()), device);
    for nothing in ["aio:", "aio", "", "nbd:localhost:1", "aio:/no/such/file"] {
        assert_eq!(medium("qdisk", None, nothing.to_owned()), None, "{nothing}");
    }
    assert_eq!(medium("vbd", Some("7"), path.to_owned()), None);
}

#[tokio::test]
async fn an_attach_that_cannot_begin_leaves_the_lock_free() {
    let folder = tempfile::tempdir().unwrap();
    let block = Block::with_lock_dir(&folder.path().join("locks"));
    let limit = Duration::from_secs(20);
    let disk = |name: &str| Disk {
        params: folder.path().join(name).to_str().unwrap().to_owned(),
        mode: Mode::Write,
    };
    fs::write(folder.path().join("image"), "").unwrap();
    let never = CancellationToken::new();
    let failure = block.begin(&disk("none"), limit, &never).await.unwrap_err();
    assert!(matches!(failure, Failure::Missing(_)), "{failure}");
    let lock = folder.path().join("locks/block");
    let begun = block.begin(&disk("image"), limit, &never).await.unwrap();
    assert!(lock.exists());
    let second = block.begin(&disk("image"), Duration::from_millis(20), &never).await.unwrap_err();
    assert!(matches!(second, Failure::Locked { .. }), "{second}");
    drop(begun);
    assert!(!lock.exists());
    let cancelled = CancellationToken::new();
    cancelled.cancel();
    let failure = block.begin(&disk("image"), limit, &cancelled).await.unwrap_err();
    assert!(matches!(failure, Failure::Cancelled), "{failure}");
    assert!(!lock.exists());
}

#[tokio::test]
async fn only_loop_devices_are_given_back() {
    let never = CancellationToken::new();
    let detached = async |node: &str| {
        let saved = Saved { node: node.to_owned(), params: None, file: None, sequence: None };
        detach(saved, Duration::from_secs(20), &never).await
    };
    for other in ["/dev/sda", "/dev/null", "", "/dev/loop0/../sda"] {
        let failure = detached(other).await.unwrap_err().to_string();
        assert!(
            failure.ends_with("it is no loop device; the kernel's log may tell more: dmesg"),
            "{failure}"
        );
    }
    assert_eq!(detached("/dev/loop1048000").await.unwrap(), Detached::Before);
}

#[test]
fn a_removed_image_is_known_by_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().canonicalize().unwrap();
    let (real, link) = (folder.join("real"), folder.join("link"));
    fs::create_dir(&real).unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let other = FileId { dev: 0, ino: 0 };
    let is_ours = |params: &Path, serves: &str| is_of(params.to_str().unwrap(), other, serves);
    let image = real.join("image");
    let shown = image.display();
    assert!(is_ours(&image, &format!("{shown} (deleted)")));
    assert!(is_ours(&link.join("image"), &format!("{shown} (deleted)")), "by a link");
    assert!(!is_ours(&image, &shown.to_string()), "another of that name");
    assert!(!is_ours(&image, &format!("{shown}2 (deleted)")));
    fs::write(&image, "").unwrap();
    assert!(!is_ours(&image, &shown.to_string()), "what is there is not what it serves");
    let Some(Medium::File(file)) = target::medium(&image) else { panic!("a file") };
    assert!(is_of(image.to_str().unwrap(), file, "/renamed"));
}
