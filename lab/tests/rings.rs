//! Our end of a guest's ring against the real daemons, and our own: much at once, and asleep in
//! between.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::path::Path as FsPath;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use lab::daemon::{Daemon, DaemonKind};
use lab::fakexen::{FakeXen, Ring};
use lab::xendev::{self, StoreProcess};
use tokio_util::codec::{Decoder, Encoder};
use xs_client::{Client, Config};
use xs_proto::ring::{RING_SIZE, RingError, RingFault};
use xs_proto::{
    Access, DomId, Features, HEADER_LEN, Header, Message, MessageCodec, Op, PAYLOAD_MAX, Path, Permission,
    Permissions, Request, TxId,
};

const GUEST: DomId = DomId(3);
const REQUESTS: u32 = 3000;
/// Requests in flight. C daemons stop reading at 20 unsent replies.
const WINDOW: usize = 16;
/// Who sleeps for so long has missed an event, or the daemon has.
const PATIENCE: Duration = Duration::from_secs(10);

/// A guest as it should be: it sleeps when there is nothing to do.
struct Guest {
    ring: Ring,
    events: UnixDatagram,
    input: BytesMut,
    output: BytesMut,
    last_id: u32,
}

impl Guest {
    /// The guest of a domain that is introduced.
    fn new(xen: &FakeXen) -> Self {
        let (events, ring) = (xen.events(GUEST).unwrap(), xen.ring(GUEST).unwrap());
        Self { ring, events, input: BytesMut::new(), output: BytesMut::new(), last_id: 0 }
    }

    /// Queues a request; returns its id.
    fn ask(&mut self, op: Op, payload: impl Into<Bytes>) -> u32 {
        self.last_id += 1;
        let message = Message { op, req_id: self.last_id, tx_id: TxId::NONE, payload: payload.into() };
        MessageCodec::default().encode(message, &mut self.output).unwrap();
        self.last_id
    }

    /// The next message from the daemon.
    fn receive(&mut self) -> Message {
        loop {
            if let Some(message) = MessageCodec::default().decode(&mut self.input).unwrap() {
                return message;
            }
            self.turn();
        }
    }

    /// Asks, and returns the operation and payload of the answer.
    fn call(&mut self, op: Op, payload: &'static [u8]) -> (Op, Bytes) {
        let req_id = self.ask(op, payload);
        let reply = self.receive();
        assert_eq!(reply.req_id, req_id);
        (reply.op, reply.payload)
    }

    /// Moves what can be moved, and sleeps if nothing came in and nothing else can be done.
    fn turn(&mut self) {
        self.clear_events();
        let sent = self.ring.send(&self.output).unwrap();
        self.output.advance(sent);
        let received = self.ring.receive(&mut self.input).unwrap();
        let end = self.ring.end();
        let can_send = !self.output.is_empty() && end.has_room().unwrap();
        if received == 0 && !can_send && !end.has_input().unwrap() {
            self.sleep();
        }
    }

    fn clear_events(&self) {
        self.events.set_nonblocking(true).unwrap();
        while self.events.recv(&mut [0; 8]).is_ok() {}
    }

    fn sleep(&self) {
        self.events.set_nonblocking(false).unwrap();
        self.events.set_read_timeout(Some(PATIENCE)).unwrap();
        match self.events.recv(&mut [0; 8]) {
            Err(error) if error.kind() != ErrorKind::Interrupted => panic!("no event: {error}"),
            _ => {}
        }
    }
}

/// Pipelined reads, writes and listings of random sizes, and every answer the right one. `big` is
/// the longest value that can be read, `refusal` what the daemon says to a guest's value of 3000
/// bytes.
async fn answers_everything(socket: &FsPath, xen: &FakeXen, big: usize, refusal: &str) {
    let admin = Client::connect_unix(socket, Config::default()).await.unwrap();
    xen.create(GUEST).unwrap();
    admin.request(Request::Introduce { domid: GUEST, gfn: 1, evtchn: 5 }).await.unwrap();
    let mut guest = Guest::new(xen);
    let open = |domid, access| Permissions::new(vec![Permission { domid, access }]).unwrap();
    let home = Path::new(format!("/local/domain/{GUEST}")).unwrap();
    admin.mkdir(&home).await.unwrap();
    admin.set_perms(&home, open(GUEST, Access::None)).await.unwrap();
    let big = Bytes::from(vec![b'b'; big]);
    let path = Path::new("/big").unwrap();
    admin.write(&path, big.clone()).await.unwrap();
    admin.set_perms(&path, open(DomId::DOM0, Access::Read)).await.unwrap();
    let path = Path::new("/long").unwrap();
    let mut listing = String::new();
    for child in 0..30 {
        let name = format!("{child:02}{}", "n".repeat(98));
        admin.mkdir(&path.join(&name).unwrap()).await.unwrap();
        listing = listing + &name + "\0";
    }
    admin.set_perms(&path, open(DomId::DOM0, Access::Read)).await.unwrap();
    let listing = Bytes::from(listing);

    let mut random = fastrand::Rng::with_seed(7);
    let mut values = [const { Bytes::new() }; 8];
    for node in 0..values.len() {
        assert_eq!(guest.ask(Op::WRITE, format!("k{node}\0")), node as u32 + 1);
        assert_eq!(guest.receive().op, Op::WRITE);
    }
    let done = Bytes::from_static(b"OK\0");
    let mut expected = VecDeque::new();
    for _ in 0..REQUESTS {
        let node = random.usize(0..values.len());
        let (op, payload, answer) = match random.u32(0..8) {
            0 => (Op::READ, "/big\0".into(), (Op::READ, big.clone())),
            1 => (Op::DIRECTORY, "/long\0".into(), (Op::DIRECTORY, listing.clone())),
            2 => {
                let payload = format!("k{node}\0{}", "v".repeat(3000));
                (Op::WRITE, payload, (Op::ERROR, format!("{refusal}\0").into()))
            }
            3 | 4 => (Op::READ, format!("k{node}\0"), (Op::READ, values[node].clone())),
            _ => {
                let value = random.alphanumeric().to_string().repeat(random.usize(0..=2000));
                values[node] = value.clone().into();
                (Op::WRITE, format!("k{node}\0{value}"), (Op::WRITE, done.clone()))
            }
        };
        expected.push_back((guest.ask(op, payload), answer));
        if expected.len() == WINDOW {
            check(&mut guest, &mut expected);
        }
    }
    while !expected.is_empty() {
        check(&mut guest, &mut expected);
    }
}

