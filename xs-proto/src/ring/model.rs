//! Both ends at once, in every order: loom runs each model with all interleavings, and with every
//! value that the orderings of the atomics allow a load to return.
//!
//! ```sh
//! RUSTFLAGS="--cfg loom" cargo test -p xs-proto --release --lib ring::model
//! ```
//!
//! (with a target folder of its own, since the flag builds everything anew). The rings have 4
//! bytes then, so that a few bytes fill them and wrap. A model that waits for a notification
//! which never comes is reported as a deadlock.

use std::vec::Vec;

use loom::sync::{Arc, Notify};
use loom::thread;

use super::page::{AtomicU8, AtomicU32, Ordering, fence};
use super::{ClientEnd, Page, RING_SIZE, RingError, RingFault, ServerEnd};
use crate::Features;

/// How often a thread may be interrupted where it did not have to wait. It is enough for every
/// ordering of the ring that is made weaker, and every fence that is left out, to fail a model.
const PREEMPTIONS: usize = 3;

fn explore(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(model);
}

/// What is the same for both ends.
trait End: Send + 'static {
    fn send(&mut self, bytes: &[u8]) -> Result<usize, RingError>;
    fn receive(&mut self, into: &mut Vec<u8>, max: usize) -> Result<usize, RingError>;
    fn has_input(&mut self) -> Result<bool, RingError>;
    fn has_room(&mut self) -> Result<bool, RingError>;
    fn take_notify(&mut self) -> bool;
}

macro_rules! end {
    ($end:ident) => {
        impl End for $end<Arc<Page>> {
            fn send(&mut self, bytes: &[u8]) -> Result<usize, RingError> {
                self.send(bytes)
            }
            fn receive(&mut self, into: &mut Vec<u8>, max: usize) -> Result<usize, RingError> {
                self.receive(into, max)
            }
            fn has_input(&mut self) -> Result<bool, RingError> {
                self.has_input()
            }
            fn has_room(&mut self) -> Result<bool, RingError> {
                self.has_room()
            }
            fn take_notify(&mut self) -> bool {
                self.take_notify()
            }
        }
    };
}

end!(ClientEnd);
end!(ServerEnd);

fn ends(page: &Arc<Page>) -> (ClientEnd<Arc<Page>>, ServerEnd<Arc<Page>>) {
    let server = ServerEnd::new(page.clone(), Features::RECONNECT);
    (ClientEnd::attach(page.clone()).unwrap(), server)
}

/// The event channel, seen by one end: its own event, and the peer's.
#[derive(Clone)]
struct Events {
    own: Arc<Notify>,
    peer: Arc<Notify>,
}

fn events() -> (Events, Events) {
    let (one, other) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    (Events { own: one.clone(), peer: other.clone() }, Events { own: other, peer: one })
}

/// The writing half of the loop that the head of the module describes.
fn write(end: &mut impl End, events: &Events, mut bytes: &[u8]) {
    loop {
        bytes = &bytes[end.send(bytes).unwrap()..];
        if end.take_notify() {
            events.peer.notify();
        }
        if bytes.is_empty() {
            return;
        }
        if !end.has_room().unwrap() {
            events.own.wait();
        }
    }
}

/// The reading half.
fn read(end: &mut impl End, events: &Events, count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let missing = count - bytes.len();
        end.receive(&mut bytes, missing).unwrap();
        if end.take_notify() {
            events.peer.notify();
        }
        if bytes.len() == count {
            return bytes;
        }
        if !end.has_input().unwrap() {
            events.own.wait();
        }
    }
}

/// More than a ring, so that it fills up, and wraps.
const BYTES: [u8; 6] = [1, 2, 3, 4, 5, 6];

/// Without notifications: only the indexes order what the threads do.
fn arrive_by_polling(mut writer: impl End, mut reader: impl End) {
    let writer = thread::spawn(move || {
        let mut bytes = &BYTES[..];
        while !bytes.is_empty() {
            match writer.send(bytes).unwrap() {
                0 => thread::yield_now(),
                sent => bytes = &bytes[sent..],
            }
        }
    });
    let mut received = Vec::new();
    while received.len() < BYTES.len() {
        if reader.receive(&mut received, BYTES.len()).unwrap() == 0 {
            thread::yield_now();
        }
    }
    assert_eq!(received, BYTES);
    writer.join().unwrap();
}

#[test]
fn requests_arrive_intact() {
    explore(|| {
        let (client, server) = ends(&Arc::new(Page::new()));
        arrive_by_polling(client, server);
    });
}

#[test]
fn replies_arrive_intact() {
    explore(|| {
        let (client, server) = ends(&Arc::new(Page::new()));
        arrive_by_polling(server, client);
    });
}

/// Both directions, both ends asleep when there is nothing to do.
#[test]
fn both_ends_sleep_and_wake_up() {
    explore(|| {
        let (mut client, mut server) = ends(&Arc::new(Page::new()));
        let (at_client, at_server) = events();
        let server = thread::spawn(move || {
            let request = read(&mut server, &at_server, 5);
            write(&mut server, &at_server, &request);
        });
        write(&mut client, &at_client, &BYTES[..5]);
        assert_eq!(read(&mut client, &at_client, 5), BYTES[..5]);
        server.join().unwrap();
    });
}

