//! Calls: many at once, wrong ones, dropped ones, late ones, long lists.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use lab_proxy::Proxy;
use tokio::time::{Instant, sleep, timeout};
use xs_client::{Client, Config, DomId, Error, ErrorCode, Op, Reconnect, Reply, Request, Retry};
use xs_proto::Names;
use xs_store::Store;

use crate::support::{Peer, client, frame, path, watched_client};

async fn concurrent_reads(count: usize) {
    let client = client();
    for number in 0..100 {
        client.write(&path(format!("/n/{number}")), number.to_string()).await.unwrap();
    }
    let reads = (0..count).map(|call| {
        let (client, number) = (client.clone(), call % 101);
        tokio::spawn(async move { (number, client.read_opt(&path(format!("/n/{number}"))).await) })
    });
    for read in join_all(reads).await {
        let (number, value) = read.unwrap();
        let wanted = (number < 100).then(|| number.to_string());
        assert_eq!(value.unwrap().as_deref(), wanted.as_deref().map(str::as_bytes));
    }
}

#[tokio::test]
async fn a_value_is_read_as_text_or_as_a_number_and_else_told() {
    let client = client();
    let (number, name, junk) = (&path("/n/number"), &path("/n/name"), &path("/n/junk"));
    client.write(number, " 42\n").await.unwrap();
    client.write(name, "Domain-0").await.unwrap();
    client.write(junk, vec![0xff; 200]).await.unwrap();
    assert_eq!(client.read_parsed::<u32>(number).await.unwrap(), 42);
    assert_eq!(client.read_string(number).await.unwrap(), " 42\n", "as it stands there");
    assert!(client.read_parsed::<u32>(&path("/none")).await.unwrap_err().is_not_found());
    let error = client.read_parsed::<u32>(name).await.unwrap_err();
    assert_eq!(error.to_string(), r#"/n/name holds "Domain-0", which is no u32"#);
    let error = client.read_string(junk).await.unwrap_err();
    assert!(error.to_string().ends_with(r#"\xff", which is no UTF-8 text"#), "{error}");
    assert!(error.to_string().len() < 400, "a guest's value is not shown whole");
}

#[tokio::test(start_paused = true)]
async fn sixty_four_reads_at_once() {
    concurrent_reads(64).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_reads_at_once() {
    concurrent_reads(10_000).await;
}

/// No more than the window of requests is unanswered, however many calls there are.
#[tokio::test(start_paused = true)]
async fn the_window_is_kept() {
    let (client, mut peer) = Peer::new(Config { window: 4, ..Config::default() });
    let node = path("/x");
    let reading = join_all((0..100).map(|_| client.read(&node)));
    let (values, ()) = tokio::join!(reading, async {
        let mut unanswered = VecDeque::from(peer.requests(4).await);
        let mut to_come = 96;
        while let Some(request) = unanswered.pop_front() {
            let one_more = timeout(Duration::from_millis(1), peer.request()).await;
            assert!(one_more.is_err(), "a fifth is sent, or one too many");
            peer.answer(&request, &Reply::Value("v".into())).await;
            if to_come > 0 {
                to_come -= 1;
                unanswered.push_back(peer.request().await.unwrap());
            }
        }
    });
    assert!(values.iter().all(|value| value.as_ref().unwrap() == "v"));
}

/// A value that is too long is refused before it is sent; calls beside it are undisturbed.
#[tokio::test(start_paused = true)]
async fn an_oversized_write_fails_alone() {
    let (client, proxy, _store) = watched_client(Config::default());
    let (small, large) = (path("/small"), path("/large"));
    let (before, oversized, after) = tokio::join!(
        client.write(&small, "1"),
        client.write(&large, vec![b'x'; 4096]),
        client.write(&small, "2"),
    );
    before.unwrap();
    let error = oversized.unwrap_err();
    assert_eq!(error.to_string(), "WRITE: a payload of 4103 bytes is over the limit of 4096");
    after.unwrap();
    assert_eq!(proxy.count(Op::WRITE), 2);
    assert_eq!(client.read(&small).await.unwrap(), "2");
    client.write(&large, vec![b'x'; 4096 - "/large\0".len()]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn in_a_batch_an_error_is_of_its_own_request_alone() {
    let client = client();
    let write = |node: &str| Request::Write { path: path(node), value: "1".into() };
    let read = |node: &str| Request::Read(path(node));
    let outcomes = client.batch(vec![write("/a"), read("/none"), read("/a"), read("@x")]).await.unwrap();
    assert!(matches!(&outcomes[0], Ok(Reply::Ok)), "{outcomes:?}");
    assert!(outcomes[1].as_ref().unwrap_err().is_not_found());
    assert!(matches!(&outcomes[2], Ok(Reply::Value(value)) if value == "1"), "{outcomes:?}");
    assert_eq!(outcomes[3].as_ref().unwrap_err().code(), Some(&ErrorCode::EINVAL));
    assert!(client.batch(Vec::new()).await.unwrap().is_empty());

    let error = client.all(vec![read("/none"), write("/b")]).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "READ of /none was refused: ENOENT, there is no such node, transaction or domain"
    );
    assert_eq!(client.read(&path("/b")).await.unwrap(), "1", "carried out all the same");
}

/// 1000 requests in one batch, through a window of 64.
#[tokio::test(start_paused = true)]
async fn a_batch_may_be_longer_than_the_window() {
    let client = client();
    let paths: Vec<_> = (0..1000).map(|number| path(format!("/n/{number}"))).collect();
    let writes = paths.iter().map(|path| Request::Write { path: path.clone(), value: "v".into() });
    client.all(writes.collect()).await.unwrap();
    assert!(client.read_many(&paths).await.unwrap().iter().all(Option::is_some));
}

/// What a batch has left is sent when half of the window is free.
#[tokio::test(start_paused = true)]
async fn a_batch_is_sent_by_halves_of_the_window() {
    let (client, mut peer) = Peer::new(Config { window: 4, ..Config::default() });
    let nodes = vec![path("/x"); 8];
    let (values, ()) = tokio::join!(client.read_many(&nodes), async {
        let mut unanswered = VecDeque::from(peer.requests(4).await);
        for half in 0..4 {
            for request in unanswered.drain(..2) {
                let early = timeout(Duration::from_millis(1), peer.request()).await;
                assert!(early.is_err(), "one is sent before half of the window is free");
                peer.answer(&request, &Reply::Value("v".into())).await;
            }
            if half < 2 {
                unanswered.extend(peer.requests(2).await);
            }
        }
    });
    assert!(values.unwrap().iter().all(|value| value.as_ref().unwrap() == "v"));
}

/// Those who ask one by one do not keep a batch from its turn: neither many who wait, nor some who
/// ask again at once.
#[tokio::test(start_paused = true)]
async fn a_batch_has_its_share_of_the_window() {
    for (callers, each) in [(210, 1), (6, 35)] {
        a_batch_has_its_share_beside(callers, each).await;
    }
}

async fn a_batch_has_its_share_beside(callers: usize, each: usize) {
    let (client, mut peer) = Peer::new(Config { window: 8, ..Config::default() });
    let (together, alone) = (vec![path("/together"); 20], path("/alone"));
    let reading = join_all((0..callers).map(async |_| {
        for _ in 0..each {
            client.read(&alone).await.unwrap();
        }
    }));
    let (values, _, last) = tokio::join!(client.read_many(&together), reading, async {
        let mut last = 0;
        for number in 0..20 + callers * each {
            let request = peer.request().await.unwrap();
            if request.payload.starts_with(b"/together") {
                last = number;
            }
            peer.answer(&request, &Reply::Value("v".into())).await;
            // One by one, so that half of the window is never free at once.
            sleep(Duration::from_millis(1)).await;
        }
        last
    });
    assert!(values.unwrap().iter().all(|value| value.as_ref().unwrap() == "v"));
    assert!(last < 150, "the last of the batch came after {last} others");
}

/// Nor does a long batch keep them from theirs.
#[tokio::test(start_paused = true)]
async fn a_call_has_its_turn_beside_a_batch() {
    let (client, mut peer) = Peer::new(Config { window: 1, ..Config::default() });
    let (together, alone) = (vec![path("/together"); 100], path("/alone"));
    let (_, _, turn) = tokio::join!(client.read_many(&together), client.read(&alone), async {
        let mut turn = None;
        for number in 0..101 {
            let request = peer.request().await.unwrap();
            if request.payload.starts_with(b"/alone") {
                turn = Some(number);
            }
            peer.answer(&request, &Reply::Value("v".into())).await;
            sleep(Duration::from_millis(1)).await;
        }
        turn
    });
    assert!(turn.is_some_and(|turn| turn < 3), "it was sent after {turn:?} others");
}

/// The peer never answers: the call ends at the deadline, and says what it was. Its reply, when it
/// comes at last, disturbs nobody.
#[tokio::test(start_paused = true)]
async fn a_deadline_expires() {
    for spin in [Duration::ZERO, Duration::from_millis(1)] {
        a_deadline_expires_with(Config { spin, ..Config::default() }).await;
    }
}

async fn a_deadline_expires_with(config: Config) {
    let (client, mut peer) = Peer::new(config);
    let begun = Instant::now();
    let error = client.read(&path("/x")).await.unwrap_err();
    assert_eq!(begun.elapsed().as_secs(), 10);
    assert_eq!(error.to_string(), "READ of /x was not answered within 10s");
    assert_eq!(error.hint(), "see whether xenstored is stopped or overloaded, then try again");
    let late = peer.request().await.unwrap();
    let (value, ()) = tokio::join!(async { client.read(&path("/y")).await }, async {
        peer.answer(&late, &Reply::Value("late".into())).await;
        let request = peer.request().await.unwrap();
        peer.answer(&request, &Reply::Value("y".into())).await;
    });
    assert_eq!(value.unwrap(), "y");
}

/// Every kind of call has its deadline, also if the peer does not even read.
#[tokio::test(start_paused = true)]
async fn all_calls_have_deadlines() {
    let config = Config { deadline: Duration::from_secs(3), window: 2, ..Config::default() };
    let (client, _peer) = Peer::new(config);
    let node = &path("/x");
    let begun = Instant::now();
    let timed_out = |error: Error| assert!(matches!(error, Error::Timeout { .. }), "{error}");
    tokio::join!(
        async { timed_out(client.read(node).await.unwrap_err()) },
        async { timed_out(client.batch(vec![Request::Read(node.clone()); 500]).await.unwrap_err()) },
        async { timed_out(client.directory(node).await.unwrap_err()) },
        async { timed_out(client.watch(node).await.unwrap_err()) },
        async { timed_out(client.transaction(|_| async { Ok::<_, Error>(()) }).await.unwrap_err()) },
        async { timed_out(client.write(node, vec![b'x'; 4000]).await.unwrap_err()) },
    );
    assert_eq!(begun.elapsed().as_secs(), 3);
}

/// Futures that are dropped at any moment: the replies of others are theirs.
#[tokio::test(start_paused = true)]
async fn dropped_calls_disturb_nobody() {
    let client = client();
    for number in 0..200 {
        client.write(&path(format!("/n/{number}")), number.to_string()).await.unwrap();
    }
    for round in 0..200 {
        let node = path(format!("/n/{round}"));
        // Polled once, which hands it over, and dropped.
        assert!(client.read(&node).now_or_never().is_none());
        let next = (round + 1) % 200;
        let value = client.read(&path(format!("/n/{next}"))).await.unwrap();
        assert_eq!(value, next.to_string().as_bytes());
    }
}

/// 500 children do not fit into one reply.
#[tokio::test(start_paused = true)]
async fn a_long_directory_comes_in_parts() {
    let (client, proxy, _store) = watched_client(Config::default());
    let names: Vec<String> = (0..500).map(|number| format!("a-rather-long-name-{number}")).collect();
    for name in &names {
        client.write(&path(format!("/d/{name}")), "").await.unwrap();
    }
    assert_eq!(client.directory(&path("/d")).await.unwrap(), names);
    assert!(proxy.count(Op::DIRECTORY_PART) > 2, "{}", proxy.count(Op::DIRECTORY_PART));
    // In a transaction too, with what it changed itself.
    let in_transaction = client
        .transaction(|tx| async move {
            tx.write(&path("/d/one-more"), "").await?;
            tx.directory(&path("/d")).await
        })
        .await
        .unwrap();
    assert_eq!(in_transaction.len(), 501);
    let error = client.directory(&path("/none")).await.unwrap_err();
    assert!(error.is_not_found());
    assert!(client.directory_or_empty(&path("/none")).await.unwrap().is_empty());
}

/// Lists whose length is about that of a reply.
#[tokio::test(start_paused = true)]
async fn directories_at_the_limit() {
    let client = client();
    // Of ten bytes each, with its NUL; 4096 bytes hold 409.
    for count in 0..430 {
        client.write(&path(format!("/d/{count:09}")), "").await.unwrap();
        if count > 400 {
            assert_eq!(client.directory(&path("/d")).await.unwrap().len(), count + 1);
        }
    }
}

/// The directory changes between two parts: its list is fetched from the start again.
#[tokio::test(start_paused = true)]
async fn a_long_directory_changes_meanwhile() {
    let (client, mut peer) = Peer::new(Config::default());
    let part = |generation, names: &[&str], last| Reply::Part {
        generation,
        names: Names::from_names(names.iter().copied()),
        last,
    };
    let node = path("/d");
    let (names, ()) = tokio::join!(client.directory(&node), async {
        let request = peer.request().await.unwrap();
        peer.answer(&request, &Reply::Error(ErrorCode::E2BIG)).await;
        for reply in [
            part(1, &["a", "b"], false),
            part(2, &["c"], true),
            part(2, &["a", "x"], false),
            part(2, &["c"], true),
        ] {
            let request = peer.request().await.unwrap();
            assert_eq!(request.op, Op::DIRECTORY_PART);
            peer.answer(&request, &reply).await;
        }
    });
    assert_eq!(names.unwrap(), ["a", "x", "c"]);
}

/// A list that never ends is given up before it takes all memory.
#[tokio::test(start_paused = true)]
async fn a_directory_without_end() {
    let (client, mut peer) = Peer::new(Config::default());
    let node = path("/d");
    let names = {
        let answering = async {
            let request = peer.request().await.unwrap();
            peer.answer(&request, &Reply::Error(ErrorCode::E2BIG)).await;
            let part = [&b"7\0"[..], &b"a-name\0".repeat(100_000)].concat();
            for _ in 0..100 {
                let request = peer.request().await.unwrap();
                peer.send(&frame(Op::DIRECTORY_PART, request.req_id, part.len() as u32, &part)).await;
            }
        };
        tokio::select! {
            names = client.directory(&node) => names,
            () = answering => panic!("all of it is taken"),
        }
    };
    let error = names.unwrap_err();
    assert!(matches!(&error, Error::Endless { path, limit: 0x400_0000 } if *path == node), "{error}");
}

/// A daemon that answers neither: the first error stands.
#[tokio::test(start_paused = true)]
async fn a_daemon_without_parts() {
    let (client, mut peer) = Peer::new(Config::default());
    let node = path("/d");
    let (names, ()) = tokio::join!(client.directory(&node), async {
        for code in [ErrorCode::E2BIG, ErrorCode::ENOSYS] {
            let request = peer.request().await.unwrap();
            peer.answer(&request, &Reply::Error(code)).await;
        }
    });
    assert_eq!(names.unwrap_err().code(), Some(&ErrorCode::E2BIG));
}

/// What a guest may not do is an error of its own, with a hint.
#[tokio::test(start_paused = true)]
async fn a_guest_is_refused() {
    let store = Store::new();
    store.introduce(DomId(1));
    let (stream, proxy) = Proxy::over(store.connect(DomId(1)));
    let guest = Client::over(stream, Config::default());
    let error = guest.write(&path("/x"), "1").await.unwrap_err();
    assert_eq!(error.to_string(), "WRITE of /x was refused: EACCES, no permission");
    assert_eq!(error.hint(), "run it in the domain that may do this, usually domain 0");
    assert_eq!(proxy.count(Op::WRITE), 1);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_may_be_for_ever() {
    let store = Store::new();
    let config = Config { deadline: Duration::MAX, ..Config::default() };
    let client = Client::over(store.connect(DomId::DOM0), config);
    client.write(&path("/a"), "1").await.unwrap();
    let read = client.wait_for(Duration::MAX, |view| async move { view.read(&path("/a")).await });
    assert_eq!(read.await.unwrap(), "1");
}

/// They would take watches from those who have them, or open transactions that nobody can end.
#[tokio::test(start_paused = true)]
async fn what_the_client_keeps_account_of_is_not_asked_for_by_hand() {
    let (client, proxy, _store) = watched_client(Config::default());
    let token = xs_proto::Token::new("1").unwrap();
    let requests = [
        Request::Watch { path: path("/a"), token: token.clone(), depth: None },
        Request::Unwatch { path: path("/a"), token },
        Request::ResetWatches,
        Request::TransactionStart,
        Request::TransactionEnd { commit: true },
    ];
    for request in requests {
        let write = Request::Write { path: path("/a"), value: "1".into() };
        let error = client.request(request.clone()).await.unwrap_err();
        assert!(error.to_string().starts_with(&format!("{} is for the client", request.op())), "{error}");
        let together = vec![write, request];
        assert!(client.batch(together.clone()).await.is_err());
        assert!(client.commit_all(together).await.is_err());
    }
    assert_eq!((proxy.count(Op::WRITE), client.stats().requests), (0, 0));
}

/// What is as large as it can be is no bound, and nothing that is counted with.
#[tokio::test(start_paused = true)]
async fn without_bounds() {
    let retry = Retry { attempts: u32::MAX, within: Duration::MAX, ..Retry::default() };
    let reconnect = Reconnect { within: Duration::MAX, from_start: true, ..Reconnect::default() };
    let config = Config {
        deadline: Duration::MAX,
        window: usize::MAX,
        reply_limit: usize::MAX,
        watch_backlog: usize::MAX,
        tree_limit: usize::MAX,
        transactions: usize::MAX,
        retry,
        spin: Duration::MAX,
        reconnect: Some(reconnect),
    };
    let client = Client::over(Store::new().connect(DomId::DOM0), config);
    let mut watch = client.watch(&path("/t")).await.unwrap();
    watch.changed().await.unwrap();
    let writes =
        (0..200).map(|child| Request::Write { path: path(format!("/t/{child}")), value: "1".into() });
    client.all(writes.collect()).await.unwrap();
    assert!(watch.changed().await.is_ok());
    let tree = client.transaction(async |tx| tx.read_tree(&path("/t")).await);
    assert_eq!(tree.await.unwrap().unwrap().children.len(), 200);
}

/// A pause that no clock can say is one that is not waited for.
#[tokio::test(start_paused = true)]
async fn pauses_without_bounds() {
    let reconnect = Reconnect { first_pause: Duration::MAX, from_start: true, ..Reconnect::default() };
    for _ in 0..20 {
        let config = Config { reconnect: Some(reconnect), ..Config::default() };
        let error = Client::connect_unix("/none/at/all", config).await.unwrap_err();
        assert!(matches!(error, Error::Connect { .. }), "{error}");
    }
}
