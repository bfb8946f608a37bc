//! What a wait is for, and how it can end.

use std::fmt;

use xs_client::Error;

use crate::{StateSet, StateValue, XenbusState};

/// What it means that the node is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// The goal is reached.
    Done,
    /// The goal cannot be reached any more.
    Fail,
    /// Nothing yet: it may still come.
    Ignore,
}

/// What one end of a device is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Goal {
    /// The states that reach it.
    pub done: StateSet,
    /// The states that defeat it.
    pub fail: StateSet,
    /// What the absence of the node means.
    pub absent: Absent,
}

impl Goal {
    /// A backend is to take a new device up: it reaches 2 (InitWait), 3 (Initialised) or
    /// 4 (Connected), and fails at once at 5 (Closing) or 6 (Closed), or if its nodes go.
    pub const BACKEND_READY: Self = Self {
        done: StateSet::of(&[XenbusState::InitWait, XenbusState::Initialised, XenbusState::Connected]),
        fail: StateSet::of(&[XenbusState::Closing, XenbusState::Closed]),
        absent: Absent::Fail,
    };

    /// One end is to be in use.
    pub const CONNECTED: Self = Self {
        done: StateSet::of(&[XenbusState::Connected]),
        fail: StateSet::of(&[XenbusState::Closing, XenbusState::Closed]),
        absent: Absent::Fail,
    };

    /// A backend is to let go: at 6 (Closed), or if its nodes go.
    pub const CLOSED: Self =
        Self { done: StateSet::of(&[XenbusState::Closed]), fail: StateSet::EMPTY, absent: Absent::Done };
}

impl Goal {
    /// What a wait for this goal ends with when the node holds this; `None` if that is not decisive.
    pub fn decide(&self, value: Option<&StateValue>) -> Option<Outcome> {
        let Some(value) = value else {
            return match self.absent {
                Absent::Done => Some(Outcome::Gone),
                Absent::Fail => Some(Outcome::Vanished),
                Absent::Ignore => None,
            };
        };
        let state = value.state()?;
        if self.done.contains(state) {
            Some(Outcome::Reached(state))
        } else if self.fail.contains(state) {
            Some(Outcome::Failed(state))
        } else {
            None
        }
    }
}

/// As in `2 (InitWait) or 4 (Connected)`.
impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.done.fmt(f)
    }
}

/// How a wait ended.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Outcome {
    /// One of the wanted states was seen.
    Reached(XenbusState),
    /// One of the defeating states was seen.
    Failed(XenbusState),
    /// The node is not there, which reaches the goal ([`Absent::Done`]).
    Gone,
    /// The node is not there, which defeats the goal ([`Absent::Fail`]).
    Vanished,
    /// The deadline passed.
    TimedOut {
        /// What the node held at the last look; `None` if it was not there.
        last: Option<StateValue>,
    },
    /// The wait was cancelled.
    Aborted,
    /// The store failed.
    Io(Error),
}

impl Outcome {
    /// Whether the goal was reached.
    pub fn is_reached(&self) -> bool {
        matches!(self, Self::Reached(_) | Self::Gone)
    }
}

/// As a sentence's end: `reached 4 (Connected)`.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reached(state) => write!(f, "reached {state}"),
            Self::Failed(state) => write!(f, "went to {state}"),
            Self::Gone => f.write_str("is gone, as wanted"),
            Self::Vanished => f.write_str("vanished"),
            Self::TimedOut { last: Some(last) } => write!(f, "timed out at {last}"),
            Self::TimedOut { last: None } => f.write_str("timed out, and is not there"),
            Self::Aborted => f.write_str("was cancelled"),
            Self::Io(error) => error.fmt(f),
        }
    }
}
