//! The store itself: requests in, bytes out, for any number of connections. It does no I/O and
//! knows no time, so whatever drives it, the same requests in the same order give the same
//! answers.
//!
//! Everything that a request causes happens while it is carried out: by the time its reply is
//! queued, its events are, for its own connection and for all others. Each connection's output is
//! one queue of whole messages.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tracing::info;
use xs_proto::{
    ABSOLUTE_MAX, Access, DecodeError, DomId, ErrorCode, Features, Message, Op, Path, Permissions,
    RELATIVE_MAX, Reply, Request, TxId,
};

use crate::change::{Above, Change};
use crate::connection::{ConnId, Connection};
use crate::domains::Domains;
use crate::nodes::{self, Listing, Nodes};
use crate::outbox::{Event, Merge};
use crate::pressure::Source;
use crate::quota::{Quota, Usage};
use crate::rights::{Caller, Need, Rights};
use crate::special::Special;
use crate::transaction::Transaction;
use crate::tree::{Data, Tree, basename, parent};
use crate::waiting::Waiting;
use crate::watch::Watches;

/// All state of a store.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) tree: Tree,
    /// Whether requests are written to the log.
    pub(crate) logging: bool,
    /// Counts the requests.
    pub(crate) requests: u64,
    pub(crate) domains: Domains,
    pub(crate) watches: Watches,
    listed: Listing,
    pub(crate) connections: BTreeMap<ConnId, Connection>,
    last_connection: u64,
    /// Who may know of new and of ended domains.
    pub(crate) special: [Arc<Rights>; 2],
    /// Connections that have got output, or were closed, since this was last taken.
    pub(crate) woken: BTreeSet<ConnId>,
    pub(crate) waiting: Waiting,
}

impl Core {
    /// A store as a daemon that has just started has it.
    pub(crate) fn new() -> Self {
        let rights = Rights::new(Permissions::owned_by(DomId::DOM0, Access::None), 0);
        let mut tree = Tree::new(rights.clone());
        let mut domains = Domains::new();
        for path in ["/", "/tool", "/tool/xenstored"] {
            let data = Data::new(basename(path), b"", rights.clone(), 0);
            domains.count(DomId::DOM0, nodes::usage(path, &data));
            tree.put(path, data);
        }
        Self {
            tree,
            logging: false,
            requests: 0,
            domains,
            watches: Watches::default(),
            listed: Listing::default(),
            connections: BTreeMap::new(),
            last_connection: 0,
            special: [Special::Introduce.default_rights(), Special::Release.default_rights()],
            woken: BTreeSet::new(),
            waiting: Waiting::default(),
        }
    }

    /// A new connection that acts for a domain, which exists from now on if it did not.
    pub(crate) fn connect(&mut self, domid: DomId, privileged: bool) -> ConnId {
        self.domains.create(domid);
        self.last_connection += 1;
        let id = ConnId(self.last_connection);
        self.connections.insert(id, Connection::new(domid, privileged));
        id
    }

    /// The end of a connection, with its watches and transactions.
    pub(crate) fn disconnect(&mut self, id: ConnId) {
        self.reset(id);
        self.drop_output(id);
        self.connections.remove(&id);
        self.waiting.forget(id);
        self.conflicts_are_over(id);
    }

