//! What a connection has done so far, in numbers.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::connection::Connection;

/// Counts of a connection since it was made, by [`crate::Client::stats`]. What is there *now*
/// says so; everything else only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Requests sent, those of watches and transactions included.
    pub requests: u64,
    /// Requests that wait for their reply now.
    pub in_flight: u64,
    /// Bytes sent.
    pub bytes_sent: u64,
    /// Bytes received.
    pub bytes_received: u64,
    /// Watches on the server now.
    pub watches: u64,
    /// Changes told to watchers.
    pub changes: u64,
    /// Of these, changes of a path that the watcher was to look at anyway.
    pub coalesced: u64,
    /// How often a watcher's backlog overflowed.
    pub overflows: u64,
    /// Transactions begun, each attempt counted.
    pub transactions: u64,
    /// Attempts that conflicted.
    pub conflicts: u64,
    /// How often the connection was lost and made again.
    pub reconnects: u64,
    /// Reads that were asked again of another connection.
    pub retries: u64,
}

/// The counters behind [`Stats`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) requests: Counter,
    pub(crate) in_flight: Counter,
    pub(crate) bytes_sent: Counter,
    pub(crate) bytes_received: Counter,
    pub(crate) watches: Counter,
    pub(crate) changes: Counter,
    pub(crate) coalesced: Counter,
    pub(crate) overflows: Counter,
    pub(crate) transactions: Counter,
    pub(crate) conflicts: Counter,
    pub(crate) reconnects: Counter,
    pub(crate) retries: Counter,
}

/// A number that somebody else may look at. Nothing is decided by it.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: usize) {
        self.0.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub(crate) fn set(&self, value: usize) {
        self.0.store(value as u64, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    /// Takes over what a connection counts itself.
    pub(crate) fn count(&self, connection: &Connection) {
        self.requests.set(connection.sent());
        self.in_flight.set(connection.in_flight());
        self.watches.set(connection.watches());
        let told = connection.told();
        self.changes.set(told.changes);
        self.coalesced.set(told.coalesced);
        self.overflows.set(told.overflows);
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats {
            requests: self.requests.get(),
            in_flight: self.in_flight.get(),
            bytes_sent: self.bytes_sent.get(),
            bytes_received: self.bytes_received.get(),
            watches: self.watches.get(),
            changes: self.changes.get(),
            coalesced: self.coalesced.get(),
            overflows: self.overflows.get(),
            transactions: self.transactions.get(),
            conflicts: self.conflicts.get(),
            reconnects: self.reconnects.get(),
            retries: self.retries.get(),
        }
    }
}
