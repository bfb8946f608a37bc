//! Adding a device. `xendev machine add` and docs/machines.md show it as a diagram.
//!
//! Success is: the backend is ready and the scripts have run. That the guest connects is waited
//! for if asked; it may not even be running. A failure after the tree was written, or when the
//! store did not say whether it was, rolls all of it back, and the original cause is the outcome. The
//! backend closes before the scripts undo their work, or a guest that connects late would lose a
//! device that it uses. A device that somebody else has by now is left to him, but what the scripts
//! of this add made is still undone. A roll-back cannot be cancelled.
//!
//! The scripts of a device whose backend is in a driver domain are run by that domain's daemon, which is waited for: for
//! its report, and in a roll-back for the end of the backend's directory, which is the last that it does. Where the daemon
//! starts a device model for a device, the backend's state is its report, and is given time for that.
//!
//! An operation on the device that is under way is waited for; one that died, or a device that is not alive, is
//! removed first, by a removal that is a part of the add.
//!
//! Where libxl keeps a configuration of the domain, the device is entered into it last, while it is still
//! this add's. Without a configuration, the states Entering and Striking are left out.

mod facts;

use std::fmt;
use std::sync::Arc;

use xen_devstate::Goal;
use xs_client::DomId;

use super::{
    Action, Awaiting, Claim, Closing, Created, Destroyed, Event, Frontend, Limits, Machine, Node, Purpose,
    Remove, Step, Until, await_backend, await_removal,
};
use crate::operation::Target;
use crate::operation::record::Occupant;
use crate::{Addition, Cause, Device, DriverDomainFault, Warning, Which};

/// When an add is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WaitFor {
    /// When the scripts have run; the guest connects when it likes.
    #[default]
    Script,
    /// When the backend says that the guest has connected.
    Connected,
    /// When the nodes are written, if the device has no hotplug script: what is to serve it need not run yet. Else as
    /// [`Script`](Self::Script). For a domain that is being created, whose device model takes up at its start what is
    /// there by then, and for a backend that is started later.
    Tree,
}

/// Where an add stands.
#[derive(Clone, Debug)]
enum State {
    Idle,
    Checking,
    Creating,
    WaitingForOwner(Which, Occupant),
    Recovering(Box<Remove>),
    On(Target, Known),
    Done,
}

/// Where an add stands whose device is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    WaitingForBackend,
    RunningScript(usize),
    WaitingForDaemon,
    WaitingForGuest,
    Entering,
    Settling,
    Observing,
    Closing,
    WaitingForClose,
    UndoingScript(usize),
    WaitingForRemoval,
    Destroying,
    Striking,
    Leaving,
}

/// What a roll-back has learned of the device's nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nodes {
    /// They are to be removed.
    Ours,
    /// They stay, with the record: the backend could not be told to close, or a script not be run.
    Kept,
    /// Somebody else has them.
    Taken,
}

/// An add as a plain value.
#[derive(Clone, Debug)]
pub struct Add {
    state: State,
    fe: DomId,
    device: Arc<Device>,
    addition: Addition,
    limits: Limits,
    /// How many script runs were begun.
    begun: usize,
    /// Whether the tree was written, or may have been, so that a failure has something to roll back.
    created: bool,
    /// Whether it is not known if the tree was written.
    unsure: bool,
    /// What becomes of the nodes when the scripts are undone.
    nodes: Nodes,
    failure: Option<Cause>,
    warnings: Vec<Warning>,
}

impl Add {
    /// An add that has not begun.
    pub fn new(fe: DomId, device: Arc<Device>, addition: Addition, limits: Limits) -> Self {
        Self {
            state: State::Idle,
            fe,
            device,
            addition,
            limits,
            begun: 0,
            created: false,
            unsure: false,
            nodes: Nodes::Ours,
            failure: None,
            warnings: Vec::new(),
        }
    }

