//! Removing a device.
//!
//! ```text
//!  Probing --> Closing --told--> WaitingForClose --6--> RunningScript(0..n) --> Destroying --> Done
//!                 |                  |  |  |                   ^                    ^
//!                 | closed already   |  |  +-- gone -----------|--------------------+
//!                 +------------------|--|----------------------+
//!                                    |  | timeout, forced (with a warning)
//!                                    |  +----------------------+
//!                                    | timeout, AUTO: Closing again, now without the guest
//!                                    | timeout, OFF: Observing --> Done, left closing
//! ```
//!
//! A script always runs while the nodes that it needs are there, also when the removal is forced;
//! if it fails, that is a warning, since the device is gone. A removal that was cancelled or timed
//! out after the device was told to close leaves it closing, and a later one goes on from there. One
//! that another operation took the device from, at any step after that, leaves the rest to it.

use std::fmt;

use devstate::{Goal, Outcome};
use hotplug::Action as ScriptAction;

use super::{Action, Awaiting, Closing, Destroyed, Event, Frontend, Limits, missed};
use crate::{Cause, Warning};

/// Whether a removal needs the guest's consent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Force {
    /// Ask the guest, and do without it if it does not answer in time.
    #[default]
    Auto,
    /// Do not ask the guest.
    On,
    /// Ask the guest, and give up if it does not answer in time.
    Off,
}

/// Where a removal stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RemoveState {
    /// Not begun.
    Idle,
    /// The toolstack's record of the device is being read.
    Probing,
    /// The backend is being told to close.
    Closing,
    /// The backend is to close.
    WaitingForClose,
    /// A script undoes its work.
    RunningScript(usize),
    /// The tree is being removed.
    Destroying,
    /// It failed; both ends are being looked at.
    Observing,
    /// Over.
    Done,
}

/// A removal as a plain value.
#[derive(Clone, Debug)]
pub struct Remove {
    state: RemoveState,
    force: Force,
    /// Whether the guest's directory is gone, or about to go.
    forced: bool,
    limits: Limits,
    runs: usize,
    failure: Option<Cause>,
    warnings: Vec<Warning>,
}

impl Remove {
    /// A removal that has not begun.
    pub fn new(force: Force, limits: Limits) -> Self {
        let (state, forced) = (RemoveState::Idle, force == Force::On);
        Self { state, force, forced, limits, runs: 0, failure: None, warnings: Vec::new() }
    }

    /// Where it stands.
    pub fn state(&self) -> RemoveState {
        self.state
    }

    /// How it ended.
    pub fn outcome(self) -> (Result<(), Cause>, Vec<Warning>) {
        (self.failure.map_or(Ok(()), Err), self.warnings)
    }

    /// Takes an event; what it does not await changes nothing, and is asked for again.
    pub fn on(&mut self, event: Event) -> Action {
        match (self.state, event) {
            (RemoveState::Idle, Event::Begin) => self.go(RemoveState::Probing),
            (RemoveState::Probing, Event::Known(Ok(runs))) => {
                self.runs = runs;
                self.go(RemoveState::Closing)
            }
            (RemoveState::Probing, Event::Known(Err(cause))) => self.fail(cause),
            (RemoveState::Closing, Event::Told(outcome)) => match outcome {
                Ok(Closing::Told) => self.go(RemoveState::WaitingForClose),
                Ok(Closing::Closed) => self.script(0),
                Ok(Closing::Missing) => self.without_script(),
                Ok(Closing::Destroyed) => self.go(RemoveState::Done),
                // Told before, it was ours then.
                Ok(Closing::NotOurs) if self.forced && self.force != Force::On => self.superseded(),
                Ok(Closing::NotOurs) => self.fail(Cause::NotConnected),
                Err(cause) => self.fail(cause),
            },
            (RemoveState::WaitingForClose, Event::Waited(outcome)) => self.waited(outcome),
            (RemoveState::RunningScript(index), Event::Ran(outcome)) => {
                match outcome {
                    Ok(warning) => self.warnings.extend(warning),
                    Err(Cause::Script { run, report }) => {
                        self.warnings.push(Warning::ScriptFailed { run, report });
                    }
                    Err(Cause::Superseded) => return self.superseded(),
                    Err(cause) => return self.fail(cause),
                }
                self.script(index + 1)
            }
            (RemoveState::Destroying, Event::Destroyed(outcome)) => match outcome {
                Ok(Destroyed::Gone) => self.go(RemoveState::Done),
                Ok(Destroyed::NotOurs) => self.superseded(),
                Err(cause) => self.fail(cause),
            },
            (RemoveState::Observing, Event::Observed) => self.go(RemoveState::Done),
            _ => self.asks(),
        }
    }

