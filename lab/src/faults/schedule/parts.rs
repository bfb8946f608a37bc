//! What is left out of a schedule that fails.

use super::Schedule;
use crate::seeded::Parts;

#[derive(Clone, Copy, Debug)]
pub(in crate::faults) enum Part {
    Fault,
    Worker,
    Follower,
    Change,
    Step,
}

impl Parts for Schedule {
    type Part = Part;

    const PARTS: &'static [Part] = &[Part::Fault, Part::Worker, Part::Follower, Part::Change, Part::Step];

    fn count(&self, part: Part) -> usize {
        match part {
            Part::Fault => self.faults.len(),
            Part::Worker => self.workers.len(),
            Part::Follower => self.followers.len(),
            Part::Change => self.changes.len(),
            Part::Step => self.workers.iter().map(|worker| worker.steps.len()).sum(),
        }
    }

    fn remove(&mut self, part: Part, at: usize) {
        match part {
            Part::Fault => drop(self.faults.remove(at)),
            Part::Worker => drop(self.workers.remove(at)),
            Part::Follower => drop(self.followers.remove(at)),
            Part::Change => drop(self.changes.remove(at)),
            Part::Step => {
                let mut at = at;
                for worker in &mut self.workers {
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
