//! The life of a device operation as plain values: `machine.on(event) -> action`.
//!
//! A machine asks for one [`Action`] at a time and takes the [`Event`] in which it results. It has
//! no clock, no connection and no processes; `operation` carries out what it asks for. What can be
//! asked for depends on what is known: a [`Step`] is taken on a [`Target`], which a machine has only
//! once it was given one. A machine's state prints as what a person would say, and has a short name, under
//! which the diagrams show it ([`diagram`](crate::diagram)) and traces tell of it.

mod add;
mod answers;
mod remove;
mod words;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use xen_devstate::Goal;

pub use add::{Add, WaitFor};
pub use remove::{Force, Remove};

use crate::operation::Target;
use crate::operation::record::Occupant;
use crate::{Cause, Device, Warning, Which};
use xs_client::DomId;

/// A device operation as a plain value.
pub trait Machine: fmt::Display {
    /// Takes an event; one that it does not await changes nothing, and the same is asked for again.
    fn on(&mut self, event: Event) -> Action;

    /// Whether what it asks for now may be cancelled. A roll-back may not.
    fn is_cancellable(&self) -> bool;

    /// The name of its state, in the diagrams and in traces: `WaitingForClose`.
    fn state(&self) -> &'static str;

    /// Whether a removal has told the backend to close, if there was anything to tell.
    fn has_told(&self) -> bool {
        false
    }

    /// The removal that it drives in this state, as a part of itself.
    fn part(&self) -> Option<&Remove> {
        None
    }

    /// How it ended.
    fn outcome(self) -> (Result<(), Cause>, Vec<Warning>);
}

/// A machine whose diagram is drawn by walking it.
pub(crate) trait Charted: Machine + Clone + fmt::Debug {
    /// Its name.
    const NAME: &'static str;

    /// One that has not begun, in every configuration in which it may go another way.
    fn configurations() -> Vec<Self>;

    /// What it knows besides its state, or learns with an event, and decides by, as the guards of its transitions
    /// say it: always the same questions in the same order.
    fn facts(&self, event: &Event) -> Vec<&'static str>;

    /// Forgets what it only reports: why it failed, and its warnings.
    fn forget_reports(&mut self);
}

/// How long each step may take. `Duration::MAX` means for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// A backend to take up a new device: 10 s by default.
    pub backend: Duration,
    /// A driver domain to start the device model that takes up a device there: 60 s by default, besides.
    pub model: Duration,
    /// The guest to connect, where that is waited for: 10 s by default.
    pub connect: Duration,
    /// A backend to close: 10 s by default.
    pub close: Duration,
    /// A device model to end of which nothing can be seen: 2 s by default.
    pub unseen: Duration,
    /// Another operation on the same device to end: 60 s by default.
    pub owner: Duration,
    /// Looking at a file of this domain: 10 s by default. Dead network storage does not answer.
    pub file: Duration,
    /// A device model to change a medium, and the guest to open the tray for it: 10 s by default. What the device
    /// model is asked for last has at least 2 s.
    pub medium: Duration,
    /// Another program to give back the lock of libxl's configuration of the guest: 10 s by default.
    pub config: Duration,
    /// Hotplug scripts: 40 s each by default.
    pub scripts: xen_hotplug::Limits,
}

impl Default for Limits {
    fn default() -> Self {
        let wait = Duration::from_secs(10);
        Self {
            backend: wait,
            model: Duration::from_secs(60),
            connect: wait,
            close: wait,
            unseen: Duration::from_secs(2),
            owner: Duration::from_secs(60),
            file: wait,
            medium: wait,
            config: wait,
            scripts: xen_hotplug::Limits::default(),
        }
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
    /// It goes unless a frontend is at work there.
    DeleteIfIdle,
}

/// By which right a device is told to close.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Claim {
    /// It is claimed now, if its record still is this text (`None`: if it has none).
    First(Option<String>),
    /// It was claimed before, as far as nobody else has it since.
    Kept,
}