    fn waited(&mut self, outcome: Outcome) -> Action {
        let limit = self.limits.close;
        match (outcome, self.force) {
            // Modern QEMU and driver domains remove the backend's nodes themselves.
            (Outcome::Gone, _) => self.without_script(),
            (Outcome::TimedOut { .. }, Force::Auto) if !self.forced => {
                self.forced = true;
                self.go(RemoveState::Closing)
            }
            (Outcome::TimedOut { .. }, Force::Auto | Force::On) => {
                self.warnings.push(Warning::Forced { limit });
                self.script(0)
            }
            (outcome, _) => match missed(Goal::CLOSED, limit, outcome) {
                None => self.script(0),
                Some(cause) => self.fail(cause),
            },
        }
    }

    fn go(&mut self, state: RemoveState) -> Action {
        self.state = state;
        self.asks()
    }

    /// The action of a state.
    fn asks(&self) -> Action {
        match self.state {
            RemoveState::Probing => Action::Probe,
            RemoveState::Closing if self.forced => Action::Close(Frontend::Delete),
            RemoveState::Closing => Action::Close(Frontend::Keep),
            RemoveState::WaitingForClose => Action::Await { goal: Goal::CLOSED, limit: self.limits.close },
            RemoveState::RunningScript(index) => Action::Run { action: ScriptAction::Remove, index },
            RemoveState::Destroying => Action::Destroy,
            RemoveState::Observing => Action::Observe,
            RemoveState::Idle | RemoveState::Done => Action::Finish,
        }
    }

    fn script(&mut self, index: usize) -> Action {
        self.go(if index < self.runs { RemoveState::RunningScript(index) } else { RemoveState::Destroying })
    }

    /// The backend's nodes are gone, and with them what its script would read; what the script
    /// would write would bring them back.
    fn without_script(&mut self) -> Action {
        if self.runs > 0 {
            self.warnings.push(Warning::ScriptSkipped);
        }
        self.go(RemoveState::Destroying)
    }

    /// Somebody else has the device now; what they do with it is theirs.
    fn superseded(&mut self) -> Action {
        self.warnings.push(Warning::Superseded);
        self.go(RemoveState::Done)
    }

    fn fail(&mut self, cause: Cause) -> Action {
        self.failure = Some(cause);
        self.go(RemoveState::Observing)
    }
}

impl fmt::Display for Remove {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.state {
            RemoveState::Idle => f.write_str("not begun"),
            RemoveState::Probing => f.write_str("reading the toolstack's record of the device"),
            RemoveState::Closing if self.forced => {
                f.write_str("telling the backend to close, without the guest")
            }
            RemoveState::Closing => f.write_str("telling both ends to close"),
            RemoveState::WaitingForClose => Awaiting(Goal::CLOSED, self.limits.close).fmt(f),
            RemoveState::RunningScript(_) => f.write_str("running the hotplug script"),
            RemoveState::Destroying => f.write_str("removing the device's nodes"),
            RemoveState::Observing => f.write_str("failed; looking at both ends"),
            RemoveState::Done => f.write_str(if self.failure.is_some() { "failed" } else { "detached" }),
        }
    }
}
