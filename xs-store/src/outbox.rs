//! The messages that wait to be sent to a connection.
//!
//! A watch event tells nothing but where to look, so an event is not queued while the same one
//! still waits. Where too much waits, an event is told as one for the path that is watched: there
//! are no more of these than there are watches.
//!
//! What a driver has taken to send it is in its hands, and counts until that is done.

use std::hash::{BuildHasher, RandomState};
use std::mem;
use std::ops::Range;
use std::time::Duration;

use bytes::BytesMut;
use hashbrown::HashTable;
use tokio::time::Instant;
use xs_proto::{ErrorCode, HEADER_LEN, Header, Op, PAYLOAD_MAX, Reply, TxId};

/// Events for which the memory of their table is kept when they are gone.
const KEPT: usize = 1024;

/// How often others may have waited for who reads late and then catches up. From then on nobody does: who reads in
/// spurts could slow them down without end.
const FALLS: u8 = 8;

/// Who takes longer than this to read what others may wait for reads late.
const LATE: Duration = Duration::from_millis(100);

/// Whether an event may be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Merge {
    Yes,
    No,
}

/// A watch event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event<'a> {
    pub(crate) path: &'a str,
    pub(crate) token: &'a [u8],
    pub(crate) merge: Merge,
    /// What stands for it where too much waits: the path that is watched.
    pub(crate) anything: &'a str,
}

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    bytes: BytesMut,
    /// How many of the messages are replies that count by themselves.
    replies: usize,
    /// Where the payloads of the events are.
    events: HashTable<Range<usize>>,
    hasher: RandomState,
    /// The requests that are outstanding because of it.
    debts: Vec<u64>,
    /// Bytes of the last of them.
    of_last: usize,
    taken: Taken,
    /// Somebody has waited for long: nobody does until all is sent.
    behind: bool,
    /// How often it has read late.
    falls: u8,
    /// Since when requests are outstanding because of what is not taken.
    owed_since: Option<Instant>,
}

/// What the driver has in its hands.
#[derive(Debug, Default)]
struct Taken {
    bytes: usize,
    replies: usize,
    debts: Vec<u64>,
    owed_since: Option<Instant>,
}

impl Outbox {
    /// Queues the reply to a request of `op`.
    pub(crate) fn reply(&mut self, op: Op, req_id: u32, tx_id: TxId, reply: &Reply) {
        if reply.encode(op, req_id, tx_id, &mut self.bytes).is_err() {
            // Too long for a message, and an error is not.
            let _ = Reply::Error(ErrorCode::E2BIG).encode(op, req_id, tx_id, &mut self.bytes);
        }
    }

    /// Counts a reply.
    pub(crate) fn count_reply(&mut self) {
        self.replies += 1;
    }

    /// Queues a watch event; from `most` unsent bytes on, the one that stands for it. Returns its
    /// length, or 0 if nothing was queued that somebody should wait for.
    ///
    /// An event that is too long for a message is dropped without a word.
    pub(crate) fn event(&mut self, event: &Event<'_>, most: usize) -> usize {
        if self.len() >= most {
            self.push(event.anything, event.token, Merge::Yes);
            return 0;
        }
        let bytes = self.push(event.path, event.token, event.merge);
        if self.behind { 0 } else { bytes }
    }

    fn push(&mut self, path: &str, token: &[u8], merge: Merge) -> usize {
        let len = path.len() + token.len() + 2;
        if len > PAYLOAD_MAX {
            return 0;
        }
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
        let hashed = hash(&payload);
        if self.events.find(hashed, same).is_none() {
            self.events.insert_unique(hashed, payload, hash);
        } else if merge == Merge::Yes {
            self.bytes.truncate(start);
            return 0;
        }
        HEADER_LEN + len
    }

    /// Notes that the last message, of so many bytes, keeps a request outstanding. Returns whether that is new,
    /// and how many bytes of the request are here by now.
    pub(crate) fn owe(&mut self, request: u64, bytes: usize) -> (bool, usize) {
        let new = self.debts.last() != Some(&request);
        if new {
            self.debts.push(request);
            self.of_last = 0;
            self.owed_since.get_or_insert_with(Instant::now);
        }
        self.of_last += bytes;
        (new, self.of_last)
    }

