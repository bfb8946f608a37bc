//! What the hypervisor tells of a domain, to the one domain that may ask it: `XEN_DOMCTL_getdomaininfo`.
//!
//! That operation belongs to an interface without a stable form: the hypervisor refuses a caller who does not name
//! the version that it has. Of what it answers only the first eight bytes are read, which are the same in all
//! versions named here.
//!
//! Sources: `xen/include/public/domctl.h`, `sched.h` and `xen.h` of Xen 4.17 and 4.20.

use std::io;
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;
use xs_client::DomId;

use super::privcmd::{Info, Privcmd};
use super::{Condition, DomainFacts, Looking, Reason};

/// Of Xen 4.17, of 4.18, and of 4.19 and 4.20.
const VERSIONS: [u32; 3] = [0x15, 0x16, 0x17];

/// The first number that names no domain, but for instance whoever asks (`DOMID_FIRST_RESERVED`).
const FIRST_RESERVED: u16 = 0x7ff0;

const DYING: u32 = 1 << 0;
const SHUT_DOWN: u32 = 1 << 2;
const PAUSED: u32 = 1 << 3;
const REASON_SHIFT: u32 = 16;

/// The facts that the hypervisor tells.
#[derive(Debug)]
pub struct Hypercalls {
    /// With one page for what is asked and answered.
    privcmd: Mutex<Privcmd>,
    version: u32,
}

impl Hypercalls {
    /// Of the hypervisor under this host.
    ///
    /// # Errors
    ///
    /// At once, where there is none, where this domain or process may not ask, and where its interface is not
    /// known here ([`io::ErrorKind::Unsupported`]).
    pub fn open() -> io::Result<Self> {
        let mut privcmd = Privcmd::open()?;
        for version in VERSIONS {
            match privcmd.domain_info(version, 0) {
                Ok(info) if info.domain == 0 => return Ok(Self { privcmd: Mutex::new(privcmd), version }),
                // Of another version.
                Ok(_) | Err(Errno::ACCESS) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "the version of the hypervisor's interface is not known",
        ))
    }

    /// The version of the hypervisor's interface (`XEN_DOMCTL_INTERFACE_VERSION`).
    pub fn interface_version(&self) -> u32 {
        self.version
    }

    fn ask(&self, domid: DomId) -> Condition {
        let Some(domid) = u16::try_from(domid.0).ok().filter(|domid| *domid < FIRST_RESERVED) else {
            return Condition::Gone;
        };
        let mut privcmd = self.privcmd.lock().unwrap_or_else(PoisonError::into_inner);
        condition(domid, privcmd.domain_info(self.version, domid))
    }
}

impl DomainFacts for Hypercalls {
    // A hypercall takes microseconds and waits for nobody.
    fn look(&self, domid: DomId) -> Looking<'_> {
        let condition = self.ask(domid);
        Box::pin(async move { Ok(condition) })
    }
}

fn condition(asked: u16, answer: Result<Info, Errno>) -> Condition {
    match answer {
        // Up to 4.17 of the next domain, if there is none of that number.
        Ok(info) if info.domain != asked => Condition::Gone,
        Ok(Info { flags, .. }) if flags & DYING != 0 => Condition::Dying,
        Ok(Info { flags, .. }) if flags & SHUT_DOWN != 0 => {
            Condition::ShutDown(reason((flags >> REASON_SHIFT) as u8))
        }
        Ok(Info { flags, .. }) if flags & PAUSED != 0 => Condition::Paused,
        Ok(_) => Condition::Running,
        Err(Errno::SRCH) => Condition::Gone,
        Err(_) => Condition::Unknown,
    }
}

fn reason(code: u8) -> Reason {
    match code {
        0 => Reason::PowerOff,
        1 => Reason::Reboot,
        2 => Reason::Suspend,
        3 => Reason::Crash,
        4 => Reason::Watchdog,
        5 => Reason::SoftReset,
        other => Reason::Other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(flags: u32) -> Condition {
        condition(7, Ok(Info::new(7, flags)))
    }

    #[test]
    fn flags_are_told_apart() {
        // As seen of Xen 4.17: blocked, running, paused by `xl pause`.
        assert_eq!(of(0x10), Condition::Running);
        assert_eq!(of(0x20), Condition::Running);
        assert_eq!(of(0x18), Condition::Paused);
        assert_eq!(of(0x4), Condition::ShutDown(Reason::PowerOff));
        assert_eq!(of(0x3_0004), Condition::ShutDown(Reason::Crash));
        assert_eq!(of(0x9_0004), Condition::ShutDown(Reason::Other(9)));
    }

    /// `xl destroy` pauses first; a guest that is saved is paused as well.
    #[test]
    fn the_worse_of_two_counts() {
        assert_eq!(of(PAUSED | SHUT_DOWN | 2 << REASON_SHIFT), Condition::ShutDown(Reason::Suspend));
        assert_eq!(of(PAUSED | SHUT_DOWN | DYING), Condition::Dying);
    }

    /// B-39: libxl fails there.
    #[test]
    fn b39_a_domain_that_the_hypervisor_does_not_know_is_gone() {
        assert_eq!(condition(7, Err(Errno::SRCH)), Condition::Gone);
        assert_eq!(condition(7, Ok(Info::new(8, 0x20))), Condition::Gone);
    }

    #[test]
    fn an_answer_that_is_refused_says_nothing() {
        assert_eq!(condition(7, Err(Errno::PERM)), Condition::Unknown);
    }

    /// Where tests run there is no hypervisor, or one that may be asked.
    #[test]
    fn what_is_not_there_is_told_at_once() {
        match Hypercalls::open() {
            Ok(hypercalls) => {
                assert_eq!(hypercalls.ask(DomId::DOM0), Condition::Running);
                // The kernel would be asked about itself (`DOMID_SELF`), or about a number cut short.
                assert_eq!(hypercalls.ask(DomId(0x7ff0)), Condition::Gone);
                assert_eq!(hypercalls.ask(DomId(0x1_0000)), Condition::Gone);
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}
