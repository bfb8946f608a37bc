//! Quotas, with the limits where Xen 4.22 has them.

use xs_proto::Op;

use crate::peer::{Peer, store};

#[tokio::test]
async fn watches_and_transactions() {
    let (store, mut a) = store();
    let mut guest = Peer::of(&store, 7);
    for number in 0..127 {
        guest.ok(Op::WATCH, &format!("w{number}|t|")).await;
    }
    assert_eq!(guest.ask(Op::WATCH, "more|t|").await, "!ENOSPC");
    assert_eq!(guest.ask(Op::WATCH, "w0|t|").await, "!EEXIST");
    guest.ok(Op::UNWATCH, "w0|t|").await;
    guest.ok(Op::WATCH, "more|t|").await;
    for _ in 0..9 {
        guest.start().await;
    }
    assert_eq!(guest.ask(Op::TRANSACTION_START, "|").await, "!ENOSPC");
    a.ok(Op::SET_QUOTA, "7|transactions|0|").await;
    assert_eq!(a.ask(Op::GET_QUOTA, "7|transactions|").await, "0|");
    assert_eq!(a.ask(Op::GET_QUOTA, "transactions|").await, "10|");
    guest.start().await;
}

#[tokio::test]
async fn nodes_are_counted_to_their_owner() {
    let (store, mut a) = store();
    let mut guest = Peer::of(&store, 7);
    a.ok(Op::MKDIR, "/local/domain/7|").await;
    a.ok(Op::SET_PERMS, "/local/domain/7|n7|").await;
    a.ok(Op::SET_QUOTA, "nodes|3|").await;
    guest.ok(Op::MKDIR, "a|").await;
    assert_eq!(guest.ask(Op::MKDIR, "b/c|").await, "!ENOSPC", "two nodes are one too many");
    guest.ok(Op::MKDIR, "b|").await;
    assert_eq!(guest.ask(Op::MKDIR, "c|").await, "!ENOSPC");
    a.ok(Op::SET_PERMS, "/local/domain/7/a|n0|").await;
    guest.ok(Op::MKDIR, "c|").await;
    guest.ok(Op::RM, "b|").await;
    let tx = guest.start().await;
    guest.ok_in(tx, Op::MKDIR, "d|").await;
    guest.ok_in(tx, Op::MKDIR, "e|").await;
    assert_eq!(guest.commit(tx).await, "!ENOSPC", "a transaction is told at its end");
    guest.ok(Op::MKDIR, "f|").await;
}

#[tokio::test]
async fn a_commit_may_come_too_late_for_the_quota() {
    let (store, mut a) = store();
    let mut guest = Peer::of(&store, 7);
    for home in ["/one", "/two"] {
        a.ok(Op::MKDIR, &format!("{home}|")).await;
        a.ok(Op::SET_PERMS, &format!("{home}|n0|b7|")).await;
    }
    a.ok(Op::SET_QUOTA, "nodes|2|").await;
    let tx = guest.start().await;
    guest.ok_in(tx, Op::MKDIR, "/one/x|").await;
    guest.ok(Op::MKDIR, "/two/x|").await;
    assert_eq!(guest.commit(tx).await, "!ENOSPC");
    assert_eq!(guest.ask(Op::READ, "/one/x|").await, "!ENOENT");
}

#[tokio::test]
async fn a_transaction_may_leave_one_node_less_than_the_quota() {
    let (store, mut a) = store();
    let mut guest = Peer::of(&store, 7);
    a.ok(Op::MKDIR, "/local/domain/7|").await;
    a.ok(Op::SET_PERMS, "/local/domain/7|n7|").await;
    a.ok(Op::SET_QUOTA, "nodes|3|").await;
    let tx = guest.start().await;
    guest.ok_in(tx, Op::MKDIR, "a/b|").await;
    assert_eq!(guest.commit(tx).await, "!ENOSPC");
    guest.ok(Op::MKDIR, "a/b|").await;
    let tx = guest.start().await;
    assert_eq!(guest.ask_in(tx, Op::MKDIR, "c|").await, "!ENOSPC", "what is there counts at once");
    assert_eq!(guest.commit(tx).await, "OK|", "as if that had not been asked");
    let tx = guest.start().await;
    guest.ok_in(tx, Op::RM, "a/b|").await;
    assert_eq!(guest.commit(tx).await, "OK|");
}

#[tokio::test]
async fn a_transaction_in_which_a_node_was_too_large_is_spoiled() {
    let (store, mut a) = store();
    let mut guest = Peer::of(&store, 7);
    a.ok(Op::MKDIR, "/local/domain/7|").await;
    a.ok(Op::SET_PERMS, "/local/domain/7|n7|").await;
    let tx = guest.start().await;
    guest.ok_in(tx, Op::WRITE, "k|v").await;
    assert_eq!(guest.ask_in(tx, Op::WRITE, &format!("k|{}", "v".repeat(2024))).await, "!ENOSPC");
    assert_eq!(guest.commit(tx).await, "!ENOMEM");
    assert_eq!(guest.ask(Op::READ, "k|").await, "!ENOENT");
}

