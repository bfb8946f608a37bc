//! A xenstore that is right because it is naive: what the embedded store is measured by.
//!
//! Nodes are records by path, each with the list of its children, as the C daemon keeps them.
//! Nothing is shared, indexed or counted along the way: an event looks at every watch there is, a
//! quota counts what it limits when it is asked, a transaction is a list of copies. That is slow,
//! and short enough to be held against the protocol's rules by reading.
//!
//! It knows no targets and no features, and takes requests as values: what wrong syntax and
//! overlong payloads bring about is for others to test.

mod nodes;
mod watches;

use std::collections::{BTreeMap, VecDeque};

use xs_proto::{Access, DomId, Message, Op, Permissions, Request, TxId};

use self::nodes::{Node, Transaction};
use self::watches::Watch;

/// The name of an error.
type Error = &'static str;

/// What the payload of a reply is to be.
type Answer = Result<Vec<u8>, Error>;

fn ok() -> Answer {
    Ok(b"OK\0".to_vec())
}

/// The special paths, one for domains that come and one for those that go.
const INTRODUCE: &str = "@introduceDomain";
const RELEASE: &str = "@releaseDomain";

/// What guests may use up; 0 is no limit, and to reach one is too much.
const LIMITS: [(&str, usize); 6] = [
    ("nodes", 1000),
    ("watches", 128),
    ("transactions", 10),
    ("transaction-nodes", 1024),
    ("node-permissions", 5),
    ("node-size", 2048),
];

/// A permission list, and when it was made: its entries mean the domains of that time.
#[derive(Clone, Debug)]
struct Rights {
    list: Permissions,
    made: u64,
}

impl Rights {
    fn of_dom0() -> Self {
        Self { list: Permissions::owned_by(DomId::DOM0, Access::None), made: 0 }
    }

    /// Who may know of domains that end, or begin: of the former everybody.
    fn of_special(name: &str) -> Self {
        let Self { list, made } = Self::of_dom0();
        Self { list: if name == RELEASE { list.grant(DomId::ANY, Access::Read) } else { list }, made }
    }
}

/// On whose behalf something is done.
#[derive(Clone, Copy, Debug)]
struct Caller {
    domid: DomId,
    privileged: bool,
}

/// What a caller may do with a node.
#[derive(Clone, Copy, Debug)]
struct Allowed {
    read: bool,
    write: bool,
    own: bool,
}

/// A connection; the later ones have higher numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ConnId(u64);

#[derive(Debug)]
struct Conn {
    caller: Caller,
    /// In the order of their registration.
    watches: Vec<Watch>,
    transactions: BTreeMap<TxId, Transaction>,
    last_transaction: u32,
    /// What it has to receive.
    output: VecDeque<Message>,
}

/// The store.
#[derive(Debug)]
pub(super) struct Model {
    nodes: BTreeMap<String, Node>,
    introduced: Vec<DomId>,
    /// When the last domain of a number ended.
    ended: BTreeMap<DomId, u64>,
    special: BTreeMap<&'static str, Rights>,
    conns: BTreeMap<ConnId, Conn>,
    limits: BTreeMap<&'static str, usize>,
    /// The time: a number that grows with whatever happens.
    now: u64,
    /// Who asks, and the transaction they ask in, while a request is carried out.
    caller: Caller,
    transaction: Option<Transaction>,
}

impl Model {
    pub(super) fn new() -> Self {
        let node = |path: &str, child: &str| (path.to_owned(), Node::new(Rights::of_dom0(), child));
        Self {
            nodes: [node("/", "tool"), node("/tool", "xenstored"), node("/tool/xenstored", "")].into(),
            introduced: vec![DomId::DOM0],
            ended: BTreeMap::new(),
            special: [INTRODUCE, RELEASE].map(|name| (name, Rights::of_special(name))).into(),
            conns: BTreeMap::new(),
            limits: LIMITS.into(),
            now: 0,
            caller: Caller { domid: DomId::DOM0, privileged: true },
            transaction: None,
        }
    }

    /// A new connection, which is privileged if it is domain 0's.
    pub(super) fn connect(&mut self, domid: DomId) -> ConnId {
        let id = ConnId(self.tick());
        let caller = Caller { domid, privileged: domid == DomId::DOM0 };
        let (watches, transactions, output) = (Vec::new(), BTreeMap::new(), VecDeque::new());
        self.conns.insert(id, Conn { caller, watches, transactions, last_transaction: 0, output });
        id
    }

