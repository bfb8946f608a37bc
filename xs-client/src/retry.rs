//! How often and how fast a conflicting transaction is tried again.
//!
//! xenstore has no fairness: a guest that keeps writing can make a transaction fail hundreds of
//! times in a row. So attempts and time are bounded, and the bound of a pause doubles. As long as it
//! does, a pause is anything from the one before up to it, and afterwards anything at all up to it
//! ("full jitter"): clients that conflict with each other fall out of step.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use xs_proto::{ErrorCode, Op, Path};

use crate::Error;

/// The bounds of a retried transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Attempts in all, the first included, which is made in any case. Default: 64.
    pub attempts: u32,
    /// The time for all: an attempt that would begin later than this is not made any more. One that
    /// has begun goes on, each of its calls within its own deadline. Default: 10 s.
    pub within: Duration,
    /// The longest pause after the first attempt. It doubles with every further one. Default: 1 ms.
    pub first_pause: Duration,
    /// No pause is longer. Default: 250 ms.
    pub max_pause: Duration,
    /// Whether an attempt that was lost with its connection is made again on the next one. A store that
    /// was killed begins empty: who draws conclusions from what is *not* there says no. Default: yes.
    pub across_losses: bool,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 64,
            within: Duration::from_secs(10),
            first_pause: Duration::from_millis(1),
            max_pause: Duration::from_millis(250),
            across_losses: true,
        }
    }
}

impl Retry {
    pub(crate) fn pauses(self) -> Pauses {
        Pauses { retry: self, attempts: 0, last: Duration::ZERO }
    }
}

/// What the requests of an attempt have met with.
#[derive(Debug, Default)]
pub(crate) struct Attempt {
    is_stale: AtomicBool,
    /// Batches that were begun, and whose answers nobody has got.
    batches: AtomicUsize,
}

impl Attempt {
    /// Takes note of an outcome. xenstored fails some requests, when others have changed nodes that
    /// the transaction sees, with errors that mean something else elsewhere: EIO, and EINVAL for a
    /// removal (of the root it means itself).
    pub(crate) fn note(&self, error: &Error) {
        let is_stale = match error {
            Error::Store { code: ErrorCode::EIO, .. } => true,
            Error::Store { op: Op::RM, code: ErrorCode::EINVAL, path } => *path != Some(Path::root()),
            _ => false,
        };
        if is_stale {
            self.is_stale.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the store has said in the middle that there is a conflict.
    pub(crate) fn is_stale(&self) -> bool {
        self.is_stale.load(Ordering::Relaxed)
    }

    pub(crate) fn begin_batch(&self) {
        self.batches.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn end_batch(&self) {
        self.batches.fetch_sub(1, Ordering::Relaxed);
    }

    /// Fails if a batch was given up: the store may have a part of it.
    pub(crate) fn check_whole(&self) -> Result<(), Error> {
        if self.batches.load(Ordering::Relaxed) == 0 { Ok(()) } else { Err(Error::Unfinished) }
    }
}

/// What came of an attempt.
#[derive(Debug)]
pub(crate) enum Tried<T, E> {
    Done(T),
    /// Others have changed what it rests on. What it failed with, if it failed in the middle, is the
    /// outcome if there is no further attempt.
    Conflicted(Option<E>),
    /// It was lost with its connection; the same.
    Lost(E),
}

/// The pauses after failed attempts.
#[derive(Clone, Debug)]
pub(crate) struct Pauses {
    retry: Retry,
    /// Attempts that have failed.
    attempts: u32,
    last: Duration,
}

impl Pauses {
    /// The one that is made now.
    pub(crate) fn attempt(&self) -> u32 {
        self.attempts.saturating_add(1)
    }

    /// Another attempt has failed. Returns how long to wait for the next.
    pub(crate) fn next(&mut self) -> Duration {
        let Retry { first_pause, max_pause, .. } = self.retry;
        let bound = first_pause.saturating_mul(1 << self.attempts.min(30)).min(max_pause);
        let least = if bound < max_pause { self.last } else { Duration::ZERO };
        self.attempts = self.attempt();
        self.last = least + (bound - least).mul_f64(fastrand::f64());
        self.last
    }

    /// The same, if another attempt is to be made; the first was begun so long ago.
    pub(crate) fn again(&mut self, elapsed: Duration) -> Result<Duration, Error> {
        let pause = self.next();
        if self.attempts >= self.retry.attempts || elapsed.saturating_add(pause) > self.retry.within {
            return Err(Error::Contended { attempts: self.attempts, elapsed });
        }
        Ok(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_with_their_bounds() {
        let retry = Retry { max_pause: Duration::MAX, ..Retry::default() };
        for _ in 0..100 {
            let mut pauses = retry.pauses();
            let growing: Vec<_> = (0..40).map(|_| pauses.next()).collect();
            assert!(growing.is_sorted(), "{growing:?}");
            let bound = |attempt| Duration::from_millis(1 << std::cmp::min(attempt, 30));
            assert!(growing.iter().enumerate().all(|(attempt, pause)| *pause <= bound(attempt)));
        }
    }

    #[test]
    fn at_the_longest_a_pause_is_anything() {
        let retry = Retry::default();
        let mut pauses = retry.pauses();
        let pauses: Vec<_> = (0..500).map(|_| pauses.next()).skip(8).collect();
        assert!(pauses.iter().all(|pause| *pause <= retry.max_pause));
        assert!(pauses.iter().any(|pause| *pause < retry.max_pause / 8));
        assert!(pauses.iter().any(|pause| *pause > retry.max_pause / 8 * 7));
    }

    #[test]
    fn attempts_and_time_are_bounded() {
        let retry = Retry { attempts: 3, within: Duration::from_secs(1), ..Retry::default() };
        let ended = |attempts, millis| {
            let elapsed = Duration::from_millis(millis);
            let mut pauses = Pauses { attempts, ..retry.pauses() };
            pauses.again(elapsed).is_err()
        };
        assert_eq!([ended(1, 0), ended(2, 0), ended(0, 990), ended(0, 1001)], [false, true, false, true]);
        let forever = Retry { within: Duration::MAX, ..retry };
        assert!(forever.pauses().again(Duration::MAX).is_ok());
    }
}
