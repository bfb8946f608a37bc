//! Random requests to Debian's C daemon and to the embedded store side by side: each reply and
//! each event must be the same.
//!
//! The cases of the conformance file are what somebody thought of; this finds the rest. What
//! is known to differ between 4.17, which Debian has, and 4.22, which the store follows, is set
//! alike or left out: quotas, and who may know of ended domains by default.
//!
//! `DIFFERENTIAL_SEED` and `DIFFERENTIAL_REQUESTS` in the environment choose another script than
//! the one that is always tried. A difference is told with the shortest script that shows it.

use bytes::Bytes;
use fastrand::Rng;
use xs_proto::{DomId, Message, Op, TxId};
use xs_store::Store;

use super::line::{Conn, Line};
use crate::daemon::{Daemon, DaemonKind};

/// Two privileged connections and two guests.
const GUESTS: [DomId; 2] = [DomId(7), DomId(8)];
const FIRST_GUEST: usize = 2;
const CONNS: usize = FIRST_GUEST + GUESTS.len();

fn domid(conn: usize) -> DomId {
    conn.checked_sub(FIRST_GUEST).map_or(DomId::DOM0, |guest| GUESTS[guest])
}

/// Quotas with which the store allows what 4.17 does: reaching one was no excess there, for some
/// not even one more, and the header of a node was 8 bytes larger.
const QUOTAS: [(&str, u32); 4] =
    [("watches", 130), ("transactions", 12), ("node-permissions", 6), ("node-size", 2041)];

/// A request of one of the connections.
#[derive(Clone, Debug)]
struct Ask {
    conn: usize,
    op: Op,
    tx: u32,
    payload: Bytes,
}

/// A reply, and the events that each connection has got by then.
#[derive(Debug, Default, PartialEq, Eq)]
struct Answer {
    op: u32,
    payload: Bytes,
    events: Vec<Vec<Bytes>>,
}

/// Where one of the two worlds is.
enum Place<'a> {
    Daemon(&'a Daemon),
    Store(Store),
}

/// One of the two worlds.
struct World<'a> {
    place: Place<'a>,
    /// None while the domain of the connection does not exist.
    conns: [Option<Conn>; CONNS],
    /// Transactions, with their connections.
    started: Vec<(usize, u32)>,
}

impl<'a> World<'a> {
    async fn new(place: Place<'a>) -> Self {
        let mut world = Self { place, conns: Default::default(), started: Vec::new() };
        for conn in 0..CONNS {
            world.connect(conn).await;
        }
        world
    }

    async fn connect(&mut self, conn: usize) {
        let line = match (&self.place, domid(conn)) {
            (Place::Daemon(daemon), DomId::DOM0) => Line::to_socket(daemon.socket()).await.unwrap(),
            (Place::Daemon(daemon), domid) => Line::Ring(daemon.hypervisor().ring(domid).unwrap()),
            (Place::Store(store), domid) => Line::Stream(Box::new(store.connect(domid))),
        };
        self.conns[conn] = Some(Conn::new(line));
    }

    async fn ask(&mut self, ask: &Ask) -> Answer {
        let mut begins = None;
        for guest in FIRST_GUEST..CONNS {
            let named = ask.payload.starts_with(format!("{}\0", domid(guest)).as_bytes());
            match ask.op {
                Op::INTRODUCE if named && self.conns[guest].is_none() => {
                    // The daemon takes a new domain for the one before if nothing was written since.
                    self.call(&Ask { conn: 0, op: Op::WRITE, tx: 0, payload: "/tool\0".into() }).await;
                    if let Place::Daemon(daemon) = &self.place {
                        daemon.hypervisor().create(domid(guest)).unwrap();
                    }
                    begins = Some(guest);
                }
                // The daemon resets its ring, and a guest that wants to go on attaches to it anew.
                Op::INTRODUCE if named && matches!(self.place, Place::Daemon(_)) => begins = Some(guest),
                Op::RELEASE if named => {
                    self.end_transactions().await;
                    self.conns[guest] = None;
                    if let Place::Daemon(daemon) = &self.place {
                        daemon.hypervisor().forget(domid(guest)).unwrap();
                    }
                }
                _ => {}
            }
        }
        if self.conns[ask.conn].is_none() {
            return Answer::default();
        }
        let Message { op, payload, .. } = self.call(ask).await;
        if let Some(guest) = begins {
            self.connect(guest).await;
        }
        let mut events = Vec::new();
        for conn in self.conns.iter_mut().flatten() {
            conn.barrier().await.unwrap_or_else(|deviation| panic!("{ask:?}: {deviation}"));
            events.push(std::mem::take(&mut conn.events));
        }
        Answer { op: op.0, payload, events }
    }