    /// Whether it is over.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    fn create(&mut self, created: Created) {
        match created {
            Created::Done(target) => {
                self.created = true;
                if self.is_served(&target) {
                    self.on_target(target, Known::WaitingForBackend);
                } else {
                    self.enter(target);
                }
            }
            Created::Unsure(target, cause) => {
                (self.created, self.unsure) = (true, true);
                self.fail(target, cause);
            }
            Created::Occupied(which, occupant) if occupant.alive => {
                self.state = State::WaitingForOwner(which, occupant);
            }
            Created::Occupied(which, _) | Created::Stale(which) => self.recover(which),
            Created::Failed(cause, Some(target)) => self.fail(target, cause),
            Created::Failed(cause, None) => self.end(cause),
        }
    }

    /// Whether somebody is to have taken the device up when this is done.
    fn is_served(&self, target: &Target) -> bool {
        self.addition.wait_for != WaitFor::Tree || target.runs() > 0 || target.runs_of_daemon() > 0
    }

    fn recover(&mut self, which: Which) {
        let mut remove = Remove::of_leftovers(which, self.limits);
        remove.on(Event::Begin);
        self.state = State::Recovering(Box::new(remove));
    }

    fn recovered(&mut self, remove: Remove) {
        let (outcome, warnings) = remove.outcome();
        self.warnings.extend(warnings);
        match outcome {
            Ok(()) => self.state = State::Creating,
            Err(cause) => self.end(cause),
        }
    }

    fn on_target(&mut self, target: Target, known: Known) {
        self.state = State::On(target, known);
    }

    fn script(&mut self, target: Target, index: usize) {
        let next = if index < target.runs() {
            self.begun = index + 1;
            Known::RunningScript(index)
        } else if index == 0 && target.runs_of_daemon() > 0 {
            Known::WaitingForDaemon
        } else {
            return self.scripted(target);
        };
        self.on_target(target, next);
    }

    /// The scripts have run.
    fn scripted(&mut self, target: Target) {
        let next = if self.addition.wait_for == WaitFor::Connected {
            Known::WaitingForGuest
        } else {
            return self.enter(target);
        };
        self.on_target(target, next);
    }

    /// The device is as it should be: it is entered where there is a configuration to enter it into.
    fn enter(&mut self, target: Target) {
        let next = if target.config().is_some() { Known::Entering } else { Known::Settling };
        self.on_target(target, next);
    }

    /// It failed before anything was written.
    fn end(&mut self, cause: Cause) {
        self.failure = Some(cause);
        self.state = State::Done;
    }

    fn fail(&mut self, target: Target, cause: Cause) {
        self.failure = Some(cause);
        self.on_target(target, Known::Observing);
    }

    fn rolls_back(&mut self, target: Target, known: Known, event: Event) {
        match (known, event) {
            (Known::Closing, Event::Told(told)) => match told {
                Ok(Closing::Again) => self.on_target(target, Known::Closing),
                Ok(Closing::Told) => self.on_target(target, Known::WaitingForClose),
                Ok(Closing::Closed | Closing::Missing) => self.undo_script(target, self.begun),
                Ok(Closing::Destroyed) => self.strike(target),
                // It was never written.
                Ok(Closing::Vanished | Closing::Taken | Closing::Changed) if self.unsure => {
                    self.state = State::Done;
                }
                Ok(Closing::Vanished) => self.undo_script(target, self.begun),
                Ok(Closing::Taken | Closing::Changed) => {
                    self.nodes = Nodes::Taken;
                    self.warnings.push(Warning::Taken);
                    self.undo_script(target, self.begun);
                }
                Err(cause) => {
                    self.nodes = Nodes::Kept;
                    self.left_behind("closing the device", cause);
                    self.undo_script(target, self.begun);
                }
            },
            (Known::WaitingForClose, Event::Waited(waited)) => {
                if let Err(Cause::TimedOut { .. }) = waited {
                    self.warnings.push(Warning::Forced { limit: self.limits.close });
                }
                self.undo_script(target, self.begun);
            }
            (Known::WaitingForRemoval, Event::Waited(waited)) => {
                if let Err(Cause::DriverDomain { be, fault: DriverDomainFault::NotRemoved { limit } }) =
                    waited
                {
                    self.warnings.push(Warning::DriverDomainLeft { be, limit });
                }
                self.on_target(target, Known::Destroying);
            }
            (Known::UndoingScript(index), Event::Ran(ran)) => {
                match ran {
                    Ok(warning) => self.warnings.extend(warning),
                    Err(Cause::Script { run, report }) => {
                        self.warnings.push(Warning::ScriptFailed { run, report });
                    }
                    Err(cause) => self.left_behind("running the hotplug script", cause),
                }
                self.undo_script(target, index);
            }
            (Known::UndoingScript(index), Event::NotRun(cause)) => {
                // A later removal can still run it.
                if self.nodes == Nodes::Ours {
                    self.nodes = Nodes::Kept;
                }
                self.left_behind("running the hotplug script", cause);
                self.undo_script(target, index);
            }
            (Known::Destroying, Event::Destroyed(destroyed)) => {
                match destroyed {
                    Ok(Destroyed::Gone) => return self.strike(target),
                    Ok(Destroyed::Taken) => self.warnings.push(Warning::Taken),
                    Err(cause) => {
                        self.left_behind("removing the tree", cause);
                        return self.on_target(target, Known::Leaving);
                    }
                }
                self.state = State::Done;
            }
            (Known::Striking, Event::Struck(struck)) => {
                // With its domain the entry is gone.
                let problem = struck.err().filter(|cause| !matches!(cause, Cause::Gone { .. }));
                self.warnings.extend(problem.map(Warning::NotStruck));
                self.state = State::Done;
            }
            (Known::Leaving, Event::Left) => self.state = State::Done,
            _ => {}
        }
    }

    /// The device is gone, and so is to be its entry, also if this add has made none: a removal of the device
    /// that was there before leaves its entry to the add that has taken its place by then.
    fn strike(&mut self, target: Target) {
        if target.config().is_some() {
            self.on_target(target, Known::Striking);
        } else {
            self.state = State::Done;
        }
    }

    /// Undoes the scripts before the one at `index`, the last first.
    fn undo_script(&mut self, target: Target, index: usize) {
        match index.checked_sub(1) {
            Some(last) => self.on_target(target, Known::UndoingScript(last)),
            None => match self.nodes {
                Nodes::Ours if target.daemon_removes() => self.on_target(target, Known::WaitingForRemoval),
                Nodes::Ours => self.on_target(target, Known::Destroying),
                Nodes::Kept => self.on_target(target, Known::Leaving),
                Nodes::Taken => self.state = State::Done,
            },
        }
    }

    fn left_behind(&mut self, step: &'static str, cause: Cause) {
        self.warnings.push(Warning::LeftBehind { step, cause });
    }

    /// The action of its state.
    fn asks(&self) -> Action {
        match &self.state {
            State::Idle | State::Done => Action::Finish,
            State::Checking => Action::Check(self.fe, self.device.clone(), self.addition.wait_for),
            State::Creating => Action::Create(self.fe, self.device.clone()),
            State::WaitingForOwner(which, occupant) => Action::AwaitOwner {
                which: *which,
                occupant: occupant.clone(),
                take_over: self.addition.take_over,
            },
            State::Recovering(remove) => remove.asks(),
            State::On(target, known) => {
                let step = match known {
                    Known::WaitingForBackend => {
                        let limit = if target.is_of_model_elsewhere() {
                            self.limits.model.saturating_add(self.limits.taken_up_elsewhere())
                        } else {
                            self.limits.backend
                        };
                        await_backend(Goal::BACKEND_READY, limit)
                    }
                    Known::RunningScript(index) => Step::Run { purpose: Purpose::Add, index: *index },
                    Known::WaitingForDaemon => Step::Await {
                        node: Node::HotplugStatus,
                        until: Until::Scripted,
                        limit: self.limits.scripts_elsewhere(target.runs_of_daemon()),
                        by_guest: false,
                    },
                    Known::WaitingForGuest => await_backend(Goal::CONNECTED, self.limits.connect),
                    Known::Entering => Step::Enter(self.device.clone()),
                    Known::Settling => Step::Settle { served: self.is_served(target) },
                    Known::Observing => Step::Observe,
                    Known::Closing => Step::Close(Claim::Kept, Frontend::DeleteIfIdle),
                    Known::WaitingForClose => await_backend(Goal::CLOSED, self.limits.close),
                    Known::UndoingScript(index) => Step::Run { purpose: Purpose::Undo, index: *index },
                    Known::WaitingForRemoval => await_removal(target, &self.limits),
                    Known::Destroying => Step::Destroy,
                    Known::Striking => Step::Strike,
                    Known::Leaving => Step::Leave,
                };
                Action::On(target.clone(), step)
            }
        }
    }
}

