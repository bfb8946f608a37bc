//! What a lost connection leaves of what was under way, and what it costs to make it again.

use std::time::Duration;

use xs_client::{Client, Config, Error, ErrorCode, Op, Reply, Request};
use xs_proto::Names;

use crate::support::{Peer, Peers, path};

async fn client_of_peers() -> (Client, Peers) {
    let (connect, peers) = Peer::behind();
    (Client::connect_with(connect, Config::default()).await.unwrap(), peers)
}

fn write(node: impl AsRef<str>) -> Request {
    Request::Write { path: path(node), value: "1".into() }
}

/// A device's state is written behind its keys. The next connection must not get it without them.
#[tokio::test(start_paused = true)]
async fn a_batch_that_was_begun_ends_whole() {
    let (client, mut peers) = client_of_peers().await;
    let begun = (0..100).map(|key| write(format!("/d/{key}"))).chain([write("/d/state")]).collect();
    let (behind, single) = (vec![write("/b/1"), write("/b/2")], path("/single"));
    let (begun, behind, single, ()) = tokio::join!(
        client.batch(begun),
        async {
            // Once the window is full.
            tokio::time::sleep(Duration::from_millis(1)).await;
            client.batch(behind).await
        },
        async {
            tokio::time::sleep(Duration::from_millis(2)).await;
            client.write(&single, "1").await
        },
        async {
            let mut peer = peers.next().await.unwrap();
            assert_eq!(peer.requests(64).await.len(), 64);
            tokio::time::sleep(Duration::from_millis(3)).await;
            drop(peer);
            let mut peer = peers.next().await.unwrap();
            let mut requests = peer.requests(3).await;
            for request in &requests {
                peer.answer(request, &Reply::Ok).await;
            }
            // Single calls and batches take turns.
            requests.sort_by_key(|request| request.payload.clone());
            let payloads = requests.iter().map(|request| &request.payload[..]);
            assert!(payloads.eq([&b"/b/1\x001"[..], b"/b/2\x001", b"/single\x001"]));
        }
    );
    let begun = begun.unwrap();
    assert_eq!(begun.len(), 101);
    assert!(begun.iter().all(|outcome| matches!(outcome, Err(Error::Disconnected { .. }))), "{begun:?}");
    assert!(behind.unwrap().iter().all(Result::is_ok));
    single.unwrap();
}

/// That a store says something is not enough for the next attempt to come at once.
#[tokio::test(start_paused = true)]
async fn a_store_that_answers_once_and_goes_is_not_asked_without_pause() {
    let (client, mut peers) = client_of_peers().await;
    let count = async {
        let mut count = 0;
        while let Some(mut peer) = peers.next().await
            && count < 1000
        {
            count += 1;
            let request = peer.request().await.unwrap();
            peer.answer(&request, &Reply::Value("v".into())).await;
        }
        count
    };
    let asking = async {
        let node = path("/a");
        while client.read(&node).await.is_ok() {}
    };
    let (count, ()) = tokio::join!(count, asking);
    assert!((5..200).contains(&count), "{count} connections");
}

/// One that stands for some seconds each time is worth to be made again, for as long as that goes on.
#[tokio::test(start_paused = true)]
async fn a_store_that_stands_for_a_while_is_made_again() {
    let (client, mut peers) = client_of_peers().await;
    for _ in 0..20 {
        let peer = peers.next().await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        drop(peer);
    }
    let mut peer = peers.next().await.unwrap();
    let node = path("/a");
    let (read, ()) = tokio::join!(client.read(&node), async {
        let request = peer.request().await.unwrap();
        peer.answer(&request, &Reply::Value("v".into())).await;
    });
    assert_eq!(read.unwrap(), "v");
}

/// Asked again as they were asked: together.
#[tokio::test(start_paused = true)]
async fn the_reads_of_a_lost_batch_are_asked_again_together() {
    let (client, mut peers) = client_of_peers().await;
    let requests = vec![Request::Read(path("/1")), write("/2"), Request::Read(path("/3"))];
    let (outcomes, ()) = tokio::join!(client.batch(requests), async {
        let mut peer = peers.next().await.unwrap();
        peer.requests(3).await;
        drop(peer);
        let mut peer = peers.next().await.unwrap();
        let requests = peer.requests(2).await;
        assert!(requests.iter().all(|request| request.op == Op::READ));
        for request in &requests {
            peer.answer(request, &Reply::Value(request.payload.slice(1..2))).await;
        }
    });
    let outcomes = outcomes.unwrap();
    let value = |text: &'static str| Reply::Value(text.into());
    assert_eq!([outcomes[0].as_ref().unwrap(), outcomes[2].as_ref().unwrap()], [&value("1"), &value("3")]);
    assert!(matches!(outcomes[1], Err(Error::Disconnected { .. })));
    assert_eq!(client.stats().retries, 2);
}

/// Another store may count its generations as the one before did.
#[tokio::test(start_paused = true)]
async fn a_list_is_not_made_of_parts_of_two_stores() {
    let (client, mut peers) = client_of_peers().await;
    let node = path("/a");
    let part = |name, last| Reply::Part { generation: 5, names: Names::from_names([name]), last };
    let (listed, _) = tokio::join!(client.directory(&node), async {
        let mut peer = peers.next().await.unwrap();
        let request = peer.request().await.unwrap();
        peer.answer(&request, &Reply::Error(ErrorCode::E2BIG)).await;
        let request = peer.request().await.unwrap();
        peer.answer(&request, &part("old", false)).await;
        peer.request().await.unwrap();
        drop(peer);
        let mut peer = peers.next().await.unwrap();
        for offset in ["4", "0"] {
            let request = peer.request().await.unwrap();
            assert_eq!(request.payload, format!("/a\0{offset}\0"));
            peer.answer(&request, &part("new", true)).await;
        }
        // It stands until the list is there.
        peer
    });
    assert_eq!(listed.unwrap(), ["new"]);
}
