//! Removing a device. `xendev machine remove` and docs/machines.md show it as a diagram.
//!
//! An operation on the device that is under way is waited for; one that died is gone on with. Whatever changes
//! the record between the look at it and the claim makes the removal look again. A guest that is over is not
//! waited for: the removal goes on without it.
//!
//! A script runs while the nodes that it needs are there, or a copy of them, also when the removal
//! is forced; if it fails, that is a warning, since the device is gone. A removal that was cancelled
//! or timed out after the device was told to close leaves it closing, and a later one goes on from
//! there. Where libxl keeps a configuration of the domain, the device is struck out of it once it is gone;
//! if that fails, it is a warning. Of a device whose backend is in a driver domain that domain's daemon runs the script and
//! removes the backend's directory, which is waited for; a driver domain that is gone is not. An add that died is undone without the guest where no frontend is at work.

mod facts;

use std::fmt;

use xen_devstate::Goal;

use super::{
    Action, Awaiting, Claim, Closing, Destroyed, Event, Frontend, Limits, Machine, Node, Purpose, Reached,
    Step, Until, await_removal,
};
use crate::operation::Target;
use crate::operation::record::Occupant;
use crate::{Cause, DriverDomainFault, Removal, Warning, Which};

/// Whether a removal needs the guest's consent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Force {
    /// Ask the guest, and give up if it does not answer in time. Do without it if it will never answer.
    #[default]
    Never,
    /// Ask the guest, and do without it if it does not answer in time.
    AfterTimeout,
    /// Do not ask the guest.
    AtOnce,
}

/// Where a removal stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Probing,
    WaitingForOwner(Occupant),
    On(Target, Known),
    Done,
}

/// Where a removal stands whose device is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Closing,
    WaitingForClose,
    ClosingForServer,
    RunningScript(usize),
    WaitingForRemoval,
    Destroying,
    Striking,
    Observing,
    Leaving,
}

/// A removal as a plain value.
#[derive(Clone, Debug)]
pub struct Remove {
    state: State,
    which: Which,
    removal: Removal,
    limits: Limits,
    claim: Claim,
    /// What becomes of the guest's directory.
    frontend: Frontend,
    /// Whether a live owner was waited for, so that a device which is gone is gone as asked.
    waited: bool,
    failure: Option<Cause>,
    warnings: Vec<Warning>,
}

impl Remove {
    /// A removal that has not begun.
    pub fn new(which: Which, removal: Removal, limits: Limits) -> Self {
        let frontend = if removal.force == Force::AtOnce { Frontend::Delete } else { Frontend::Keep };
        Self {
            state: State::Idle,
            which,
            removal,
            limits,
            claim: Claim::First(None),
            frontend,
            waited: false,
            failure: None,
            warnings: Vec::new(),
        }
    }

    /// The removal of what an add found in its place: an operation that died, or a device that is not
    /// alive. Only where no frontend is at work the guest is not asked.
    pub(super) fn of_leftovers(which: Which, limits: Limits) -> Self {
        Self {
            frontend: Frontend::DeleteIfIdle,
            waited: true,
            ..Self::new(which, Removal::default(), limits)
        }
    }

