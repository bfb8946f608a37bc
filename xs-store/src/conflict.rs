//! Guests that make transactions of domain 0 fail, by writing again and again what those look at.
//!
//! A guest that writes at full speed wins every race with a transaction that takes as long as a few round trips.
//! So when transactions of a privileged connection have failed a few times one after the other, the guests whose
//! writes did that are not read until one succeeds, or for as long as anybody is made to wait. The C daemon limits
//! the writes of all guests while any transaction is open, oxenstored charges the guest whose write was in the way;
//! this is nearer to that, and needs no clock.
//!
//! Transactions of guests do not count: by failing on purpose, one could hold up whoever writes what it may read.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use xs_proto::DomId;

use crate::connection::ConnId;

/// How often transactions of a connection fail before guests are made to wait for it.
const FREE: u32 = 3;

/// How many changes are remembered with the guest that made them: those of a transaction's time.
const CHANGES: usize = 4096;

#[derive(Debug, Default)]
pub(crate) struct Conflicts {
    /// Who made which change, in the order of generations.
    changes: VecDeque<(u64, DomId)>,
    /// How often the transactions of a connection have failed since one succeeded.
    failed: BTreeMap<ConnId, u32>,
    /// The guests that are not read, and for whom.
    held: BTreeSet<(DomId, ConnId)>,
}

impl Conflicts {
    /// A guest has changed something.
    pub(crate) fn changed(&mut self, generation: u64, domid: DomId) {
        if self.changes.len() == CHANGES {
            self.changes.pop_front();
        }
        self.changes.push_back((generation, domid));
    }

    fn by(&self, generation: u64) -> Option<DomId> {
        let at = self.changes.binary_search_by_key(&generation, |(generation, _)| *generation).ok()?;
        Some(self.changes[at].1)
    }

    /// A transaction of a privileged connection has failed by changes of these generations.
    pub(crate) fn failed(&mut self, id: ConnId, changes: impl Iterator<Item = u64>) {
        let failed = self.failed.entry(id).or_default();
        *failed += 1;
        if *failed >= FREE {
            let culprits: Vec<_> = changes.filter_map(|generation| self.by(generation)).collect();
            self.held.extend(culprits.into_iter().map(|culprit| (culprit, id)));
        }
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
        conflicts.changed(10, GUEST);
        conflicts.changed(12, DomId(8));
        for _ in 1..FREE {
            conflicts.failed(DOM0, [10].into_iter());
        }
        assert!(!conflicts.holds(GUEST), "a conflict or two are nobody's fault");
        conflicts.failed(DOM0, [10, 11].into_iter());
        assert!(conflicts.holds(GUEST) && !conflicts.holds(DomId(8)) && !conflicts.holds(DomId(6)));
        assert!(conflicts.is_over(DOM0) && !conflicts.holds(GUEST));
        assert!(!conflicts.is_over(DOM0));
        conflicts.failed(DOM0, [10].into_iter());
        assert!(!conflicts.holds(GUEST), "the count begins anew");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut conflicts = Conflicts::default();
        (0..10 * CHANGES as u64).for_each(|generation| conflicts.changed(generation, GUEST));
        assert_eq!(conflicts.changes.len(), CHANGES);
        assert_eq!((conflicts.by(0), conflicts.by(10 * CHANGES as u64 - 1)), (None, Some(GUEST)));
    }
}
