//! The watches of all connections, found by path.
//!
//! A change asks for the watches on its own path and on each path above: as many look-ups as the
//! path has levels, however many watches there are.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use xs_proto::Token;

use crate::connection::ConnId;
use crate::rights::Rights;
use crate::tree::parent;

/// For whom a change fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Watches on the path and above.
    Above,
    /// Watches on exactly the path: the node went with one above it, which fires for the others.
    Exact,
}

/// Something that happened to a node.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) path: Arc<str>,
    pub(crate) scope: Scope,
    /// The node's permissions before and after, and its parent's. A guest that may read by one
    /// of them gets the event.
    pub(crate) readers: [Option<Arc<Rights>>; 3],
}

/// A watch. The order is that of events for one change: by connection, then by registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct WatchId {
    pub(crate) conn: ConnId,
    number: u64,
}

#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) token: Token,
    /// Bytes to take off an event's path: the home directory, if the watch is relative.
    pub(crate) home: usize,
    /// How many levels below the path count.
    pub(crate) depth: Option<u32>,
}

/// The watches of all connections.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    by_path: HashMap<Arc<str>, BTreeMap<WatchId, Watch>>,
    by_conn: HashMap<ConnId, HashMap<(Arc<str>, Token), u64>>,
    next: u64,
}

impl Watches {
    /// Registers a watch that the connection does not have yet.
    pub(crate) fn add(&mut self, conn: ConnId, path: &str, watch: Watch) {
        let path: Arc<str> = path.into();
        self.by_conn.entry(conn).or_default().insert((path.clone(), watch.token.clone()), self.next);
        self.by_path.entry(path).or_default().insert(WatchId { conn, number: self.next }, watch);
        self.next += 1;
    }

    /// Whether the connection has the watch.
    pub(crate) fn has(&self, conn: ConnId, path: &str, token: &Token) -> bool {
        let own = self.by_conn.get(&conn);
        own.is_some_and(|own| own.contains_key(&(path.into(), token.clone())))
    }

    /// Removes a watch; false if the connection has none such.
    pub(crate) fn remove(&mut self, conn: ConnId, path: &str, token: &Token) -> bool {
        let own = self.by_conn.get_mut(&conn);
        let Some(number) = own.and_then(|own| own.remove(&(path.into(), token.clone()))) else {
            return false;
        };
        self.forget(path, WatchId { conn, number });
        true
    }

    /// Removes all watches of a connection.
    pub(crate) fn remove_all(&mut self, conn: ConnId) {
        for ((path, _), number) in self.by_conn.remove(&conn).unwrap_or_default() {
            self.forget(&path, WatchId { conn, number });
        }
    }

    fn forget(&mut self, path: &str, id: WatchId) {
        if let Some(here) = self.by_path.get_mut(path) {
            here.remove(&id);
            if here.is_empty() {
                self.by_path.remove(path);
            }
        }
    }

    /// How many watches a connection has.
    pub(crate) fn count(&self, conn: ConnId) -> usize {
        self.by_conn.get(&conn).map_or(0, HashMap::len)
    }

    /// Whether there is a watch on exactly this path.
    pub(crate) fn any_on(&self, path: &str) -> bool {
        self.by_path.contains_key(path)
    }

    /// The watches on exactly this path, in order.
    pub(crate) fn on(&self, path: &str) -> impl Iterator<Item = (WatchId, &Watch)> {
        self.by_path.get(path).into_iter().flatten().map(|(id, watch)| (*id, watch))
    }

    /// The watches that a change at `path` fires, in order.
    pub(crate) fn fired(&self, path: &str, scope: Scope) -> Vec<(WatchId, &Watch)> {
        if scope == Scope::Exact {
            return self.on(path).collect();
        }
        let mut found = Vec::new();
        let mut at = Some(path);
        for levels in 0.. {
            let Some(above) = at else { break };
            found.extend(self.on(above).filter(|(_, watch)| watch.depth.is_none_or(|depth| levels <= depth)));
            at = parent(above);
        }
        found.sort_unstable_by_key(|(id, _)| *id);
        found
    }
}
