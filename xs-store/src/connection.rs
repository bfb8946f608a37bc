//! What the store keeps for one connection, and the output waiting for it.

use std::collections::{BTreeMap, HashSet};

use bytes::{Bytes, BytesMut};
use xs_proto::{DomId, ErrorCode, Header, Op, PAYLOAD_MAX, Reply, TxId};

use crate::transaction::Transaction;

/// Bytes of unsent output from which on a connection's requests are left unread.
pub(crate) const REPLIES_MAX: usize = 1 << 20;

/// Bytes of unsent output at which a connection is given up: it watches far more than it reads.
pub(crate) const OUTPUT_MAX: usize = 4 << 20;

/// A connection. Numbers grow and are not used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ConnId(pub(crate) u64);

/// Whether an event is left out while the same one is still waiting to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Merge {
    Yes,
    No,
}

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) domid: DomId,
    pub(crate) privileged: bool,
    pub(crate) transactions: BTreeMap<TxId, Transaction>,
    last_transaction: u32,
    output: BytesMut,
    /// The replies in `output`.
    replies: usize,
    /// The payloads of the events in `output`.
    events: HashSet<Bytes>,
    /// The store is done with the connection: its domain ended, or it did not read its events.
    pub(crate) closed: bool,
}

impl Connection {
    pub(crate) fn new(domid: DomId, privileged: bool) -> Self {
        Self {
            domid,
            privileged,
            transactions: BTreeMap::new(),
            last_transaction: 0,
            output: BytesMut::new(),
            replies: 0,
            events: HashSet::new(),
            closed: false,
        }
    }

    /// Opens a transaction, under the next number that is free.
    pub(crate) fn start_transaction(&mut self) -> TxId {
        loop {
            self.last_transaction = self.last_transaction.wrapping_add(1);
            let id = TxId(self.last_transaction);
            if id != TxId::NONE && !self.transactions.contains_key(&id) {
                self.transactions.insert(id, Transaction::default());
                return id;
            }
        }
    }

    /// Queues the reply to a request of `op`.
    pub(crate) fn reply(&mut self, op: Op, req_id: u32, tx_id: TxId, reply: &Reply) {
        self.replies += 1;
        if reply.encode(op, req_id, tx_id, &mut self.output).is_err() {
            // Too long for a message, and an error is not.
            let _ = Reply::Error(ErrorCode::E2BIG).encode(op, req_id, tx_id, &mut self.output);
        }
    }

    /// Queues a watch event. One that is too long for a message is dropped without a word.
    pub(crate) fn event(&mut self, path: &str, token: &[u8], merge: Merge) {
        let parts = [path.as_bytes(), b"\0", token, b"\0"];
        let payload: Bytes = parts.concat().into();
        if payload.len() > PAYLOAD_MAX {
            return;
        }
        let len = payload.len() as u32;
        // An event tells nothing but where to look, so one in the queue does for two changes.
        if self.events.insert(payload.clone()) || merge == Merge::No {
            Header { op: Op::WATCH_EVENT, req_id: 0, tx_id: TxId::NONE, len }.encode(&mut self.output);
            self.output.extend_from_slice(&payload);
        }
        if self.output.len() > OUTPUT_MAX {
            self.closed = true;
        }
    }

    /// Bytes that wait to be taken.
    pub(crate) fn waiting(&self) -> usize {
        self.output.len()
    }

    /// How many replies wait to be taken.
    pub(crate) fn replies(&self) -> usize {
        self.replies
    }

    /// Takes what waits, leaving `into`, which must be empty, in its place.
    pub(crate) fn take_output(&mut self, into: &mut BytesMut) {
        std::mem::swap(&mut self.output, into);
        self.events.clear();
        self.replies = 0;
    }
}
