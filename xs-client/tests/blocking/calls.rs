//! Calls of one thread: each operation, long lists, wrong ones, late ones.

use std::time::Duration;

use xs_client::blocking::Client;
use xs_client::{Access, Config, DomId, Error, ErrorCode, Op, Permissions, Reply, Request};
use xs_proto::Names;

use crate::support::{LONG, Peer, SHORT, Served, path, patient, timed_out};

#[test]
fn each_operation_does_what_it_says() {
    let served = Served::new();
    let client = served.connect();
    let (node, none) = (&path("/a/b"), &path("/none"));
    client.write(node, "1").unwrap();
    assert_eq!(client.read(node).unwrap(), "1");
    assert!(client.read(none).unwrap_err().is_not_found());
    assert_eq!(
        (client.read_string(node).unwrap(), client.read_parsed::<u8>(node).unwrap()),
        ("1".to_owned(), 1)
    );
    assert!(matches!(client.read_parsed::<bool>(node), Err(Error::Value { .. })));
    assert_eq!(client.read_opt(none).unwrap(), None);
    assert_eq!(client.read_opt(node).unwrap().unwrap(), "1");
    let values = client.read_many(&[none.clone(), node.clone()]).unwrap();
    assert_eq!(values, [None, Some("1".into())]);
    client.mkdir(&path("/a/c")).unwrap();
    assert_eq!(client.directory(&path("/a")).unwrap(), ["b", "c"]);
    assert!(client.directory(none).unwrap_err().is_not_found());
    assert!(client.directory_or_empty(none).unwrap().is_empty());
    let perms = Permissions::owned_by(DomId::DOM0, Access::None).grant(DomId(1), Access::Read);
    client.set_perms(node, perms.clone()).unwrap();
    assert_eq!(client.get_perms(node).unwrap(), perms);
    assert!(!client.is_introduced(DomId(1)).unwrap());
    served.store.introduce(DomId(1));
    assert!(client.is_introduced(DomId(1)).unwrap());
    let tree = client.read_tree(&path("/a")).unwrap().unwrap();
    let nodes: Vec<_> = tree.nodes().map(|(name, node)| (name, node.value.clone())).collect();
    assert_eq!(nodes, [("".into(), "".into()), ("b".into(), "1".into()), ("c".into(), "".into())]);
    assert_eq!(client.read_tree(none).unwrap(), None);
    client.rm(&path("/a")).unwrap();
    assert_eq!(client.read_opt(node).unwrap(), None);
    let home = client.request(Request::GetDomainPath(DomId(1))).unwrap();
    assert_eq!(home, Reply::DomainPath(path("/local/domain/1")));
}

#[test]
fn in_a_batch_an_error_is_of_its_own_request_alone() {
    let served = Served::new();
    let client = served.connect();
    let write = |node: &str| Request::Write { path: path(node), value: "1".into() };
    let read = |node: &str| Request::Read(path(node));
    let outcomes = client.batch(vec![write("/a"), read("/none"), read("/a"), read("@x")]).unwrap();
    assert!(matches!(&outcomes[0], Ok(Reply::Ok)), "{outcomes:?}");
    assert!(outcomes[1].as_ref().unwrap_err().is_not_found());
    assert!(matches!(&outcomes[2], Ok(Reply::Value(value)) if value == "1"), "{outcomes:?}");
    assert_eq!(outcomes[3].as_ref().unwrap_err().code(), Some(&ErrorCode::EINVAL));
    assert!(client.batch(Vec::new()).unwrap().is_empty());
    assert!(client.all(vec![read("/none"), write("/b")]).unwrap_err().is_not_found());
    assert_eq!(client.read(&path("/b")).unwrap(), "1", "carried out all the same");
}

#[test]
fn ten_thousand_reads_in_one_batch() {
    let served = Served::new();
    let client = served.connect();
    let nodes: Vec<_> = (0..100).map(|number| path(format!("/n/{number}"))).collect();
    for (number, node) in nodes.iter().enumerate() {
        client.write(node, number.to_string()).unwrap();
    }
    let many: Vec<_> = nodes.iter().cycle().take(10_000).cloned().collect();
    let values = client.read_many(&many).unwrap();
    assert_eq!(values.len(), 10_000);
    for (place, value) in values.into_iter().enumerate() {
        assert_eq!(value.unwrap(), (place % 100).to_string());
    }
    let stats = client.stats();
    assert_eq!((stats.requests, stats.in_flight), (10_100, 0));
}