fn check(guest: &mut Guest, expected: &mut VecDeque<(u32, (Op, Bytes))>) {
    let reply = guest.receive();
    assert_eq!(Some((reply.req_id, (reply.op, reply.payload))), expected.pop_front());
}

#[tokio::test]
async fn xenstored_answers_everything() {
    let daemon = Daemon::start(DaemonKind::Xenstored).unwrap();
    answers_everything(daemon.socket(), &daemon.hypervisor(), 3000, "ENOSPC").await;
}

/// Nobody writes a value of more than 2048 bytes there.
#[tokio::test]
async fn oxenstored_answers_everything() {
    let daemon = Daemon::start(DaemonKind::Oxenstored).unwrap();
    answers_everything(daemon.socket(), &daemon.hypervisor(), 2048, "E2BIG").await;
}

#[tokio::test]
async fn our_store_answers_everything() {
    let store = StoreProcess::start_with_domains(&xendev::build(false).unwrap()).unwrap();
    answers_everything(&store.socket(), &FakeXen::at(store.state_dir()), 3000, "ENOSPC").await;
}

#[test]
fn oxenstored_begins_anew_with_a_guest_that_asks() {
    let daemon = Daemon::start(DaemonKind::Oxenstored).unwrap();
    daemon.create_domain(GUEST).unwrap();
    let mut guest = Guest::new(&daemon.hypervisor());
    assert_eq!(guest.ring.end().server_features(), Features::RECONNECT);
    assert_eq!(guest.call(Op::TRANSACTION_START, b"\0").1, "1\0");
    assert_eq!(guest.call(Op::TRANSACTION_START, b"\0").1, "2\0");
    assert_eq!(guest.call(Op::WATCH, b"/none\0token\0").1, "OK\0");
    assert_eq!(guest.receive().op, Op::WATCH_EVENT);
    // A header without its payload, and answers that nobody reads.
    for _ in 0..10 {
        guest.ask(Op::GET_DOMAIN_PATH, "0\0");
    }
    Header { op: Op::READ, req_id: 99, tx_id: TxId::NONE, len: 8 }.encode(&mut guest.output);
    assert_eq!(guest.ring.send(&guest.output).unwrap(), guest.output.len());

    guest.output.clear();
    assert!(guest.ring.end().reconnect());
    assert!(guest.ring.end().take_notify());
    guest.ring.notify().unwrap();
    while !guest.ring.end().is_connected().unwrap() {
        guest.sleep();
    }
    assert_eq!(guest.call(Op::TRANSACTION_START, b"\0").1, "1\0");
    assert_eq!(guest.call(Op::UNWATCH, b"/none\0token\0"), (Op::ERROR, "ENOENT\0".into()));
}

#[test]
fn xenstored_tells_a_guest_why_it_gives_up() {
    let daemon = Daemon::start(DaemonKind::Xenstored).unwrap();
    daemon.create_domain(GUEST).unwrap();
    let mut guest = Guest::new(&daemon.hypervisor());
    assert_eq!(guest.ring.end().server_features(), Features::NONE);
    assert!(!guest.ring.end().reconnect());
    assert_eq!(guest.call(Op::GET_DOMAIN_PATH, b"0\0").1, "/local/domain/0\0");
    let len = PAYLOAD_MAX as u32 + 1;
    Header { op: Op::READ, req_id: 1, tx_id: TxId::NONE, len }.encode(&mut guest.output);
    assert_eq!(guest.ring.send(&guest.output).unwrap(), HEADER_LEN);
    // It says so in the page, and raises no event.
    let begun = Instant::now();
    let error = loop {
        match guest.ring.end().receive(&mut guest.input, RING_SIZE) {
            Ok(_) => assert!(begun.elapsed() < PATIENCE, "nothing in the page"),
            Err(error) => break error,
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    assert_eq!(error, RingError::Fault(RingFault::PROTO));
}
