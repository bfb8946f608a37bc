//! One of the two worlds: a server with its hypervisor and its clients.
//!
//! Both are driven alike, through the same socket protocol, ring pages and folder of files, so
//! whatever differs is the server's doing.
//!
//! What a step causes is complete when every connection has got the answer to one more request:
//! events are queued while a request is carried out, and each connection's output is one queue.
//! For what happens outside of the connections (a domain ends, a client is gone) there is no
//! answer. In each turn of its loop the daemon takes one event, if there is one, and then looks at
//! all connections. So when as many requests were answered one after the other as events can be
//! queued, and two more, the turn that could see it is over.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use bytes::{Bytes, BytesMut};
use xs_proto::{DomId, Message, Op, TxId};

use super::known::{self, Limits};
use super::step::{Answer, Ask, CONNS, Deed, GUESTS, SOCKETS, Step, conn_of};
use crate::conformance::line::{Conn, Deviation, Line};
use crate::daemon::{Daemon, DaemonKind};
use crate::fakexen::FakeXen;
use crate::xendev::StoreProcess;

/// A server; dropping it ends it.
enum Server {
    Daemon(Daemon),
    Store(StoreProcess),
}

impl Server {
    fn socket(&self) -> PathBuf {
        match self {
            Self::Daemon(daemon) => daemon.socket().to_owned(),
            Self::Store(store) => store.socket(),
        }
    }

    fn hypervisor(&self) -> FakeXen {
        match self {
            Self::Daemon(daemon) => daemon.hypervisor(),
            Self::Store(store) => FakeXen::at(store.state_dir()),
        }
    }

    fn limits(&self) -> Limits {
        match self {
            Self::Daemon(_) => Limits::Daemon,
            Self::Store(_) => Limits::Store,
        }
    }
}

pub(super) struct World {
    server: Server,
    xen: FakeXen,
    /// None for a guest that is not introduced.
    conns: [Option<Conn>; CONNS],
    /// Whether the domain of each guest exists.
    exists: [bool; GUESTS.len()],
    /// Transactions that were started, with their connections.
    started: Vec<(usize, TxId)>,
    /// What was asked and is to be answered.
    asked: HashMap<(usize, u32), Ask>,
    /// The generations that listings of a path have told, in the order of their appearance.
    generations: HashMap<Bytes, Vec<Bytes>>,
    /// How many events can wait to be taken.
    events_max: usize,
}

impl World {
    /// Debian's daemon.
    pub(super) fn daemon() -> Result<Self> {
        Self::of(Server::Daemon(Daemon::start(DaemonKind::Xenstored)?))
    }

    /// The embedded store as a process.
    pub(super) fn store(program: &Path) -> Result<Self> {
        Self::of(Server::Store(StoreProcess::start_with_domains(program)?))
    }

    fn of(server: Server) -> Result<Self> {
        let (conns, exists) = Default::default();
        let (started, asked, generations) = Default::default();
        let xen = server.hypervisor();
        Ok(Self { server, xen, conns, exists, started, asked, generations, events_max: events_max()? })
    }

    /// Which connections are there.
    pub(super) fn present(&self) -> [bool; CONNS] {
        std::array::from_fn(|conn| self.conns[conn].is_some())
    }

    /// Makes the beginning of a sequence: fresh connections, no more than the first nodes, and two
    /// guests with homes.
    pub(super) async fn prepare(&mut self) -> Result<()> {
        for conn in 0..SOCKETS {
            self.conns[conn] = Some(Conn::new(Line::to_socket(&self.server.socket()).await?));
        }
        for domid in GUESTS {
            self.deed(Deed::Destroy, domid, &mut Answer::default()).await?;
        }
        self.started.clear();
        self.generations.clear();
        let Message { payload, .. } = self.call(0, Ask::new(Op::DIRECTORY, "/\0")).await?;
        let names = payload.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        for name in names {
            self.acknowledged(Op::RM, [b"/", name, b"\0"].concat()).await?;
        }
        self.acknowledged(Op::MKDIR, "/tool/xenstored\0").await?;
        self.acknowledged(Op::WRITE, "/\0").await?;
        for path in ["/", "@introduceDomain", "@releaseDomain"] {
            self.acknowledged(Op::SET_PERMS, format!("{path}\0n0\0")).await?;
        }
        for (name, limit) in known::usual_limits() {
            self.acknowledged(Op::CONTROL, format!("quota\0set\0{name}\0{limit}\0")).await?;
        }
        for domid in &GUESTS[..2] {
            self.deed(Deed::Create, *domid, &mut Answer::default()).await?;
            let home = format!("/local/domain/{domid}\0");
            self.acknowledged(Op::INTRODUCE, format!("{domid}\01\05\0")).await?;
            self.acknowledged(Op::MKDIR, home.clone()).await?;
            self.acknowledged(Op::SET_PERMS, format!("{home}n{domid}\0")).await?;
        }
        Ok(())
    }

