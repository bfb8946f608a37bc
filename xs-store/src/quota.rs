//! Quotas: what an unprivileged domain may use up.

use std::fmt::Write as _;

/// A resource with a limit.
///
/// The names are the C daemon's. Its limits for memory are not among them: what a domain can take is
/// bounded by the others together, and what a connection may leave unread for every connection
/// alike (see [`crate::Store`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quota {
    /// Nodes owned.
    Nodes,
    /// Watches registered.
    Watches,
    /// Transactions open.
    Transactions,
    /// Replies on a ring that are not sent yet; with more, requests are not read.
    Outstanding,
    /// Nodes touched in one transaction, looked-up missing ones included.
    TransactionNodes,
    /// Entries of a permission list.
    NodePermissions,
    /// Length of a path after a leading `/local/domain/N/`.
    PathMax,
    /// Bytes of a node: value, permissions, names of its children.
    NodeSize,
}

const QUOTAS: [(Quota, &str, u32); 8] = [
    (Quota::Nodes, "nodes", 1000),
    (Quota::Watches, "watches", 128),
    (Quota::Transactions, "transactions", 10),
    (Quota::Outstanding, "outstanding", 20),
    (Quota::TransactionNodes, "transaction-nodes", 1024),
    (Quota::NodePermissions, "node-permissions", 5),
    (Quota::PathMax, "path-max", 2048),
    (Quota::NodeSize, "node-size", 2048),
];

impl Quota {
    pub(crate) fn from_name(name: &[u8]) -> Option<Self> {
        QUOTAS.iter().find(|(_, text, _)| text.as_bytes() == name).map(|(quota, ..)| *quota)
    }
}

/// A limit for each quota; 0 is none.
#[derive(Clone, Debug)]
pub(crate) struct Limits([u32; QUOTAS.len()]);

impl Default for Limits {
    fn default() -> Self {
        Self(QUOTAS.map(|(_, _, limit)| limit))
    }
}

impl Limits {
    pub(crate) fn get(&self, quota: Quota) -> u32 {
        self.0[quota as usize]
    }

    pub(crate) fn set(&mut self, quota: Quota, limit: u32) {
        self.0[quota as usize] = limit;
    }

    /// Whether `amount` is too much. As in the C daemon since 4.22, reaching the limit is.
    pub(crate) fn refuses(&self, quota: Quota, amount: usize) -> bool {
        let limit = self.get(quota);
        limit != 0 && amount >= limit as usize
    }

    /// The table that `CONTROL quota` shows.
    pub(crate) fn table(&self) -> String {
        QUOTAS.iter().fold("Quota settings:\n".to_owned(), |mut text, (quota, name, _)| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name:<17}: {:>8}", self.get(*quota));
            text
        })
    }
}

/// All names, with a blank between two.
pub(crate) fn names() -> String {
    QUOTAS.map(|(_, name, _)| name).join(" ")
}