    pub(super) fn disconnect(&mut self, id: ConnId) {
        self.conns.remove(&id);
    }

    /// Whether the connection is there: it goes when its domain ends.
    pub(super) fn is_connected(&self, id: ConnId) -> bool {
        self.conns.contains_key(&id)
    }

    /// All nodes.
    pub(super) fn paths(&self) -> impl Iterator<Item = &str> {
        self.nodes.keys().map(String::as_str)
    }

    pub(super) fn is_introduced(&self, domid: DomId) -> bool {
        self.introduced.contains(&domid)
    }

    /// The open transactions of a connection, oldest first.
    pub(super) fn transactions(&self, id: ConnId) -> Vec<TxId> {
        self.conns[&id].transactions.keys().copied().collect()
    }

    /// Whether a connection has something to receive.
    pub(super) fn has_output(&self, id: ConnId) -> bool {
        self.conns.get(&id).is_some_and(|conn| !conn.output.is_empty())
    }

    /// Takes the next message that a connection has to receive.
    pub(super) fn next_output(&mut self, id: ConnId) -> Option<Message> {
        self.conns.get_mut(&id)?.output.pop_front()
    }

    /// Carries out a request.
    pub(super) fn request(&mut self, id: ConnId, req_id: u32, tx_id: TxId, request: &Request) {
        self.caller = self.conns[&id].caller;
        let answer = self.answer(id, tx_id, request);
        let (op, payload) = match &answer {
            Ok(payload) => (request.op(), payload.clone()),
            Err(name) => (Op::ERROR, [name.as_bytes(), b"\0"].concat()),
        };
        let conn = self.conn(id);
        conn.output.push_back(Message { op, req_id, tx_id, payload: payload.into() });
        if let (Request::Watch { path, token, .. }, Ok(_)) = (request, answer) {
            conn.send_once(path, token);
        }
    }

    fn answer(&mut self, id: ConnId, tx_id: TxId, request: &Request) -> Answer {
        let privileged =
            matches!(request, Request::Introduce { .. } | Request::Release(_) | Request::SetQuota { .. });
        if privileged && !self.caller.privileged {
            return Err("EACCES");
        }
        let ignores_transaction = matches!(request, Request::Watch { .. } | Request::Unwatch { .. });
        if tx_id != TxId::NONE && !ignores_transaction && !self.conn(id).transactions.contains_key(&tx_id) {
            return Err("ENOENT");
        }
        match request {
            Request::Watch { path, token, depth } => self.watch(id, path, token, *depth),
            Request::Unwatch { path, token } => self.unwatch(id, path, token),
            Request::ResetWatches => {
                self.reset(id);
                ok()
            }
            Request::TransactionStart => self.start_transaction(id, tx_id),
            Request::TransactionEnd { commit } => {
                let transaction = self.conn(id).transactions.remove(&tx_id).ok_or("ENOENT")?;
                if *commit { self.commit(transaction) } else { ok() }
            }
            Request::Introduce { domid, .. } => {
                self.introduce(*domid);
                ok()
            }
            Request::Release(domid) => self.release(*domid),
            Request::GetDomainPath(domid) => Ok(format!("/local/domain/{domid}\0").into()),
            Request::SetQuota { domid: None, name, value } => {
                let mut limits = self.limits.iter_mut();
                let (_, limit) = limits.find(|(known, _)| known.as_bytes() == name).ok_or("EINVAL")?;
                *limit = *value as usize;
                ok()
            }
            Request::GetPerms(path) if path.is_special() => {
                let rights = self.special.get(path.as_str()).ok_or("ENOENT")?;
                if self.allowed(self.caller, rights).read { Ok(listed(&rights.list)) } else { Err("EACCES") }
            }
            Request::SetPerms { path, perms } if path.is_special() => self.set_special(path, perms),
            _ => {
                self.transaction = self.conn(id).transactions.remove(&tx_id);
                let answer = self.node_request(request);
                let transaction = self.transaction.take();
                self.conn(id).transactions.extend(transaction.map(|transaction| (tx_id, transaction)));
                answer
            }
        }
    }

