//! Transactions: committed, aborted, dropped, in conflict.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::time::timeout;
use xs_client::{
    Access, Client, Config, DomId, Error, ErrorCode, Op, Permissions, Reply, Request, Retry, Transaction,
    TxId,
};
use xs_store::Store;

use crate::support::{Peer, client, path, watched_client};

/// What a transaction does is seen in it at once, outside after its commit, and then all of it.
#[tokio::test(start_paused = true)]
async fn a_commit() {
    let client = client();
    let node = &path("/a/b");
    let outside = &client;
    let result = client
        .transaction(|tx| async move {
            tx.write(node, "1").await?;
            assert_eq!(tx.read(node).await?, "1");
            assert_eq!(outside.read_opt(node).await?, None);
            Ok::<_, Error>("done")
        })
        .await;
    assert_eq!(result.unwrap(), "done");
    assert_eq!(client.read(node).await.unwrap(), "1");
}

/// The closure fails: its error, of its own type, is the outcome, and nothing is left, on the server
/// neither.
#[tokio::test(start_paused = true)]
async fn a_failure_aborts() {
    #[derive(Debug)]
    enum Mine {
        Reason(&'static str),
        Store,
    }
    impl From<Error> for Mine {
        fn from(_: Error) -> Self {
            Self::Store
        }
    }
    let (client, proxy, _store) = watched_client(Config::default());
    let node = &path("/a");
    let failed = client
        .transaction(|tx| async move {
            tx.write(node, "1").await?;
            Err::<(), _>(Mine::Reason("no"))
        })
        .await;
    assert!(matches!(failed, Err(Mine::Reason("no"))), "{failed:?}");
    let failed = client
        .transaction(|tx| async move {
            tx.write(node, "1").await?;
            tx.read(&path("/none")).await?;
            Ok::<_, Mine>(())
        })
        .await;
    assert!(matches!(failed, Err(Mine::Store)), "{failed:?}");
    assert_eq!(client.read_opt(node).await.unwrap(), None);
    assert_eq!(proxy.count(Op::TRANSACTION_END), 2);
    assert!(proxy.commits().is_empty());
}

/// Clones that live on are no part of it any more: neither when it has failed, nor when its future was
/// dropped, nor after its commit.
#[tokio::test(start_paused = true)]
async fn a_clone_does_not_keep_it_open() {
    let (client, proxy, _store) = watched_client(Config::default());
    let (node, kept) = (&path("/a"), &Mutex::new(None::<Transaction>));
    let failed = client
        .transaction(|tx| async move {
            tx.write(node, "1").await?;
            *kept.lock().unwrap() = Some(tx.clone());
            tx.read(&path("/none")).await
        })
        .await;
    assert!(failed.unwrap_err().is_not_found());
    let clone = kept.lock().unwrap().take().unwrap();
    assert!(clone.write(node, "2").await.unwrap_err().is_not_found());
    assert_eq!(proxy.count(Op::TRANSACTION_END), 1);

    let waiting = client.transaction(|tx| async move {
        *kept.lock().unwrap() = Some(tx);
        std::future::pending::<Result<(), Error>>().await
    });
    timeout(Duration::from_secs(1), waiting).await.unwrap_err();
    let clone = kept.lock().unwrap().take().unwrap();
    assert!(clone.write(node, "2").await.unwrap_err().is_not_found());
    assert_eq!(proxy.count(Op::TRANSACTION_END), 2);
    assert!(proxy.commits().is_empty());
}

/// Ten increment one counter: none is lost.
#[tokio::test(start_paused = true)]
async fn conflicts_are_tried_again() {
    let store = Store::new();
    let clients = (0..10).map(|_| Client::over(store.connect(DomId::DOM0), Config::default()));
    let clients: Vec<_> = clients.collect();
    let (node, runs) = (&path("/counter"), &AtomicU32::new(0));
    clients[0].write(node, "0").await.unwrap();
    let increments = clients.iter().map(|client| {
        client.transaction(move |tx| async move {
            runs.fetch_add(1, Ordering::Relaxed);
            let count: u32 = String::from_utf8_lossy(&tx.read(node).await?).parse().unwrap();
            tokio::task::yield_now().await;
            tx.write(node, (count + 1).to_string()).await
        })
    });
    for outcome in join_all(increments).await {
        outcome.unwrap();
    }
    assert_eq!(clients[0].read(node).await.unwrap(), "10");
    assert!(runs.load(Ordering::Relaxed) > 10, "there was no conflict at all");
}

/// Conflicts without end: as many attempts as allowed, with pauses up to the longest, and an error
/// that says so.
#[tokio::test(start_paused = true)]
async fn attempts_and_pauses_are_bounded() {
    let retry = Retry { attempts: 12, ..Retry::default() };
    let (client, proxy, _store) = watched_client(Config { retry, ..Config::default() });
    proxy.conflict(usize::MAX);
    let node = &path("/a");
    let error = client.transaction(|tx| async move { tx.write(node, "1").await }).await.unwrap_err();
    assert!(matches!(error, Error::Contended { attempts: 12, .. }), "{error}");
    assert!(error.is_conflict());
    let pauses: Vec<Duration> = proxy.commits().windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(pauses.len(), 11);
    assert!(pauses[..8].is_sorted(), "{pauses:?}");
    for (doublings, pause) in pauses.iter().enumerate() {
        // A sleep ends with the millisecond.
        assert!(*pause <= Duration::from_millis(1 + (1 << doublings).min(250)), "{pauses:?}");
    }
    assert_eq!(client.read_opt(node).await.unwrap(), None);
    // As many as there is time for.
    let retry = Retry { attempts: u32::MAX, within: Duration::from_secs(2), ..Retry::default() };
    let (hurried, others, _store) = watched_client(Config { retry, ..Config::default() });
    others.conflict(usize::MAX);
    let error = hurried.transaction(|tx| async move { tx.write(node, "1").await }).await.unwrap_err();
    let Error::Contended { attempts, elapsed } = error else { panic!("{error}") };
    assert_eq!(others.commits().len(), attempts as usize);
    assert!(attempts > 9 && elapsed <= Duration::from_millis(2001), "{attempts} in {elapsed:?}");
    // Five, and then it goes through.
    proxy.conflict(5);
    client.transaction(|tx| async move { tx.write(node, "1").await }).await.unwrap();
    assert_eq!(proxy.commits().len(), 12 + 6);
}

/// Other errors of a commit are final.
#[tokio::test(start_paused = true)]
async fn a_commit_that_fails_otherwise_is_not_tried_again() {
    let (client, mut peer) = Peer::new(Config::default());
    let (ended, ()) = tokio::join!(client.transaction(|_| async { Ok::<_, Error>(()) }), async {
        let start = peer.request().await.unwrap();
        peer.answer(&start, &Reply::Transaction(TxId(1))).await;
        let commit = peer.request().await.unwrap();
        peer.answer(&commit, &Reply::Error(ErrorCode::ENOENT)).await;
        let more = timeout(Duration::from_secs(1), peer.request()).await;
        assert!(more.is_err(), "{more:?}");
    });
    assert!(ended.unwrap_err().is_not_found());
}

/// The store is not to blame for a wait for others of this program.
#[tokio::test(start_paused = true)]
async fn a_wait_for_a_turn_is_not_the_stores() {
    let deadline = Duration::from_millis(500);
    let client = client().with_deadline(deadline);
    let all = join_all((0..9).map(|_| {
        client.transaction(|_| async {
            tokio::time::sleep(2 * deadline).await;
            Ok::<_, Error>(())
        })
    }));
    let failed: Vec<Error> = all.await.into_iter().filter_map(Result::err).collect();
    let [error] = &failed[..] else { panic!("{failed:?}") };
    let expected = "no transaction could begin within 500ms: this client has 8 open, as many as it may";
    assert_eq!(error.to_string(), expected);
    assert!(!error.hint().contains("xenstored"), "{}", error.hint());
}

/// A guest may have ten open. A hundred that are dropped, each at another point, leave none.
#[tokio::test(start_paused = true)]
async fn a_dropped_transaction_is_aborted_on_the_server() {
    let store = Store::new();
    store.introduce(DomId(1));
    let guest = Client::over(store.connect(DomId(1)), Config::default());
    for round in 0..100 {
        let transaction = guest.transaction(|tx| async move {
            for _ in 0..round % 10 {
                tx.read_opt(&path("/tool")).await.ok();
            }
            std::future::pending::<Result<(), Error>>().await
        });
        _ = timeout(Duration::from_millis(2), transaction).await;
        // One that is dropped before its start was even answered.
        assert!(guest.transaction(|_| async { Ok::<_, Error>(()) }).now_or_never().is_none());
    }
    guest.transaction(|_| async { Ok::<_, Error>(()) }).await.unwrap();
}

/// The quota that the test above rests on: the eleventh is refused, and that is not tried again.
#[tokio::test(start_paused = true)]
async fn too_many_open_transactions() {
    let store = Store::new();
    store.introduce(DomId(1));
    let config = Config { transactions: 20, ..Config::default() };
    let guest = Client::over(store.connect(DomId(1)), config);
    let opened = Arc::new(AtomicU32::new(0));
    let all = join_all((0..20).map(|_| {
        let opened = opened.clone();
        let open = guest.transaction(move |_| {
            opened.fetch_add(1, Ordering::Relaxed);
            std::future::pending::<Result<(), Error>>()
        });
        timeout(Duration::from_millis(50), open)
    }));
    let refused = all.await.into_iter().filter_map(|outcome| outcome.ok()?.err()).collect::<Vec<_>>();
    assert_eq!(opened.load(Ordering::Relaxed) as usize + refused.len(), 20);
    assert!(refused.len() >= 10, "{}", refused.len());
    assert!(refused.iter().all(Error::is_quota), "{refused:?}");
    guest.transaction(|_| async { Ok::<_, Error>(()) }).await.unwrap();
}

/// What is kept beyond its closure speaks of a transaction that is over.
#[tokio::test(start_paused = true)]
async fn a_transaction_that_is_kept_is_over() {
    let client = client();
    let kept = client.transaction(|tx| async move { Ok::<_, Error>(tx) }).await.unwrap();
    let error = kept.write(&path("/a"), "1").await.unwrap_err();
    assert_eq!(error.code(), Some(&ErrorCode::ENOENT));
    drop(kept);
    client.transaction(|_| async { Ok::<_, Error>(()) }).await.unwrap();
}

/// A commit that was handed over is the server's to end, also if nobody waits for its answer.
#[tokio::test(start_paused = true)]
async fn a_commit_that_nobody_waits_for() {
    let (client, mut peer) = Peer::new(Config::default());
    let node = &path("/a");
    let transaction = client.transaction(|tx| async move { tx.write(node, "1").await });
    let commit = tokio::select! {
        _ = transaction => panic!("its commit is not answered"),
        commit = async {
            let start = peer.request().await.unwrap();
            peer.answer(&start, &Reply::Transaction(TxId(1))).await;
            let write = peer.request().await.unwrap();
            peer.answer(&write, &Reply::Ok).await;
            peer.request().await.unwrap()
        } => commit,
    };
    assert_eq!((commit.op, &commit.payload[..]), (Op::TRANSACTION_END, &b"T\0"[..]));
    let more = timeout(Duration::from_secs(1), peer.request()).await;
    assert!(more.is_err(), "it is aborted as well: {more:?}");
}

#[tokio::test(start_paused = true)]
async fn a_closure_that_panics_leaves_no_transaction() {
    let (client, proxy, _store) = watched_client(Config::default());
    let node = path("/a");
    let transaction = client.transaction(async |tx| {
        tx.write(&node, "1").await?;
        if true {
            panic!("on purpose");
        }
        Ok::<(), Error>(())
    });
    let panicked = std::panic::AssertUnwindSafe(transaction).catch_unwind().await;
    assert!(panicked.is_err());
    assert_eq!(client.read_opt(&node).await.unwrap(), None);
    assert_eq!((proxy.count(Op::TRANSACTION_START), proxy.count(Op::TRANSACTION_END)), (1, 1));
}

fn writes(values: &[(&str, &str)]) -> Vec<Request> {
    let write =
        |(node, value): &(&str, &str)| Request::Write { path: path(node), value: value.to_string().into() };
    values.iter().map(write).collect()
}

/// The commit goes with the requests: two round trips.
#[tokio::test(start_paused = true)]
async fn requests_are_committed_together() {
    let (client, proxy, _store) = watched_client(Config::default());
    proxy.conflict(3);
    let replies = client.commit_all(writes(&[("/a", "1"), ("/b", "2")])).await.unwrap();
    assert_eq!(replies, [Reply::Ok, Reply::Ok]);
    assert_eq!(client.read(&path("/b")).await.unwrap(), "2");
    assert_eq!((proxy.count(Op::TRANSACTION_START), proxy.count(Op::TRANSACTION_END)), (4, 4));
    assert_eq!(client.stats().conflicts, 3);

    proxy.conflict(1000);
    let error = client.commit_all(writes(&[("/a", "3")])).await.unwrap_err();
    assert!(matches!(error, Error::Contended { attempts: 64, .. }), "{error}");
}

/// What is decided goes with the commit: three round trips, and from the start again after a conflict.
#[tokio::test(start_paused = true)]
async fn what_a_closure_decides_is_committed_with_its_requests() {
    let (client, proxy, _store) = watched_client(Config::default());
    client.write(&path("/a"), "1").await.unwrap();
    proxy.conflict(2);
    let (from, to, runs) = (&path("/a"), &path("/b"), &Cell::new(0));
    let decide = |tx: Transaction| async move {
        runs.set(runs.get() + 1);
        let value = tx.read(from).await?;
        let write = Request::Write { path: to.clone(), value: value.clone() };
        Ok::<_, Error>((value, vec![write]))
    };
    assert_eq!(client.decide(decide).await.unwrap(), "1");
    assert_eq!((runs.get(), client.stats().conflicts), (3, 2));
    assert_eq!(client.read(to).await.unwrap(), "1");

    // One that fails commits nothing.
    let failed = client.decide(|tx| async move {
        tx.write(to, "2").await?;
        tx.read(&path("/none")).await.map(|_| ((), Vec::new()))
    });
    assert!(failed.await.unwrap_err().is_not_found());
    assert_eq!(client.read(to).await.unwrap(), "1");
    // Nor does one whose requests are not a caller's to send.
    let reserved = vec![Request::TransactionEnd { commit: true }];
    let refused = client.decide(|_| async { Ok::<_, Error>(((), reserved.clone())) }).await;
    assert!(matches!(refused, Err(Error::Reserved { .. })), "{refused:?}");
    assert_eq!(client.stats().transactions, 5);
}

/// As its documentation warns.
#[tokio::test(start_paused = true)]
async fn a_refused_request_does_not_keep_the_others_from_being_committed() {
    let store = Store::new();
    store.introduce(DomId(1));
    let admin = Client::over(store.connect(DomId::DOM0), Config::default());
    admin.write(&path("/theirs"), "0").await.unwrap();
    admin.write(&path("/local/domain/1"), "").await.unwrap();
    let owned = Permissions::owned_by(DomId(1), Access::None);
    admin.set_perms(&path("/local/domain/1"), owned).await.unwrap();
    let guest = Client::over(store.connect(DomId(1)), Config::default());
    let error = guest.commit_all(writes(&[("mine", "1"), ("/theirs", "1")])).await.unwrap_err();
    assert_eq!(error.code(), Some(&ErrorCode::EACCES));
    assert_eq!(guest.read(&path("mine")).await.unwrap(), "1");
}

/// Wherever it is dropped, no transaction is left open.
#[tokio::test(start_paused = true)]
async fn a_dropped_commit_of_all_is_over_on_the_server() {
    for turns in 0..12 {
        let (client, proxy, _store) = watched_client(Config { window: 2, ..Config::default() });
        let mut commit = Box::pin(client.commit_all(writes(&[("/a", "1"), ("/b", "2"), ("/c", "3")])));
        for _ in 0..turns {
            if (&mut commit).now_or_never().is_some() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(commit);
        client.read_opt(&path("/a")).await.unwrap();
        let (started, ended) = (proxy.count(Op::TRANSACTION_START), proxy.count(Op::TRANSACTION_END));
        assert!(ended >= started, "{started} started, {ended} ended after {turns} turns");
    }
}
