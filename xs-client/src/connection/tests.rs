use bytes::Bytes;
use xs_proto::MessageCodec;

use super::*;

fn path(text: &str) -> Path {
    Path::new(text).unwrap()
}

fn sent(connection: &mut Connection) -> Vec<Message> {
    let codec = MessageCodec::default();
    std::iter::from_fn(|| codec.cut(connection.output()).unwrap()).collect()
}

fn answer(to: &Message, op: Op, payload: &'static str) -> Message {
    Message { op, req_id: to.req_id, tx_id: to.tx_id, payload: Bytes::from_static(payload.as_bytes()) }
}

fn event(payload: &'static str) -> Message {
    Message { op: Op::WATCH_EVENT, req_id: 0, tx_id: TxId::NONE, payload: payload.into() }
}

fn connection() -> Connection {
    Connection::new(16)
}

fn caller(number: usize) -> Waiter {
    Waiter::new(number, 0)
}

fn watcher(text: &str) -> Arc<Watcher> {
    Watcher::new(&path(text), None)
}

fn receive(connection: &mut Connection, message: Message) -> Result<(), Error> {
    let mut completed = None;
    let received = connection.receive(message, |waiter, answer| completed = Some((waiter, answer)));
    connection.completed.extend(completed);
    received
}

/// How calls ended so far, in words.
fn completed(connection: &mut Connection) -> Vec<String> {
    let words = |(waiter, answer): (Waiter, Answered)| match answer.and_then(|answer| answer.outcome(None)) {
        Ok(reply) => format!("{}: {reply:?}", waiter.call()),
        Err(error) => format!("{}: {error}", waiter.call()),
    };
    std::iter::from_fn(|| connection.completed()).map(words).collect()
}

/// What a watcher hears now.
fn heard(watcher: &Watcher) -> Vec<String> {
    let changes = watcher.queue().take(&watcher.path).map(Result::unwrap).unwrap_or_default();
    changes.paths.iter().map(ToString::to_string).collect()
}

#[test]
fn replies_find_their_callers_in_any_order() {
    let mut connection = connection();
    for waiter in 1..=3 {
        connection.call(&Request::Read(path("/x")), TxId::NONE, caller(waiter));
    }
    let requests = sent(&mut connection);
    assert_eq!(connection.in_flight(), 3);
    receive(&mut connection, answer(&requests[2], Op::READ, "c")).unwrap();
    receive(&mut connection, answer(&requests[0], Op::READ, "a")).unwrap();
    receive(&mut connection, answer(&requests[1], Op::ERROR, "ENOENT\0")).unwrap();
    assert_eq!(
        completed(&mut connection),
        [
            "3: Value(b\"c\")",
            "1: Value(b\"a\")",
            "2: READ was refused: ENOENT, there is no such node, transaction or domain"
        ]
    );
    assert!(connection.is_idle());
}

#[test]
fn an_oversized_call_fails_alone() {
    let mut connection = connection();
    connection.call(&Request::Read(path("/x")), TxId::NONE, caller(1));
    let value = Bytes::from(vec![0; 4096]);
    connection.call(&Request::Write { path: path("/x"), value }, TxId::NONE, caller(2));
    connection.call(&Request::Read(path("/y")), TxId::NONE, caller(3));
    assert_eq!(sent(&mut connection).len(), 2);
    assert_eq!(completed(&mut connection), ["2: WRITE: a payload of 4099 bytes is over the limit of 4096"]);
}

#[test]
fn a_reply_nobody_asked_for_breaks_the_connection() {
    let mut connection = connection();
    let stray = Message { op: Op::READ, req_id: 9, tx_id: TxId::NONE, payload: Bytes::new() };
    assert!(receive(&mut connection, stray).is_err());
}

#[test]
fn a_reply_of_another_operation_breaks_the_connection_and_tells_the_caller() {
    let mut connection = connection();
    connection.call(&Request::Read(path("/x")), TxId::NONE, caller(1));
    let request = sent(&mut connection).remove(0);
    assert!(receive(&mut connection, answer(&request, Op::DIRECTORY, "a\0")).is_err());
    assert_eq!(completed(&mut connection).len(), 1);
}

