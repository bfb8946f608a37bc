//! The domains the store knows.
//!
//! Without a hypervisor to ask, a domain exists from the moment it connects or is introduced until
//! it is released. Numbers are used again: a permission entry means the domain that has its number
//! only if it was set since that one began. That is when the store first heard of it from the
//! hypervisor; without one, when the domain before it ended.

use std::collections::BTreeMap;

use tracing::warn;
use xs_proto::{DomId, ErrorCode, Features, Permissions};

use crate::hypervisor::{DomainState, Hypervisor};
use crate::quota::{Limits, Quota, Usage};
use crate::rights::{Caller, Subject};

/// What is offered to a domain unless it was changed: what the C daemon offers.
const OFFERED: Features = Features(Features::ERROR.0 | Features::WATCH_DEPTH.0 | Features::DOMID_ANY.0);
/// What may be offered to one. To ask for a reset of the ring is more than the C daemon knows.
const SUPPORTED: Features = Features(OFFERED.0 | Features::RECONNECT.0);

#[derive(Debug)]
struct Domain {
    introduced: bool,
    /// Its shutdown was reported and it was not resumed since.
    down: bool,
    features: Features,
    /// The domain whose rights it has as well.
    target: Option<DomId>,
    /// Quotas of its own.
    quotas: Vec<(Quota, u32)>,
}

impl Domain {
    fn new(introduced: bool) -> Self {
        Self { introduced, down: false, features: OFFERED, target: None, quotas: Vec::new() }
    }
}

#[derive(Debug)]
pub(crate) struct Domains {
    known: BTreeMap<DomId, Domain>,
    /// Counts the changes of the store.
    generation: u64,
    /// For each number the generation from which on it means the domain that has it.
    born: BTreeMap<DomId, u64>,
    /// Nodes owned, and the bytes of these and of watches.
    used: BTreeMap<DomId, Usage>,
    /// The most of everything that any guest has used.
    most: Usage,
    limits: Limits,
    hypervisor: Option<Box<dyn Hypervisor>>,
}

impl Domains {
    /// Domain 0 alone.
    pub(crate) fn new() -> Self {
        Self {
            known: BTreeMap::from([(DomId::DOM0, Domain::new(true))]),
            generation: 0,
            born: BTreeMap::new(),
            used: BTreeMap::new(),
            most: Usage::default(),
            limits: Limits::default(),
            hypervisor: None,
        }
    }

    /// From now on the domains of a hypervisor exist.
    pub(crate) fn set_hypervisor(&mut self, hypervisor: Box<dyn Hypervisor>) {
        self.hypervisor = Some(hypervisor);
    }

    /// A number for the next change.
    pub(crate) fn next_generation(&mut self) -> u64 {
        self.generation += 1;
        self.generation
    }

    /// The domain, if it exists.
    fn find(&mut self, domid: DomId) -> Result<&mut Domain, ErrorCode> {
        let exists = || self.hypervisor.as_ref().is_some_and(|hypervisor| hypervisor.state(domid).is_some());
        if !self.known.contains_key(&domid) && exists() {
            self.create(domid);
            self.born.insert(domid, self.generation + 1);
        }
        self.known.get_mut(&domid).ok_or(ErrorCode::ENOENT)
    }

    /// Connects the ring of a domain, if there is a hypervisor.
    pub(crate) fn connect(&mut self, domid: DomId) -> Result<(), ErrorCode> {
        if self.hypervisor.is_none() {
            return Ok(());
        }
        let features = self.find(domid)?.features;
        match &mut self.hypervisor {
            Some(hypervisor) => hypervisor.connect(domid, features),
            None => Ok(()),
        }
    }

    /// The domains that the hypervisor says have shut down, and those that have ended.
    pub(crate) fn changed(&self) -> (Vec<DomId>, Vec<DomId>) {
        let Some(hypervisor) = &self.hypervisor else { return Default::default() };
        let (mut down, mut ended) = (Vec::new(), Vec::new());
        for domid in self.known.keys().filter(|domid| **domid != DomId::DOM0) {
            match hypervisor.state(*domid) {
                Some(DomainState::Alive) => {}
                Some(DomainState::Down) => down.push(*domid),
                None => ended.push(*domid),
            }
        }
        (down, ended)
    }