/// A node that can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Node {
    /// The backend's `state`: of the two ends the one that can be trusted.
    BackendState,
    /// The backend's `hotplug-status`, by which the scripts of another domain report.
    HotplugStatus,
    /// The backend's directory.
    BackendDirectory,
    /// The `state` of the guest's device model.
    DeviceModelState,
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BackendState => "the backend",
            Self::HotplugStatus => "hotplug-status",
            Self::BackendDirectory => "the backend's directory",
            Self::DeviceModelState => "the device model",
        })
    }
}

/// What a node is waited to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Until {
    /// A state.
    State(Goal),
    /// What tells that the hotplug scripts of a driver domain have run, and made what the backend needs.
    Scripted,
    /// Nothing: it is gone.
    Removed,
}

impl fmt::Display for Until {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::State(goal) => goal.fmt(f),
            Self::Scripted => f.write_str("connected"),
            Self::Removed => f.write_str("its removal"),
        }
    }
}

/// What a machine asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// See that what the device needs in this domain is there: what is waited for must be able to come.
    Check(DomId, Arc<Device>, WaitFor),
    /// Write the device's tree, in one transaction, if nothing stands in the way.
    Create(DomId, Arc<Device>),
    /// Find out what is known of the device.
    Probe {
        /// The device.
        which: Which,
        /// Whether one that is alive and that no toolstack has recorded may be taken over.
        adopt: bool,
    },
    /// Wait until the owner of a device has ended his operation, or is dead.
    AwaitOwner {
        /// The device.
        which: Which,
        /// Whose operation it is.
        occupant: Occupant,
        /// Whether he is asked to cancel it.
        take_over: bool,
    },
    /// Take a step on a device that is known.
    On(Target, Step),
    /// Nothing more: ask for the outcome.
    Finish,
}

/// A step on a device that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// Wait for a node.
    Await {
        /// Which.
        node: Node,
        /// For what.
        until: Until,
        /// For how long.
        limit: Duration,
        /// Whether it also ends when the guest is over, whose part in it is missing then.
        by_guest: bool,
    },
    /// Run a hotplug script.
    Run {
        /// What for.
        purpose: Purpose,
        /// Which of its runs.
        index: usize,
    },
    /// Tell the device to close, in one transaction.
    Close(Claim, Frontend),
    /// Write that the backend has closed, in one transaction, in place of a device model that has ended.
    CloseForServer,
    /// Remove the device's tree, in one transaction, if it is still ours.
    Destroy,
    /// Enter the device into libxl's configuration of its domain, if it is still ours.
    Enter(Arc<Device>),
    /// Strike the device out of libxl's configuration of its domain, unless it is back.
    Strike,
    /// Remove the operation record: the device is as it should be.
    Settle {
        /// Whether its backend must be ready for that.
        served: bool,
    },
    /// Look at both ends, for the report.
    Observe,
    /// Note in the operation record, if it is ours, that nobody works on the device any more.
    Leave,
}

/// What a hotplug script is run for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Purpose {
    /// To add the device.
    Add,
    /// To remove the device, unless somebody else has done that.
    Remove,
    /// To undo what this operation's own script made, whoever has the device now.
    Undo,
}

/// What came of [`Action::Create`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Created {
    /// The tree is written.
    Done(Target),
    /// The store did not say whether it has the tree.
    Unsure(Target, Cause),
    /// An operation on the device is under way, or was left unfinished.
    Occupied(Which, Occupant),
    /// A device without a record is there, not alive, with what a script made.
    Stale(Which),
    /// It was not written; with the device that stands in the way, if one does.
    Failed(Cause, Option<Target>),
}

/// What [`Action::Probe`] found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Found {
    /// The device.
    pub target: Target,
    /// Whose operation it is in the middle of.
    pub occupant: Option<Occupant>,
}

impl Found {
    /// A device, and whose operation it is in the middle of.
    pub fn new(target: Target, occupant: Option<Occupant>) -> Self {
        Self { target, occupant }
    }
}

