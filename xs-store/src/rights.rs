//! Who may do what with a node.

use std::sync::Arc;

use xs_proto::{Access, DomId, ErrorCode, Permission, Permissions};

use crate::quota::{Limits, Quota};

/// What a request needs of a node, or what a connection has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Need {
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) own: bool,
}

impl Need {
    pub(crate) const READ: Self = Self { read: true, write: false, own: false };
    pub(crate) const WRITE: Self = Self { read: false, write: true, own: false };
    /// For changing permissions.
    pub(crate) const OWN: Self = Self { read: false, write: true, own: true };
    const ALL: Self = Self { read: true, write: true, own: true };

    fn granted_by(access: Access) -> Self {
        Self { read: access.reads(), write: access.writes(), own: false }
    }

    fn covers(self, need: Self) -> bool {
        (self.read || !need.read) && (self.write || !need.write) && (self.own || !need.own)
    }

    fn meets(self, need: Self) -> bool {
        (self.read && need.read) || (self.write && need.write) || (self.own && need.own)
    }
}

/// A domain as permission entries see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject {
    pub(crate) domid: DomId,
    /// The generation from which on the number means this domain: entries of an earlier one were
    /// meant for another.
    pub(crate) born: u64,
}

/// On whose behalf a request is carried out.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) domid: DomId,
    /// The domain, and the one whose rights it has as well.
    pub(crate) subjects: [Option<Subject>; 2],
    /// Whether entries for `DOMID_ANY` count.
    pub(crate) any: bool,
    /// The quotas; privileged callers have none, and every right.
    pub(crate) limits: Option<Limits>,
    /// Bytes that wait to be sent to it.
    pub(crate) queued: usize,
}

impl Caller {
    pub(crate) fn is_privileged(&self) -> bool {
        self.limits.is_none()
    }

    /// Fails if `amount` is over the caller's quota.
    pub(crate) fn check(&self, quota: Quota, amount: usize) -> Result<(), ErrorCode> {
        match &self.limits {
            Some(limits) if limits.refuses(quota, amount) => Err(ErrorCode::ENOSPC),
            _ => Ok(()),
        }
    }
}

/// A permission list, and when it was set.
///
/// Domain numbers are used again; a list that was set while another domain had the number must
/// not speak for the new one.
#[derive(Clone, Debug)]
pub(crate) struct Rights {
    pub(crate) list: Permissions,
    pub(crate) set: u64,
}

impl Rights {
    pub(crate) fn new(list: Permissions, set: u64) -> Arc<Self> {
        Arc::new(Self { list, set })
    }

    fn of(&self, caller: &Caller) -> Need {
        if caller.is_privileged() {
            return Need::ALL;
        }
        let (owner, others) = (self.list.entries()[0], &self.list.entries()[1..]);
        // Nodes end with their owner, so this entry cannot mean an earlier domain.
        if caller.subjects.iter().flatten().any(|subject| subject.domid == owner.domid) {
            return Need::ALL;
        }
        let applies = |entry: &&Permission| {
            let meant = |subject: &Subject| subject.domid == entry.domid && subject.born <= self.set;
            (caller.any && entry.domid == DomId::ANY) || caller.subjects.iter().flatten().any(meant)
        };
        Need::granted_by(others.iter().find(applies).unwrap_or(&owner).access)
    }

    /// Whether `caller` has everything in `need`.
    pub(crate) fn allow(&self, caller: &Caller, need: Need) -> bool {
        self.of(caller).covers(need)
    }

    /// Whether `caller` may learn that a node below is missing: it has some of `need` here.
    pub(crate) fn admit(&self, caller: &Caller, need: Need) -> bool {
        self.of(caller).meets(need)
    }

    /// The list of a child that `creator` makes: a guest owns what it creates.
    pub(crate) fn inherited_by(self: &Arc<Self>, creator: &Caller) -> Arc<Self> {
        if creator.is_privileged() || self.list.owner() == creator.domid {
            return self.clone();
        }
        let mut entries = self.list.entries().to_vec();
        entries[0].domid = creator.domid;
        match Permissions::new(entries) {
            Ok(list) => Self::new(list, self.set),
            Err(_) => self.clone(),
        }
    }
}
