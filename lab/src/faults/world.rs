//! What all tasks of a schedule have in common: the store that is there now, the way to it, and
//! the notes of what has happened and what should not have.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::DuplexStream;
use tokio::time::{Instant, sleep, sleep_until};
use xs_client::{Access, Client, Connect, DomId, Error, ErrorCode, Lifecycle, Permissions, Request};
use xs_store::Store;

use super::course::Outcome;
use super::direct::Direct;
use super::fault::{Fault, What};
use super::schedule::{STORM, Schedule, counter, flag, path};
use super::wire::Wire;

/// The guest that the client may act for.
const GUEST: DomId = DomId(7);

/// More violations than these tell nothing new.
const VIOLATIONS: usize = 12;

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
    /// When the last one was over.
    closed: Option<Instant>,
    /// When the daemon that is gone will be back, and whether it lets connections wait until then.
    back: Option<(Instant, bool)>,
    /// Since when the client has heard nothing of a store.
    unheard: Option<Instant>,
    /// The last connection that was lost.
    lost: u32,
    /// For each fault, whether it was begun, and whether it hit something.
    begun: Vec<bool>,
    hit: Vec<bool>,
    /// For each fault that does something so many times, how many times are left.
    left: Vec<u32>,
    /// Whether a fault has ended a connection.
    ended: bool,
    /// Whether the client was dropped.
    over: bool,
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
            back: None,
            unheard: None,
            lost: 0,
            begun: vec![false; count],
            hit: vec![false; count],
            left: left.collect(),
            ended: false,
            over: false,
            counted: (0, 0),
            violations: Vec::new(),
            trace: DefaultHasher::new(),
            messages: 0,
        };
        let world =
            Arc::new(Self { schedule: schedule.clone(), begun: Instant::now(), state: Mutex::new(state) });
        world.clone().furnish().await;
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

    /// Whether the client has a connection that is lost, and has heard of no other.
    pub(super) fn is_lost(&self) -> bool {
        self.state().unheard.is_some()
    }

    pub(super) fn epoch(&self) -> u32 {
        self.state().epoch
    }

    /// Gives a new store what the schedule takes for granted.
    async fn furnish(self: Arc<Self>) {
        let mut direct = self.direct();
        let top = path("/w");
        let mut requests = vec![Request::Mkdir(top.clone())];
        if self.schedule.settings.guest {
            self.state().store.introduce(GUEST);
            let perms = Permissions::owned_by(GUEST, Access::None);
            requests.push(Request::SetPerms { path: top, perms });
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

    /// A new connection of the client, with the schedule's faults in between.
    pub(super) fn dial(self: &Arc<Self>) -> io::Result<DuplexStream> {
        let mut state = self.state();
        if state.back.is_some_and(|(back, _)| Instant::now() < back) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        state.connections += 1;
        state.wires += 1;
        let (near, far) = tokio::io::duplex(self.schedule.settings.pipe);
        let upstream = state.store.connect(self.domid());
        tokio::spawn(Wire::new(self.clone(), state.connections).run(far, upstream));
        Ok(near)
    }

    /// The daemon is gone for a while.
    pub(super) fn restart(self: &Arc<Self>, ms: u64, keep: bool, waits: bool) {
        let mut state = self.state();
        state.back = Some((Instant::now() + Duration::from_millis(ms.max(1)), waits));
        if !keep {
            state.store = Store::new();
            state.epoch += 1;
            state.counted.1 = 0;
            drop(state);
            tokio::spawn(self.clone().furnish());
        }
    }

    /// A connection of the client is over.
    pub(super) fn wire_ended(&self) {
        let mut state = self.state();
        state.wires -= 1;
        state.closed = Some(Instant::now());
    }

    /// When the only connection that there will be was over.
    pub(super) fn closed(&self) -> Option<Instant> {
        self.state().closed.filter(|_| self.schedule.settings.config.reconnect.is_none())
    }

    /// How many connections of the client there are.
    pub(super) fn wires(&self) -> u32 {
        self.state().wires
    }

    /// Notes that a fault ends a connection; to be called before the client can see it.
    pub(super) fn end(&self) {
        let mut state = self.state();
        state.ended = true;
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
        let outage = self.state().unheard.map_or(Duration::ZERO, |since| since.elapsed());
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

    /// When the next fault begins, or one that lasts is over.
    pub(super) fn next(&self) -> Option<Instant> {
        let now = self.now();
        let moments = self.schedule.faults.iter().flat_map(|fault| [fault.at, fault.until()]);
        moments.filter(|ms| *ms > now).min().map(|ms| self.at(ms))
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

    /// Notes that a fault did something.
    pub(super) fn hit(&self, at: usize) {
        self.state().hit[at] = true;
    }

    /// A transaction that counts is begun.
    pub(super) fn counting(&self) {
        self.state().counted.0 += 1;
    }

    /// It has not counted.
    pub(super) fn not_counted(&self) {
        self.state().counted.0 -= 1;
    }

    /// It has, if the store is still that of this epoch.
    pub(super) fn counted(&self, epoch: u32) {
        let mut state = self.state();
        state.counted.1 += u64::from(state.epoch == epoch);
    }

    /// Looks whether the counter is as high as it may be, and no update was lost.
    pub(super) async fn check_counter(&self) {
        let value = self.direct().read(&counter()).await;
        let (most, least) = self.state().counted;
        if !(least..=most).any(|count| value == Some(count_value(count))) {
            self.violation(format!("the counter is {value:?} after {least} to {most} transactions"));
        }
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

    /// Looks whether an error is one that may be: of a kind that something has caused, and about
    /// what was asked.
    pub(super) fn judge(&self, what: &str, error: &Error, about: &[xs_client::Path]) {
        let Self { schedule, .. } = self;
        let config = &schedule.settings.config;
        let fair = match error {
            Error::Store { path, code, .. } => {
                let injected = schedule.faults.iter().any(
                    |fault| matches!(&fault.what, What::Refuse { code: refused, .. } if refused == code),
                );
                let natural = *code == ErrorCode::ENOENT || (schedule.settings.guest && code.is_quota());
                let asked = path.as_ref().is_none_or(|path| about.iter().any(|of| path.is_within(of)));
                asked && (injected || natural)
            }
            Error::Timeout { path, after, .. } => {
                let asked = path.as_ref().is_none_or(|path| about.iter().any(|of| path.is_within(of)));
                asked && *after == config.deadline
            }
            Error::Disconnected { .. } | Error::Protocol(_) => self.has_ended(),
            Error::Contended { attempts, .. } => *attempts == config.retry.attempts,
            _ => false,
        };
        if !fair {
            self.violation(format!("{what} fails without a reason: {error} ({error:?})"));
        }
    }

    /// What the schedule came to.
    pub(super) fn outcome(&self) -> Outcome {
        let state = self.state();
        let hit = self.schedule.faults.iter().zip(&state.hit).filter(|(_, hit)| **hit);
        Outcome {
            violations: state.violations.clone(),
            kinds: hit.map(|(fault, _)| fault.what.kind()).collect(),
            trace: state.trace.finish(),
            messages: state.messages,
        }
    }
}

/// Whether a client's connection has ended for good.
pub(super) fn has_ended(client: &Client) -> bool {
    matches!(client.lifecycle().now(), Lifecycle::Ended(_))
}

/// The client's way to the stores of a world.
pub(super) struct Dialer(Arc<World>);

impl Dialer {
    pub(super) fn new(world: Arc<World>) -> Self {
        Self(world)
    }
}

impl Connect for Dialer {
    type Transport = DuplexStream;

    fn at(&self) -> String {
        "the faults".to_owned()
    }

    async fn connect(&mut self) -> io::Result<DuplexStream> {
        let back = self.0.state().back;
        match back {
            Some((back, true)) => sleep_until(back).await,
            // Nothing takes no time.
            _ => sleep(Duration::from_millis(1)).await,
        }
        self.0.dial()
    }

    fn is_ordered(&self) -> bool {
        !self.0.schedule.faults.iter().any(|fault| fault.what == What::Reorder)
    }
}

/// The value of the counter.
pub(super) fn count_value(count: u64) -> String {
    format!("{}#{count}", counter())
}