    /// Whether it is over.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    fn waited_for_close(&mut self, target: Target, waited: Result<Reached, Cause>) {
        let without_guest = self.is_without_guest();
        match (waited, self.removal.force) {
            (Ok(Reached::ServerGone), _) => self.on_target(target, Known::ClosingForServer),
            (Ok(Reached::ServerUnseen), _) => {
                self.warnings.push(Warning::ServerUnseen { limit: self.limits.unseen });
                self.on_target(target, Known::ClosingForServer);
            }
            (Ok(Reached::ImageOpen), _) => {
                self.warnings.push(Warning::ImageOpen { limit: self.limits.close });
                self.script(target, 0);
            }
            (Ok(Reached::Value | Reached::Gone), _) => self.script(target, 0),
            (Ok(Reached::GuestOver), _) => self.do_without_guest(target),
            (Err(Cause::TimedOut { .. }), Force::AfterTimeout) if !without_guest => {
                self.do_without_guest(target);
            }
            (Err(Cause::TimedOut { .. }), _) if without_guest => {
                self.warnings.push(Warning::Forced { limit: self.limits.close });
                self.script(target, 0);
            }
            // Nobody is there to close it.
            (Err(Cause::DriverDomain { fault: DriverDomainFault::Gone, .. }), _) => {
                self.on_target(target, Known::Destroying);
            }
            // Its record is gone: what is left of it is looked at again.
            (Err(Cause::Gone { .. }), _) => self.on_target(target, Known::Closing),
            (Err(cause), _) => self.fail(target, cause),
        }
    }

    fn is_without_guest(&self) -> bool {
        self.frontend == Frontend::Delete
    }

    fn do_without_guest(&mut self, target: Target) {
        self.frontend = Frontend::Delete;
        self.on_target(target, Known::Closing);
    }

    fn told(&mut self, target: Target, told: Result<Closing, Cause>) {
        match told {
            Ok(Closing::Changed) => return self.state = State::Probing,
            Ok(Closing::Vanished) => {
                if self.claim == Claim::First(None) && target.config().is_some() && !self.waited {
                    self.warnings.push(Warning::OnlyEntry);
                }
                return self.strike(target);
            }
            Ok(Closing::Destroyed) => return self.strike(target),
            Ok(Closing::Taken) => return self.fail(target, Cause::Taken),
            Err(cause) => return self.fail(target, cause),
            Ok(Closing::Again) => self.on_target(target, Known::Closing),
            Ok(Closing::Told) => self.on_target(target, Known::WaitingForClose),
            // A device model closes the image after that.
            Ok(Closing::Closed | Closing::Missing) if target.is_of_model() => {
                self.on_target(target, Known::WaitingForClose);
            }
            Ok(Closing::Closed | Closing::Missing) => self.script(target, 0),
        }
        self.claim = Claim::Kept;
    }

    fn on_target(&mut self, target: Target, known: Known) {
        self.state = State::On(target, known);
    }

    fn script(&mut self, target: Target, index: usize) {
        if target.runs() == 0 && target.has_made() {
            self.warnings.push(Warning::ScriptSkipped);
        }
        let next = if index < target.runs() {
            Known::RunningScript(index)
        } else if target.daemon_removes() {
            Known::WaitingForRemoval
        } else {
            Known::Destroying
        };
        self.on_target(target, next);
    }

    fn waited_for_removal(&mut self, target: Target, waited: Result<Reached, Cause>) {
        match waited {
            Ok(_) | Err(Cause::DriverDomain { fault: DriverDomainFault::Gone, .. }) => {
                self.on_target(target, Known::Destroying);
            }
            // Who does without the guest does without the driver domain as well.
            Err(Cause::DriverDomain { be, fault: DriverDomainFault::NotRemoved { limit } })
                if self.removal.force != Force::Never =>
            {
                self.warnings.push(Warning::DriverDomainLeft { be, limit });
                self.on_target(target, Known::Destroying);
            }
            // Its record is gone: what is left of it is looked at again.
            Err(Cause::Gone { .. }) => self.on_target(target, Known::Closing),
            Err(cause) => self.fail(target, cause),
        }
    }

    /// The device is gone, and so is to be its entry.
    fn strike(&mut self, target: Target) {
        if target.config().is_some() {
            self.on_target(target, Known::Striking);
        } else {
            self.state = State::Done;
        }
    }

    fn fail(&mut self, target: Target, cause: Cause) {
        self.failure = Some(cause);
        self.on_target(target, Known::Observing);
    }

    /// The action of its state.
    pub(super) fn asks(&self) -> Action {
        let which = self.which;
        match &self.state {
            State::Idle | State::Done => Action::Finish,
            State::Probing => Action::Probe { which, adopt: self.removal.adopt },
            State::WaitingForOwner(occupant) => {
                Action::AwaitOwner { which, occupant: occupant.clone(), take_over: self.removal.take_over }
            }
            State::On(target, known) => {
                let step = match known {
                    Known::Closing => Step::Close(self.claim.clone(), self.frontend),
                    Known::WaitingForClose => Step::Await {
                        node: Node::BackendState,
                        until: Until::State(Goal::CLOSED),
                        limit: self.limits.close,
                        by_guest: !self.is_without_guest(),
                    },
                    Known::ClosingForServer => Step::CloseForServer,
                    Known::RunningScript(index) => Step::Run { purpose: Purpose::Remove, index: *index },
                    Known::WaitingForRemoval => await_removal(target, &self.limits),
                    Known::Destroying => Step::Destroy,
                    Known::Striking => Step::Strike,
                    Known::Observing => Step::Observe,
                    Known::Leaving => Step::Leave,
                };
                Action::On(target.clone(), step)
            }
        }
    }
}

