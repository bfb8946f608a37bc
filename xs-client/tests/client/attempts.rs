//! Transactions that cannot be committed as they are: their view is stale, or a part is missing.

use std::time::Duration;

use tokio::time::timeout;
use xs_client::{Client, Config, Error, ErrorCode, Op, Reply, Request, Retry, TxId};
use xs_proto::Message;

use crate::support::{Peer, path};

/// Answers until a commit, or until nothing comes for a second; returns how often a transaction was
/// begun, and how the last one ended.
async fn serve(
    peer: &mut Peer,
    mut reply: impl FnMut(&Message, u32) -> Reply,
) -> (u32, Option<&'static str>) {
    let (mut begun, mut ended) = (0, None);
    while let Ok(Some(request)) = timeout(Duration::from_secs(1), peer.request()).await {
        match request.op {
            Op::TRANSACTION_START => {
                begun += 1;
                peer.answer(&request, &Reply::Transaction(TxId(begun))).await;
            }
            Op::TRANSACTION_END => {
                ended = Some(if request.payload == "T\0" { "committed" } else { "aborted" });
                peer.answer(&request, &Reply::Ok).await;
            }
            _ => peer.answer(&request, &reply(&request, begun)).await,
        }
    }
    (begun, ended)
}

/// xenstored fails some requests of a transaction with errors that mean something else elsewhere,
/// when others have changed the nodes that it sees: as much of a conflict as one at the commit.
#[tokio::test(start_paused = true)]
async fn a_stale_view_is_a_conflict() {
    let node = &path("/a");
    for (request, code, is_stale) in [
        (Request::Rm(node.clone()), ErrorCode::EIO, true),
        (Request::Rm(node.clone()), ErrorCode::EINVAL, true),
        (Request::Read(node.clone()), ErrorCode::EIO, true),
        (Request::Read(node.clone()), ErrorCode::EINVAL, false),
        (Request::Rm(path("/")), ErrorCode::EINVAL, false),
        (Request::Rm(node.clone()), ErrorCode::EACCES, false),
    ] {
        for together in [false, true] {
            let (client, mut peer) = Peer::new(Config::default());
            let asked = &request;
            let outcome = client.transaction(|tx| async move {
                match together {
                    true => tx.all(vec![asked.clone()]).await.map(drop),
                    false => tx.request(asked.clone()).await.map(drop),
                }
            });
            let fails_once = |_: &Message, run| if run == 1 { Reply::Error(code.clone()) } else { Reply::Ok };
            let (outcome, served) = tokio::join!(outcome, serve(&mut peer, fails_once));
            assert_eq!(outcome.as_ref().err().and_then(Error::code), (!is_stale).then_some(&code));
            let expected = if is_stale { (2, Some("committed")) } else { (1, Some("aborted")) };
            assert_eq!(served, expected, "{request:?} {code}");
            assert_eq!(client.stats().conflicts, u64::from(is_stale));
        }
    }
}

/// If it never goes away, it is told as what it is.
#[tokio::test(start_paused = true)]
async fn a_view_that_stays_stale_is_the_error_that_it_is() {
    let retry = Retry { attempts: 3, ..Retry::default() };
    let (client, mut peer) = Peer::new(Config { retry, ..Config::default() });
    let node = &path("/a");
    let outcome = client.transaction(|tx| async move { tx.rm(node).await });
    let fails = |_: &Message, _| Reply::Error(ErrorCode::EIO);
    let (outcome, served) = tokio::join!(outcome, serve(&mut peer, fails));
    assert_eq!(outcome.unwrap_err().code(), Some(&ErrorCode::EIO));
    assert_eq!(served, (3, Some("aborted")));
    // Outside of a transaction it is nothing else.
    let (outcome, ()) = tokio::join!(client.rm(node), async {
        let request = peer.request().await.unwrap();
        peer.answer(&request, &Reply::Error(ErrorCode::EIO)).await;
    });
    assert_eq!(outcome.unwrap_err().code(), Some(&ErrorCode::EIO));
}

/// A part of it was sent, and nobody knows which.
#[tokio::test(start_paused = true)]
async fn a_batch_that_was_given_up_is_not_committed_in_part() {
    async fn gives_up(client: &Client) -> Result<(), Error> {
        let write = Request::Write { path: path("/a"), value: "1".into() };
        let many = &vec![write; 10];
        client
            .transaction(|tx| async move {
                _ = timeout(Duration::from_millis(1), tx.batch(many.clone())).await;
                Ok(())
            })
            .await
    }
    let (client, mut peer) = Peer::new(Config { window: 4, ..Config::default() });
    let (outcome, ()) = tokio::join!(gives_up(&client), async {
        let start = peer.request().await.unwrap();
        peer.answer(&start, &Reply::Transaction(TxId(1))).await;
        for write in peer.requests(4).await {
            tokio::time::sleep(Duration::from_millis(1)).await;
            peer.answer(&write, &Reply::Ok).await;
        }
        assert_eq!(serve(&mut peer, |_, _| Reply::Ok).await, (0, Some("aborted")));
    });
    let error = outcome.unwrap_err();
    assert!(error.to_string().starts_with("a batch of the transaction was given up"), "{error}");
}
