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

use std::collections::{BTreeMap, VecDeque};
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

/// Bytes of events from which on requests that follow each other are not counted as one any more.
const SERIES_MAX: usize = 64 << 10;

/// How many requests that are done wait for earlier ones, before they are taken out of the middle.
const DONE_KEPT: usize = 64;

/// Who causes events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    Guest(DomId),
    Privileged(ConnId),
}

/// A request that caused events, or some that follow each other: see [`Pressure::counts_as`].
#[derive(Debug)]
struct Open {
    /// Its number, or that of the first. Later ones have higher numbers.
    request: u64,
    source: Source,
    /// How many connections have output of it unsent; with none it waits for earlier ones to be done.
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
    /// In the order of their numbers, in which most of them come to their end.
    requests: VecDeque<Open>,
    /// How many of them are done.
    done: usize,
    sources: BTreeMap<Source, Due>,
}

impl Pressure {
    /// As which request one that begins is counted. A privileged connection's may be any number, so those that follow
    /// each other are counted as one, up to some bytes: it is cheaper.
    pub(crate) fn counts_as(&self, request: u64, source: Source) -> u64 {
        let is_same = |last: &&Open| last.source == source && last.holders > 0 && last.bytes < SERIES_MAX;
        match source {
            Source::Guest(_) => request,
            Source::Privileged(_) => {
                self.requests.back().filter(is_same).map_or(request, |last| last.request)
            }
        }
    }

    /// A request has caused events, which so many more connections hold by now, and one of them so many bytes.
    pub(crate) fn caused(&mut self, request: u64, source: Source, holders: usize, bytes: usize) {
        let more = match self.requests.back_mut().filter(|last| last.request == request) {
            Some(last) => {
                last.holders += holders;
                let more = bytes.saturating_sub(last.bytes);
                last.bytes += more;
                Due { requests: 0, bytes: more }
            }
            None => {
                self.requests.push_back(Open { request, source, holders, bytes });
                Due { requests: 1, bytes }
            }
        };
        let due = self.sources.entry(source).or_default();
        due.requests += more.requests;
        due.bytes += more.bytes;
    }

    /// A connection has sent what it held of a request. One whose source has ended is not known any
    /// more.
    pub(crate) fn sent(&mut self, request: u64) {
        let Some(at) = self.find(request) else { return };
        let open = &mut self.requests[at];
        open.holders -= 1;
        if open.holders > 0 {
            return;
        }
        let (source, bytes) = (open.source, open.bytes);
        self.done += 1;
        while self.requests.front().is_some_and(|open| open.holders == 0) {
            self.requests.pop_front();
            self.done -= 1;
        }
        if self.done > DONE_KEPT && self.done > self.requests.len() / 2 {
            self.requests.retain(|open| open.holders > 0);
            self.done = 0;
        }
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
            self.requests.retain(|open| open.source != source && open.holders > 0);
            self.done = 0;
        }
    }

    /// Whether a request is one of a source.
    pub(crate) fn is_of(&self, request: u64, source: Source) -> bool {
        self.find(request).is_some_and(|at| self.requests[at].source == source)
    }

    /// Where a request is that is outstanding.
    fn find(&self, request: u64) -> Option<usize> {
        let at = self.requests.binary_search_by_key(&request, |open| open.request).ok()?;
        (self.requests[at].holders > 0).then_some(at)
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
        pressure.caused(1, GUEST, 2, 100);
        pressure.caused(2, GUEST, 1, GUEST_MAX);
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
    fn what_is_done_is_forgotten_also_behind_what_is_not() {
        let mut pressure = Pressure::default();
        pressure.caused(0, OTHER, 1, 1);
        for request in 1..10_000 {
            pressure.caused(request, GUEST, 1, 1);
            pressure.sent(request);
            assert!(!pressure.is_of(request, GUEST) && pressure.is_of(0, OTHER));
        }
        assert!(pressure.requests.len() < 1000, "{}", pressure.requests.len());
        pressure.sent(0);
        assert!(pressure.requests.is_empty() && pressure.done == 0);
    }

    #[test]
    fn privileged_requests_that_follow_each_other_count_as_one() {
        const DOM0: Source = Source::Privileged(ConnId(1));
        let mut pressure = Pressure::default();
        assert_eq!(pressure.counts_as(1, DOM0), 1);
        pressure.caused(1, DOM0, 1, 100);
        assert_eq!((pressure.counts_as(2, DOM0), pressure.counts_as(2, GUEST)), (1, 2));
        // The second is for the same watcher, which now has more, and for another one.
        pressure.caused(1, DOM0, 1, 300);
        assert_eq!(pressure.sources[&DOM0], Due { requests: 1, bytes: 300 });
        pressure.sent(1);
        assert!(pressure.is_of(1, DOM0));
        pressure.caused(3, GUEST, 1, 10);
        assert_eq!(pressure.counts_as(4, DOM0), 4, "another one's is between them");
        pressure.caused(4, DOM0, 1, SERIES_MAX);
        assert_eq!(pressure.counts_as(5, DOM0), 5, "enough of them");
        for request in [1, 3, 4] {
            pressure.sent(request);
        }
        assert!(pressure.sources.is_empty() && pressure.requests.is_empty());
    }

    #[test]
    fn the_next_domain_of_a_number_owes_nothing() {
        let mut pressure = Pressure::default();
        pressure.caused(1, GUEST, 1, 100);
        pressure.caused(2, OTHER, 1, 100);
        pressure.forget(GUEST);
        pressure.caused(3, GUEST, 1, 100);
        pressure.sent(1);
        assert_eq!((pressure.requests(GUEST), pressure.requests(OTHER)), (1, 1));
    }
}
