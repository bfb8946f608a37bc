//! The device and the world around it: nodes, what scripts made, the backend's driver, the guest, the guard
//! of a dead actor's script, and `xl`.

use std::collections::BTreeSet;
use std::sync::Arc;

use devstate::{StateValue, XenbusState};
use xs_client::DomId;

use super::super::Target;
use super::super::record::{Occupant, Record, Stage};
use super::super::steps::{self, Change, Inputs, Seen};
use crate::libxl::Userdata;
use crate::machine::{Action, Add, Event, Machine, Purpose, Remove};
use crate::{Cause, Device, DeviceId, Kind, Operation, Which, vbd};

/// The device.
pub(super) const WHICH: Which = Which { fe: DomId(1), kind: Kind::Vbd, devid: 51712 };

/// An operation under way, by its number; 0 is the device that was there before.
pub(super) type Instance = u64;

#[derive(Clone, Debug)]
pub(super) enum Running {
    Add(Box<Add>),
    Remove(Box<Remove>),
}

impl Running {
    pub(super) fn on(&mut self, event: Event) -> Action {
        match self {
            Self::Add(add) => add.on(event),
            Self::Remove(remove) => remove.on(event),
        }
    }

    pub(super) fn is_cancellable(&self) -> bool {
        match self {
            Self::Add(add) => add.is_cancellable(),
            Self::Remove(remove) => remove.is_cancellable(),
        }
    }

    pub(super) fn outcome(&self) -> Result<(), Cause> {
        match self.clone() {
            Self::Add(add) => add.outcome().0,
            Self::Remove(remove) => remove.outcome().0,
        }
    }
}

/// Where an actor is in a script run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Script {
    /// It waits for the lock of the device.
    Queued(Option<Inputs>),
    Runs(Option<Inputs>),
}

#[derive(Clone, Debug)]
pub(super) struct Actor {
    pub(super) todo: Vec<Operation>,
    pub(super) running: Option<(Running, Action)>,
    pub(super) record: Option<Record>,
    pub(super) script: Option<Script>,
    /// Whether it has the lock of libxl's configuration, and is about to change it.
    pub(super) changes_config: bool,
    /// Whose device it has found.
    pub(super) knows: Option<Instance>,
    pub(super) alive: bool,
}

/// The nodes of the device, and what the world does with it.
#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) actors: [Actor; 2],
    pub(super) lx: bool,
    pub(super) op: Option<String>,
    pub(super) fe: Option<XenbusState>,
    /// BE, which a late script may bring back without a state.
    pub(super) be: Option<Option<XenbusState>>,
    /// Whose device BE tells of (`node`).
    pub(super) node: Option<Instance>,
    pub(super) saved: Option<Instance>,
    /// Whether the saved copy is of an add whose script has not come to its end.
    pub(super) unfinished: bool,
    /// Whose entry is in libxl's configuration of the guest.
    pub(super) entry: Option<Instance>,
    /// Whether an entry may be left of a device that is gone: somebody died, `xl` removed the device, or it
    /// was told that it could not be struck out.
    pub(super) entry_may_be_left: bool,
    /// What the scripts have made and not undone.
    pub(super) effects: BTreeSet<Instance>,
    /// A script of a dead actor that the guard has not killed yet.
    pub(super) orphan: Option<(Instance, Purpose)>,
    pub(super) deaths: usize,
    pub(super) timeouts: usize,
    pub(super) teardowns: usize,
    /// Whether this is the time after all, when somebody cleans up.
    pub(super) later: bool,
}

pub(super) fn target() -> Target {
    let keys = [("script", "/etc/xen/scripts/block"), ("params", "/srv/d.img")];
    let keys = keys.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let config = Userdata::new("/var/lib/xen", WHICH.fe, "/vm/00000000-0000-4000-8000-000000000001");
    Target::new(DeviceId::new(WHICH, DomId::DOM0), keys).unwrap().with_config(Some(config.unwrap()))
}

pub(super) fn device() -> Arc<Device> {
    Arc::new(Device::Vbd(vbd::parse(&["/srv/d.img,raw,xvda,w,script=block"]).unwrap()))
}

impl World {
    pub(super) fn new(todo: [Vec<Operation>; 2], attached: bool) -> Self {
        let actors = todo.map(|todo| Actor {
            todo,
            running: None,
            record: None,
            script: None,
            changes_config: false,
            knows: None,
            alive: true,
        });
        let mut world = Self {
            actors,
            lx: attached,
            op: None,
            fe: attached.then_some(XenbusState::Connected),
            be: attached.then_some(Some(XenbusState::Connected)),
            node: attached.then_some(0),
            saved: attached.then_some(0),
            unfinished: false,
            entry: attached.then_some(0),
            entry_may_be_left: false,
            effects: BTreeSet::new(),
            orphan: None,
            deaths: 0,
            timeouts: 1,
            teardowns: 0,
            later: false,
        };
        if attached {
            world.effects.insert(0);
        }
        world
    }

