//! The life of a device operation as plain values: `state.on(event) -> action`.
//!
//! A machine asks for one [`Action`] at a time and takes the [`Event`] in which it results. It has
//! no clock, no connection and no processes; [`crate::Toolstack`] carries out what it asks for.
//! What a machine waits for is its state, and its state prints as what a person would say.

mod add;
mod remove;

use devstate::{Goal, Outcome};
use std::fmt;
use std::time::Duration;

pub use add::{Add, AddState, WaitFor};
pub use remove::{Force, Remove, RemoveState};

use crate::{Cause, End, Warning};

/// How long each step may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A backend to take up a new device: 10 s by default.
    pub backend: Duration,
    /// The guest to connect, where that is waited for: 10 s by default.
    pub connect: Duration,
    /// A backend to close: 10 s by default.
    pub close: Duration,
    /// Hotplug scripts: 40 s each by default.
    pub scripts: hotplug::Limits,
}

impl Default for Limits {
    fn default() -> Self {
        let wait = Duration::from_secs(10);
        Self { backend: wait, connect: wait, close: wait, scripts: hotplug::Limits::default() }
    }
}

/// What becomes of the guest's directory as the device is told to close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Frontend {
    /// It stays: the guest is asked.
    Keep,
    /// It goes: the guest is not asked.
    Delete,
    /// It goes unless a frontend is at work there. And if no backend has taken the device up
    /// either, all of it goes at once.
    DeleteIfIdle,
}

/// What a machine asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// Write the device's tree, in one transaction, if it is not there.
    Create,
    /// Find out what the toolstack knows of the device.
    Probe,
    /// Wait for the backend's state. It is the end that can be trusted.
    Await {
        /// For what.
        goal: Goal,
        /// For how long.
        limit: Duration,
    },
    /// Run a hotplug script.
    Run {
        /// Of which action.
        action: hotplug::Action,
        /// Which of its runs.
        index: usize,
    },
    /// Tell the device to close, in one transaction.
    Close(Frontend),
    /// Remove the device's tree, in one transaction, if it is still ours.
    Destroy,
    /// Remove the operation record: the device is as it should be.
    Settle,
    /// Look at both ends, for the report.
    Observe,
    /// Nothing more: ask for the outcome.
    Finish,
}

/// Where a device stands that was told to close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Closing {
    /// Its backend has been told.
    Told,
    /// Its backend was closed already.
    Closed,
    /// Its backend has no nodes any more.
    Missing,
    /// Nothing had taken it up, and its tree is gone.
    Destroyed,
    /// It is no longer ours to touch.
    NotOurs,
}

/// Where a device stands whose tree was to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Destroyed {
    /// It is gone.
    Gone,
    /// It is no longer ours to touch.
    NotOurs,
}

/// What an action resulted in.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The machine is to begin.
    Begin,
    /// Of [`Action::Create`] and [`Action::Probe`]: how many script runs the device has.
    Known(Result<usize, Cause>),
    /// Of [`Action::Create`]: the store did not say whether it has the tree.
    Unsure(Cause),
    /// Of [`Action::Await`].
    Waited(Outcome),
    /// Of [`Action::Run`]. A script that did not report all it should is a warning.
    Ran(Result<Option<Warning>, Cause>),
    /// Of [`Action::Close`].
    Told(Result<Closing, Cause>),
    /// Of [`Action::Destroy`].
    Destroyed(Result<Destroyed, Cause>),
    /// Of [`Action::Settle`].
    Settled(Result<(), Cause>),
    /// Of [`Action::Observe`].
    Observed,
}

/// The cause that a wait which missed its goal amounts to; `None` if it reached it.
fn missed(goal: Goal, limit: Duration, outcome: Outcome) -> Option<Cause> {
    let end = End::Backend;
    Some(match outcome {
        Outcome::Reached(_) => return None,
        Outcome::Failed(state) => Cause::Refused { end, goal, state },
        Outcome::Gone => Cause::Vanished(end),
        Outcome::TimedOut { .. } => Cause::TimedOut { end, goal, limit },
        Outcome::Aborted => Cause::Aborted,
        Outcome::Io(error) => Cause::Store(error),
        // `Outcome` may grow; what this version does not know did not reach the goal.
        _ => Cause::Superseded,
    })
}

/// A wait in words: for what, and how long it may take.
struct Awaiting(Goal, Duration);

impl fmt::Display for Awaiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "waiting up to {:?} for the backend to get to {}", self.1, self.0)
    }
}
