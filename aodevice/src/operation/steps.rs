//! What each step of an operation does to the store, as pure decisions: from what a transaction has
//! [`Seen`] of a device to the [`Change`]s that it makes. `store.rs` reads the one and writes the
//! other; the tests explore every interleaving of two operations with these very functions.
//!
//! Every step first looks whose the device is. So an operation never touches what another one has
//! taken over, nor a new device that took the place of its own; and what a crashed or timed-out
//! operation leaves can be told from a device that is well.

use xen_devstate::{Goal, StateValue, XenbusState};
use xs_client::DomId;

use super::record::{Record, Stage, Token};
use super::said::Said;
use crate::machine::{Claim, Closing, Destroyed, Frontend, Node};
use crate::{Cause, Operation};

/// What a transaction has seen of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Whether the guest has a home in the store.
    pub(crate) home: bool,
    /// The driver domain that has the backend, if that has no home in the store.
    pub(crate) no_backend_home: Option<DomId>,
    /// Whether LX is there.
    pub(crate) lx: bool,
    /// The text of the operation record in LX.
    pub(crate) op: Option<String>,
    /// Whether FE is there; like its state not read in the transaction.
    pub(crate) fe: bool,
    /// FE's state: the guest's word. It is not read in the transaction, or a guest that writes all the
    /// time would make every attempt conflict (B6).
    pub(crate) fe_state: Option<StateValue>,
    /// Whether BE is there.
    pub(crate) be: bool,
    /// BE's state.
    pub(crate) be_state: Option<StateValue>,
    /// Whether there is a saved copy of BE's keys, of an add whose script was begun and did not come to its
    /// end, so that something may have been made that nothing else tells of. Not read in the transaction:
    /// the copies of all devices have common parents, so all operations would conflict.
    pub(crate) unfinished: bool,
    /// Whether BE holds what a script made.
    pub(crate) made: bool,
    /// What scripts have said there of their runs.
    pub(crate) said: Said,
    /// Whether the device model was seen to have the image open.
    pub(crate) held: bool,
    /// Whether BE was not read in the transaction, so that it may be otherwise by now: it is in a driver domain that
    /// writes all the time.
    pub(crate) passing: bool,
}

/// Whose a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The operation that asks has it.
    Ours,
    /// Its record is gone with the toolstack's directory: somebody removed it, or its domain went.
    Vanished,
    /// Somebody else has it.
    Taken,
}

/// What a step writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The operation record, at this stage.
    Record(Stage),
    /// Removes the operation record.
    Release,
    /// Removes FE; once all else is committed if the guest makes that conflict. What is to be written in BE comes then too,
    /// if a driver domain does that.
    DeleteFrontend,
    /// Writes `online`=0 in BE.
    Offline,
    /// Writes `state`=5 in BE.
    TellToClose,
    /// Writes `state`=6 in BE.
    SayClosed,
    /// Removes `hotplug-error` in BE, which is of an earlier run.
    ForgetError,
    /// Removes FE, LX and BE, with the parents that they leave empty, and then the copies.
    RemoveTree,
}

/// Where a script that undoes something finds its inputs. Where the device is not ours any more, that is a
/// copy aside, since the saved one may be another device's by the time when the script runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inputs {
    /// In BE.
    Backend,
    /// In the saved copy of BE.
    Saved,
    /// In a copy aside of what this operation knows, and of what its script has written into BE since.
    Vanished,
    /// In a copy aside of what this operation knows: BE is another device's.
    Taken,
    /// In a copy aside, but only if what it tells of is still there: whoever removed the nodes should have
    /// undone it.
    Leftover,
}

impl Inputs {
    /// Whether BE, if it is there, tells of this device.
    pub(crate) fn reads_backend(self) -> bool {
        matches!(self, Self::Backend | Self::Saved | Self::Vanished)
    }

    /// Whether the script is run in a copy aside.
    pub(crate) fn is_aside(self) -> bool {
        matches!(self, Self::Vanished | Self::Taken | Self::Leftover)
    }
}

fn is_add(record: &str) -> bool {
    Record::parse(record).is_some_and(|record| record.operation == Operation::Attach)
}

/// What stands in the way of a new device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Obstacle {
    NoHome,
    /// The driver domain is gone: the store would give the backend's nodes to nobody.
    NoBackendHome(DomId),
    Exists,
    /// A device whose guest has it, and whose add has this record: it is under way, or died before its end.
    Unfinished(String),
    /// An operation with this record.
    Occupied(String),
    /// A device without a record, alive by its backend's state.
    Alive(XenbusState),
    /// What a script made, or may have made, and nobody has undone.
    Stale,
}