#[test]
fn no_more_than_the_window_is_unanswered() {
    let (client, mut peer) = Peer::new(Config { window: 4, ..patient() });
    let peer = std::thread::spawn(move || {
        let mut to_come = 100;
        while to_come > 0 {
            let requests = peer.requests(1);
            let mut requests = [requests, peer.requests(1)].concat();
            // Whatever else there is, it is no more than two.
            to_come -= requests.len();
            for request in requests.drain(..) {
                peer.answer(&request, &Reply::Value("v".into()));
            }
        }
        peer
    });
    let values = client.read_many(&vec![path("/x"); 100]).unwrap();
    assert!(values.into_iter().all(|value| value.unwrap() == "v"));
    assert!(peer.join().unwrap().is_silent());
}

#[test]
fn an_oversized_write_fails_alone() {
    an_oversized_write_fails_alone_with(patient());
    // It fails as well where it would have to wait for its turn.
    an_oversized_write_fails_alone_with(Config { window: 1, ..patient() });
}

fn an_oversized_write_fails_alone_with(config: Config) {
    let served = Served::new();
    let (client, proxy) = served.watched(DomId::DOM0, config);
    let write = |value: Vec<u8>| Request::Write { path: path("/large"), value: value.into() };
    let longest = 4096 - "/large\0".len();
    let outcomes = client
        .batch(vec![write(b"1".to_vec()), write(vec![b'x'; longest + 1]), write(vec![b'x'; longest])])
        .unwrap();
    assert!(outcomes[0].is_ok() && outcomes[2].is_ok(), "{outcomes:?}");
    let error = outcomes[1].as_ref().unwrap_err();
    assert_eq!(error.to_string(), "WRITE: a payload of 4097 bytes is over the limit of 4096");
    assert_eq!(proxy.count(Op::WRITE), 2);
    let error = client.write(&path("/large"), vec![b'x'; longest + 1]).unwrap_err();
    assert!(matches!(error, Error::Encode(_)), "{error}");
    assert_eq!(client.read(&path("/large")).unwrap().len(), longest);
}

/// The reply that comes too late has a place in the window until then, and disturbs nobody.
#[test]
fn a_late_reply_is_thrown_away() {
    let (client, mut peer) = Peer::new(Config { window: 1, ..patient() });
    let hasty = client.with_deadline(SHORT);
    let error = hasty.read(&path("/x")).unwrap_err();
    assert_eq!(error.to_string(), "READ of /x was not answered within 20ms");
    let late = peer.next().unwrap();
    timed_out(hasty.write(&path("/x"), "never sent"));
    assert!(peer.is_silent(), "there is no room for another");
    assert_eq!(client.stats().in_flight, 1);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| client.read(&path("/y")));
        peer.answer(&late, &Reply::Value("late".into()));
        let request = peer.next().unwrap();
        assert_eq!(&request.payload[..], b"/y\0");
        peer.answer(&request, &Reply::Value("y".into()));
        assert_eq!(reading.join().unwrap().unwrap(), "y");
    });
}

/// Also if the peer does not even read.
#[test]
fn all_calls_have_deadlines() {
    let config = Config { deadline: SHORT, window: 1000, ..Config::default() };
    let (client, _peer) = Peer::new(config);
    let node = &path("/x");
    timed_out(client.read(node));
    timed_out(client.directory(node));
    timed_out(client.watch(node));
    timed_out(client.transaction(|_| Ok::<_, Error>(())));
    let write = Request::Write { path: node.clone(), value: vec![b'x'; 4000].into() };
    timed_out(client.batch(vec![write; 2000]));
    timed_out(client.with_deadline(Duration::ZERO).read(node));
}

/// What the socket does not take is sent when there is room, although no reply comes meanwhile.
#[test]
fn a_full_socket_is_waited_for() {
    let (client, mut peer) = Peer::new(Config { window: 1000, ..patient() });
    let write = Request::Write { path: path("/x"), value: vec![b'x'; 4000].into() };
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| client.all(vec![write; 1000]));
        for request in peer.requests(1000) {
            peer.answer(&request, &Reply::Ok);
        }
        assert_eq!(writing.join().unwrap().unwrap().len(), 1000);
    });
}

#[test]
fn a_long_directory_comes_in_parts() {
    let served = Served::new();
    let (client, proxy) = served.watched(DomId::DOM0, patient());
    let names: Vec<String> = (0..500).map(|number| format!("a-rather-long-name-{number}")).collect();
    let write = |name| Request::Write { path: path(format!("/d/{name}")), value: "".into() };
    client.all(names.iter().map(write).collect()).unwrap();
    assert_eq!(client.directory(&path("/d")).unwrap(), names);
    assert!(proxy.count(Op::DIRECTORY_PART) > 2, "{}", proxy.count(Op::DIRECTORY_PART));
    assert_eq!(client.read_tree(&path("/d")).unwrap().unwrap().children.len(), 500);
}

