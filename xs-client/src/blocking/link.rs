//! The connection as its callers share it: one of those who wait reads for all.
//!
//! All state is behind one lock. A thread sends while it holds the lock, and never waits to do so:
//! what the socket does not take stays in the connection until there is room. Then it waits. If
//! nobody reads, it takes the [`Reader`] and *leads*: it gives up the lock, receives, and with the
//! lock again hands every reply to the call that it belongs to. Otherwise it *follows*, and sleeps
//! until what it waits for was handed over, or the lead is free. Who leaves a free lead behind wakes
//! one that follows. A single thread never sleeps otherwise than in the receive, and makes two
//! system calls for a request.
//!
//! Nothing reads while nobody waits.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use slab::Slab;
use smallvec::SmallVec;
use tokio_util::codec::Decoder;
use tracing::{debug, trace};
use xs_proto::{HEADER_LEN, MessageCodec, Reply, Request, StreamError, TxId};

use super::stream::{Came, Reader, Stream};
use crate::connection::Connection;
use crate::driver::lost;
use crate::handle::ended;
use crate::stats::{Counters, Stats};
use crate::typed::Outcome;
use crate::watcher::Watcher;
use crate::{Changes, Config, Error};

/// How long a call may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Time {
    begun: Instant,
    within: Duration,
}

impl Time {
    /// So long from now on.
    pub(super) fn of(within: Duration) -> Self {
        Self { begun: Instant::now(), within }
    }

    /// What is left of it.
    pub(super) fn left(&self) -> Option<Duration> {
        Some(self.within.saturating_sub(self.begun.elapsed())).filter(|left| !left.is_zero())
    }
}

/// What a call asks of the connection.
#[derive(Debug)]
pub(super) enum Command<'a> {
    Request(Cow<'a, Request>, TxId),
    Watch(Arc<Watcher>),
}

impl Command<'_> {
    fn into_owned(self) -> Command<'static> {
        match self {
            Self::Request(request, tx) => Command::Request(Cow::Owned(request.into_owned()), tx),
            Self::Watch(watcher) => Command::Watch(watcher),
        }
    }
}

/// What has come of each of a call's commands. Most calls have one.
pub(super) type Outcomes = SmallVec<[Outcome; 1]>;

/// Some commands whose outcomes a thread waits for.
#[derive(Debug)]
struct Call {
    /// Something else stands there for those that are missing.
    outcomes: Outcomes,
    missing: usize,
    /// Nobody waits any more.
    left: bool,
    waker: Option<Waker>,
}

/// One of a call's commands.
#[derive(Clone, Copy, Debug)]
struct Waiter {
    call: usize,
    place: usize,
}

/// What a thread sleeps on.
#[derive(Debug, Default)]
struct Bell(Condvar);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.notify_one();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.notify_one();
    }
}

#[derive(Debug)]
struct State {
    connection: Connection<Waiter>,
    codec: MessageCodec,
    /// Those that miss outcomes, or whose outcomes were not taken.
    calls: Slab<Call>,
    /// What waits for a place in the window.
    queued: VecDeque<(Command<'static>, Waiter)>,
    /// Not here while a thread reads.
    reader: Option<Reader>,
    /// Those who wait while another thread reads.
    followers: Vec<Waker>,
    bytes_sent: usize,
    bytes_received: usize,
    /// Why nothing can be sent any more. What the store sent before that still counts.
    unsendable: Option<Error>,
    ended: Option<Error>,
}

/// What all handles of a connection share.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) config: Config,
    pub(super) counters: Counters,
    pub(super) turns: Turns,
    stream: Stream,
    window: usize,
    state: Mutex<State>,
}

