//! What can be chosen for a connection.

use std::time::Duration;

use crate::Retry;
use crate::retry::Pauses;

/// Settings of a connection.
#[derive(Clone, Debug)]
pub struct Config {
    /// How long a call may take before it fails with [`crate::Error::Timeout`]. Default: 10 s.
    pub deadline: Duration,
    /// Requests that may be unanswered at one time; more wait, and single calls and batches take
    /// turns. `usize::MAX` is for no bound, and 0 is taken for 1. Default: 64, which keeps a daemon busy
    /// and stays far below what makes any of them stall.
    pub window: usize,
    /// The longest reply that is accepted, in bytes. Default: 1 MiB, because oxenstored answers
    /// long listings on a socket with more than the protocol's 4096.
    pub reply_limit: usize,
    /// Distinct changed paths below its own that are kept for a watcher that does not look; beyond
    /// it the watcher is told that anything may have changed. Default: 1024.
    pub watch_backlog: usize,
    /// The most nodes that [`crate::Requests::read_tree`] reads, with 4096 bytes for each: no store has
    /// more, for that is what one message has room for. Default: 100 000.
    pub tree_limit: usize,
    /// Transactions that may be open at one time; more wait their turn. `usize::MAX` is for no bound,
    /// and 0 is taken for 1. Default: 8, which every server lets a guest have.
    pub transactions: usize,
    /// How conflicting transactions are tried again.
    pub retry: Retry,
    /// How long to look for a reply again and again before the thread sleeps for it; 0 is not at
    /// all. Default: 50 µs.
    ///
    /// To be woken can take longer than the daemon needs to answer, and cost more than looking: on
    /// two CPUs of a virtual machine (as domain 0 is one) a call was seen to take 30 µs instead of
    /// 88, and 39 µs of CPU time instead of 45, both sides together. Other tasks of the runtime
    /// have their turns meanwhile. Nobody looks for events. Where the process has one CPU, it is
    /// given to others (`sched_yield`) before the thread sleeps.
    ///
    /// What does not pay, because nothing comes in that time, or others keep the CPU for longer, is
    /// not done again for 32 times as long: no more than 3 % of the time is lost.
    pub spin: Duration,
    /// What is done when the connection is lost; without it, that is the end. Means nothing to a
    /// connection over a stream that cannot be made again ([`crate::Client::over`]).
    pub reconnect: Option<Reconnect>,
}

/// How a lost connection is made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reconnect {
    /// For how long it is tried before the connection is gone for good; [`Duration::MAX`] is for
    /// ever. The time begins with the first loss, and anew only after a connection has stood for a
    /// second, or for the longest pause if that is longer. Default: 10 s.
    pub within: Duration,
    /// The longest pause after the first attempt. It doubles with every further one, up to 32
    /// times this. Default: 10 ms.
    pub first_pause: Duration,
    /// Whether reads outside of transactions (values, listings, permissions) that were under way
    /// are asked again of the new connection, within their deadline, instead of failing. Default:
    /// yes.
    pub retry_reads: bool,
    /// Whether the first connection is tried for as long, too, for a program that may be started
    /// before its store is. Otherwise a store that cannot be reached is an error at once. Default:
    /// no.
    pub from_start: bool,
}

impl Default for Reconnect {
    fn default() -> Self {
        Self {
            within: Duration::from_secs(10),
            first_pause: Duration::from_millis(10),
            retry_reads: true,
            from_start: false,
        }
    }
}

impl Reconnect {
    fn max_pause(&self) -> Duration {
        self.first_pause.saturating_mul(32)
    }

    pub(crate) fn pauses(&self) -> Pauses {
        let max_pause = self.max_pause();
        Retry { first_pause: self.first_pause, max_pause, ..Retry::default() }.pauses()
    }

    /// A connection that was lost sooner than this after it was made is part of the same outage: the
    /// pauses go on growing, and the time goes on running. A store that answers and goes, again and
    /// again, would otherwise be asked without pause and without end.
    pub(crate) fn standing(&self) -> Duration {
        self.max_pause().max(Duration::from_secs(1)).min(self.within)
    }
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
            spin: Duration::from_micros(50),
            reconnect: Some(Reconnect::default()),
        }
    }
}
