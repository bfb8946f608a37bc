//! Makes a schedule that fails shorter, as long as it fails.

use std::time::{Duration, Instant};

/// What cannot be made shorter in this time is short enough.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a schedule consists of.
pub(crate) trait Parts: Clone {
    /// A kind of part.
    type Part: Copy + 'static;

    /// The kinds, in the order in which they are left out.
    const PARTS: &'static [Self::Part];

    /// How many there are.
    fn count(&self, part: Self::Part) -> usize;

    /// Leaves one out.
    fn remove(&mut self, part: Self::Part, at: usize);
}

/// Leaves out whatever can be left out. Returns the schedule, and what it violates.
///
/// # Errors
///
/// The first of a run.
pub(crate) fn shrink<S: Parts, E>(
    mut schedule: S,
    mut violations: Vec<String>,
    run: impl Fn(&S) -> Result<Vec<String>, E>,
) -> Result<(S, Vec<String>), E> {
    let kinds: Vec<String> = violations.iter().map(|text| kind(text)).collect();
    let until = Instant::now() + PATIENCE;
    loop {
        let mut shorter = false;
        for part in S::PARTS.iter().copied() {
            // In ever smaller pieces.
            let mut piece = schedule.count(part).div_ceil(2);
            while piece > 0 {
                let mut at = 0;
                while at < schedule.count(part) && Instant::now() < until {
                    let mut fewer = schedule.clone();
                    for _ in at..schedule.count(part).min(at + piece) {
                        fewer.remove(part, at);
                    }
                    let observed = run(&fewer)?;
                    // What fails in another way may be another fault.
                    if observed.iter().any(|text| kinds.contains(&kind(text))) {
                        (schedule, violations, shorter) = (fewer, observed, true);
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
