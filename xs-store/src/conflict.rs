//! Guests that make transactions of domain 0 fail, by writing again and again what those look at.
//!
//! A guest that writes at full speed wins every race with a transaction that takes as long as a few round trips.
//! So when transactions of a privileged connection have failed a few times one after the other, a guest that is in
//! the way of its next one is not read until one succeeds, or for as long as anybody is made to wait. Who it is, is
//! looked at with each change as long as there is such a connection: later there is nobody to tell. The C daemon
//! limits the writes of all guests while any transaction is open, oxenstored charges the guest whose write was in
//! the way; this is nearer to that, and needs no clock.
//!
//! Transactions of guests do not count: by failing on purpose, one could hold up whoever writes what it may read.

use std::collections::{BTreeMap, BTreeSet};

use xs_proto::DomId;

use crate::connection::ConnId;

/// How often transactions of a connection fail before guests are made to wait for it.
const FREE: u32 = 2;

#[derive(Debug, Default)]
pub(crate) struct Conflicts {
    /// How often the transactions of a connection have failed since one succeeded.
    failed: BTreeMap<ConnId, u32>,
    /// The guests that are not read, and for whom.
    held: BTreeSet<(DomId, ConnId)>,
}

impl Conflicts {
    /// A transaction of a privileged connection has failed.
    pub(crate) fn failed(&mut self, id: ConnId) {
        *self.failed.entry(id).or_default() += 1;
    }

    /// The connections whose next failure is not to be.
    pub(crate) fn failing(&self) -> Vec<ConnId> {
        self.failed.iter().filter(|(_, failed)| **failed >= FREE).map(|(id, _)| *id).collect()
    }

    /// A guest is in the way of one of these connections.
    pub(crate) fn hold(&mut self, domid: DomId, id: ConnId) {
        self.held.insert((domid, id));
    }

    /// A transaction of a connection has succeeded, or the connection is gone. Returns whether somebody may go on.
    pub(crate) fn is_over(&mut self, id: ConnId) -> bool {
        let before = self.held.len();
        if self.failed.remove(&id).is_some() {
            self.held.retain(|(_, waited_for)| *waited_for != id);
        }
        self.held.len() < before
    }

    /// A guest has waited for long enough, or has ended.
    pub(crate) fn let_go(&mut self, domid: DomId) {
        self.held.retain(|(held, _)| *held != domid);
    }

    /// Whether the requests of a guest are not read.
    pub(crate) fn holds(&self, domid: DomId) -> bool {
        self.held.range((domid, ConnId(0))..).next().is_some_and(|(held, _)| *held == domid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: DomId = DomId(7);
    const DOM0: ConnId = ConnId(1);

    #[test]
    fn who_is_in_the_way_again_and_again_waits_for_a_success() {
        let mut conflicts = Conflicts::default();
        for _ in 0..FREE {
            assert!(conflicts.failing().is_empty(), "a conflict or two are nobody's fault");
            conflicts.failed(DOM0);
        }
        assert_eq!(conflicts.failing(), [DOM0]);
        conflicts.hold(GUEST, DOM0);
        assert!(conflicts.holds(GUEST) && !conflicts.holds(DomId(8)) && !conflicts.holds(DomId(6)));
        assert!(conflicts.is_over(DOM0) && !conflicts.holds(GUEST));
        assert!(!conflicts.is_over(DOM0) && conflicts.failing().is_empty(), "the count begins anew");
    }
}