impl Link {
    pub(super) fn new(stream: Stream, config: Config) -> Self {
        let mut connection = Connection::new(config.watch_backlog);
        connection.restore(true);
        let state = State {
            connection,
            codec: MessageCodec::with_limit(config.reply_limit),
            calls: Slab::new(),
            queued: VecDeque::new(),
            reader: Some(Reader::new()),
            followers: Vec::new(),
            bytes_sent: 0,
            bytes_received: 0,
            unsendable: None,
            ended: None,
        };
        Self {
            counters: Counters::default(),
            turns: Turns { free: Mutex::new(config.transactions.max(1)), freed: Condvar::new() },
            window: config.window.max(1),
            stream,
            config,
            state: Mutex::new(state),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does some commands without waiting in between. Their outcomes are in the same order, and
    /// there are none if they do not all come in time. What was not sent until then never is.
    pub(super) fn call<'a>(
        &self,
        commands: impl ExactSizeIterator<Item = Command<'a>>,
        time: Time,
    ) -> Result<Option<Outcomes>, Error> {
        let mut state = self.state();
        if let Some(error) = &state.ended {
            return Err(error.clone());
        }
        let missing = commands.len();
        let outcomes = (0..missing).map(|_| Ok(Reply::Ok)).collect();
        let call = state.calls.insert(Call { outcomes, missing, left: false, waker: None });
        for (place, command) in commands.enumerate() {
            let waiter = Waiter { call, place };
            if state.queued.is_empty() && state.connection.in_flight() < self.window {
                state.start(&command, waiter);
            } else {
                state.queued.push_back((command.into_owned(), waiter));
            }
        }
        self.advance(&mut state);
        let (mut state, all) = self.wait(state, time, |state, waker| state.take(call, waker));
        if let Ok(None) = all {
            state.leave(call);
        }
        all
    }

    /// Sends a request whose outcome nobody waits for.
    pub(super) fn tell(&self, request: &Request, tx: TxId) {
        self.with(|connection| connection.tell(request, tx));
    }

    pub(super) fn unwatch(&self, watcher: &Arc<Watcher>) {
        self.with(|connection| connection.unwatch(watcher));
    }

    fn with(&self, change: impl FnOnce(&mut Connection<Waiter>)) {
        let mut state = self.state();
        if state.ended.is_none() {
            change(&mut state.connection);
            self.advance(&mut state);
        }
    }

    /// Waits for changes, which `take` looks for; given a waker, it has that called when there are
    /// some. `None` if there are none in time.
    pub(super) fn changes(
        &self,
        time: Time,
        mut take: impl FnMut(Option<&Waker>) -> Option<Result<Changes, Error>>,
    ) -> Result<Option<Changes>, Error> {
        self.wait(self.state(), time, |_, waker| take(waker)).1?.transpose()
    }

    pub(super) fn stats(&self) -> Stats {
        let state = self.state();
        self.counters.count(&state.connection);
        self.counters.bytes_sent.set(state.bytes_sent);
        self.counters.bytes_received.set(state.bytes_received);
        self.counters.stats()
    }

    /// Waits until `ready` gives something; `None` if that takes too long. Given a waker, `ready`
    /// has that called when there is something. An error says that the connection has ended.
    fn wait<'a, T>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        time: Time,
        mut ready: impl FnMut(&mut State, Option<&Waker>) -> Option<T>,
    ) -> (MutexGuard<'a, State>, Result<Option<T>, Error>) {
        let mut bell: Option<(Arc<Bell>, Waker)> = None;
        // One who has no time at all takes what has come already.
        let mut waited = false;
        let outcome = loop {
            if let Some(ready) = ready(&mut state, None) {
                break Ok(Some(ready));
            }
            if let Some(error) = &state.ended {
                break Err(error.clone());
            }
            let left = if waited { time.left() } else { Some(time.within) };
            let Some(left) = left else { break Ok(None) };
            waited = true;
            if let Some(reader) = state.reader.take() {
                state = self.lead(state, reader, left);
            } else {
                let (bell, waker) = bell.get_or_insert_with(|| {
                    let bell = Arc::<Bell>::default();
                    (bell.clone(), bell.into())
                });
                if let Some(ready) = ready(&mut state, Some(waker)) {
                    break Ok(Some(ready));
                }
                state.followers.push(waker.clone());
                state = bell.0.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
                state.followers.retain(|follower| !follower.will_wake(waker));
            }
        };
        if state.reader.is_some()
            && let Some(next) = state.followers.first()
        {
            next.wake_by_ref();
        }
        (state, outcome)
    }

    /// Receives once, for all.
    fn lead<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        mut reader: Reader,
        left: Duration,
    ) -> MutexGuard<'a, State> {
        // One that takes nothing more is only heard to its end.
        let left = if state.unsendable.is_some() { Duration::ZERO } else { left };
        let or_room = !state.connection.output().is_empty();
        let sure = state.sure().saturating_sub(reader.input.len());
        drop(state);
        let came = self.stream.receive(&mut reader, left, or_room, sure);
        let mut state = self.state();
        let received = state.receive(came, &mut reader);
        state.reader = Some(reader);
        match received {
            Ok(count) => {
                state.bytes_received += count;
                // By halves, so that what waits is sent many at a time.
                if state.connection.in_flight() <= self.window / 2 {
                    state.send_queued(self.window);
                }
                self.advance(&mut state);
            }
            Err(error) => self.end(&mut state, error),
        }
        state
    }

    /// Sends what is to be sent, and hands over what has come.
    fn advance(&self, state: &mut State) {
        state.connection.fill(self.window);
        // Before sending, for what comes too late may have to be undone.
        state.deliver();
        let unsent = state.connection.output().len();
        if unsent == 0 {
            return;
        }
        if state.unsendable.is_none() {
            let sent = self.stream.send(state.connection.output());
            state.bytes_sent += unsent - state.connection.output().len();
            state.unsendable = sent.err().map(|error| ended(&error.to_string()));
        }
        if state.unsendable.is_some() {
            state.connection.output().clear();
        }
    }

    fn end(&self, state: &mut State, error: Error) {
        debug!(%error, "connection to the store ended");
        self.stream.close();
        state.connection.close(&error);
        state.deliver();
        for (_, waiter) in std::mem::take(&mut state.queued) {
            state.finish(waiter, Err(error.clone()));
        }
        state.ended = Some(error);
        state.followers.iter().for_each(Waker::wake_by_ref);
    }
}

