//! Standard output, and outcomes as JSON: the same values that are printed for people.

use std::io::{self, Write};
use std::process;

use aodevice::{Listed, Success, Warning};
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

fn state(value: Option<&StateValue>) -> Value {
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

fn texts(warnings: &[Warning]) -> Vec<String> {
    warnings.iter().map(ToString::to_string).collect()
}

/// Reports how an operation ended: warnings and errors on standard error, JSON on standard
/// output if asked. A success without warnings prints nothing else.
pub(crate) fn report(
    telling: &Telling,
    outcome: Result<Success, Box<aodevice::Failure>>,
) -> Result<Exit, Problem> {
    match outcome {
        Ok(Success { id, warnings, elapsed }) => {
            for warning in texts(&warnings) {
                eprintln!("warning: {warning}");
            }
            if telling.json {
                let device = json!({
                    "ok": true,
                    "device": id,
                    "warnings": texts(&warnings),
                    "seconds": elapsed.as_secs_f64(),
                });
                say(&format!("{device}\n"));
            }
            Ok(Exit::Done)
        }
        Err(failure) => {
            for warning in texts(&failure.warnings) {
                eprintln!("warning: {warning}");
            }
            let warnings = texts(&failure.warnings);
            let problem = Problem::from(failure);
            if telling.json {
                let Problem { tried, observed, hint, .. } = &problem;
                let outcome = json!({"ok": false, "error": tried, "observed": observed, "hint": hint, "warnings": warnings});
                say(&format!("{outcome}\n"));
            }
            Err(problem)
        }
    }
}
