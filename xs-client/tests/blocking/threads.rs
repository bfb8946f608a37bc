//! Many threads on one connection: one of them reads for all.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use xs_client::{Config, Reply};

use crate::support::{Peer, SHORT, Served, path, patient, timed_out};

#[test]
fn sixty_four_threads_get_what_they_asked_for() {
    let served = Served::new();
    let client = served.connect();
    thread::scope(|scope| {
        for number in 0..64 {
            let client = client.clone();
            scope.spawn(move || {
                let node = path(format!("/n/{number}"));
                for round in 0..100 {
                    let value = format!("{number}-{round}");
                    client.write(&node, value.clone()).unwrap();
                    assert_eq!(client.read(&node).unwrap(), value);
                }
            });
        }
    });
    let stats = client.stats();
    assert_eq!((stats.requests, stats.in_flight), (64 * 200, 0));
}

/// Whichever of two waiting threads is answered first: the other one goes on reading.
#[test]
fn who_is_answered_hands_on_the_reading() {
    for first in [0, 1] {
        let (client, mut peer) = Peer::new(patient());
        let client = &client;
        thread::scope(|scope| {
            let mut calls = Vec::new();
            let mut requests = Vec::new();
            for name in ["/a", "/b"] {
                calls.push(scope.spawn(move || client.read(&path(name))));
                requests.push(peer.next().unwrap());
            }
            for place in [first, 1 - first] {
                peer.answer(&requests[place], &Reply::Value(requests[place].payload.clone()));
                let value = calls.remove(if calls.len() == 2 { place } else { 0 }).join().unwrap().unwrap();
                assert_eq!(value, requests[place].payload);
            }
        });
    }
}

/// So does one whose time is up, and one that follows has a deadline of its own.
#[test]
fn who_times_out_hands_on_the_reading() {
    let (client, mut peer) = Peer::new(patient());
    let (client, hasty) = (&client, &client.with_deadline(SHORT));
    thread::scope(|scope| {
        let leading = scope.spawn(|| timed_out(hasty.read(&path("/hasty"))));
        peer.next().unwrap();
        let patient = scope.spawn(|| client.read(&path("/x")));
        let request = peer.next().unwrap();
        let following = scope.spawn(|| timed_out(hasty.read(&path("/hasty"))));
        leading.join().unwrap();
        following.join().unwrap();
        peer.next().unwrap();
        peer.answer(&request, &Reply::Value("x".into()));
        assert_eq!(patient.join().unwrap().unwrap(), "x");
    });
}

/// One thread waits for its watches, and with it others call: nobody needs a thread that reads.
#[test]
fn each_thread_is_told_of_its_own_watch() {
    let served = Served::new();
    let (client, writer) = (served.connect(), served.connect());
    let told = AtomicUsize::new(0);
    thread::scope(|scope| {
        for number in 0..16 {
            let (client, told) = (&client, &told);
            scope.spawn(move || {
                let node = path(format!("/w/{number}"));
                let mut watch = client.watch(&node).unwrap();
                loop {
                    watch.changed(Duration::MAX).unwrap().unwrap();
                    if client.read_opt(&node).unwrap().is_some_and(|value| value == "9") {
                        break;
                    }
                }
                told.fetch_add(1, Ordering::Relaxed);
            });
        }
        for round in 0..10 {
            for number in 0..16 {
                writer.write(&path(format!("/w/{number}")), round.to_string()).unwrap();
            }
        }
    });
    assert_eq!(told.into_inner(), 16);
}

/// More threads than may have transactions: each has its turn.
#[test]
fn transactions_take_turns() {
    let served = Served::new();
    let config = Config { transactions: 2, ..patient() };
    let (client, _proxy) = served.watched(xs_client::DomId::DOM0, config);
    let (open, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for number in 0..8 {
            let (client, open, most) = (&client, &open, &most);
            scope.spawn(move || {
                let node = path(format!("/t/{number}"));
                client
                    .transaction(|tx| {
                        most.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        let done = tx.write(&node, "1");
                        open.fetch_sub(1, Ordering::SeqCst);
                        done
                    })
                    .unwrap();
            });
        }
    });
    assert!(most.into_inner() <= 2);
    assert_eq!(client.directory(&path("/t")).unwrap().len(), 8);
}
