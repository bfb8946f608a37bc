//! What the store does about pressure, and about conflicts: it counts the events that a request causes, says
//! whose requests are read, and wakes who may go on.

use std::collections::BTreeSet;

use bytes::BytesMut;

use crate::conflict::Conflicts;
use crate::connection::{ConnId, REPLIES_MAX};
use crate::outbox::Event;
use crate::pressure::{Pressure, Source};
use crate::quota::Quota;
use crate::store::Core;

/// Who waits, and for what.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    pub(crate) pressure: Pressure,
    pub(crate) conflicts: Conflicts,
    /// The connections that were not read for that.
    connections: BTreeSet<ConnId>,
    /// Whose request is carried out, and what it has caused so far. Nobody has caused what happens
    /// to domains.
    source: Option<Source>,
    /// As which request it is counted.
    request: u64,
    holders: usize,
    /// For one of them: the most.
    bytes: usize,
}

impl Waiting {
    /// A request begins.
    pub(crate) fn begin(&mut self, request: u64, source: Source) {
        self.source = Some(source);
        self.request = self.pressure.counts_as(request, source);
        (self.holders, self.bytes) = (0, 0);
    }

    /// Forgets a connection that has ended.
    pub(crate) fn forget(&mut self, id: ConnId) {
        self.connections.remove(&id);
        self.pressure.forget(Source::Privileged(id));
    }
}

impl Core {
    /// Queues an event for a connection; it counts for whose request is carried out.
    pub(crate) fn send(&mut self, id: ConnId, event: &Event<'_>) {
        let Some(connection) = self.connections.get_mut(&id).filter(|connection| !connection.closed) else {
            return;
        };
        let most = connection.output_max(self.waiting.source);
        let bytes = connection.output.event(event, most);
        self.woken.insert(id);
        let counts = match self.waiting.source {
            Some(Source::Guest(_)) => true,
            Some(Source::Privileged(_)) => connection.privileged,
            None => false,
        };
        if counts && bytes > 0 {
            let (new, bytes) = connection.output.owe(self.waiting.request, bytes);
            self.waiting.holders += usize::from(new);
            self.waiting.bytes = self.waiting.bytes.max(bytes);
        }
    }

    /// A request has been carried out; its reply comes next. Returns whether the reply counts with
    /// the events.
    pub(crate) fn finish(&mut self, id: ConnId) -> bool {
        let Waiting { request, mut holders, bytes, .. } = self.waiting;
        let Some(source) = self.waiting.source.take().filter(|_| bytes > 0) else { return false };
        let with_reply = matches!(source, Source::Guest(_));
        if with_reply {
            let Some(connection) = self.connections.get_mut(&id) else { return false };
            holders += usize::from(connection.output.owe(request, 0).0);
        }
        self.waiting.pressure.caused(request, source, holders, bytes);
        with_reply
    }

    /// Whether the next request of a connection is read: not while too much of what it gets is
    /// unsent, or of what it has caused for others.
    pub(crate) fn may_ask(&mut self, id: ConnId) -> bool {
        let Some(connection) = self.connections.get(&id) else { return false };
        if connection.output.len() > REPLIES_MAX {
            return false;
        }
        let (source, replies) = (connection.source(id), connection.output.replies());
        let limit = match source {
            Source::Privileged(_) => 0,
            Source::Guest(domid) => self.domains.limit(domid, Quota::Outstanding) as usize,
        };
        let pressure = &self.waiting.pressure;
        let held = matches!(source, Source::Guest(domid) if self.waiting.conflicts.holds(domid));
        let free =
            !held && (limit == 0 || replies + pressure.requests(source) < limit) && !pressure.is_over(source);
        if !free {
            self.waiting.connections.insert(id);
        }
        free
    }

    /// What a connection's driver has taken is sent.
    pub(crate) fn output_sent(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(&id) {
            let paid = connection.output.sent();
            self.pay(paid);
        }
    }

    /// Takes what waits to be sent, into a buffer that is empty: what was in it is sent.
    pub(crate) fn take_output(&mut self, id: ConnId, into: &mut BytesMut) {
        self.output_sent(id);
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.output.take(into);
        }
    }

    /// Drops what waits to be sent to a connection.
    pub(crate) fn drop_output(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(&id) {
            let paid = connection.output.clear();
            self.pay(paid);
        }
    }

    /// A connection has waited for long enough. For those that hold it up, nobody waits until they
    /// have read everything.
    pub(crate) fn stop_waiting(&mut self, id: ConnId) {
        let Some(source) = self.connections.get(&id).map(|connection| connection.source(id)) else { return };
        let pressure = &self.waiting.pressure;
        // Who does not read itself waits on.
        let others = self.connections.iter_mut().filter(|(at, other)| other.source(**at) != source);
        let slow =
            others.filter(|(_, other)| other.output.debts().any(|request| pressure.is_of(request, source)));
        let paid: Vec<_> = slow.flat_map(|(_, other)| other.output.fall_behind()).collect();
        self.pay(paid);
        if let Source::Guest(domid) = source {
            self.waiting.conflicts.let_go(domid);
            self.wake_waiting();
        }
    }

    /// A transaction of a connection has succeeded, or the connection is gone. Who was held up for it may go on.
    pub(crate) fn conflicts_are_over(&mut self, id: ConnId) {
        if self.waiting.conflicts.is_over(id) {
            self.wake_waiting();
        }
    }

    /// Some output counts no more. Who may go on is woken.
    fn pay(&mut self, requests: Vec<u64>) {
        if requests.is_empty() {
            return;
        }
        for request in requests {
            self.waiting.pressure.sent(request);
        }
        self.wake_waiting();
    }

    fn wake_waiting(&mut self) {
        for id in std::mem::take(&mut self.waiting.connections) {
            if self.may_ask(id) {
                self.woken.insert(id);
            }
        }
    }
}
