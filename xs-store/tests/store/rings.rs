//! Guests on rings: what one of them can do to another.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixDatagram;
use tokio::time::sleep;
use xs_proto::Op;
use xs_proto::ring::{ClientEnd, Mapping};
use xs_store::{Store, TestDomains};

use crate::peer::{Peer, request};

/// How long a guest waits for an answer; it is not real.
const A_MOMENT: Duration = Duration::from_millis(100);

/// A guest that is introduced.
struct Guest {
    domid: u32,
    end: ClientEnd<Mapping>,
    events: UnixDatagram,
    input: BytesMut,
}

impl Guest {
    async fn new(dom0: &mut Peer, folder: &Path, domid: u32) -> Self {
        fs::write(folder.join(format!("dom{domid}")), "").unwrap();
        let page = folder.join(format!("ring{domid}"));
        fs::write(&page, [0; 4096]).unwrap();
        dom0.ok(Op::INTRODUCE, &format!("{domid}|1|5|")).await;
        sleep(A_MOMENT).await;
        let file = File::options().read(true).write(true).open(page).unwrap();
        let end = ClientEnd::attach(Mapping::new(file).unwrap()).unwrap();
        let events = UnixDatagram::unbound().unwrap();
        events.connect(folder.join("evtchn")).unwrap();
        Self { domid, end, events, input: BytesMut::new() }
    }

    /// Puts a request into the ring.
    async fn ask(&mut self, op: Op, text: &str) {
        let bytes = request(0, op, text);
        let mut sent = 0;
        while sent < bytes.len() {
            sent += self.end.send(&bytes[sent..]).unwrap();
            self.notify().await;
        }
    }

    async fn notify(&mut self) {
        self.events.send(format!("P{}", self.domid).as_bytes()).await.unwrap();
        sleep(Duration::from_millis(1)).await;
    }

