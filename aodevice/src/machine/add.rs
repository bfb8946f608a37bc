//! Adding a device.
//!
//! ```text
//!  Creating --ok--> WaitingForBackend --2,3,4--> RunningScript(0..n) --+--> Settling --> Done
//!     |                    |                            |              |       ^
//!     | exists,            | 5, 6, gone,                | failed,      v       |
//!     | no domain          | timeout                    | timeout   WaitingForGuest
//!     v                    v                            v              | timeout
//!  Observing          Observing <---------------------------------------+
//!     |                    |
//!     |                    v          roll-back; cannot be cancelled
//!     |              UndoingScript(n..0) --> Closing --> WaitingForClose --> Destroying
//!     v                                         | never taken up: gone at once    |
//!    Done <-------------------------------------+---------------------------------+
//! ```
//!
//! Success is: the backend is ready and the scripts have run. That the guest connects is waited
//! for if asked; it may not even be running. A failure after the tree was written, or when the
//! store did not say whether it was, rolls all of it back, scripts first since they need it, and
//! the original cause is the outcome.

use std::fmt;

use devstate::{Goal, Outcome};
use hotplug::Action as ScriptAction;

use super::{Action, Awaiting, Closing, Destroyed, Event, Frontend, Limits, missed};
use crate::{Cause, Warning};

/// When an add is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WaitFor {
    /// When the scripts have run; the guest connects when it likes.
    #[default]
    Script,
    /// When the backend says that the guest has connected.
    Connected,
}

/// Where an add stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AddState {
    /// Not begun.
    Idle,
    /// The tree is being written.
    Creating,
    /// The backend is to take the device up.
    WaitingForBackend,
    /// A script runs.
    RunningScript(usize),
    /// The guest is to connect.
    WaitingForGuest,
    /// The operation record is being removed.
    Settling,
    /// It failed; both ends are being looked at.
    Observing,
    /// Rolling back: a script undoes its work.
    UndoingScript(usize),
    /// Rolling back: the backend is being told to close.
    Closing,
    /// Rolling back: the backend is to close.
    WaitingForClose,
    /// Rolling back: the tree is being removed.
    Destroying,
    /// Over.
    Done,
}

/// An add as a plain value.
#[derive(Clone, Debug)]
pub struct Add {
    state: AddState,
    wait_for: WaitFor,
    limits: Limits,
    /// Script runs of the device, and how many of them were begun.
    runs: usize,
    begun: usize,
    /// Whether the tree was written, or may have been, so that a failure has something to roll back.
    created: bool,
    /// Whether it is not known if the tree was written.
    unsure: bool,
    failure: Option<Cause>,
    warnings: Vec<Warning>,
}

impl Add {
    /// An add that has not begun.
    pub fn new(wait_for: WaitFor, limits: Limits) -> Self {
        Self {
            state: AddState::Idle,
            wait_for,
            limits,
            runs: 0,
            begun: 0,
            created: false,
            unsure: false,
            failure: None,
            warnings: Vec::new(),
        }
    }

    /// Where it stands.
    pub fn state(&self) -> AddState {
        self.state
    }

    /// Whether what it asks for now may be cancelled. A roll-back may not.
    pub fn is_cancellable(&self) -> bool {
        self.failure.is_none()
    }

    /// How it ended.
    pub fn outcome(self) -> (Result<(), Cause>, Vec<Warning>) {
        (self.failure.map_or(Ok(()), Err), self.warnings)
    }

