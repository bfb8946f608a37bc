//! The end of a connection: when its last handle is gone, not sooner, not later.

use std::future::pending;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::DuplexStream;
use tokio::time::{sleep, timeout};
use xs_client::{Client, Config, Connect, Error, Op, Reconnect, Reply, TxId};

use crate::support::{Peer, path};

/// Whether the connection ends within a second, without another request.
async fn has_ended(peer: &mut Peer) -> bool {
    matches!(timeout(Duration::from_secs(1), peer.request()).await, Ok(None))
}

#[tokio::test(start_paused = true)]
async fn with_the_last_clone() {
    let (client, mut peer) = Peer::new(Config::default());
    let clone = client.clone();
    drop(client);
    assert!(!has_ended(&mut peer).await);
    drop(clone);
    assert!(has_ended(&mut peer).await);
}

/// A watch keeps it, and is removed before the end.
#[tokio::test(start_paused = true)]
async fn with_the_last_watch() {
    let (client, mut peer) = Peer::new(Config::default());
    let node = path("/x");
    let (watch, ()) = tokio::join!(client.watch(&node), async {
        let request = peer.request().await.unwrap();
        peer.answer(&request, &Reply::Ok).await;
    });
    drop(client);
    assert!(!has_ended(&mut peer).await);
    drop(watch);
    let request = peer.request().await.unwrap();
    assert_eq!(request.op, Op::UNWATCH);
    assert!(!has_ended(&mut peer).await, "the answer is waited for");
    peer.answer(&request, &Reply::Ok).await;
    assert!(has_ended(&mut peer).await);
}

/// A transaction that is kept keeps it; one that was not ended is aborted before the end.
#[tokio::test(start_paused = true)]
async fn with_the_last_transaction() {
    let (client, mut peer) = Peer::new(Config::default());
    let (kept, ()) = tokio::join!(
        timeout(Duration::from_secs(1), async {
            client.transaction(|_| std::future::pending::<Result<(), Error>>()).await
        }),
        async {
            let request = peer.request().await.unwrap();
            peer.answer(&request, &Reply::Transaction(TxId(3))).await;
        }
    );
    kept.unwrap_err();
    drop(client);
    let request = peer.request().await.unwrap();
    assert_eq!(
        (request.op, request.tx_id, &request.payload[..]),
        (Op::TRANSACTION_END, TxId(3), &b"F\0"[..])
    );
    peer.answer(&request, &Reply::Ok).await;
    assert!(has_ended(&mut peer).await);
}

/// What was handed over is sent, and its answer waited for, although nobody is left to read it.
#[tokio::test(start_paused = true)]
async fn after_what_was_under_way() {
    let (client, mut peer) = Peer::new(Config::default());
    let node = path("/x");
    assert!(timeout(Duration::from_millis(1), client.write(&node, "1")).await.is_err());
    drop(client);
    let request = peer.request().await.unwrap();
    assert_eq!(request.op, Op::WRITE);
    assert!(!has_ended(&mut peer).await);
    peer.answer(&request, &Reply::Ok).await;
    assert!(has_ended(&mut peer).await);
}

/// A transaction whose start is answered when all handles are gone: nothing is sent after it, since
/// the end of the connection aborts it.
#[tokio::test(start_paused = true)]
async fn while_a_transaction_starts() {
    let (client, mut peer) = Peer::new(Config::default());
    let starting = client.transaction(|_| async { Ok::<_, Error>(()) });
    assert!(timeout(Duration::from_millis(1), starting).await.is_err());
    drop(client);
    let request = peer.request().await.unwrap();
    assert_eq!(request.op, Op::TRANSACTION_START);
    peer.answer(&request, &Reply::Transaction(TxId(3))).await;
    assert!(has_ended(&mut peer).await);
}

/// The peer's end ends it as well, and a client that is idle then does not notice until it calls.
#[tokio::test(start_paused = true)]
async fn with_the_peer() {
    let (client, peer) = Peer::new(Config::default());
    drop(peer);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let error = client.read(&path("/x")).await.unwrap_err();
    assert_eq!(error.to_string(), "the connection to the store is gone: the store closed it");
}

