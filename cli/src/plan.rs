//! Operations on several devices as one: their progress, and their outcome.

use serde_json::{Value, json};
use xen_aodevice::{Ended, FailureKind, Named, Outcome, Progress, Run, Undone};

use crate::args::Common;
use crate::problem::{Code, Exit, Problem};
use crate::{output, progress};

/// Carries a plan out, and tells its steps and warnings.
pub(crate) async fn carry_out(common: &Common, mut run: Run) -> Outcome {
    let progress = progress::Progress::new(common);
    while let Some(happened) = run.next().await {
        match &happened {
            Progress::Step(_, step) => progress.step(step),
            Progress::Ended(_, Ok(success)) | Progress::Undone(_, Ok(success)) => {
                for warning in &success.warnings {
                    output::warn(common, &format!("{success}: {warning}"));
                }
            }
            Progress::Model(end) => progress.say(&end.to_string()),
            // Told at the end, with what to do.
            _ => {}
        }
    }
    progress.done();
    run.finish().await
}

/// What was to be done with the devices of a plan, as it is told.
pub(crate) struct Asked<'a> {
    /// As in `attach`.
    pub(crate) verb: &'static str,
    /// As in `to` the domain.
    pub(crate) preposition: &'static str,
    /// Where each was asked for, if that is somewhere.
    pub(crate) places: &'a [String],
    /// What to do about one that was not begun.
    pub(crate) go_on: &'static str,
}

impl Asked<'_> {
    fn place(&self, mut problem: Problem, index: usize) -> Problem {
        let Some(place) = self.places.get(index) else { return problem };
        problem.tried = format!("{place}: {}", problem.tried);
        problem.with_detail("place", &**place)
    }

    fn not_begun(&self, outcome: &Outcome, device: &Named) -> Problem {
        let Self { verb, preposition, .. } = self;
        let tried = format!("cannot {verb} {device} {preposition} domain {}", outcome.domid);
        let (code, observed, exit) = match outcome.first_failure().map(|failure| failure.cause.kind()) {
            Some(FailureKind::Failed) => {
                ("not_begun", "it was not begun, since another one failed", Exit::Failed)
            }
            _ if outcome.timed_out => ("deadline", "the deadline came before it was begun", Exit::TimedOut),
            Some(FailureKind::TimedOut) => {
                ("not_begun", "it was not begun, since another one timed out", Exit::Failed)
            }
            _ => ("cancelled", "it was cancelled before it was begun", Exit::Aborted),
        };
        Problem::new(Code::Of(code), tried, observed, self.go_on).with_exit(exit)
    }

    /// What has not been done: the failure that came first in time before the others, and what was not begun for it
    /// behind them; at last what could not be undone.
    pub(crate) fn problems(&self, outcome: &Outcome) -> Vec<Problem> {
        let failed = |(index, ended): (usize, &Ended)| match ended {
            Ended::Failed(failure) => Some((index, self.place(failure.clone().into(), index))),
            _ => None,
        };
        let not_begun = |(index, ended): (usize, &Ended)| match ended {
            Ended::NotBegun { device } => Some(self.place(self.not_begun(outcome, device), index)),
            _ => None,
        };
        let mut failed: Vec<_> = outcome.devices.iter().enumerate().filter_map(failed).collect();
        failed.sort_by_key(|(index, _)| Some(*index) != outcome.first_failure);
        let left = outcome.undone.iter().filter_map(|Undone { operation, ended, .. }| match ended {
            Ended::Failed(failure) => Some(self.place(failure.clone().into(), *operation)),
            _ => None,
        });
        let failed = failed.into_iter().map(|(_, problem)| problem);
        failed.chain(outcome.devices.iter().enumerate().filter_map(not_begun)).chain(left).collect()
    }

    /// The outcome in JSON, each operation with its place.
    fn json(&self, outcome: &Outcome) -> Value {
        let mut told = json!(outcome);
        let undone = outcome.undone.iter().map(|undone| undone.operation);
        let of = [("devices", (0..outcome.devices.len()).collect()), ("undone", undone.collect::<Vec<_>>())];
        for (name, operations) in of {
            let values = told[name].as_array_mut().into_iter().flatten();
            for (value, operation) in values.zip(operations) {
                if name == "undone" {
                    // And not what was tried then, which a removal that failed has under the same name.
                    value["operation"] = operation.into();
                }
                if let Some(place) = self.places.get(operation) {
                    value["place"] = json!(place);
                }
            }
        }
        told
    }

    /// Tells every problem, and the whole outcome with `--json`; the first of them decides the exit status, which is
    /// the failure that came first in time.
    pub(crate) fn conclude(
        &self,
        common: &Common,
        outcome: &Outcome,
        mut problems: Vec<Problem>,
    ) -> Result<Exit, Problem> {
        if common.json {
            let mut told = json!({"ok": outcome.is_done()});
            if let Some(problem) = problems.first() {
                let problem = problem.json();
                for name in ["code", "error", "observed", "hint", "place"] {
                    if let Some(value) = problem.get(name) {
                        told[name] = value.clone();
                    }
                }
            }
            output::say_json(told, self.json(outcome));
        }
        let exit = match problems.first() {
            None => return Ok(Exit::Done),
            Some(_) if outcome.first_failure.is_none() && outcome.timed_out => Exit::TimedOut,
            Some(first) => first.exit,
        };
        let last = problems.pop();
        problems.iter().for_each(Problem::print);
        let Some(last) = last else { return Ok(Exit::Done) };
        let mut last = last.with_exit(exit);
        last.told = common.json;
        Err(last)
    }
}