/// How a wait for a node succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reached {
    /// The node holds what was waited for.
    Value,
    /// The node is gone, which was as good.
    Gone,
    /// The node holds what was waited for, or is gone; but the device model still has the image open.
    ImageOpen,
    /// The device model that was to move the node has ended.
    ServerGone,
    /// Neither the device model that was to move the node nor its guest is to be seen.
    ServerUnseen,
    /// The guest is over ([`Condition::is_over`](crate::Condition::is_over)), and will not let go any more.
    GuestOver,
}

/// Where a device stands that was to be told to close.
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
    /// Nothing has taken it up, and its guest has no directory for it any more: it can be told to close
    /// again, which removes it.
    Again,
    /// Its record changed since it was probed.
    Changed,
    /// Nothing of it is left: somebody removed it.
    Vanished,
    /// Somebody else has it.
    Taken,
}

/// Where a device stands whose tree was to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Destroyed {
    /// It is gone.
    Gone,
    /// Somebody else has it.
    Taken,
}

/// What an action resulted in.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The machine is to begin.
    Begin,
    /// Of [`Action::Check`].
    Checked(Result<(), Cause>),
    /// Of [`Action::Create`].
    Created(Created),
    /// Of [`Action::Probe`].
    Probed(Result<Found, Cause>),
    /// Of [`Action::AwaitOwner`].
    Released(Result<(), Cause>),
    /// Of [`Step::Await`].
    Waited(Result<Reached, Cause>),
    /// Of [`Step::Run`]. A script that did not report all it should is a warning.
    Ran(Result<Option<Warning>, Cause>),
    /// Of [`Step::Run`]: the script was not started.
    NotRun(Cause),
    /// Of [`Step::Close`].
    Told(Result<Closing, Cause>),
    /// Of [`Step::CloseForServer`].
    ClosedForServer(Result<(), Cause>),
    /// Of [`Step::Destroy`].
    Destroyed(Result<Destroyed, Cause>),
    /// Of [`Step::Enter`]. An error means that it was not entered.
    Entered(Result<(), Cause>),
    /// Of [`Step::Strike`].
    Struck(Result<(), Cause>),
    /// Of [`Step::Settle`].
    Settled(Result<(), Cause>),
    /// Of [`Step::Observe`].
    Observed,
    /// Of [`Step::Leave`].
    Left,
}

/// The wait for a driver domain to remove the backend's directory.
fn await_removal(target: &Target, limits: &Limits) -> Step {
    Step::Await {
        node: Node::BackendDirectory,
        until: Until::Removed,
        limit: limits.removal_elsewhere(target.runs_of_daemon()),
        by_guest: false,
    }
}

/// The wait for a backend's state.
fn await_backend(goal: Goal, limit: Duration) -> Step {
    Step::Await { node: Node::BackendState, until: Until::State(goal), limit, by_guest: false }
}

/// How much longer than the scripts of an add, or its device model, a driver domain may take to report of them.
const REPORT: Duration = Duration::from_secs(5);

impl Limits {
    /// How long a device model of a driver domain that runs may take to take up a device, or its daemon to say why not.
    pub fn taken_up_elsewhere(&self) -> Duration {
        self.backend.saturating_add(REPORT)
    }

    /// How long a driver domain may take to run so many hotplug scripts of an add, and to report of them.
    pub fn scripts_elsewhere(&self, runs: usize) -> Duration {
        self.runs(runs).saturating_add(REPORT)
    }

    /// How long a driver domain may take to run so many hotplug scripts of a removal, and to remove the backend's
    /// directory.
    pub fn removal_elsewhere(&self, runs: usize) -> Duration {
        self.runs(runs).saturating_add(self.close)
    }

    fn runs(&self, runs: usize) -> Duration {
        self.scripts.deadline.saturating_mul(u32::try_from(runs).unwrap_or(u32::MAX))
    }
}

/// A wait in words: for what, and how long it may take.
struct Awaiting(Goal, Duration);

impl fmt::Display for Awaiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("waiting ")?;
        if self.1 != Duration::MAX {
            write!(f, "up to {:?} ", self.1)?;
        }
        write!(f, "for the backend to get to {}", self.0)
    }
}
