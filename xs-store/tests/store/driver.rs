//! The driver: bounds, ends of connections, and sockets.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::sleep;
use xs_proto::{Op, PAYLOAD_MAX};
use xs_store::Store;

use crate::peer::{Peer, request, store};

/// The time in which nothing more happens; it is not real.
const A_WHILE: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_nothing_is_not_read() {
    const REQUESTS: usize = 10_000;
    let (_store, mut a) = store();
    a.ok(Op::WRITE, &format!("/big|{}", "v".repeat(4000))).await;
    let (reader, mut writer) = tokio::io::split(a.stream);
    let requests: BytesMut = (0..REQUESTS).flat_map(|_| request(0, Op::READ, "/big|")).collect();
    let writer = tokio::spawn(async move {
        writer.write_all(&requests).await.unwrap();
        writer
    });
    sleep(A_WHILE).await;
    assert!(!writer.is_finished(), "the store took in {REQUESTS} requests and kept the answers");
    let mut a = Peer::over(tokio::io::join(reader, tokio::io::sink()));
    for _ in 0..REQUESTS {
        assert_eq!(a.receive().await.unwrap().1.len(), 4000);
    }
    writer.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_watcher_that_reads_late_keeps_its_place() {
    let (store, mut a) = store();
    let mut b = Peer::of(&store, 0);
    b.ok(Op::WATCH, "/|t|").await;
    for number in 0..2000 {
        a.ok(Op::WRITE, &format!("/d/{number}|v")).await;
    }
    sleep(A_WHILE).await;
    assert_eq!(b.events().await.len(), 2001);
}

#[tokio::test]
async fn a_length_that_is_too_long_ends_the_connection() {
    let (store, mut a) = store();
    let mut b = Peer::of(&store, 0);
    let mut header = request(0, Op::READ, "");
    header[12..].copy_from_slice(&(PAYLOAD_MAX as u32 + 1).to_le_bytes());
    b.stream.write_all(&header).await.unwrap();
    assert_eq!(b.receive().await, None);
    a.ok(Op::WRITE, "/x|v").await;
}

#[tokio::test]
async fn what_was_asked_is_answered_after_half_a_close() {
    let (_store, mut a) = store();
    let requests: BytesMut = (0..100).flat_map(|_| request(0, Op::READ, "/|")).collect();
    a.stream.write_all(&requests).await.unwrap();
    a.stream.write_all(&request(0, Op::READ, "/|")[..10]).await.unwrap();
    a.stream.shutdown().await.unwrap();
    for _ in 0..100 {
        assert_eq!(a.receive().await, Some((Op::READ, String::new())));
    }
    assert_eq!(a.receive().await, None);
}

#[tokio::test]
async fn garbage_of_any_kind_is_answered() {
    let (store, mut a) = store();
    let mut guest = Peer::of(&store, 7);
    for op in (0..30).chain([u32::MAX]).map(Op) {
        for text in ["", "|", "||", "x", "/", "/|", "@|", "/|-|", "/|||||", "7|7|7|", "-1|", "99999999999|"] {
            for tx in [0, 1] {
                a.ask_any(tx, op, text).await;
                guest.ask_any(tx, op, text).await;
            }
        }
    }
    assert_eq!(a.ask(Op::GET_DOMAIN_PATH, "1|").await, "/local/domain/1|");
}

#[tokio::test]
async fn the_deepest_path_comes_and_goes() {
    let (_store, mut a) = store();
    let path = "/d".repeat(1500);
    a.ok(Op::WRITE, &format!("{path}|v")).await;
    let tx = a.start().await;
    a.ok_in(tx, Op::RM, "/d|").await;
    assert_eq!(a.commit(tx).await, "OK|");
    a.ok(Op::WRITE, &format!("{path}|v")).await;
    a.ok(Op::RM, "/d|").await;
    assert_eq!(a.ask(Op::DIRECTORY, "/|").await, "tool|");
}

#[tokio::test]
async fn a_socket_serves_until_it_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let store = Store::new();
    let listener = UnixListener::bind(&path).unwrap();
    let serving = tokio::spawn({
        let store = store.clone();
        async move { store.serve(listener).await }
    });
    let mut a = Peer::over(UnixStream::connect(&path).await.unwrap());
    let mut b = Peer::of(&store, 0);
    b.ok(Op::WATCH, "/x|t|").await;
    a.ok(Op::WRITE, "/x|v").await;
    assert_eq!(b.events().await, ["/x|t|", "/x|t|"]);
    a.ok(Op::SET_PERMS, "/x|n0|").await;
    serving.abort();
    assert_eq!(a.receive().await, None);
    assert_eq!(b.ask(Op::READ, "/x|").await, "v");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_increment_is_lost_between_threads() {
    let (store, mut a) = store();
    a.ok(Op::WRITE, "/count|0").await;
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let mut client = Peer::of(&store, 0);
            tokio::spawn(async move {
                for _ in 0..50 {
                    loop {
                        let tx = client.start().await;
                        let count: u32 = client.ask_in(tx, Op::READ, "/count|").await.parse().unwrap();
                        client.ok_in(tx, Op::WRITE, &format!("/count|{}", count + 1)).await;
                        match &*client.commit(tx).await {
                            "OK|" => break,
                            refusal => assert_eq!(refusal, "!EAGAIN"),
                        }
                    }
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    assert_eq!(a.ask(Op::READ, "/count|").await, "200");
}
