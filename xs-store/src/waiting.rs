//! What the store does about pressure: it counts the events that a request causes, says whose
//! requests are read, and wakes who may go on.

use std::collections::BTreeSet;

use bytes::BytesMut;
use xs_proto::DomId;

use crate::connection::{ConnId, REPLIES_MAX};
use crate::outbox::Event;
use crate::pressure::{Debt, PRIVILEGED_MAX, Pressure, Source};
use crate::quota::Quota;
use crate::store::Core;

/// Who waits, and for what.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    pub(crate) pressure: Pressure,
    /// The connections that were not read for that.
    connections: BTreeSet<ConnId>,
    /// Whose request is carried out, and what it has caused so far. Nobody has caused what happens
    /// to domains.
    source: Option<Source>,
    holders: usize,
    bytes: usize,
}

impl Waiting {
    /// A request begins.
    pub(crate) fn begin(&mut self, source: Source) {
        self.source = Some(source);
        (self.holders, self.bytes) = (0, 0);
    }

    /// Forgets a connection that has ended.
    pub(crate) fn forget(&mut self, id: ConnId) {
        self.connections.remove(&id);
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
        let debt = match self.waiting.source {
            Some(Source::Guest(_)) => Debt::Request(self.requests),
            Some(Source::Privileged(source)) if connection.privileged => Debt::Bytes(source, bytes),
            _ => return,
        };
        if bytes > 0 {
            self.waiting.holders += usize::from(connection.output.owe(debt));
            self.waiting.bytes += bytes;
        }
    }

    /// A request has been carried out; its reply comes next. Returns whether the reply counts with
    /// the events.
    pub(crate) fn finish(&mut self, id: ConnId) -> bool {
        let Waiting { holders, bytes, .. } = self.waiting;
        let source = self.waiting.source.take();
        if bytes == 0 {
            return false;
        }
        let Some(connection) = self.connections.get_mut(&id) else { return false };
        match source {
            Some(Source::Guest(domid)) => {
                let own = usize::from(connection.output.owe(Debt::Request(self.requests)));
                self.waiting.pressure.opened(self.requests, domid, holders + own, bytes);
                true
            }
            _ => {
                connection.caused += bytes;
                false
            }
        }
    }

    /// Whether the next request of a connection is read: not while too much of what it gets is
    /// unsent, or of what it has caused for others.
    pub(crate) fn may_ask(&mut self, id: ConnId) -> bool {
        let Some(connection) = self.connections.get(&id) else { return false };
        if connection.output.len() > REPLIES_MAX {
            return false;
        }
        let free = match connection.source(id) {
            Source::Privileged(_) => connection.caused < PRIVILEGED_MAX,
            Source::Guest(domid) => self.guest_may_ask(domid, connection.output.replies()),
        };
        if !free {
            self.waiting.connections.insert(id);
        }
        free
    }

    fn guest_may_ask(&self, domid: DomId, replies: usize) -> bool {
        let limit = self.domains.limit(domid, Quota::Outstanding) as usize;
        let pressure = &self.waiting.pressure;
        (limit == 0 || replies + pressure.requests(domid) < limit) && !pressure.is_over(domid)
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
        let is_due = |debt: &Debt| match (*debt, source) {
            (Debt::Request(request), Source::Guest(domid)) => pressure.is_of(request, domid),
            (Debt::Bytes(conn, _), Source::Privileged(id)) => conn == id,
            _ => false,
        };
        // Who does not read itself waits on.
        let others = self.connections.iter_mut().filter(|(at, other)| other.source(**at) != source);
        let slow = others.filter(|(_, other)| other.output.debts().any(is_due));
        let paid: Vec<_> = slow.flat_map(|(_, other)| other.output.fall_behind()).collect();
        self.pay(paid);
    }

    /// Some output counts no more. Who may go on is woken.
    fn pay(&mut self, debts: Vec<Debt>) {
        if debts.is_empty() {
            return;
        }
        for debt in debts {
            match debt {
                Debt::Request(request) => self.waiting.pressure.sent(request),
                Debt::Bytes(conn, bytes) => {
                    if let Some(connection) = self.connections.get_mut(&conn) {
                        connection.caused = connection.caused.saturating_sub(bytes);
                    }
                }
            }
        }
        for id in std::mem::take(&mut self.waiting.connections) {
            if self.may_ask(id) {
                self.woken.insert(id);
            }
        }
    }
}