    pub(crate) fn exists(&mut self, domid: DomId) -> bool {
        self.find(domid).is_ok()
    }

    /// Takes care that the entries of a list, which is to be set next, are known to mean the domains
    /// that exist now.
    pub(crate) fn notice(&mut self, list: &Permissions) {
        for entry in list.entries() {
            self.exists(entry.domid);
        }
    }

    pub(crate) fn is_introduced(&self, domid: DomId) -> bool {
        self.known.get(&domid).is_some_and(|domain| domain.introduced)
    }

    /// Makes the domain exist.
    pub(crate) fn create(&mut self, domid: DomId) {
        self.known.entry(domid).or_insert_with(|| Domain::new(false));
    }

    /// Makes the domain exist and introduced; false if it was.
    pub(crate) fn introduce(&mut self, domid: DomId) -> bool {
        let domain = self.known.entry(domid).or_insert_with(|| Domain::new(false));
        !std::mem::replace(&mut domain.introduced, true)
    }

    /// Ends the domain.
    pub(crate) fn end(&mut self, domid: DomId) {
        if let Some(hypervisor) = &mut self.hypervisor {
            hypervisor.disconnect(domid);
        }
        self.known.remove(&domid);
        self.born.insert(domid, self.generation + 1);
        for domain in self.known.values_mut().filter(|domain| domain.target == Some(domid)) {
            domain.target = None;
        }
    }

    /// Notes a shutdown; false if there is nothing to report.
    pub(crate) fn shut_down(&mut self, domid: DomId) -> bool {
        let domain = self.known.get_mut(&domid).filter(|domain| domain.introduced);
        domain.is_some_and(|domain| !std::mem::replace(&mut domain.down, true))
    }

    fn introduced(&mut self, domid: DomId) -> Result<&mut Domain, ErrorCode> {
        self.known.get_mut(&domid).filter(|domain| domain.introduced).ok_or(ErrorCode::ENOENT)
    }

    /// Lets the next shutdown be reported again.
    pub(crate) fn resume(&mut self, domid: DomId) -> Result<(), ErrorCode> {
        self.introduced(domid)?.down = false;
        Ok(())
    }

    pub(crate) fn set_target(&mut self, domid: DomId, target: DomId) -> Result<(), ErrorCode> {
        self.introduced(target)?;
        self.introduced(domid)?.target = Some(target);
        Ok(())
    }

    /// The feature bits offered to a domain.
    pub(crate) fn features(&mut self, domid: DomId) -> Result<Features, ErrorCode> {
        Ok(self.find(domid)?.features)
    }

    pub(crate) fn set_features(&mut self, domid: DomId, features: Features) -> Result<(), ErrorCode> {
        let domain = self.find(domid)?;
        if domain.introduced {
            return Err(ErrorCode::EBUSY);
        }
        if !SUPPORTED.contains(features) {
            return Err(ErrorCode::EINVAL);
        }
        domain.features = features;
        Ok(())
    }

    /// The quotas of a domain, or those of domains that have none of their own.
    pub(crate) fn limits(&self, domid: Option<DomId>) -> Result<Limits, ErrorCode> {
        let mut limits = self.limits.clone();
        if let Some(domid) = domid {
            for (quota, limit) in &self.known.get(&domid).ok_or(ErrorCode::ENOENT)?.quotas {
                limits.set(*quota, *limit);
            }
        }
        Ok(limits)
    }

    pub(crate) fn set_limit(
        &mut self,
        domid: Option<DomId>,
        quota: Quota,
        limit: u32,
    ) -> Result<(), ErrorCode> {
        let Some(domid) = domid else {
            self.limits.set(quota, limit);
            return Ok(());
        };
        let quotas = &mut self.find(domid)?.quotas;
        quotas.retain(|(other, _)| *other != quota);
        quotas.push((quota, limit));
        Ok(())
    }

