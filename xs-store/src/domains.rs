//! The domains the store knows.
//!
//! Without a hypervisor to ask, a domain exists from the moment it connects or is introduced until
//! it is released. Which of these a number means is told apart by when the last domain of that
//! number ended.

use std::collections::BTreeMap;

use xs_proto::{DomId, ErrorCode, Features};

use crate::hypervisor::{DomainState, Hypervisor};
use crate::quota::{Limits, Quota};
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
    /// For each number the generation in which its last domain ended.
    ended: BTreeMap<DomId, u64>,
    /// Nodes owned.
    owned: BTreeMap<DomId, i64>,
    limits: Limits,
    hypervisor: Option<Box<dyn Hypervisor>>,
}

impl Domains {
    /// Domain 0 alone.
    pub(crate) fn new() -> Self {
        Self {
            known: BTreeMap::from([(DomId::DOM0, Domain::new(true))]),
            ended: BTreeMap::new(),
            owned: BTreeMap::new(),
            limits: Limits::default(),
            hypervisor: None,
        }
    }

    /// From now on the domains of a hypervisor exist.
    pub(crate) fn set_hypervisor(&mut self, hypervisor: Box<dyn Hypervisor>) {
        self.hypervisor = Some(hypervisor);
    }

    /// The domain, if it exists.
    fn find(&mut self, domid: DomId) -> Result<&mut Domain, ErrorCode> {
        let state = |hypervisor: &Box<dyn Hypervisor>| hypervisor.state(domid);
        if !self.known.contains_key(&domid) && self.hypervisor.as_ref().and_then(state).is_some() {
            self.create(domid);
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
    pub(crate) fn end(&mut self, domid: DomId, generation: u64) {
        self.known.remove(&domid);
        self.ended.insert(domid, generation);
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

    /// Counts nodes for their owner.
    pub(crate) fn count(&mut self, owner: DomId, change: i64) {
        *self.owned.entry(owner).or_default() += change;
    }

    /// How many nodes a domain owns.
    pub(crate) fn counted(&self, owner: DomId) -> i64 {
        self.owned.get(&owner).copied().unwrap_or_default()
    }

    /// A connection's domain, with its rights and quotas.
    pub(crate) fn caller(&self, domid: DomId, privileged: bool) -> Caller {
        if privileged {
            return Caller { domid, subjects: [None, None], any: false, limits: None };
        }
        let domain = self.known.get(&domid);
        let subject =
            |domid| Subject { domid, born: self.ended.get(&domid).map_or(0, |generation| generation + 1) };
        Caller {
            domid,
            subjects: [Some(subject(domid)), domain.and_then(|domain| domain.target).map(subject)],
            any: domain.is_none_or(|domain| domain.features.contains(Features::DOMID_ANY)),
            limits: Some(self.limits(Some(domid)).unwrap_or_default()),
        }
    }
}
