//! The watches of all connections, found by path.
//!
//! A change asks for the watches on its own path and on each path above: as many look-ups as the
//! path has levels, however many watches there are. A watch is one allocation, which both
//! indexes refer to, since a toolstack has tens of thousands of them.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use smallvec::SmallVec;
use triomphe::ThinArc;

use crate::change::Scope;
use crate::connection::ConnId;
use crate::outbox::{Event, Merge};

#[derive(Debug)]
struct Head {
    conn: ConnId,
    /// Later watches have higher numbers.
    number: u64,
    depth: Option<u32>,
    /// Bytes of the path; the token is what is behind it.
    path: u16,
    home: u16,
}

/// A watch; cloning counts a reference.
#[derive(Clone, Debug)]
pub(crate) struct Watch(ThinArc<Head, u8>);

impl Watch {
    fn head(&self) -> &Head {
        &self.0.header.header
    }

    fn parts(&self) -> (&[u8], &[u8]) {
        self.0.slice.split_at(self.head().path.into())
    }

    pub(crate) fn conn(&self) -> ConnId {
        self.head().conn
    }

    /// The event of a change at `path`.
    pub(crate) fn event<'a>(&'a self, path: &'a str, merge: Merge) -> Event<'a> {
        let (watched, token) = self.parts();
        // It was a str when it came in.
        let anything = str::from_utf8(&watched[self.home()..]).unwrap_or_default();
        Event { path, token, merge, anything }
    }

    /// Bytes to take off an event's path: the home directory, if the watch is relative.
    pub(crate) fn home(&self) -> usize {
        self.head().home.into()
    }

    /// How many levels below the path count.
    pub(crate) fn depth(&self) -> Option<u32> {
        self.head().depth
    }

    /// The order of events for one change: by connection, then by registration.
    pub(crate) fn order(&self) -> (ConnId, u64) {
        (self.head().conn, self.head().number)
    }
}

/// The watches on one path, in order. Most paths have one.
type Group = SmallVec<[Watch; 2]>;

/// The watches of all connections.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    by_path: HashTable<Group>,
    by_conn: HashMap<ConnId, HashTable<Watch>>,
    hasher: RandomState,
    paths: PathHasher,
    next: u64,
}

/// Hashes paths so that the hash of each path above comes by on the way: FNV-1a from a start that
/// differs from store to store.
#[derive(Debug)]
struct PathHasher(u64);

impl Default for PathHasher {
    fn default() -> Self {
        Self(RandomState::new().hash_one(0xcbf2_9ce4_8422_2325_u64))
    }
}

impl PathHasher {
    fn step(hash: u64, byte: u8) -> u64 {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    }

    fn hash(&self, path: &[u8]) -> u64 {
        path.iter().fold(self.0, |hash, byte| Self::step(hash, *byte))
    }

    /// The path and all above it with their hashes, the root first.
    fn prefixes<'p>(&self, path: &'p [u8]) -> impl Iterator<Item = (&'p [u8], u64)> {
        let root = Some((&path[..1], self.hash(&path[..1]))).filter(|_| path.len() > 1);
        let mut hash = self.0;
        let below = path.iter().enumerate().filter_map(move |(at, byte)| {
            hash = Self::step(hash, *byte);
            let ends = path.get(at + 1).is_none_or(|next| *next == b'/');
            ends.then_some((&path[..=at], hash))
        });
        root.into_iter().chain(below)
    }
}

impl Watches {
    /// Registers a watch that the connection does not have yet.
    pub(crate) fn add(&mut self, conn: ConnId, path: &str, token: &[u8], home: usize, depth: Option<u32>) {
        let (hasher, paths) = (&self.hasher, &self.paths);
        // Both were in a message, which has 4096 bytes.
        let (path_len, home) = (path.len() as u16, home as u16);
        let head = Head { conn, number: self.next, depth, path: path_len, home };
        let watch = Watch(ThinArc::from_header_and_slice(head, &[path.as_bytes(), token].concat()));
        self.next += 1;
        let own = self.by_conn.entry(conn).or_default();
        own.insert_unique(hasher.hash_one(watch.parts()), watch.clone(), |watch| {
            hasher.hash_one(watch.parts())
        });
        let rehash = |group: &Group| paths.hash(group[0].parts().0);
        match self.by_path.entry(paths.hash(path.as_bytes()), is_on(path.as_bytes()), rehash) {
            Entry::Vacant(place) => drop(place.insert(Group::from_iter([watch]))),
            Entry::Occupied(mut group) => {
                let group = group.get_mut();
                let at = group.partition_point(|other| other.order() < watch.order());
                group.insert(at, watch);
            }
        }
    }

    /// Whether the connection has the watch, whatever its `home` and `depth`.
    pub(crate) fn has(&self, conn: ConnId, path: &str, token: &[u8]) -> bool {
        let hash = self.hasher.hash_one((path.as_bytes(), token));
        self.by_conn.get(&conn).is_some_and(|own| own.find(hash, is_it(path, token)).is_some())
    }

    /// Removes a watch; false if the connection has none such.
    pub(crate) fn remove(&mut self, conn: ConnId, path: &str, token: &[u8]) -> bool {
        let hash = self.hasher.hash_one((path.as_bytes(), token));
        let own = self.by_conn.get_mut(&conn);
        let Some(Ok(found)) = own.map(|own| own.find_entry(hash, is_it(path, token))) else { return false };
        let watch = found.remove().0;
        self.forget(&watch);
        true
    }

