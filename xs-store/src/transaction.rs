//! Transactions, with the meaning they have in the C daemon.
//!
//! A transaction is not a snapshot. It freezes each node when it first touches it, and remembers
//! in which generation; looking at a node that is missing counts. What it changes, it changes in
//! its own view. The commit compares: if any touched node has another generation now (or has come
//! or gone), another change came in between and the whole is refused with `EAGAIN`. Otherwise the
//! changed nodes are put in place, and each fires one event, in the order in which the
//! transaction first touched them.
//!
//! What a guest's transaction holds on to counts against the guest's quota of memory, with all its
//! other transactions: the paths that it touched, missing ones included, and the nodes in its view,
//! which others may have rewritten long ago. It keeps the names of a node's children and not the
//! children. One of dom0, which has no quota, shares them.
//!
//! Source: Xen's `tools/xenstored/transaction.c`, by its behaviour.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use xs_proto::{DomId, ErrorCode, Names};

use crate::change::{Above, Change, Scope};
use crate::quota::{Quota, Usage};
use crate::rights::{Caller, Rights};
use crate::tree::{Children, Data, Name, Node, Tree, basename, parent, size};

/// Bytes of a record and of its place, besides path and node.
const RECORD: usize = 256;

/// An open transaction.
#[derive(Debug, Default)]
pub(crate) struct Transaction {
    /// In the order of the first touch.
    touched: Vec<Touched>,
    places: HashMap<Arc<str>, usize>,
    /// What each domain uses more (or less) than outside.
    used: BTreeMap<DomId, Usage>,
    /// The domains that got nodes or lost some.
    owners: BTreeSet<DomId>,
    /// Nodes created so far.
    created: u64,
    /// Bytes that it holds on to and that are counted for the domain.
    held: i64,
    /// A quota kept it from touching or from writing a node, so it is not what it was to be.
    spoiled: bool,
    /// A change was seen that makes it conflict.
    broken: bool,
}

#[derive(Debug)]
struct Touched {
    path: Arc<str>,
    /// The node as it was outside at the first touch: its generation and permissions.
    seen: Option<(u64, Arc<Rights>)>,
    /// The node as the transaction sees it.
    view: Option<View>,
    /// Its number among the nodes created in the transaction, if it is one of them.
    created: Option<u64>,
    changed: bool,
    /// Whether it fires an event, and for whom.
    fires: Option<Scope>,
}

impl Touched {
    /// Whether another change came in between.
    fn conflicts(&self, tree: &Tree) -> bool {
        let now = tree.get(&self.path).map(|node| node.data.generation());
        self.seen.as_ref().map(|(generation, _)| *generation) != now
    }
}

#[derive(Debug)]
struct View {
    data: Data,
    /// The children from before the transaction; none for a node that it created.
    base: Base,
    removed: BTreeSet<Arc<str>>,
    removed_bytes: usize,
    /// The names that were added, each with its place in their order. One can be there twice, and
    /// beside the one from before, where the nodes were frozen at different times.
    added: BTreeSet<(Arc<str>, u64)>,
    added_bytes: usize,
    next: u64,
}

/// The children that a node had when it was frozen.
#[derive(Debug)]
enum Base {
    /// For who has no quota: the nodes themselves, shared with the tree.
    Shared(Children),
    /// For a guest, so that it holds on to nothing else.
    Names(Names),
}

impl Base {
    fn names(&self) -> Vec<Arc<str>> {
        match self {
            Self::Shared(children) => children.in_order().map(|node| node.data.name().into()).collect(),
            Self::Names(names) => names.iter().map(Arc::from).collect(),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Shared(children) => children.bytes(),
            Self::Names(names) => names.as_bytes().len(),
        }
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Self::Shared(children) => children.get(Name::new(name)).is_some(),
            Self::Names(names) => names.iter().any(|other| other == name),
        }
    }
}

impl View {
    /// A node frozen as it is.
    fn frozen(node: &Node, caller: &Caller) -> Self {
        let base = if caller.is_privileged() {
            Base::Shared(node.children.clone())
        } else {
            Base::Names(Names::from_names(node.children.in_order().map(|node| node.data.name())))
        };
        Self::new(node.data.clone(), base)
    }

