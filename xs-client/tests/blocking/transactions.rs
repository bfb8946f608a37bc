//! Transactions: committed, aborted, in conflict, late.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use xs_client::{Config, DomId, Error, ErrorCode, Op, Reply, Request, Retry, TxId};

use crate::support::{Peer, SHORT, Served, path, patient, timed_out};

#[test]
fn what_a_transaction_does_is_seen_outside_after_its_commit() {
    let served = Served::new();
    let client = served.connect();
    let node = path("/a/b");
    let result = client.transaction(|tx| {
        tx.write(&node, "1")?;
        assert_eq!(tx.read(&node)?, "1");
        assert_eq!(client.read_opt(&node)?, None);
        Ok::<_, Error>("done")
    });
    assert_eq!(result.unwrap(), "done");
    assert_eq!(client.read(&node).unwrap(), "1");
}

#[test]
fn a_failure_aborts_and_is_the_outcome() {
    #[derive(Debug, PartialEq)]
    enum Mine {
        Reason(&'static str),
        Store,
    }
    impl From<Error> for Mine {
        fn from(_: Error) -> Self {
            Self::Store
        }
    }
    let served = Served::new();
    let (client, proxy) = served.watched(DomId::DOM0, patient());
    let node = path("/a");
    let failed = client.transaction(|tx| {
        tx.write(&node, "1")?;
        Err::<(), _>(Mine::Reason("no"))
    });
    assert_eq!(failed, Err(Mine::Reason("no")));
    let failed = client.transaction(|tx| Ok::<_, Mine>(tx.read(&path("/none")).map(drop)?));
    assert_eq!(failed, Err(Mine::Store));
    assert_eq!(client.read_opt(&node).unwrap(), None);
    assert_eq!(proxy.count(Op::TRANSACTION_END), 2);
    assert!(proxy.commits().is_empty());
}

/// A guest may have ten open. If panics left them, the eleventh would be refused.
#[test]
fn a_panic_aborts_on_the_server() {
    let served = Served::new();
    served.store.introduce(DomId(1));
    let (guest, proxy) = served.watched(DomId(1), patient());
    for _ in 0..20 {
        let transaction = || {
            guest.transaction(|tx| -> Result<(), Error> {
                tx.read(&path("/local")).unwrap_err();
                panic!("as it should");
            })
        };
        catch_unwind(AssertUnwindSafe(transaction)).unwrap_err();
    }
    guest.transaction(|_| Ok::<_, Error>(())).unwrap();
    assert_eq!(proxy.count(Op::TRANSACTION_END), 21);
    assert_eq!(proxy.commits().len(), 1);
}

#[test]
fn conflicts_are_tried_again_and_no_increment_is_lost() {
    let served = Served::new();
    let runs = AtomicU32::new(0);
    let node = path("/counter");
    served.connect().write(&node, "0").unwrap();
    thread::scope(|scope| {
        for _ in 0..4 {
            let (client, node, runs) = (served.connect(), &node, &runs);
            scope.spawn(move || {
                for _ in 0..5 {
                    let increment = client.transaction(|tx| {
                        runs.fetch_add(1, Ordering::Relaxed);
                        let count: u32 = String::from_utf8_lossy(&tx.read(node)?).parse().unwrap();
                        tx.write(node, (count + 1).to_string())
                    });
                    increment.unwrap();
                }
            });
        }
    });
    assert_eq!(served.connect().read(&node).unwrap(), "20");
    assert!(runs.into_inner() >= 20);
}

#[test]
fn attempts_are_bounded() {
    let served = Served::new();
    let retry = Retry { attempts: 5, max_pause: Duration::from_millis(1), ..Retry::default() };
    let (client, proxy) = served.watched(DomId::DOM0, Config { retry, ..patient() });
    let node = path("/a");
    proxy.conflict(usize::MAX);
    let error = client.transaction(|tx| tx.write(&node, "1")).unwrap_err();
    assert!(matches!(error, Error::Contended { attempts: 5, .. }), "{error}");
    assert_eq!(proxy.commits().len(), 5);
    proxy.conflict(3);
    client.transaction(|tx| tx.write(&node, "1")).unwrap();
    let stats = client.stats();
    assert_eq!((stats.transactions, stats.conflicts), (5 + 4, 5 + 3));
}

/// The store is not to blame for a wait for others of this program.
#[test]
fn a_wait_for_a_turn_is_not_the_stores() {
    let served = Served::new();
    let client = served.try_connect(Config { transactions: 1, ..patient() }).unwrap();
    let error = client.transaction(|_| client.with_deadline(SHORT).transaction(|_| Ok::<_, Error>(())));
    assert_eq!(
        error.unwrap_err().to_string(),
        "no transaction could begin within 20ms: this client has 1 open, as many as it may"
    );
}

/// Whoever wanted it is gone when it is begun at last.
#[test]
fn a_transaction_that_begins_too_late_is_aborted() {
    let (client, mut peer) = Peer::new(patient());
    timed_out(client.with_deadline(SHORT).transaction(|_| Ok::<_, Error>(())));
    let start = peer.next().unwrap();
    peer.answer(&start, &Reply::Transaction(TxId(7)));
    thread::scope(|scope| {
        let reading = scope.spawn(|| client.read(&path("/x")));
        let read = peer.next().unwrap();
        let abort = peer.next().unwrap();
        assert_eq!((abort.op, abort.tx_id, &abort.payload[..]), (Op::TRANSACTION_END, TxId(7), &b"F\0"[..]));
        peer.answer(&read, &Reply::Value("x".into()));
        reading.join().unwrap().unwrap();
    });
}

/// Nobody knows whether the commit was carried out: an abort behind it changes nothing if it was.
#[test]
fn a_commit_that_takes_too_long_is_followed_by_an_abort() {
    let (client, mut peer) = Peer::new(patient());
    thread::scope(|scope| {
        let hasty = client.with_deadline(Duration::from_millis(200));
        let committing = scope.spawn(move || timed_out(hasty.transaction(|_| Ok::<_, Error>(()))));
        let start = peer.next().unwrap();
        peer.answer(&start, &Reply::Transaction(TxId(7)));
        let ends: Vec<_> = peer.requests(2).into_iter().map(|end| (end.tx_id, end.payload)).collect();
        assert_eq!(ends, [(TxId(7), "T\0".into()), (TxId(7), "F\0".into())]);
        committing.join().unwrap();
    });
}

fn writes(nodes: &[&str]) -> Vec<Request> {
    nodes.iter().map(|node| Request::Write { path: path(node), value: "1".into() }).collect()
}

/// The commit goes with the requests: two round trips.
#[test]
fn requests_are_committed_together() {
    let served = Served::new();
    let (client, proxy) = served.watched(DomId::DOM0, patient());
    proxy.conflict(3);
    assert_eq!(client.commit_all(writes(&["/a", "/b"])).unwrap(), [Reply::Ok, Reply::Ok]);
    assert_eq!(client.read(&path("/b")).unwrap(), "1");
    assert_eq!((proxy.count(Op::TRANSACTION_START), proxy.count(Op::TRANSACTION_END)), (4, 4));
    assert_eq!(client.stats().conflicts, 3);
}

/// Of several replies the thread waits for all at once, but no longer than for the deadline.
#[test]
fn replies_that_come_one_by_one_are_taken_together() {
    let (client, mut peer) = Peer::new(patient());
    thread::scope(|scope| {
        let committing = scope.spawn(|| client.commit_all(writes(&["/a", "/b"])));
        let start = peer.next().unwrap();
        peer.answer(&start, &Reply::Transaction(TxId(7)));
        for request in peer.requests(3) {
            peer.answer(&request, &Reply::Ok);
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(committing.join().unwrap().unwrap(), [Reply::Ok, Reply::Ok]);
        let hasty = client.with_deadline(Duration::from_millis(1500));
        let committing = scope.spawn(move || timed_out(hasty.commit_all(writes(&["/a", "/b"]))));
        let start = peer.next().unwrap();
        peer.answer(&start, &Reply::Transaction(TxId(8)));
        let requests = peer.requests(3);
        peer.answer(&requests[0], &Reply::Ok);
        committing.join().unwrap();
        assert_eq!(peer.next().unwrap().payload, "F\0");
    });
}

/// Answers as many requests, the ends of transactions included; returns how often one was begun.
fn serve(peer: &mut Peer, count: usize, mut reply: impl FnMut(u32) -> Reply) -> u32 {
    let mut begun = 0;
    for _ in 0..count {
        let request = peer.next().unwrap();
        let reply = match request.op {
            Op::TRANSACTION_START => {
                begun += 1;
                Reply::Transaction(TxId(begun))
            }
            Op::TRANSACTION_END => Reply::Ok,
            _ => reply(begun),
        };
        peer.answer(&request, &reply);
    }
    begun
}

/// As much of a conflict as one at the commit, though xenstored says something else.
#[test]
fn a_stale_view_is_a_conflict() {
    let (client, mut peer) = Peer::new(patient());
    thread::scope(|scope| {
        let removing = scope.spawn(|| client.transaction(|tx| tx.rm(&path("/a"))));
        let fails_once = |run| if run == 1 { Reply::Error(ErrorCode::EIO) } else { Reply::Ok };
        assert_eq!(serve(&mut peer, 6, fails_once), 2);
        removing.join().unwrap().unwrap();
    });
    assert_eq!(client.stats().conflicts, 1);
}

/// A part of it was sent, and nobody knows which.
#[test]
fn a_batch_that_took_too_long_is_not_committed_in_part() {
    let (client, mut peer) = Peer::new(Config { window: 4, ..patient() });
    thread::scope(|scope| {
        let given_up = scope.spawn(|| {
            client.transaction(|tx| {
                timed_out(tx.with_deadline(SHORT).batch(writes(&["/a"; 10])));
                Ok::<_, Error>(())
            })
        });
        let start = peer.next().unwrap();
        peer.answer(&start, &Reply::Transaction(TxId(1)));
        peer.requests(4);
        assert_eq!(peer.next().unwrap().payload, "F\0");
        let error = given_up.join().unwrap().unwrap_err();
        assert!(error.to_string().starts_with("a batch of the transaction was given up"), "{error}");
    });
}