    /// Removes all watches of a connection.
    pub(crate) fn remove_all(&mut self, conn: ConnId) {
        for watch in self.by_conn.remove(&conn).unwrap_or_default() {
            self.forget(&watch);
        }
    }

    fn forget(&mut self, watch: &Watch) {
        let path = watch.parts().0;
        let found = self.by_path.find_entry(self.paths.hash(path), is_on(path));
        let Ok(mut entry) = found else { return };
        let group = entry.get_mut();
        if let Ok(at) = group.binary_search_by_key(&watch.order(), Watch::order) {
            group.remove(at);
        }
        if group.is_empty() {
            entry.remove();
        }
    }

    /// Whether there are no watches at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.by_path.is_empty()
    }

    /// How many watches a connection has.
    pub(crate) fn count(&self, conn: ConnId) -> usize {
        self.by_conn.get(&conn).map_or(0, HashTable::len)
    }

    /// Whether there is a watch on exactly this path.
    pub(crate) fn any_on(&self, path: &str) -> bool {
        !self.on(path).is_empty()
    }

    /// The watches on exactly this path, in order.
    pub(crate) fn on(&self, path: &str) -> &[Watch] {
        self.on_hashed(path.as_bytes(), self.paths.hash(path.as_bytes()))
    }

    fn on_hashed(&self, path: &[u8], hash: u64) -> &[Watch] {
        self.by_path.find(hash, is_on(path)).map_or(&[], |group| group)
    }

    /// The watches that a change at `path` fires, in order. Whether a connection may hear of it is
    /// asked once for each, however many watches it has.
    pub(crate) fn fired(
        &self,
        path: &str,
        scope: Scope,
        may_hear: impl FnMut(ConnId) -> bool,
    ) -> SmallVec<[Watch; 4]> {
        let mut hearing = Hearing { known: SmallVec::new(), may_hear };
        let mut found = SmallVec::new();
        if scope == Scope::Exact {
            hearing.pick(self.on(path), 0, &mut found);
            return found;
        }
        let mut levels =
            if path == "/" { 0 } else { path.bytes().filter(|byte| *byte == b'/').count() as u32 };
        for (above, hash) in self.paths.prefixes(path.as_bytes()) {
            hearing.pick(self.on_hashed(above, hash), levels, &mut found);
            levels = levels.saturating_sub(1);
        }
        found.sort_unstable_by_key(Watch::order);
        found
    }
}

/// Which connections may hear of a change.
struct Hearing<F> {
    /// Those that were asked for, in order.
    known: SmallVec<[(ConnId, bool); 4]>,
    may_hear: F,
}

impl<F: FnMut(ConnId) -> bool> Hearing<F> {
    /// Adds those watches of a group, which are on a path so many levels up, that are to fire.
    fn pick(&mut self, group: &[Watch], levels: u32, found: &mut SmallVec<[Watch; 4]>) {
        let mut rest = group;
        while let Some(first) = rest.first() {
            let conn = first.conn();
            // Most have one watch on a path.
            let own = match rest.get(1) {
                Some(second) if second.conn() == conn => rest.partition_point(|watch| watch.conn() == conn),
                _ => 1,
            };
            let (watches, others) = rest.split_at(own);
            if self.may(conn) {
                let in_reach = |watch: &&Watch| watch.depth().is_none_or(|depth| levels <= depth);
                found.extend(watches.iter().filter(in_reach).cloned());
            }
            rest = others;
        }
    }

    fn may(&mut self, conn: ConnId) -> bool {
        match self.known.binary_search_by_key(&conn, |(known, _)| *known) {
            Ok(at) => self.known[at].1,
            Err(at) => {
                let may = (self.may_hear)(conn);
                self.known.insert(at, (conn, may));
                may
            }
        }
    }
}

fn is_it<'a>(path: &'a str, token: &'a [u8]) -> impl Fn(&Watch) -> bool {
    move |watch| watch.parts() == (path.as_bytes(), token)
}

fn is_on(path: &[u8]) -> impl Fn(&Group) -> bool {
    move |group| group[0].parts().0 == path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hashes_on_the_way_are_those_of_the_paths() {
        let hasher = PathHasher::default();
        let on_the_way = |path: &'static str| hasher.prefixes(path.as_bytes()).collect::<Vec<_>>();
        let hashed = |path: &'static str| (path.as_bytes(), hasher.hash(path.as_bytes()));
        assert_eq!(on_the_way("/"), [hashed("/")]);
        assert_eq!(on_the_way("/a"), ["/", "/a"].map(hashed));
        assert_eq!(on_the_way("/ab/c/de"), ["/", "/ab", "/ab/c", "/ab/c/de"].map(hashed));
    }

    #[test]
    fn a_connection_is_asked_for_once_however_many_watches_it_has() {
        let mut watches = Watches::default();
        for number in 0..100 {
            for conn in [1, 2, 3].map(ConnId) {
                watches.add(conn, "/", number.to_string().as_bytes(), 0, None);
            }
            watches.add(ConnId(2), "/a", number.to_string().as_bytes(), 0, None);
        }
        let mut asked = Vec::new();
        let fired = watches.fired("/a", Scope::Above, |conn| {
            asked.push(conn);
            conn == ConnId(2)
        });
        assert_eq!(asked, [1, 2, 3].map(ConnId));
        assert_eq!(fired.len(), 200);
        assert!(fired.iter().is_sorted_by_key(|watch| watch.order()));
    }
}
