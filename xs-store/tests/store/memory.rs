//! What the transactions of a guest hold on to counts against its quota of memory.

use xs_proto::Op;
use xs_store::Store;

use crate::peer::{Peer, store};

/// The quota, in bytes.
const MEMORY: usize = 100_000;

/// Guest 7 with a home, and with nine transactions.
async fn guest() -> (Store, Peer, Peer, Vec<u32>) {
    let (store, mut a) = store();
    let mut guest = Peer::of(&store, 7);
    a.ok(Op::MKDIR, "/local/domain/7|").await;
    a.ok(Op::SET_PERMS, "/local/domain/7|n7|").await;
    a.ok(Op::SET_QUOTA, &format!("memory|{MEMORY}|")).await;
    let mut transactions = Vec::new();
    for _ in 0..9 {
        transactions.push(guest.start().await);
    }
    (store, a, guest, transactions)
}

/// What is said to be used by guest 7.
async fn used(a: &mut Peer) -> usize {
    let text = a.ask(Op::CONTROL, "quota|7|").await;
    let row = text.lines().find(|line| line.starts_with("memory")).unwrap();
    row.split(':').nth(1).unwrap().trim().parse().unwrap()
}

/// Ends all transactions: what they held is given back, and the store's counts are right.
async fn end(mut a: Peer, mut guest: Peer, transactions: Vec<u32>, before: usize) {
    a.ok(Op::CONTROL, "check|").await;
    assert!(used(&mut a).await < MEMORY);
    let (last, others) = transactions.split_last().unwrap();
    for tx in others {
        assert_eq!(guest.ask_in(*tx, Op::TRANSACTION_END, "F|").await, "OK|");
    }
    assert_eq!(guest.commit(*last).await, "!ENOMEM", "it was refused something");
    assert_eq!(used(&mut a).await, before);
    a.ok(Op::CONTROL, "check|").await;
    let tx = guest.start().await;
    guest.ok_in(tx, Op::WRITE, "x|v").await;
    assert_eq!(guest.commit(tx).await, "OK|");
    a.ok(Op::CONTROL, "check|").await;
}

#[tokio::test]
async fn nodes_written_inside_count_for_all_transactions_together() {
    let (_store, mut a, mut guest, transactions) = guest().await;
    let before = used(&mut a).await;
    let mut written = 0;
    for tx in &transactions {
        for number in 0..30 {
            let request = format!("{tx}n{number}|{}", "v".repeat(1500));
            match &*guest.ask_in(*tx, Op::WRITE, &request).await {
                "OK|" => written += 1500,
                refusal => assert_eq!(refusal, "!ENOMEM"),
            }
        }
    }
    assert!((MEMORY / 2..MEMORY).contains(&written), "{written} bytes");
    end(a, guest, transactions, before).await;
}

#[tokio::test]
async fn views_of_what_others_rewrite_count() {
    let (_store, mut a, mut guest, transactions) = guest().await;
    let before = used(&mut a).await;
    let mut held = 0;
    for tx in &transactions {
        for number in 0..20 {
            a.ok(Op::WRITE, &format!("/big{number}|{tx}{}", "v".repeat(3000))).await;
            a.ok(Op::SET_PERMS, &format!("/big{number}|n0|r7|")).await;
            match &*guest.ask_in(*tx, Op::READ, &format!("/big{number}|")).await {
                "!ENOMEM" => {}
                value => held += value.len(),
            }
        }
    }
    assert!((MEMORY / 2..MEMORY).contains(&held), "{held} bytes");
    end(a, guest, transactions, before).await;
}

#[tokio::test]
async fn missing_nodes_that_were_looked_for_count() {
    let (_store, mut a, mut guest, transactions) = guest().await;
    let before = used(&mut a).await;
    let mut held = 0;
    for tx in &transactions {
        for number in 0..20 {
            let path = format!("{number:02}{}", "n".repeat(1998));
            match &*guest.ask_in(*tx, Op::READ, &format!("{path}|")).await {
                "!ENOENT" => held += path.len(),
                refusal => assert_eq!(refusal, "!ENOMEM"),
            }
        }
    }
    assert!((MEMORY / 2..MEMORY).contains(&held), "{held} bytes");
    end(a, guest, transactions, before).await;
}

#[tokio::test]
async fn lists_of_names_count() {
    let (_store, mut a, mut guest, transactions) = guest().await;
    for number in 0..20 {
        a.ok(Op::MKDIR, &format!("/list/{number}{}|", "n".repeat(1500))).await;
    }
    a.ok(Op::SET_PERMS, "/list|n0|r7|").await;
    let before = used(&mut a).await;
    let mut answers = Vec::new();
    for tx in &transactions {
        answers.push(guest.ask_in(*tx, Op::READ, "/list|").await);
    }
    assert_eq!(answers.iter().filter(|answer| *answer == "!ENOMEM").count(), 6, "{answers:?}");
    end(a, guest, transactions, before).await;
}

#[tokio::test]
async fn transactions_end_with_their_connection_and_domain() {
    let (store, mut a, mut guest, transactions) = guest().await;
    let before = used(&mut a).await;
    guest.ok_in(transactions[0], Op::WRITE, &format!("n|{}", "v".repeat(1500))).await;
    guest.ok(Op::RESET_WATCHES, "|").await;
    assert_eq!(used(&mut a).await, before);
    let tx = guest.start().await;
    guest.ok_in(tx, Op::WRITE, &format!("n|{}", "v".repeat(1500))).await;
    drop(guest);
    tokio::task::yield_now().await;
    a.ok(Op::CONTROL, "check|").await;
    assert_eq!(used(&mut a).await, before);
    let mut guest = Peer::of(&store, 7);
    let tx = guest.start().await;
    guest.ok_in(tx, Op::WRITE, &format!("n|{}", "v".repeat(1500))).await;
    store.release(xs_proto::DomId(7));
    a.ok(Op::CONTROL, "check|").await;
}
