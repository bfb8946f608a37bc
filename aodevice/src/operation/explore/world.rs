//! The device and the world around it: nodes, what scripts made, the backend's driver, the guest, the guard
//! of a dead actor's script, and `xl`.

use std::collections::BTreeSet;
use std::sync::Arc;

use xen_devstate::{StateValue, XenbusState};
use xs_client::DomId;

use super::super::Target;
use super::super::record::{Occupant, Record, Stage};
use super::super::steps::{self, Change, Inputs, Seen};
use crate::libxl::Userdata;
use crate::machine::{Action, Add, Event, Machine, Purpose, Remove};
use crate::{BackendKind, Cause, Device, DeviceId, Kind, Operation, WaitFor, Which, vbd};

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

/// Who moves the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mover {
    Kernel,
    /// A device model, which runs no scripts.
    Model {
        alive: bool,
    },
}

/// The nodes of the device, and what the world does with it.
#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) actors: [Actor; 2],
    pub(super) mover: Mover,
    /// Whether the guest has a home.
    pub(super) home: bool,
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
    /// What the adds wait for.
    pub(super) wait_for: WaitFor,
    /// Of the device model, and of the domain.
    pub(super) ends: usize,
    /// Of the device model.
    pub(super) starts: usize,
    pub(super) timeouts: usize,
    pub(super) teardowns: usize,
    /// Whether this is the time after all, when somebody cleans up.
    pub(super) later: bool,
}

pub(super) fn target(mover: Mover) -> Target {
    let keys: &[_] = match mover {
        Mover::Kernel => &[("script", "/etc/xen/scripts/block"), ("params", "/srv/d.img")],
        Mover::Model { .. } => &[("params", "qcow2:/srv/d.img")],
    };
    let keys = keys.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let backend = if mover == Mover::Kernel { BackendKind::Vbd } else { BackendKind::Qdisk };
    let config = Userdata::new("/var/lib/xen", WHICH.fe, "/vm/00000000-0000-4000-8000-000000000001");
    Target::new(DeviceId::with_backend(WHICH, DomId::DOM0, backend), keys)
        .unwrap()
        .with_config(Some(config.unwrap()))
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
            mover: Mover::Kernel,
            home: true,
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
            wait_for: WaitFor::Script,
            ends: 0,
            starts: 0,
            timeouts: 1,
            teardowns: 0,
            later: false,
        };
        if attached {
            world.effects.insert(0);
        }
        world
    }

    /// The same device served by a device model, which may end, or its domain, at any moment.
    pub(super) fn by_model(self) -> Self {
        let (mover, effects) = (Mover::Model { alive: true }, BTreeSet::new());
        Self { mover, effects, node: None, saved: None, ends: 1, ..self }
    }

    /// The same before the device model has been started.
    pub(super) fn before_model(self) -> Self {
        let mover = Mover::Model { alive: false };
        Self { mover, starts: 1, wait_for: WaitFor::Tree, ..self.by_model() }
    }

    /// Whether who moves the backend is not there.
    pub(super) fn is_without_mover(&self) -> bool {
        self.mover == Mover::Model { alive: false }
    }

    pub(super) fn seen(&self) -> Seen {
        Seen {
            home: self.home,
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
                Change::SayClosed => self.be = Some(Some(XenbusState::Closed)),
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
        let is_up = self.be.flatten().is_some_and(|state| match state {
            XenbusState::Initialising => self.wait_for == WaitFor::Tree,
            state => steps::is_alive(state) && state != XenbusState::Closing,
        });
        is_up
            && self.lx
            && self.fe.is_some()
            && (self.node.is_some() || self.mover != Mover::Kernel)
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
            _ if self.is_without_mover() => None,
            (Some(Initialising), Some(_)) => Some(InitWait),
            (Some(Initialising | InitWait | Connected | Closing), None) => Some(Closed),
            // The guest answers.
            (Some(Closing), Some(_)) => Some(Closed),
            _ => None,
        };
        if let Some(state) = be {
            next.push(Self { be: Some(Some(state)), ..self.clone() });
        }
        if let Mover::Model { alive: true } = self.mover {
            if self.be == Some(Some(Closed)) {
                // It lets go of a device that was told to go, and removes its nodes.
                next.push(Self { be: None, fe: None, ..self.clone() });
            }
            if self.ends > 0 {
                // Killed, or asked to end.
                let killed = Self { ends: 0, mover: Mover::Model { alive: false }, ..self.clone() };
                next.push(Self { be: None, fe: None, ..killed.clone() });
                next.push(killed);
            }
        }
        if self.starts > 0 && self.is_without_mover() {
            next.push(Self { starts: 0, mover: Mover::Model { alive: true }, ..self.clone() });
        }
        if self.ends > 0 && self.home {
            // The store removes what the guest owns; its home, and its configuration, go with it.
            let gone =
                Self { ends: 0, home: false, fe: None, entry: None, entry_may_be_left: true, ..self.clone() };
            next.push(gone);
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