impl State {
    /// How many bytes of replies will come, if they are all of one call that is waited for, and
    /// nobody else waits for anything before them.
    fn sure(&self) -> usize {
        let in_flight = self.connection.in_flight();
        if in_flight < 2 || self.calls.len() != 1 || !self.followers.is_empty() {
            return 0;
        }
        let are_its_own = self.calls.iter().all(|(_, call)| call.missing == in_flight && !call.left);
        if are_its_own { in_flight * HEADER_LEN } else { 0 }
    }

    fn send_queued(&mut self, window: usize) {
        while self.connection.in_flight() < window
            && let Some((command, waiter)) = self.queued.pop_front()
        {
            self.start(&command, waiter);
        }
    }

    fn start(&mut self, command: &Command<'_>, waiter: Waiter) {
        match command {
            Command::Request(request, tx) => {
                trace!(op = %request.op(), path = request.path().map(tracing::field::display), tx = tx.0, "request");
                self.connection.call(request, *tx, waiter);
            }
            Command::Watch(watcher) => {
                trace!(path = %watcher.path, depth = watcher.depth(), "watch");
                self.connection.watch(watcher, waiter);
            }
        }
    }

    /// Takes what has come: how many bytes, or why the connection is at its end.
    fn receive(&mut self, came: io::Result<Came>, reader: &mut Reader) -> Result<usize, Error> {
        match came {
            Ok(Came::Bytes(count)) => {
                while let Some(message) =
                    self.codec.decode(&mut reader.input).map_err(|error| lost(&error))?
                {
                    if let Some((waiter, outcome)) = self.connection.receive(message)? {
                        self.hand_over(waiter, outcome);
                    }
                }
                Ok(count)
            }
            Ok(Came::Nothing) => self.unsendable.clone().map_or(Ok(0), Err),
            Ok(Came::End) => Err(match self.codec.decode_eof(&mut reader.input) {
                Err(error) => lost(&error),
                Ok(_) => ended("the store closed it"),
            }),
            Err(error) => Err(lost(&StreamError::Io(error))),
        }
    }

    /// The outcomes of a call, once there are all.
    fn take(&mut self, key: usize, waker: Option<&Waker>) -> Option<Outcomes> {
        let call = self.calls.get_mut(key)?;
        if call.missing > 0 {
            call.waker = waker.cloned();
            return None;
        }
        Some(self.calls.remove(key).outcomes)
    }

    /// Nobody waits for a call any more. What was sent keeps its place until it is answered.
    fn leave(&mut self, key: usize) {
        let queued = self.queued.len();
        self.queued.retain(|(_, waiter)| waiter.call != key);
        let Some(call) = self.calls.get_mut(key) else { return };
        call.missing -= queued - self.queued.len();
        call.left = true;
        if call.missing == 0 {
            self.calls.remove(key);
        }
    }

    /// Hands over an outcome, or gives it back if nobody waits for it.
    fn finish(&mut self, waiter: Waiter, outcome: Outcome) -> Option<Outcome> {
        let Some(call) = self.calls.get_mut(waiter.call) else { return Some(outcome) };
        call.missing -= 1;
        if call.left {
            if call.missing == 0 {
                self.calls.remove(waiter.call);
            }
            return Some(outcome);
        }
        call.outcomes[waiter.place] = outcome;
        if call.missing == 0
            && let Some(waker) = call.waker.take()
        {
            waker.wake();
        }
        None
    }

    fn deliver(&mut self) {
        while let Some((waiter, outcome)) = self.connection.completed() {
            self.hand_over(waiter, outcome);
        }
    }

    fn hand_over(&mut self, waiter: Waiter, outcome: Outcome) {
        if let Some(Ok(Reply::Transaction(id))) = self.finish(waiter, outcome) {
            // Nobody knows of it.
            self.connection.tell(&Request::TransactionEnd { commit: false }, id);
        }
    }
}

/// As many as there may be transactions at one time.
#[derive(Debug)]
pub(super) struct Turns {
    free: Mutex<usize>,
    freed: Condvar,
}

/// The right to have a transaction. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct Turn<'a>(&'a Turns);

impl Turns {
    /// Waits for a turn.
    pub(super) fn take(&self, within: Duration) -> Option<Turn<'_>> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.freed.wait_timeout_while(free, within, |free| *free == 0);
        let (mut free, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() {
            return None;
        }
        *free -= 1;
        Some(Turn(self))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.freed.notify_one();
    }
}
