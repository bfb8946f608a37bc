//! Who waits because others have not taken their events yet.
//!
//! Events count as outstanding for whoever caused them, until the connections that they are for
//! have sent them. Who has caused too many is not read: the source waits, and the watcher stays.
//!
//! | source | waits while | whose events count |
//! | --- | --- | --- |
//! | a guest, with all its connections | as many of its requests as the quota `outstanding` says have an answer or an event unsent, or 64 KiB of its events are | everybody's |
//! | a privileged connection | 1 MiB of its events are unsent | those of privileged connections: dom0 waits for no guest |
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

/// Bytes of unsent events from which on the guest that caused them is not read.
const GUEST_MAX: usize = 64 << 10;

/// Bytes of unsent events from which on the privileged connection that caused them is not read.
pub(crate) const PRIVILEGED_MAX: usize = 1 << 20;

/// Who causes events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Guest(DomId),
    Privileged(ConnId),
}

/// For what some output of a connection counts, as long as it is unsent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Debt {
    /// For a request of a guest.
    Request(u64),
    /// For the connection that caused so many bytes of it.
    Bytes(ConnId, usize),
}

/// A request that caused events.
#[derive(Debug)]
struct Open {
    domid: DomId,
    /// How many connections have output of it unsent.
    holders: usize,
    bytes: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Due {
    requests: usize,
    bytes: usize,
}

/// What guests have outstanding because of the events that they caused.
#[derive(Debug, Default)]
pub(crate) struct Pressure {
    requests: HashMap<u64, Open>,
    guests: HashMap<DomId, Due>,
}

impl Pressure {
    /// A request of a guest has caused events of so many bytes, which so many connections hold.
    pub(crate) fn opened(&mut self, request: u64, domid: DomId, holders: usize, bytes: usize) {
        self.requests.insert(request, Open { domid, holders, bytes });
        let due = self.guests.entry(domid).or_default();
        due.requests += 1;
        due.bytes += bytes;
    }

    /// A connection has sent what it held of a request. One whose domain has ended is not known any
    /// more.
    pub(crate) fn sent(&mut self, request: u64) {
        let Some(open) = self.requests.get_mut(&request) else { return };
        open.holders -= 1;
        if open.holders > 0 {
            return;
        }
        let (domid, bytes) = (open.domid, open.bytes);
        self.requests.remove(&request);
        if let Some(due) = self.guests.get_mut(&domid) {
            due.requests -= 1;
            due.bytes -= bytes;
            if due.requests == 0 {
                self.guests.remove(&domid);
            }
        }
    }

    /// Forgets a domain that has ended.
    pub(crate) fn forget(&mut self, domid: DomId) {
        if self.guests.remove(&domid).is_some() {
            self.requests.retain(|_, open| open.domid != domid);
        }
    }

    /// Whether a request is one of a domain.
    pub(crate) fn is_of(&self, request: u64, domid: DomId) -> bool {
        self.requests.get(&request).is_some_and(|open| open.domid == domid)
    }

    /// How many requests of a guest are outstanding because of their events.
    pub(crate) fn requests(&self, domid: DomId) -> usize {
        self.guests.get(&domid).map_or(0, |due| due.requests)
    }

    /// Whether too many bytes of events are.
    pub(crate) fn is_over(&self, domid: DomId) -> bool {
        self.guests.get(&domid).is_some_and(|due| due.bytes >= GUEST_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: DomId = DomId(7);

    #[test]
    fn a_request_is_outstanding_until_the_last_of_its_events_is_sent() {
        let mut pressure = Pressure::default();
        pressure.opened(1, GUEST, 2, 100);
        pressure.opened(2, GUEST, 1, GUEST_MAX);
        assert_eq!(pressure.requests(GUEST), 2);
        assert!(pressure.is_over(GUEST) && !pressure.is_over(DomId(8)));
        pressure.sent(1);
        pressure.sent(2);
        assert_eq!(pressure.requests(GUEST), 1);
        assert!(!pressure.is_over(GUEST) && pressure.is_of(1, GUEST) && !pressure.is_of(2, GUEST));
        pressure.sent(1);
        assert_eq!(pressure.requests(GUEST), 0);
        assert!(pressure.guests.is_empty() && pressure.requests.is_empty());
    }

    #[test]
    fn the_next_domain_of_a_number_owes_nothing() {
        let mut pressure = Pressure::default();
        pressure.opened(1, GUEST, 1, 100);
        pressure.opened(2, DomId(8), 1, 100);
        pressure.forget(GUEST);
        pressure.opened(3, GUEST, 1, 100);
        pressure.sent(1);
        assert_eq!((pressure.requests(GUEST), pressure.requests(DomId(8))), (1, 1));
    }
}
