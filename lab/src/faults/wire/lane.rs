//! What is under way in one direction.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

/// Bytes under way from which on nothing more is taken.
const ROOM: usize = 64 << 10;

/// Messages that wait for their time, and bytes that wait to be written. They keep their order.
pub(super) struct Lane {
    latency: u64,
    queue: VecDeque<(Instant, Bytes)>,
    queued: usize,
    last: Instant,
    pub(super) ready: BytesMut,
}

impl Lane {
    pub(super) fn new(latency: u64) -> Self {
        Self { latency, queue: VecDeque::new(), queued: 0, last: Instant::now(), ready: BytesMut::new() }
    }

    /// Adds a message that takes so many milliseconds longer than the others.
    pub(super) fn push(&mut self, extra: u64, bytes: Bytes) {
        self.last = self.last.max(Instant::now() + Duration::from_millis(self.latency + extra));
        self.queued += bytes.len();
        self.queue.push_back((self.last, bytes));
    }

    /// Whether the same message waits already.
    pub(super) fn has(&self, bytes: &Bytes) -> bool {
        self.queue.iter().any(|(_, waiting)| waiting == bytes)
    }

    /// Makes ready what has had its time.
    pub(super) fn release(&mut self) {
        let now = Instant::now();
        while self.due().is_some_and(|due| due <= now) {
            let Some((_, bytes)) = self.queue.pop_front() else { break };
            self.queued -= bytes.len();
            self.ready.extend_from_slice(&bytes);
        }
    }

    /// When the next message has had its time.
    pub(super) fn due(&self) -> Option<Instant> {
        self.queue.front().map(|(due, _)| *due)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.ready.is_empty()
    }

    pub(super) fn has_room(&self) -> bool {
        self.queued + self.ready.len() < ROOM
    }
}
