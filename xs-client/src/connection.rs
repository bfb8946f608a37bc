//! A connection as a plain value: no socket, no clock, no runtime.
//!
//! It is told what callers want ([`Connection::call`], [`Connection::watch`],
//! [`Connection::unwatch`]) and what the store sent ([`Connection::receive`]). It says what to
//! send ([`Connection::output`]) and whom else to tell what ([`Connection::completed`]). Ask for both
//! after every call. Watchers are told at once.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rustc_hash::FxHashMap;
use xs_proto::{EncodeError, ErrorCode, Message, Op, Path, Reply, Request, Token, TxId, WatchEvent};

use crate::Error;
use crate::ask::Ask;
use crate::slots::Slots;
use crate::typed::{Answer, Answered};
use crate::watcher::Watcher;
use crate::watches::{Added, Todo, Told, Watches, token};

/// Who waits for an answer: one of the requests of a call. Small and copied, for it is moved with
/// every request and every reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Waiter {
    call: u32,
    place: u32,
}

impl Waiter {
    pub(crate) fn new(call: usize, place: usize) -> Self {
        Self { call: call as u32, place: place as u32 }
    }

    /// The number of the call.
    pub(crate) fn call(self) -> usize {
        self.call as usize
    }

    /// Which of its requests.
    pub(crate) fn place(self) -> usize {
        self.place as usize
    }
}

#[derive(Debug)]
enum Slot {
    Call {
        op: Op,
        waiter: Waiter,
    },
    /// Boxed, so that the others are small.
    Watch(Box<Registration>),
    /// Housekeeping (UNWATCH, abort) whose outcome changes nothing.
    Ignored {
        op: Op,
        has_time: bool,
    },
}

/// A watch that the store does not have yet.
#[derive(Debug)]
struct Registration {
    token: u32,
    path: Path,
    /// Whether a depth was asked for.
    depth: bool,
    waiters: Vec<Waiter>,
    has_time: bool,
}

/// What callers wait for, or have left, that is not sent yet.
#[derive(Debug)]
enum InLine {
    Unwatch(Path, Token),
    /// Behind what others have dropped, for which there may be no room without that.
    Watch(u32, Vec<Waiter>),
}

