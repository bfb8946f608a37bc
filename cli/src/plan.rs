//! Operations on several devices as one: their progress, and their outcome.

use aodevice::{Ended, Outcome, Progress, Run};
use serde_json::json;

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
                    output::warn(common, &format!("{}: {warning}", success.id));
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

/// What has not been done, in the order of the operations: it was to be attached `to`, or removed `from`; `places` tell
/// where each was asked for, if that is somewhere.
pub(crate) fn problems(outcome: &Outcome, (verb, from): (&str, &str), places: &[String]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (index, ended) in outcome.devices.iter().enumerate() {
        let mut problem = match ended {
            Ended::Failed(failure) => Problem::from(failure.clone()),
            Ended::NotBegun { device } => {
                let tried = format!("cannot {verb} {device} {from} domain {}", outcome.domid);
                let hint = "run it again to go on";
                let problem = Problem::new(Code::Of("cancelled"), tried, "it was not begun", hint);
                // Without a failure before it, it was cancelled.
                if outcome.first_failure.is_some() { problem } else { problem.with_exit(Exit::Aborted) }
            }
            _ => continue,
        };
        if let Some(place) = places.get(index) {
            problem.tried = format!("{place}: {}", problem.tried);
        }
        problems.push(problem);
    }
    problems
}

/// Tells every problem, and the whole outcome with `--json`; the first failure in time decides the exit status.
pub(crate) fn conclude(
    common: &Common,
    outcome: &Outcome,
    mut problems: Vec<Problem>,
) -> Result<Exit, Problem> {
    let first = outcome.first_failure().map(|failure| Problem::from(Box::new(failure.clone())));
    if common.json {
        let mut told = json!({"ok": outcome.is_done()});
        if let Some(problem) = first.as_ref().or(problems.last()) {
            let problem = problem.json();
            for name in ["code", "error", "observed", "hint"] {
                told[name] = problem[name].clone();
            }
        }
        output::say_json(told, json!(outcome));
    }
    let Some(last) = problems.pop() else { return Ok(Exit::Done) };
    problems.iter().for_each(Problem::print);
    let exit = if outcome.timed_out { Exit::TimedOut } else { first.map_or(last.exit, |first| first.exit) };
    let mut last = last.with_exit(exit);
    last.told = common.json;
    Err(last)
}
