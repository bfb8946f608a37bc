//! What can be chosen for a connection.

use std::time::Duration;

use crate::Retry;

/// Settings of a connection.
#[derive(Clone, Debug)]
pub struct Config {
    /// How long a call may take before it fails with [`crate::Error::Timeout`]. Default: 10 s.
    pub deadline: Duration,
    /// Requests that may be unanswered at one time; more wait their turn. Default: 64, which
    /// keeps a daemon busy and stays far below what makes any of them stall.
    pub window: usize,
    /// The longest reply that is accepted, in bytes. Default: 1 MiB, because oxenstored answers
    /// long listings on a socket with more than the protocol's 4096.
    pub reply_limit: usize,
    /// Distinct changed paths kept for a watcher that does not look; beyond it the watcher is
    /// told that anything below its path may have changed. Default: 1024.
    pub watch_backlog: usize,
    /// The most nodes that [`crate::Requests::read_tree`] reads. Default: 100 000.
    pub tree_limit: usize,
    /// Transactions that may be open at one time; more wait their turn. Default: 8, which every
    /// server lets a guest have.
    pub transactions: usize,
    /// How conflicting transactions are tried again.
    pub retry: Retry,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(10),
            window: 64,
            reply_limit: 1 << 20,
            watch_backlog: 1024,
            tree_limit: 100_000,
            transactions: 8,
            retry: Retry::default(),
        }
    }
}