    /// Takes an event; what it does not await changes nothing, and is asked for again.
    pub fn on(&mut self, event: Event) -> Action {
        match (self.state, event) {
            (AddState::Idle, Event::Begin) => self.go(AddState::Creating),
            (AddState::Creating, Event::Known(Ok(runs))) => {
                (self.runs, self.created) = (runs, true);
                self.go(AddState::WaitingForBackend)
            }
            (AddState::Creating, Event::Known(Err(cause))) => self.fail(cause),
            (AddState::Creating, Event::Unsure(cause)) => {
                (self.created, self.unsure) = (true, true);
                self.fail(cause)
            }
            (AddState::WaitingForBackend, Event::Waited(outcome)) => {
                match missed(Goal::BACKEND_READY, self.limits.backend, outcome) {
                    None => self.script(0),
                    Some(cause) => self.fail(cause),
                }
            }
            (AddState::RunningScript(index), Event::Ran(Ok(warning))) => {
                self.warnings.extend(warning);
                self.script(index + 1)
            }
            (AddState::RunningScript(_), Event::Ran(Err(cause))) => self.fail(cause),
            (AddState::WaitingForGuest, Event::Waited(outcome)) => {
                match missed(Goal::CONNECTED, self.limits.connect, outcome) {
                    None => self.go(AddState::Settling),
                    Some(cause) => self.fail(cause),
                }
            }
            (AddState::Settling, Event::Settled(Err(Cause::Superseded))) => self.fail(Cause::Superseded),
            (AddState::Settling, Event::Settled(outcome)) => {
                self.left_behind("removing the operation record", outcome);
                self.go(AddState::Done)
            }
            (AddState::Observing, Event::Observed) if self.created => self.undo_script(self.begun),
            (AddState::Observing, Event::Observed) => self.go(AddState::Done),
            (AddState::UndoingScript(index), Event::Ran(outcome)) => {
                match outcome {
                    Ok(warning) => self.warnings.extend(warning),
                    Err(Cause::Script { run, report }) => {
                        self.warnings.push(Warning::ScriptFailed { run, report });
                    }
                    Err(Cause::Superseded) => return self.superseded(),
                    Err(cause) => self.left_behind("running the hotplug script", Err(cause)),
                }
                self.undo_script(index)
            }
            (AddState::Closing, Event::Told(outcome)) => match outcome {
                Ok(Closing::Told) => self.go(AddState::WaitingForClose),
                Ok(Closing::Closed | Closing::Missing) => self.go(AddState::Destroying),
                Ok(Closing::Destroyed) => self.go(AddState::Done),
                // It was never written.
                Ok(Closing::NotOurs) if self.unsure => self.go(AddState::Done),
                Ok(Closing::NotOurs) => self.superseded(),
                Err(cause) => {
                    self.left_behind("closing the device", Err(cause));
                    self.go(AddState::Done)
                }
            },
            (AddState::WaitingForClose, Event::Waited(outcome)) => {
                if let Outcome::TimedOut { .. } = outcome {
                    self.warnings.push(Warning::Forced { limit: self.limits.close });
                }
                self.go(AddState::Destroying)
            }
            (AddState::Destroying, Event::Destroyed(outcome)) => {
                if let Ok(Destroyed::NotOurs) = outcome {
                    return self.superseded();
                }
                self.left_behind("removing the tree", outcome.map(drop));
                self.go(AddState::Done)
            }
            _ => self.asks(),
        }
    }

    fn go(&mut self, state: AddState) -> Action {
        self.state = state;
        self.asks()
    }

    /// The action of a state.
    fn asks(&self) -> Action {
        let await_backend = |goal, limit| Action::Await { goal, limit };
        match self.state {
            AddState::Creating => Action::Create,
            AddState::WaitingForBackend => await_backend(Goal::BACKEND_READY, self.limits.backend),
            AddState::RunningScript(index) => Action::Run { action: ScriptAction::Add, index },
            AddState::WaitingForGuest => await_backend(Goal::CONNECTED, self.limits.connect),
            AddState::Settling => Action::Settle,
            AddState::Observing => Action::Observe,
            AddState::UndoingScript(index) => Action::Run { action: ScriptAction::Remove, index },
            AddState::Closing => Action::Close(Frontend::DeleteIfIdle),
            AddState::WaitingForClose => await_backend(Goal::CLOSED, self.limits.close),
            AddState::Destroying => Action::Destroy,
            AddState::Idle | AddState::Done => Action::Finish,
        }
    }

    fn script(&mut self, index: usize) -> Action {
        if index < self.runs {
            self.begun = index + 1;
            return self.go(AddState::RunningScript(index));
        }
        self.go(match self.wait_for {
            WaitFor::Script => AddState::Settling,
            WaitFor::Connected => AddState::WaitingForGuest,
        })
    }

    /// Undoes the scripts before the one at `index`, the last first.
    fn undo_script(&mut self, index: usize) -> Action {
        self.go(index.checked_sub(1).map_or(AddState::Closing, AddState::UndoingScript))
    }

    fn fail(&mut self, cause: Cause) -> Action {
        self.failure = Some(cause);
        self.go(AddState::Observing)
    }

    /// Somebody else has the device now; what they do with it is theirs.
    fn superseded(&mut self) -> Action {
        self.warnings.push(Warning::Superseded);
        self.go(AddState::Done)
    }

    fn left_behind(&mut self, step: &'static str, outcome: Result<(), Cause>) {
        if let Err(cause) = outcome {
            self.warnings.push(Warning::LeftBehind { step, cause });
        }
    }
}

impl fmt::Display for Add {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.state {
            AddState::Idle => f.write_str("not begun"),
            AddState::Creating => f.write_str("writing the device's nodes"),
            AddState::WaitingForBackend => Awaiting(Goal::BACKEND_READY, self.limits.backend).fmt(f),
            AddState::RunningScript(_) => f.write_str("running the hotplug script"),
            AddState::WaitingForGuest => Awaiting(Goal::CONNECTED, self.limits.connect).fmt(f),
            AddState::Settling => f.write_str("removing the operation record"),
            AddState::Observing => f.write_str("failed; looking at both ends"),
            AddState::UndoingScript(_) => f.write_str("rolling back: running the hotplug script"),
            AddState::Closing => f.write_str("rolling back: telling the backend to close"),
            AddState::WaitingForClose => {
                write!(f, "rolling back: {}", Awaiting(Goal::CLOSED, self.limits.close))
            }
            AddState::Destroying => f.write_str("rolling back: removing the device's nodes"),
            AddState::Done => f.write_str(if self.failure.is_some() { "failed" } else { "attached" }),
        }
    }
}
