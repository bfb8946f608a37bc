//! What all tasks of a schedule have in common: the store that is there now, the way to it, and
//! the notes of what has happened and what should not have.

mod batches;
mod notes;
mod outage;
mod watched;

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::DuplexStream;
use tokio::time::Instant;
use xs_client::{Access, DomId, Path, Permissions, Request};
use xs_store::Store;

use super::direct::Direct;
use super::fault::{Event, Fault, STORM, What};
use super::schedule::{Schedule, counter, domains, flag, path};
use batches::Batch;
pub(super) use notes::count_value;
use outage::Outage;
use watched::Answers;
pub(super) use watched::Watched;

/// The guest that the client may act for.
const GUEST: DomId = DomId(7);

/// The domain that comes and goes.
const NEIGHBOUR: DomId = DomId(8);

/// More violations than these tell nothing new.
const VIOLATIONS: usize = 12;

/// What a schedule came to.
#[derive(Default)]
pub(super) struct Outcome {
    /// What must not be; empty if all is well.
    pub(super) violations: Vec<String>,
    /// The kinds of faults that did something.
    pub(super) kinds: BTreeSet<usize>,
    /// The same for the same course.
    pub(super) trace: u64,
    /// Requests, replies and events on the wire.
    pub(super) messages: u64,
}

pub(super) struct World {
    pub(super) schedule: Schedule,
    begun: Instant,
    state: Mutex<State>,
}

struct State {
    store: Store,
    /// Counts the stores; each but the first began without the nodes of the one before.
    epoch: u32,
    /// Counts the connections of the client.
    connections: u32,
    /// Those that are there.
    wires: u32,
    /// Which one was over last, and when.
    closed: Option<(u32, Instant)>,
    /// Whether the last one says nothing.
    mute: bool,
    /// When the daemon that is gone will be back, and whether it lets connections wait until then.
    back: Option<(Instant, bool)>,
    /// Since when the client has heard nothing of a store.
    unheard: Option<Instant>,
    /// The last connection that was lost.
    lost: u32,
    /// When the last connection was made.
    made: Option<Instant>,
    /// When the first one was lost since one has stood for a while.
    outage: Option<Instant>,
    /// The last connection that the client has taken for lost.
    gone: u32,
    /// The time since which no connection has stood for a while, as far as the client can know.
    trying: Option<Outage>,
    /// For each fault, whether it was begun, and whether it hit something.
    begun: Vec<bool>,
    hit: Vec<bool>,
    /// What has happened beside the faults.
    happened: BTreeSet<usize>,
    /// For each fault that does something so many times, how many times are left.
    left: Vec<u32>,
    /// Whether a fault has ended a connection.
    ended: bool,
    /// Whether the client was dropped.
    over: bool,
    /// Changes that callers have asked for, and that were not seen on the wire yet.
    asked: Vec<Request>,
    batches: Vec<Batch>,
    answers: Answers,
    /// Nodes of the crowd that have somebody's watch.
    watched: BTreeSet<Path>,
    /// Conflicts after which no transaction was tried again yet.
    conflicts: u32,
    /// Transactions that may have counted, and those that have in this epoch.
    counted: (u64, u64),
    violations: Vec<String>,
    trace: DefaultHasher,
    messages: u64,
}

