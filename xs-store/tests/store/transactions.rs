//! Transactions: what the C daemon does where its nodes are frozen one by one.

use xs_proto::{DomId, Op};

use crate::peer::{Peer, store};

#[tokio::test]
async fn a_created_and_listed_child_stays_in_order() {
    let (_store, mut a) = store();
    for name in ["a", "b", "c"] {
        a.ok(Op::MKDIR, &format!("/d/{name}|")).await;
    }
    let tx = a.start().await;
    a.ok_in(tx, Op::RM, "/d/a|").await;
    a.ok_in(tx, Op::MKDIR, "/d/z|").await;
    a.ok_in(tx, Op::WRITE, "/d/a|again").await;
    let inside = a.ask_in(tx, Op::DIRECTORY, "/d|").await;
    assert_eq!(inside, "b|c|z|a|");
    assert_eq!(a.commit(tx).await, "OK|");
    assert_eq!(a.ask(Op::DIRECTORY, "/d|").await, inside);
    assert_eq!(a.ask(Op::READ, "/d/a|").await, "again");
}

#[tokio::test]
async fn removing_a_subtree_and_making_part_of_it_anew() {
    let (_store, mut a) = store();
    a.ok(Op::WRITE, "/d/x/y|old").await;
    a.ok(Op::WRITE, "/d/x/z|old").await;
    let tx = a.start().await;
    a.ok_in(tx, Op::RM, "/d|").await;
    a.ok_in(tx, Op::WRITE, "/d/x/z|new").await;
    assert_eq!(a.commit(tx).await, "OK|");
    assert_eq!(a.ask(Op::DIRECTORY, "/d/x|").await, "z|");
    assert_eq!(a.ask(Op::READ, "/d/x/z|").await, "new");
    assert_eq!(a.ask(Op::READ, "/d/x/y|").await, "!ENOENT");
}

#[tokio::test]
async fn events_come_in_the_order_of_the_first_touch() {
    let (store, mut a) = store();
    let mut b = Peer::of(&store, 0);
    b.ok(Op::WATCH, "/d|t|").await;
    b.events().await;
    let tx = a.start().await;
    assert_eq!(a.ask_in(tx, Op::READ, "/d/2|").await, "!ENOENT");
    a.ok_in(tx, Op::WRITE, "/d/1|v").await;
    a.ok_in(tx, Op::WRITE, "/d/2|v").await;
    assert_eq!(a.commit(tx).await, "OK|");
    assert_eq!(b.events().await, ["/d/2|t|", "/d/1|t|"]);
}

#[tokio::test]
async fn a_node_that_is_written_and_removed_still_fires_above() {
    let (store, mut a) = store();
    a.ok(Op::WRITE, "/d/x/y|v").await;
    let mut b = Peer::of(&store, 0);
    b.ok(Op::WATCH, "/d|t|").await;
    b.events().await;
    let tx = a.start().await;
    a.ok_in(tx, Op::WRITE, "/d/x/y|w").await;
    a.ok_in(tx, Op::RM, "/d/x|").await;
    assert_eq!(a.commit(tx).await, "OK|");
    assert_eq!(b.events().await, ["/d/x/y|t|", "/d/x|t|"]);
}

#[tokio::test]
async fn a_refused_look_freezes_the_parent_too() {
    let (store, mut a) = store();
    a.ok(Op::WRITE, "/d/x|v").await;
    let mut guest = Peer::of(&store, 7);
    let tx = guest.start().await;
    assert_eq!(guest.ask_in(tx, Op::READ, "/d/x|").await, "!EACCES");
    a.ok(Op::WRITE, "/d|changed").await;
    assert_eq!(guest.commit(tx).await, "!EAGAIN");
}

#[tokio::test]
async fn a_list_that_does_not_fit_the_nodes_is_damage() {
    let (_store, mut a) = store();
    a.ok(Op::WRITE, "/d/x|v").await;
    let tx = a.start().await;
    assert_eq!(a.ask_in(tx, Op::DIRECTORY, "/d|").await, "x|");
    a.ok(Op::WRITE, "/d/y|v").await;
    // The frozen parent does not list the new node, which is there all the same.
    assert_eq!(a.ask_in(tx, Op::READ, "/d/y|").await, "v");
    assert_eq!(a.ask_in(tx, Op::RM, "/d/y|").await, "!EIO");
    assert_eq!(a.commit(tx).await, "!EAGAIN");
    assert_eq!(a.ask(Op::READ, "/d/y|").await, "v");
}

#[tokio::test]
async fn touching_does_not_hold_up_others() {
    let (store, mut a) = store();
    a.ok(Op::WRITE, "/d/x|1").await;
    let mut b = Peer::of(&store, 0);
    let tx = b.start().await;
    assert_eq!(b.ask_in(tx, Op::DIRECTORY, "/d|").await, "x|");
    // The store shares frozen nodes with its tree; a change must not reach them.
    a.ok(Op::WRITE, "/d/y|1").await;
    a.ok(Op::RM, "/d/x|").await;
    assert_eq!(b.ask_in(tx, Op::DIRECTORY, "/d|").await, "x|");
    assert_eq!(a.ask(Op::DIRECTORY, "/d|").await, "y|");
}

#[tokio::test]
async fn nodes_are_not_given_to_a_domain_that_ended() {
    let (store, mut a) = store();
    store.introduce(DomId(7));
    a.ok(Op::WRITE, "/x|v").await;
    let tx = a.start().await;
    a.ok_in(tx, Op::SET_PERMS, "/x|n7|").await;
    store.release(DomId(7));
    assert_eq!(a.commit(tx).await, "!ENOMEM");
    assert_eq!(a.ask(Op::GET_PERMS, "/x|").await, "n0|");
}

#[tokio::test]
async fn a_name_can_be_listed_twice_where_nodes_were_frozen_at_different_times() {
    let (store, mut a) = store();
    let mut b = Peer::of(&store, 0);
    a.ok(Op::MKDIR, "/d/b|").await;
    a.ok(Op::MKDIR, "/d/a|").await;
    let tx = a.start().await;
    assert_eq!(a.ask_in(tx, Op::DIRECTORY, "/d|").await, "b|a|");
    b.ok(Op::RM, "/d/a|").await;
    assert_eq!(a.ask_in(tx, Op::READ, "/d/a|").await, "!ENOENT");
    for _ in 0..2 {
        a.ok_in(tx, Op::MKDIR, "/d/a|").await;
        assert_eq!(a.ask_in(tx, Op::DIRECTORY, "/d|").await, "b|a|a|");
        a.ok_in(tx, Op::RM, "/d/a|").await;
        assert_eq!(a.ask_in(tx, Op::DIRECTORY, "/d|").await, "b|a|");
    }
    assert_eq!(a.commit(tx).await, "!EAGAIN");
}