impl Seen {
    fn be_state(&self) -> Option<XenbusState> {
        self.be_state.as_ref().and_then(StateValue::state)
    }

    /// Whether a frontend says that it is at work.
    fn frontend_is_live(&self) -> bool {
        let state = self.fe_state.as_ref().and_then(StateValue::state);
        matches!(state, Some(XenbusState::Initialised | XenbusState::Connected))
    }

    /// The backend's state, if that says that a driver serves the device.
    pub(crate) fn alive(&self) -> Option<XenbusState> {
        self.be_state().filter(|state| is_alive(*state))
    }

    pub(crate) fn standing(&self, token: Token) -> Standing {
        if Record::is_of(self.op.as_deref(), token) {
            Standing::Ours
        } else if self.lx {
            Standing::Taken
        } else {
            Standing::Vanished
        }
    }

    /// Why an operation that does not have the device any more failed.
    fn lost(&self, standing: Standing) -> Result<(), Cause> {
        match standing {
            Standing::Ours => Ok(()),
            Standing::Taken => Err(Cause::Taken),
            Standing::Vanished => Err(Cause::Gone { domain: !self.home }),
        }
    }

    /// Why an add cannot go on, if so: the device is not ours any more, or its guest is gone.
    fn is_to_be_had(&self, token: Token) -> Result<(), Cause> {
        self.lost(self.standing(token))?;
        if self.home { Ok(()) } else { Err(Cause::Gone { domain: true }) }
    }
}

/// Whether a backend in this state has taken its device up and not let go.
pub(crate) fn is_alive(state: XenbusState) -> bool {
    !matches!(state, XenbusState::Unknown | XenbusState::Initialising | XenbusState::Closed)
}

/// Whether a new device can be written; what is left in its place is removed then.
pub(crate) fn create(seen: &Seen) -> Result<(), Obstacle> {
    if !seen.home {
        return Err(Obstacle::NoHome);
    }
    if let Some(be) = seen.no_backend_home {
        return Err(Obstacle::NoBackendHome(be));
    }
    match (&seen.op, seen.alive()) {
        // Its guest uses it, so it is not undone.
        (Some(record), Some(XenbusState::Connected)) if is_add(record) => {
            Err(Obstacle::Unfinished(record.clone()))
        }
        (Some(record), _) => Err(Obstacle::Occupied(record.clone())),
        _ if seen.lx => Err(Obstacle::Exists),
        (None, Some(state)) => Err(Obstacle::Alive(state)),
        (None, None) if seen.made || seen.unfinished => Err(Obstacle::Stale),
        (None, None) => Ok(()),
    }
}

/// Tells a device to close. Who claims it takes it over from an operation that is dead; who has
/// claimed it goes on only as long as nobody else has.
pub(crate) fn close(seen: &Seen, token: Token, claim: &Claim, frontend: Frontend) -> (Closing, Vec<Change>) {
    match claim {
        Claim::First(_) if !seen.lx && !seen.be && !seen.unfinished => {
            return (Closing::Vanished, Vec::new());
        }
        Claim::First(expected) if seen.op != *expected => return (Closing::Changed, Vec::new()),
        Claim::First(_) => {}
        Claim::Kept => match seen.standing(token) {
            Standing::Taken => return (Closing::Taken, Vec::new()),
            Standing::Vanished if !seen.be => return (Closing::Vanished, Vec::new()),
            Standing::Ours | Standing::Vanished => {}
        },
    }
    let idle = !seen.frontend_is_live();
    // No driver has taken it up, and one that does so now makes the transaction conflict. FE goes before,
    // or its guest could do that too.
    let initialising = seen.be_state() == Some(XenbusState::Initialising);
    // QEMU opens an image before it says so.
    let untouched = initialising && !seen.made && !seen.unfinished && !seen.held && !seen.passing;
    if untouched && idle {
        return if seen.fe {
            (Closing::Again, vec![Change::Record(Stage::Closing), Change::DeleteFrontend])
        } else {
            (Closing::Destroyed, vec![Change::RemoveTree])
        };
    }
    let mut changes = vec![Change::Record(Stage::Closing)];
    if frontend == Frontend::Delete || (frontend == Frontend::DeleteIfIdle && idle) {
        changes.push(Change::DeleteFrontend);
    }
    if !seen.be {
        return (Closing::Missing, changes);
    }
    changes.push(Change::Offline);
    // Without a state nothing serves it: it is what a late script wrote.
    if seen.be_state.is_none() || seen.be_state() == Some(XenbusState::Closed) {
        return (Closing::Closed, changes);
    }
    changes.push(Change::TellToClose);
    (Closing::Told, changes)
}

