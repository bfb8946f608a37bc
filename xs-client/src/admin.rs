//! What a toolstack asks of the daemon itself: about domains, features and quotas.
//!
//! The operations are the same for both faces of the client, but for the waiting, so they are
//! written once.

use bytes::Bytes;
use xs_proto::{DecodeError, DomId, Features, Op, Path, Reply, Request};

use crate::Error;
use crate::typed::{Outcome, unexpected};

fn introduced(outcome: Outcome) -> Result<bool, Error> {
    match outcome? {
        Reply::Introduced(yes) => Ok(yes),
        _ => Err(unexpected(Op::IS_DOMAIN_INTRODUCED)),
    }
}

fn domain_path(outcome: Outcome) -> Result<Path, Error> {
    match outcome? {
        Reply::DomainPath(path) => Ok(path),
        _ => Err(unexpected(Op::GET_DOMAIN_PATH)),
    }
}

fn features(outcome: Outcome) -> Result<Features, Error> {
    match outcome? {
        Reply::Features(features) => Ok(features),
        _ => Err(unexpected(Op::GET_FEATURE)),
    }
}

fn text(op: Op, outcome: Outcome) -> Result<Bytes, Error> {
    match outcome? {
        Reply::Text(text) => Ok(text),
        _ => Err(unexpected(op)),
    }
}

fn quota(outcome: Outcome) -> Result<u32, Error> {
    let text = text(Op::GET_QUOTA, outcome)?;
    let number = std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok());
    number.ok_or(Error::Reply(DecodeError::Malformed { op: Op::GET_QUOTA, expected: "a number" }))
}

fn quotas(outcome: Outcome) -> Result<Vec<String>, Error> {
    let text = text(Op::GET_QUOTA, outcome)?;
    Ok(String::from_utf8_lossy(&text).split_whitespace().map(str::to_owned).collect())
}

macro_rules! operations {
    ($requests:ty, [$($async:tt)?], [$($wait:tt)*]) => {
        /// The daemon itself. All but [`Self::domain_path`] and [`Self::features`] of the caller's
        /// own are for privileged callers; others get `EACCES`.
        impl $requests {
            /// Connects a domain to the store: by the frame of its ring page and its event channel.
            pub $($async)? fn introduce(&self, domid: DomId, gfn: u64, evtchn: u32) -> Result<(), Error> {
                self.request(Request::Introduce { domid, gfn, evtchn })$($wait)*.map(drop)
            }

            /// Disconnects a domain. `ENOENT` if it is not connected.
            pub $($async)? fn release(&self, domid: DomId) -> Result<(), Error> {
                self.request(Request::Release(domid))$($wait)*.map(drop)
            }

            /// Lets the next shutdown of a domain be told to `@releaseDomain` again.
            pub $($async)? fn resume(&self, domid: DomId) -> Result<(), Error> {
                self.request(Request::Resume(domid))$($wait)*.map(drop)
            }

            /// Gives a domain (a device model's) the rights of another, its target.
            pub $($async)? fn set_target(&self, domid: DomId, target: DomId) -> Result<(), Error> {
                self.request(Request::SetTarget { domid, target })$($wait)*.map(drop)
            }

            /// Whether a domain is connected to the store.
            pub $($async)? fn is_introduced(&self, domid: DomId) -> Result<bool, Error> {
                introduced(self.request(Request::IsDomainIntroduced(domid))$($wait)*)
            }

            /// The home directory of a domain, which need not be there.
            pub $($async)? fn domain_path(&self, domid: DomId) -> Result<Path, Error> {
                domain_path(self.request(Request::GetDomainPath(domid))$($wait)*)
            }

            /// A command to the daemon (CONTROL), such as `["quota"]`, and what it says.
            pub $($async)? fn control(&self, command: &[&str]) -> Result<Bytes, Error> {
                let words = command.iter().map(|word| Bytes::copy_from_slice(word.as_bytes())).collect();
                text(Op::CONTROL, self.request(Request::Control(words))$($wait)*)
            }

            /// What the server offers a domain, or the caller. `ENOSYS` before Xen 4.21.
            pub $($async)? fn features(&self, domid: Option<DomId>) -> Result<Features, Error> {
                features(self.request(Request::GetFeature(domid))$($wait)*)
            }

            /// Sets what a domain is offered that is not connected yet. `ENOSYS` before Xen 4.21.
            pub $($async)? fn set_features(&self, domid: DomId, features: Features) -> Result<(), Error> {
                self.request(Request::SetFeature { domid, features })$($wait)*.map(drop)
            }

            /// The names of the quotas. `ENOSYS` before Xen 4.21.
            pub $($async)? fn quotas(&self) -> Result<Vec<String>, Error> {
                quotas(self.request(Request::GetQuota { domid: None, name: None })$($wait)*)
            }

            /// A quota of a domain, or the one that new domains get; 0 is unlimited. `ENOSYS` before
            /// Xen 4.21.
            pub $($async)? fn quota(&self, domid: Option<DomId>, name: &str) -> Result<u32, Error> {
                let name = Some(Bytes::copy_from_slice(name.as_bytes()));
                quota(self.request(Request::GetQuota { domid, name })$($wait)*)
            }

            /// Sets a quota. `ENOSYS` before Xen 4.21.
            pub $($async)? fn set_quota(
                &self,
                domid: Option<DomId>,
                name: &str,
                value: u32,
            ) -> Result<(), Error> {
                let name = Bytes::copy_from_slice(name.as_bytes());
                self.request(Request::SetQuota { domid, name, value })$($wait)*.map(drop)
            }
        }
    };
}

#[cfg(feature = "tokio")]
operations!(crate::Requests, [async], [.await]);
#[cfg(unix)]
operations!(crate::blocking::Requests, [], []);