impl Machine for Remove {
    fn on(&mut self, event: Event) -> Action {
        match (self.state.clone(), event) {
            (State::Idle, Event::Begin) => self.state = State::Probing,
            (State::Probing, Event::Probed(Ok(found))) => match found.occupant {
                Some(occupant) if occupant.alive => {
                    self.waited = true;
                    self.state = State::WaitingForOwner(occupant);
                }
                occupant => {
                    if occupant.as_ref().is_some_and(Occupant::is_dead_add) && self.frontend == Frontend::Keep
                    {
                        self.frontend = Frontend::DeleteIfIdle;
                    }
                    self.claim = Claim::First(occupant.map(|occupant| occupant.text));
                    self.on_target(found.target, Known::Closing);
                }
            },
            // Whoever was waited for has removed it.
            (State::Probing, Event::Probed(Err(Cause::NoSuchDevice))) if self.waited => {
                self.state = State::Done;
            }
            (State::Probing, Event::Probed(Err(cause)))
            | (State::WaitingForOwner(_), Event::Released(Err(cause))) => {
                self.failure = Some(cause);
                self.state = State::Done;
            }
            (State::WaitingForOwner(_), Event::Released(Ok(()))) => self.state = State::Probing,
            (State::On(target, Known::Closing), Event::Told(told)) => self.told(target, told),
            (State::On(target, Known::WaitingForClose), Event::Waited(waited)) => {
                self.waited_for_close(target, waited);
            }
            (State::On(target, Known::ClosingForServer), Event::ClosedForServer(closed)) => match closed {
                Ok(()) => self.script(target, 0),
                // Its record is gone: what is left of it is looked at again.
                Err(Cause::Gone { .. }) => self.on_target(target, Known::Closing),
                Err(cause) => self.fail(target, cause),
            },
            (State::On(target, Known::RunningScript(index)), Event::Ran(ran)) => match ran {
                Err(Cause::Script { run, report }) => {
                    self.warnings.push(Warning::ScriptFailed { run, report });
                    self.script(target, index + 1);
                }
                Err(cause) => self.fail(target, cause),
                Ok(warning) => {
                    self.warnings.extend(warning);
                    self.script(target, index + 1);
                }
            },
            (State::On(target, Known::RunningScript(index)), Event::NotRun(cause)) => match cause {
                // Who does without the guest does without the script as well.
                Cause::Script { run, report } if self.removal.force != Force::Never => {
                    self.warnings.push(Warning::ScriptFailed { run, report });
                    self.script(target, index + 1);
                }
                cause @ Cause::Undecided(_) if self.removal.force != Force::Never => {
                    self.warnings.push(Warning::LeftBehind { step: "running the hotplug script", cause });
                    self.script(target, index + 1);
                }
                cause => self.fail(target, cause),
            },
            (State::On(target, Known::WaitingForRemoval), Event::Waited(waited)) => {
                self.waited_for_removal(target, waited);
            }
            (State::On(target, Known::Destroying), Event::Destroyed(destroyed)) => match destroyed {
                Ok(Destroyed::Gone) => self.strike(target),
                Ok(Destroyed::Taken) => self.fail(target, Cause::Taken),
                Err(cause) => self.fail(target, cause),
            },
            (State::On(_, Known::Striking), Event::Struck(struck)) => {
                self.warnings.extend(struck.err().map(|cause| match cause {
                    Cause::Gone { .. } => Warning::DomainWent,
                    cause => Warning::NotStruck(cause),
                }));
                self.state = State::Done;
            }
            (State::On(target, Known::Observing), Event::Observed) if self.claim == Claim::Kept => {
                self.on_target(target, Known::Leaving);
            }
            (State::On(_, Known::Observing), Event::Observed)
            | (State::On(_, Known::Leaving), Event::Left) => {
                self.state = State::Done;
            }
            _ => {}
        }
        self.asks()
    }

    fn is_cancellable(&self) -> bool {
        self.failure.is_none()
    }

    fn has_told(&self) -> bool {
        !matches!(
            self.state,
            State::Idle | State::Probing | State::WaitingForOwner(_) | State::On(_, Known::Closing)
        )
    }

    fn state(&self) -> &'static str {
        match &self.state {
            State::Idle => "Idle",
            State::Probing => "Probing",
            State::WaitingForOwner(_) => "WaitingForOwner",
            State::On(_, known) => match known {
                Known::Closing => "Closing",
                Known::WaitingForClose => "WaitingForClose",
                Known::ClosingForServer => "ClosingForServer",
                Known::RunningScript(_) => "RunningScript",
                Known::WaitingForRemoval => "WaitingForRemoval",
                Known::Destroying => "Destroying",
                Known::Striking => "Striking",
                Known::Observing => "Observing",
                Known::Leaving => "Leaving",
            },
            State::Done if self.failure.is_some() => "Failed",
            State::Done => "Detached",
        }
    }

    fn outcome(self) -> (Result<(), Cause>, Vec<Warning>) {
        (self.failure.map_or(Ok(()), Err), self.warnings)
    }
}

impl fmt::Display for Remove {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.state {
            State::Idle => f.write_str("not begun"),
            State::Probing => f.write_str("reading the toolstack's record of the device"),
            State::WaitingForOwner(occupant) => write!(f, "waiting for {occupant} to end"),
            State::On(_, known) => match known {
                Known::Closing if self.is_without_guest() => {
                    f.write_str("telling the backend to close, without the guest")
                }
                Known::Closing => f.write_str("telling both ends to close"),
                Known::WaitingForClose => Awaiting(Goal::CLOSED, self.limits.close).fmt(f),
                Known::ClosingForServer => f.write_str("noting that the device model is gone"),
                Known::RunningScript(_) => f.write_str("running the hotplug script"),
                Known::WaitingForRemoval => {
                    f.write_str("waiting for the driver domain to remove the backend's directory")
                }
                Known::Destroying => f.write_str("removing the device's nodes"),
                Known::Striking => {
                    f.write_str("striking the device out of libxl's configuration of the domain")
                }
                Known::Observing => f.write_str("failed; looking at both ends"),
                Known::Leaving => f.write_str("failed; leaving the device to whoever goes on"),
            },
            State::Done => f.write_str(if self.failure.is_some() { "failed" } else { "detached" }),
        }
    }
}
