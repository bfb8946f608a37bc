//! Permissions: which domain a list speaks of.

use xs_proto::{DomId, Op};

use crate::peer::{Peer, store};

#[tokio::test]
async fn a_list_does_not_speak_for_the_next_domain_of_the_number() {
    let (store, mut a) = store();
    store.introduce(DomId(7));
    a.ok(Op::WRITE, "/x|v").await;
    a.ok(Op::SET_PERMS, "/x|n0|r7|").await;
    assert_eq!(Peer::of(&store, 7).ask(Op::READ, "/x|").await, "v");
    store.release(DomId(7));
    let mut next = Peer::of(&store, 7);
    assert_eq!(next.ask(Op::READ, "/x|").await, "!EACCES");
    // The entry is still shown, and a write does not renew it.
    a.ok(Op::WRITE, "/x|w").await;
    assert_eq!(a.ask(Op::GET_PERMS, "/x|").await, "n0|r7|");
    assert_eq!(next.ask(Op::READ, "/x|").await, "!EACCES");
    a.ok(Op::SET_PERMS, "/x|n0|r7|").await;
    assert_eq!(next.ask(Op::READ, "/x|").await, "w");
}

#[tokio::test]
async fn a_list_may_come_before_its_domain() {
    let (store, mut a) = store();
    a.ok(Op::WRITE, "/x|v").await;
    a.ok(Op::SET_PERMS, "/x|n0|r7|").await;
    assert_eq!(a.ask(Op::SET_PERMS, "/x|n7|").await, "!ENOENT", "but the owner must exist");
    assert_eq!(Peer::of(&store, 7).ask(Op::READ, "/x|").await, "v");
    a.ok(Op::SET_PERMS, "/x|n7|").await;
}

#[tokio::test]
async fn every_domain() {
    let (store, mut a) = store();
    a.ok(Op::WRITE, "/x|v").await;
    a.ok(Op::SET_PERMS, "/x|n0|n7|r32757|").await;
    assert_eq!(Peer::of(&store, 8).ask(Op::READ, "/x|").await, "v");
    assert_eq!(Peer::of(&store, 7).ask(Op::READ, "/x|").await, "!EACCES", "the first entry decides");
    let mut guest = Peer::of(&store, 9);
    assert_eq!(guest.ask(Op::GET_FEATURE, "").await, "14|");
    a.ok(Op::SET_FEATURE, "9|4|").await;
    assert_eq!(guest.ask(Op::READ, "/x|").await, "!EACCES");
    a.ok(Op::SET_FEATURE, "9|8|").await;
    assert_eq!(guest.ask(Op::READ, "/x|").await, "v");
    assert_eq!(guest.ask(Op::WATCH, "/x|t|1|").await, "!EINVAL");
}

#[tokio::test]
async fn a_guest_owns_what_it_creates_also_under_an_old_list() {
    let (store, mut a) = store();
    a.ok(Op::MKDIR, "/d|").await;
    a.ok(Op::SET_PERMS, "/d|b0|").await;
    store.introduce(DomId(7));
    store.release(DomId(7));
    store.introduce(DomId(7));
    let mut guest = Peer::of(&store, 7);
    guest.ok(Op::WRITE, "/d/x|v").await;
    guest.ok(Op::SET_PERMS, "/d/x|n7|").await;
    assert_eq!(guest.ask(Op::READ, "/d/x|").await, "v");
}