    /// Bytes that are unsent.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() + self.taken.bytes
    }

    /// How many replies are unsent.
    pub(crate) fn replies(&self) -> usize {
        self.replies + self.taken.replies
    }

    /// The requests that are outstanding because of the unsent bytes.
    pub(crate) fn debts(&self) -> impl Iterator<Item = u64> {
        self.debts.iter().chain(&self.taken.debts).copied()
    }

    /// What was taken has been sent. Returns the requests that were outstanding because of it.
    pub(crate) fn sent(&mut self) -> Vec<u64> {
        if self.taken.owed_since.is_some_and(|since| since.elapsed() > LATE) {
            self.falls = self.falls.saturating_add(1);
        }
        if self.falls >= FALLS {
            self.behind = true;
        } else if self.bytes.is_empty() {
            self.behind = false;
        }
        mem::take(&mut self.taken).debts
    }

    /// Takes what waits, leaving `into`, which must be empty, in its place.
    pub(crate) fn take(&mut self, into: &mut BytesMut) {
        mem::swap(&mut self.bytes, into);
        if self.events.capacity() > KEPT {
            self.events = HashTable::new();
        } else {
            self.events.clear();
        }
        let (replies, debts) = (mem::take(&mut self.replies), mem::take(&mut self.debts));
        self.taken = Taken { bytes: into.len(), replies, debts, owed_since: self.owed_since.take() };
    }

    /// Nobody is to wait for it any more until all is sent. Returns the requests that were outstanding because of it.
    pub(crate) fn fall_behind(&mut self) -> Vec<u64> {
        self.behind = true;
        let mut debts = mem::take(&mut self.debts);
        debts.append(&mut self.taken.debts);
        debts
    }

    /// Drops everything, but for how often it has read late. Returns the requests that were outstanding because of it.
    pub(crate) fn clear(&mut self) -> Vec<u64> {
        let falls = self.falls;
        let debts = mem::take(self).fall_behind();
        (self.falls, self.behind) = (falls, falls >= FALLS);
        debts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 1000;

    fn event(path: &str) -> Event<'_> {
        Event { path, token: b"t", merge: Merge::Yes, anything: "/" }
    }

    fn paths(bytes: &[u8]) -> Vec<String> {
        let text = String::from_utf8_lossy(bytes).into_owned();
        text.split('\0').filter(|part| part.starts_with('/')).map(str::to_owned).collect()
    }

    #[test]
    fn an_event_that_still_waits_is_not_queued_again() {
        let (mut outbox, mut taken) = (Outbox::default(), BytesMut::new());
        assert!(outbox.event(&event("/a"), MOST) > 0);
        assert!(outbox.event(&event("/b"), MOST) > 0);
        assert_eq!(outbox.event(&event("/a"), MOST), 0);
        assert!(outbox.event(&Event { merge: Merge::No, ..event("/a") }, MOST) > 0);
        outbox.take(&mut taken);
        assert_eq!(paths(&taken), ["/a", "/b", "/a"]);
        assert!(outbox.event(&event("/a"), MOST) > 0, "what waited is on its way");
    }

    #[test]
    fn where_too_much_waits_an_event_is_for_the_watched_path() {
        let (mut outbox, mut taken) = (Outbox::default(), BytesMut::new());
        let long = format!("/{}", "n".repeat(MOST));
        assert!(outbox.event(&event(&long), MOST) > 0);
        for path in ["/a", "/b", "/c"] {
            assert_eq!(outbox.event(&event(path), MOST), 0);
        }
        outbox.take(&mut taken);
        assert_eq!(paths(&taken), [&*long, "/"]);
        assert_eq!(outbox.event(&event("/a"), MOST), 0, "what is on its way counts");
        assert!(outbox.sent().is_empty());
        assert!(outbox.event(&event("/b"), MOST) > 0);
    }

    #[test]
    fn debts_are_paid_when_all_that_was_taken_is_sent() {
        let (mut outbox, mut taken) = (Outbox::default(), BytesMut::new());
        assert_eq!(
            [(1, 10), (2, 20), (2, 30)].map(|(request, bytes)| outbox.owe(request, bytes)),
            [(true, 10), (true, 20), (false, 50)]
        );
        outbox.take(&mut taken);
        assert_eq!(outbox.owe(3, 5), (true, 5));
        assert_eq!(outbox.debts().count(), 3);
        assert_eq!(outbox.sent(), [1, 2]);
        assert_eq!(outbox.fall_behind(), [3]);
        assert_eq!(outbox.event(&event("/a"), MOST), 0, "nobody waits for who is behind");
        taken.clear();
        outbox.take(&mut taken);
        assert_eq!(paths(&taken), ["/a"]);
        assert!(outbox.sent().is_empty());
        assert!(outbox.event(&event("/a"), MOST) > 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_begins_anew_has_read_late_all_the_same() {
        let (mut outbox, mut taken) = (Outbox::default(), BytesMut::new());
        for request in 0..u64::from(FALLS) {
            assert!(outbox.event(&event("/a"), MOST) > 0);
            outbox.owe(request, 1);
            taken.clear();
            outbox.take(&mut taken);
            tokio::time::advance(LATE * 2).await;
            outbox.sent();
            outbox.clear();
        }
        assert_eq!(outbox.event(&event("/a"), MOST), 0, "nobody waits for it any more");
    }
}