impl Machine for Add {
    fn on(&mut self, event: Event) -> Action {
        match (self.state.clone(), event) {
            (State::Idle, Event::Begin) => self.state = State::Checking,
            (State::Checking, Event::Checked(Ok(()))) => self.state = State::Creating,
            (State::Checking, Event::Checked(Err(cause)))
            | (State::WaitingForOwner(..), Event::Released(Err(cause))) => self.end(cause),
            (State::Creating, Event::Created(created)) => self.create(created),
            (State::WaitingForOwner(..), Event::Released(Ok(()))) => self.state = State::Creating,
            (State::Recovering(mut remove), event) => match remove.on(event) {
                Action::Finish => self.recovered(*remove),
                _ => self.state = State::Recovering(remove),
            },
            (State::On(target, Known::WaitingForBackend), Event::Waited(waited)) => match waited {
                Ok(_) => self.script(target, 0),
                Err(cause) => self.fail(target, cause),
            },
            (State::On(target, Known::RunningScript(index)), Event::Ran(ran)) => match ran {
                Ok(warning) => {
                    self.warnings.extend(warning);
                    self.script(target, index + 1);
                }
                Err(cause) => self.fail(target, cause),
            },
            (State::On(target, Known::RunningScript(index)), Event::NotRun(cause)) => {
                self.begun = index;
                self.fail(target, cause);
            }
            (State::On(target, Known::WaitingForDaemon), Event::Waited(waited)) => match waited {
                Ok(_) => self.scripted(target),
                Err(cause) => self.fail(target, cause),
            },
            (State::On(target, Known::WaitingForGuest), Event::Waited(waited)) => match waited {
                Ok(_) => self.enter(target),
                Err(cause) => self.fail(target, cause),
            },
            (State::On(target, Known::Entering), Event::Entered(entered)) => match entered {
                Ok(()) => self.on_target(target, Known::Settling),
                Err(cause) => self.fail(target, cause),
            },
            (State::On(target, Known::Settling), Event::Settled(settled)) => match settled {
                Ok(()) => self.state = State::Done,
                Err(cause) => self.fail(target, cause),
            },
            (State::On(target, Known::Observing), Event::Observed) if self.created => {
                self.on_target(target, Known::Closing);
            }
            (State::On(_, Known::Observing), Event::Observed) => self.state = State::Done,
            (State::On(target, known), event) => self.rolls_back(target, known, event),
            _ => {}
        }
        self.asks()
    }