#[tokio::test]
async fn memory_is_counted_in_nodes_watches_and_what_is_unread() {
    let (store, mut a) = store();
    let mut guest = Peer::of(&store, 7);
    a.ok(Op::MKDIR, "/local/domain/7|").await;
    a.ok(Op::SET_PERMS, "/local/domain/7|n7|").await;
    a.ok(Op::CONTROL, "quota|set|memory|1000|").await;
    guest.ok(Op::WRITE, &format!("k|{}", "v".repeat(800))).await;
    assert_eq!(guest.ask(Op::WRITE, &format!("l|{}", "v".repeat(200))).await, "!ENOMEM");
    assert_eq!(guest.ask(Op::WATCH, &format!("k|{}|", "t".repeat(200))).await, "!ENOMEM");
    guest.ok(Op::WATCH, "k|t|").await;
    guest.ok(Op::WRITE, "k|v").await;
    guest.ok(Op::WRITE, &format!("l|{}", "v".repeat(200))).await;
    a.ok(Op::CONTROL, "quota|set|memory|1700|").await;
    let tx = guest.start().await;
    guest.ok_in(tx, Op::WRITE, &format!("m|{}", "v".repeat(300))).await;
    assert_eq!(guest.ask_in(tx, Op::WRITE, &format!("n|{}", "v".repeat(300))).await, "!ENOMEM");
    assert_eq!(guest.commit(tx).await, "!ENOMEM");
    // It has no quota for what dom0 does.
    a.ok(Op::WRITE, &format!("/local/domain/7/k|{}", "v".repeat(2000))).await;
    a.ok(Op::CONTROL, "check|").await;
    guest.ok(Op::RM, "k|").await;
    guest.ok(Op::RM, "l|").await;
    guest.ok(Op::RESET_WATCHES, "|").await;
    a.ok(Op::RM, "/local/domain/7|").await;
    assert!(a.ask(Op::CONTROL, "quota|7|").await.contains("memory           :        0\n"));
    a.ok(Op::CONTROL, "check|").await;
}

#[tokio::test]
async fn sizes() {
    let (store, mut a) = store();
    let mut guest = Peer::of(&store, 7);
    a.ok(Op::MKDIR, "/local/domain/7|").await;
    a.ok(Op::SET_PERMS, "/local/domain/7|n7|").await;
    guest.ok(Op::WRITE, &format!("k|{}", "v".repeat(2023))).await;
    assert_eq!(guest.ask(Op::WRITE, &format!("k|{}", "v".repeat(2024))).await, "!ENOSPC");
    a.ok(Op::WRITE, &format!("/local/domain/7/k|{}", "v".repeat(4000))).await;
    guest.ok(Op::WRITE, "k|v").await;
    guest.ok(Op::SET_PERMS, "k|n7|r0|r0|r0|").await;
    assert_eq!(guest.ask(Op::SET_PERMS, "k|n7|r0|r0|r0|r0|").await, "!ENOSPC");
    assert_eq!(guest.ask(Op::READ, &format!("{}|", "x".repeat(2047))).await, "!ENOENT");
    assert_eq!(guest.ask(Op::READ, &format!("{}|", "x".repeat(2048))).await, "!EINVAL");
}

#[tokio::test]
async fn paths_are_as_long_as_clients_can_name() {
    let (_store, mut a) = store();
    let absolute = format!("/{}", "x".repeat(3071));
    a.ok(Op::WRITE, &format!("{absolute}|v")).await;
    assert_eq!(a.ask(Op::READ, &format!("{absolute}|")).await, "v");
    assert_eq!(a.ask(Op::WRITE, &format!("{absolute}x|v")).await, "!EINVAL");
    assert_eq!(a.ask(Op::WATCH, &format!("{absolute}x|t|")).await, "!EINVAL");
    let relative = "x".repeat(2048);
    a.ok(Op::WRITE, &format!("{relative}|v")).await;
    assert_eq!(a.ask(Op::WRITE, &format!("{relative}x|v")).await, "!EINVAL");
}

#[tokio::test]
async fn a_removal_that_has_to_touch_too_many_nodes_fails_half_way() {
    let (store, mut a) = store();
    let mut guest = Peer::of(&store, 7);
    a.ok(Op::MKDIR, "/local/domain/7|").await;
    a.ok(Op::SET_PERMS, "/local/domain/7|n7|").await;
    guest.ok(Op::MKDIR, "a/b/c|").await;
    a.ok(Op::SET_QUOTA, "transaction-nodes|3|").await;
    let tx = guest.start().await;
    assert_eq!(guest.ask_in(tx, Op::RM, "a|").await, "!EIO");
    assert_eq!(guest.commit(tx).await, "!ENOMEM");
    guest.ok(Op::RM, "a|").await;
}
