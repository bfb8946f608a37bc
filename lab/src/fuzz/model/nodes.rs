//! Nodes and transactions.

use std::collections::BTreeSet;

use xs_proto::{DomId, Permissions, Request};

use super::watches::Scope;
use super::{Allowed, Answer, Error, Model, Rights, listed, ok};

#[derive(Clone, Debug)]
pub(super) struct Node {
    value: Vec<u8>,
    rights: Rights,
    /// Names, in the order in which they came.
    children: Vec<String>,
    /// When it last changed.
    generation: u64,
}

impl Node {
    /// A node with one child, or with none if that has no name.
    pub(super) fn new(rights: Rights, child: &str) -> Self {
        let children = Some(child.to_owned()).filter(|name| !name.is_empty());
        Self { value: Vec::new(), rights, children: children.into_iter().collect(), generation: 0 }
    }

    fn listing(&self) -> Vec<u8> {
        self.children.iter().flat_map(|name| format!("{name}\0").into_bytes()).collect()
    }

    fn size(&self) -> usize {
        16 + 8 * self.rights.list.entries().len() + self.value.len() + self.listing().len()
    }
}

/// A transaction: copies of the nodes that it has looked at, in the order of the first look.
#[derive(Debug, Default)]
pub(super) struct Transaction {
    touched: Vec<Touched>,
    /// Domains that got nodes or permissions, or lost some, be it for a while.
    counted: BTreeSet<DomId>,
    /// A quota has refused part of it.
    pub(super) spoiled: bool,
}

#[derive(Debug)]
struct Touched {
    path: String,
    /// The node outside at the first look, and the one inside now.
    outside: Option<Node>,
    inside: Option<Node>,
    changed: bool,
    event: Option<Scope>,
}

impl Transaction {
    /// How many nodes more a domain has inside than outside.
    fn gain(&self, owner: DomId) -> isize {
        let owned =
            |node: &Option<Node>| isize::from(node.as_ref().is_some_and(|node| node.owner() == owner));
        self.touched.iter().map(|touched| owned(&touched.inside) - owned(&touched.outside)).sum()
    }
}

impl Node {
    fn owner(&self) -> DomId {
        self.rights.list.owner()
    }
}

fn parent(path: &str) -> Option<&str> {
    let (above, name) = path.rsplit_once('/')?;
    match (above, name) {
        ("", "") => None,
        ("", _) => Some("/"),
        _ => Some(above),
    }
}

fn name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

/// What a request needs of a node, and with which rights above it one may learn that the node is
/// missing.
type Need = (fn(Allowed) -> bool, fn(Allowed) -> bool);
const READ: Need = (|allowed| allowed.read, |allowed| allowed.read);
const WRITE: Need = (|allowed| allowed.write, |allowed| allowed.write);
const OWN: Need = (|allowed| allowed.own, |allowed| allowed.write || allowed.own);

impl Model {
    /// A request about a node, in the current transaction or outside.
    pub(super) fn node_request(&mut self, request: &Request) -> Answer {
        let path = request.path().filter(|path| !path.is_special()).ok_or("EINVAL")?;
        let path = &self.absolute(path);
        match request {
            Request::Read(_) => Ok(self.get(path, READ)?.value),
            Request::Directory(_) => Ok(self.get(path, READ)?.listing()),
            Request::DirectoryPart { offset, .. } => {
                let node = self.get(path, READ)?;
                let names = node.listing();
                let part = names.get(*offset as usize..).unwrap_or_default();
                Ok([node.generation.to_string().as_bytes(), b"\0", part, b"\0"].concat())
            }
            Request::GetPerms(_) => Ok(listed(&self.get(path, READ)?.rights.list)),
            Request::Write { value, .. } => match self.get(path, WRITE) {
                Ok(node) => self.replace(path, Node { value: value.to_vec(), ..node }),
                Err("ENOENT") => self.create(path, value),
                Err(error) => Err(error),
            },
            Request::Mkdir(_) => match self.get(path, WRITE) {
                Ok(_) => ok(),
                Err("ENOENT") => self.create(path, b""),
                Err(error) => Err(error),
            },
            Request::Rm(_) => match (self.get(path, WRITE), parent(path)) {
                (Ok(_), Some(above)) => {
                    self.look(above)?.ok_or("EINVAL")?;
                    self.remove(path, Scope::Above)
                }
                (Ok(_), None) => Err("EINVAL"),
                // Only its absence is missing.
                (Err("ENOENT"), Some(above)) if self.look(above)?.is_some() => ok(),
                (Err(error), _) => Err(error),
            },
            Request::SetPerms { perms, .. } => self.set_permissions(path, perms),
            other => panic!("the model does not know {other:?}"),
        }
    }

