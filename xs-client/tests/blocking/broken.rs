//! Peers that break the protocol, or the connection: every call under way ends at once and says why,
//! and so does every later one.

use std::io::Write;
use std::net::Shutdown;
use std::thread;

use xs_client::blocking::Watch;
use xs_client::{Error, Op, Reply};

use crate::support::{LONG, Peer, path, patient};

/// How a connection with calls under way in as many threads ends when the peer does what `harm`
/// does, with the number of one of their requests. Returns what everybody was told.
fn ends(harm: impl FnOnce(&mut Peer, u32)) -> Vec<Error> {
    let (client, mut peer) = Peer::new(patient());
    let client = &client;
    let node = &path("/x");
    let mut watch: Watch = thread::scope(|scope| {
        let watching = scope.spawn(|| client.watch(node).unwrap());
        let request = peer.next().unwrap();
        peer.answer(&request, &Reply::Ok);
        watching.join().unwrap()
    });
    let mut errors: Vec<Error> = thread::scope(|scope| {
        let reads = (0..8).map(|_| scope.spawn(|| client.read(node).unwrap_err()));
        let mut calls: Vec<_> = reads.collect();
        calls.push(scope.spawn(|| client.watch(&path("/y")).unwrap_err()));
        calls.push(scope.spawn(|| client.transaction(|_| Ok::<_, Error>(())).unwrap_err()));
        calls.push(scope.spawn(|| watch.changed(LONG).unwrap_err()));
        calls.push(scope.spawn(|| client.wait_for(LONG, |_| Ok::<Option<()>, Error>(None)).unwrap_err()));
        let requests = peer.requests(10);
        harm(&mut peer, requests.iter().find(|request| request.op == Op::READ).unwrap().req_id);
        drop(peer);
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    errors.push(watch.changed(LONG).unwrap_err());
    errors.push(client.read(node).unwrap_err());
    errors.push(client.watch(node).unwrap_err());
    assert!(errors.iter().all(Error::is_disconnected), "{errors:?}");
    errors
}

/// All of them say the same.
fn assert_all(errors: &[Error], text: &str) {
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(texts, vec![text; texts.len()]);
}

fn frame(op: Op, req_id: u32, len: u32, payload: &[u8]) -> Vec<u8> {
    let words = [op.0, req_id, 0, len].map(u32::to_le_bytes);
    [words.as_flattened(), payload].concat()
}

#[test]
fn it_closes() {
    assert_all(&ends(|_, _| {}), "the connection to the store is gone: the store closed it");
}

#[test]
fn it_closes_in_the_middle_of_a_reply() {
    let errors = ends(|peer, id| peer.stream.write_all(&frame(Op::READ, id, 100, b"half")).unwrap());
    assert_all(&errors, "the store broke the protocol: the stream ended inside a message, after 20 bytes");
}

#[test]
fn it_announces_too_much() {
    let errors = ends(|peer, id| {
        peer.stream.write_all(&frame(Op::READ, id, u32::MAX, b"")).unwrap();
        // The connection ends although the peer does not.
        assert!(peer.next().is_none());
    });
    let text = "a message with 4294967295 bytes of payload is over the limit of 1048576";
    assert_all(&errors, &format!("the store broke the protocol: {text}"));
}

#[test]
fn it_answers_what_nobody_asked() {
    for id in [0, 4711, u32::MAX] {
        let errors = ends(|peer, _| {
            peer.stream.write_all(&frame(Op::READ, id, 1, b"v")).unwrap();
            assert!(peer.next().is_none());
        });
        let expected = format!("it sent a reply to a READ that nobody waits for, with the id {id}");
        assert_all(&errors, &format!("the store broke the protocol: {expected}"));
    }
}

#[test]
fn it_answers_in_another_form() {
    let errors = ends(|peer, id| {
        peer.stream.write_all(&frame(Op::WRITE, id, 3, b"OK\0")).unwrap();
        assert!(peer.next().is_none());
    });
    assert!(errors[0].to_string().starts_with("the store broke the protocol: "), "{}", errors[0]);
}

/// What the payload says is a matter of the call alone.
#[test]
fn it_answers_what_cannot_be_read() {
    let (client, mut peer) = Peer::new(patient());
    let node = path("/x");
    thread::scope(|scope| {
        let calls = scope.spawn(|| (client.get_perms(&node), client.read(&node)));
        let request = peer.next().unwrap();
        peer.stream.write_all(&frame(Op::GET_PERMS, request.req_id, 3, b"z0\0")).unwrap();
        let request = peer.next().unwrap();
        peer.answer(&request, &Reply::Value("v".into()));
        let (perms, value) = calls.join().unwrap();
        assert!(matches!(perms.unwrap_err(), Error::Reply(_)));
        assert_eq!(value.unwrap(), "v");
    });
}

/// What it has sent before still counts.
#[test]
fn it_answers_and_closes() {
    let (client, mut peer) = Peer::new(patient());
    thread::scope(|scope| {
        let reading = scope.spawn(|| client.read(&path("/x")));
        let request = peer.next().unwrap();
        peer.answer(&request, &Reply::Value("v".into()));
        drop(peer);
        assert_eq!(reading.join().unwrap().unwrap(), "v");
    });
    assert!(client.read(&path("/x")).unwrap_err().is_disconnected());
}

/// It takes no more requests, and does not close.
#[test]
fn it_stops_to_read() {
    let (client, mut peer) = Peer::new(patient());
    thread::scope(|scope| {
        let reading = scope.spawn(|| client.read(&path("/x")));
        peer.next().unwrap();
        peer.stream.shutdown(Shutdown::Read).unwrap();
        let error = client.read(&path("/y")).unwrap_err();
        assert_eq!(error.to_string(), "the connection to the store is gone: Broken pipe (os error 32)");
        assert!(reading.join().unwrap().unwrap_err().is_disconnected());
    });
}
