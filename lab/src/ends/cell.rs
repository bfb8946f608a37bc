//! What the matrix is made of: an operation, the step at which it is struck, and what strikes it.

use std::fmt;

use rustix::process::Signal;

/// What xendev is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Attach,
    Detach,
    ForceDetach,
}

/// How far the operation is when it is struck. What holds it there is a peer that the lab plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing is written yet: the store does not answer the first request that would.
    Unwritten,
    /// The tree is written, and its backend comes after the strike.
    Written,
    /// The tree is written, and no backend ever comes.
    Untaken,
    /// The device was told to close. The guest does not answer; without a guest, the backend.
    Closing,
    /// The script is at its beginning.
    Begun,
    /// The script is at its beginning, and ignores signals that ask it to end.
    Stubborn,
    /// The script has made its device and not reported it, or has deleted it and not ended.
    Midway,
    /// The script has reported and not ended.
    Reported,
    /// The script has ended, and the store does not answer what follows.
    Unsettled,
    /// The guest does not connect, as it was to.
    Guest,
    /// All is done but that somebody reads the outcome.
    Told,
}

/// What happens to xendev, or to what it works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Strike {
    Hup,
    Int,
    Term,
    /// The second one while what the first began goes on.
    IntTwice,
    Kill,
    StdoutClosed,
    StderrClosed,
    /// Standard error has no reader when the signal comes.
    StderrClosedInt,
    /// The store is away for a moment, and comes back as it was.
    StoreCut,
    /// The store is killed, and comes back with a guest and nothing of the device.
    StoreKilled,
    /// The domain ends, and its toolstack removes its trees.
    DomainGone,
}

const OPERATIONS: [Operation; 3] = [Operation::Attach, Operation::Detach, Operation::ForceDetach];

const STRIKES: [Strike; 11] = [
    Strike::Hup,
    Strike::Int,
    Strike::Term,
    Strike::IntTwice,
    Strike::Kill,
    Strike::StdoutClosed,
    Strike::StderrClosed,
    Strike::StderrClosedInt,
    Strike::StoreCut,
    Strike::StoreKilled,
    Strike::DomainGone,
];

impl Operation {
    fn steps(self) -> &'static [Step] {
        use Step::{
            Begun, Closing, Guest, Midway, Reported, Stubborn, Told, Unsettled, Untaken, Unwritten, Written,
        };
        match self {
            Self::Attach => {
                &[Unwritten, Written, Untaken, Begun, Stubborn, Midway, Reported, Unsettled, Guest, Told]
            }
            Self::Detach | Self::ForceDetach => {
                &[Unwritten, Closing, Begun, Stubborn, Midway, Unsettled, Told]
            }
        }
    }
}

impl Strike {
    /// The signal, if it is one.
    pub(super) fn signal(self) -> Option<Signal> {
        match self {
            Self::Hup => Some(Signal::HUP),
            Self::Int | Self::IntTwice | Self::StderrClosedInt => Some(Signal::INT),
            Self::Term => Some(Signal::TERM),
            Self::Kill => Some(Signal::KILL),
            _ => None,
        }
    }
}

/// A cell of the matrix.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cell {
    pub(super) operation: Operation,
    pub(super) step: Step,
    pub(super) strike: Strike,
}

impl Cell {
    /// All cells.
    pub(super) fn all() -> Vec<Self> {
        let steps = |operation: Operation| operation.steps().iter().map(move |step| (operation, *step));
        let cells = OPERATIONS.into_iter().flat_map(steps).flat_map(|(operation, step)| {
            // What ends no script goes as with one that is not stubborn.
            let strikes =
                STRIKES.into_iter().filter(move |strike| step != Step::Stubborn || strike.signal().is_some());
            strikes.map(move |strike| Self { operation, step, strike })
        });
        cells.collect()
    }

    /// The action of the script that the operation runs.
    pub(super) fn action(self) -> &'static str {
        if self.operation == Operation::Attach { "add" } else { "remove" }
    }

    /// Which end of the device does not answer before the strike.
    pub(super) fn absent(self) -> Option<End> {
        match (self.step, self.operation) {
            (Step::Written | Step::Untaken, _) | (Step::Closing, Operation::ForceDetach) => {
                Some(End::Backend)
            }
            (Step::Guest | Step::Closing, _) => Some(End::Frontend),
            _ => None,
        }
    }
}

/// An end of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Backend,
    Frontend,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operation = match self.operation {
            Operation::Attach => "attach",
            Operation::Detach => "detach",
            Operation::ForceDetach => "force",
        };
        let step = match self.step {
            Step::Unwritten => "unwritten",
            Step::Written => "written",
            Step::Untaken => "untaken",
            Step::Closing => "closing",
            Step::Begun => "script-begun",
            Step::Stubborn => "script-stubborn",
            Step::Midway => "script-midway",
            Step::Reported => "script-reported",
            Step::Unsettled => "unsettled",
            Step::Guest => "guest",
            Step::Told => "told",
        };
        let strike = match self.strike {
            Strike::Hup => "hup",
            Strike::Int => "int",
            Strike::Term => "term",
            Strike::IntTwice => "int-twice",
            Strike::Kill => "kill",
            Strike::StdoutClosed => "stdout",
            Strike::StderrClosed => "stderr",
            Strike::StderrClosedInt => "stderr-int",
            Strike::StoreCut => "store-cut",
            Strike::StoreKilled => "store-killed",
            Strike::DomainGone => "domain-gone",
        };
        write!(f, "{operation}/{step}/{strike}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_cell_has_a_name_of_its_own() {
        let cells = Cell::all();
        let names: BTreeSet<String> = cells.iter().map(Cell::to_string).collect();
        assert_eq!((cells.len(), names.len()), (21 * 11 + 3 * 6, 21 * 11 + 3 * 6));
    }
}