    fn new(data: Data, base: Base) -> Self {
        let (removed, added) = (BTreeSet::new(), BTreeSet::new());
        Self { data, base, removed, removed_bytes: 0, added, added_bytes: 0, next: 0 }
    }

    fn names(&self) -> Vec<Arc<str>> {
        let kept = self.base.names().into_iter().filter(|name| !self.removed.contains(name));
        let mut added: Vec<_> = self.added.iter().collect();
        added.sort_unstable_by_key(|(_, place)| *place);
        kept.chain(added.into_iter().map(|(name, _)| name.clone())).collect()
    }

    fn names_bytes(&self) -> usize {
        self.base.bytes() - self.removed_bytes + self.added_bytes
    }

    fn lists(&self, name: &str) -> bool {
        self.keeps(name) || self.first_added(name).is_some()
    }

    /// Whether a child is there from before the transaction.
    fn keeps(&self, name: &str) -> bool {
        self.base.has(name) && !self.removed.contains(name)
    }

    fn first_added(&self, name: &str) -> Option<&(Arc<str>, u64)> {
        self.added.range((name.into(), 0)..).next().filter(|(added, _)| **added == *name)
    }

    fn link(&mut self, name: &str) {
        self.added.insert((name.into(), self.next));
        self.added_bytes += name.len() + 1;
        self.next += 1;
    }

    fn unlink(&mut self, name: &str) {
        if self.keeps(name) {
            self.removed.insert(name.into());
            self.removed_bytes += name.len() + 1;
        } else if let Some(first) = self.first_added(name).cloned() {
            self.added.remove(&first);
            self.added_bytes -= name.len() + 1;
        }
    }
}

impl Transaction {
    /// Where the record of a node is; it is made, and the node frozen, at the first touch.
    fn touch(&mut self, tree: &Tree, caller: &Caller, room: i64, path: &str) -> Result<usize, ErrorCode> {
        if let Some(place) = self.places.get(path) {
            return Ok(*place);
        }
        let place = self.touched.len();
        caller.check(Quota::TransactionNodes, place).inspect_err(|_| self.spoiled = true)?;
        let node = tree.get(path);
        if !caller.is_privileged() {
            let node = node.map_or(0, |node| bytes(&node.data) + node.children.bytes());
            let held = (RECORD + path.len() + node) as i64;
            if held >= room {
                self.spoiled = true;
                return Err(ErrorCode::ENOMEM);
            }
            self.held += held;
        }
        let path: Arc<str> = path.into();
        self.places.insert(path.clone(), place);
        self.touched.push(Touched {
            path,
            seen: node.map(|node| (node.data.generation(), node.data.rights().clone())),
            view: node.map(|node| View::frozen(node, caller)),
            created: None,
            changed: false,
            fires: None,
        });
        Ok(place)
    }

    /// The node as the transaction sees it. A guest's may hold on to less than `room` bytes more.
    pub(crate) fn get(
        &mut self,
        tree: &Tree,
        caller: &Caller,
        room: i64,
        path: &str,
    ) -> Result<Option<Data>, ErrorCode> {
        let place = self.touch(tree, caller, room, path)?;
        Ok(self.touched[place].view.as_ref().map(|view| view.data.clone()))
    }

    fn view(&self, path: &str) -> Option<&View> {
        let place = *self.places.get(path)?;
        self.touched[place].view.as_ref()
    }

    /// The names of the children of a node that was got before.
    pub(crate) fn names(&self, path: &str) -> Vec<Arc<str>> {
        self.view(path).map(|view| view.names()).unwrap_or_default()
    }

    /// Whether a name is among them.
    pub(crate) fn lists(&self, path: &str, name: &str) -> bool {
        self.view(path).is_some_and(|view| view.lists(name))
    }

    /// The bytes of these names, each with its NUL.
    pub(crate) fn names_bytes(&self, path: &str) -> usize {
        self.view(path).map_or(0, |view| view.names_bytes())
    }

