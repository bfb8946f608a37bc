//! A subtree, read in as few round trips as it has levels.

use std::collections::BTreeMap;

use bytes::Bytes;
use xs_proto::{Op, Path, Reply, Request};

use crate::requests::unexpected;
use crate::{Error, Requests};

/// A node and all below it, as [`Requests::read_tree`] found them.
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
struct Found {
    path: Path,
    parent: usize,
    tree: Tree,
}

impl Requests {
    /// Reads a node and all below it, a level at a time, each with all its requests under way
    /// together; `None` if there is no such node.
    ///
    /// Outside of a transaction others may change the nodes meanwhile: what is removed before it
    /// is read is left out. In a transaction the tree is that of one moment, or the commit
    /// conflicts. The deadline is for each level.
    ///
    /// Fails with [`Error::TooLarge`] if there are more nodes than [`crate::Config::tree_limit`],
    /// and with `EACCES` if one of them may not be read. Dropping the future is safe.
    pub async fn read_tree(&self, path: &Path) -> Result<Option<Tree>, Error> {
        let mut found: Vec<Found> = Vec::new();
        let mut level = vec![(path.clone(), 0)];
        while !level.is_empty() {
            if found.len() + level.len() > self.handle.config.tree_limit {
                return Err(Error::TooLarge { path: path.clone(), limit: self.handle.config.tree_limit });
            }
            level = self.read_level(level, &mut found).await?;
        }
        // Children were found after their parents.
        while let Some(Found { path, parent, tree }) = found.pop() {
            match found.get_mut(parent) {
                Some(parent) => drop(parent.tree.children.insert(path.name().to_owned(), tree)),
                None => return Ok(Some(tree)),
            }
        }
        Ok(None)
    }

    /// Reads some nodes and returns those below them.
    async fn read_level(
        &self,
        level: Vec<(Path, usize)>,
        found: &mut Vec<Found>,
    ) -> Result<Vec<(Path, usize)>, Error> {
        let both = |path: &Path| [Request::Read(path.clone()), Request::Directory(path.clone())];
        let requests = level.iter().flat_map(|(path, _)| both(path)).collect();
        let mut replies = self.batch(requests).await?.into_iter();
        let mut below = Vec::new();
        for (path, parent) in level {
            let (Some(value), Some(names)) = (replies.next(), replies.next()) else {
                return Err(unexpected(Op::READ));
            };
            let value = match value {
                // A copy, for the reply's buffer holds whatever else came with it.
                Ok(Reply::Value(value)) => Bytes::copy_from_slice(&value),
                Ok(_) => return Err(unexpected(Op::READ)),
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(error),
            };
            let names = match names {
                Ok(Reply::Names(names)) => names.iter().map(str::to_owned).collect(),
                Ok(_) => return Err(unexpected(Op::DIRECTORY)),
                // Long lists have to be asked for in parts.
                Err(error) if error.code() == Some(&xs_proto::ErrorCode::E2BIG) => {
                    self.directory_or_empty(&path).await?
                }
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(error),
            };
            let place = found.len();
            for name in names {
                below.push((path.join(name)?, place));
            }
            // The root has no parent, not even itself.
            let parent = if found.is_empty() { usize::MAX } else { parent };
            found.push(Found { path, parent, tree: Tree { value, children: BTreeMap::new() } });
        }
        Ok(below)
    }
}
