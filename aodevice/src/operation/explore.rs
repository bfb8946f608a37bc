//! Every interleaving of two actors on one device, explored exhaustively over the pure machines and the
//! pure decisions of `steps.rs`: one actor may die at any step, one wait may time out at any moment, and
//! `xl`, which knows nothing of records, may tear the device down at any moment.
//!
//! Nothing here is simulated that the driver decides: what a step writes is what `steps.rs` says. The
//! world is one device: its nodes, its backend's driver, a guest that answers, and what scripts made.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use devstate::{StateValue, XenbusState};
use xs_client::DomId;

use super::Target;
use super::owner::Owner;
use super::record::{Occupant, Record, Stage, Token};
use super::steps::{self, Change, Inputs, Obstacle, Seen, Standing};
use crate::machine::{
    Action, Add, Created, Event, Found, Limits, Machine, Node, Purpose, Reached, Remove, Step, Until,
};
use crate::{Addition, Cause, Device, DeviceId, Force, Kind, Operation, Removal, Which, vbd};

const WHICH: Which = Which { fe: DomId(1), kind: Kind::Vbd, devid: 51712 };

/// An operation under way, by its number; 0 is the device that was there before.
type Instance = u64;

#[derive(Clone, Debug)]
enum Running {
    Add(Box<Add>),
    Remove(Box<Remove>),
}

impl Running {
    fn on(&mut self, event: Event) -> Action {
        match self {
            Self::Add(add) => add.on(event),
            Self::Remove(remove) => remove.on(event),
        }
    }

    fn is_cancellable(&self) -> bool {
        match self {
            Self::Add(add) => add.is_cancellable(),
            Self::Remove(remove) => remove.is_cancellable(),
        }
    }

    fn outcome(&self) -> Result<(), Cause> {
        match self.clone() {
            Self::Add(add) => add.outcome().0,
            Self::Remove(remove) => remove.outcome().0,
        }
    }
}

/// Where an actor is in a script run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Script {
    /// It waits for the lock of the device.
    Queued(Option<Inputs>),
    Runs(Option<Inputs>),
}

#[derive(Clone, Debug)]
struct Actor {
    todo: Vec<Operation>,
    running: Option<(Running, Action)>,
    record: Option<Record>,
    script: Option<Script>,
    /// Whose device it has found.
    knows: Option<Instance>,
    alive: bool,
}

/// The nodes of the device, and what the world does with it.
#[derive(Clone, Debug)]
struct World {
    actors: [Actor; 2],
    lx: bool,
    op: Option<String>,
    fe: Option<XenbusState>,
    /// BE, which a late script may bring back without a state.
    be: Option<Option<XenbusState>>,
    /// Whose device BE tells of (`node`).
    node: Option<Instance>,
    saved: Option<Instance>,
    /// Whether the saved copy is of an add whose script has not come to its end.
    unfinished: bool,
    /// What the scripts have made and not undone.
    effects: BTreeSet<Instance>,
    /// A script of a dead actor that the guard has not killed yet.
    orphan: Option<(Instance, Purpose)>,
    deaths: usize,
    timeouts: usize,
    teardowns: usize,
    /// Whether this is the time after all, when somebody cleans up.
    later: bool,
}

fn target() -> Target {
    let keys = [("script", "/etc/xen/scripts/block"), ("params", "/srv/d.img")];
    let keys = keys.map(|(key, value)| (key.to_owned(), value.to_owned()));
    Target::new(DeviceId::new(WHICH, DomId::DOM0), keys).unwrap()
}

fn device() -> Arc<Device> {
    Arc::new(Device::Vbd(vbd::parse(&["/srv/d.img,raw,xvda,w,script=block"]).unwrap()))
}