    /// The node, in the transaction that copy of it which was made at the first look.
    fn look(&mut self, path: &str) -> Result<Option<Node>, Error> {
        let Some(transaction) = &self.transaction else { return Ok(self.nodes.get(path).cloned()) };
        if let Some(touched) = transaction.touched.iter().find(|touched| touched.path == path) {
            return Ok(touched.inside.clone());
        }
        self.check("transaction-nodes", transaction.touched.len())?;
        let node = self.nodes.get(path).cloned();
        let (path, outside, inside) = (path.to_owned(), node.clone(), node.clone());
        if let Some(transaction) = &mut self.transaction {
            transaction.touched.push(Touched { path, outside, inside, changed: false, event: None });
        }
        Ok(node)
    }

    /// The node, if the caller has the right. Who could not see it is not told that it is missing.
    fn get(&mut self, path: &str, (suffices, tells): Need) -> Result<Node, Error> {
        let found = self.look(path)?;
        if let Some(node) = &found
            && suffices(self.allowed(self.caller, &node.rights))
        {
            return Ok(node.clone());
        }
        let (_, above) = self.nearest(path)?;
        let may_know = tells(self.allowed(self.caller, &above.rights));
        Err(if found.is_none() && may_know { "ENOENT" } else { "EACCES" })
    }

    /// The nearest node above that is there.
    fn nearest(&mut self, path: &str) -> Result<(String, Node), Error> {
        let above = parent(path).ok_or("EACCES")?;
        match self.look(above)? {
            Some(node) => Ok((above.to_owned(), node)),
            None => self.nearest(above),
        }
    }

    fn put(&mut self, path: &str, node: Option<Node>) {
        let generation = self.tick();
        let node = node.map(|node| Node { generation, ..node });
        match &mut self.transaction {
            Some(transaction) => {
                let touched = transaction.touched.iter_mut().find(|touched| touched.path == path);
                let touched = touched.expect("a node that was looked at");
                let made = |node: &Option<Node>| node.as_ref().map(|node| node.rights.made);
                if made(&touched.inside) != made(&node) {
                    transaction
                        .counted
                        .extend([&touched.inside, &node].into_iter().flatten().map(Node::owner));
                }
                (touched.inside, touched.changed) = (node, true);
            }
            None => {
                self.nodes.remove(path);
                self.nodes.extend(node.map(|node| (path.to_owned(), node)));
            }
        }
    }

    fn replace(&mut self, path: &str, node: Node) -> Answer {
        let before = self.look(path)?.ok_or("EIO")?.rights;
        self.check("node-size", node.size())?;
        let after = node.rights.clone();
        self.put(path, Some(node));
        self.fire(path, Scope::Above, vec![before, after]);
        ok()
    }

    /// Creates a node with those missing above it.
    fn create(&mut self, path: &str, value: &[u8]) -> Answer {
        let (nearest, mut above) = self.nearest(path)?;
        let missing =
            std::iter::successors(Some(path), |path| parent(path)).take_while(|path| *path != nearest);
        let mut missing: Vec<&str> = missing.collect();
        missing.reverse();

        let mut rights = above.rights.clone();
        if !self.caller.privileged {
            let mut entries = rights.list.entries().to_vec();
            entries[0].domid = self.caller.domid;
            rights.list = Permissions::new(entries).expect("as many entries as before");
        }
        above.children.push(name(missing[0]).to_owned());
        let mut nodes = vec![(&*nearest, above)];
        for (at, path) in missing.iter().enumerate() {
            nodes
                .push((path, Node::new(rights.clone(), missing.get(at + 1).map_or("", |below| name(below)))));
        }
        nodes[missing.len()].1.value = value.to_vec();

        // In a transaction the commit will tell.
        let more = if self.transaction.is_some() { 0 } else { missing.len() - 1 };
        if self.exceeds("nodes", self.owned(self.caller.domid) + more) {
            return Err("ENOSPC");
        }
        for (_, node) in &nodes {
            self.check("node-size", node.size())?;
        }
        for (path, node) in nodes {
            self.put(path, Some(node));
        }
        self.fire(path, Scope::Above, vec![rights]);
        ok()
    }

