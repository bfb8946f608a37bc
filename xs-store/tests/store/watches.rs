//! Watches: who gets which event.

use tokio::io::AsyncWriteExt;
use xs_proto::{DomId, Op};

use crate::peer::{Peer, request, store};

#[tokio::test]
async fn special_watches_name_the_domain_if_asked() {
    let (store, mut a) = store();
    for watch in ["@introduceDomain|any|", "@introduceDomain|0|0|", "@introduceDomain|1|1|"] {
        a.ok(Op::WATCH, watch).await;
    }
    a.ok(Op::WATCH, "@introduceDomain/5|five|").await;
    a.ok(Op::WATCH, "@introduceDomain/6|six|").await;
    assert_eq!(a.events().await.len(), 5);
    store.introduce(DomId(5));
    assert_eq!(
        a.events().await,
        ["@introduceDomain|any|", "@introduceDomain/5|1|", "@introduceDomain/5|five|"]
    );
    store.introduce(DomId(5));
    assert_eq!(a.events().await, [""; 0]);
}

#[tokio::test]
async fn guests_hear_of_ended_domains_but_not_of_new_ones() {
    let (store, mut a) = store();
    let mut guest = Peer::of(&store, 7);
    guest.ok(Op::WATCH, "@introduceDomain|i|").await;
    guest.ok(Op::WATCH, "@releaseDomain|r|").await;
    guest.events().await;
    store.introduce(DomId(8));
    store.shut_down(DomId(8));
    store.shut_down(DomId(8));
    assert_eq!(guest.events().await, ["@releaseDomain|r|"]);
    a.ok(Op::RESUME, "8|").await;
    store.shut_down(DomId(8));
    assert_eq!(guest.events().await, ["@releaseDomain|r|"]);
    a.ok(Op::SET_PERMS, "@releaseDomain|n0|").await;
    store.release(DomId(8));
    assert_eq!(guest.events().await, ["@releaseDomain|r|"], "the one of SET_PERMS, its last");
    a.ok(Op::SET_PERMS, "@introduceDomain|n0|r7|").await;
    store.introduce(DomId(8));
    assert_eq!(guest.events().await, ["@introduceDomain|i|"; 2]);
    assert_eq!(a.ask(Op::GET_PERMS, "@introduceDomain|").await, "n0|r7|");
}

#[tokio::test]
async fn one_change_is_one_event_for_two_watches_of_one_token() {
    let (store, mut a) = store();
    let mut b = Peer::of(&store, 0);
    b.ok(Op::WATCH, "/d|t|").await;
    b.ok(Op::WATCH, "/d/x|t|").await;
    b.ok(Op::WATCH, "/d|u|").await;
    b.events().await;
    a.ok(Op::WRITE, "/d/x|v").await;
    assert_eq!(b.events().await, ["/d/x|t|", "/d/x|u|"]);
}

#[tokio::test]
async fn an_event_that_still_waits_is_not_sent_again() {
    let (store, mut a) = store();
    let mut b = Peer::of(&store, 0);
    b.ok(Op::WATCH, "/d|t|").await;
    b.ok(Op::WATCH, "@introduceDomain|i|").await;
    b.events().await;
    // Carried out in one turn.
    let names = ["x", "y", "x", "y"];
    let writes: Vec<_> =
        names.iter().flat_map(|name| request(0, Op::WRITE, &format!("/d/{name}|v"))).collect();
    a.stream.write_all(&writes).await.unwrap();
    for _ in names {
        assert_eq!(a.receive().await.unwrap().0, Op::WRITE);
    }
    assert_eq!(b.events().await, ["/d/x|t|", "/d/y|t|"]);
    // What happens to domains is told each time.
    store.introduce(DomId(7));
    store.introduce(DomId(8));
    assert_eq!(b.events().await, ["@introduceDomain|i|"; 2]);
    a.ok(Op::WRITE, "/d/x|v").await;
    assert_eq!(b.events().await, ["/d/x|t|"]);
}

#[tokio::test]
async fn a_guest_that_may_read_the_parent_hears_of_its_children() {
    let (store, mut a) = store();
    a.ok(Op::MKDIR, "/d/hidden|").await;
    a.ok(Op::SET_PERMS, "/d|n0|r7|").await;
    let mut guest = Peer::of(&store, 7);
    guest.ok(Op::WATCH, "/d|t|").await;
    guest.events().await;
    a.ok(Op::WRITE, "/d/hidden|v").await;
    assert_eq!(guest.events().await, ["/d/hidden|t|"]);
    a.ok(Op::WRITE, "/d/hidden/deeper|v").await;
    assert_eq!(guest.events().await, [""; 0]);
    // Outside a transaction the parent counts for a removal, in one it does not.
    a.ok(Op::MKDIR, "/d/other|").await;
    a.ok(Op::SET_PERMS, "/d/other|n0|").await;
    guest.events().await;
    let tx = a.start().await;
    a.ok_in(tx, Op::RM, "/d/other|").await;
    assert_eq!(a.commit(tx).await, "OK|");
    assert_eq!(guest.events().await, [""; 0]);
    a.ok(Op::RM, "/d/hidden|").await;
    assert_eq!(guest.events().await, ["/d/hidden|t|"]);
}

#[tokio::test]
async fn watches_end_with_their_connection() {
    let (store, mut a) = store();
    let mut b = Peer::of(&store, 0);
    b.ok(Op::WATCH, "/d|t|").await;
    drop(b);
    tokio::task::yield_now().await;
    a.ok(Op::WRITE, "/d|v").await;
    let mut c = Peer::of(&store, 0);
    assert_eq!(c.ask(Op::UNWATCH, "/d|t|").await, "!ENOENT");
}