#[test]
fn two_watchers_one_watch() {
    let mut connection = connection();
    let [first, second, third] = [1, 2, 3].map(|_| watcher("/w"));
    connection.watch(&first, caller(1));
    connection.watch(&second, caller(2));
    let requests = sent(&mut connection);
    assert_eq!(requests.len(), 1);
    receive(&mut connection, answer(&requests[0], Op::WATCH, "OK\0")).unwrap();
    receive(&mut connection, event("/w\x001\0")).unwrap();
    assert_eq!(completed(&mut connection), ["1: Ok", "2: Ok"]);
    assert_eq!([heard(&first), heard(&second)], [["/w"], ["/w"]]);
    connection.watch(&third, caller(3));
    assert_eq!(completed(&mut connection), ["3: Ok"]);
    assert_eq!([heard(&third), heard(&first)], [vec!["/w".to_owned()], vec![]]);
    for watcher in [&first, &second, &third] {
        connection.unwatch(watcher);
    }
    connection.fill(8);
    let requests = sent(&mut connection);
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].op, Op::UNWATCH);
    receive(&mut connection, event("/w/late\x001\0")).unwrap();
    receive(&mut connection, answer(&requests[0], Op::UNWATCH, "OK\0")).unwrap();
    assert!(heard(&third).is_empty());
    assert!(connection.is_idle());
}

#[test]
fn a_refused_watch_tells_all_who_wait() {
    let mut connection = connection();
    connection.watch(&watcher("/w"), caller(1));
    connection.watch(&watcher("/w"), caller(2));
    let request = sent(&mut connection).remove(0);
    receive(&mut connection, answer(&request, Op::ERROR, "E2BIG\0")).unwrap();
    assert_eq!(completed(&mut connection).len(), 2);
    assert!(connection.is_idle());
}

#[test]
fn closing_ends_every_call_and_every_watch() {
    let mut connection = connection();
    let watcher = watcher("/w");
    connection.call(&Request::Read(path("/x")), TxId::NONE, caller(1));
    connection.watch(&watcher, caller(2));
    connection.close(&Error::Store { op: Op::READ, path: None, code: ErrorCode::EIO });
    assert_eq!(completed(&mut connection).len(), 2);
    assert!(watcher.queue().take(&watcher.path).unwrap().is_err());
    assert_eq!(connection.in_flight(), 0);
}

/// A server that does not know of depths refuses the first, and is not asked for more.
#[test]
fn a_depth_that_the_server_does_not_know_is_kept_here() {
    let mut connection = connection();
    let shallow = Watcher::new(&path("/w"), Some(1));
    connection.watch(&shallow, caller(1));
    let asked = sent(&mut connection).remove(0);
    assert_eq!(&asked.payload[..], b"/w\x001\x001\0");
    receive(&mut connection, answer(&asked, Op::ERROR, "EINVAL\0")).unwrap();
    assert!(completed(&mut connection).is_empty(), "the caller does not hear of it");
    let again = sent(&mut connection).remove(0);
    assert_eq!(&again.payload[..], b"/w\x001\0");
    receive(&mut connection, answer(&again, Op::WATCH, "OK\0")).unwrap();
    for text in ["/w\x001\0", "/w/a\x001\0", "/w/a/b\x001\0"] {
        receive(&mut connection, event(text)).unwrap();
    }
    assert_eq!(heard(&shallow), ["/w", "/w/a"]);
    connection.watch(&Watcher::new(&path("/v"), Some(0)), caller(2));
    assert_eq!(&sent(&mut connection).remove(0).payload[..], b"/v\x002\0");
}

#[test]
fn what_was_watched_is_watched_again_on_another_connection() {
    let mut connection = connection();
    let [kept, dropped] = [watcher("/kept"), watcher("/dropped")];
    for watcher in [&kept, &dropped] {
        connection.watch(watcher, caller(0));
        let request = sent(&mut connection).remove(0);
        receive(&mut connection, answer(&request, Op::WATCH, "OK\0")).unwrap();
    }
    connection.call(&Request::Read(path("/x")), TxId::NONE, caller(9));
    completed(&mut connection);
    connection.lose(&Error::Disconnected { reason: "gone".into() });
    assert_eq!(completed(&mut connection).len(), 1);
    connection.unwatch(&dropped);
    assert!(sent(&mut connection).is_empty());

    connection.restore(true);
    connection.fill(8);
    let requests = sent(&mut connection);
    assert_eq!(requests.len(), 1);
    assert_eq!(&requests[0].payload[..], b"/kept\x003\0");
    receive(&mut connection, answer(&requests[0], Op::WATCH, "OK\0")).unwrap();
    receive(&mut connection, event("/kept\x003\0")).unwrap();
    assert_eq!(heard(&kept), ["/kept"]);
}