    /// Removes a node, and before it what is below.
    ///
    /// In a transaction its copies need not fit each other: the one of a list can name a node of
    /// which there is none, and lack one which there is. The daemon gives up in the middle then, and
    /// also when it may not look at one more.
    fn remove(&mut self, path: &str, scope: Scope) -> Answer {
        let node = self.look(path).ok().flatten().ok_or("EIO")?;
        for child in &node.children {
            self.remove(&format!("{path}/{child}"), Scope::Exact)?;
        }
        let above = parent(path).ok_or("EINVAL")?;
        let mut list = self.look(above)?.ok_or("EINVAL")?;
        let place = list.children.iter().position(|child| child == name(path));
        if let Some(place) = place {
            list.children.remove(place);
        }
        self.put(above, Some(list));
        self.put(path, None);
        self.fire(path, scope, vec![node.rights]);
        place.ok_or("EIO").and_then(|_| ok())
    }

    /// Removes what a domain that ended leaves.
    pub(super) fn remove_owned(&mut self, owner: DomId) {
        let mut rest = vec!["/".to_owned()];
        while let Some(path) = rest.pop() {
            let node = &self.nodes[&path];
            if node.owner() == owner && path != "/" {
                self.remove(&path, Scope::Above).expect("a node that is there");
            } else {
                let above = path.trim_end_matches('/');
                rest.extend(node.children.iter().rev().map(|child| format!("{above}/{child}")));
            }
        }
    }

    fn set_permissions(&mut self, path: &str, list: &Permissions) -> Answer {
        if self.exceeds("node-permissions", list.entries().len()) {
            return Err("ENOSPC");
        }
        if !self.is_introduced(list.owner()) {
            return Err("ENOENT");
        }
        let node = self.get(path, OWN)?;
        if node.owner() != list.owner() && !self.caller.privileged {
            return Err("EPERM");
        }
        let rights = Rights { list: list.clone(), made: self.tick() };
        self.replace(path, Node { rights, ..node })
    }

    /// Tells of a change now, or at the commit.
    fn fire(&mut self, path: &str, scope: Scope, mut readers: Vec<Rights>) {
        match &mut self.transaction {
            Some(transaction) => {
                let touched = transaction.touched.iter_mut().find(|touched| touched.path == path);
                let event = &mut touched.expect("a node that was looked at").event;
                // What was for all once, stays so.
                *event = event.filter(|earlier| *earlier == Scope::Above).or(Some(scope));
            }
            None => {
                readers.extend(self.rights_above(path));
                self.publish(path, scope, &readers);
            }
        }
    }

    fn rights_above(&self, path: &str) -> Option<Rights> {
        Some(self.nodes.get(parent(path)?)?.rights.clone())
    }

    /// How many nodes a domain has outside of transactions.
    fn owned(&self, owner: DomId) -> usize {
        self.nodes.values().filter(|node| node.owner() == owner).count()
    }

    pub(super) fn commit(&mut self, transaction: Transaction) -> Answer {
        if transaction.spoiled {
            return Err("ENOMEM");
        }
        if transaction.counted.iter().any(|owner| !self.is_introduced(*owner)) {
            return Err("ENOMEM");
        }
        for owner in transaction.counted.iter().filter(|owner| **owner != DomId::DOM0) {
            // One less than outside of a transaction.
            self.check("nodes", self.owned(*owner).saturating_add_signed(transaction.gain(*owner)))?;
        }
        for Touched { path, outside, .. } in &transaction.touched {
            let generation = |node: Option<&Node>| node.map(|node| node.generation);
            if generation(self.nodes.get(path)) != generation(outside.as_ref()) {
                return Err("EAGAIN");
            }
        }
        for Touched { path, outside, inside, changed, event } in transaction.touched {
            if changed {
                self.put(&path, inside.clone());
            }
            let before = outside.map(|node| node.rights);
            let after = inside.map(|node| node.rights);
            let Some(scope) = event.filter(|_| before.is_some() || after.is_some()) else { continue };
            // Who may read just the parent does not hear of a removal.
            let above = after.as_ref().and_then(|_| self.rights_above(&path));
            let readers: Vec<Rights> = [before, after, above].into_iter().flatten().collect();
            self.publish(&path, scope, &readers);
        }
        ok()
    }
}
