//! Who waits because others have not taken their events yet.
//!
//! Events count as outstanding for whoever caused them, until the connections that they are for
//! have sent them. Who has caused too many is not read: the source waits, and the watcher stays.
//!
//! | source | waits while | whose events count |
//! | --- | --- | --- |
//! | a guest, with all its connections | as many of its requests as the quota `outstanding` says have an answer or an event unsent, or 64 KiB of its events are for one watcher | everybody's |
//! | a privileged connection | 1 MiB of its events are unsent for one watcher | those of privileged connections: dom0 waits for no guest |
//!
//! Bytes are those of one watcher, as many watchers with many watches are no fault of the source: what waits for
//! each is bounded by itself. Of each request the watcher counts that has most of it.
//!
//! That does not go on for ever: a watcher for whom somebody has waited for [`PATIENCE`] is behind.
//! Until it has read all that is there for it, nobody waits for it. Its events are kept up to a
//! bound, where guests leave three quarters to what others change; then there is one for each of
//! its watches, which names the path that is watched.

use std::collections::HashMap;
use std::time::Duration;

use xs_proto::DomId;

use crate::connection::ConnId;

/// How long anybody is made to wait for a watcher that takes nothing. The C daemon waits for 20
/// seconds, as it throws away the events then; here they are kept.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

/// Bytes of events that one watcher has not been sent, from which on the guest that caused them is not read.
const GUEST_MAX: usize = 64 << 10;

/// The same of a privileged connection.
const PRIVILEGED_MAX: usize = 1 << 20;

/// Who causes events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    Guest(DomId),
    Privileged(ConnId),
}

/// A request that caused events.
#[derive(Debug)]
struct Open {
    source: Source,
    /// How many connections have output of it unsent.
    holders: usize,
    /// Of one watcher.
    bytes: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Due {
    requests: usize,
    bytes: usize,
}

/// What is outstanding because of the events that somebody caused.
#[derive(Debug, Default)]
pub(crate) struct Pressure {
    requests: HashMap<u64, Open>,
    sources: HashMap<Source, Due>,
}

impl Pressure {
    /// A request has caused events, which so many connections hold, and one of them so many bytes.
    pub(crate) fn opened(&mut self, request: u64, source: Source, holders: usize, bytes: usize) {
        self.requests.insert(request, Open { source, holders, bytes });
        let due = self.sources.entry(source).or_default();
        due.requests += 1;
        due.bytes += bytes;
    }

    /// A connection has sent what it held of a request. One whose source has ended is not known any
    /// more.
    pub(crate) fn sent(&mut self, request: u64) {
        let Some(open) = self.requests.get_mut(&request) else { return };
        open.holders -= 1;
        if open.holders > 0 {
            return;
        }
        let (source, bytes) = (open.source, open.bytes);
        self.requests.remove(&request);
        if let Some(due) = self.sources.get_mut(&source) {
            due.requests -= 1;
            due.bytes -= bytes;
            if due.requests == 0 {
                self.sources.remove(&source);
            }
        }
    }

    /// Forgets a source that has ended.
    pub(crate) fn forget(&mut self, source: Source) {
        if self.sources.remove(&source).is_some() {
            self.requests.retain(|_, open| open.source != source);
        }
    }

    /// Whether a request is one of a source.
    pub(crate) fn is_of(&self, request: u64, source: Source) -> bool {
        self.requests.get(&request).is_some_and(|open| open.source == source)
    }

    /// How many requests of a source are outstanding because of their events.
    pub(crate) fn requests(&self, source: Source) -> usize {
        self.sources.get(&source).map_or(0, |due| due.requests)
    }

    /// Whether too many bytes of events are.
    pub(crate) fn is_over(&self, source: Source) -> bool {
        let most = match source {
            Source::Guest(_) => GUEST_MAX,
            Source::Privileged(_) => PRIVILEGED_MAX,
        };
        self.sources.get(&source).is_some_and(|due| due.bytes >= most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: Source = Source::Guest(DomId(7));
    const OTHER: Source = Source::Guest(DomId(8));

    #[test]
    fn a_request_is_outstanding_until_the_last_of_its_events_is_sent() {
        let mut pressure = Pressure::default();
        pressure.opened(1, GUEST, 2, 100);
        pressure.opened(2, GUEST, 1, GUEST_MAX);
        assert_eq!(pressure.requests(GUEST), 2);
        assert!(pressure.is_over(GUEST) && !pressure.is_over(OTHER));
        pressure.sent(1);
        pressure.sent(2);
        assert_eq!(pressure.requests(GUEST), 1);
        assert!(!pressure.is_over(GUEST) && pressure.is_of(1, GUEST) && !pressure.is_of(2, GUEST));
        pressure.sent(1);
        assert_eq!(pressure.requests(GUEST), 0);
        assert!(pressure.sources.is_empty() && pressure.requests.is_empty());
    }

    #[test]
    fn the_next_domain_of_a_number_owes_nothing() {
        let mut pressure = Pressure::default();
        pressure.opened(1, GUEST, 1, 100);
        pressure.opened(2, OTHER, 1, 100);
        pressure.forget(GUEST);
        pressure.opened(3, GUEST, 1, 100);
        pressure.sent(1);
        assert_eq!((pressure.requests(GUEST), pressure.requests(OTHER)), (1, 1));
    }
}