/// A store that never answers is left in the end, once the deadline of what is under way is over.
#[tokio::test(start_paused = true)]
async fn with_a_store_that_never_answers() {
    let (client, mut peer) = Peer::new(Config::default());
    let node = path("/x");
    timeout(Duration::from_secs(1), client.read(&node)).await.unwrap_err();
    peer.request().await.unwrap();
    drop(client);
    assert!(!has_ended(&mut peer).await, "the answer is waited for");
    tokio::time::sleep(Config::default().deadline).await;
    assert!(has_ended(&mut peer).await);
}

/// A store that answers nothing is left after the deadline, also when it leaves no room for more, and
/// when more was asked for than there is room.
#[tokio::test(start_paused = true)]
async fn of_a_store_that_says_nothing() {
    const WINDOW: usize = 40;
    for calls in [1, WINDOW - 1, WINDOW, 2 * WINDOW - 1, 2 * WINDOW] {
        let config = Config { window: WINDOW, deadline: Duration::from_secs(5), ..Config::default() };
        let (client, mut peer) = Peer::new(config);
        let node = path("/x");
        let calls = join_all((0..calls).map(|_| client.read(&node))).await;
        assert!(calls.iter().all(Result::is_err));
        peer.requests(calls.len().min(WINDOW)).await;
        drop(client);
        assert!(!has_ended(&mut peer).await, "it may answer yet");
        sleep(Duration::from_secs(5)).await;
        assert!(has_ended(&mut peer).await, "{} calls", calls.len());
    }
}

/// The driver learns of the last handle's end although it takes no commands.
#[tokio::test(start_paused = true)]
async fn with_the_last_watch_while_there_is_no_room() {
    let (client, mut peer) = Peer::new(Config { window: 1, ..Config::default() });
    let node = path("/x");
    let (watch, ()) = tokio::join!(client.watch(&node), async {
        let request = peer.request().await.unwrap();
        peer.answer(&request, &Reply::Ok).await;
    });
    assert!(timeout(Duration::from_millis(1), client.write(&node, "1")).await.is_err());
    assert_eq!(peer.request().await.unwrap().op, Op::WRITE);
    drop((client, watch));
    sleep(Duration::from_secs(10)).await;
    assert!(has_ended(&mut peer).await);
}

/// A store that is gone; connecting to it fails, or never ends.
struct Gone {
    first: Option<DuplexStream>,
    hangs: bool,
    /// As long as there is this.
    _wanted: Arc<()>,
}

impl Connect for Gone {
    type Transport = DuplexStream;

    fn at(&self) -> String {
        "a store that is gone".into()
    }

    async fn connect(&mut self) -> io::Result<DuplexStream> {
        match self.first.take() {
            Some(stream) => Ok(stream),
            None if self.hangs => pending().await,
            None => Err(io::ErrorKind::ConnectionRefused.into()),
        }
    }
}

/// Calls that were given up, and wait where nobody takes them, are no reason to connect again.
#[tokio::test(start_paused = true)]
async fn without_a_store() {
    for calls in [0, 1, 40, 64] {
        for (hangs, first_pause) in [(false, 1), (true, 1), (false, 3600)] {
            let (near, far) = tokio::io::duplex(4096);
            let wanted = Arc::new(());
            let gone = Gone { first: Some(near), hangs, _wanted: wanted.clone() };
            let first_pause = Duration::from_secs(first_pause);
            let reconnect = Reconnect { within: Duration::MAX, first_pause, ..Reconnect::default() };
            let config = Config {
                reconnect: Some(reconnect),
                deadline: Duration::from_millis(100),
                ..Config::default()
            };
            let client = Client::connect_with(gone, config).await.unwrap();
            drop(far);
            sleep(Duration::from_secs(1)).await;
            let node = path("/x");
            let calls = join_all((0..calls).map(|_| client.write(&node, "1"))).await;
            assert!(calls.iter().all(Result::is_err));
            drop(client);
            sleep(Duration::from_millis(1)).await;
            assert_eq!(Arc::strong_count(&wanted), 1, "{} calls, {hangs}, {first_pause:?}", calls.len());
        }
    }
}