/// Who joins a watch that is still to be registered again waits for the server's word, as everybody.
#[test]
fn a_watch_on_another_connection_waits_for_its_confirmation() {
    let mut connection = connection();
    let [old, new] = [watcher("/w"), watcher("/w")];
    connection.watch(&old, caller(1));
    let request = sent(&mut connection).remove(0);
    receive(&mut connection, answer(&request, Op::WATCH, "OK\0")).unwrap();
    for (number, reply) in [(2, "OK\0"), (3, "EQUOTA\0")] {
        completed(&mut connection);
        connection.lose(&Error::Disconnected { reason: "gone".into() });
        connection.restore(true);
        connection.watch(&new, caller(number));
        assert!(completed(&mut connection).is_empty(), "the store does not have it");
        let requests = sent(&mut connection);
        assert_eq!(requests.len(), 1, "one that somebody waits for does not wait in line");
        connection.fill(8);
        assert!(sent(&mut connection).is_empty(), "it is registered once");
        let op = if reply == "OK\0" { Op::WATCH } else { Op::ERROR };
        receive(&mut connection, answer(&requests[0], op, reply)).unwrap();
        assert_eq!(completed(&mut connection).len(), 1);
        connection.unwatch(&new);
    }
    assert!(matches!(old.queue().take(&old.path), Some(Err(Error::Store { .. }))), "it is refused to both");
    assert!(sent(&mut connection).is_empty() && connection.watches() == 0);
}

/// Neither the window nor the order is given up for it: what is watched next finds the room that they
/// leave in the store's quota.
#[test]
fn many_dropped_watches_are_removed_within_the_window() {
    const WINDOW: usize = 8;
    let mut connection = connection();
    let watchers: Vec<_> = (0..100).map(|number| watcher(&format!("/w{number}"))).collect();
    for watcher in &watchers {
        connection.watch(watcher, caller(0));
        let request = sent(&mut connection).remove(0);
        receive(&mut connection, answer(&request, Op::WATCH, "OK\0")).unwrap();
    }
    completed(&mut connection);
    watchers.iter().for_each(|watcher| connection.unwatch(watcher));
    let [new, joined, dropped] = [watcher("/new"), watcher("/new"), watcher("/dropped")];
    connection.watch(&new, caller(1));
    connection.watch(&dropped, caller(2));
    connection.watch(&joined, caller(3));
    assert_eq!(connection.taken(), 3, "they wait in line, and take places");
    connection.unwatch(&dropped);
    assert_eq!((completed(&mut connection).len(), connection.taken()), (1, 2));
    let mut requests = Vec::new();
    loop {
        connection.fill(WINDOW);
        let more = sent(&mut connection);
        assert!(connection.in_flight() <= WINDOW);
        if more.is_empty() {
            break;
        }
        for request in &more {
            receive(&mut connection, answer(request, request.op, "OK\0")).unwrap();
        }
        requests.extend(more);
    }
    assert_eq!(requests.len(), 101);
    assert!(requests[..100].iter().all(|request| request.op == Op::UNWATCH));
    assert!(requests[100].payload.starts_with(b"/new\0"));
    assert_eq!(completed(&mut connection), ["1: Ok", "3: Ok"]);
    assert_eq!(connection.taken(), 0);
}

/// A store that says nothing keeps all of them waiting, those who have given up included.
#[test]
fn who_waits_for_the_watch_of_others_takes_a_place() {
    let mut connection = connection();
    let watchers = [(); 4].map(|()| watcher("/w"));
    connection.watch(&watchers[0], caller(0));
    let request = sent(&mut connection).remove(0);
    receive(&mut connection, answer(&request, Op::WATCH, "OK\0")).unwrap();
    for ends in [false, true] {
        connection.lose(&Error::Disconnected { reason: "gone".into() });
        completed(&mut connection);
        connection.restore(true);
        connection.fill(8);
        assert_eq!((connection.taken(), connection.is_restored()), (1, false));
        for (number, watcher) in watchers.iter().enumerate().skip(1) {
            connection.watch(watcher, caller(number));
            connection.unwatch(watcher);
            assert_eq!(connection.taken(), number, "the first one takes that of the request");
        }
        if ends {
            let request = sent(&mut connection).remove(0);
            receive(&mut connection, answer(&request, Op::WATCH, "OK\0")).unwrap();
            assert_eq!(completed(&mut connection).len(), 3);
            assert_eq!((connection.taken(), connection.is_restored()), (0, true));
        }
    }
}

/// Nobody may be left waiting for a watch that is not tried again.
#[test]
fn a_dropped_watch_whose_depth_is_refused_ends_its_call() {
    let mut connection = connection();
    let shallow = Watcher::new(&path("/w"), Some(1));
    connection.watch(&shallow, caller(1));
    let request = sent(&mut connection).remove(0);
    connection.unwatch(&shallow);
    receive(&mut connection, answer(&request, Op::ERROR, "EINVAL\0")).unwrap();
    assert_eq!(completed(&mut connection).len(), 1);
}
