//! The store goes away, and comes back or does not.

use std::time::Duration;

use tokio::time::timeout;
use xs_client::{Config, DomId, Error, Lifecycle, Op, Reconnect, Watch};
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

/// The number of a transaction may be that of another one on the new connection.
#[tokio::test(start_paused = true)]
async fn a_transaction_ends_with_its_connection() {
    let (client, door, store) = door::client(Config::default()).await;
    let (node, client_again, again) = (&path("/a"), &client, &store);
    let outcome = client
        .transaction(|tx| {
            let door = door.clone();
            async move {
                let mut lifecycle = client_again.lifecycle();
                tx.write(node, "1").await?;
                door.shut();
                lifecycle.next().await;
                door.open(again);
                lifecycle.next().await;
                tx.write(node, "2").await
            }
        })
        .await;
    let error = outcome.unwrap_err();
    assert!(
        matches!(&error, Error::Disconnected { reason } if reason.contains("earlier connection")),
        "{error}"
    );
    assert_eq!(client.read_opt(&path("/a")).await.unwrap(), None);
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
