//! Whether what xendev says is true, and what is left of the device.

use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use super::cell::{Cell, Operation, Step, Strike};
use super::host::{Host, until};
use super::program::Program;

/// The exit status of a Rust program that panicked.
const PANICKED: i32 = 101;

/// How long a loop device that was given back may stay.
const LAZY: Duration = Duration::from_secs(1);

/// What there is of the device.
#[derive(Debug)]
pub(super) struct Remains {
    nodes: Vec<String>,
    devices: Vec<String>,
    /// The state of the backend.
    state: Option<String>,
    /// Whether its script has reported.
    reported: bool,
}

impl Remains {
    pub(super) async fn look(host: &Host<'_>) -> Result<Self> {
        let reported = host.backend("hotplug-status").await?.as_deref() == Some("connected");
        let nodes = host.nodes().await?;
        // A loop device that somebody looks at just then goes a moment after it was given back.
        _ = until(LAZY, async || Ok(!nodes.is_empty() || host.folder.devices()?.is_empty())).await?;
        Ok(Self { nodes, devices: host.folder.devices()?, state: host.backend("state").await?, reported })
    }

    fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.devices.is_empty()
    }

    /// Whether nothing is left that this cell's operation could have removed.
    ///
    /// A store that was killed has lost every node, and with them which device the script made: what
    /// had been reported by then nobody can find any more.
    pub(super) fn is_clean(&self, cell: Cell) -> bool {
        use Step::{Begun, Midway, Stubborn, Untaken, Unwritten, Written};
        let lost = cell.strike == Strike::StoreKilled;
        let unreported = cell.operation == Operation::Attach
            && matches!(cell.step, Unwritten | Written | Untaken | Begun | Stubborn | Midway);
        (lost || self.nodes.is_empty()) && ((lost && !unreported) || self.devices.is_empty())
    }

    /// Whether the device stands, as an attach was asked to make it.
    fn stands(&self, cell: Cell) -> bool {
        let state = self.state.as_deref();
        let is_up = if cell.step == Step::Guest {
            state == Some("4")
        } else {
            matches!(state, Some("2" | "3" | "4"))
        };
        is_up && self.reported && self.devices.len() == 1
    }
}

impl fmt::Display for Remains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { nodes, devices, .. } = self;
        let count = nodes.len();
        let shown = nodes.iter().take(3).chain(devices).map(String::as_str).collect::<Vec<_>>().join(", ");
        write!(f, "{count} nodes and {} devices: {shown}", devices.len())
    }
}

/// Demands that an operation whose outcome is about to be told is done.
pub(super) fn done(cell: Cell, remains: &Remains, faults: &mut Vec<String>) {
    match cell.operation {
        Operation::Attach if !remains.stands(cell) => {
            faults.push(format!("it is done, and the device does not stand: there is {remains}"));
        }
        Operation::Detach | Operation::ForceDetach if !remains.is_empty() => {
            faults.push(format!("it is done, and the device is not gone: there is {remains}"));
        }
        _ => {}
    }
}

/// Judges how an operation ended.
pub(super) fn end(
    cell: Cell,
    status: ExitStatus,
    program: &Program,
    remains: &Remains,
    faults: &mut Vec<String>,
) {
    no_panic(status, program, faults);
    let Some(code) = status.code() else {
        if cell.strike != Strike::Kill {
            faults.push(format!("it died of signal {:?}", status.signal()));
        }
        return;
    };
    let allowed: &[i32] = match cell.strike {
        Strike::Kill => &[],
        _ if cell.strike.signal().is_some() => &[0, 4],
        _ => &[0, 1, 3],
    };
    // One that had ended when the signal came tells nothing of it.
    if !allowed.contains(&code) && cell.step != Step::Told {
        faults.push(format!("exit status {code}, not one of {allowed:?}"));
    }
    truth(cell, code, program, remains, faults);
    told(cell, code, program, faults);
}

/// Whether the exit status is true.
fn truth(cell: Cell, code: i32, program: &Program, remains: &Remains, faults: &mut Vec<String>) {
    let told = cell.step == Step::Told;
    // A removal whose script failed is done, and says what may be left.
    let warned = remains.nodes.is_empty() && program.stderr.text().contains("may be left");
    let changed_since = told && matches!(cell.strike, Strike::StoreKilled | Strike::DomainGone);
    match (cell.operation, code) {
        (Operation::Attach, 0) if !changed_since && !remains.stands(cell) => {
            faults.push(format!("exit status 0, and the device does not stand: there is {remains}"));
        }
        (Operation::Detach | Operation::ForceDetach, 0) if !remains.is_empty() && !warned => {
            faults.push(format!("exit status 0, and the device is not gone: there is {remains}"));
        }
        (Operation::Attach, 1..) if !remains.is_empty() && rolls_back(cell) => {
            faults.push(format!("exit status {code}, and it is not rolled back: there is {remains}"));
        }
        _ => {}
    }
}

/// Whether an attach that fails must have undone everything: not if the user gave that up, nor if the
/// store that it needs for it was away, nor if it has failed in nothing but to say that it is done.
fn rolls_back(cell: Cell) -> bool {
    match cell.strike {
        Strike::IntTwice | Strike::Kill | Strike::StoreCut | Strike::StoreKilled => false,
        Strike::StdoutClosed | Strike::DomainGone => cell.step != Step::Told,
        _ => true,
    }
}

/// Whether what it says agrees with its exit status.
fn told(cell: Cell, code: i32, program: &Program, faults: &mut Vec<String>) {
    let stderr_is_read = !matches!(cell.strike, Strike::StderrClosed | Strike::StderrClosedInt);
    let stderr = program.stderr.text();
    if code != 0 && stderr_is_read && cell.strike != Strike::IntTwice && !stderr.contains("error: ") {
        faults.push(format!("exit status {code}, and no error is told"));
    }
    let stdout = program.stdout.text();
    if cell.strike == Strike::StdoutClosed || stdout.is_empty() {
        return;
    }
    let outcome: Option<Value> = serde_json::from_str(&stdout).ok();
    match outcome.as_ref().and_then(|outcome| outcome["ok"].as_bool()) {
        Some(ok) if ok == (code == 0) => {}
        _ => faults.push(format!("exit status {code}, and the JSON is {stdout}")),
    }
}

/// Demands that it did not panic.
pub(super) fn no_panic(status: ExitStatus, program: &Program, faults: &mut Vec<String>) {
    let texts = [program.stdout.text(), program.stderr.text()];
    let told = texts.iter().flat_map(|text| text.lines()).find(|line| line.contains("panicked at"));
    if let Some(line) = told {
        faults.push(line.to_owned());
    } else if status.code() == Some(PANICKED) {
        faults.push("it panicked".to_owned());
    }
}
