//! Random requests to Debian's C daemon and to the embedded store side by side: each reply and
//! each event must be the same.
//!
//! The cases of the conformance file are what somebody thought of; this finds the rest. What
//! is known to differ between 4.17, which Debian has, and 4.22, which the store follows, is set
//! alike or left out: quotas, and who may know of ended domains by default.

use bytes::Bytes;
use fastrand::Rng;
use xs_proto::{DomId, Op, TxId};
use xs_store::Store;

use super::line::{Conn, Line};
use crate::daemon::{Daemon, DaemonKind};

/// Two privileged connections and two guests.
const GUESTS: [DomId; 2] = [DomId(7), DomId(8)];
const CONNS: usize = 4;

/// Quotas with which the store allows what 4.17 does: reaching one was no excess there, for some
/// not even one more, and the header of a node was 8 bytes larger.
const QUOTAS: [&str; 4] =
    ["watches\0130\0", "transactions\012\0", "node-permissions\06\0", "node-size\02041\0"];

/// A request of one of the connections.
#[derive(Clone, Debug)]
struct Ask {
    conn: usize,
    op: Op,
    tx: u32,
    payload: Bytes,
}

/// The operation and payload of a reply, and the events that each connection has got by then.
type Answer = (Op, Bytes, Vec<Vec<Bytes>>);

/// One of the two worlds.
struct World {
    conns: Vec<Conn>,
}

impl World {
    async fn daemon(daemon: &Daemon) -> Self {
        let mut conns = Vec::new();
        for _ in 0..2 {
            conns.push(Conn::new(Line::to_socket(daemon.socket()).await.unwrap()));
        }
        for domid in GUESTS {
            conns.push(Conn::new(Line::Ring(daemon.hypervisor().ring(domid).unwrap())));
        }
        Self { conns }
    }

    fn store(store: &Store) -> Self {
        let domids = [DomId::DOM0, DomId::DOM0].into_iter().chain(GUESTS);
        let conns = domids.map(|domid| Conn::new(Line::Stream(Box::new(store.connect(domid)))));
        Self { conns: conns.collect() }
    }

    async fn ask(&mut self, ask: &Ask) -> Answer {
        let reply = self.conns[ask.conn].call(ask.op, &ask.payload, TxId(ask.tx), None).await;
        let reply = reply.unwrap_or_else(|deviation| panic!("{ask:?}: {deviation}"));
        let mut events = Vec::new();
        for conn in &mut self.conns {
            conn.barrier().await.unwrap_or_else(|deviation| panic!("{ask:?}: {deviation}"));
            events.push(std::mem::take(&mut conn.events));
        }
        (reply.op, reply.payload, events)
    }
}

/// Makes requests that often hit something: few names, few tokens, transactions that are open.
struct Script {
    rng: Rng,
    open: [Vec<u32>; CONNS],
}

impl Script {
    fn path(&mut self) -> String {
        let mut path = self.pick(&["/t", "/t/a", "/local/domain/7", "/local/domain/8", "x", "/"]).to_owned();
        for _ in 0..self.rng.u8(0..3) {
            let name = self.pick(&["a", "b", "c"]);
            path = if path == "/" { format!("/t/{name}") } else { format!("{path}/{name}") };
        }
        path
    }

