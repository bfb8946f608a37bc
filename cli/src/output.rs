//! Standard output, and outcomes as JSON: the same values that are printed for people.

use std::io::{self, Write};
use std::process;

use aodevice::{Failure, Listed, Success};
use devstate::StateValue;
use serde_json::{Value, json};
use xs_client::DomId;

use crate::args::Telling;
use crate::problem::{Exit, Problem};

/// Writes to standard output. A reader that has gone away, such as `head`, has seen enough.
pub(crate) fn say(text: &str) {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => process::exit(0),
        Err(error) => {
            eprintln!("error: cannot write to standard output: {error}");
            process::exit(1);
        }
    }
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

/// Reports how an operation ended: warnings and errors on standard error, JSON on standard
/// output if asked. A success without warnings prints nothing else.
pub(crate) fn report(telling: &Telling, outcome: Result<Success, Box<Failure>>) -> Result<Exit, Problem> {
    let warnings = match &outcome {
        Ok(success) => &success.warnings,
        Err(failure) => &failure.warnings,
    };
    let warnings: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    for warning in &warnings {
        eprintln!("warning: {warning}");
    }
    let (value, outcome) = match outcome {
        Ok(Success { id, elapsed, .. }) => {
            let seconds = elapsed.as_secs_f64();
            (json!({"ok": true, "device": id, "warnings": warnings, "seconds": seconds}), Ok(Exit::Done))
        }
        Err(failure) => {
            let problem = Problem::from(failure);
            let Problem { tried, observed, hint, .. } = &problem;
            let value = json!({"ok": false, "error": tried, "observed": observed, "hint": hint, "warnings": warnings});
            (value, Err(problem))
        }
    };
    if telling.json {
        say(&format!("{value}\n"));
    }
    outcome
}
