//! Requests about domains, features and quotas.

use xs_proto::{DomId, ErrorCode, Path, Reply, Request};

use crate::quota::{self, Quota};
use crate::rights::Caller;
use crate::special::Special;
use crate::store::Core;

impl Core {
    /// A request that is not about a node, a watch or a transaction.
    pub(crate) fn domain_request(&mut self, caller: &Caller, request: Request) -> Result<Reply, ErrorCode> {
        match request {
            Request::Control(arguments) => self.control(&arguments),
            Request::Introduce { domid, evtchn, .. } => {
                if evtchn == 0 || !domid.is_regular() {
                    return Err(ErrorCode::EINVAL);
                }
                self.domains.connect(domid)?;
                self.introduce(domid);
                Ok(Reply::Ok)
            }
            Request::Release(DomId::DOM0) | Request::Resume(DomId::DOM0) => Err(ErrorCode::EINVAL),
            Request::Release(domid) if self.domains.is_introduced(domid) => {
                self.release(domid);
                Ok(Reply::Ok)
            }
            Request::Release(_) => Err(ErrorCode::ENOENT),
            Request::GetDomainPath(domid) => {
                let path = Path::new(format!("/local/domain/{domid}")).map_err(|_| ErrorCode::EINVAL)?;
                Ok(Reply::DomainPath(path))
            }
            Request::IsDomainIntroduced(domid) => {
                Ok(Reply::Introduced(domid == DomId::SELF || self.domains.is_introduced(domid)))
            }
            Request::Resume(domid) => self.domains.resume(domid).map(|()| Reply::Ok),
            Request::SetTarget { domid, target } => {
                self.domains.set_target(domid, target).map(|()| Reply::Ok)
            }
            Request::GetFeature(None) => self.domains.features(caller.domid).map(Reply::Features),
            Request::GetFeature(Some(domid)) if caller.is_privileged() => {
                self.domains.features(domid).map(Reply::Features)
            }
            Request::GetFeature(Some(_)) => Err(ErrorCode::EACCES),
            Request::SetFeature { domid, features } => {
                self.domains.set_features(domid, features).map(|()| Reply::Ok)
            }
            Request::GetQuota { name: None, .. } => Ok(Reply::Text(quota::names().into())),
            Request::GetQuota { domid, name: Some(name) } => {
                let quota = Quota::from_name(&name).ok_or(ErrorCode::EINVAL)?;
                self.domains.limits(domid).map(|limits| number(limits.get(quota)))
            }
            Request::SetQuota { domid, name, value } => {
                let quota = Quota::from_name(&name).ok_or(ErrorCode::EINVAL)?;
                self.domains.set_limit(domid, quota, value).map(|()| Reply::Ok)
            }
            _ => Err(ErrorCode::ENOSYS),
        }
    }

    /// Connects a domain; one that is connected already starts afresh.
    pub(crate) fn introduce(&mut self, domid: DomId) {
        if self.domains.introduce(domid) {
            self.publish_special(Special::Introduce);
            self.publish_domain(Special::Introduce, domid);
        } else {
            for id in self.guests(domid) {
                self.reset(id);
            }
        }
    }

    /// Ends a domain with its connections and nodes.
    pub(crate) fn release(&mut self, domid: DomId) {
        if domid == DomId::DOM0 || !self.domains.exists(domid) {
            return;
        }
        let was_introduced = self.domains.is_introduced(domid);
        self.end_domain(domid);
        if was_introduced {
            self.publish_special(Special::Release);
            self.publish_domain(Special::Release, domid);
        }
    }

    /// Reports shutdowns, each once. Those seen together are one event for who did not ask which.
    pub(crate) fn shut_down(&mut self, domids: &[DomId]) {
        let mut any = false;
        for domid in domids {
            if self.domains.shut_down(*domid) {
                any = true;
                self.publish_domain(Special::Release, *domid);
            }
        }
        if any {
            self.publish_special(Special::Release);
        }
    }

    /// Finds out which domains have shut down or ended since the last time.
    pub(crate) fn look_at_domains(&mut self) {
        let (down, ended) = self.domains.changed();
        self.shut_down(&down);
        for domid in ended {
            self.release(domid);
        }
    }
}

fn number(number: u32) -> Reply {
    Reply::Text(number.to_string().into())
}
