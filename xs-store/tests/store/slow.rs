//! Readers that are slow, or do not read at all, and those who make events for them.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use xs_proto::Op;
use xs_store::Store;

use crate::peer::{Peer, request, store};

/// Less than the time that anybody waits for a reader; it is not real.
const A_MOMENT: Duration = Duration::from_millis(500);

/// More than that.
const FOR_LONG: Duration = Duration::from_secs(60);

/// Changes of nodes with names of 2000 bytes, no two of them the same.
const CHANGES: usize = 3000;

/// A guest 7 with a home that guest 8 may read.
async fn two_guests() -> (Store, Peer, Peer, Peer) {
    let (store, mut a) = store();
    let (source, watcher) = (Peer::of(&store, 7), Peer::of(&store, 8));
    a.ok(Op::MKDIR, "/local/domain/7|").await;
    a.ok(Op::SET_PERMS, "/local/domain/7|n7|r8|").await;
    (store, a, source, watcher)
}

/// Makes and removes nodes below `top`, reading all answers.
fn make_changes(mut peer: Peer, top: &'static str) -> JoinHandle<Peer> {
    tokio::spawn(async move {
        for number in 0..CHANGES / 2 {
            let name = format!("{top}{number:04}{}|", "n".repeat(1996));
            for op in [Op::MKDIR, Op::RM] {
                peer.ok(op, &name).await;
            }
        }
        peer
    })
}

