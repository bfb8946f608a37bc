//! Requests about nodes, outside a transaction and in one.

use std::sync::Arc;

use bytes::Bytes;
use xs_proto::{DomId, ErrorCode, Names, PAYLOAD_MAX, Permissions, Reply};

use crate::change::{Above, Change, Scope};
use crate::domains::Domains;
use crate::quota::{Quota, Usage};
use crate::rights::{Caller, Need, Rights};
use crate::transaction::Transaction;
use crate::tree::{Data, Tree, basename, child, parent, size, visit_upwards};
use crate::watch::Watches;

/// The last listing: of which path, in which generation.
pub(crate) type Listing = (String, u64, Names);

/// One request at work. Paths are absolute.
#[derive(Debug)]
pub(crate) struct Nodes<'a> {
    pub(crate) caller: &'a Caller,
    /// What the request changes gets this generation.
    pub(crate) generation: u64,
    pub(crate) tree: &'a mut Tree,
    pub(crate) transaction: Option<&'a mut Transaction>,
    pub(crate) domains: &'a mut Domains,
    pub(crate) watches: &'a Watches,
    pub(crate) listed: &'a mut Listing,
    /// What the request changed outside any transaction, in the order to report it.
    pub(crate) changes: Vec<Change>,
}

impl Nodes<'_> {
    pub(crate) fn read(&mut self, path: &str) -> Result<Reply, ErrorCode> {
        Ok(Reply::Value(Bytes::copy_from_slice(self.get(path, Need::READ)?.value())))
    }

    pub(crate) fn permissions(&mut self, path: &str) -> Result<Reply, ErrorCode> {
        Ok(Reply::Perms(self.get(path, Need::READ)?.rights().list.clone()))
    }

    pub(crate) fn directory(&mut self, path: &str) -> Result<Reply, ErrorCode> {
        let generation = self.get(path, Need::READ)?.generation();
        // No listing is built only to find that it does not fit.
        if self.names_bytes(path) > PAYLOAD_MAX {
            return Err(ErrorCode::E2BIG);
        }
        Ok(Reply::Names(self.listing(path, generation)))
    }

    pub(crate) fn directory_part(&mut self, path: &str, offset: u32) -> Result<Reply, ErrorCode> {
        let generation = self.get(path, Need::READ)?.generation();
        let names = self.listing(path, generation);
        // Room for the names: a part is the generation and its NUL, names, and at the end one NUL.
        let room = PAYLOAD_MAX - generation.to_string().len() - 2;
        let names = names.as_bytes().slice(names.as_bytes().len().min(offset as usize)..);
        if names.len() <= room {
            return Ok(Reply::Part { generation, names: Names::from_list(names), last: true });
        }
        // Whole names only. One that is longer than that can be listed by nobody.
        let end = names[..room].iter().rposition(|byte| *byte == 0).ok_or(ErrorCode::E2BIG)?;
        Ok(Reply::Part { generation, names: Names::from_list(names.slice(..=end)), last: false })
    }

    /// The names of the children. The last listing is kept, since a long one is asked for in many
    /// parts.
    fn listing(&mut self, path: &str, generation: u64) -> Names {
        let (last_path, last_generation, names) = &*self.listed;
        if (&**last_path, *last_generation) == (path, generation) {
            return names.clone();
        }
        let names = match &self.transaction {
            Some(transaction) => Names::from_names(transaction.names(path).iter().map(|name| &**name)),
            None => {
                let node = self.tree.get(path);
                let nodes = node.into_iter().flat_map(|node| node.children.in_order());
                Names::from_names(nodes.map(|node| node.data.name()))
            }
        };
        *self.listed = (path.to_owned(), generation, names.clone());
        names
    }

    pub(crate) fn write(&mut self, path: &str, value: &[u8]) -> Result<Reply, ErrorCode> {
        match self.get(path, Need::WRITE) {
            Ok(data) => {
                self.check_change(path, data.rights(), value.len())?;
                let rights = data.rights().clone();
                let memory = value.len() as i64 - data.value().len() as i64;
                if memory != 0 {
                    let change = Usage { memory, ..Usage::default() };
                    self.check_memory(rights.list.owner(), change)?;
                    self.count(rights.list.owner(), change);
                }
                self.replace(path, rights, data.with_value(value, self.generation));
            }
            Err(ErrorCode::ENOENT) => self.create(path, value)?,
            Err(refusal) => return Err(refusal),
        }
        Ok(Reply::Ok)
    }

    pub(crate) fn mkdir(&mut self, path: &str) -> Result<Reply, ErrorCode> {
        match self.get(path, Need::WRITE) {
            Ok(_) => {}
            Err(ErrorCode::ENOENT) => self.create(path, b"")?,
            Err(refusal) => return Err(refusal),
        }
        Ok(Reply::Ok)
    }

    pub(crate) fn remove(&mut self, path: &str) -> Result<Reply, ErrorCode> {
        match self.get(path, Need::WRITE) {
            Ok(_) => {}
            // A node that is missing is as good as removed, if it could have been there.
            Err(ErrorCode::ENOENT) => {
                let above = parent(path).ok_or(ErrorCode::ENOENT)?;
                return self.look(above)?.map(|_| Reply::Ok).ok_or(ErrorCode::ENOENT);
            }
            Err(refusal) => return Err(refusal),
        }
        if path == "/" {
            return Err(ErrorCode::EINVAL);
        }
        if self.transaction.is_some() {
            self.remove_in_transaction(path)?;
        } else {
            self.remove_now(path);
        }
        Ok(Reply::Ok)
    }

    pub(crate) fn set_permissions(&mut self, path: &str, list: Permissions) -> Result<Reply, ErrorCode> {
        // Refused before anything is looked at, so not to the harm of a transaction.
        self.caller.check(Quota::NodePermissions, list.entries().len())?;
        let owner = list.owner();
        if !self.domains.exists(owner) {
            return Err(ErrorCode::ENOENT);
        }
        let data = self.get(path, Need::OWN)?;
        let before = data.rights().clone();
        if owner != before.list.owner() && !self.caller.is_privileged() {
            return Err(ErrorCode::EPERM);
        }
        let rights = Rights::new(list, self.generation);
        self.check_change(path, &rights, data.value().len())?;
        let changed = data.with_rights(rights, self.generation);
        let (lost, gained) = (usage(path, &data), usage(path, &changed));
        let gain = if owner == before.list.owner() { gained - lost } else { gained };
        self.check_memory(owner, gain)?;
        self.count(before.list.owner(), Usage::default() - lost);
        self.count(owner, gained);
        self.replace(path, before, changed);
        Ok(Reply::Ok)
    }

    /// The node, if the caller has what it needs.
    fn get(&mut self, path: &str, need: Need) -> Result<Data, ErrorCode> {
        let found = self.look(path)?;
        let exists = found.is_some();
        if let Some(data) = found.filter(|data| data.rights().allow(self.caller, need)) {
            return Ok(data);
        }
        // That a node is missing is for those to know who could see it: the nearest node above
        // decides. It is looked at in any case, which a transaction can tell.
        let admitted = self.nearest(path).map(|(_, above)| above.rights().admit(self.caller, need));
        match admitted {
            Ok(true) if !exists => Err(ErrorCode::ENOENT),
            Ok(_) => Err(ErrorCode::EACCES),
            Err(refusal) => Err(refusal),
        }
    }

    /// The nearest node above `path` that exists.
    fn nearest<'p>(&mut self, path: &'p str) -> Result<(&'p str, Data), ErrorCode> {
        let mut at = path;
        while let Some(above) = parent(at) {
            if let Some(data) = self.look(above)? {
                return Ok((above, data));
            }
            at = above;
        }
        // Only the root has nothing above.
        Err(ErrorCode::EACCES)
    }

    fn look(&mut self, path: &str) -> Result<Option<Data>, ErrorCode> {
        match &mut self.transaction {
            Some(transaction) => {
                let before = transaction.held();
                let room = self.domains.room(self.caller);
                let found = transaction.get(self.tree, self.caller, room, path);
                let more = transaction.held() - before;
                if more != 0 {
                    self.domains.count(self.caller.domid, Usage::memory(more));
                }
                found
            }
            None => Ok(self.tree.get(path).map(|node| node.data.clone())),
        }
    }

    fn names(&self, path: &str) -> Vec<Arc<str>> {
        match &self.transaction {
            Some(transaction) => transaction.names(path),
            None => self
                .tree
                .get(path)
                .map(|node| node.children.in_order().map(|node| node.data.name().into()).collect())
                .unwrap_or_default(),
        }
    }

    fn names_bytes(&self, path: &str) -> usize {
        match &self.transaction {
            Some(transaction) => transaction.names_bytes(path),
            None => self.tree.get(path).map_or(0, |node| node.children.bytes()),
        }
    }

    fn put(&mut self, path: &str, data: Data) {
        if self.transaction.is_some() {
            self.in_transaction(|transaction, caller| transaction.put(caller, path, data));
        } else {
            self.tree.put(path, data);
        }
    }

    /// Changes what the transaction holds on to, and counts it.
    fn in_transaction(&mut self, change: impl FnOnce(&mut Transaction, &Caller)) {
        let Some(transaction) = &mut self.transaction else { return };
        let before = transaction.held();
        change(transaction, self.caller);
        let more = transaction.held() - before;
        if more != 0 {
            self.domains.count(self.caller.domid, Usage::memory(more));
        }
    }

    /// Sets what an existing node holds, and reports it.
    fn replace(&mut self, path: &str, before: Arc<Rights>, data: Data) {
        let after = data.rights().clone();
        if self.transaction.is_some() {
            self.in_transaction(|transaction, caller| transaction.put(caller, path, data));
        } else {
            self.tree.replace(path, data);
        }
        self.fire(path, Some(before), after);
    }

    /// Creates a node that is missing, and the missing ones above it.
    fn create(&mut self, path: &str, value: &[u8]) -> Result<(), ErrorCode> {
        let (existing, above) = self.nearest(path)?;
        let ancestors = std::iter::successors(Some(path), |path| parent(path));
        let mut missing: Vec<&str> = ancestors.take_while(|path| *path != existing).collect();
        missing.reverse();
        let rights = above.rights().inherited_by(self.caller);

        // In a transaction the commit will tell.
        let before = if self.transaction.is_some() { 0 } else { missing.len() - 1 };
        let owned = usize::try_from(self.domains.counted(self.caller.domid).nodes).unwrap_or_default();
        self.caller.check(Quota::Nodes, owned + before)?;
        let names = self.names_bytes(existing) + basename(missing[0]).len() + 1;
        self.check_size(above.rights(), above.value().len(), names)?;
        for below in &missing[1..] {
            self.check_size(&rights, 0, basename(below).len() + 1)?;
        }
        self.check_size(&rights, value.len(), 0)?;

        let mut created = Vec::with_capacity(missing.len());
        let mut gain = Usage::default();
        for at in missing {
            let value = if at == path { value } else { b"" };
            let data = Data::new(basename(at), value, rights.clone(), self.generation);
            gain += usage(at, &data);
            created.push((at, data));
        }
        self.check_memory(rights.list.owner(), gain)?;
        for (at, data) in created {
            self.put(at, data);
        }
        self.count(rights.list.owner(), gain);
        self.fire(path, None, rights);
        Ok(())
    }

    /// Takes an existing node with all below it out of the tree.
    pub(crate) fn remove_now(&mut self, path: &str) {
        let Some(above) = parent(path).and_then(|parent| self.tree.get(parent)) else { return };
        let above = above.data.clone();
        let Some(node) = self.tree.remove(path, self.generation) else { return };
        visit_upwards(path, &node, &above, |below, data, above| {
            self.domains.count(data.rights().list.owner(), Usage::default() - usage(below, data));
            let scope = if below == path { Scope::Above } else { Scope::Exact };
            if scope == Scope::Above || self.watches.any_on(below) {
                let readers = [Some(data.rights().clone()), None];
                let above = Above::Were(Some(above.rights().clone()));
                self.changes.push(Change { path: below.into(), scope, readers, above });
            }
        });
    }

    /// The same in a transaction, which touches the parent and every node below.
    ///
    /// As nodes are frozen one by one, a list can miss a node that is there, or name one that is
    /// not. The daemon takes that for damage and stops, half way; the commit would be refused
    /// anyway.
    fn remove_in_transaction(&mut self, path: &str) -> Result<(), ErrorCode> {
        self.look(parent(path).ok_or(ErrorCode::EINVAL)?)?.ok_or(ErrorCode::EINVAL)?;
        // Names are taken from the end.
        let backwards = |mut names: Vec<Arc<str>>| {
            names.reverse();
            names
        };
        let mut stack = vec![(path.to_owned(), backwards(self.names(path)))];
        while let Some((at, names)) = stack.last_mut() {
            if let Some(name) = names.pop() {
                let below = child(at, &name);
                // As is one more node than the transaction may look at.
                self.look(&below).ok().flatten().ok_or(ErrorCode::EIO)?;
                let names = backwards(self.names(&below));
                stack.push((below, names));
            } else if let Some((at, _)) = stack.pop() {
                let data = self.look(&at)?.ok_or(ErrorCode::EIO)?;
                let transaction = self.transaction.as_mut().ok_or(ErrorCode::EIO)?;
                let listed = parent(&at).is_some_and(|above| transaction.lists(above, basename(&at)));
                transaction.count(data.rights().list.owner(), Usage::default() - usage(&at, &data));
                transaction.fire(&at, if at == path { Scope::Above } else { Scope::Exact });
                let generation = self.generation;
                self.in_transaction(|transaction, caller| transaction.remove(caller, &at, generation));
                if !listed {
                    return Err(ErrorCode::EIO);
                }
            }
        }
        Ok(())
    }

    /// Reports a node that was created or changed.
    fn fire(&mut self, path: &str, before: Option<Arc<Rights>>, after: Arc<Rights>) {
        match &mut self.transaction {
            Some(transaction) => transaction.fire(path, Scope::Above),
            None if self.watches.is_empty() => {}
            None => {
                let readers = [before, Some(after)];
                let change = Change { path: path.into(), scope: Scope::Above, readers, above: Above::Are };
                self.changes.push(change);
            }
        }
    }

    fn count(&mut self, owner: DomId, change: Usage) {
        match &mut self.transaction {
            Some(transaction) => transaction.count(owner, change),
            None => self.domains.count(owner, change),
        }
    }

    /// Fails if an existing node would become larger than the caller may make it.
    fn check_change(&mut self, path: &str, rights: &Rights, value: usize) -> Result<(), ErrorCode> {
        if self.caller.is_privileged() {
            return Ok(());
        }
        let names = self.names_bytes(path);
        self.check_size(rights, value, names)
    }

    /// Fails if a node would be larger than the caller may make it. The sum is the C daemon's:
    /// a header, the permission entries, the value, the names of the children.
    fn check_size(&mut self, rights: &Rights, value: usize, names: usize) -> Result<(), ErrorCode> {
        self.refused(self.caller.check(Quota::NodeSize, size(rights, value) + names))
    }

    /// Fails if the use of memory of an owner would grow over its quota. What is written in a
    /// transaction counts for the caller as well, who holds on to it.
    fn check_memory(&mut self, owner: DomId, change: Usage) -> Result<(), ErrorCode> {
        if change.memory <= 0 {
            return Ok(());
        }
        let (caller, domains) = (self.caller, &*self.domains);
        let outcome = match &self.transaction {
            None => domains.check_memory(caller, owner, change.memory),
            Some(_) if owner == caller.domid => domains.check_memory(caller, owner, change.memory),
            Some(transaction) => {
                let more = change.memory + transaction.counted(owner).memory;
                let inside = domains.check_memory(caller, caller.domid, change.memory);
                inside.and_then(|()| domains.check_memory(caller, owner, more))
            }
        };
        self.refused(outcome)
    }

    /// A transaction in which a node could not be written cannot be committed any more.
    fn refused(&mut self, outcome: Result<(), ErrorCode>) -> Result<(), ErrorCode> {
        if let (Err(_), Some(transaction)) = (&outcome, &mut self.transaction) {
            transaction.spoil();
        }
        outcome
    }
}

/// What a node counts for its owner: its record, and where it is entered in the store and in the
/// list of its parent.
pub(crate) fn usage(path: &str, data: &Data) -> Usage {
    let memory = size(data.rights(), data.value().len()) + path.len() + data.name().len() + 1;
    Usage { nodes: 1, memory: memory as i64, ..Usage::default() }
}
