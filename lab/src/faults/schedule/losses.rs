//! What is to meet with a lost connection, and would by chance do so too seldom.

use fastrand::Rng;

use super::{Act, Follower, Knock, SHARED, Schedule, Step, Worker, shared};
use crate::faults::fault::Fault;

/// So many calls are given up where nobody answers.
const KNOCKS: usize = 800;

/// What is to happen in a silence begins so long before its end, in milliseconds, for it begins in a
/// moment of its worker's own.
const MEETING: u64 = 20;

impl Schedule {
    /// Adds what is to meet with a loss: callers who knock while there is no store that says anything,
    /// who ask for watches that are being registered again, and a store that refuses these.
    pub(super) fn meet_losses(
        rng: &mut Rng,
        faults: &mut Vec<Fault>,
        workers: &mut Vec<Worker>,
        followers: &[Follower],
    ) {
        let watched = followers[0].watched();
        let losses: Vec<Fault> = faults.iter().filter(|fault| fault.what.ends()).cloned().collect();
        for loss in losses {
            let mut meet = |at: u64, acts: Vec<Act>| {
                let pauses = [at].into_iter().chain(std::iter::repeat(0));
                let steps = pauses.zip(acts).map(|(pause, act)| Step { pause, act, give_up: None });
                workers.push(Worker { number: workers.len(), steps: steps.collect() });
            };
            if loss.what.silences() && loss.lasts > MEETING {
                let knock = match rng.u8(0..6) {
                    0 => Knock::Read,
                    1 | 2 => Knock::Batch,
                    3 => Knock::Watch(watched.clone()),
                    _ => Knock::Watch(shared(rng.usize(0..SHARED))),
                };
                meet(loss.at + rng.u64(0..loss.lasts - MEETING), vec![Act::Knock(KNOCKS, knock)]);
            }
            if rng.u8(0..3) == 0 {
                faults.push(Fault::full(rng, loss.at));
            }
            if rng.bool() {
                let mut directories: Vec<usize> = (0..SHARED).collect();
                rng.shuffle(&mut directories);
                meet(loss.at.saturating_sub(300), directories.iter().copied().map(Act::Watch).collect());
                directories.reverse();
                meet(loss.at + rng.u64(0..20), directories.into_iter().map(Act::Watch).collect());
            }
        }
    }
}