    /// The limit of a domain.
    pub(crate) fn limit(&self, domid: DomId, quota: Quota) -> u32 {
        let own = self.known.get(&domid).into_iter().flat_map(|domain| &domain.quotas);
        own.copied().find(|(other, _)| *other == quota).map_or(self.limits.get(quota), |(_, limit)| limit)
    }

    /// Counts nodes and bytes for the domain that they belong to.
    pub(crate) fn count(&mut self, domid: DomId, change: Usage) {
        let used = self.used.entry(domid).or_default();
        *used += change;
        let used = *used;
        if domid == DomId::DOM0 {
            return;
        }
        self.note_most(used);
        if change.memory > 0 {
            let limit = self.limit(domid, Quota::SoftMemory).into();
            if limit > 0 && used.memory >= limit && used.memory - change.memory < limit {
                warn!(%domid, bytes = used.memory, limit, "a guest uses much memory");
            }
        }
    }

    /// The nodes that a domain owns, and the bytes of these and of its watches.
    pub(crate) fn counted(&self, domid: DomId) -> Usage {
        self.used.get(&domid).copied().unwrap_or_default()
    }

    /// The same of all domains.
    pub(crate) fn used(&self) -> impl Iterator<Item = (DomId, Usage)> {
        self.used.iter().map(|(domid, usage)| (*domid, *usage))
    }

    /// Fails if a guest's transaction would leave a guest, as a rule itself, all nodes that it may
    /// have, or more. That is one node less than outside of a transaction; and it fails also if
    /// the guest had them before.
    pub(crate) fn check_nodes(&self, caller: &Caller, domid: DomId, more: i64) -> Result<(), ErrorCode> {
        if caller.is_privileged() || domid == DomId::DOM0 {
            return Ok(());
        }
        let limit = self.limit(domid, Quota::Nodes).into();
        let over = limit > 0 && self.counted(domid).nodes + more >= limit;
        if over { Err(ErrorCode::ENOSPC) } else { Ok(()) }
    }

    /// Fails if a guest would make the use of memory of a guest, as a rule its own, grow over the
    /// quota.
    pub(crate) fn check_memory(&self, caller: &Caller, domid: DomId, more: i64) -> Result<(), ErrorCode> {
        if more <= 0 || caller.is_privileged() || domid == DomId::DOM0 {
            return Ok(());
        }
        let queued = if domid == caller.domid { caller.queued as i64 } else { 0 };
        let limit = self.limit(domid, Quota::Memory).into();
        let over = limit > 0 && self.counted(domid).memory + queued + more >= limit;
        if over { Err(ErrorCode::ENOMEM) } else { Ok(()) }
    }

    /// How many bytes a caller may have more, or fewer than that.
    pub(crate) fn room(&self, caller: &Caller) -> i64 {
        let limit = if caller.is_privileged() { 0 } else { self.limit(caller.domid, Quota::Memory).into() };
        if limit == 0 { i64::MAX } else { limit - self.counted(caller.domid).memory - caller.queued as i64 }
    }

    /// Notes what a guest uses.
    pub(crate) fn note_most(&mut self, used: Usage) {
        self.most = self.most.max(used);
    }

    /// The most of everything that any guest has used since the start, or since this was
    /// forgotten.
    pub(crate) fn most(&self) -> Usage {
        self.most
    }

    pub(crate) fn forget_most(&mut self) {
        self.most = Usage::default();
    }

    /// A connection's domain, with its rights and quotas.
    pub(crate) fn caller(&self, domid: DomId, privileged: bool) -> Caller {
        if privileged {
            return Caller { domid, subjects: [None, None], any: false, limits: None, queued: 0 };
        }
        let domain = self.known.get(&domid);
        let subject = |domid| Subject { domid, born: self.born.get(&domid).copied().unwrap_or_default() };
        Caller {
            domid,
            subjects: [Some(subject(domid)), domain.and_then(|domain| domain.target).map(subject)],
            any: domain.is_none_or(|domain| domain.features.contains(Features::DOMID_ANY)),
            limits: Some(self.limits(Some(domid)).unwrap_or_default()),
            queued: 0,
        }
    }
}