/// Whether the script that adds may run: the device is ours, and its backend is as ready as it was
/// when that was waited for.
pub(crate) fn begin_add(seen: &Seen, token: Token) -> Result<Vec<Change>, Cause> {
    is_ready(seen, token)?;
    // The status stays: netback takes its absence for a reason to wait.
    Ok(seen.said.error.as_ref().map(|_| Change::ForgetError).into_iter().collect())
}

/// Whether the device is ours, and its backend ready.
pub(crate) fn is_ready(seen: &Seen, token: Token) -> Result<(), Cause> {
    seen.is_to_be_had(token)?;
    let (node, goal) = (Node::BackendState, Goal::BACKEND_READY);
    match seen.be_state() {
        Some(state) if goal.done.contains(state) => Ok(()),
        Some(state) => Err(Cause::Refused { node, goal: goal.to_string(), found: state.to_string() }),
        None => Err(Cause::Vanished(node)),
    }
}

/// Where the script that removes a device finds its inputs.
pub(crate) fn begin_remove(seen: &Seen, token: Token) -> Result<Option<Inputs>, Cause> {
    match seen.standing(token) {
        Standing::Ours => Ok(begin_undo(seen, token, true)),
        Standing::Vanished => Ok(Some(Inputs::Leftover)),
        Standing::Taken => Err(Cause::Taken),
    }
}

/// Where the script that undoes what our own has made finds its inputs; `None` if that is gone.
///
/// `outlives_backend`: whether what the script of an add made stays when the backend goes, and so is not
/// that of the device which has its place now.
pub(crate) fn begin_undo(seen: &Seen, token: Token, outlives_backend: bool) -> Option<Inputs> {
    match seen.standing(token) {
        Standing::Ours if seen.be => Some(Inputs::Backend),
        Standing::Ours => Some(Inputs::Saved),
        Standing::Vanished => Some(Inputs::Vanished),
        Standing::Taken => outlives_backend.then_some(Inputs::Taken),
    }
}

/// Says that the backend has closed, for a device model that has ended: its guest's frontend and whoever serves
/// the other domain are told so by nobody else.
pub(crate) fn close_for_server(seen: &Seen, token: Token) -> Result<Vec<Change>, Cause> {
    seen.lost(seen.standing(token))?;
    let closed = seen.be_state() == Some(XenbusState::Closed);
    Ok(if seen.be && !closed { vec![Change::Offline, Change::SayClosed] } else { Vec::new() })
}

/// Removes the device's tree, if nobody else has it.
pub(crate) fn destroy(seen: &Seen, token: Token) -> (Destroyed, Vec<Change>) {
    match seen.standing(token) {
        Standing::Taken => (Destroyed::Taken, Vec::new()),
        // Ours was told to close: somebody made this one since, and recorded it nowhere.
        Standing::Vanished
            if seen.home && seen.alive().is_some_and(|state| state != XenbusState::Closing) =>
        {
            (Destroyed::Taken, Vec::new())
        }
        Standing::Ours | Standing::Vanished => (Destroyed::Gone, vec![Change::RemoveTree]),
    }
}

/// Removes the record, if the device is as it should be: nobody works on it any more. One that is not served yet
/// only has to be there.
pub(crate) fn settle(seen: &Seen, token: Token, served: bool) -> Result<Vec<Change>, Cause> {
    if served {
        is_ready(seen, token)?;
    } else {
        seen.is_to_be_had(token)?;
        if !seen.be {
            return Err(Cause::Vanished(Node::BackendState));
        }
    }
    Ok(vec![Change::Release])
}

/// Whether the device may be entered into libxl's configuration of its domain: it is ours.
pub(crate) fn enter(seen: &Seen, token: Token) -> Result<(), Cause> {
    seen.is_to_be_had(token)
}

/// Whether the entry of a device that was removed is to go: nobody has added it again.
pub(crate) fn is_to_be_struck(seen: &Seen) -> bool {
    !seen.lx
}

/// Notes that the operation ended here.
pub(crate) fn leave(seen: &Seen, token: Token) -> Vec<Change> {
    let ours = seen.standing(token) == Standing::Ours;
    if ours { vec![Change::Record(Stage::Left)] } else { Vec::new() }
}
