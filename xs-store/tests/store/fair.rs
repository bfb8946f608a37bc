//! What one connection costs the others.

use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::AsyncWriteExt;
use xs_proto::Op;

use crate::peer::{Peer, request, store};

#[tokio::test]
async fn who_asks_much_at_once_takes_turns_with_the_others() {
    const REQUESTS: usize = 400;
    let (store, mut greedy) = store();
    let mut other = Peer::of(&store, 0);
    greedy.ok(Op::WRITE, "/count|0").await;
    let requests: BytesMut =
        (1..=REQUESTS).flat_map(|count| request(0, Op::WRITE, &format!("/count|{count}"))).collect();
    assert!(requests.len() < 16 << 10, "all is read at once");
    greedy.stream.write_all(&requests).await.unwrap();
    let count: usize = other.ask(Op::READ, "/count|").await.parse().unwrap();
    assert!(count < REQUESTS / 2, "{count} requests of another were carried out first");
    for _ in 0..REQUESTS {
        assert_eq!(greedy.receive().await.unwrap().0, Op::WRITE);
    }
}

/// The time of writes to a node that nobody else may read, while 50 guests have so many watches
/// above it.
async fn time_of_writes(watches: usize) -> Duration {
    let (store, mut a) = store();
    let mut guests = Vec::new();
    for domid in 1..=50 {
        let mut guest = Peer::of(&store, domid);
        for number in 0..watches {
            guest.ok(Op::WATCH, &format!("/|{number}|")).await;
        }
        guests.push(guest);
    }
    let rounds = (0..5).map(|_| 20);
    let mut times = Vec::new();
    for writes in rounds {
        let begin = Instant::now();
        for _ in 0..writes {
            a.ok(Op::WRITE, "/secret|v").await;
        }
        times.push(begin.elapsed());
    }
    times.into_iter().min().unwrap()
}

#[tokio::test]
async fn rights_are_looked_at_once_for_a_connection_however_many_watches_it_has() {
    let (one, many) = (time_of_writes(1).await, time_of_writes(127).await);
    assert!(many < one * 15, "with one watch each {one:?}, with 127 {many:?}");
}

/// A guest that writes without a pause what a transaction of domain 0 reads, against how many attempts that takes.
#[tokio::test]
async fn a_guest_does_not_make_transactions_of_dom0_fail_without_end() {
    let (store, mut a) = store();
    let mut guest = Peer::of(&store, 7);
    a.ok(Op::MKDIR, "/local/domain/7|").await;
    a.ok(Op::SET_PERMS, "/local/domain/7|n7|").await;
    guest.ok(Op::WRITE, "state|0").await;
    let guest = tokio::spawn(async move {
        for number in 0.. {
            guest.ok(Op::WRITE, &format!("state|{number}")).await;
        }
    });
    let mut attempts = 0;
    loop {
        attempts += 1;
        let tx = a.start().await;
        a.ask_any(tx, Op::READ, "/local/domain/7/state|").await;
        // The guest has much time meanwhile.
        for _ in 0..200 {
            tokio::task::yield_now().await;
        }
        if a.commit(tx).await == "OK|" {
            break;
        }
        assert!(attempts < 10, "the guest wins every race");
    }
    assert!(attempts > 2, "the guest was to be in the way");
    // And it goes on then.
    let before = a.ask(Op::READ, "/local/domain/7/state|").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_ne!(a.ask(Op::READ, "/local/domain/7/state|").await, before);
    guest.abort();
}

/// Where two guests may write: a transaction reads the node of one, which removes it, and the other makes one beside
/// it. And who else has changed much meanwhile changes nothing.
#[tokio::test(start_paused = true)]
async fn who_removes_what_a_transaction_reads_waits_and_not_who_writes_beside_it() {
    const ELSEWHERE: usize = 5000;
    let (store, mut a) = store();
    let (mut culprit, mut other) = (Peer::of(&store, 7), Peer::of(&store, 8));
    a.ok(Op::MKDIR, "/shared|").await;
    a.ok(Op::SET_PERMS, "/shared|n0|b7|b8|").await;
    let mut waited = Vec::new();
    for number in 0..3 {
        culprit.ok(Op::WRITE, "/shared/a|x").await;
        let tx = a.start().await;
        a.ask_any(tx, Op::READ, "/shared/a|").await;
        culprit.ok(Op::RM, "/shared/a|").await;
        other.ok(Op::WRITE, &format!("/shared/b{number}|x")).await;
        for write in 0..ELSEWHERE {
            other.ok(Op::WRITE, &format!("/shared/c|{write}")).await;
        }
        assert_eq!(a.commit(tx).await, "!EAGAIN");
        for peer in [&mut culprit, &mut other] {
            let begun = tokio::time::Instant::now();
            peer.ask_any(0, Op::READ, "/shared/none|").await;
            waited.push(begun.elapsed() > Duration::from_millis(900));
        }
    }
    assert_eq!(waited, [false, false, false, false, true, false]);
}
