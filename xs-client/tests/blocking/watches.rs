//! Watches, and waiting for what the store says.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use xs_client::{DomId, Error, Op, Path, Reply, Request};

use crate::support::{LONG, Peer, SHORT, Served, path, patient};

#[test]
fn a_watch_tells_of_changes_of_another_connection() {
    let served = Served::new();
    let (client, writer) = (served.connect(), served.connect());
    let mut watch = client.watch(&path("/w")).unwrap();
    assert_eq!(watch.path(), &path("/w"));
    let initial = watch.changed(LONG).unwrap().unwrap();
    assert!(initial.paths.contains(&path("/w")));
    assert!(watch.changed(Duration::ZERO).unwrap().is_none());
    thread::scope(|scope| {
        let waiting = scope.spawn(|| watch.changed(LONG).unwrap().unwrap());
        writer.write(&path("/w/below"), "1").unwrap();
        assert!(waiting.join().unwrap().paths.contains(&path("/w/below")));
    });
    assert!(watch.changed(SHORT).unwrap().is_none());
}

/// One that takes no time takes what has come.
#[test]
fn a_look_without_waiting_takes_what_has_come() {
    let served = Served::new();
    let client = served.connect();
    let mut watch = client.watch(&path("/w")).unwrap();
    watch.changed(LONG).unwrap().unwrap();
    client.write(&path("/w"), "1").unwrap();
    // The event comes before or behind this reply, and is read with it or by the look.
    client.read(&path("/w")).unwrap();
    assert!(watch.changed(Duration::ZERO).unwrap().is_some());
}

#[test]
fn a_dropped_watch_is_removed_with_the_last_of_its_path() {
    let served = Served::new();
    let (client, proxy) = served.watched(DomId::DOM0, patient());
    let node = path("/w");
    let (one, mut two) = (client.watch(&node).unwrap(), client.watch(&node).unwrap());
    drop(one);
    client.write(&node, "1").unwrap();
    assert_eq!((proxy.count(Op::WATCH), proxy.count(Op::UNWATCH)), (1, 0));
    assert!(two.changed(LONG).unwrap().is_some());
    drop(two);
    client.write(&node, "1").unwrap();
    assert_eq!((proxy.count(Op::WATCH), proxy.count(Op::UNWATCH)), (1, 1));
    assert_eq!(client.stats().watches, 0);
}

#[test]
fn a_watch_with_a_depth_tells_of_nothing_deeper() {
    let served = Served::new();
    let client = served.connect();
    let mut watch = client.watch_depth(&path("/w"), 1).unwrap();
    watch.changed(LONG).unwrap().unwrap();
    client.write(&path("/w/a"), "1").unwrap();
    client.write(&path("/w/a/b"), "1").unwrap();
    let mut told = Vec::new();
    while let Some(changes) = watch.changed(SHORT).unwrap() {
        told.extend(changes.paths);
    }
    told.dedup();
    assert_eq!(told, [path("/w/a")]);
}

/// By hand, for what a store merges depends on time: the first event of the watch that takes the place of
/// many is also the only word that all of it was removed.
#[test]
fn the_first_event_of_a_watch_for_many_is_told_to_all() {
    const MANY: usize = 256;
    let (client, mut peer) = Peer::new(patient());
    let nodes: Vec<Path> = (0..MANY).map(|number| path(format!("/w/many/{number}"))).collect();
    thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let watches = nodes.iter().map(|node| client.watch(node).unwrap());
            let mut watches: Vec<_> = watches.collect();
            for watch in &mut watches {
                assert!(watch.changed(LONG).unwrap().is_some());
            }
            client.write(&path("/w/done"), "").unwrap();
            watches
        });
        for _ in 0..MANY {
            let request = peer.next().unwrap();
            peer.answer(&request, &Reply::Ok);
            peer.event(&request.payload);
        }
        let ancestor = peer.next().unwrap();
        assert_eq!((ancestor.op, &ancestor.payload[..8]), (Op::WATCH, &b"/w/many\0"[..]));
        let done = peer.next().unwrap();
        peer.answer(&done, &Reply::Ok);
        let mut watches = watching.join().unwrap();
        assert!(watches.iter_mut().all(|watch| watch.changed(Duration::ZERO).unwrap().is_none()));
        peer.answer(&ancestor, &Reply::Ok);
        peer.event(&ancestor.payload);
        for (watch, node) in watches.iter_mut().zip(&nodes) {
            let changes = watch.changed(LONG).unwrap().unwrap();
            assert_eq!(changes.paths.into_iter().collect::<Vec<_>>(), std::slice::from_ref(node));
        }
    });
}