    fn is_cancellable(&self) -> bool {
        self.failure.is_none()
    }

    fn state(&self) -> &'static str {
        match &self.state {
            State::Idle => "Idle",
            State::Checking => "Checking",
            State::Creating => "Creating",
            State::WaitingForOwner(..) => "WaitingForOwner",
            State::Recovering(_) => "Recovering",
            State::On(_, known) => match known {
                Known::WaitingForBackend => "WaitingForBackend",
                Known::RunningScript(_) => "RunningScript",
                Known::WaitingForDaemon => "WaitingForDaemon",
                Known::WaitingForGuest => "WaitingForGuest",
                Known::Entering => "Entering",
                Known::Settling => "Settling",
                Known::Observing => "Observing",
                Known::Closing => "Closing",
                Known::WaitingForClose => "WaitingForClose",
                Known::UndoingScript(_) => "UndoingScript",
                Known::WaitingForRemoval => "WaitingForRemoval",
                Known::Destroying => "Destroying",
                Known::Striking => "Striking",
                Known::Leaving => "Leaving",
            },
            State::Done if self.failure.is_some() => "Failed",
            State::Done => "Attached",
        }
    }

    fn part(&self) -> Option<&Remove> {
        match &self.state {
            State::Recovering(remove) => Some(remove),
            _ => None,
        }
    }

    fn outcome(self) -> (Result<(), Cause>, Vec<Warning>) {
        (self.failure.map_or(Ok(()), Err), self.warnings)
    }
}

impl fmt::Display for Add {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.state {
            State::Idle => f.write_str("not begun"),
            State::Checking => f.write_str("looking at what the device needs"),
            State::Creating => f.write_str("writing the device's nodes"),
            State::WaitingForOwner(_, occupant) => write!(f, "waiting for {occupant} to end"),
            State::Recovering(remove) => write!(f, "removing what is left of an earlier device: {remove}"),
            State::On(_, known) => match known {
                Known::WaitingForBackend => Awaiting(Goal::BACKEND_READY, self.limits.backend).fmt(f),
                Known::RunningScript(_) => f.write_str("running the hotplug script"),
                Known::WaitingForDaemon => {
                    f.write_str("waiting for the driver domain to run the hotplug script")
                }
                Known::WaitingForGuest => Awaiting(Goal::CONNECTED, self.limits.connect).fmt(f),
                Known::Entering => {
                    f.write_str("entering the device into libxl's configuration of the domain")
                }
                Known::Settling => f.write_str("removing the operation record"),
                Known::Observing => f.write_str("failed; looking at both ends"),
                Known::Closing => f.write_str("rolling back: telling the backend to close"),
                Known::WaitingForClose => {
                    write!(f, "rolling back: {}", Awaiting(Goal::CLOSED, self.limits.close))
                }
                Known::UndoingScript(_) => f.write_str("rolling back: running the hotplug script"),
                Known::WaitingForRemoval => f.write_str(
                    "rolling back: waiting for the driver domain to remove the backend's directory",
                ),
                Known::Destroying => f.write_str("rolling back: removing the device's nodes"),
                Known::Striking => f.write_str(
                    "rolling back: striking the device out of libxl's configuration of the domain",
                ),
                Known::Leaving => f.write_str("rolling back failed; leaving the device to whoever goes on"),
            },
            State::Done => f.write_str(if self.failure.is_some() { "failed" } else { "attached" }),
        }
    }
}