    /// Counts bytes of watches that a connection has more.
    fn count_watched(&mut self, id: ConnId, memory: i64) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.watched += memory;
            self.domains.count(connection.domid, Usage { memory, ..Usage::default() });
        }
    }

    fn forget_watches(&mut self, id: ConnId) {
        self.watches.remove_all(id);
        let watched = self.connections.get(&id).map_or(0, |connection| connection.watched);
        self.count_watched(id, -watched);
    }

    /// What a domain uses, with all its connections.
    pub(crate) fn usage(&self, domid: DomId) -> Result<Usage, ErrorCode> {
        self.domains.limits(Some(domid))?;
        let mut usage = self.domains.counted(domid);
        usage.outstanding += self.waiting.pressure.requests(Source::Guest(domid)) as i64;
        for (id, connection) in self.connections.iter().filter(|(_, connection)| connection.domid == domid) {
            usage += Usage {
                nodes: 0,
                watches: self.watches.count(*id) as i64,
                transactions: connection.transactions.len() as i64,
                outstanding: connection.output.replies() as i64,
                memory: connection.output.len() as i64,
            };
        }
        Ok(usage)
    }

    /// All connections.
    pub(crate) fn connections(&self) -> impl Iterator<Item = &Connection> {
        self.connections.values()
    }

    /// The connection, unless the store is done with it.
    pub(crate) fn connection(&mut self, id: ConnId) -> Option<&mut Connection> {
        self.connections.get_mut(&id).filter(|connection| !connection.closed)
    }

    /// The connections that have something to send, or to notice, since the last call.
    pub(crate) fn take_woken(&mut self) -> BTreeSet<ConnId> {
        std::mem::take(&mut self.woken)
    }

    /// Carries out a request.
    pub(crate) fn request(&mut self, id: ConnId, message: Message) {
        let Message { op, req_id, tx_id, payload } = message;
        self.requests += 1;
        if self.logging {
            info!(connection = id.0, %op, req_id, tx_id = tx_id.0, payload = %payload.escape_ascii(), "request");
        }
        let Some(connection) = self.connection(id) else { return };
        let (domid, privileged, source) = (connection.domid, connection.privileged, connection.source(id));
        let queued = connection.output.len();
        let caller = Caller { queued, ..self.domains.caller(domid, privileged) };
        let request = Request::decode(op, payload);
        let watch = match &request {
            Ok(Request::Watch { path, token, .. }) => Some((path.clone(), token.clone())),
            _ => None,
        };
        self.waiting.begin(self.requests, source);
        let result = self.answer(id, &caller, op, tx_id, request);
        let caused = self.finish(id);
        let Some(connection) = self.connection(id) else { return };
        let watch = watch.filter(|_| result.is_ok());
        connection.output.reply(op, req_id, tx_id, &result.unwrap_or_else(Reply::Error));
        // A request that caused events counts once, with its reply.
        if !caused {
            connection.output.count_reply();
        }
        if !privileged {
            let outstanding =
                connection.output.replies() + self.waiting.pressure.requests(Source::Guest(domid));
            self.domains.note_most(Usage { outstanding: outstanding as i64, ..Usage::default() });
        }
        // Every watch fires once at the start, right behind its reply.
        if let Some((path, token)) = watch {
            let token = token.as_bytes();
            self.send(id, &Event { path: &path, token, merge: Merge::Yes, anything: &path });
        }
    }

    fn answer(
        &mut self,
        id: ConnId,
        caller: &Caller,
        op: Op,
        tx_id: TxId,
        request: Result<Request, DecodeError>,
    ) -> Result<Reply, ErrorCode> {
        if let Err(DecodeError::UnknownOp(_)) = request {
            return Err(ErrorCode::ENOSYS);
        }
        if needs_privilege(op) && !caller.is_privileged() {
            return Err(ErrorCode::EACCES);
        }
        let connection = self.connections.get_mut(&id).ok_or(ErrorCode::EIO)?;
        let known = tx_id == TxId::NONE || connection.transactions.contains_key(&tx_id);
        if !known && op != Op::WATCH && op != Op::UNWATCH {
            return Err(ErrorCode::ENOENT);
        }
        let request = request.map_err(|_| ErrorCode::EINVAL)?;
        match request {
            Request::Watch { path, token, depth } => self.watch(id, caller, &path, token.as_bytes(), depth),
            Request::Unwatch { path, token } => {
                let absolute = absolute(caller, &path);
                if !self.watches.remove(id, &absolute, token.as_bytes()) {
                    return Err(ErrorCode::ENOENT);
                }
                self.count_watched(id, -watched(&absolute, token.as_bytes()));
                Ok(Reply::Ok)
            }
            Request::ResetWatches => {
                self.drop_transactions(id);
                self.forget_watches(id);
                Ok(Reply::Ok)
            }
            Request::TransactionStart => {
                if tx_id != TxId::NONE {
                    return Err(ErrorCode::EBUSY);
                }
                let open = connection.transactions.len() + 1;
                caller.check(Quota::Transactions, open)?;
                if !caller.is_privileged() {
                    self.domains.note_most(Usage { transactions: open as i64, ..Usage::default() });
                }
                Ok(Reply::Transaction(connection.start_transaction()))
            }
            Request::TransactionEnd { commit } => self.end_transaction(id, caller, tx_id, commit),
            Request::GetPerms(path) if path.is_special() => {
                let rights = &self.special[Special::from_path(&path)? as usize];
                if rights.allow(caller, Need::READ) {
                    Ok(Reply::Perms(rights.list.clone()))
                } else {
                    Err(ErrorCode::EACCES)
                }
            }
            Request::SetPerms { path, perms } if path.is_special() => {
                self.set_special(caller, Special::from_path(&path)?, perms)
            }
            Request::Directory(_)
            | Request::DirectoryPart { .. }
            | Request::Read(_)
            | Request::GetPerms(_)
            | Request::Write { .. }
            | Request::Mkdir(_)
            | Request::Rm(_)
            | Request::SetPerms { .. } => self.node_request(id, caller, tx_id, request),
            other => self.domain_request(caller, other),
        }
    }

    /// A request about a node, in the transaction or outside.
    fn node_request(
        &mut self,
        id: ConnId,
        caller: &Caller,
        tx_id: TxId,
        request: Request,
    ) -> Result<Reply, ErrorCode> {
        let path = request.path().filter(|path| !path.is_special()).ok_or(ErrorCode::EINVAL)?;
        let absolute = absolute(caller, path);
        check_length(caller, path, &absolute)?;
        let path = absolute;
        if let Request::SetPerms { perms, .. } = &request {
            self.domains.notice(perms);
        }
        let generation = self.domains.next_generation();
        let connection = self.connections.get_mut(&id).ok_or(ErrorCode::EIO)?;
        let mut nodes = Nodes {
            caller,
            generation,
            tree: &mut self.tree,
            transaction: connection.transactions.get_mut(&tx_id),
            domains: &mut self.domains,
            watches: &self.watches,
            listed: &mut self.listed,
            changes: Vec::new(),
        };
        let result = match &request {
            Request::Directory(_) => nodes.directory(&path),
            Request::DirectoryPart { offset, .. } => nodes.directory_part(&path, *offset),
            Request::Read(_) => nodes.read(&path),
            Request::GetPerms(_) => nodes.permissions(&path),
            Request::Write { value, .. } => nodes.write(&path, value),
            Request::Mkdir(_) => nodes.mkdir(&path),
            Request::Rm(_) => nodes.remove(&path),
            Request::SetPerms { perms, .. } => nodes.set_permissions(&path, perms.clone()),
            _ => Err(ErrorCode::ENOSYS),
        };
        let changes = nodes.changes;
        let reads = matches!(
            request,
            Request::Directory(_) | Request::DirectoryPart { .. } | Request::Read(_) | Request::GetPerms(_)
        );
        if result.is_ok() && tx_id == TxId::NONE && !reads {
            self.look_for_conflicts(caller, [&*path]);
        }
        self.publish(&changes);
        result
    }

    /// Nodes were changed: whoever makes transactions fail that have failed before is held.
    fn look_for_conflicts<'p>(
        &mut self,
        caller: &Caller,
        changed: impl IntoIterator<Item = &'p str> + Clone,
    ) {
        for id in self.waiting.conflicts.failing() {
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            let mut broken = false;
            // All of them, so that each is broken by the first change that does it.
            for transaction in connection.transactions.values_mut() {
                broken |= changed.clone().into_iter().any(|path| transaction.is_broken_by(&self.tree, path));
            }
            if broken && !caller.is_privileged() {
                self.waiting.conflicts.hold(caller.domid, id);
            }
        }
    }

    fn watch(
        &mut self,
        id: ConnId,
        caller: &Caller,
        path: &Path,
        token: &[u8],
        depth: Option<u32>,
    ) -> Result<Reply, ErrorCode> {
        if depth.is_some() && !self.domains.features(caller.domid)?.contains(Features::WATCH_DEPTH) {
            return Err(ErrorCode::EINVAL);
        }
        let absolute = absolute(caller, path);
        check_length(caller, path, &absolute)?;
        if self.watches.has(id, &absolute, token) {
            return Err(ErrorCode::EEXIST);
        }
        let watches = self.watches.count(id) + 1;
        caller.check(Quota::Watches, watches)?;
        let memory = watched(&absolute, token);
        self.domains.check_memory(caller, caller.domid, memory)?;
        self.watches.add(id, &absolute, token, absolute.len() - path.len(), depth);
        self.count_watched(id, memory);
        if !caller.is_privileged() {
            self.domains.note_most(Usage { watches: watches as i64, ..Usage::default() });
        }
        Ok(Reply::Ok)
    }

    fn end_transaction(
        &mut self,
        id: ConnId,
        caller: &Caller,
        tx_id: TxId,
        commit: bool,
    ) -> Result<Reply, ErrorCode> {
        let connection = self.connections.get_mut(&id).ok_or(ErrorCode::EIO)?;
        let transaction = connection.transactions.remove(&tx_id).ok_or(ErrorCode::ENOENT)?;
        self.domains.count(connection.domid, Usage::memory(-transaction.held()));
        if !commit {
            return Ok(Reply::Ok);
        }
        if transaction.is_spoiled() {
            return Err(ErrorCode::ENOMEM);
        }
        // Nobody may get the nodes of a domain that ended meanwhile. The daemon refuses also what
        // takes them away, although that is a conflict as well.
        if !transaction.owners().all(|owner| self.domains.exists(owner)) {
            return Err(ErrorCode::ENOMEM);
        }
        for owner in transaction.owners() {
            self.domains.check_nodes(caller, owner, transaction.counted(owner).nodes)?;
        }
        for (owner, change) in transaction.used() {
            self.domains.check_memory(caller, owner, change.memory)?;
        }
        if transaction.conflicts(&self.tree) {
            if caller.is_privileged() {
                self.waiting.conflicts.failed(id);
            }
            return Err(ErrorCode::EAGAIN);
        }
        self.conflicts_are_over(id);
        let generation = self.domains.next_generation();
        let (changes, used) = transaction.commit(&mut self.tree, generation);
        for (owner, change) in used {
            self.domains.count(owner, change);
        }
        self.look_for_conflicts(caller, changes.iter().map(|change| &*change.path));
        self.publish(&changes);
        Ok(Reply::Ok)
    }

    /// Queues the events of changes, in their order.
    pub(crate) fn publish(&mut self, changes: &[Change]) {
        for Change { path, scope, readers, above } in changes {
            let fired = self.watches.fired(path, *scope, |conn| {
                // Looked up only for guests.
                let above = std::iter::once_with(|| match above {
                    Above::Were(rights) => rights.as_ref(),
                    Above::Are => Some(self.tree.get(parent(path)?)?.data.rights()),
                });
                self.may_hear(conn, readers.iter().flatten().chain(above.flatten()))
            });
            for watch in fired {
                self.send(watch.conn(), &watch.event(&path[watch.home()..], Merge::Yes));
            }
        }
    }

    /// Whether a connection may read by one of these lists.
    pub(crate) fn may_hear<'a>(&self, id: ConnId, lists: impl IntoIterator<Item = &'a Arc<Rights>>) -> bool {
        let Some(connection) = self.connections.get(&id) else { return false };
        if connection.privileged {
            return true;
        }
        let caller = self.domains.caller(connection.domid, false);
        lists.into_iter().any(|rights| rights.allow(&caller, Need::READ))
    }

    /// Ends the store's side of a connection; its driver finds out when it is woken.
    fn close(&mut self, id: ConnId) {
        self.reset(id);
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.closed = true;
            self.woken.insert(id);
        }
        self.drop_output(id);
    }

    /// The connections that guests of this number have.
    pub(crate) fn guests(&self, domid: DomId) -> Vec<ConnId> {
        let of_domain =
            |(_, connection): &(&ConnId, &Connection)| connection.domid == domid && !connection.privileged;
        self.connections.iter().filter(of_domain).map(|(id, _)| *id).collect()
    }

    /// Drops what a connection has under way, as when its domain is introduced again.
    pub(crate) fn reset(&mut self, id: ConnId) {
        self.forget_watches(id);
        self.drop_transactions(id);
    }

    fn drop_transactions(&mut self, id: ConnId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let held: i64 = std::mem::take(&mut connection.transactions).values().map(Transaction::held).sum();
        self.domains.count(connection.domid, Usage::memory(-held));
    }

    /// Ends a domain: its connections, and every node it owns with all below.
    pub(crate) fn end_domain(&mut self, domid: DomId) {
        for id in self.guests(domid) {
            self.close(id);
        }
        let generation = self.domains.next_generation();
        let caller = self.domains.caller(DomId::DOM0, true);
        let owned =
            if self.domains.counted(domid).nodes > 0 { self.tree.owned_by(domid) } else { Vec::new() };
        let mut nodes = Nodes {
            caller: &caller,
            generation,
            tree: &mut self.tree,
            transaction: None,
            domains: &mut self.domains,
            watches: &self.watches,
            listed: &mut self.listed,
            changes: Vec::new(),
        };
        for path in &owned {
            nodes.remove_now(path);
        }
        let changes = nodes.changes;
        self.look_for_conflicts(&caller, owned.iter().map(String::as_str));
        self.publish(&changes);
        self.domains.end(domid);
        self.waiting.pressure.forget(Source::Guest(domid));
        self.waiting.conflicts.let_go(domid);
        for special in [Special::Introduce, Special::Release] {
            let rights = &mut self.special[special as usize];
            if rights.list.owner() == domid {
                *rights = special.default_rights();
            }
        }
    }
}

