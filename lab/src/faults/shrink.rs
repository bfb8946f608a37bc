//! Makes a schedule that fails shorter, as long as it fails.

use std::io;
use std::time::{Duration, Instant};

use super::course;
use super::schedule::Schedule;

/// What cannot be made shorter in this time is short enough.
const PATIENCE: Duration = Duration::from_secs(60);

/// Leaves out whatever can be left out. Returns the schedule, and what it violates.
pub(super) fn shrink(
    mut schedule: Schedule,
    mut violations: Vec<String>,
) -> io::Result<(Schedule, Vec<String>)> {
    let kinds: Vec<String> = violations.iter().map(|text| kind(text)).collect();
    let until = Instant::now() + PATIENCE;
    loop {
        let mut shorter = false;
        for part in PARTS {
            // In ever smaller pieces.
            let mut piece = part.count(&schedule).div_ceil(2);
            while piece > 0 {
                let mut at = 0;
                while at < part.count(&schedule) && Instant::now() < until {
                    let mut fewer = schedule.clone();
                    for _ in at..part.count(&schedule).min(at + piece) {
                        part.remove(&mut fewer, at);
                    }
                    let outcome = course::run(&fewer)?;
                    // What fails in another way may be another fault.
                    if outcome.violations.iter().any(|text| kinds.contains(&kind(text))) {
                        (schedule, violations, shorter) = (fewer, outcome.violations, true);
                    } else {
                        at += piece;
                    }
                }
                piece /= 2;
            }
        }
        if !shorter {
            return Ok((schedule, violations));
        }
    }
}

/// What a violation is about: how its text begins, without the numbers.
fn kind(violation: &str) -> String {
    violation.chars().filter(|char| !char.is_ascii_digit()).take(40).collect()
}

/// What a schedule consists of.
#[derive(Clone, Copy)]
enum Part {
    Fault,
    Worker,
    Follower,
    Change,
    Step,
}

/// In the order in which they are left out.
const PARTS: [Part; 5] = [Part::Fault, Part::Worker, Part::Follower, Part::Change, Part::Step];

impl Part {
    fn count(self, schedule: &Schedule) -> usize {
        match self {
            Self::Fault => schedule.faults.len(),
            Self::Worker => schedule.workers.len(),
            Self::Follower => schedule.followers.len(),
            Self::Change => schedule.changes.len(),
            Self::Step => schedule.workers.iter().map(|worker| worker.steps.len()).sum(),
        }
    }

    fn remove(self, schedule: &mut Schedule, at: usize) {
        match self {
            Self::Fault => drop(schedule.faults.remove(at)),
            Self::Worker => drop(schedule.workers.remove(at)),
            Self::Follower => drop(schedule.followers.remove(at)),
            Self::Change => drop(schedule.changes.remove(at)),
            Self::Step => {
                let mut at = at;
                for worker in &mut schedule.workers {
                    if at < worker.steps.len() {
                        worker.steps.remove(at);
                        return;
                    }
                    at -= worker.steps.len();
                }
            }
        }
    }
}
