//! Standard output, and outcomes as JSON: the same values that are printed for people.

use std::fmt::Display;
use std::io::ErrorKind;
use std::time::Duration;

use serde_json::{Value, json};
use xen_aodevice::{Failure, Listed, Success};

use crate::args::Common;
use crate::journal::{Priority, marked};
use crate::printer::{stderr, stdout};
use crate::problem::{Code, Exit, Problem, line};
use crate::signals;

/// How long a report waits for a reader that takes nothing.
const REPORT_PATIENCE: Duration = Duration::from_secs(5);

/// How long the program waits at its end for standard error to be read.
const ERRORS_PATIENCE: Duration = Duration::from_secs(1);

/// Puts a text on standard output.
pub(crate) fn say(text: impl Into<String>) {
    stdout().put(text);
}

/// Puts a value on standard output: the first members, and then those of the outcome.
pub(crate) fn say_json(mut first: Value, outcome: Value) {
    if let (Value::Object(value), Value::Object(outcome)) = (&mut first, outcome) {
        value.extend(outcome);
    }
    say(format!("{first}\n"));
}

/// A device of a listing.
pub(crate) fn listed(device: &Listed) -> Value {
    let mut value = json!({
        "domid": device.id.fe.0,
        "devid": device.id.devid,
        "kind": device.id.kind,
        "name": (device.id.kind.info().id_name)(device.id.devid),
        "backend_kind": device.id.be_kind,
        "served_by": device.id.be_kind.server().to_string(),
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

/// Puts a warning on standard error, if that is wanted.
pub(crate) fn warn(common: &Common, warning: &dyn Display) {
    if !common.quiet {
        stderr().put(marked(Priority::Warning, &format!("warning: {}\n", line(&warning.to_string()))));
    }
}

/// Reports how an operation ended: warnings on standard error, a success as JSON on standard
/// output if asked. A success without warnings prints nothing else; [`finish`] tells a failure.
pub(crate) fn report(common: &Common, outcome: Result<Success, Box<Failure>>) -> Result<Exit, Problem> {
    let warnings = match &outcome {
        Ok(success) => &success.warnings,
        Err(failure) => &failure.warnings,
    };
    for warning in warnings {
        warn(common, warning);
    }
    let success = outcome.map_err(Problem::from)?;
    if common.json {
        say_json(json!({"ok": true}), json!(success));
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
        if json && !problem.told {
            say(format!("{}\n", problem.json()));
        }
    }
    signals::told();
    match stdout().flush_while_read(patience) {
        // A reader that has gone away, such as `head`, has seen enough.
        Ok(()) | Err(ErrorKind::BrokenPipe) => {}
        Err(kind) => {
            let observed = match kind {
                ErrorKind::TimedOut => format!("its reader took nothing for {patience:?}"),
                kind => kind.to_string(),
            };
            let tried = "cannot write to standard output";
            if role == Role::Report && exit == Exit::Done {
                // A failure would say that nothing was changed.
                let text = format!("{tried}: {observed}; what was to be done is done");
                stderr().put(marked(Priority::Warning, &format!("warning: {}\n", line(&text))));
            } else {
                Problem::new(Code::Output, tried, observed, "see where standard output leads").print();
                if exit == Exit::Done {
                    status = Exit::Failed.status(compat);
                }
            }
        }
    }
    // What nobody reads is lost.
    _ = stderr().flush_within(ERRORS_PATIENCE);
    status
}
