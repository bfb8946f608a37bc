//! The messages that wait to be sent to a connection.
//!
//! A watch event tells nothing but where to look, so an event need not be queued while the same
//! one still waits. Left out is one that the same request has queued already, as the C daemon
//! does with two watches of one token. From a reader that keeps up no more is left out; from one
//! that does not, everything that still waits for it anyway.

use std::hash::{BuildHasher, RandomState};
use std::ops::Range;

use bytes::BytesMut;
use hashbrown::HashTable;
use xs_proto::{ErrorCode, HEADER_LEN, Header, Op, PAYLOAD_MAX, Reply, TxId};

/// Bytes of unsent output from which on a reader does not keep up.
const BEHIND: usize = 64 << 10;

/// Whether an event may be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Merge {
    Yes,
    No,
}

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    bytes: BytesMut,
    /// How many of the messages are replies.
    replies: usize,
    /// Where the payloads of events are that need not be queued again.
    events: HashTable<Range<usize>>,
    hasher: RandomState,
    /// The request that queued the last event.
    request: u64,
}

impl Outbox {
    /// Queues the reply to a request of `op`.
    pub(crate) fn reply(&mut self, op: Op, req_id: u32, tx_id: TxId, reply: &Reply) {
        self.replies += 1;
        if reply.encode(op, req_id, tx_id, &mut self.bytes).is_err() {
            // Too long for a message, and an error is not.
            let _ = Reply::Error(ErrorCode::E2BIG).encode(op, req_id, tx_id, &mut self.bytes);
        }
    }

    /// Queues a watch event that a request causes. One that is too long for a message is dropped
    /// without a word.
    pub(crate) fn event(&mut self, request: u64, path: &str, token: &[u8], merge: Merge) {
        let len = path.len() + token.len() + 2;
        if len > PAYLOAD_MAX {
            return;
        }
        if request != self.request && self.bytes.len() < BEHIND {
            self.events.clear();
        }
        self.request = request;

        let start = self.bytes.len();
        let header = Header { op: Op::WATCH_EVENT, req_id: 0, tx_id: TxId::NONE, len: len as u32 };
        header.encode(&mut self.bytes);
        for part in [path.as_bytes(), b"\0", token, b"\0"] {
            self.bytes.extend_from_slice(part);
        }
        let (hasher, bytes) = (&self.hasher, &self.bytes);
        let payload = start + HEADER_LEN..bytes.len();
        let hash = |event: &Range<usize>| hasher.hash_one(&bytes[event.clone()]);
        let same = |event: &Range<usize>| bytes[event.clone()] == bytes[payload.clone()];
        if self.events.find(hash(&payload), same).is_none() {
            self.events.insert_unique(hash(&payload), payload, hash);
        } else if merge == Merge::Yes {
            self.bytes.truncate(start);
        }
    }

    /// Bytes that wait.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// How many replies wait.
    pub(crate) fn replies(&self) -> usize {
        self.replies
    }

    /// Takes what waits, leaving `into`, which must be empty, in its place.
    pub(crate) fn take(&mut self, into: &mut BytesMut) {
        std::mem::swap(&mut self.bytes, into);
        self.events.clear();
        self.replies = 0;
    }
}
