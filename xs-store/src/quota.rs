//! Quotas: what an unprivileged domain may use up.

use std::{fmt, ops};

/// A resource with a limit.
///
/// The names are the C daemon's.
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
    /// Bytes of nodes, watches and unsent messages.
    Memory,
    /// The same, but going over it is only mentioned in the log.
    SoftMemory,
    /// Entries of a permission list.
    NodePermissions,
    /// Length of a path after a leading `/local/domain/N/`.
    PathMax,
    /// Bytes of a node: value, permissions, names of its children.
    NodeSize,
}

const QUOTAS: [(Quota, &str, u32); 10] = [
    (Quota::Nodes, "nodes", 1000),
    (Quota::Watches, "watches", 128),
    (Quota::Transactions, "transactions", 10),
    (Quota::Outstanding, "outstanding", 20),
    (Quota::TransactionNodes, "transaction-nodes", 1024),
    (Quota::Memory, "memory", 2_621_440),
    (Quota::SoftMemory, "soft-memory", 2_097_152),
    (Quota::NodePermissions, "node-permissions", 5),
    (Quota::PathMax, "path-max", 2048),
    (Quota::NodeSize, "node-size", 2048),
];

impl Quota {
    pub(crate) fn from_name(name: &[u8]) -> Option<Self> {
        QUOTAS.iter().find(|(_, text, _)| text.as_bytes() == name).map(|(quota, ..)| *quota)
    }

    /// Whether it is one that nothing is refused for.
    pub(crate) fn is_soft(self) -> bool {
        self == Self::SoftMemory
    }

    pub(crate) fn is_hard(self) -> bool {
        !self.is_soft()
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

    /// The quotas of a kind as a table.
    pub(crate) fn table(&self, of: fn(Quota) -> bool) -> String {
        let quotas = QUOTAS.iter().filter(|(quota, ..)| of(*quota));
        let lines = quotas.map(|(quota, name, _)| format!("{name:<17}: {:>8}\n", self.get(*quota)));
        format!("Quota settings:\n{}", lines.collect::<String>())
    }
}

/// What a domain uses, or how that changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) nodes: i64,
    pub(crate) watches: i64,
    pub(crate) transactions: i64,
    pub(crate) outstanding: i64,
    pub(crate) memory: i64,
}

impl Usage {
    pub(crate) fn memory(memory: i64) -> Self {
        Self { memory, ..Self::default() }
    }

    fn both(self, other: Self, combine: fn(i64, i64) -> i64) -> Self {
        Self {
            nodes: combine(self.nodes, other.nodes),
            watches: combine(self.watches, other.watches),
            transactions: combine(self.transactions, other.transactions),
            outstanding: combine(self.outstanding, other.outstanding),
            memory: combine(self.memory, other.memory),
        }
    }

    /// The larger one of each.
    pub(crate) fn max(self, other: Self) -> Self {
        self.both(other, i64::max)
    }
}

impl ops::AddAssign for Usage {
    fn add_assign(&mut self, change: Self) {
        *self = self.both(change, i64::wrapping_add);
    }
}

impl ops::Sub for Usage {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self.both(other, i64::wrapping_sub)
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = [
            ("nodes", self.nodes),
            ("watches", self.watches),
            ("transactions", self.transactions),
            ("outstanding", self.outstanding),
            ("memory", self.memory),
        ];
        rows.iter().try_for_each(|(name, amount)| writeln!(f, "{name:<17}: {amount:>8}"))
    }
}

/// All names, with a blank between two.
pub(crate) fn names() -> String {
    QUOTAS.map(|(_, name, _)| name).join(" ")
}