    /// The operations of the messages that come within a moment.
    async fn receive(&mut self) -> Vec<Op> {
        let mut received = Vec::new();
        for _ in 0..A_MOMENT.as_millis() {
            while self.end.receive(&mut self.input, 1024).unwrap() > 0 {}
            self.notify().await;
            while let Some(head) = self.input.first_chunk::<16>() {
                let word =
                    |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
                let (op, length) = (Op(word(0)), 16 + word(12) as usize);
                if self.input.len() < length {
                    break;
                }
                received.push(op);
                let _ = self.input.split_to(length);
            }
        }
        received
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_cannot_end_the_connection_of_another_by_events() {
    const CHANGES: usize = 2500;
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new();
    let domains = TestDomains::new(&store, folder.path()).unwrap();
    let serving = tokio::spawn(domains.serve());
    let mut dom0 = Peer::of(&store, 0);
    let mut source = Guest::new(&mut dom0, folder.path(), 7).await;
    let mut victim = Guest::new(&mut dom0, folder.path(), 8).await;
    dom0.ok(Op::MKDIR, "/local/domain/7|").await;
    dom0.ok(Op::SET_PERMS, "/local/domain/7|n7|r8|").await;
    victim.ask(Op::WATCH, "/local/domain/7|t|").await;
    assert_eq!(victim.receive().await, [Op::WATCH, Op::WATCH_EVENT]);

    let mut answered = 0;
    for number in 0..CHANGES {
        let (op, id) = if number % 2 == 0 { (Op::MKDIR, number) } else { (Op::RM, number - 1) };
        source.ask(op, &format!("{id:04}{}|", "n".repeat(900))).await;
        if source.receive().await != [op] {
            break;
        }
        answered += 1;
    }
    assert!(answered < 50, "{answered} changes for a guest that has read nothing");
    // It is none the worse for it, and when it reads the source goes on.
    assert_eq!(dom0.ask(Op::IS_DOMAIN_INTRODUCED, "8|").await, "T|");
    let events = victim.receive().await;
    assert!(!events.is_empty() && events.iter().all(|op| *op == Op::WATCH_EVENT));
    assert_eq!(source.receive().await.len(), 1);
    victim.ask(Op::READ, "/local/domain/7|").await;
    assert!(victim.receive().await.contains(&Op::READ));
    serving.abort();
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_takes_no_events_keeps_none_from_another() {
    /// More than the queue of a socket takes.
    const UNTAKEN: usize = 300;
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new();
    let domains = TestDomains::new(&store, folder.path()).unwrap();
    let serving = tokio::spawn(domains.serve());
    let mut dom0 = Peer::of(&store, 0);
    let mut deaf = Guest::new(&mut dom0, folder.path(), 7).await;
    let mut other = Guest::new(&mut dom0, folder.path(), 8).await;
    let _untaken = UnixDatagram::bind(folder.path().join("guest.7")).unwrap();
    let taken = UnixDatagram::bind(folder.path().join("guest.8")).unwrap();
    dom0.ok(Op::WRITE, "/news||").await;
    dom0.ok(Op::SET_PERMS, "/news|r0|").await;
    for guest in [&mut deaf, &mut other] {
        guest.ask(Op::WATCH, "/news|t|").await;
    }
    for _ in 0..UNTAKEN {
        deaf.ask(Op::READ, "/|").await;
        while deaf.end.receive(&mut deaf.input, 1024).unwrap() > 0 {}
    }
    let mut event = [0; 8];
    while taken.try_recv(&mut event).is_ok() {}
    // Both are told in one turn, the deaf one first.
    dom0.ok(Op::WRITE, "/news||").await;
    let told = tokio::time::timeout(A_MOMENT, taken.recv(&mut event)).await;
    assert_eq!(told.expect("it is told of the event").unwrap(), 1);
    serving.abort();
}

/// Guests that always have one more request, beside one that asks once, and one that is destroyed.
#[tokio::test(start_paused = true)]
async fn guests_that_never_stop_asking_keep_nobody_from_his_turn() {
    const TURNS: usize = 10_000;
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new();
    let serving = tokio::spawn(TestDomains::new(&store, folder.path()).unwrap().serve());
    let mut dom0 = Peer::of(&store, 0);
    let mut other = Guest::new(&mut dom0, folder.path(), 9).await;
    Guest::new(&mut dom0, folder.path(), 10).await;
    let mut guests = Vec::new();
    for domid in [7, 8] {
        let mut guest = Guest::new(&mut dom0, folder.path(), domid).await;
        guest.ask(Op::READ, "/|").await;
        guests.push(guest);
    }
    // From here on the time stands still, as somebody always has something to do.
    let mut floods = Vec::new();
    for mut guest in guests {
        floods.push(tokio::spawn(async move {
            let (requests, mut sent) = (request(0, Op::READ, "/|").repeat(20), 0);
            guest.events.try_send(format!("P{}", guest.domid).as_bytes()).unwrap();
            loop {
                // Whole requests, whatever there is room for.
                sent = (sent + guest.end.send(&requests[sent..]).unwrap()) % requests.len();
                while guest.end.receive(&mut guest.input, 1024).unwrap() > 0 {}
                guest.input.clear();
                tokio::task::yield_now().await;
            }
        }));
    }
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    fs::remove_file(folder.path().join("dom10")).unwrap();
    other.end.send(&request(0, Op::READ, "/tool/xenstored|")).unwrap();
    for event in ["V", "P9"] {
        other.events.try_send(event.as_bytes()).unwrap();
    }
    let mut turns = 0;
    while other.end.receive(&mut other.input, 1024).unwrap() == 0 {
        turns += 1;
        assert!(turns < TURNS, "it gets no answer");
        tokio::task::yield_now().await;
    }
    assert_eq!(dom0.ask(Op::IS_DOMAIN_INTRODUCED, "10|").await, "F|", "its end is noticed");
    assert!(floods.iter().all(|flood| !flood.is_finished()));
    serving.abort();
}

#[tokio::test(start_paused = true)]
async fn a_domain_that_was_introduced_and_released_at_once_is_not_served() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new();
    let serving = tokio::spawn(TestDomains::new(&store, folder.path()).unwrap().serve());
    let mut dom0 = Peer::of(&store, 0);
    let mut guest = Guest::new(&mut dom0, folder.path(), 7).await;
    dom0.ok(Op::RELEASE, "7|").await;
    fs::write(folder.path().join("ring7"), [0; 4096]).unwrap();
    let both = [request(0, Op::INTRODUCE, "7|1|5|"), request(0, Op::RELEASE, "7|")].concat();
    dom0.stream.write_all(&both).await.unwrap();
    for op in [Op::INTRODUCE, Op::RELEASE] {
        assert_eq!(dom0.receive().await.unwrap(), (op, "OK|".to_owned()));
    }
    guest.ask(Op::READ, "/tool/xenstored|").await;
    assert!(guest.receive().await.is_empty());
    assert_eq!(dom0.ask(Op::CONTROL, "quota|7|").await, "!ENOENT");
    serving.abort();
}
