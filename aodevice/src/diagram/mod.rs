//! The machines as diagrams, drawn from the machines themselves.
//!
//! Nothing here says what a machine does. Each is walked from its begin (`walk.rs`): in every state that it can get
//! to it is given every event that may come there (`alphabet.rs`), and where it goes is an arc. What it knew
//! whenever it went one way or another makes the guards (`guard.rs`). So a state, an event or a guard that is added
//! to a machine is in its diagram, and in docs/machines.md once that was written anew.
//!
//! ```
//! let remove = xen_aodevice::diagram::of("remove").unwrap();
//! assert!(remove.arcs.iter().any(|arc| (arc.from, arc.to) == ("Closing", "WaitingForClose")));
//! println!("{}", remove.to_mermaid());
//! ```

mod alphabet;
mod chart;
mod dot;
mod guard;
mod mermaid;
#[cfg(test)]
mod tests;
mod walk;

use serde::Serialize;

use crate::machine::{Add, Charted, Remove};

/// The names of the machines.
pub const NAMES: [&str; 2] = [Add::NAME, Remove::NAME];

/// The diagrams of all machines.
pub fn all() -> Vec<Diagram> {
    NAMES.iter().filter_map(|name| of(name)).collect()
}

/// The diagram of the machine of this name.
pub fn of(name: &str) -> Option<Diagram> {
    match name {
        Add::NAME => Some(chart::draw::<Add>()),
        Remove::NAME => Some(chart::draw::<Remove>()),
        _ => None,
    }
}

/// What a machine can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Diagram {
    /// The name of the machine.
    pub machine: &'static str,
    /// The states that it can get to, in the order in which a walk comes there.
    pub states: Vec<State>,
    /// The ways from one state to another, one at most from each to each.
    pub arcs: Vec<Arc>,
}

/// A state of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct State {
    /// Its name.
    pub name: &'static str,
    /// How far the operation is.
    pub phase: Phase,
    /// What the machine asks for in this state: one of these, in words. Limits are the default ones.
    pub asks: Vec<String>,
    /// The machine that is at work in this state, as a part of this one.
    pub part: Option<&'static str>,
}

/// How far an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Phase {
    /// It has not begun.
    Begin,
    /// The device is not there yet, or not found.
    Before,
    /// It works on the device.
    AtWork,
    /// It has failed, and cleans up; it cannot be cancelled any more.
    Failure,
    /// It ended as it should.
    Succeeded,
    /// It ended with a failure.
    Failed,
}

/// The ways from one state to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Arc {
    /// The state that is left.
    pub from: &'static str,
    /// The state that is entered.
    pub to: &'static str,
    /// Whether the operation fails by it, or has failed before.
    pub failure: bool,
    /// What leads there: one of these.
    pub reasons: Vec<Reason>,
}

/// Why a machine goes from one state to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Reason {
    /// What came of what it had asked for, in words: one of these.
    pub events: Vec<String>,
    /// What must be so besides; `None` if nothing.
    pub guard: Option<String>,
    /// Whether it warns.
    pub warns: Warns,
}

/// Whether a transition warns of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Warns {
    /// It does not.
    Never,
    /// In some cases.
    Perhaps,
    /// It does.
    Always,
}

/// As in `the wait fails: timed out [without the guest] (warns)`.
impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.events.join(", or "))?;
        if let Some(guard) = &self.guard {
            write!(f, " [{guard}]")?;
        }
        f.write_str(match self.warns {
            Warns::Never => "",
            Warns::Perhaps => " (may warn)",
            Warns::Always => " (warns)",
        })
    }
}

/// The phases in the order in which they are drawn, and what stands above the states of each, if they are drawn
/// together.
const GROUPS: [(Phase, Option<&str>); 6] = [
    (Phase::Begin, None),
    (Phase::Before, Some("no device at hand yet")),
    (Phase::AtWork, Some("at work on the device")),
    (Phase::Failure, Some("after a failure: cannot be cancelled")),
    (Phase::Succeeded, None),
    (Phase::Failed, None),
];

impl Arc {
    /// A paragraph for each reason, marked if there are several.
    fn label(&self) -> Vec<String> {
        let mark = if self.reasons.len() > 1 { "• " } else { "" };
        self.reasons.iter().map(|reason| format!("{mark}{reason}")).collect()
    }
}

impl State {
    /// What stands below its name.
    fn label(&self) -> Vec<String> {
        let part = self.part.map(|part| format!("the machine {part}"));
        let or = |index| if index > 0 { "or " } else { "" };
        let asks = self.asks.iter().enumerate().map(|(index, asks)| format!("{}{asks}", or(index)));
        part.into_iter().chain(asks).collect()
    }
}