impl Slot {
    fn has_time(&self) -> bool {
        match self {
            Self::Call { .. } => false,
            Self::Watch(registration) => registration.has_time,
            Self::Ignored { has_time, .. } => *has_time,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Connection {
    slots: Slots<Slot>,
    /// The WATCH requests that are under way, by token.
    registering: FxHashMap<u32, u32>,
    sent: usize,
    /// Of the requests under way, those that [`Self::fill`] has sent.
    unhurried: usize,
    watches: Watches,
    line: VecDeque<InLine>,
    /// Who waits for a watch without a request of his own under way: in line, or with others.
    waiting: usize,
    /// The server knows no depth of watches; what is too deep is left out here.
    lacks_depth: bool,
    completed: VecDeque<(Waiter, Answered)>,
    output: BytesMut,
}

impl Connection {
    /// A connection whose watchers keep so many distinct paths.
    pub(crate) fn new(watch_backlog: usize) -> Self {
        Self {
            slots: Slots::default(),
            registering: FxHashMap::default(),
            sent: 0,
            unhurried: 0,
            watches: Watches::new(watch_backlog),
            line: VecDeque::new(),
            waiting: 0,
            lacks_depth: false,
            completed: VecDeque::new(),
            output: BytesMut::new(),
        }
    }

    /// Requests that wait for their reply.
    pub(crate) fn in_flight(&self) -> usize {
        self.slots.len()
    }

    /// Places of the window that are taken: those, and who waits for a watch behind or with others. A
    /// store that says nothing would otherwise be waited for by ever more of them.
    pub(crate) fn taken(&self) -> usize {
        self.slots.len() + self.waiting
    }

    /// Requests sent so far.
    pub(crate) fn sent(&self) -> usize {
        self.sent
    }

    /// Watches on the server, or on the way there.
    pub(crate) fn watches(&self) -> usize {
        self.watches.len()
    }

    /// What watchers were told so far.
    pub(crate) fn told(&self) -> &Told {
        &self.watches.told
    }

    /// Whether nothing is under way and nobody watches.
    pub(crate) fn is_idle(&self) -> bool {
        self.slots.is_empty() && self.line.is_empty() && self.watches.is_idle() && self.output.is_empty()
    }

    /// Bytes to send; the driver takes from the front what it has sent.
    pub(crate) fn output(&mut self) -> &mut BytesMut {
        &mut self.output
    }

    pub(crate) fn completed(&mut self) -> Option<(Waiter, Answered)> {
        self.completed.pop_front()
    }

    fn send(&mut self, request: &Request, tx: TxId, slot: Slot) -> Result<u32, (EncodeError, Slot)> {
        let id = self.slots.next();
        if let Err(error) = request.encode(id, tx, &mut self.output) {
            return Err((error, slot));
        }
        self.under_way(id, slot);
        Ok(id)
    }

    #[inline(always)]
    fn under_way(&mut self, id: u32, slot: Slot) {
        self.sent += 1;
        self.unhurried += usize::from(slot.has_time());
        self.slots.insert(id, slot);
    }

    /// Sends a request; its reply, or the reason why it cannot be sent, goes to `waiter`.
    pub(crate) fn call(&mut self, request: &impl Ask, tx: TxId, waiter: Waiter) {
        let id = self.slots.next();
        match request.encode(id, tx, &mut self.output) {
            Ok(()) => self.under_way(id, Slot::Call { op: request.op(), waiter }),
            Err(error) => self.completed.push_back((waiter, Err(error.into()))),
        }
    }

    /// The same for a request that is a message already, but for its number.
    #[inline(always)]
    pub(crate) fn forward(&mut self, op: Op, message: &[u8], waiter: Waiter) {
        let id = self.slots.next();
        let start = self.output.len();
        self.output.extend_from_slice(message);
        // Where a header has it.
        self.output[start + 4..start + 8].copy_from_slice(&id.to_le_bytes());
        self.under_way(id, Slot::Call { op, waiter });
    }

    /// Sends a request whose outcome nobody waits for.
    pub(crate) fn tell(&mut self, request: &Request, tx: TxId) {
        self.ignore(request, tx, false);
    }

    fn ignore(&mut self, request: &Request, tx: TxId, has_time: bool) {
        // What is told so is built from requests that went through before, so it encodes.
        let sent = self.send(request, tx, Slot::Ignored { op: request.op(), has_time });
        debug_assert!(sent.is_ok(), "{request:?}");
    }

    /// Sends what has time (watches that were dropped, and then those registered again, or replaced
    /// by one of an ancestor), as far as a quarter of the window of unanswered requests is enough
    /// for it.
    pub(crate) fn fill(&mut self, window: usize) {
        while self.slots.len() < window && self.unhurried < (window / 4).max(1) {
            match self.line.pop_front() {
                Some(InLine::Watch(token, waiters)) => {
                    self.waiting -= waiters.len();
                    self.register(token, waiters);
                    continue;
                }
                Some(InLine::Unwatch(path, token)) => {
                    self.ignore(&Request::Unwatch { path, token }, TxId::NONE, true);
                    continue;
                }
                None => {}
            }
            let Some(todo) = self.watches.todo() else { return };
            match todo {
                // Who joined it meanwhile has not waited for its turn.
                Todo::Watch(token) if self.registering.contains_key(&token) => {}
                Todo::Watch(token) => self.register(token, Vec::new()),
                Todo::Unwatch(path, token) => {
                    self.ignore(&Request::Unwatch { path, token }, TxId::NONE, true);
                }
            }
        }
    }

    /// Sends the WATCH of a token, if it is wanted still.
    fn register(&mut self, number: u32, waiters: Vec<Waiter>) {
        let Some((path, depth)) = self.watches.wanted(number) else {
            // Its watchers are gone, and so is who waits; but its call is to end.
            self.completed.extend(waiters.into_iter().map(|waiter| (waiter, Ok(Answer::DONE))));
            return;
        };
        let (path, depth) = (path.clone(), depth.filter(|_| !self.lacks_depth));
        let request = Request::Watch { path: path.clone(), token: token(number), depth };
        let (has_time, with_others) = (waiters.is_empty(), waiters.len().saturating_sub(1));
        let registration = Registration { token: number, path, depth: depth.is_some(), waiters, has_time };
        let slot = Slot::Watch(Box::new(registration));
        match self.send(&request, TxId::NONE, slot) {
            Ok(id) => {
                self.waiting += with_others;
                self.registering.insert(number, id);
            }
            Err((error, slot)) => {
                let refused = self.refuse(number, error.into());
                self.complete(slot, refused);
            }
        }
    }

    /// The store does not take a watch; what comes of that for those who wait for it.
    fn refuse(&mut self, token: u32, error: Error) -> Answered {
        let Some(unserved) = self.watches.refuse(token) else { return Ok(Answer::DONE) };
        unserved.iter().for_each(|watcher| watcher.close(error.clone()));
        Err(error)
    }

    /// Adds a watcher; `waiter` learns when the store has the watch.
    pub(crate) fn watch(&mut self, watcher: &Arc<Watcher>, waiter: Waiter) {
        match self.watches.add(watcher) {
            Added::Fire => {
                self.completed.push_back((waiter, Ok(Answer::DONE)));
                self.watches.fire(watcher);
            }
            Added::Wait(number) => {
                let slot = self.registering.get(&number).and_then(|id| self.slots.get_mut(*id));
                match slot {
                    Some(Slot::Watch(registration)) => {
                        self.waiting += usize::from(!registration.waiters.is_empty());
                        registration.waiters.push(waiter);
                    }
                    _ => match self.in_line(number).map(|at| &mut self.line[at]) {
                        Some(InLine::Watch(_, waiters)) => {
                            self.waiting += 1;
                            waiters.push(waiter);
                        }
                        // It has its turn later, registered again or in the place of an ancestor's.
                        _ => self.register(number, vec![waiter]),
                    },
                }
            }
            Added::Register(number) if self.line.is_empty() => self.register(number, vec![waiter]),
            Added::Register(number) => {
                self.waiting += 1;
                self.line.push_back(InLine::Watch(number, vec![waiter]));
            }
        }
    }

    /// Where a watch waits in line.
    fn in_line(&self, token: u32) -> Option<usize> {
        self.line.iter().rposition(|in_line| matches!(in_line, InLine::Watch(number, _) if *number == token))
    }

    /// Removes a watcher, and the watch on the server with the last one that it serves, in its turn.
    pub(crate) fn unwatch(&mut self, watcher: &Arc<Watcher>) {
        let number = watcher.token();
        let was_sent = self.registering.contains_key(&number) || self.watches.wanted(number).is_none();
        let Some((path, token)) = self.watches.remove(watcher) else { return };
        if was_sent {
            self.line.push_back(InLine::Unwatch(path, token));
        } else if let Some(at) = self.in_line(number)
            && let Some(InLine::Watch(_, waiters)) = self.line.remove(at)
        {
            self.waiting -= waiters.len();
            self.completed.extend(waiters.into_iter().map(|waiter| (waiter, Ok(Answer::DONE))));
        }
    }

    fn complete(&mut self, slot: Slot, result: Answered) {
        let waiters = match slot {
            Slot::Call { waiter, .. } => {
                self.completed.push_back((waiter, result));
                return;
            }
            Slot::Watch(registration) => registration.waiters,
            Slot::Ignored { .. } => return,
        };
        self.completed.extend(waiters.into_iter().map(|waiter| (waiter, result.clone())));
    }

    /// Takes a message of the store. The answer to a call is handed over, and not left for
    /// [`Self::completed`]. After an error the stream means nothing any more.
    pub(crate) fn receive(
        &mut self,
        message: Message,
        hand_over: impl FnOnce(Waiter, Answered),
    ) -> Result<(), Error> {
        let Message { op: answered, req_id, payload, .. } = message;
        if answered == Op::WATCH_EVENT {
            let event = WatchEvent::decode(payload)?;
            self.watches.event(&event.token, &event.path);
            return Ok(());
        }
        let Some(slot) = self.slots.remove(req_id) else {
            return Err(Error::Stray { op: answered, req_id, asked: None });
        };
        self.unhurried -= usize::from(slot.has_time());
        let asked = match &slot {
            Slot::Call { op, .. } | Slot::Ignored { op, .. } => *op,
            Slot::Watch(_) => Op::WATCH,
        };
        if let Err(error) = check(asked, answered, req_id, &payload) {
            self.complete(slot, Err(error.clone()));
            return Err(error);
        }
        let answer = Answer { asked, answered, payload };
        match slot {
            Slot::Call { waiter, .. } => hand_over(waiter, Ok(answer)),
            Slot::Watch(registration) => self.registered(*registration, answer),
            Slot::Ignored { .. } => {}
        }
        Ok(())
    }

    fn registered(&mut self, registration: Registration, answer: Answer) {
        let Registration { token, depth, waiters, path, .. } = registration;
        self.registering.remove(&token);
        self.waiting -= waiters.len().saturating_sub(1);
        let result = match answer.outcome(Some(&path)) {
            Ok(_) => {
                self.watches.confirm(token);
                Ok(Answer::DONE)
            }
            // To servers before Xen 4.22 a depth is one string too many.
            Err(Error::Store { code: ErrorCode::EINVAL, .. }) if depth => {
                self.lacks_depth = true;
                return self.register(token, waiters);
            }
            Err(error) => self.refuse(token, error),
        };
        self.completed.extend(waiters.into_iter().map(|waiter| (waiter, result.clone())));
    }

    /// The connection is lost: everything under way ends with `error`. Watchers stay, for another
    /// connection.
    pub(crate) fn lose(&mut self, error: &Error) {
        for slot in self.slots.drain() {
            self.complete(slot, Err(error.clone()));
        }
        for in_line in std::mem::take(&mut self.line) {
            if let InLine::Watch(_, waiters) = in_line {
                self.completed.extend(waiters.into_iter().map(|waiter| (waiter, Err(error.clone()))));
            }
        }
        self.unhurried = 0;
        self.waiting = 0;
        self.registering.clear();
        self.output.clear();
        self.watches.lose();
    }

    /// There is a connection, or another one: everything is to be watched again.
    ///
    /// Many watches become one of an ancestor only where the store's replies and events come in
    /// order: what the old ones have told must not be overtaken by the reply to the new one.
    pub(crate) fn restore(&mut self, ordered: bool) {
        self.lacks_depth = false;
        self.watches.may_share(ordered);
        self.watches.restore();
    }

    /// Whether the store has answered everything that is watched again.
    pub(crate) fn is_restored(&self) -> bool {
        self.watches.is_restored()
    }

    /// The connection is gone for good, and watchers learn that too.
    pub(crate) fn close(&mut self, error: &Error) {
        self.lose(error);
        self.watches.watchers().for_each(|watcher| watcher.close(error.clone()));
    }
}

/// Whether a reply can be one to what was asked. What its payload says is for who asked; only a
/// transaction without a number would stay open on the server, until the connection ends.
fn check(asked: Op, answered: Op, req_id: u32, payload: &Bytes) -> Result<(), Error> {
    if answered != asked && answered != Op::ERROR {
        return Err(Error::Stray { op: answered, req_id, asked: Some(asked) });
    }
    if answered == Op::TRANSACTION_START {
        Reply::decode(asked, answered, payload.clone())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
