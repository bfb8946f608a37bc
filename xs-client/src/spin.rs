//! What a thread does for a reply before it sleeps for it, as long as that pays.
//!
//! To sleep and be woken takes longer than most replies. Where the other side has a CPU of its own,
//! this one looks for what comes, again and again. Where there is one CPU for both, it is given
//! away: who sleeps is woken by the first bytes of several replies, and is in the way of the others;
//! who has given way goes on when they are all there.
//!
//! Somebody else may have needed the CPU that was looked on, or have taken the one that was given
//! away. So whenever it did not pay, it is not done for a time that is [`REST`] times as long: never
//! more than a small part of the time is lost by it.

use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

static ONE_CPU: LazyLock<bool> = LazyLock::new(|| cpus() == Some(1));

/// How many CPUs this process may run on. Quotas of control groups, for which the standard library reads a dozen files,
/// do not matter: the other side has its own.
#[cfg(target_os = "linux")]
fn cpus() -> Option<usize> {
    rustix::thread::sched_getaffinity(None).ok().map(|cpus| cpus.count() as usize)
}

#[cfg(not(target_os = "linux"))]
fn cpus() -> Option<usize> {
    thread::available_parallelism().ok().map(Into::into)
}

/// How much longer than what did not pay it is not done again.
const REST: u32 = 32;

/// So often is the CPU given away for what was sent or received: the scheduler may give it back at
/// once.
const TIMES: u32 = 2;

#[derive(Debug)]
pub(crate) struct Spin {
    /// How long a reply may take.
    within: Duration,
    way: Way,
    rests_until: Option<Instant>,
}

#[derive(Debug)]
enum Way {
    Look {
        /// Since when there is something to look for.
        since: Option<Instant>,
    },
    GiveWay {
        /// So often, before something else is sent or received.
        left: u32,
    },
}

impl Spin {
    /// What suits the CPUs of this process, if a reply may take so long. With no time at all,
    /// nothing is done, and neither the clock nor the CPUs are asked for.
    pub(crate) fn new(within: Duration) -> Self {
        let way =
            if !within.is_zero() && *ONE_CPU { Way::GiveWay { left: 0 } } else { Way::Look { since: None } };
        Self { within, way, rests_until: None }
    }

    /// A request was sent.
    pub(crate) fn sent(&mut self, now: impl Fn() -> Instant) {
        match &mut self.way {
            _ if self.within.is_zero() => {}
            Way::Look { since } => {
                let now = now();
                *since = self.rests_until.is_none_or(|until| until <= now).then_some(now);
            }
            Way::GiveWay { left } => *left = TIMES,
        }
    }

    /// Something was received. Where there is one reply another may be near.
    pub(crate) fn received(&mut self, now: impl Fn() -> Instant) {
        match &mut self.way {
            Way::Look { since: None } => {}
            Way::Look { since: Some(since) } => *since = now(),
            Way::GiveWay { left } => *left = if self.within.is_zero() { 0 } else { TIMES },
        }
    }

    /// Whether to look once more for so many replies before sleeping: by now, or after giving way.
    pub(crate) fn goes_on(&mut self, replies: usize, now: impl Fn() -> Instant) -> bool {
        match &mut self.way {
            _ if replies == 0 => false,
            Way::Look { since } => {
                let Some(begun) = *since else { return false };
                let now = now();
                let goes_on = now.duration_since(begun) < self.within;
                if !goes_on {
                    *since = None;
                    self.rests_until = now.checked_add(self.within.saturating_mul(REST));
                }
                goes_on
            }
            Way::GiveWay { left: 0 } => false,
            Way::GiveWay { left } => {
                *left -= 1;
                let begun = now();
                if self.rests_until.is_some_and(|until| begun < until) {
                    return false;
                }
                thread::yield_now();
                let now = now();
                let took = now.duration_since(begun);
                if took >= self.within.saturating_mul(replies as u32) {
                    self.rests_until = now.checked_add(took.saturating_mul(REST));
                }
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const WITHIN: Duration = Duration::from_micros(50);

    fn spin(way: Way) -> Spin {
        Spin { within: WITHIN, way, rests_until: None }
    }

    #[test]
    fn it_looks_for_its_time_and_after_each_reply_anew() {
        let (mut spin, now) = (spin(Way::Look { since: None }), Instant::now());
        spin.sent(|| now);
        assert!(!spin.goes_on(0, || now));
        spin.received(|| now + WITHIN / 2);
        assert!(spin.goes_on(1, || now + WITHIN));
        assert!(!spin.goes_on(1, || now + WITHIN * 2));
        spin.received(|| now + WITHIN * 2);
        assert!(!spin.goes_on(1, || now + WITHIN * 2));
    }

    #[test]
    fn it_rests_after_it_has_looked_for_nothing() {
        let (mut spin, begun) = (spin(Way::Look { since: None }), Instant::now());
        let looks = (0..5000).filter(|turn| {
            let sent = begun + WITHIN * 2 * *turn;
            spin.sent(|| sent);
            let looks = spin.goes_on(1, || sent);
            spin.goes_on(1, || sent + WITHIN);
            looks
        });
        assert_eq!(looks.count(), 5000_usize.div_ceil(REST as usize / 2 + 1));
    }

    #[test]
    fn without_time_it_does_nothing() {
        for way in [Way::Look { since: None }, Way::GiveWay { left: 0 }] {
            let mut spin = Spin { within: Duration::ZERO, way, rests_until: None };
            let now = || panic!("it has no use for the time");
            spin.sent(now);
            spin.received(now);
            assert!(!spin.goes_on(1, now));
        }
    }

    #[test]
    fn on_one_cpu_it_gives_way_anew_for_all_that_is_sent_or_received() {
        let mut spin = spin(Way::GiveWay { left: 0 });
        let now = Instant::now();
        let gives_way = |spin: &mut Spin| (0..10).filter(|_| spin.goes_on(1, || now)).count();
        assert_eq!(gives_way(&mut spin), 0);
        spin.sent(|| now);
        spin.sent(|| now);
        assert_eq!(gives_way(&mut spin), TIMES as usize);
        spin.received(|| now);
        assert!(!spin.goes_on(0, || now));
        assert_eq!(gives_way(&mut spin), TIMES as usize);
    }

    #[test]
    fn it_rests_after_others_have_taken_the_cpu() {
        let time = Cell::new(Instant::now());
        // The clock is asked before it gives way, and after it.
        let later = || time.replace(time.get() + WITHIN * 3);
        let mut spin = spin(Way::GiveWay { left: 0 });
        let mut gives_way = |replies| {
            spin.sent(later);
            spin.goes_on(replies, later)
        };
        assert!(gives_way(4), "this is what four replies may take");
        assert!(gives_way(3));
        let rests = (0..100).take_while(|_| !gives_way(3)).count();
        assert_eq!(rests, REST as usize - 1);
    }
}
