//! What a worker knows of the nodes that it alone changes.
//!
//! A write that was given up, or not answered, may have been carried out or not: then a node has
//! more than one value that it may have. It is certain again as soon as it is read, because the
//! connection keeps the order of requests.

use xs_client::Path;

use super::schedule::{NODES, own_node};

/// A value, if the node is there.
type Value = Option<String>;

pub(super) struct Own {
    nodes: Vec<(Path, Vec<Value>)>,
    epoch: u32,
}

impl Own {
    pub(super) fn new(worker: usize) -> Self {
        Self { nodes: (0..NODES).map(|node| (own_node(worker, node), vec![None])).collect(), epoch: 0 }
    }

    pub(super) fn path(&self, node: usize) -> Path {
        self.nodes[node].0.clone()
    }

    /// Takes note that the store may be another one, which began without the nodes.
    pub(super) fn sync(&mut self, epoch: u32) {
        if epoch != self.epoch {
            self.epoch = epoch;
            (0..NODES).for_each(|node| self.may_be(node, None));
        }
    }

    /// What a node may hold.
    pub(super) fn possible(&self, node: usize) -> Vec<Value> {
        self.nodes[node].1.clone()
    }

    /// Something is under way that may make it so.
    pub(super) fn may_be(&mut self, node: usize, value: Value) {
        if !self.nodes[node].1.contains(&value) {
            self.nodes[node].1.push(value);
        }
    }

    /// It is so.
    pub(super) fn is(&mut self, node: usize, value: Value) {
        self.nodes[node].1 = vec![value];
    }

    /// It is what it was: nothing has come of the last change.
    pub(super) fn is_still(&mut self, node: usize, possible: Vec<Value>) {
        self.nodes[node].1 = possible;
    }

    /// It was read. An error tells what it should have been.
    pub(super) fn was_read(&mut self, node: usize, value: Value) -> Result<(), String> {
        let (path, possible) = &mut self.nodes[node];
        let fair = possible.contains(&value);
        let outcome =
            if fair { Ok(()) } else { Err(format!("{path} is read as {value:?}, not {possible:?}")) };
        *possible = vec![value];
        outcome
    }

    /// The directory was listed. An error tells what it should have been.
    pub(super) fn was_listed(&self, names: &[String]) -> Result<(), String> {
        for name in names {
            if !self.nodes.iter().any(|(path, _)| path.name() == name) {
                return Err(format!("the list {names:?} is not one of {:?}", self.nodes[0].0.parent()));
            }
        }
        for (path, possible) in &self.nodes {
            let listed = names.iter().any(|name| path.name() == name);
            if !possible.iter().any(|value| value.is_some() == listed) {
                return Err(format!("the list {names:?} is wrong about {path}, which is {possible:?}"));
            }
        }
        Ok(())
    }
}