impl World {
    fn new(todo: [Vec<Operation>; 2], attached: bool) -> Self {
        let actors = todo.map(|todo| Actor {
            todo,
            running: None,
            record: None,
            script: None,
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

    fn seen(&self) -> Seen {
        Seen {
            home: true,
            lx: self.lx,
            op: self.op.clone(),
            fe: self.fe.is_some(),
            fe_state: self.fe.map(StateValue::State),
            be: self.be.is_some(),
            be_state: self.be.flatten().map(StateValue::State),
            saved: self.saved.is_some(),
            unfinished: self.unfinished,
            aside: false,
            made: self.node.is_some(),
        }
    }

    fn apply(&mut self, record: &Record, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Record(stage) => (self.lx, self.op) = (true, Some(record.at(*stage).to_string())),
                Change::Release => self.op = None,
                Change::DeleteFrontend => self.fe = None,
                Change::Offline => {}
                Change::TellToClose => self.be = Some(Some(XenbusState::Closing)),
                Change::RemoveTree => self.remove_tree(),
            }
        }
    }

    fn remove_tree(&mut self) {
        (self.lx, self.op, self.fe, self.be, self.node, self.saved) = (false, None, None, None, None, None);
        self.unfinished = false;
    }

    fn is_clean(&self) -> bool {
        !self.lx && self.be.is_none() && self.fe.is_none() && self.saved.is_none() && self.effects.is_empty()
    }

    /// The device is as an add leaves it.
    fn stands(&self) -> bool {
        let is_up =
            self.be.flatten().is_some_and(|state| steps::is_alive(state) && state != XenbusState::Closing);
        is_up
            && self.lx
            && self.fe.is_some()
            && self.node.is_some()
            && self.effects == self.node.into_iter().collect()
    }

    fn occupant(&self, text: &str) -> Occupant {
        let record = Record::parse(text);
        let works = |actor: &Actor| {
            actor.alive
                && actor.record.as_ref().map(|own| own.token) == record.as_ref().map(|record| record.token)
        };
        let left = record.as_ref().is_some_and(|record| record.stage == Stage::Left);
        Occupant { text: text.to_owned(), alive: !left && self.actors.iter().any(works), seen: true, record }
    }

    fn lock_is_free(&self) -> bool {
        let runs = |actor: &Actor| matches!(actor.script, Some(Script::Runs(_)));
        self.orphan.is_none() && !self.actors.iter().any(runs)
    }

    /// Whether nothing is under way any more.
    fn is_over(&self) -> bool {
        self.orphan.is_none()
            && self
                .actors
                .iter()
                .all(|actor| !actor.alive || actor.running.is_none() && actor.todo.is_empty())
    }

    /// All worlds that may come next.
    fn next(&self) -> Vec<Self> {
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
    fn others_move(&self, next: &mut Vec<Self>) {
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
            let mut torn_down = Self { teardowns: 0, ..self.clone() };
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
    fn report(&mut self, instance: Instance) {
        self.be.get_or_insert(None);
        self.node = Some(instance);
    }

    fn actor_dies(&self, index: usize, next: &mut Vec<Self>) {
        if self.deaths == 0 || self.actors[index].running.is_none() {
            return;
        }
        let mut world = Self { deaths: 0, ..self.clone() };
        let actor = &mut world.actors[index];
        actor.alive = false;
        let script = actor.script.take();
        if let (Some(Script::Runs(_)), Some((_, Action::On(_, Step::Run { purpose, .. }))), Some(record)) =
            (script, &actor.running, &actor.record)
        {
            world.orphan = Some((record.token.0, *purpose));
        }
        next.push(world);
    }

    fn actor_moves(&self, index: usize, next: &mut Vec<Self>) {
        let Some((running, action)) = self.actors[index].running.clone() else {
            if let [operation, ..] = self.actors[index].todo[..] {
                let mut world = self.clone();
                world.begin(index, operation);
                next.push(world);
            }
            return;
        };
        let mut event = |change: &dyn Fn(&mut Self) -> Event| {
            let mut world = self.clone();
            let event = change(&mut world);
            world.deliver(index, event);
            next.push(world);
        };
        let record = self.actors[index].record.clone().unwrap();
        let token = record.token;
        match action {
            Action::Finish => unreachable!("a machine that has finished does not run"),
            Action::Check(_) => event(&|_| Event::Checked(Ok(()))),
            Action::Create(..) => event(&|world| Event::Created(world.create(&record))),
            Action::Probe { .. } => event(&|world| {
                world.actors[index].knows = world.node.or(world.saved);
                Event::Probed(world.probe())
            }),
            Action::AwaitOwner { occupant, .. } => {
                let text = self.op.as_deref().unwrap_or_default();
                let now = self.occupant(text);
                let same =
                    now.record.as_ref().map(|now| now.token) == occupant.record.as_ref().map(|was| was.token);
                if !same || !now.alive {
                    event(&|_| Event::Released(Ok(())));
                } else if self.timeouts > 0 {
                    event(&|world| {
                        world.timeouts = 0;
                        Event::Released(Err(Cause::Busy {
                            occupant: Box::new(occupant.clone()),
                            limit: Default::default(),
                        }))
                    });
                }
            }
            Action::On(_, step) => match step {
                Step::Await { until: Until::State(goal), .. } => {
                    let value = self.be.flatten().map(StateValue::State);
                    let node = Node::BackendState;
                    match goal.decide(value.as_ref()) {
                        Some(devstate::Outcome::Reached(_)) => event(&|_| Event::Waited(Ok(Reached::Value))),
                        Some(devstate::Outcome::Gone) => event(&|_| Event::Waited(Ok(Reached::Gone))),
                        Some(_) => event(&|_| Event::Waited(Err(Cause::Vanished(node)))),
                        None => {}
                    }
                    if let Some(cause) = self.lost(token) {
                        event(&|_| Event::Waited(Err(cause.clone())));
                    }
                    if self.timeouts > 0 {
                        event(&|world| {
                            world.timeouts = 0;
                            let (goal, limit) = (goal.to_string(), Default::default());
                            Event::Waited(Err(Cause::TimedOut { node, goal, limit }))
                        });
                    }
                }
                Step::Await { .. } => unreachable!("no machine waits for a text yet"),
                Step::Run { purpose, .. } => self.script_moves(index, &running, &record, purpose, next),
                Step::Close(claim, frontend) => event(&|world| {
                    let (closing, changes) = steps::close(&world.seen(), token, &claim, frontend);
                    world.apply(&record, &changes);
                    Event::Told(Ok(closing))
                }),
                Step::Destroy => event(&|world| {
                    let (destroyed, changes) = steps::destroy(&world.seen(), token);
                    world.apply(&record, &changes);
                    Event::Destroyed(Ok(destroyed))
                }),
                Step::Settle => event(&|world| match steps::settle(&world.seen(), token) {
                    Ok(changes) => {
                        world.apply(&record, &changes);
                        (world.saved, world.unfinished) = (world.node, false);
                        Event::Settled(Ok(()))
                    }
                    Err(cause) => Event::Settled(Err(cause)),
                }),
                Step::Observe => event(&|_| Event::Observed),
                Step::Leave => event(&|world| {
                    let changes = steps::leave(&world.seen(), token);
                    world.apply(&record, &changes);
                    Event::Left
                }),
            },
        }
    }

    fn script_moves(
        &self,
        index: usize,
        running: &Running,
        record: &Record,
        purpose: Purpose,
        next: &mut Vec<Self>,
    ) {
        let (token, instance) = (record.token, record.token.0);
        let mut world = self.clone();
        let begin_to_remove = || match purpose {
            Purpose::Undo => Ok(steps::begin_undo(&self.seen(), token, true)),
            _ => steps::begin_remove(&self.seen(), token),
        };
        match (self.actors[index].script, purpose) {
            (None, Purpose::Add) => world.actors[index].script = Some(Script::Queued(None)),
            (None, _) => match begin_to_remove() {
                Ok((Some(inputs), changes)) => {
                    world.apply(record, &changes);
                    world.actors[index].script = Some(Script::Queued(Some(inputs)));
                }
                Ok((None, _)) => world.deliver(index, Event::Ran(Ok(None))),
                Err(cause) => world.deliver(index, Event::Ran(Err(cause))),
            },
            (Some(Script::Queued(_)), _) if !self.lock_is_free() => return,
            (Some(Script::Queued(None)), _) => match steps::begin_add(&self.seen(), token) {
                Ok(changes) => {
                    world.apply(record, &changes);
                    (world.saved, world.unfinished) = (Some(instance), true);
                    world.actors[index].script = Some(Script::Runs(None));
                }
                Err(cause) => {
                    world.actors[index].script = None;
                    world.deliver(index, Event::NotRun(cause));
                }
            },
            (Some(Script::Queued(Some(inputs))), _) => {
                let still = matches!(begin_to_remove(), Ok((Some(now), _)) if now == inputs);
                world.actors[index].script = still.then_some(Script::Runs(Some(inputs)));
            }
            (Some(Script::Runs(None)), _) => {
                if let Some(cause) = self.lost(token).filter(|_| running.is_cancellable()) {
                    // Killed before or after it made the device.
                    for made in [false, true] {
                        let mut killed = self.clone();
                        if made {
                            killed.effects.insert(instance);
                        }
                        killed.actors[index].script = None;
                        killed.deliver(index, Event::Ran(Err(cause.clone())));
                        next.push(killed);
                    }
                }
                world.effects.insert(instance);
                world.report(instance);
                world.actors[index].script = None;
                world.deliver(index, Event::Ran(Ok(None)));
            }
            (Some(Script::Runs(Some(inputs))), _) => {
                let known = if purpose == Purpose::Undo { Some(instance) } else { self.actors[index].knows };
                world.undo(inputs, known);
                world.actors[index].script = None;
                world.deliver(index, Event::Ran(Ok(None)));
            }
        }
        next.push(world);
    }

    /// The script that removes gives back what its inputs name, or what was made and not reported.
    fn undo(&mut self, inputs: Inputs, known: Option<Instance>) {
        let named = match inputs {
            Inputs::Backend => self.node.or(self.saved),
            Inputs::Saved => self.saved,
            Inputs::Vanished | Inputs::Taken | Inputs::Leftover => known,
        };
        if let Some(named) = named {
            self.effects.remove(&named);
        }
    }

    fn create(&mut self, record: &Record) -> Created {
        match steps::create(&self.seen()) {
            Ok(()) => {
                (self.lx, self.op) = (true, Some(record.to_string()));
                (self.fe, self.be) = (Some(XenbusState::Initialising), Some(Some(XenbusState::Initialising)));
                (self.node, self.saved, self.unfinished) = (None, None, false);
                Created::Done(target())
            }
            Err(Obstacle::Occupied(text)) => Created::Occupied(WHICH, self.occupant(&text)),
            Err(Obstacle::Stale) => Created::Stale(WHICH),
            Err(Obstacle::Alive(state)) => Created::Failed(Cause::Unrecorded(state), None),
            Err(_) => Created::Failed(Cause::Exists, None),
        }
    }

    fn probe(&self) -> Result<Found, Cause> {
        let seen = self.seen();
        if !seen.lx && !seen.be && !seen.unfinished {
            return Err(Cause::NoSuchDevice);
        }
        if let Some(state) = seen.alive().filter(|_| !seen.lx) {
            return Err(Cause::Unrecorded(state));
        }
        let occupant = self.op.as_deref().map(|text| self.occupant(text));
        Ok(Found { target: target(), occupant })
    }

    fn lost(&self, token: Token) -> Option<Cause> {
        match self.seen().standing(token) {
            Standing::Ours => None,
            Standing::Taken => Some(Cause::Taken),
            Standing::Vanished => Some(Cause::Gone { domain: false }),
        }
    }

    fn begin(&mut self, index: usize, operation: Operation) {
        let mut record = Record::new(operation, Owner::of_this_process(DomId::DOM0));
        // One number for each operation of each actor, so that equal worlds are equal.
        let generation = if self.later { 100 } else { 0 };
        record.token = Token(1 + generation + index as u64 * 10 + self.actors[index].todo.len() as u64);
        record.since = 0;
        let limits = Limits::default();
        let mut running = match operation {
            Operation::Attach => {
                Running::Add(Box::new(Add::new(WHICH.fe, device(), Addition::default(), limits)))
            }
            Operation::Detach => {
                Running::Remove(Box::new(Remove::new(WHICH, Removal::from(Force::Never), limits)))
            }
        };
        let action = running.on(Event::Begin);
        let actor = &mut self.actors[index];
        actor.todo.remove(0);
        (actor.record, actor.running) = (Some(record), Some((running, action)));
    }

    fn deliver(&mut self, index: usize, event: Event) {
        let Some((mut running, _)) = self.actors[index].running.take() else { return };
        let action = running.on(event);
        if action != Action::Finish {
            self.actors[index].running = Some((running, action));
            return;
        }
        self.actors[index].record = None;
        self.judge(&running);
    }

    /// What an operation says at its end is so.
    fn judge(&self, running: &Running) {
        match (running, running.outcome()) {
            (Running::Add(_), Ok(())) => assert!(self.stands(), "added, it says: {self}\n{}", way()),
            (Running::Remove(_), Ok(())) => {
                assert!(!self.lx && self.be.is_none(), "removed, it says: {self}\n{}", way());
            }
            (Running::Add(_), Err(Cause::Exists)) => {
                assert!(self.lx, "it exists, it says: {self}\n{}", way())
            }
            (Running::Remove(_), Err(Cause::NoSuchDevice)) => {
                assert!(!self.lx, "there is none, it says: {self}\n{}", way())
            }
            _ => {}
        }
    }

    /// One plain removal more, of somebody who has time, with nothing in its way.
    fn removed_later(mut self) -> Self {
        (self.deaths, self.timeouts, self.teardowns) = (0, 0, 0);
        self.actors[0].alive = true;
        self.actors[0].todo = vec![Operation::Detach];
        (self.actors[0].running, self.actors[0].record, self.actors[0].script) = (None, None, None);
        self.later = true;
        let mut steps = 0;
        while let Some(next) = self.next().pop() {
            self = next;
            steps += 1;
            assert!(steps < 200, "a later removal goes on and on: {self}\n{}", way());
        }
        self
    }
}

/// How a world came about.
struct Trail {
    from: Option<Rc<Trail>>,
    world: String,
}

thread_local! {
    static LAST: RefCell<Option<Rc<Trail>>> = const { RefCell::new(None) };
}

/// The way to the world that is being looked at.
fn way() -> String {
    let mut lines = Vec::new();
    let mut at = LAST.with_borrow(Clone::clone);
    while let Some(trail) = at {
        lines.push(trail.world.clone());
        at = trail.from.clone();
    }
    lines.reverse();
    lines.join("\n")
}

/// In a line what a person would want to know.
impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for actor in &self.actors {
            match &actor.running {
                _ if !actor.alive => write!(f, "[dead] ")?,
                Some((Running::Add(add), _)) => write!(f, "[{add} {:?}] ", actor.script)?,
                Some((Running::Remove(remove), _)) => write!(f, "[{remove} {:?}] ", actor.script)?,
                None => write!(f, "[{} to do] ", actor.todo.len())?,
            }
        }
        let Self { lx, op, fe, be, node, saved, effects, orphan, .. } = self;
        let op = op.as_deref().map(|op| op.split(" since").next());
        write!(
            f,
            "lx {lx} op {op:?} fe {fe:?} be {be:?} node {node:?} saved {saved:?} made {effects:?} orphan {orphan:?}"
        )
    }
}

/// Explores everything that may come of these operations; returns how many worlds there are.
fn explore(todo: [&[Operation]; 2], attached: bool) -> usize {
    let deaths = 1;
    explore_from(World { deaths, ..World::new(todo.map(<[Operation]>::to_vec), attached) })
}

/// The same with `xl` beside it. With two actors nobody dies then: of three who get into each other's way
/// at the same moment, one must live to tell.
fn explore_with_xl(todo: [&[Operation]; 2], attached: bool) -> usize {
    let deaths = usize::from(todo.iter().any(|todo| todo.is_empty()));
    explore_from(World { deaths, teardowns: 1, ..World::new(todo.map(<[Operation]>::to_vec), attached) })
}

fn explore_from(world: World) -> usize {
    let xl = world.teardowns > 0;
    let mut seen: HashSet<String> = HashSet::new();
    let mut waiting = vec![(world, None)];
    while let Some((world, from)) = waiting.pop() {
        if !seen.insert(format!("{world:?}")) {
            continue;
        }
        let trail = Rc::new(Trail { from, world: world.to_string() });
        LAST.replace(Some(trail.clone()));
        let next = world.next();
        if next.is_empty() || world.is_over() {
            assert!(world.is_over(), "somebody waits for ever\n{}", way());
            let after = if world.is_clean() { world.clone() } else { world.clone().removed_later() };
            // What `xl` removed leaves its saved copy, which nobody believes.
            let after = World { saved: after.saved.filter(|_| !xl), ..after };
            assert!(after.is_clean(), "something is left after a later removal: {after}\n{}", way());
        }
        waiting.extend(next.into_iter().map(|next| (next, Some(trail.clone()))));
    }
    seen.len()
}

const ADD: Operation = Operation::Attach;
const REMOVE: Operation = Operation::Detach;

#[test]
fn an_add_and_two_removals_by_two_actors() {
    let mut worlds = 0;
    for todo in [
        [&[ADD][..], &[REMOVE, REMOVE][..]],
        [&[ADD, REMOVE], &[REMOVE]],
        [&[ADD], &[REMOVE]],
        [&[REMOVE], &[ADD, REMOVE]],
        [&[ADD], &[ADD]],
    ] {
        worlds += explore(todo, false);
    }
    assert!(worlds > 5_000, "{worlds}");
}

#[test]
fn removals_of_a_device_that_is_in_use() {
    for todo in [[&[REMOVE][..], &[REMOVE][..]], [&[REMOVE, ADD], &[REMOVE]], [&[REMOVE], &[ADD]]] {
        explore(todo, true);
    }
}

#[test]
fn xl_beside_an_add_and_a_removal() {
    for (todo, attached) in [
        ([&[ADD][..], &[][..]], false),
        ([&[ADD], &[REMOVE]], false),
        ([&[REMOVE], &[]], true),
        ([&[REMOVE], &[REMOVE]], true),
        // In the gap that `xl` leaves another device is added.
        ([&[REMOVE], &[ADD]], true),
        ([&[ADD], &[ADD]], false),
        ([&[ADD], &[REMOVE, ADD]], false),
    ] {
        explore_with_xl(todo, attached);
    }
}
