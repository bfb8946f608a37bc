//! How often and how fast a conflicting transaction is tried again.
//!
//! xenstore has no fairness: a guest that keeps writing can make a transaction fail hundreds of
//! times in a row. So the attempts are bounded, the pauses grow, and jitter keeps two clients
//! that conflict with each other from doing so in step.

use std::time::Duration;

/// The bounds of a retried transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Attempts in all, the first included. Default: 64.
    pub attempts: u32,
    /// The longest pause after the first attempt. It doubles with every further one. Default: 1 ms.
    pub first_pause: Duration,
    /// No pause is longer. Default: 250 ms.
    pub max_pause: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: 64, first_pause: Duration::from_millis(1), max_pause: Duration::from_millis(250) }
    }
}

impl Retry {
    /// The pause after the given failed attempt (counted from 1): between half of its bound and
    /// the whole, so that pauses grow until the bound does not.
    pub(crate) fn pause(&self, attempt: u32) -> Duration {
        let bound = self.first_pause.saturating_mul(1 << (attempt - 1).min(30)).min(self.max_pause);
        let half = bound / 2;
        half + half.mul_f64(fastrand::f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_bound_and_stay() {
        let retry = Retry::default();
        let mut last = Duration::ZERO;
        for attempt in 1..=8 {
            let pause = retry.pause(attempt);
            assert!(pause >= last, "pause {attempt} is {pause:?} after {last:?}");
            last = pause;
        }
        for attempt in 9..=u32::BITS * 4 {
            let pause = retry.pause(attempt);
            assert!(pause <= retry.max_pause && pause >= retry.max_pause / 2, "{pause:?}");
        }
    }
}
