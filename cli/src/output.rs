//! Standard output, and outcomes as JSON: the same values that are printed for people.

use std::io::ErrorKind;
use std::time::Duration;

use aodevice::{Failure, Listed, Success};
use serde_json::{Value, json};

use crate::args::Telling;
use crate::printer::{stderr, stdout};
use crate::problem::{Exit, Problem, line};
use crate::signals;

/// How long a report waits for a reader that takes nothing.
const REPORT_PATIENCE: Duration = Duration::from_secs(5);

/// How long the program waits at its end for standard error to be read.
const ERRORS_PATIENCE: Duration = Duration::from_secs(1);

/// Puts a text on standard output.
pub(crate) fn say(text: impl Into<String>) {
    stdout().put(text);
}

/// A device of a listing.
pub(crate) fn listed(device: &Listed) -> Value {
    let mut value = json!({
        "domid": device.id.fe.0,
        "devid": device.id.devid,
        "kind": device.id.kind,
        "backend_domid": device.id.be.0,
        "backend_path": device.backend_path,
        "backend_state": device.backend_state,
        "frontend_state": device.frontend_state,
        "online": device.online,
        "hotplug_status": device.hotplug_status,
        "operation": device.operation,
    });
    if let Some(object) = value.as_object_mut() {
        object.extend(device.of_kind.iter().map(|(name, value)| ((*name).to_owned(), json!(value))));
    }
    value
}

/// Reports how an operation ended: warnings on standard error, a success as JSON on standard
/// output if asked. A success without warnings prints nothing else; [`finish`] tells a failure.
pub(crate) fn report(telling: &Telling, outcome: Result<Success, Box<Failure>>) -> Result<Exit, Problem> {
    let warnings = match &outcome {
        Ok(success) => &success.warnings,
        Err(failure) => &failure.warnings,
    };
    let warnings: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    if !telling.quiet {
        for warning in &warnings {
            stderr().put(format!("warning: {}\n", line(warning)));
        }
    }
    let success = outcome.map_err(Problem::from)?;
    if telling.json {
        let mut value = json!(success);
        value["ok"] = Value::Bool(true);
        say(format!("{value}\n"));
    }
    Ok(Exit::Done)
}

/// What standard output is to a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The purpose of the command: its reader may take its time, and if it cannot be written,
    /// the command has failed.
    Purpose,
    /// A report of what was done: whatever becomes of it, the exit status tells the outcome.
    Report,
}

/// Tells how the command ended, writes what is queued, and returns the exit status.
pub(crate) fn finish(outcome: Result<Exit, Problem>, json: bool, role: Role, compat: bool) -> u8 {
    let exit = match &outcome {
        Ok(exit) => *exit,
        Err(problem) => problem.exit,
    };
    let mut status = exit.status(compat);
    let (stopped, patience) = match role {
        Role::Purpose => (Exit::Aborted.status(compat), Duration::MAX),
        Role::Report => (status, REPORT_PATIENCE),
    };
    signals::conclude(stopped);
    if let Err(problem) = outcome {
        problem.print();
        if json {
            say(format!("{}\n", problem.json()));
        }
    }
    match stdout().flush_while_read(patience) {
        // A reader that has gone away, such as `head`, has seen enough.
        Ok(()) | Err(ErrorKind::BrokenPipe) => {}
        Err(kind) => {
            let observed = match kind {
                ErrorKind::TimedOut => format!("its reader took nothing for {patience:?}"),
                kind => kind.to_string(),
            };
            let hint = "see where standard output leads";
            Problem::new("cannot write to standard output", observed, hint).print();
            if role == Role::Purpose && exit == Exit::Done {
                status = Exit::Failed.status(compat);
            }
        }
    }
    // What nobody reads is lost.
    _ = stderr().flush_within(ERRORS_PATIENCE);
    status
}