#[tokio::test(start_paused = true)]
async fn who_makes_events_for_a_slow_guest_waits_and_the_guest_stays() {
    let (_store, mut a, source, mut watcher) = two_guests().await;
    watcher.ok(Op::WATCH, "/local/domain/7|t|").await;
    let source = make_changes(source, "");
    sleep(A_MOMENT).await;
    assert!(!source.is_finished(), "{CHANGES} changes were made for a watcher that took none");
    // Nobody else waits.
    a.ok(Op::WRITE, "/local/domain/7/x|v").await;
    let mut events = 0;
    while !source.is_finished() {
        events += watcher.events().await.len();
    }
    events += watcher.events().await.len();
    assert!(events > CHANGES / 2, "{events} events of {CHANGES} changes");
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_ever_for_who_does_not_read() {
    let (_store, _a, source, mut watcher) = two_guests().await;
    watcher.ok(Op::WATCH, "/local/domain/7|t|").await;
    let source = make_changes(source, "");
    sleep(FOR_LONG).await;
    assert!(source.is_finished(), "the source still waits");
    // The watcher was told that anything may have changed, and is told of changes as before.
    assert_eq!(watcher.events().await.last().unwrap(), "/local/domain/7|t|");
    source.await.unwrap().ok(Op::WRITE, "x|v").await;
    assert_eq!(watcher.events().await, ["/local/domain/7/x|t|"]);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_asks_without_reading_waits_as_well() {
    let (_store, _a, source, mut watcher) = two_guests().await;
    watcher.ok(Op::WATCH, "/local/domain/7|t|").await;
    let (_reader, mut writer) = tokio::io::split(source.stream);
    let name = |number| format!("{number:04}{}|", "n".repeat(100));
    let requests: BytesMut = (0..CHANGES)
        .flat_map(|number| [request(0, Op::MKDIR, &name(number)), request(0, Op::RM, &name(number))])
        .flatten()
        .collect();
    let writer = tokio::spawn(async move {
        writer.write_all(&requests).await.unwrap();
        writer
    });
    sleep(A_MOMENT).await;
    assert!(!writer.is_finished());
    let events = watcher.events().await.len();
    assert!(events < 1000, "{events} events were queued for who had taken none");
}

#[tokio::test(start_paused = true)]
async fn a_guest_leaves_room_for_the_events_of_dom0() {
    let (_store, mut a, source, mut watcher) = two_guests().await;
    watcher.ok(Op::WATCH, "/local/domain/7|t|").await;
    let source = make_changes(source, "");
    sleep(FOR_LONG).await;
    assert!(source.is_finished());
    let by_dom0 = (0..100).map(|number| format!("/local/domain/7/device/{number}|"));
    for path in by_dom0.clone() {
        a.ok(Op::MKDIR, &path).await;
    }
    let events = watcher.events().await;
    let expected: Vec<_> = by_dom0.map(|path| path + "t|").collect();
    assert!(events.ends_with(&expected), "dom0's events are among {}", events.len());
}

#[tokio::test(start_paused = true)]
async fn who_is_watched_by_many_is_not_held_up_by_how_many_they_are() {
    let (store, mut a, mut source, _) = two_guests().await;
    a.ok(Op::SET_PERMS, "/local/domain/7|r7|").await;
    let mut watchers: Vec<_> = (0..20).map(|guest| Peer::of(&store, 100 + guest)).collect();
    for watcher in &mut watchers {
        for token in 0..100 {
            watcher.ok(Op::WATCH, &format!("/local/domain/7|{token}|")).await;
        }
    }
    // From here on nothing more goes into the pipes of the watchers.
    for number in 0..20 {
        a.ok(Op::MKDIR, &format!("/local/domain/7/full{number}|")).await;
    }
    let begun = Instant::now();
    for number in 0..10 {
        source.ok(Op::MKDIR, &format!("{number}|")).await;
    }
    assert_eq!(begun.elapsed(), Duration::ZERO);
    drop(watchers);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_reads_waits_for_nobody() {
    let (store, _a) = store();
    let mut guest = Peer::of(&store, 7);
    let before = Instant::now();
    let requests: BytesMut = (0..100).flat_map(|_| request(0, Op::GET_DOMAIN_PATH, "0|")).collect();
    guest.stream.write_all(&requests).await.unwrap();
    for _ in 0..100 {
        assert_eq!(guest.receive().await.unwrap().0, Op::GET_DOMAIN_PATH);
    }
    assert_eq!(before.elapsed(), Duration::ZERO, "the time is not real");
}

#[tokio::test(start_paused = true)]
async fn dom0_does_not_wait_for_a_guest_that_does_not_read() {
    let (_store, mut a, source, mut watcher) = two_guests().await;
    drop(source);
    watcher.ok(Op::WATCH, &format!("/local/domain/7|{}|", "t".repeat(4000 - 2000))).await;
    let before = Instant::now();
    for number in 0..CHANGES {
        a.ok(Op::WRITE, &format!("/local/domain/7/{number}|v")).await;
    }
    assert_eq!(before.elapsed(), Duration::ZERO, "the time is not real");
    let events = watcher.events().await;
    assert!(events.len() < 1000 && events.last().unwrap().starts_with("/local/domain/7|"));
    a.ok(Op::WRITE, "/local/domain/7/x|v").await;
    assert!(watcher.events().await[0].starts_with("/local/domain/7/x|"));
}

#[tokio::test(start_paused = true)]
async fn a_socket_that_reads_late_is_not_cut_off() {
    let (store, a) = store();
    let mut b = Peer::of(&store, 0);
    b.ok(Op::WATCH, "/d|t|").await;
    let a = make_changes(a, "/d/");
    sleep(A_MOMENT).await;
    assert!(!a.is_finished(), "{CHANGES} changes were made for a watcher that took none");
    let mut events = 0;
    while !a.is_finished() {
        events += b.events().await.len();
    }
    events += b.events().await.len();
    assert!(events > CHANGES / 2, "{events} events of {CHANGES} changes");
}

#[tokio::test(start_paused = true)]
async fn a_socket_that_reads_nothing_is_told_that_anything_may_have_changed() {
    let (store, mut a) = store();
    let mut b = Peer::of(&store, 0);
    let token = "t".repeat(3000);
    b.ok(Op::WATCH, &format!("/d|{token}|")).await;
    b.events().await;
    for number in 0..CHANGES {
        a.ok(Op::WRITE, &format!("/d/{number}|v")).await;
    }
    let events = b.events().await;
    assert!(events.len() < CHANGES, "{} events were kept", events.len());
    assert_eq!(*events.last().unwrap(), format!("/d|{token}|"));
    a.ok(Op::WRITE, "/d/x|v").await;
    assert_eq!(b.events().await, [format!("/d/x|{token}|")]);
}

#[tokio::test(start_paused = true)]
async fn a_source_goes_on_when_the_watcher_ends() {
    let (_store, _a, source, mut watcher) = two_guests().await;
    watcher.ok(Op::WATCH, "/local/domain/7|t|").await;
    let source = make_changes(source, "");
    sleep(A_MOMENT).await;
    assert!(!source.is_finished());
    let before = Instant::now();
    drop(watcher);
    source.await.unwrap();
    assert_eq!(before.elapsed(), Duration::ZERO, "the time is not real");
}

/// Who reads everything once a second has caught up each time.
#[tokio::test(start_paused = true)]
async fn who_reads_in_spurts_does_not_hold_up_others_without_end() {
    let (_store, _a, mut source, mut watcher) = two_guests().await;
    let token = "t".repeat(500);
    for number in 0..127 {
        watcher.ok(Op::WATCH, &format!("/local/domain/7|{number}{token}|")).await;
    }
    let watcher = tokio::spawn(async move {
        loop {
            sleep(Duration::from_secs(1)).await;
            watcher.events().await;
        }
    });
    let begun = Instant::now();
    for number in 0..100 {
        source.ok(Op::WRITE, &format!("x{number}|v")).await;
        sleep(Duration::from_millis(30)).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(15), "100 writes took {:?}", begun.elapsed());
    watcher.abort();
}