    async fn call(&mut self, ask: &Ask) -> Message {
        let conn = self.conns[ask.conn].as_mut().unwrap();
        let reply = conn.call(ask.op, &ask.payload, TxId(ask.tx), None).await;
        let reply = reply.unwrap_or_else(|deviation| panic!("{ask:?}: {deviation}"));
        if reply.op == Op::TRANSACTION_START {
            let number = std::str::from_utf8(&reply.payload).unwrap().trim_end_matches('\0');
            self.started.push((ask.conn, number.parse().unwrap()));
        }
        reply
    }

    /// What a transaction says of a domain that ended, the daemon takes for the next of that
    /// number if it is committed later. So none goes on.
    async fn end_transactions(&mut self) {
        for (conn, tx) in std::mem::take(&mut self.started) {
            if self.conns[conn].is_some() {
                let end = Ask { conn, op: Op::TRANSACTION_END, tx, payload: "F\0".into() };
                // It may have ended before.
                self.call(&end).await;
            }
        }
    }
}

/// Makes requests that often hit something: few names, few tokens, transactions that are open.
struct Script {
    rng: Rng,
    open: [Vec<u32>; CONNS],
    /// Requests to come before others, the last first.
    ahead: Vec<Ask>,
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

    /// A domain that is introduced again, or that ends and makes place for another.
    ///
    /// Nobody names it in a list meanwhile, because the store takes that for the new one, having
    /// no hypervisor to ask.
    fn domain(&mut self) -> Ask {
        let guest = self.pick(&["7", "8"]);
        let ask = |op, payload: String| Ask { conn: 0, op, tx: 0, payload: payload.into() };
        let introduce = ask(Op::INTRODUCE, format!("{guest}\01\05\0"));
        if self.rng.bool() {
            return introduce;
        }
        let home = format!("/local/domain/{guest}\0");
        self.ahead.push(ask(Op::SET_PERMS, format!("{home}n{guest}\0")));
        self.ahead.push(ask(Op::MKDIR, home));
        self.ahead.push(introduce);
        ask(Op::RELEASE, format!("{guest}\0"))
    }

    fn next(&mut self) -> Ask {
        let conn = self.rng.usize(0..CONNS);
        let path = self.path();
        let token = self.pick(&["t", "u"]);
        let tx = match &self.open[conn][..] {
            open if !open.is_empty() && self.rng.u8(0..3) > 0 => open[self.rng.usize(0..open.len())],
            _ => 0,
        };
        if let Some(ask) = self.ahead.pop() {
            return ask;
        }
        if self.rng.u8(0..50) == 0 {
            return self.domain();
        }
        let (op, tx, payload) = match self.rng.u8(0..100) {
            0..10 => (Op::READ, tx, format!("{path}\0")),
            10..20 => (Op::DIRECTORY, tx, format!("{path}\0")),
            20..25 => (Op::GET_PERMS, tx, format!("{path}\0")),
            25..45 => (Op::WRITE, tx, format!("{path}\0{}", self.rng.u8(0..3))),
            45..55 => (Op::MKDIR, tx, format!("{path}\0")),
            55..65 => (Op::RM, tx, format!("{path}\0")),
            65..75 => {
                // If a guest owned the root, all would go with it.
                let path = if path == "/" { "/t" } else { &path };
                (Op::SET_PERMS, tx, format!("{path}\0{}", self.list()))
            }
            75..77 if conn < FIRST_GUEST => {
                let special = self.pick(&["@introduceDomain", "@releaseDomain"]);
                (Op::WATCH, 0, format!("{special}\0{token}\0"))
            }
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
    fn note(&mut self, ask: &Ask, answer: &Answer) {
        let open = &mut self.open[ask.conn];
        match ask.op {
            Op::TRANSACTION_START => {
                let number = std::str::from_utf8(&answer.payload).unwrap().trim_end_matches('\0');
                // Unless the quota refused it, or the domain is not there.
                open.extend(number.parse::<u32>().ok());
            }
            Op::TRANSACTION_END => open.retain(|tx| *tx != ask.tx),
            Op::RESET_WATCHES => open.clear(),
            Op::RELEASE | Op::INTRODUCE => self.open[FIRST_GUEST..].iter_mut().for_each(Vec::clear),
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
    let mut daemon = World::new(Place::Daemon(&process)).await;
    let mut embedded = World::new(Place::Store(store)).await;
    for (quota, limit) in QUOTAS {
        let payload = format!("{quota}\0{limit}\0").into();
        let ask = Ask { conn: 0, op: Op::SET_QUOTA, tx: 0, payload };
        assert_eq!(embedded.ask(&ask).await.op, Op::SET_QUOTA.0);
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
    let mut script = Script { rng: Rng::with_seed(seed), open: Default::default(), ahead: Vec::new() };
    let mut asks: Vec<Ask> = Vec::new();
    let difference = compare(|last| {
        if let Some((ask, answer)) = last {
            script.note(ask, answer);
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
