//! What a thread does for a reply before it sleeps for it, as long as that pays.
//!
//! To sleep and be woken takes longer than most replies. Where the other side has a CPU of its own,
//! this one looks for what comes, again and again. Where there is one CPU for both, it is given
//! away once: who sleeps is woken by the first bytes of several replies, and is in the way of the
//! others; who has given way goes on when they are all there.
//!
//! Somebody else may have needed the CPU that was looked on, or have taken the one that was given
//! away. So every time that it did not pay, twice as many occasions as before are left alone.

use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

static ONE_CPU: LazyLock<bool> =
    LazyLock::new(|| thread::available_parallelism().is_ok_and(|cpus| cpus.get() == 1));

/// Longer than the answers to a whole window of requests take. Who has been away for so long has
/// given the CPU to others as well.
const LONG: Duration = Duration::from_millis(2);

#[derive(Debug)]
pub(crate) enum Spin {
    Never,
    Looks {
        within: Duration,
        /// Since when there is something to look for.
        since: Option<Instant>,
        occasions: Occasions,
    },
    GivesWay {
        /// Something was sent or received since it did so last.
        is_due: bool,
        occasions: Occasions,
    },
}

impl Spin {
    /// What suits the CPUs of this process. To look takes so long at most; with no time at all,
    /// nothing is done, and no clock is asked.
    pub(crate) fn new(within: Duration) -> Self {
        match within {
            Duration::ZERO => Self::Never,
            _ if *ONE_CPU => Self::GivesWay { is_due: false, occasions: Occasions::default() },
            within => Self::Looks { within, since: None, occasions: Occasions::default() },
        }
    }

    /// A request was sent.
    pub(crate) fn sent(&mut self, now: impl FnOnce() -> Instant) {
        match self {
            Self::Never => {}
            Self::Looks { since, occasions, .. } => {
                if occasions.take() {
                    *since = Some(now());
                }
            }
            Self::GivesWay { is_due, occasions } => *is_due = occasions.take(),
        }
    }

    /// Something was received. Where there is one reply another may be near.
    pub(crate) fn received(&mut self, now: impl FnOnce() -> Instant) {
        match self {
            Self::Looks { since: Some(since), occasions, .. } => {
                *since = now();
                occasions.paid();
            }
            Self::GivesWay { is_due, occasions } => *is_due = occasions.take(),
            Self::Never | Self::Looks { since: None, .. } => {}
        }
    }

    /// Whether to look once more before sleeping, by now or after giving way.
    pub(crate) fn goes_on(&mut self, now: impl Fn() -> Instant) -> bool {
        match self {
            Self::Looks { within, since: since @ Some(_), occasions } => {
                let goes_on = since.is_some_and(|since| now().duration_since(since) < *within);
                if !goes_on {
                    *since = None;
                    occasions.failed();
                }
                goes_on
            }
            Self::GivesWay { is_due: is_due @ true, occasions } => {
                *is_due = false;
                let begun = now();
                thread::yield_now();
                let was_long = now().duration_since(begun) >= LONG;
                if was_long {
                    occasions.failed()
                } else {
                    occasions.paid()
                }
                true
            }
            _ => false,
        }
    }
}

/// Which of the occasions to do something are taken.
#[derive(Debug, Default)]
pub(crate) struct Occasions {
    /// So many are to be left alone now.
    pass: u32,
    /// So many were, the last time.
    passed: u32,
}

impl Occasions {
    const MOST: u32 = 1024;

    fn take(&mut self) -> bool {
        let takes = self.pass == 0;
        self.pass = self.pass.saturating_sub(1);
        takes
    }

    fn paid(&mut self) {
        self.passed = 0;
    }

    fn failed(&mut self) {
        self.passed = (self.passed * 2).clamp(1, Self::MOST);
        self.pass = self.passed;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const WITHIN: Duration = Duration::from_micros(50);

    fn looking() -> Spin {
        Spin::Looks { within: WITHIN, since: None, occasions: Occasions::default() }
    }

    /// Whether it still looks after half of its time, and after all of it.
    fn looks(spin: &mut Spin, sent: Instant) -> [bool; 2] {
        spin.sent(|| sent);
        [WITHIN / 2, WITHIN].map(|later| spin.goes_on(|| sent + later))
    }

    #[test]
    fn it_looks_for_its_time_and_after_each_reply_anew() {
        let (mut spin, now) = (looking(), Instant::now());
        spin.sent(|| now);
        spin.received(|| now + WITHIN / 2);
        assert!(spin.goes_on(|| now + WITHIN));
        assert!(!spin.goes_on(|| now + WITHIN * 2));
        assert!(!spin.goes_on(|| now + WITHIN * 2));
    }

    #[test]
    fn where_it_does_not_pay_it_becomes_rare() {
        let (mut spin, now) = (looking(), Instant::now());
        let looked: Vec<bool> = (0..16).map(|_| looks(&mut spin, now)[0]).collect();
        let at: Vec<_> = looked.iter().enumerate().filter_map(|(at, looked)| looked.then_some(at)).collect();
        assert_eq!(at, [0, 2, 5, 10]);
        let rare = (0..10_000).filter(|_| looks(&mut spin, now)[0]).count();
        assert!(rare < 20, "{rare}");
        // And comes back with the first reply that it catches.
        while !looks(&mut spin, now)[0] {}
        while matches!(spin, Spin::Looks { since: None, .. }) {
            spin.sent(|| now);
        }
        spin.received(|| now);
        assert!(!spin.goes_on(|| now + WITHIN));
        assert_eq!([(); 2].map(|()| looks(&mut spin, now)[0]), [false, true]);
    }

    #[test]
    fn without_time_it_does_nothing() {
        let mut spin = Spin::new(Duration::ZERO);
        spin.sent(|| panic!("it has no use for the time"));
        assert!(!spin.goes_on(Instant::now));
    }

    /// How often it gives way for a request that is answered in two parts, if that takes so long.
    fn gives_way(spin: &mut Spin, takes: Duration) -> usize {
        let time = Cell::new(Instant::now());
        let later = || time.replace(time.get() + takes);
        spin.sent(later);
        let looks = [(); 4].map(|()| {
            let first = spin.goes_on(later);
            let again = spin.goes_on(later);
            spin.received(later);
            assert!(!again, "it gives way once");
            first
        });
        looks.iter().filter(|looks| **looks).count()
    }

    #[test]
    fn on_one_cpu_it_gives_way_once_for_all_that_is_sent_or_received() {
        let mut spin = Spin::GivesWay { is_due: false, occasions: Occasions::default() };
        assert!(!spin.goes_on(Instant::now));
        assert_eq!(gives_way(&mut spin, LONG / 2), 4);
        // Somebody else takes the CPU: rarely, then.
        assert_eq!(gives_way(&mut spin, LONG), 2);
        let rare: usize = (0..1000).map(|_| gives_way(&mut spin, LONG)).sum();
        assert!(rare < 20, "{rare}");
    }
}
