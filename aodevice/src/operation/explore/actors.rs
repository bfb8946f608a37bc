//! What an actor does: it carries out what its machine asks for, by the decisions of `steps.rs`.

use xen_devstate::{Goal, StateValue, XenbusState};
use xs_client::DomId;

use super::super::owner::Owner;
use super::super::record::{Record, Token};
use super::super::steps::{self, Inputs, Obstacle, Standing};
use super::way;
use super::world::{Instance, Running, Script, WHICH, World, device, target};
use crate::libxl::ConfigError;
use crate::machine::{
    Action, Add, Created, Event, Found, Limits, Node, Purpose, Reached, Remove, Step, Until,
};
use crate::{Addition, Cause, Force, Operation, Removal};

impl World {
    pub(super) fn actor_dies(&self, index: usize, next: &mut Vec<Self>) {
        if self.deaths == 0 || self.actors[index].running.is_none() {
            return;
        }
        let mut world = Self { deaths: 0, entry_may_be_left: true, ..self.clone() };
        let actor = &mut world.actors[index];
        (actor.alive, actor.changes_config) = (false, false);
        let script = actor.script.take();
        if let (Some(Script::Runs(_)), Some((_, Action::On(_, Step::Run { purpose, .. }))), Some(record)) =
            (script, &actor.running, &actor.record)
        {
            world.orphan = Some((record.token.0, *purpose));
        }
        next.push(world);
    }

    pub(super) fn actor_moves(&self, index: usize, next: &mut Vec<Self>) {
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
            Action::Check(..) => event(&|_| Event::Checked(Ok(()))),
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
                Step::Await { until: Until::State(goal), by_guest, .. } => {
                    if by_guest && !self.home {
                        event(&|_| Event::Waited(Ok(Reached::GuestOver)));
                    }
                    let value = self.be.flatten().map(StateValue::State);
                    let node = Node::BackendState;
                    match goal.decide(value.as_ref()) {
                        Some(xen_devstate::Outcome::Reached(_)) => {
                            event(&|_| Event::Waited(Ok(Reached::Value)));
                        }
                        Some(xen_devstate::Outcome::Gone) => event(&|_| Event::Waited(Ok(Reached::Gone))),
                        Some(_) => event(&|_| Event::Waited(Err(Cause::Vanished(node)))),
                        None if self.is_without_mover() && goal == Goal::CLOSED => {
                            event(&|_| Event::Waited(Ok(Reached::ServerGone)));
                        }
                        None if self.is_without_mover() => {
                            event(&|_| Event::Waited(Err(Cause::NoDeviceModel(WHICH.fe))));
                        }
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
                Step::CloseForServer => event(&|world| {
                    Event::ClosedForServer(
                        steps::close_for_server(&world.seen(), token)
                            .map(|changes| world.apply(&record, &changes)),
                    )
                }),
                Step::Destroy => event(&|world| {
                    let (destroyed, changes) = steps::destroy(&world.seen(), token);
                    world.apply(&record, &changes);
                    Event::Destroyed(Ok(destroyed))
                }),
                Step::Enter(_) | Step::Strike => self.config_moves(index, &record, &step, next),
                Step::Settle { served } => {
                    event(&|world| match steps::settle(&world.seen(), token, served) {
                        Ok(changes) => {
                            world.apply(&record, &changes);
                            (world.saved, world.unfinished) = (world.node, false);
                            Event::Settled(Ok(()))
                        }
                        Err(cause) => Event::Settled(Err(cause)),
                    });
                }
                Step::Observe => event(&|_| Event::Observed),
                Step::Leave => event(&|world| {
                    let changes = steps::leave(&world.seen(), token);
                    world.apply(&record, &changes);
                    Event::Left
                }),
            },
        }
    }

    /// Takes the lock of libxl's configuration and looks, or changes it and gives the lock back.
    fn config_moves(&self, index: usize, record: &Record, step: &Step, next: &mut Vec<Self>) {
        let enters = matches!(step, Step::Enter(_));
        let ends = |outcome| if enters { Event::Entered(outcome) } else { Event::Struck(outcome) };
        let mut world = self.clone();
        if self.actors[index].changes_config {
            world.actors[index].changes_config = false;
            world.entry = enters.then_some(record.token.0);
            world.deliver(index, ends(Ok(())));
            return next.push(world);
        }
        if self.timeouts > 0 {
            let mut late = Self { timeouts: 0, ..self.clone() };
            late.entry_may_be_left |= !enters;
            let problem = ConfigError::Busy(Default::default());
            late.deliver(index, ends(Err(Cause::Config { file: Default::default(), problem })));
            next.push(late);
        }
        if !self.config_is_free() {
            return;
        }
        let wanted = match enters {
            true => steps::enter(&self.seen(), record.token).map(|()| true),
            false => Ok(steps::is_to_be_struck(&self.seen())),
        };
        match wanted {
            Ok(true) => world.actors[index].changes_config = true,
            Ok(false) => world.deliver(index, ends(Ok(()))),
            Err(cause) => world.deliver(index, ends(Err(cause))),
        }
        next.push(world);
    }