    fn start_transaction(&mut self, id: ConnId, tx_id: TxId) -> Answer {
        if tx_id != TxId::NONE {
            return Err("EBUSY");
        }
        self.check("transactions", self.conns[&id].transactions.len() + 1)?;
        let conn = self.conn(id);
        conn.last_transaction += 1;
        conn.transactions.insert(TxId(conn.last_transaction), Transaction::default());
        Ok(format!("{}\0", conn.last_transaction).into())
    }

    fn reset(&mut self, id: ConnId) {
        let conn = self.conn(id);
        conn.watches.clear();
        conn.transactions.clear();
    }

    fn introduce(&mut self, domid: DomId) {
        if !self.is_introduced(domid) {
            self.introduced.push(domid);
            return self.publish_special(INTRODUCE, domid);
        }
        for id in self.guests(domid) {
            self.reset(id);
        }
    }

    fn release(&mut self, domid: DomId) -> Answer {
        if domid == DomId::DOM0 {
            return Err("EINVAL");
        }
        let place = self.introduced.iter().position(|other| *other == domid).ok_or("ENOENT")?;
        self.introduced.remove(place);
        for id in self.guests(domid) {
            self.disconnect(id);
        }
        let now = self.tick();
        self.ended.insert(domid, now);
        self.remove_owned(domid);
        for (name, rights) in &mut self.special {
            if rights.list.owner() == domid {
                *rights = Rights::of_special(name);
            }
        }
        self.publish_special(RELEASE, domid);
        ok()
    }

    fn guests(&self, domid: DomId) -> Vec<ConnId> {
        let guests =
            self.conns.iter().filter(|(_, conn)| !conn.caller.privileged && conn.caller.domid == domid);
        guests.map(|(id, _)| *id).collect()
    }

    fn set_special(&mut self, path: &str, list: &Permissions) -> Answer {
        let before = self.special.get(path).ok_or("ENOENT")?.clone();
        if !self.is_introduced(list.owner()) {
            return Err("ENOENT");
        }
        if !self.allowed(self.caller, &before).own {
            return Err("EACCES");
        }
        let after = Rights { list: list.clone(), made: self.tick() };
        *self.special.get_mut(path).ok_or("ENOENT")? = after.clone();
        self.publish(path, watches::Scope::Exact, &[before, after]);
        ok()
    }

    fn allowed(&self, caller: Caller, rights: &Rights) -> Allowed {
        let (owner, others) = (rights.list.entries()[0], &rights.list.entries()[1..]);
        if caller.privileged || caller.domid == owner.domid {
            return Allowed { read: true, write: true, own: true };
        }
        let newer_than_list = self.ended.get(&caller.domid).is_some_and(|ended| *ended > rights.made);
        let speaks_of = |domid: DomId| domid == DomId::ANY || (domid == caller.domid && !newer_than_list);
        let access = others.iter().find(|entry| speaks_of(entry.domid)).unwrap_or(&owner).access;
        Allowed { read: access.reads(), write: access.writes(), own: false }
    }

    /// Refuses the caller an amount that is too much. That spoils a transaction, as the daemon is
    /// in the middle of it; where it asks before it begins, `exceeds` does.
    fn check(&mut self, quota: &str, amount: usize) -> Result<(), Error> {
        if !self.exceeds(quota, amount) {
            return Ok(());
        }
        if let Some(transaction) = &mut self.transaction {
            transaction.spoiled = true;
        }
        Err("ENOSPC")
    }

    fn exceeds(&self, quota: &str, amount: usize) -> bool {
        let limit = self.limits[quota];
        !self.caller.privileged && limit != 0 && amount >= limit
    }

    fn conn(&mut self, id: ConnId) -> &mut Conn {
        self.conns.get_mut(&id).expect("a connection that is there")
    }

    /// A path, relative ones with the caller's home in front.
    pub(super) fn absolute(&self, path: &str) -> String {
        match path.as_bytes().first() {
            Some(b'/' | b'@') => path.to_owned(),
            _ => format!("/local/domain/{}/{path}", self.caller.domid),
        }
    }

    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }
}

/// A list as replies carry it.
fn listed(list: &Permissions) -> Vec<u8> {
    list.entries().iter().flat_map(|entry| format!("{entry}\0").into_bytes()).collect()
}