/// One ring, as a peer uses it that is not one of our ends.
struct Bare {
    page: Arc<Page>,
    ring: fn(&Page) -> (&[AtomicU8; RING_SIZE], &AtomicU32, &AtomicU32),
}

impl Bare {
    fn requests(page: &Arc<Page>) -> Self {
        Self { page: page.clone(), ring: |page| (&page.req, &page.req_prod, &page.req_cons) }
    }

    fn replies(page: &Arc<Page>) -> Self {
        Self { page: page.clone(), ring: |page| (&page.rsp, &page.rsp_prod, &page.rsp_cons) }
    }

    /// Writes one byte after the other, and notifies only if the ring had been empty.
    fn write_lazily(&self, events: &Events, count: u32) {
        let (bytes, prod, cons) = (self.ring)(&self.page);
        for index in 0..count {
            while index - cons.load(Ordering::Acquire) == RING_SIZE as u32 {
                events.own.wait();
            }
            bytes[index as usize % RING_SIZE].store(BYTES[index as usize], Ordering::Relaxed);
            prod.store(index + 1, Ordering::Release);
            fence(Ordering::SeqCst);
            if cons.load(Ordering::Relaxed) == index {
                events.peer.notify();
            }
        }
    }

    /// Reads one byte after the other, and notifies only if the ring had been full.
    fn read_lazily(&self, events: &Events, count: u32) {
        let (bytes, prod, cons) = (self.ring)(&self.page);
        for index in 0..count {
            while prod.load(Ordering::Acquire) == index {
                events.own.wait();
            }
            let byte = bytes[index as usize % RING_SIZE].load(Ordering::Relaxed);
            assert_eq!(byte, BYTES[index as usize]);
            cons.store(index + 1, Ordering::Release);
            fence(Ordering::SeqCst);
            if prod.load(Ordering::Relaxed) - index == RING_SIZE as u32 {
                events.peer.notify();
            }
        }
    }
}

fn wakes_up_for_input(mut reader: impl End, writer: Bare) {
    let (at_reader, at_writer) = events();
    let writer = thread::spawn(move || writer.write_lazily(&at_writer, 3));
    assert_eq!(read(&mut reader, &at_reader, 3), BYTES[..3]);
    writer.join().unwrap();
}

fn wakes_up_for_room(mut writer: impl End, reader: Bare) {
    let (at_writer, at_reader) = events();
    let reader = thread::spawn(move || reader.read_lazily(&at_reader, 6));
    write(&mut writer, &at_writer, &BYTES);
    reader.join().unwrap();
}

#[test]
fn a_client_wakes_up_for_a_lazy_server() {
    explore(|| {
        let page = Arc::new(Page::new());
        wakes_up_for_input(ends(&page).0, Bare::replies(&page));
    });
    explore(|| {
        let page = Arc::new(Page::new());
        wakes_up_for_room(ends(&page).0, Bare::requests(&page));
    });
}

#[test]
fn a_server_wakes_up_for_a_lazy_client() {
    explore(|| {
        let page = Arc::new(Page::new());
        wakes_up_for_input(ends(&page).1, Bare::requests(&page));
    });
    explore(|| {
        let page = Arc::new(Page::new());
        wakes_up_for_room(ends(&page).1, Bare::replies(&page));
    });
}

/// A client that begins anew in the middle of its requests: nothing from before comes after.
#[test]
fn a_reconnect_leaves_nothing_behind() {
    const OLD: u8 = 7;
    explore(|| {
        let (mut client, mut server) = ends(&Arc::new(Page::new()));
        let (at_client, at_server) = events();
        let server = thread::spawn(move || {
            // Talks nonsense until it has begun anew, and then echoes three bytes.
            let (mut request, mut anew) = (Vec::new(), false);
            loop {
                if server.wants_reconnect() {
                    request.clear();
                    server.reconnect();
                    anew = true;
                }
                let missing = 3 - request.len();
                server.receive(&mut request, missing).unwrap();
                if anew && request.len() == 3 {
                    assert_eq!(request, BYTES[..3]);
                    return write(&mut server, &at_server, &request);
                }
                if !anew {
                    server.send(&[OLD]).unwrap();
                }
                if server.take_notify() {
                    at_server.peer.notify();
                }
                if !server.has_input().unwrap() && !server.wants_reconnect() {
                    at_server.own.wait();
                }
            }
        });
        client.send(&[OLD, OLD]).unwrap();
        assert!(client.reconnect());
        at_client.peer.notify();
        while !client.is_connected().unwrap() {
            at_client.own.wait();
        }
        write(&mut client, &at_client, &BYTES[..3]);
        assert_eq!(read(&mut client, &at_client, 3), BYTES[..3]);
        server.join().unwrap();
    });
}

#[test]
fn what_was_sent_before_the_server_gave_up_is_received() {
    explore(|| {
        let (mut client, mut server) = ends(&Arc::new(Page::new()));
        let server = thread::spawn(move || {
            server.send(&BYTES[..2]).unwrap();
            server.fail(RingFault::PROTO);
        });
        let mut received = Vec::new();
        loop {
            match client.receive(&mut received, 2) {
                Ok(0) => thread::yield_now(),
                Ok(_) => {}
                Err(error) => break assert_eq!(error, RingError::Fault(RingFault::PROTO)),
            }
        }
        assert_eq!(received, BYTES[..2]);
        server.join().unwrap();
    });
}
