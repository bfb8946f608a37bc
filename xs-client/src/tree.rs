//! A subtree, read in as few round trips as it has levels, or a few more where these are wide.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use xs_proto::{Op, PAYLOAD_MAX, Path, Request};

use crate::Error;
use crate::typed::{self, Listing, Outcome, unexpected};

/// A node and all below it, as [`crate::Requests::read_tree`] found them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// The value of the node.
    pub value: Bytes,
    /// The nodes below it, by name.
    pub children: BTreeMap<String, Self>,
}

impl Tree {
    /// The node at a path below this one, such as `device/vbd`; the node itself for an empty one.
    pub fn get(&self, below: &str) -> Option<&Self> {
        let mut names = below.split('/').filter(|name| !name.is_empty());
        names.try_fold(self, |node, name| node.children.get(name))
    }

    /// The value at a path below this node.
    pub fn value(&self, below: &str) -> Option<&Bytes> {
        self.get(below).map(|node| &node.value)
    }

    /// All nodes, each with its path below this one: parents before their children, and these by
    /// name. The first is this node, with an empty path.
    pub fn nodes(&self) -> impl Iterator<Item = (String, &Self)> {
        let mut rest = vec![(String::new(), self)];
        std::iter::from_fn(move || {
            let (path, node) = rest.pop()?;
            let below = node.children.iter().rev().map(|(name, child)| {
                let slash = if path.is_empty() { "" } else { "/" };
                (format!("{path}{slash}{name}"), child)
            });
            rest.extend(below.collect::<Vec<_>>());
            Some((path, node))
        })
    }
}

/// A node that was read; the one it is below is found by its place.
#[derive(Debug)]
struct Found {
    path: Path,
    parent: usize,
    tree: Tree,
}

/// So many nodes are asked for together: many times the window, and few enough that their replies, each
/// as long as it may be, are no danger.
const TOGETHER: usize = 256;

/// A subtree that is being read, a level at a time.
#[derive(Debug)]
pub(crate) struct Reading {
    root: Path,
    limit: usize,
    found: Vec<Found>,
    /// The nodes to be read next, each with the place of its parent.
    next: VecDeque<(Path, usize)>,
    /// Bytes that may still come: a node's name and value were once in one message.
    bytes_left: usize,
}

impl Reading {
    /// Reads no more than `limit` nodes.
    pub(crate) fn new(root: &Path, limit: usize) -> Self {
        // The root has no parent, not even itself.
        let next = [(root.clone(), usize::MAX)].into();
        let bytes_left = Self::bytes(limit);
        Self { root: root.clone(), limit, found: Vec::new(), next, bytes_left }
    }

    /// What so many nodes can have.
    fn bytes(nodes: usize) -> usize {
        nodes.saturating_mul(PAYLOAD_MAX)
    }

    fn check_limit(&self) -> Result<(), Error> {
        if self.found.len() + self.next.len() > self.limit {
            return Err(Error::TooLarge { path: self.root.clone(), limit: self.limit });
        }
        Ok(())
    }

    /// What to ask for next, all together; nothing if it is complete.
    pub(crate) fn requests(&self) -> Result<Vec<Request>, Error> {
        self.check_limit()?;
        let both = |path: &Path| [Request::Read(path.clone()), Request::Directory(path.clone())];
        Ok(self.next.iter().take(TOGETHER).flat_map(|(path, _)| both(path)).collect())
    }

    /// Takes the replies. Returns the nodes whose lists have to be asked for in parts, each with
    /// its place for [`Self::take_names`].
    pub(crate) fn take(&mut self, outcomes: Vec<Outcome>) -> Result<Vec<(Path, usize)>, Error> {
        let mut outcomes = outcomes.into_iter();
        let mut long = Vec::new();
        while let Some(value) = outcomes.next() {
            let (Some(names), Some((path, parent))) = (outcomes.next(), self.next.pop_front()) else {
                return Err(unexpected(Op::READ));
            };
            let Some(value) = typed::found(typed::value(value))? else { continue };
            let Some(listing) = typed::found(typed::listing(&path, names))? else { continue };
            let place = self.found.len();
            let Some(left) = self.bytes_left.checked_sub(path.name().len() + value.len()) else {
                return Err(Error::Endless { path: self.root.clone(), limit: Self::bytes(self.limit) });
            };
            self.bytes_left = left;
            match listing {
                Listing::Whole(names) => self.take_names(&path, place, names)?,
                Listing::Long(_) => long.push((path.clone(), place)),
            }
            // A copy, for the reply's buffer holds whatever else came with it.
            let tree = Tree { value: Bytes::copy_from_slice(&value), children: BTreeMap::new() };
            self.found.push(Found { path, parent, tree });
        }
        Ok(long)
    }

    /// Takes the names of a node's children.
    pub(crate) fn take_names(&mut self, path: &Path, place: usize, names: Vec<String>) -> Result<(), Error> {
        for name in names {
            self.next.push_back((path.join(name)?, place));
            self.check_limit()?;
        }
        Ok(())
    }

    /// What was read; `None` if there is no such node.
    pub(crate) fn tree(mut self) -> Option<Tree> {
        // Children were found after their parents.
        while let Some(Found { path, parent, tree }) = self.found.pop() {
            match self.found.get_mut(parent) {
                Some(parent) => drop(parent.tree.children.insert(path.name().to_owned(), tree)),
                None => return Some(tree),
            }
        }
        None
    }
}