#[test]
fn a_long_directory_that_changes_meanwhile_is_fetched_again() {
    let (client, mut peer) = Peer::new(patient());
    let part = |generation, names: &[&str], last| Reply::Part {
        generation,
        names: Names::from_names(names.iter().copied()),
        last,
    };
    std::thread::scope(|scope| {
        let listing = scope.spawn(|| client.directory(&path("/d")));
        let replies = [
            Reply::Error(ErrorCode::E2BIG),
            part(1, &["a", "b"], false),
            part(2, &["c"], true),
            part(2, &["a", "x"], false),
            part(2, &["c"], true),
        ];
        for reply in replies {
            let request = peer.next().unwrap();
            peer.answer(&request, &reply);
        }
        assert_eq!(listing.join().unwrap().unwrap(), ["a", "x", "c"]);
    });
}

/// They are given up before they take all memory.
#[test]
fn a_directory_or_a_tree_without_end() {
    type Call = fn(Client) -> Error;
    let calls: [(Call, usize); 2] = [
        (|client| client.directory(&path("/d")).unwrap_err(), 64 << 20),
        (|client| client.read_tree(&path("/d")).unwrap_err(), 1000 * 4096),
    ];
    for (call, most) in calls {
        let (client, mut peer) = Peer::new(Config { tree_limit: 1000, ..patient() });
        // With the call, the connection ends.
        let calling = std::thread::spawn(move || call(client));
        let part = [&b"7\0"[..], &b"a-name\0".repeat(100_000)].concat();
        let mut sent = 0;
        while let Some(request) = peer.next() {
            let (op, payload) = match request.op {
                Op::DIRECTORY if most == 64 << 20 => (Op::ERROR, &b"E2BIG\0"[..]),
                Op::DIRECTORY => (Op::DIRECTORY, &b"child\0"[..]),
                op => (op, &part[..]),
            };
            sent += payload.len();
            assert!(sent < most + 2 * part.len(), "all of it is taken");
            peer.send(op, request.req_id, payload);
        }
        let error = calling.join().unwrap();
        assert!(matches!(error, Error::Endless { limit, .. } if limit == most), "{error}");
    }
}

#[test]
fn a_tree_has_a_limit() {
    let served = Served::new();
    let (client, _proxy) = served.watched(DomId::DOM0, Config { tree_limit: 5, ..patient() });
    for number in 0..5 {
        client.write(&path(format!("/t/{number}")), "").unwrap();
    }
    let error = client.read_tree(&path("/t")).unwrap_err();
    assert!(matches!(error, Error::TooLarge { limit: 5, .. }), "{error}");
}

#[test]
fn a_store_is_reached_by_its_socket_or_the_error_says_why() {
    let served = Served::new();
    for deadline in [Duration::ZERO, Duration::MAX] {
        served.try_connect(Config { deadline, ..Config::default() }).unwrap();
    }
    let error = Client::connect_unix("/none/socket", patient()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot connect to the store at /none/socket: No such file or directory (os error 2)"
    );
    let file = std::fs::File::open("/dev/null").unwrap();
    Client::over(file, Config { deadline: LONG, ..Config::default() }).unwrap_err();
}

/// They would take watches from those who have them, or open transactions that nobody can end.
#[test]
fn what_the_client_keeps_account_of_is_not_asked_for_by_hand() {
    let served = Served::new();
    let client = served.connect();
    for request in [Request::ResetWatches, Request::TransactionStart] {
        let error = client.request(request.clone()).unwrap_err();
        assert!(error.to_string().starts_with(&format!("{} is for the client", request.op())), "{error}");
        assert!(client.batch(vec![request.clone()]).is_err());
        assert!(client.commit_all(vec![request]).is_err());
    }
    assert_eq!(client.stats().requests, 0);
}

/// What is as large as it can be is no bound, and nothing that is counted with.
#[test]
fn without_bounds() {
    let config = Config {
        deadline: Duration::MAX,
        window: usize::MAX,
        reply_limit: usize::MAX,
        watch_backlog: usize::MAX,
        tree_limit: usize::MAX,
        transactions: usize::MAX,
        spin: Duration::MAX,
        ..Config::default()
    };
    let served = Served::new();
    let client = served.try_connect(config).unwrap();
    let mut watch = client.watch(&path("/t")).unwrap();
    watch.changed(LONG).unwrap().unwrap();
    let writes =
        (0..200).map(|child| Request::Write { path: path(format!("/t/{child}")), value: "1".into() });
    client.all(writes.collect()).unwrap();
    assert!(watch.changed(LONG).unwrap().is_some());
    let tree = client.transaction(|tx| tx.read_tree(&path("/t"))).unwrap();
    assert_eq!(tree.unwrap().children.len(), 200);
}
