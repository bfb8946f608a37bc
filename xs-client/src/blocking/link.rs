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

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use xs_proto::{HEADER_LEN, Path, Request, TxId};

use super::calls::{Answers, Calls};
use super::stream::{Came, Reader, Stream};
use crate::ask::Ask;
use crate::connection::{Connection, Waiter};
use crate::error::ended;
use crate::inbox::lost;
use crate::log::{debug, trace};
use crate::messages::Messages;
use crate::queue::Queue;
use crate::stats::{Counters, Stats};
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

/// What waits for a place in the window.
#[derive(Debug)]
enum Queued {
    Request(Messages),
    Watch(Arc<Watcher>),
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
    connection: Connection,
    calls: Calls,
    queued: VecDeque<(Queued, Waiter)>,
    /// Not here while a thread reads.
    reader: Option<Box<Reader>>,
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
            calls: Calls::default(),
            queued: VecDeque::new(),
            reader: Some(Box::new(Reader::new(&config))),
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

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for all of these without waiting in between. Their answers are in the same order, and
    /// there are none if they do not all come in time. What was not sent until then never is.
    pub(super) fn call(&self, requests: &[impl Ask], tx: TxId, time: Time) -> Result<Option<Answers>, Error> {
        self.answers(requests.len(), time, |state, call| {
            for (place, request) in requests.iter().enumerate() {
                state.request(request, tx, Waiter::new(call, place), self.window);
            }
        })
    }

    /// Adds a watcher. The answer tells that the store has its watch.
    pub(super) fn watch(&self, watcher: &Arc<Watcher>, time: Time) -> Result<Option<Answers>, Error> {
        self.answers(1, time, |state, call| {
            let waiter = Waiter::new(call, 0);
            if state.has_room(self.window) {
                state.watch(watcher, waiter);
            } else {
                state.queued.push_back((Queued::Watch(watcher.clone()), waiter));
            }
        })
    }

    /// The answers to as many commands as `start` has for a call.
    fn answers(
        &self,
        count: usize,
        time: Time,
        start: impl FnOnce(&mut State, usize),
    ) -> Result<Option<Answers>, Error> {
        let mut state = self.state();
        if let Some(error) = &state.ended {
            return Err(error.clone());
        }
        let call = state.calls.add(count);
        start(&mut state, call);
        self.advance(&mut state);
        let (mut state, all) = self.wait(state, time, |state, waker| state.calls.take(call, waker));
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

    fn with(&self, change: impl FnOnce(&mut Connection)) {
        let mut state = self.state();
        if state.ended.is_none() {
            change(&mut state.connection);
            self.advance(&mut state);
        }
    }

    /// Waits for changes of a queue, and takes them; `None` if there are none in time. `watched`: what a change of the
    /// watched path itself is told as.
    pub(super) fn changes(
        &self,
        time: Time,
        queue: &Queue,
        watched: &Path,
    ) -> Result<Option<Changes>, Error> {
        let changes = self.wait(self.state(), time, |_, waker| match waker {
            None => queue.take(watched),
            Some(waker) => match queue.poll(watched, &Context::from_waker(waker)) {
                Poll::Ready(changes) => Some(changes),
                Poll::Pending => None,
            },
        });
        changes.1?.transpose()
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
        mut reader: Box<Reader>,
        left: Duration,
    ) -> MutexGuard<'a, State> {
        // One that takes nothing more is only heard to its end.
        let left = if state.unsendable.is_some() { Duration::ZERO } else { left };
        let or_room = !state.connection.output().is_empty();
        let sure = state.sure().saturating_sub(reader.inbox.bytes().len());
        let replies = if or_room { 0 } else { state.connection.in_flight() };
        drop(state);
        let came = loop {
            let looks = reader.spin.goes_on(replies, Instant::now);
            let left = if looks { Duration::ZERO } else { left };
            match self.stream.receive(&mut reader, left, or_room, sure) {
                Ok(Came::Nothing) if looks => {}
                came => break came,
            }
        };
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
            if let Some(reader) = &mut state.reader {
                reader.spin.sent(Instant::now);
            }
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
            state.calls.finish(waiter, Err(error.clone()));
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
        let is_sure = in_flight > 1 && self.followers.is_empty() && self.calls.is_one_of(in_flight);
        if is_sure { in_flight * HEADER_LEN } else { 0 }
    }

    /// Whether what is asked for now is sent at once.
    fn has_room(&self, window: usize) -> bool {
        self.queued.is_empty() && self.connection.taken() < window
    }

    fn send_queued(&mut self, window: usize) {
        while self.connection.taken() < window
            && let Some((queued, waiter)) = self.queued.pop_front()
        {
            match queued {
                Queued::Request(mut message) => {
                    if let Some((op, message)) = message.next() {
                        self.connection.forward(op, message, waiter);
                    }
                }
                Queued::Watch(watcher) => self.watch(&watcher, waiter),
            }
        }
    }

    fn request(&mut self, request: &impl Ask, tx: TxId, waiter: Waiter, window: usize) {
        trace!(op = %request.op(), path = request.path().map(tracing::field::display), tx = tx.0, "request");
        if self.has_room(window) {
            return self.connection.call(request, tx, waiter);
        }
        match Messages::one(request, tx) {
            Ok(message) => self.queued.push_back((Queued::Request(message), waiter)),
            Err(error) => _ = self.calls.finish(waiter, Err(error.into())),
        }
    }

    fn watch(&mut self, watcher: &Arc<Watcher>, waiter: Waiter) {
        trace!(path = %watcher.path, depth = watcher.depth(), "watch");
        self.connection.watch(watcher, waiter);
    }

    /// Takes what has come: how many bytes, or why the connection is at its end.
    fn receive(&mut self, came: io::Result<Came>, reader: &mut Reader) -> Result<usize, Error> {
        match came {
            Ok(Came::Bytes(count)) => {
                reader.spin.received(Instant::now);
                while let Some(message) = reader.inbox.next()? {
                    let mut unknown = None;
                    self.connection.receive(message, |waiter, answer| {
                        unknown = self.calls.finish(waiter, answer);
                    })?;
                    self.abort(unknown);
                }
                Ok(count)
            }
            Ok(Came::Nothing) => self.unsendable.clone().map_or(Ok(0), Err),
            Ok(Came::End) => Err(reader.inbox.end()),
            Err(error) => Err(lost(&error)),
        }
    }

    /// Nobody waits for a call any more: what is still queued is not sent.
    fn leave(&mut self, call: usize) {
        let queued = self.queued.len();
        self.queued.retain(|(_, waiter)| waiter.call() != call);
        self.calls.leave(call, queued - self.queued.len());
    }

    fn deliver(&mut self) {
        while let Some((waiter, answer)) = self.connection.completed() {
            let unknown = self.calls.finish(waiter, answer);
            self.abort(unknown);
        }
    }

    /// Aborts a transaction that nobody knows of.
    fn abort(&mut self, unknown: Option<TxId>) {
        if let Some(id) = unknown {
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
