//! Transactions, with the meaning they have in the C daemon.
//!
//! A transaction is not a snapshot. It freezes each node when it first touches it, and remembers
//! in which generation; looking at a node that is missing counts. What it changes, it changes in
//! its own view. The commit compares: if any touched node has another generation now (or has come
//! or gone), another change came in between and the whole is refused with `EAGAIN`. Otherwise the
//! changed nodes are put in place, and each fires one event, in the order in which the
//! transaction first touched them.
//!
//! Source: Xen's `tools/xenstored/transaction.c`, by its behaviour.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use xs_proto::{DomId, ErrorCode};

use crate::change::{Above, Change, Scope};
use crate::quota::{Quota, Usage};
use crate::rights::{Caller, Rights};
use crate::tree::{Children, Data, Name, Node, Tree, basename, parent};

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
    /// A quota kept it from touching or from writing a node, so it is not what it was to be.
    spoiled: bool,
}

#[derive(Debug)]
struct Touched {
    path: Arc<str>,
    /// The node as it was outside at the first touch.
    seen: Option<Data>,
    /// The node as the transaction sees it.
    view: Option<View>,
    /// Its number among the nodes created in the transaction, if it is one of them.
    created: Option<u64>,
    changed: bool,
    /// Whether it fires an event, and for whom.
    fires: Option<Scope>,
}

#[derive(Debug)]
struct View {
    data: Data,
    /// The children from before the transaction; none for a node that it created.
    base: Children,
    removed: BTreeSet<Arc<str>>,
    removed_bytes: usize,
    /// The names that were added, each with its place in their order. One can be there twice, and
    /// beside the one from before, where the nodes were frozen at different times.
    added: BTreeSet<(Arc<str>, u64)>,
    added_bytes: usize,
    next: u64,
}

impl View {
    /// A node frozen as it is, or one just created.
    fn new(Node { data, children: base }: Node) -> Self {
        let (removed, added) = (BTreeSet::new(), BTreeSet::new());
        Self { data, base, removed, removed_bytes: 0, added, added_bytes: 0, next: 0 }
    }

    fn names(&self) -> Vec<Arc<str>> {
        let base = self.base.in_order().map(|node| node.data.name());
        let kept = base.filter(|name| !self.removed.contains(*name)).map(Arc::from);
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
        self.base.get(Name::new(name)).is_some() && !self.removed.contains(name)
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
    fn touch(&mut self, tree: &Tree, caller: &Caller, path: &str) -> Result<usize, ErrorCode> {
        if let Some(place) = self.places.get(path) {
            return Ok(*place);
        }
        let place = self.touched.len();
        caller.check(Quota::TransactionNodes, place).inspect_err(|_| self.spoiled = true)?;
        let node = tree.get(path);
        let path: Arc<str> = path.into();
        self.places.insert(path.clone(), place);
        self.touched.push(Touched {
            path,
            seen: node.map(|node| node.data.clone()),
            view: node.cloned().map(View::new),
            created: None,
            changed: false,
            fires: None,
        });
        Ok(place)
    }

    /// The node as the transaction sees it.
    pub(crate) fn get(
        &mut self,
        tree: &Tree,
        caller: &Caller,
        path: &str,
    ) -> Result<Option<Data>, ErrorCode> {
        let place = self.touch(tree, caller, path)?;
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
    pub(crate) fn put(&mut self, path: &str, data: Data) {
        let Some(&place) = self.places.get(path) else { return };
        let generation = data.generation();
        let touched = &mut self.touched[place];
        touched.changed = true;
        if let Some(view) = &mut touched.view {
            view.data = data;
            return;
        }
        touched.created = Some(self.created);
        self.created += 1;
        touched.view = Some(View::new(Node { data, children: Children::default() }));
        self.relink(path, generation, View::link);
    }

    /// Takes one node out of the view; what was below it must be out already.
    pub(crate) fn remove(&mut self, path: &str, generation: u64) {
        let Some(&place) = self.places.get(path) else { return };
        let touched = &mut self.touched[place];
        touched.changed = true;
        touched.created = None;
        touched.view = None;
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
        let same = |touched: &Touched| {
            let now = tree.get(&touched.path).map(|node| node.data.generation());
            touched.seen.as_ref().map(Data::generation) == now
        };
        !self.touched.iter().all(same)
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
            let before = seen.as_ref().map(|data| data.rights().clone());
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