    async fn acknowledged(&mut self, op: Op, payload: impl Into<Bytes>) -> Result<()> {
        let ask = Ask::new(op, payload);
        let reply = self.call(0, ask.clone()).await.with_context(|| format!("asking {ask}"))?;
        ensure!(reply.op == op, "a sequence cannot begin: {ask} is answered by {:?}", reply.payload);
        Ok(())
    }

    /// A request whose events do not matter.
    async fn call(&mut self, conn: usize, ask: Ask) -> Result<Message, Deviation> {
        let mut answer = Answer::default();
        self.send(conn, &[ask], &mut answer).await?;
        self.collect(&mut answer).await?;
        let reply = answer.received.into_iter().find(|(_, message)| message.op != Op::WATCH_EVENT);
        reply.map(|(_, message)| message).ok_or(Deviation::Silent)
    }

    /// Takes a step. One that makes no sense (any more) does nothing.
    pub(super) async fn take(&mut self, step: &Step) -> Answer {
        let mut answer = Answer::default();
        let outcome = async {
            match step {
                Step::Send { conn, asks } => self.send(*conn, asks, &mut answer).await?,
                Step::Domain(deed, domid) => self.deed(*deed, *domid, &mut answer).await?,
                Step::Reconnect(conn) => {
                    self.started.retain(|(started, _)| started != conn);
                    self.conns[*conn] = None;
                    self.settle(1 - conn, &mut answer).await?;
                    self.conns[*conn] = Some(Conn::new(Line::to_socket(&self.server.socket()).await?));
                }
                Step::ReadAll => self.read_all(&mut answer).await?,
            }
            self.collect(&mut answer).await
        };
        let outcome: Result<(), Deviation> = outcome.await;
        answer.broken = outcome.err().map(|deviation| deviation.to_string());
        answer
    }

    /// Sends requests in one write and receives until the last is answered.
    async fn send(&mut self, conn: usize, asks: &[Ask], answer: &mut Answer) -> Result<(), Deviation> {
        let Some(line) = &mut self.conns[conn] else { return Ok(()) };
        let mut bytes = BytesMut::new();
        let mut last = 0;
        for ask in asks {
            let ask = self.server.limits().translate(ask);
            last = line.encode(ask.op, &ask.payload, ask.tx, None, &mut bytes);
            self.asked.insert((conn, last), ask);
        }
        line.write(&bytes).await?;
        self.receive(conn, last, answer).await
    }

    /// Receives on a connection until the reply to a request.
    async fn receive(&mut self, conn: usize, last: u32, answer: &mut Answer) -> Result<(), Deviation> {
        loop {
            // A domain that ends itself, so to speak, gets no answer.
            let Some(line) = &mut self.conns[conn] else { return Ok(()) };
            let mut message = line.receive().await?;
            let is_reply = message.op != Op::WATCH_EVENT;
            let id = message.req_id;
            if is_reply {
                let Some(ask) = self.asked.remove(&(conn, id)) else {
                    return Err(Deviation::Unexpected(format!(
                        "a reply to request {id}, which was not asked"
                    )));
                };
                self.note(conn, &ask, &mut message).await?;
            }
            answer.received.push((conn, message));
            if is_reply && id == last {
                return Ok(());
            }
        }
    }

    /// Receives on every connection what is underway.
    async fn collect(&mut self, answer: &mut Answer) -> Result<(), Deviation> {
        let mut barriers = Vec::new();
        for conn in 0..CONNS {
            let Some(line) = &mut self.conns[conn] else { continue };
            let mut bytes = BytesMut::new();
            let barrier = line.encode(Op::GET_DOMAIN_PATH, b"0\0", TxId::NONE, None, &mut bytes);
            line.write(&bytes).await?;
            self.asked.insert((conn, barrier), Ask::new(Op::GET_DOMAIN_PATH, "0\0"));
            barriers.push((conn, barrier));
        }
        for (conn, barrier) in barriers {
            self.receive(conn, barrier, answer).await?;
            answer.received.pop();
        }
        Ok(())
    }

    /// Waits until the server has noticed what happened outside its connections. What this
    /// connection receives meanwhile comes with the answer.
    async fn settle(&mut self, conn: usize, answer: &mut Answer) -> Result<(), Deviation> {
        for _ in 0..self.events_max + 2 {
            self.send(conn, &[Ask::new(Op::GET_DOMAIN_PATH, "0\0")], answer).await?;
        }
        answer.received.retain(|(_, message)| message.op != Op::GET_DOMAIN_PATH);
        Ok(())
    }

