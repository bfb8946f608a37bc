//! The transitions of the machines as `tracing` events, one for each, of the target `xen_aodevice::machine`: the old
//! state, what came of what it asked for, the new state, and how long the old one lasted. The names are those
//! of the diagrams ([`crate::diagram`]).

use tokio::time::Instant;
use tracing::{Level, debug, enabled};

use super::Job;
use crate::machine::{Action, Event, Machine};

const TARGET: &str = "xen_aodevice::machine";

impl Job<'_> {
    /// Gives a machine its event. `entered`: when it came to the state that it is in.
    pub(super) fn give(&self, machine: &mut impl Machine, event: Event, entered: &mut Instant) -> Action {
        let elapsed = entered.elapsed();
        *entered = Instant::now();
        if !enabled!(target: TARGET, Level::DEBUG) {
            return machine.on(event);
        }
        let (from, words) = (place(machine), event.words());
        let cause = event.cause().map(ToString::to_string);
        let action = machine.on(event);
        debug!(
            target: TARGET,
            operation = %self.record.operation,
            device = %self.device,
            domid = self.device.fe.0,
            from,
            event = words,
            cause,
            to = place(machine),
            elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            doing = %machine,
            "transition"
        );
        action
    }
}

/// Its state, and that of the machine that is at work as a part of it: `Recovering/Closing`.
fn place(machine: &impl Machine) -> String {
    match machine.part() {
        Some(part) => format!("{}/{}", machine.state(), part.state()),
        None => machine.state().to_owned(),
    }
}
