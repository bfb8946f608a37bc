//! Domains: what ends with one.

use xs_proto::{DomId, Op};

use crate::peer::{Peer, store};

#[tokio::test]
async fn release_takes_nodes_watches_and_connections() {
    let (store, mut a) = store();
    store.introduce(DomId(7));
    a.ok(Op::WRITE, "/local/domain/7/device/vbd/1/state|1").await;
    a.ok(Op::SET_PERMS, "/local/domain/7|n7|").await;
    a.ok(Op::WRITE, "/backend/7/x|v").await;
    a.ok(Op::SET_PERMS, "/backend/7/x|n0|r7|").await;
    a.ok(Op::WATCH, "/local|h|").await;
    a.ok(Op::WATCH, "/local/domain/7/device/vbd/1/state|s|").await;
    a.ok(Op::WATCH, "@releaseDomain|r|").await;
    a.events().await;
    let mut guest = Peer::of(&store, 7);
    guest.ok(Op::WATCH, "device|t|").await;
    store.release(DomId(7));
    assert_eq!(
        a.events().await,
        ["/local/domain/7/device/vbd/1/state|s|", "/local/domain/7|h|", "@releaseDomain|r|"]
    );
    while guest.receive().await.is_some() {}
    assert_eq!(a.ask(Op::DIRECTORY, "/local/domain|").await, "");
    assert_eq!(a.ask(Op::READ, "/backend/7/x|").await, "v");
    assert_eq!(a.ask(Op::RELEASE, "7|").await, "!ENOENT");
}

#[tokio::test]
async fn release_of_a_number_nobody_has_does_nothing() {
    let (store, mut a) = store();
    a.ok(Op::WATCH, "@releaseDomain|r|").await;
    a.events().await;
    store.release(DomId(7));
    store.release(DomId(0));
    store.shut_down(DomId(7));
    assert_eq!(a.events().await, [""; 0]);
    assert_eq!(a.ask(Op::READ, "/|").await, "");
}

#[tokio::test]
async fn domain_0_can_be_neither_released_nor_resumed() {
    let (_store, mut a) = store();
    assert_eq!(a.ask(Op::RELEASE, "0|").await, "!EINVAL");
    assert_eq!(a.ask(Op::RESUME, "0|").await, "!EINVAL");
}

#[tokio::test]
async fn a_domain_that_was_not_introduced_ends_quietly() {
    let (store, mut a) = store();
    let mut guest = Peer::of(&store, 7);
    a.ok(Op::WRITE, "/x|v").await;
    a.ok(Op::SET_PERMS, "/x|n7|").await;
    a.ok(Op::WATCH, "@releaseDomain|r|").await;
    a.ok(Op::WATCH, "/x|x|").await;
    a.events().await;
    assert_eq!(a.ask(Op::RELEASE, "7|").await, "!ENOENT");
    store.release(DomId(7));
    assert_eq!(a.events().await, ["/x|x|"]);
    assert_eq!(guest.receive().await, None);
}

#[tokio::test]
async fn a_second_introduction_drops_what_was_under_way() {
    let (store, mut a) = store();
    store.introduce(DomId(7));
    let mut guest = Peer::of(&store, 7);
    guest.ok(Op::WATCH, "/d|t|").await;
    let tx = guest.start().await;
    a.ok(Op::INTRODUCE, "7|1|5|").await;
    assert_eq!(guest.commit(tx).await, "!ENOENT");
    assert_eq!(guest.ask(Op::UNWATCH, "/d|t|").await, "!ENOENT");
}

#[tokio::test]
async fn the_target_of_a_domain_lends_its_rights() {
    let (store, mut a) = store();
    store.introduce(DomId(7));
    store.introduce(DomId(8));
    a.ok(Op::WRITE, "/x|v").await;
    a.ok(Op::SET_PERMS, "/x|n0|r8|").await;
    let mut guest = Peer::of(&store, 7);
    assert_eq!(guest.ask(Op::READ, "/x|").await, "!EACCES");
    a.ok(Op::SET_TARGET, "7|8|").await;
    assert_eq!(guest.ask(Op::READ, "/x|").await, "v");
    store.release(DomId(8));
    assert_eq!(guest.ask(Op::READ, "/x|").await, "!EACCES");
}

#[tokio::test]
async fn commands_are_those_of_the_daemon_that_mean_something_here() {
    let (_store, mut a) = store();
    for done in ["check|", "log|off|", "quota|set|nodes|1000|"] {
        assert_eq!(a.ask(Op::CONTROL, done).await, "OK|", "{done}");
    }
    for refused in ["check", "check|x|", "log||", "print|", "nocommand|", "help|x|", "quota|set|nodes|x|"] {
        assert_eq!(a.ask(Op::CONTROL, refused).await, "!EINVAL", "{refused}");
    }
    assert_eq!(a.ask(Op::CONTROL, "quota|77|").await, "!ENOENT");
    assert!(a.ask(Op::CONTROL, "quota|0|").await.starts_with("Domain 0:\n"));
}