    /// Learns from a reply what there is now.
    async fn note(&mut self, conn: usize, ask: &Ask, reply: &mut Message) -> Result<(), Deviation> {
        if reply.op != ask.op {
            return Ok(());
        }
        match reply.op {
            Op::TRANSACTION_START => {
                let number =
                    reply.payload.strip_suffix(b"\0").and_then(|text| std::str::from_utf8(text).ok());
                let number = number.and_then(|text| text.parse().ok());
                self.started.extend(number.map(|number| (conn, TxId(number))));
            }
            Op::INTRODUCE => {
                if let Some(guest) = ask.domid().and_then(conn_of) {
                    let line = Line::to_ring(&self.xen, GUESTS[guest - SOCKETS])?;
                    self.conns[guest] = Some(Conn::new(line));
                }
            }
            Op::RELEASE => {
                if let Some(guest) = ask.domid().and_then(conn_of) {
                    self.conns[guest] = None;
                }
            }
            Op::DIRECTORY_PART => {
                // Each server counts its own way: what matters is when a number changes.
                let end = reply.payload.iter().position(|byte| *byte == 0).unwrap_or_default();
                let generation = reply.payload.slice(..end);
                let path = Bytes::copy_from_slice(ask.strings().next().unwrap_or_default());
                let known = self.generations.entry(path).or_default();
                let number = known.iter().position(|other| *other == generation).unwrap_or_else(|| {
                    known.push(generation);
                    known.len() - 1
                });
                let mut payload = String::new();
                let _ = write!(payload, "generation {number}");
                reply.payload = [payload.as_bytes(), &reply.payload[end..]].concat().into();
            }
            _ => {}
        }
        Ok(())
    }

    /// Reads all nodes, level by level, and what is counted for the guests.
    async fn read_all(&mut self, answer: &mut Answer) -> Result<(), Deviation> {
        let mut level = vec![Vec::new()];
        while !level.is_empty() {
            let path =
                |path: &Vec<u8>| if path.is_empty() { b"/\0".to_vec() } else { [path, &b"\0"[..]].concat() };
            let asks = level
                .iter()
                .flat_map(|at| [Op::READ, Op::GET_PERMS, Op::DIRECTORY].map(|op| Ask::new(op, path(at))));
            let asks: Vec<_> = asks.collect();
            let mut replies = Answer::default();
            self.send(0, &asks, &mut replies).await?;
            let lists = replies.received.iter().skip(2).step_by(3).map(|(_, reply)| reply);
            let below = level.iter().zip(lists).flat_map(|(at, list)| {
                // A list that does not fit into a message is not looked into.
                let names = list.payload.split(|byte| *byte == 0).filter(|_| list.op == Op::DIRECTORY);
                names.filter(|name| !name.is_empty()).map(move |name| [at, &b"/"[..], name].concat())
            });
            level = below.collect();
            // So that it is known what is told of.
            for (ask, (_, reply)) in asks.iter().zip(&mut replies.received) {
                reply.payload = [&ask.payload[..], &reply.payload].concat().into();
            }
            answer.received.append(&mut replies.received);
        }
        let introduced = GUESTS.iter().zip(SOCKETS..).filter(|(_, conn)| self.conns[*conn].is_some());
        let mut asks: Vec<_> =
            introduced.map(|(domid, _)| Ask::new(Op::CONTROL, format!("quota\0{domid}\0"))).collect();
        asks.push(Ask::new(Op::CONTROL, "check\0"));
        self.send(0, &asks, answer).await
    }

    async fn deed(&mut self, deed: Deed, domid: DomId, answer: &mut Answer) -> Result<(), Deviation> {
        let Some(conn) = conn_of(domid) else { return Ok(()) };
        let exists = &mut self.exists[conn - SOCKETS];
        match deed {
            Deed::Create if !*exists => {
                *exists = true;
                self.begin_anew().await?;
                self.xen.create(domid)?;
                return Ok(());
            }
            Deed::ShutDown if *exists => self.xen.shut_down(domid)?,
            Deed::Crash if *exists => self.xen.crash(domid)?,
            Deed::Destroy if *exists => {
                *exists = false;
                self.conns[conn] = None;
                self.xen.destroy(domid)?;
                self.settle(0, answer).await?;
                self.xen.forget(domid)?;
                return Ok(());
            }
            _ => return Ok(()),
        }
        self.settle(0, answer).await
    }

    /// Takes care that nothing said of an earlier domain of a number is taken for the next one, as
    /// the daemon does if it was said in a transaction that goes on, or if nothing was written in
    /// between.
    async fn begin_anew(&mut self) -> Result<(), Deviation> {
        for (conn, tx) in std::mem::take(&mut self.started) {
            // It may have ended before, or its connection.
            if self.conns[conn].is_some() {
                let end = Ask { op: Op::TRANSACTION_END, tx, payload: "F\0".into() };
                self.call(conn, end).await?;
            }
        }
        self.call(0, Ask::new(Op::WRITE, "/tool\0")).await.map(|_| ())
    }
}

/// How many datagrams the socket that is the event channel takes.
fn events_max() -> Result<usize> {
    const LIMIT: &str = "/proc/sys/net/unix/max_dgram_qlen";
    let text = std::fs::read_to_string(LIMIT).with_context(|| format!("reading {LIMIT}"))?;
    // One more than this may be there.
    Ok(text.trim().parse::<usize>().with_context(|| format!("the number in {LIMIT}"))? + 1)
}