/// The bytes that count for a watch.
fn watched(path: &str, token: &[u8]) -> i64 {
    (path.len() + token.len()) as i64
}

fn needs_privilege(op: Op) -> bool {
    matches!(
        op,
        Op::CONTROL
            | Op::INTRODUCE
            | Op::RELEASE
            | Op::IS_DOMAIN_INTRODUCED
            | Op::RESUME
            | Op::SET_TARGET
            | Op::SET_FEATURE
            | Op::GET_QUOTA
            | Op::SET_QUOTA
    )
}

/// A path with the caller's home directory in front if it is relative. Special paths stay.
fn absolute<'p>(caller: &Caller, path: &'p Path) -> Cow<'p, str> {
    if path.is_absolute() || path.is_special() {
        path.as_str().into()
    } else {
        format!("/local/domain/{}/{path}", caller.domid).into()
    }
}

/// Holds paths to what `xs_wire.h` says that their kind may have, so that no node has a name that
/// clients refuse, and a guest's to its quota. There, what precedes the part below a home directory
/// is free.
fn check_length(caller: &Caller, path: &Path, absolute: &str) -> Result<(), ErrorCode> {
    let most = if path.is_absolute() { ABSOLUTE_MAX } else { RELATIVE_MAX };
    if path.len() > most {
        return Err(ErrorCode::EINVAL);
    }
    let below_home = absolute.strip_prefix("/local/domain/").and_then(|rest| {
        let (number, below) = rest.split_once('/')?;
        number.bytes().all(|byte| byte.is_ascii_digit()).then_some(below)
    });
    let counted = below_home.unwrap_or(absolute).len();
    caller.check(Quota::PathMax, counted).map_err(|_| ErrorCode::EINVAL)
}
