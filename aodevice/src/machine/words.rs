//! Actions and events in words, for the diagrams and for traces. A new one does not compile until it has
//! words here.

use std::fmt;
use std::time::Duration;

use super::{Action, Closing, Created, Destroyed, Event, Frontend, Purpose, Reached, Step};
use crate::Cause;
use crate::operation::record::Occupant;

/// What is asked for, as an order: `remove the device's nodes`.
impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Check(..) => f.write_str("look at what the device needs"),
            Self::Create(..) => f.write_str("write the device's nodes"),
            Self::Probe { .. } => f.write_str("read the toolstack's record of the device"),
            Self::AwaitOwner { take_over: false, .. } => f.write_str("wait for its owner to end"),
            Self::AwaitOwner { take_over: true, .. } => {
                f.write_str("ask its owner to cancel, and wait for him")
            }
            Self::On(_, step) => step.fmt(f),
            Self::Finish => f.write_str("nothing more"),
        }
    }
}

/// As that of its action.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Await { node, until, limit: Duration::MAX, .. } => {
                return write!(f, "wait for {node} to get to {until}");
            }
            Self::Await { node, until, limit, .. } => {
                return write!(f, "wait up to {limit:?} for {node} to get to {until}");
            }
            Self::Run { purpose: Purpose::Add, .. } => "run the hotplug script that adds",
            Self::Run { purpose: Purpose::Remove, .. } => "run the hotplug script that removes",
            Self::Run { purpose: Purpose::Undo, .. } => {
                "run the hotplug script that removes, to undo the other"
            }
            Self::Close(_, Frontend::Keep) => "tell both ends to close",
            Self::Close(_, Frontend::Delete) => "tell the backend to close, without the guest",
            Self::Close(_, Frontend::DeleteIfIdle) => {
                "tell the backend to close, without the guest if that is not at work"
            }
            Self::CloseForServer => "write that the backend has closed, in place of the device model",
            Self::Destroy => "remove the device's nodes",
            Self::Enter(_) => "enter the device into libxl's configuration of the domain",
            Self::Strike => "strike the device out of libxl's configuration of the domain",
            Self::Settle { .. } => "remove the operation record",
            Self::Observe => "look at both ends, for the report",
            Self::Leave => "note that nobody works on the device any more",
        })
    }
}

impl Event {
    /// What came of an action, in words. Why something failed is not among them: see [`Self::cause`].
    pub fn words(&self) -> &'static str {
        match self {
            Self::Begin => "begin",
            Self::Checked(Ok(())) => "all is there",
            Self::Checked(Err(_)) => "something is missing",
            Self::Created(created) => match created {
                Created::Done(_) => "the nodes are written",
                Created::Unsure(..) => "the store does not say whether they are written",
                Created::Occupied(_, occupant) => of_occupant(occupant),
                Created::Stale(_) => "what the script of an earlier device made is there",
                Created::Failed(_, Some(_)) => "another device is in its place",
                Created::Failed(_, None) => "they cannot be written",
            },
            Self::Probed(Ok(found)) => match &found.occupant {
                Some(occupant) => of_occupant(occupant),
                None => "nobody works on it",
            },
            Self::Probed(Err(_)) => "it cannot be read",
            Self::Released(Ok(())) => "the owner has ended",
            Self::Released(Err(_)) => "the owner does not end, or the wait for him fails",
            Self::Waited(Ok(Reached::Value)) => "it gets there",
            Self::Waited(Ok(Reached::Gone)) => "its node is gone",
            Self::Waited(Ok(Reached::ImageOpen)) => {
                "it gets there, and the device model has the image open still"
            }
            Self::Waited(Ok(Reached::ServerGone)) => "the device model has ended",
            Self::Waited(Ok(Reached::GuestOver)) => "the guest is over",
            Self::Waited(Ok(Reached::ServerUnseen)) => "neither the device model nor the guest is to be seen",
            Self::Waited(Err(_)) => "the wait fails",
            Self::Ran(Ok(_)) => "the script has run",
            Self::Ran(Err(_)) => "the script fails",
            Self::NotRun(_) => "the script is not started",
            Self::Told(Ok(closing)) => match closing {
                Closing::Told => "the backend is told",
                Closing::Closed => "the backend is closed already",
                Closing::Missing => "the backend has no nodes",
                Closing::Destroyed => "no driver has taken it up: it is gone at once",
                Closing::Again => "no driver has taken it up: the guest's directory goes first",
                Closing::Changed => "the record has changed",
                Closing::Vanished => "nothing of it is left",
                Closing::Taken => "somebody else has it",
            },
            Self::Told(Err(_)) => "it cannot be told",
            Self::ClosedForServer(Ok(())) => "it is written",
            Self::ClosedForServer(Err(_)) => "it cannot be written",
            Self::Destroyed(Ok(Destroyed::Gone)) => "the nodes are gone",
            Self::Destroyed(Ok(Destroyed::Taken)) => "somebody else has them",
            Self::Destroyed(Err(_)) => "they cannot be removed",
            Self::Entered(Ok(())) => "it is entered",
            Self::Entered(Err(_)) => "it cannot be entered",
            Self::Struck(Ok(())) => "it is struck out",
            Self::Struck(Err(_)) => "it cannot be struck out",
            Self::Settled(Ok(())) => "the record is removed",
            Self::Settled(Err(_)) => "the device is not as it should be",
            Self::Observed => "looked",
            Self::Left => "noted",
        }
    }

    /// Why the action failed, if it did.
    pub fn cause(&self) -> Option<&Cause> {
        match self {
            Self::Checked(Err(cause))
            | Self::Created(Created::Unsure(_, cause) | Created::Failed(cause, _))
            | Self::Probed(Err(cause))
            | Self::Released(Err(cause))
            | Self::Waited(Err(cause))
            | Self::Ran(Err(cause))
            | Self::NotRun(cause)
            | Self::Told(Err(cause))
            | Self::ClosedForServer(Err(cause))
            | Self::Destroyed(Err(cause))
            | Self::Entered(Err(cause))
            | Self::Struck(Err(cause))
            | Self::Settled(Err(cause)) => Some(cause),
            Self::Begin
            | Self::Checked(Ok(()))
            | Self::Created(Created::Done(_) | Created::Occupied(..) | Created::Stale(_))
            | Self::Probed(Ok(_))
            | Self::Released(Ok(()))
            | Self::Waited(Ok(_))
            | Self::Ran(Ok(_))
            | Self::Told(Ok(_))
            | Self::ClosedForServer(Ok(()))
            | Self::Destroyed(Ok(_))
            | Self::Entered(Ok(()))
            | Self::Struck(Ok(()))
            | Self::Settled(Ok(()))
            | Self::Observed
            | Self::Left => None,
        }
    }
}

fn of_occupant(occupant: &Occupant) -> &'static str {
    if occupant.alive {
        "somebody works on it"
    } else if occupant.is_dead_add() {
        "its add has died"
    } else {
        "its removal has died"
    }
}