    fn pick(&mut self, texts: &[&'static str]) -> &'static str {
        texts[self.rng.usize(0..texts.len())]
    }

    fn list(&mut self) -> String {
        let owner = self.pick(&["0", "0", "7", "8", "9"]);
        let mut list = format!("{}{owner}\0", self.pick(&["n", "r", "w", "b"]));
        for _ in 0..self.rng.u8(0..3) {
            list += self.pick(&["r7\0", "w7\0", "b7\0", "n7\0", "r8\0", "b8\0", "n8\0", "r9\0"]);
        }
        list
    }

    fn next(&mut self) -> Ask {
        let conn = self.rng.usize(0..CONNS);
        let path = self.path();
        let token = self.pick(&["t", "u"]);
        let tx = match &self.open[conn][..] {
            open if !open.is_empty() && self.rng.u8(0..3) > 0 => open[self.rng.usize(0..open.len())],
            _ => 0,
        };
        let (op, tx, payload) = match self.rng.u8(0..100) {
            0..10 => (Op::READ, tx, format!("{path}\0")),
            10..20 => (Op::DIRECTORY, tx, format!("{path}\0")),
            20..25 => (Op::GET_PERMS, tx, format!("{path}\0")),
            25..45 => (Op::WRITE, tx, format!("{path}\0{}", self.rng.u8(0..3))),
            45..55 => (Op::MKDIR, tx, format!("{path}\0")),
            55..65 => (Op::RM, tx, format!("{path}\0")),
            65..75 => (Op::SET_PERMS, tx, format!("{path}\0{}", self.list())),
            75..83 => (Op::WATCH, 0, format!("{path}\0{token}\0")),
            83..86 => (Op::UNWATCH, 0, format!("{path}\0{token}\0")),
            86 => (Op::RESET_WATCHES, 0, "\0".to_owned()),
            87..93 if self.open[conn].len() < 3 => (Op::TRANSACTION_START, 0, "\0".to_owned()),
            _ if tx != 0 => (Op::TRANSACTION_END, tx, self.pick(&["T\0", "T\0", "T\0", "F\0"]).to_owned()),
            _ => (Op::READ, 0, format!("{path}\0")),
        };
        Ask { conn, op, tx, payload: payload.into() }
    }

    /// Learns which transactions are open.
    fn note(&mut self, ask: &Ask, op: Op, payload: &Bytes) {
        let open = &mut self.open[ask.conn];
        match ask.op {
            Op::TRANSACTION_START if op != Op::ERROR => {
                let text = std::str::from_utf8(payload).unwrap();
                open.push(text.trim_end_matches('\0').parse().unwrap());
            }
            Op::TRANSACTION_END => open.retain(|tx| *tx != ask.tx),
            Op::RESET_WATCHES => open.clear(),
            _ => {}
        }
    }
}

/// How the worlds differ in their answers to a request.
struct Difference {
    /// The request, by its number.
    at: usize,
    daemon: Answer,
    store: Answer,
}

/// Asks both, until they differ or `next` has no more; it is told the last request and answer.
async fn compare(mut next: impl FnMut(Option<(&Ask, &Answer)>) -> Option<Ask>) -> Option<Difference> {
    let process = Daemon::start(DaemonKind::Xenstored).unwrap();
    let store = Store::new();
    for domid in GUESTS {
        process.create_domain(domid).unwrap();
        store.introduce(domid);
    }
    let (mut daemon, mut embedded) = (World::daemon(&process).await, World::store(&store));
    for quota in QUOTAS {
        let ask = Ask { conn: 0, op: Op::SET_QUOTA, tx: 0, payload: quota.into() };
        assert_eq!(embedded.ask(&ask).await.0, Op::SET_QUOTA);
    }
    for domid in GUESTS {
        let home = format!("/local/domain/{domid}\0");
        for (op, payload) in [(Op::MKDIR, home.clone()), (Op::SET_PERMS, format!("{home}n{domid}\0"))] {
            let ask = Ask { conn: 0, op, tx: 0, payload: payload.into() };
            daemon.ask(&ask).await;
            embedded.ask(&ask).await;
        }
    }
    let mut last: Option<(Ask, Answer)> = None;
    for at in 0.. {
        let ask = next(last.as_ref().map(|(ask, answer)| (ask, answer)))?;
        let (daemon, store) = (daemon.ask(&ask).await, embedded.ask(&ask).await);
        if daemon != store {
            return Some(Difference { at, daemon, store });
        }
        last = Some((ask, daemon));
    }
    None
}

/// Leaves out whatever does not matter for the difference, in ever smaller pieces.
async fn shrink(mut asks: Vec<Ask>, mut difference: Difference) -> (Vec<Ask>, Difference) {
    let mut piece = asks.len() / 2;
    while piece > 0 {
        let mut from = 0;
        while from < asks.len() {
            let mut fewer = asks.clone();
            fewer.drain(from..asks.len().min(from + piece));
            let mut rest = fewer.clone().into_iter();
            match compare(|_| rest.next()).await {
                Some(found) => {
                    fewer.truncate(found.at + 1);
                    (asks, difference) = (fewer, found);
                }
                None => from += piece,
            }
        }
        piece /= 2;
    }
    (asks, difference)
}

#[tokio::test]
async fn the_store_answers_like_the_daemon() {
    let setting = |name, default| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let (seed, requests) = (setting("DIFFERENTIAL_SEED", 1), setting("DIFFERENTIAL_REQUESTS", 1000));
    let mut script = Script { rng: Rng::with_seed(seed), open: Default::default() };
    let mut asks: Vec<Ask> = Vec::new();
    let difference = compare(|last| {
        if let Some((ask, (op, payload, _))) = last {
            script.note(ask, *op, payload);
        }
        asks.push(script.next());
        (asks.len() as u64 <= requests).then(|| asks[asks.len() - 1].clone())
    });
    if let Some(difference) = difference.await {
        let (asks, Difference { daemon, store, .. }) = shrink(asks, difference).await;
        let told: Vec<_> = asks.iter().map(|ask| format!("{ask:?}")).collect();
        panic!("seed {seed}: after\n{}\nthe daemon: {daemon:?}\nthe store: {store:?}", told.join("\n"));
    }
}
