//! How often and how fast a conflicting transaction is tried again.
//!
//! xenstore has no fairness: a guest that keeps writing can make a transaction fail hundreds of
//! times in a row. So attempts and time are bounded, and pauses get longer. Each is anything from
//! nothing to its bound ("full jitter"), so that clients which conflict with each other fall out of
//! step.

use std::time::Duration;

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
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 64,
            within: Duration::from_secs(10),
            first_pause: Duration::from_millis(1),
            max_pause: Duration::from_millis(250),
        }
    }
}

impl Retry {
    /// The pause after so many failed attempts, of which the first was begun so long ago; an error
    /// if there is to be no other.
    pub(crate) fn again(&self, attempts: u32, elapsed: Duration) -> Result<Duration, Error> {
        let pause = self.pause(attempts);
        if attempts >= self.attempts || elapsed.saturating_add(pause) > self.within {
            return Err(Error::Contended { attempts, elapsed });
        }
        Ok(pause)
    }

    /// The pause after so many failed attempts.
    pub(crate) fn pause(&self, attempts: u32) -> Duration {
        self.bound(attempts).mul_f64(fastrand::f64())
    }

    fn bound(&self, attempts: u32) -> Duration {
        self.first_pause.saturating_mul(1 << attempts.saturating_sub(1).min(30)).min(self.max_pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_double_up_to_the_longest() {
        let retry = Retry::default();
        let bounds = [1, 2, 3, 8, 9, 10, u32::MAX].map(|attempts| retry.bound(attempts).as_millis());
        assert_eq!(bounds, [1, 2, 4, 128, 250, 250, 250]);
    }

    #[test]
    fn a_pause_is_anything_up_to_its_bound() {
        let retry = Retry::default();
        let pauses: Vec<_> = (0..500).map(|_| retry.pause(20)).collect();
        assert!(pauses.iter().all(|pause| *pause <= retry.max_pause));
        assert!(pauses.iter().any(|pause| *pause < retry.max_pause / 8));
        assert!(pauses.iter().any(|pause| *pause > retry.max_pause / 8 * 7));
    }

    #[test]
    fn attempts_and_time_are_bounded() {
        let retry = Retry { attempts: 3, within: Duration::from_secs(1), ..Retry::default() };
        let ended = |attempts, millis| retry.again(attempts, Duration::from_millis(millis)).is_err();
        assert_eq!([ended(2, 0), ended(3, 0), ended(1, 990), ended(1, 1001)], [false, true, false, true]);
        let forever = Retry { within: Duration::MAX, ..retry };
        assert!(forever.again(1, Duration::MAX).is_ok());
    }
}
