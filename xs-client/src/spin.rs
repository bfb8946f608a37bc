//! Looking for a reply again and again before the thread sleeps for it, for as long as that pays.
//!
//! It does where the other side has a CPU of its own and needs less time than it takes to be woken.
//! Elsewhere it is in the way of who would answer. So every time that nothing came, twice as many
//! sends as before are left alone.

use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

/// Whether the other side can have a CPU of its own.
static HAS_CPUS: LazyLock<bool> =
    LazyLock::new(|| thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1));

/// Sends that are left alone in a row, at most.
const MOST: u32 = 1024;

#[derive(Debug)]
pub(crate) struct Spin {
    within: Duration,
    /// Since when there is something to look for.
    since: Option<Instant>,
    /// Sends still to be left alone.
    pass: u32,
    /// How many of them there are after the next time that nothing comes.
    penalty: u32,
}

impl Spin {
    /// That of a connection that may look for so long at a time, if this process has more than one
    /// CPU.
    pub(crate) fn here(within: Duration) -> Self {
        Self::new(if *HAS_CPUS { within } else { Duration::ZERO })
    }

    /// Looks for so long at a time; with no time at all, never, and asks no clock.
    fn new(within: Duration) -> Self {
        Self { within, since: None, pass: 0, penalty: 1 }
    }

    /// A request was sent.
    pub(crate) fn sent(&mut self, now: impl FnOnce() -> Instant) {
        if self.within.is_zero() {
            return;
        }
        if self.pass > 0 {
            self.pass -= 1;
        } else {
            self.since = Some(now());
        }
    }

    /// Something was received. Where there is one reply another may be near.
    pub(crate) fn received(&mut self, now: impl FnOnce() -> Instant) {
        if let Some(since) = &mut self.since {
            *since = now();
            self.penalty = 1;
        }
    }

    /// Whether to look again before sleeping.
    pub(crate) fn goes_on(&mut self, now: impl FnOnce() -> Instant) -> bool {
        let Some(since) = self.since else { return false };
        if now().duration_since(since) < self.within {
            return true;
        }
        self.since = None;
        self.pass = self.penalty;
        self.penalty = (self.penalty * 2).min(MOST);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITHIN: Duration = Duration::from_micros(50);

    /// Whether it still looks after half of its time, and after all of it.
    fn looks(spin: &mut Spin, sent: Instant) -> [bool; 2] {
        spin.sent(|| sent);
        [WITHIN / 2, WITHIN].map(|later| spin.goes_on(|| sent + later))
    }

    #[test]
    fn it_looks_for_its_time_and_after_each_reply_anew() {
        let (mut spin, now) = (Spin::new(WITHIN), Instant::now());
        spin.sent(|| now);
        spin.received(|| now + WITHIN / 2);
        assert!(spin.goes_on(|| now + WITHIN));
        assert!(!spin.goes_on(|| now + WITHIN * 2));
        assert!(!spin.goes_on(|| now + WITHIN * 2));
    }

    #[test]
    fn where_it_does_not_pay_it_becomes_rare() {
        let (mut spin, now) = (Spin::new(WITHIN), Instant::now());
        let looked: Vec<bool> = (0..16).map(|_| looks(&mut spin, now)[0]).collect();
        let at: Vec<_> = looked.iter().enumerate().filter_map(|(at, looked)| looked.then_some(at)).collect();
        assert_eq!(at, [0, 2, 5, 10]);
        let rare = (0..10_000).filter(|_| looks(&mut spin, now)[0]).count();
        assert!(rare < 20, "{rare}");
        // And comes back with the first reply that it catches.
        while !looks(&mut spin, now)[0] {}
        while spin.since.is_none() {
            spin.sent(|| now);
        }
        spin.received(|| now);
        assert!(!spin.goes_on(|| now + WITHIN));
        assert_eq!((0..2).map(|_| looks(&mut spin, now)[0]).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn without_time_it_never_looks() {
        let mut spin = Spin::new(Duration::ZERO);
        spin.sent(|| panic!("it has no use for the time"));
        assert!(!spin.goes_on(Instant::now));
    }
}