    /// Sets what a node holds that was got before, or creates it; then its parent was got too.
    pub(crate) fn put(&mut self, caller: &Caller, path: &str, data: Data) {
        let Some(&place) = self.places.get(path) else { return };
        if !caller.is_privileged() {
            let before = self.touched[place].view.as_ref().map_or(0, |view| bytes(&view.data));
            self.held += bytes(&data) as i64 - before as i64;
        }
        let generation = data.generation();
        let touched = &mut self.touched[place];
        touched.changed = true;
        if let Some(view) = &mut touched.view {
            view.data = data;
            return;
        }
        touched.created = Some(self.created);
        self.created += 1;
        touched.view = Some(View::new(data, Base::Shared(Children::default())));
        self.relink(path, generation, View::link);
    }

    /// Takes one node out of the view; what was below it must be out already.
    pub(crate) fn remove(&mut self, caller: &Caller, path: &str, generation: u64) {
        let Some(&place) = self.places.get(path) else { return };
        let touched = &mut self.touched[place];
        touched.changed = true;
        touched.created = None;
        if let Some(view) = touched.view.take().filter(|_| !caller.is_privileged()) {
            self.held -= (bytes(&view.data) + view.base.bytes()) as i64;
        }
        self.relink(path, generation, View::unlink);
    }

    fn relink(&mut self, path: &str, generation: u64, change: impl FnOnce(&mut View, &str)) {
        let Some(&place) = parent(path).and_then(|parent| self.places.get(parent)) else { return };
        let parent = &mut self.touched[place];
        if let Some(view) = &mut parent.view {
            parent.changed = true;
            view.data = view.data.with_generation(generation);
            change(view, basename(path));
        }
    }

    /// Makes the node fire at the commit. What is for watches above once, stays so.
    pub(crate) fn fire(&mut self, path: &str, scope: Scope) {
        if let Some(&place) = self.places.get(path) {
            let fires = &mut self.touched[place].fires;
            if *fires != Some(Scope::Above) {
                *fires = Some(scope);
            }
        }
    }

    /// Counts nodes and bytes for their owner.
    pub(crate) fn count(&mut self, owner: DomId, change: Usage) {
        *self.used.entry(owner).or_default() += change;
        if change.nodes != 0 {
            self.owners.insert(owner);
        }
    }

    /// What `owner` uses more in here.
    pub(crate) fn counted(&self, owner: DomId) -> Usage {
        self.used.get(&owner).copied().unwrap_or_default()
    }

    /// Bytes that it holds on to and that count for the domain.
    pub(crate) fn held(&self) -> i64 {
        self.held
    }

    /// The domains that got nodes or lost some, be it for a while.
    pub(crate) fn owners(&self) -> impl Iterator<Item = DomId> {
        self.owners.iter().copied()
    }

    /// What all domains use more, for which that changes.
    pub(crate) fn used(&self) -> impl Iterator<Item = (DomId, Usage)> {
        self.used.iter().map(|(owner, change)| (*owner, *change))
    }

    pub(crate) fn is_spoiled(&self) -> bool {
        self.spoiled
    }

    /// Refuses the commit to come.
    pub(crate) fn spoil(&mut self) {
        self.spoiled = true;
    }

    /// Whether another change came in between.
    pub(crate) fn conflicts(&self, tree: &Tree) -> bool {
        self.touched.iter().any(|touched| touched.conflicts(tree))
    }

    /// Whether a change of a node that was just made makes it conflict, and none before did.
    pub(crate) fn is_broken_by(&mut self, tree: &Tree, changed: &str) -> bool {
        if self.broken {
            return false;
        }
        // What was made or removed changed the nodes above, and what was removed all below.
        let conflicts = |touched: &Touched| touched.conflicts(tree);
        let mut above = std::iter::successors(Some(changed), |path| parent(path));
        let is_below =
            |touched: &&Touched| touched.path.strip_prefix(changed).is_some_and(|rest| rest.starts_with('/'));
        self.broken = above.any(|path| self.places.get(path).is_some_and(|at| conflicts(&self.touched[*at])))
            || tree.get(changed).is_none() && self.touched.iter().filter(is_below).any(conflicts);
        self.broken
    }