impl World {
    /// A world with a store that has what every store of it has.
    pub(super) async fn new(schedule: &Schedule) -> Arc<Self> {
        let count = schedule.faults.len();
        let left = schedule.faults.iter().map(|fault| match fault.what {
            What::Again { commits } => commits,
            What::Refuse { requests, .. } => requests,
            _ => 0,
        });
        let state = State {
            store: Store::new(),
            epoch: 0,
            connections: 0,
            wires: 0,
            closed: None,
            mute: false,
            back: None,
            unheard: None,
            lost: 0,
            made: None,
            outage: None,
            gone: 0,
            trying: None,
            begun: vec![false; count],
            hit: vec![false; count],
            happened: BTreeSet::new(),
            left: left.collect(),
            ended: false,
            over: false,
            asked: Vec::new(),
            batches: Vec::new(),
            answers: Answers::default(),
            watched: BTreeSet::new(),
            conflicts: 0,
            counted: (0, 0),
            violations: Vec::new(),
            trace: DefaultHasher::new(),
            messages: 0,
        };
        let world =
            Arc::new(Self { schedule: schedule.clone(), begun: Instant::now(), state: Mutex::new(state) });
        let store = world.state().store.clone();
        world.furnish(&store).await;
        world
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Milliseconds since the beginning.
    pub(super) fn now(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64
    }

    /// The moment so many milliseconds after the beginning.
    pub(super) fn at(&self, ms: u64) -> Instant {
        self.begun + Duration::from_millis(ms)
    }

    pub(super) fn domid(&self) -> DomId {
        if self.schedule.settings.guest { GUEST } else { DomId::DOM0 }
    }

    /// A connection straight to the store.
    pub(super) fn direct(&self) -> Direct {
        Direct::to(&self.state().store)
    }

    /// How many connections the client has made so far.
    pub(super) fn connections(&self) -> u32 {
        self.state().connections
    }

    /// The number of the last connection that was lost, 0 before there was one.
    pub(super) fn lost(&self) -> u32 {
        self.state().lost
    }

    /// Whether the client has a connection that is lost, and has heard of no other.
    pub(super) fn is_lost(&self) -> bool {
        self.state().unheard.is_some()
    }

    pub(super) fn epoch(&self) -> u32 {
        self.state().epoch
    }

    /// What the client's relative paths begin at.
    fn home(&self) -> Path {
        path(&format!("/local/domain/{}", self.domid()))
    }

    /// Where a node is for everybody.
    pub(super) fn absolute(&self, node: &Path) -> Path {
        if node.is_absolute() { node.clone() } else { path(&format!("{}/{node}", self.home())) }
    }

    /// Another domain begins, or ends.
    pub(super) fn turn_domain(&self, ends: bool) {
        let store = self.state().store.clone();
        if ends { store.release(NEIGHBOUR) } else { store.introduce(NEIGHBOUR) }
    }

    /// Gives a new store what the schedule takes for granted.
    async fn furnish(&self, store: &Store) {
        let mut direct = Direct::to(store);
        let tops = [path("/w"), self.home()];
        let mut requests: Vec<Request> = tops.iter().cloned().map(Request::Mkdir).collect();
        if self.schedule.settings.guest {
            store.introduce(GUEST);
            let perms = Permissions::owned_by(GUEST, Access::None);
            requests.extend(tops.map(|path| Request::SetPerms { path, perms: perms.clone() }));
            // As a rule, only domain 0 may know of new domains.
            let perms = Permissions::owned_by(DomId::DOM0, Access::None).grant(GUEST, Access::Read);
            requests.push(Request::SetPerms { path: domains(false), perms });
        }
        requests.push(Request::Write { path: counter(), value: count_value(0).into() });
        let written = self.schedule.flags.iter().enumerate().filter(|(_, at)| **at <= self.now());
        requests.extend(written.map(|(number, _)| {
            let value = format!("{}#", flag(number)).into();
            Request::Write { path: flag(number), value }
        }));
        for request in requests {
            direct.ask(request).await;
        }
    }

    /// When the daemon that is gone is back, if it lets connections wait until then.
    pub(super) fn back(&self) -> Option<Instant> {
        self.state().back.filter(|(_, waits)| *waits).map(|(back, _)| back)
    }

    /// A new connection of the client to the store, and its number.
    pub(super) fn wire_begun(&self) -> io::Result<(u32, DuplexStream)> {
        let mut state = self.state();
        if state.back.is_some_and(|(back, _)| Instant::now() < back) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        state.connections += 1;
        state.wires += 1;
        state.made = Some(Instant::now());
        Ok((state.connections, state.store.connect(self.domid())))
    }

    /// The daemon is gone for a while.
    pub(super) fn restart(self: &Arc<Self>, ms: u64, keep: bool, waits: bool) {
        self.state().back = Some((Instant::now() + Duration::from_millis(ms.max(1)), waits));
        if !keep {
            tokio::spawn(self.clone().begin_anew());
        }
    }

    /// There is another store, which nobody can see before it has what it should have.
    async fn begin_anew(self: Arc<Self>) {
        let store = Store::new();
        self.furnish(&store).await;
        let mut state = self.state();
        state.store = store;
        state.epoch += 1;
        state.counted.1 = 0;
    }

    /// When the only connection that there will be was over.
    pub(super) fn closed(&self) -> Option<Instant> {
        let closed = self.state().closed.map(|(_, at)| at);
        closed.filter(|_| self.schedule.settings.config.reconnect.is_none())
    }

    /// How many connections of the client there are.
    pub(super) fn wires(&self) -> u32 {
        self.state().wires
    }

    /// Notes that a fault ends a connection; to be called before the client can see it.
    pub(super) fn end(&self) {
        self.cut_batches();
        let mut state = self.state();
        state.ended = true;
        // The client has seen it stand for somewhat less.
        let stood = state.made.is_some_and(|made| made.elapsed() >= self.standing() + self.standing());
        if state.lost < state.connections && (stood || state.outage.is_none()) {
            state.outage = Some(Instant::now());
        }
        state.lost = state.connections;
        state.unheard.get_or_insert_with(Instant::now);
    }

    /// Notes that the client hears of a store by this connection.
    pub(super) fn heard(&self, connection: u32) {
        let mut state = self.state();
        if connection == state.connections && connection > state.lost {
            state.unheard = None;
        }
    }

    /// The client is dropped now.
    pub(super) fn finish(&self) {
        self.state().over = true;
    }

    /// Whether the client was dropped.
    pub(super) fn is_over(&self) -> bool {
        self.state().over
    }

    /// Looks whether the client has given up in its time, which it does just now.
    pub(super) fn check_giving_up(&self) {
        let outage = self.state().outage.map_or(Duration::ZERO, |since| since.elapsed());
        let policy = self.schedule.settings.config.reconnect;
        if policy.is_some_and(|policy| outage < policy.within) {
            self.violation(format!("the client gives up after {outage:?} without a store"));
        }
    }

    /// Looks whether a client has ended that should not have, or has not although it should.
    pub(super) fn check_end(&self, has_ended: bool) {
        let state = self.state();
        let must_end = match self.schedule.settings.config.reconnect {
            None => state.ended,
            // The store was gone for as long, and the longest pause.
            Some(policy) => {
                let most = policy.within + policy.first_pause * 33;
                let hit = self.schedule.faults.iter().zip(&state.hit).filter(|(_, hit)| **hit);
                hit.map(|(fault, _)| fault).any(|fault| {
                    matches!(fault.what, What::Restart { .. }) && fault.lasts > most.as_millis() as u64
                })
            }
        };
        let may_end = state.ended;
        drop(state);
        if must_end && !has_ended {
            self.violation("the client has not ended, although it was without a store for too long");
        }
        if has_ended && !may_end {
            self.violation("the client has ended, although its connection was not lost");
        }
    }

    /// Looks whether the client has counted its connections, and has no more than one.
    pub(super) fn check_connections(&self, again: u64) {
        let (made, there) = (self.connections(), self.wires());
        if u64::from(made) != again + 1 || there > 1 {
            self.violation(format!(
                "the client has made {made} connections, {there} of which are there, and counts {again} again"
            ));
        }
    }

    /// Whether a fault has ended a connection.
    pub(super) fn has_ended(&self) -> bool {
        self.state().ended
    }

    /// The faults that last and are on now, with their places.
    pub(super) fn on(&self) -> impl Iterator<Item = (usize, &Fault)> {
        let now = self.now();
        self.schedule.faults.iter().enumerate().filter(move |(_, fault)| fault.is_on(now))
    }

    /// Begins the next fault that happens once and whose time has come, if this is the connection
    /// that it is to happen to: the last one.
    pub(super) fn begin(&self, connection: u32) -> Option<(usize, &Fault)> {
        let now = self.now();
        let mut state = self.state();
        if connection != state.connections {
            return None;
        }
        let due = |(at, fault): &(usize, &Fault)| {
            !state.begun[*at] && fault.at <= now && now < STORM && fault.what.happens_once()
        };
        let found = self.schedule.faults.iter().enumerate().find(due)?;
        state.begun[found.0] = true;
        Some(found)
    }

    /// When a fault begins, or one that lasts is over, after a moment.
    pub(super) fn next(&self, after: Instant) -> Option<Instant> {
        let moments = self.schedule.faults.iter().flat_map(|fault| [fault.at, fault.until()]);
        moments.map(|ms| self.at(ms)).filter(|moment| *moment > after).min()
    }

    /// Uses a fault that happens to so many messages, if one is due that does this.
    pub(super) fn use_up(&self, does: impl Fn(&What) -> bool) -> Option<&What> {
        let now = self.now();
        let mut state = self.state();
        let due = |(at, fault): &(usize, &Fault)| {
            state.left[*at] > 0 && fault.at <= now && now < STORM && does(&fault.what)
        };
        let (at, fault) = self.schedule.faults.iter().enumerate().find(due)?;
        state.left[at] -= 1;
        state.hit[at] = true;
        Some(&fault.what)
    }

    /// Notes that something happened that is no fault.
    pub(super) fn happened(&self, event: Event) {
        self.state().happened.insert(event as usize);
    }

    /// Notes that a fault did something.
    pub(super) fn hit(&self, at: usize) {
        self.state().hit[at] = true;
    }

    /// Notes a message, so that two courses can be compared.
    pub(super) fn note(&self, what: impl Hash) {
        let now = self.now();
        let mut state = self.state();
        (now, what).hash(&mut state.trace);
        state.messages += 1;
    }

    /// Something that must not be.
    pub(super) fn violation(&self, text: impl Into<String>) {
        let text = format!("at {} ms: {}", self.now(), text.into());
        let mut state = self.state();
        if state.violations.len() < VIOLATIONS && !state.violations.contains(&text) {
            state.violations.push(text);
        }
    }

    /// What the schedule came to.
    pub(super) fn outcome(&self) -> Outcome {
        let state = self.state();
        let hit = self.schedule.faults.iter().zip(&state.hit).filter(|(_, hit)| **hit);
        Outcome {
            violations: state.violations.clone(),
            kinds: hit.map(|(fault, _)| fault.what.kind()).chain(state.happened.iter().copied()).collect(),
            trace: state.trace.finish(),
            messages: state.messages,
        }
    }
}