#[test]
fn a_watch_that_the_store_refuses_fails() {
    let served = Served::new();
    served.store.introduce(DomId(1));
    let (guest, _proxy) = served.watched(DomId(1), patient());
    let watches: Result<Vec<_>, _> =
        (0..1000).map(|number| guest.watch(&path(format!("/w/{number}")))).collect();
    assert!(watches.unwrap_err().is_quota());
    // What the dropped watches left to be answered is no obstacle.
    guest.request(Request::GetDomainPath(DomId(1))).unwrap();
}

#[test]
fn a_wait_ends_when_the_store_says_so() {
    let served = Served::new();
    let (client, writer) = (served.connect(), served.connect());
    let (state, list) = (path("/state"), path("/list"));
    let found = thread::scope(|scope| {
        scope.spawn(|| {
            for value in ["1", "2", "3", "4"] {
                writer.write(&state, value).unwrap();
            }
            writer.write(&path("/list/0"), "").unwrap();
        });
        client.wait_for(LONG, |look| {
            let there = !look.directory(&list)?.is_empty();
            Ok::<_, Error>(look.read(&state)?.filter(|value| there && value == "4"))
        })
    });
    assert_eq!(found.unwrap(), "4");
    client.read(&state).unwrap();
    assert_eq!(client.stats().watches, 0, "no watch is left");
}

#[test]
fn what_is_read_no_more_is_watched_no_more() {
    let served = Served::new();
    let (client, proxy) = served.watched(DomId::DOM0, patient());
    let writer = served.connect();
    writer.write(&path("/which"), "a").unwrap();
    let mut looks = 0;
    let found = client.wait_for(LONG, |look| {
        looks += 1;
        let which = look.read(&path("/which"))?.unwrap();
        let value = look.read(&path(format!("/{}", String::from_utf8_lossy(&which))))?;
        match looks {
            1 => writer.write(&path("/which"), "b")?,
            _ if which == "b" && value.is_none() => writer.write(&path("/b"), "v")?,
            _ => {}
        }
        Ok::<_, Error>(value)
    });
    assert_eq!(found.unwrap(), "v");
    client.read(&path("/b")).unwrap();
    assert_eq!((proxy.count(Op::WATCH), proxy.count(Op::UNWATCH)), (3, 3));
}

#[test]
fn a_wait_in_vain_says_where_it_looked() {
    let served = Served::new();
    let client = served.connect();
    let error = client
        .wait_for(SHORT, |look| {
            look.directory(&path("/d"))?;
            look.read(&path("/never")).map(|value| value.map(drop))
        })
        .unwrap_err();
    assert_eq!(error.to_string(), "not satisfied within 20ms by what the store says at /d, /never");
    let fail = |_: &mut _| "//".parse::<Path>().map(Some).map_err(Error::from);
    assert!(matches!(client.wait_for(LONG, fail), Err(Error::Path(_))));
}

/// Two hundred devices in a loop of one's own: one descriptor, one queue, no thread, and no wake-up for nothing.
#[test]
fn many_paths_in_one_queue_behind_one_descriptor() {
    let served = Served::new();
    let (client, guest) = (served.connect(), served.connect());
    let state = |device: usize| path(format!("/local/domain/1/device/vbd/{device}/state"));
    let mut watches = client.watches();
    for device in 0..200 {
        watches.add(&state(device)).unwrap();
        watches.add(&state(device)).unwrap();
    }
    assert_eq!(watches.len(), 200);
    let readable = |timeout: Duration| {
        let timeout = Timespec::try_from(timeout).ok();
        poll(&mut [PollFd::new(&client, PollFlags::IN)], timeout.as_ref()).unwrap() == 1
    };
    let mut fired = BTreeSet::new();
    while fired.len() < 200 {
        match watches.changed(Duration::ZERO).unwrap() {
            Some(changes) => fired.extend(changes.paths),
            None => assert!(readable(LONG)),
        }
    }
    assert!(watches.changed(Duration::ZERO).unwrap().is_none() && !readable(SHORT));

    guest.write(&state(7), "3").unwrap();
    guest.write(&state(190), "3").unwrap();
    let mut seen = BTreeSet::new();
    while seen.len() < 2 {
        assert!(readable(LONG));
        while let Some(changes) = watches.changed(Duration::ZERO).unwrap() {
            seen.extend(changes.paths);
        }
    }
    assert_eq!(seen, BTreeSet::from([state(7), state(190)]));

    assert!(watches.remove(&state(7)) && !watches.remove(&state(7)));
    guest.write(&state(7), "4").unwrap();
    guest.write(&state(8), "4").unwrap();
    let changes = watches.changed(LONG).unwrap().unwrap();
    assert_eq!(changes.paths, BTreeSet::from([state(8)]));
    drop(served);
    while watches.changed(LONG).is_ok() {}
}