    pub(super) fn seen(&self) -> Seen {
        Seen {
            home: true,
            lx: self.lx,
            op: self.op.clone(),
            fe: self.fe.is_some(),
            fe_state: self.fe.map(StateValue::State),
            be: self.be.is_some(),
            be_state: self.be.flatten().map(StateValue::State),
            unfinished: self.unfinished,
            made: self.node.is_some(),
            ..Seen::default()
        }
    }

    pub(super) fn apply(&mut self, record: &Record, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Record(stage) => (self.lx, self.op) = (true, Some(record.at(*stage).to_string())),
                Change::Release => self.op = None,
                Change::DeleteFrontend => self.fe = None,
                Change::Offline | Change::ForgetError => {}
                Change::TellToClose => self.be = Some(Some(XenbusState::Closing)),
                Change::RemoveTree => self.remove_tree(),
            }
        }
    }

    pub(super) fn remove_tree(&mut self) {
        (self.lx, self.op, self.fe, self.be, self.node, self.saved) = (false, None, None, None, None, None);
        self.unfinished = false;
    }

    pub(super) fn is_clean(&self) -> bool {
        let nodes = self.lx || self.be.is_some() || self.fe.is_some() || self.saved.is_some();
        let struck = self.entry.is_none() || self.entry_may_be_left;
        !nodes && self.effects.is_empty() && struck
    }

    /// The device is as an add leaves it.
    pub(super) fn stands(&self) -> bool {
        let is_up =
            self.be.flatten().is_some_and(|state| steps::is_alive(state) && state != XenbusState::Closing);
        is_up
            && self.lx
            && self.fe.is_some()
            && self.node.is_some()
            && self.effects == self.node.into_iter().collect()
    }

    pub(super) fn occupant(&self, text: &str) -> Occupant {
        let record = Record::parse(text);
        let works = |actor: &Actor| {
            actor.alive
                && actor.record.as_ref().map(|own| own.token) == record.as_ref().map(|record| record.token)
        };
        let left = record.as_ref().is_some_and(|record| record.stage == Stage::Left);
        Occupant { text: text.to_owned(), alive: !left && self.actors.iter().any(works), seen: true, record }
    }

    pub(super) fn config_is_free(&self) -> bool {
        !self.actors.iter().any(|actor| actor.changes_config)
    }

    pub(super) fn lock_is_free(&self) -> bool {
        let runs = |actor: &Actor| matches!(actor.script, Some(Script::Runs(_)));
        self.orphan.is_none() && !self.actors.iter().any(runs)
    }

    /// Whether nothing is under way any more.
    pub(super) fn is_over(&self) -> bool {
        self.orphan.is_none()
            && self
                .actors
                .iter()
                .all(|actor| !actor.alive || actor.running.is_none() && actor.todo.is_empty())
    }

    /// All worlds that may come next.
    pub(super) fn next(&self) -> Vec<Self> {
        let mut next = Vec::new();
        for index in 0..2 {
            if self.actors[index].alive {
                self.actor_moves(index, &mut next);
                self.actor_dies(index, &mut next);
            }
        }
        self.others_move(&mut next);
        next
    }

    /// The backend's driver, the guest, the guard of a dead actor's script, and `xl`.
    pub(super) fn others_move(&self, next: &mut Vec<Self>) {
        use XenbusState::{Closed, Closing, Connected, InitWait, Initialising};
        let be = match (self.be.flatten(), self.fe) {
            (Some(Initialising), Some(_)) => Some(InitWait),
            (Some(Initialising | InitWait | Connected | Closing), None) => Some(Closed),
            // The guest answers.
            (Some(Closing), Some(_)) => Some(Closed),
            _ => None,
        };
        if let Some(state) = be {
            next.push(Self { be: Some(Some(state)), ..self.clone() });
        }
        if let Some((instance, purpose)) = self.orphan {
            let mut killed = Self { orphan: None, ..self.clone() };
            next.push(killed.clone());
            if purpose == Purpose::Add {
                // It was killed between making the device and reporting it, or after that.
                killed.effects.insert(instance);
                next.push(killed.clone());
                killed.report(instance);
                next.push(killed);
            }
        }
        if self.teardowns > 0 && self.lx {
            let mut torn_down = Self { teardowns: 0, entry_may_be_left: true, ..self.clone() };
            if let Some(instance) = torn_down.node {
                torn_down.effects.remove(&instance);
            }
            let (saved, unfinished) = (torn_down.saved, torn_down.unfinished);
            torn_down.remove_tree();
            (torn_down.saved, torn_down.unfinished) = (saved, unfinished);
            next.push(torn_down);
        }
    }

    /// A script's report: it brings BE back if that is gone.
    pub(super) fn report(&mut self, instance: Instance) {
        self.be.get_or_insert(None);
        self.node = Some(instance);
    }
}