    /// Carries out a transaction that was checked. Every changed node gets `generation`.
    ///
    /// Returns what changed, and what each owner gained or lost.
    pub(crate) fn commit(self, tree: &mut Tree, generation: u64) -> (Vec<Change>, BTreeMap<DomId, Usage>) {
        let changes = self.changes(tree);
        // Views hold on to nodes of the tree; without them the tree can be changed in place.
        let changed = self.touched.into_iter().filter(|touched| touched.changed);
        let changed: Vec<_> = changed
            .map(|touched| {
                let data = touched.view.map(|view| view.data.with_generation(generation));
                (touched.path, touched.seen.is_some(), touched.created, data)
            })
            .collect();
        // What was removed and created again moves to the end of its parent's list.
        for (path, existed, created, data) in &changed {
            if *existed && (created.is_some() || data.is_none()) {
                tree.remove(path, generation);
            }
        }
        // Parents were created before their children, and their place decides the order of a list.
        let mut present: Vec<_> =
            changed.into_iter().filter_map(|(path, _, created, data)| Some((created, path, data?))).collect();
        present.sort_by_key(|(created, ..)| created.map_or(u64::MAX, |number| number));
        for (_, path, data) in present {
            tree.put(&path, data);
        }
        (changes, self.used)
    }

    /// What there is to report, in the order of the first touch.
    fn changes(&self, tree: &Tree) -> Vec<Change> {
        let mut changes = Vec::new();
        for (place, Touched { path, seen, view, fires, .. }) in self.touched.iter().enumerate() {
            let Some(scope) = *fires else { continue };
            // Created and removed again: outside, nothing happened.
            if seen.is_none() && view.is_none() {
                continue;
            }
            let before = seen.as_ref().map(|(_, rights)| rights.clone());
            let after = view.as_ref().map(|view| view.data.rights().clone());
            // As in the daemon: who may read the parent hears of a removal outside a transaction,
            // but not of one in it.
            let above = after.as_ref().and_then(|_| self.rights_at(place, tree, parent(path)?));
            let (path, readers, above) = (path.clone(), [before, after], Above::Were(above));
            changes.push(Change { path, scope, readers, above });
        }
        changes
    }

    /// The permissions of a node at the moment when the daemon puts the node of `place` into the
    /// tree: it goes through the nodes in order, so only those touched earlier are changed yet.
    fn rights_at(&self, place: usize, tree: &Tree, path: &str) -> Option<Arc<Rights>> {
        match self.places.get(path) {
            Some(&earlier) if earlier < place => {
                self.touched[earlier].view.as_ref().map(|view| view.data.rights().clone())
            }
            _ => tree.get(path).map(|node| node.data.rights().clone()),
        }
    }
}

/// Bytes of a node but for the names of its children.
fn bytes(data: &Data) -> usize {
    size(data.rights(), data.value().len()) + data.name().len()
}

#[cfg(test)]
mod tests {
    use xs_proto::{Access, Permissions};

    use super::*;
    use crate::domains::Domains;

    #[test]
    fn the_view_of_a_guest_holds_on_to_no_node_below() {
        let rights = || Rights::new(Permissions::owned_by(DomId::DOM0, Access::Read), 0);
        let mut tree = Tree::new(rights());
        let below = rights();
        tree.put("/a", Data::new("a", b"v", below.clone(), 1));
        let guest = Domains::new().caller(DomId(7), false);
        let mut transaction = Transaction::default();
        assert!(transaction.get(&tree, &guest, i64::MAX, "/").is_ok());
        tree.remove("/a", 2);
        assert_eq!(Arc::strong_count(&below), 1);
        assert_eq!(transaction.names("/"), ["a".into()]);
        // Of one that it saw itself, only the permissions.
        tree.put("/a", Data::new("a", b"v", below.clone(), 3));
        assert!(transaction.get(&tree, &guest, i64::MAX, "/a").is_ok());
        transaction.remove(&guest, "/a", 4);
        assert!(transaction.names("/").is_empty());
        assert_eq!(
            transaction.held() as usize,
            2 * RECORD + 1 + 2 + bytes(&Data::new("", b"", rights(), 0)) + 2
        );
    }
}
