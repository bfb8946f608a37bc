//! The store goes away, and comes back or does not.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::timeout;
use xs_client::{Config, DomId, Error, Lifecycle, Op, Reconnect, Reply, Request, Retry, TxId, Watch};
use xs_proto::Message;
use xs_store::Store;

use crate::door;
use crate::support::{Peer, path};

async fn fires(watch: &mut Watch) -> Vec<String> {
    let changes = timeout(Duration::from_secs(100), watch.changed()).await.expect("fires").unwrap();
    changes.paths.iter().map(ToString::to_string).collect()
}

#[tokio::test(start_paused = true)]
async fn watches_are_registered_again_and_fire_once() {
    let (client, door, store) = door::client(Config::default()).await;
    let mut lifecycle = client.lifecycle();
    assert!(matches!(lifecycle.now(), Lifecycle::Connected));
    let mut watch = client.watch(&path("/a")).await.unwrap();
    let dropped = client.watch(&path("/b")).await.unwrap();
    assert_eq!(fires(&mut watch).await, ["/a"]);

    door.shut();
    assert!(matches!(lifecycle.next().await, Some(Lifecycle::Lost(Error::Disconnected { .. }))));
    drop(dropped);
    // Missed, for nobody was there.
    let writer = xs_client::Client::over(store.connect(DomId::DOM0), Config::default());
    writer.write(&path("/a/b"), "1").await.unwrap();
    door.open(&store);
    assert_eq!(fires(&mut watch).await, ["/a"]);
    assert!(matches!(lifecycle.next().await, Some(Lifecycle::Restored(1))));
    assert!(door.refused() > 0);

    writer.write(&path("/a/c"), "1").await.unwrap();
    assert_eq!(fires(&mut watch).await, ["/a/c"]);
    let stats = client.stats();
    assert_eq!((stats.reconnects, stats.watches), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_call_made_meanwhile_waits_for_the_new_connection() {
    let (client, door, store) = door::client(Config::default()).await;
    door.shut();
    client.lifecycle().next().await;
    let node = path("/a");
    let (written, ()) = tokio::join!(client.write(&node, "1"), async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        door.open(&store);
    });
    written.unwrap();
    assert_eq!(client.read(&path("/a")).await.unwrap(), "1");
}

/// What changes something fails, since it may have been carried out; what reads is asked again.
#[tokio::test(start_paused = true)]
async fn reads_under_way_are_asked_again_and_writes_fail() {
    for retry_reads in [true, false] {
        let config = Config {
            reconnect: Some(Reconnect { retry_reads, ..Reconnect::default() }),
            ..Config::default()
        };
        let (connect, mut peers) = Peer::behind();
        let client = xs_client::Client::connect_with(connect, config).await.unwrap();
        let node = path("/x");
        let (read, write, batch, ()) = tokio::join!(
            client.read(&node),
            client.write(&node, "1"),
            client.read_many(std::slice::from_ref(&node)),
            async {
                let mut peer = peers.next().await.unwrap();
                assert_eq!(peer.requests(3).await.len(), 3);
                drop(peer);
                let mut peer = peers.next().await.unwrap();
                for _ in 0..2 * usize::from(retry_reads) {
                    let request = peer.request().await.unwrap();
                    assert_eq!(request.op, Op::READ);
                    peer.answer(&request, &xs_client::Reply::Value("v".into())).await;
                }
            }
        );
        assert!(matches!(write, Err(Error::Disconnected { .. })), "{write:?}");
        if retry_reads {
            assert_eq!((read.unwrap(), batch.unwrap()[0].clone().unwrap()), ("v".into(), "v".into()));
            assert_eq!(client.stats().retries, 2);
        } else {
            assert!(read.is_err() && batch.is_err());
        }
    }
}

/// The number of a transaction may be that of another one on the new connection. So it ends with its
/// own, and its closure runs again.
#[tokio::test(start_paused = true)]
async fn a_transaction_ends_with_its_connection() {
    let retry = Retry { attempts: 2, ..Retry::default() };
    for losses in 1..=2 {
        let (client, door, store) = door::client(Config { retry, ..Config::default() }).await;
        let (node, client_again, again, runs) = (&path("/a"), &client, &store, &AtomicU32::new(0));
        let outcome = client
            .transaction(|tx| {
                let door = door.clone();
                async move {
                    let run = runs.fetch_add(1, Ordering::Relaxed);
                    let mut lifecycle = client_again.lifecycle();
                    lifecycle.now();
                    assert_eq!(tx.read_opt(node).await?, None);
                    tx.write(node, "1").await?;
                    if run < losses {
                        door.shut();
                        lifecycle.next().await;
                        door.open(again);
                        lifecycle.next().await;
                    }
                    tx.write(node, "2").await
                }
            })
            .await;
        assert_eq!(runs.load(Ordering::Relaxed), 2);
        if losses == 1 {
            outcome.unwrap();
            assert_eq!(client.read(node).await.unwrap(), "2");
        } else {
            let error = outcome.unwrap_err();
            assert!(
                matches!(&error, Error::Disconnected { reason } if reason.contains("earlier connection")),
                "{error}"
            );
            assert_eq!(client.read_opt(node).await.unwrap(), None);
        }
        assert_eq!(client.stats().conflicts, 0);
    }
}

/// Whatever is lost before the commit was sent is as if it had never been; the outcome of a commit that
/// was sent is not known.
#[tokio::test(start_paused = true)]
async fn a_transaction_is_begun_again_unless_its_commit_was_sent() {
    let cases = [(0, 1, false), (1, 2, false), (2, 3, false), (0, 1, true), (1, 3, true), (3, 4, true)];
    for ((answered, asked, is_together), across_losses) in
        cases.into_iter().flat_map(|case| [(case, true), (case, false)])
    {
        let retry = Retry { across_losses, ..Retry::default() };
        let config = Config { window: 2, retry, ..Config::default() };
        let (connect, mut peers) = Peer::behind();
        let client = xs_client::Client::connect_with(connect, config).await.unwrap();
        let node = &path("/a");
        let outcome = async {
            if is_together {
                let write = Request::Write { path: node.clone(), value: "1".into() };
                client.commit_all(vec![write.clone(), write]).await.map(drop)
            } else {
                client.transaction(|tx| async move { tx.write(node, "1").await }).await
            }
        };
        let served = async {
            let mut peer = peers.next().await.unwrap();
            for number in 1..=asked {
                let request = peer.request().await.unwrap();
                if number <= answered {
                    answer(&mut peer, &request, TxId(7)).await;
                }
            }
            drop(peer);
            let mut peer = peers.next().await.unwrap();
            while let Some(request) = peer.request().await {
                answer(&mut peer, &request, TxId(8)).await;
                if request.op == Op::TRANSACTION_END {
                    return true;
                }
            }
            false
        };
        let sent_commit = asked == if is_together { 4 } else { 3 };
        let ends = sent_commit || !across_losses;
        let (outcome, ()) = tokio::join!(outcome, async {
            let served = timeout(Duration::from_secs(1), served).await;
            assert_eq!(
                served.is_ok_and(|committed| committed),
                !ends,
                "{asked} {is_together} {across_losses}"
            );
        });
        let is_disconnected = outcome.is_err_and(|error| error.is_disconnected());
        assert_eq!(is_disconnected, ends, "{asked} {is_together} {across_losses}");
    }
}

async fn answer(peer: &mut Peer, request: &Message, tx: TxId) {
    let reply = match request.op {
        Op::TRANSACTION_START => Reply::Transaction(tx),
        _ => {
            assert_eq!(request.tx_id, tx);
            Reply::Ok
        }
    };
    peer.answer(request, &reply).await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_come_back_is_the_end() {
    let (client, door, _store) = door::client(Config::default()).await;
    let mut lifecycle = client.lifecycle();
    let mut watch = client.watch(&path("/a")).await.unwrap();
    fires(&mut watch).await;
    door.shut();
    let error = watch.changed().await.unwrap_err();
    let Error::Disconnected { reason } = &error else { panic!("{error}") };
    assert!(reason.contains("not back within 10s: connection refused"), "{reason}");
    assert!(client.read(&path("/a")).await.is_err());
    while let Some(state) = lifecycle.next().await {
        assert!(matches!(state, Lifecycle::Lost(_) | Lifecycle::Ended(_)), "{state:?}");
    }
    assert!(matches!(lifecycle.now(), Lifecycle::Ended(_)));
}

/// A connection in the backlog of a daemon that ends is none. Who is told that all is restored may
/// rely on his watches.
#[tokio::test(start_paused = true)]
async fn restored_is_told_when_the_store_has_answered_for_the_watches() {
    let (connect, mut peers) = Peer::behind();
    let client = xs_client::Client::connect_with(connect, Config::default()).await.unwrap();
    let mut lifecycle = client.lifecycle();
    let (a, b) = (path("/a"), path("/b"));
    let mut peer = peers.next().await.unwrap();
    let (watches, ()) = tokio::join!(async { (client.watch(&a).await, client.watch(&b).await) }, async {
        for _ in 0..2 {
            let request = peer.request().await.unwrap();
            peer.answer(&request, &Reply::Ok).await;
        }
    });
    let (_watches, mut dropped) = (watches.0.unwrap(), Some(watches.1.unwrap()));
    for answers in 0..2 {
        drop(peer);
        assert!(matches!(lifecycle.next().await, Some(Lifecycle::Lost(_))));
        peer = peers.next().await.unwrap();
        // One is answered, and the other not.
        for request in &peer.requests(2).await[..answers] {
            peer.answer(request, &Reply::Ok).await;
        }
        let told = timeout(Duration::from_secs(1), lifecycle.next()).await;
        assert!(told.is_err(), "{told:?}");
    }
    drop(dropped.take());
    let told = lifecycle.next().await;
    assert!(matches!(told, Some(Lifecycle::Restored(2))), "nobody waits for the other: {told:?}");
}

/// A store that takes connections and ends them at once is not asked without pause.
#[tokio::test(start_paused = true)]
async fn a_store_that_comes_back_only_to_go_is_given_up() {
    let (connect, mut peers) = Peer::behind();
    let client = xs_client::Client::connect_with(connect, Config::default()).await.unwrap();
    let count = async {
        let mut count = 0;
        while peers.next().await.is_some() {
            count += 1;
        }
        count
    };
    let node = path("/a");
    let (count, error) = tokio::join!(count, client.write(&node, "1"));
    assert!(error.is_err());
    assert!((5..200).contains(&count), "{count} connections");
}

/// Fresh contents and no watches: what a restarted daemon of 4.17 has.
#[tokio::test(start_paused = true)]
async fn a_wait_goes_on_with_a_restarted_store() {
    let (client, door, _store) = door::client(Config::default()).await;
    let state = path("/state");
    let connected = async |look: xs_client::Look| {
        Ok::<_, Error>(look.read(&state).await?.filter(|value| &value[..] == b"4"))
    };
    let (found, ()) = tokio::join!(client.wait_for(Duration::from_secs(60), connected), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        door.shut();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let store = Store::new();
        let writer = xs_client::Client::over(store.connect(DomId::DOM0), Config::default());
        writer.write(&state, "4").await.unwrap();
        door.open(&store);
    });
    assert_eq!(found.unwrap(), "4");
}

/// How long ago another loss was mended makes no difference to how long this one may take.
#[tokio::test(start_paused = true)]
async fn a_connection_that_had_nothing_to_say_counts_as_one() {
    let (client, door, store) = door::client(Config::default()).await;
    for _ in 0..3 {
        door.shut();
        tokio::time::sleep(Duration::from_secs(1)).await;
        door.open(&store);
        tokio::time::sleep(Duration::from_secs(3600)).await;
    }
    assert_eq!(client.stats().reconnects, 3);
    client.write(&path("/a"), "1").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn it_can_be_tried_for_ever() {
    let reconnect = Reconnect { within: Duration::MAX, ..Reconnect::default() };
    let (client, door, store) =
        door::client(Config { reconnect: Some(reconnect), ..Config::default() }).await;
    door.shut();
    tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
    door.open(&store);
    client.write(&path("/a"), "1").await.unwrap();
}

/// A program may be started before its store is.
#[tokio::test(start_paused = true)]
async fn a_store_that_is_not_there_yet_can_be_waited_for() {
    let (store, door) = (Store::new(), door::Door::default());
    let opening = async {
        tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
        door.open(&store);
    };
    let connect = |within, from_start| {
        let reconnect = Reconnect { within, from_start, ..Reconnect::default() };
        let config = Config { reconnect: Some(reconnect), ..Config::default() };
        xs_client::Client::connect_with(door.clone(), config)
    };
    let begun = tokio::time::Instant::now();
    connect(Duration::MAX, false).await.unwrap_err();
    assert_eq!(begun.elapsed(), Duration::ZERO);
    let error = connect(Duration::from_secs(60), true).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot connect to the store at the door: connection refused");
    assert!((50..=60).contains(&begun.elapsed().as_secs()));
    let (client, ()) = tokio::join!(connect(Duration::MAX, true), opening);
    client.unwrap().write(&path("/a"), "1").await.unwrap();
}