    pub(super) fn script_moves(
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
                Ok(Some(inputs)) => world.actors[index].script = Some(Script::Queued(Some(inputs))),
                Ok(None) => world.deliver(index, Event::Ran(Ok(None))),
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
                let still = matches!(begin_to_remove(), Ok(Some(now)) if now == inputs);
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
    pub(super) fn undo(&mut self, inputs: Inputs, known: Option<Instance>) {
        let named = match inputs {
            Inputs::Backend => self.node.or(self.saved),
            Inputs::Saved => self.saved,
            Inputs::Vanished | Inputs::Taken | Inputs::Leftover => known,
        };
        if let Some(named) = named {
            self.effects.remove(&named);
        }
    }

    pub(super) fn create(&mut self, record: &Record) -> Created {
        match steps::create(&self.seen()) {
            Ok(()) => {
                (self.lx, self.op) = (true, Some(record.to_string()));
                (self.fe, self.be) = (Some(XenbusState::Initialising), Some(Some(XenbusState::Initialising)));
                (self.node, self.saved, self.unfinished) = (None, None, false);
                Created::Done(target(self.mover))
            }
            Err(Obstacle::Occupied(text)) => Created::Occupied(WHICH, self.occupant(&text)),
            Err(Obstacle::Stale) => Created::Stale(WHICH),
            Err(Obstacle::NoHome) => Created::Failed(Cause::NoSuchDomain(WHICH.fe.to_string()), None),
            Err(Obstacle::Alive(state)) => Created::Failed(Cause::Unrecorded(state), None),
            Err(_) => Created::Failed(Cause::Exists, None),
        }
    }

    pub(super) fn probe(&self) -> Result<Found, Cause> {
        let seen = self.seen();
        if !seen.lx && !seen.be && !seen.unfinished {
            return Err(Cause::NoSuchDevice);
        }
        if let Some(state) = seen.alive().filter(|_| !seen.lx && seen.home) {
            return Err(Cause::Unrecorded(state));
        }
        let occupant = self.op.as_deref().map(|text| self.occupant(text));
        Ok(Found { target: target(self.mover), occupant })
    }

    pub(super) fn lost(&self, token: Token) -> Option<Cause> {
        match self.seen().standing(token) {
            Standing::Ours => None,
            Standing::Taken => Some(Cause::Taken),
            Standing::Vanished => Some(Cause::Gone { domain: !self.home }),
        }
    }

    pub(super) fn begin(&mut self, index: usize, operation: Operation) {
        let mut record = Record::new(operation, Owner::of_this_process(DomId::DOM0));
        // One number for each operation of each actor, so that equal worlds are equal.
        let generation = if self.later { 100 } else { 0 };
        record.token = Token(1 + generation + index as u64 * 10 + self.actors[index].todo.len() as u64);
        record.since = 0;
        let limits = Limits::default();
        let mut running = match operation {
            Operation::Attach => {
                Running::Add(Box::new(Add::new(WHICH.fe, device(), Addition::from(self.wait_for), limits)))
            }
            Operation::Detach => {
                Running::Remove(Box::new(Remove::new(WHICH, Removal::from(Force::Never), limits)))
            }
            Operation::Insert | Operation::Eject | Operation::Script => unreachable!("no machine does that"),
        };
        let action = running.on(Event::Begin);
        let actor = &mut self.actors[index];
        actor.todo.remove(0);
        (actor.record, actor.running) = (Some(record), Some((running, action)));
    }

    pub(super) fn deliver(&mut self, index: usize, event: Event) {
        let Some((mut running, _)) = self.actors[index].running.take() else { return };
        let action = running.on(event);
        if matches!(action, Action::On(_, Step::Strike)) {
            assert!(!self.lx && self.be.is_none(), "gone, it says: {self}\n{}", way());
        }
        if action != Action::Finish {
            self.actors[index].running = Some((running, action));
            return;
        }
        let instance = self.actors[index].record.take().map(|record| record.token.0);
        self.judge(&running, instance);
    }

    /// What an operation says at its end is so.
    pub(super) fn judge(&self, running: &Running, instance: Option<Instance>) {
        match (running, running.outcome()) {
            (Running::Add(_), Ok(())) => {
                let entered = self.entry == instance || !self.home;
                assert!(self.stands() && entered, "added, it says: {self}\n{}", way());
            }
            (Running::Add(_), Err(Cause::Exists)) => {
                assert!(self.lx, "it exists, it says: {self}\n{}", way());
            }
            (Running::Remove(_), Err(Cause::NoSuchDevice)) => {
                assert!(!self.lx, "there is none, it says: {self}\n{}", way());
            }
            _ => {}
        }
    }

    /// One plain removal more, of somebody who has time, with nothing in its way.
    pub(super) fn removed_later(mut self) -> Self {
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
