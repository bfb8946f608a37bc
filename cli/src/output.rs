//! Standard output, and outcomes as JSON: the same values that are printed for people.

use std::io::ErrorKind;
use std::time::Duration;

use aodevice::{Failure, Listed, Success};
use devstate::StateValue;
use serde_json::{Value, json};
use xs_client::DomId;

use crate::args::Telling;
use crate::printer::{stderr, stdout};
use crate::problem::{Exit, Problem};
use crate::signals;

/// How long a report waits for a reader that takes nothing.
const REPORT_PATIENCE: Duration = Duration::from_secs(5);

/// How long the program waits at its end for standard error to be read.
const ERRORS_PATIENCE: Duration = Duration::from_secs(1);

/// Puts a text on standard output.
pub(crate) fn say(text: impl Into<String>) {
    stdout().put(text);
}

/// A state as its number, or as what stands there instead.
pub(crate) fn state(value: Option<&StateValue>) -> Value {
    match value {
        Some(StateValue::State(state)) => json!(state.number()),
        Some(malformed) => json!(malformed.to_string()),
        None => Value::Null,
    }
}

/// A device of a listing.
pub(crate) fn listed(fe: DomId, device: &Listed) -> Value {
    json!({
        "domid": fe.0,
        "devid": device.devid,
        "vdev": device.vdev,
        "mac": device.mac,
        "params": device.params,
        "bridge": device.bridge,
        "backend_domid": device.be.0,
        "backend_path": device.backend_path,
        "backend_state": state(device.backend_state.as_ref()),
        "frontend_state": state(device.frontend_state.as_ref()),
        "online": device.online,
        "hotplug_status": device.hotplug_status,
        "event_channel": device.event_channel,
        "ring_ref": device.ring_ref,
        "tx_ring_ref": device.tx_ring_ref,
        "rx_ring_ref": device.rx_ring_ref,
        "operation": device.operation,
    })
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
            stderr().put(format!("warning: {warning}\n"));
        }
    }
    let Success { id, elapsed, .. } =
        outcome.map_err(|failure| Problem::from(failure).with_detail("warnings", warnings.clone()))?;
    if telling.json {
        let seconds = elapsed.as_secs_f64();
        say(format!("{}\n", json!({"ok": true, "device": id, "warnings": warnings, "seconds": seconds})));
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
