//! What is known of a domain besides its devices: whether it runs, is paused, has shut down, or is gone.
//!
//! A removal asks the guest and waits for it, which is in vain once nothing will ever run there again. Only the
//! hypervisor knows that, and not every toolstack may ask it, so there is a trait with two sources:
//!
//! | source | what it knows |
//! | --- | --- |
//! | [`StoreFacts`] | whether the store's daemon has been introduced to the domain; not what the domain does |
//! | [`Hypercalls`] | what the hypervisor does with it, in domain 0 of a host whose interface is known |
//!
//! What a source does not know it says: [`Condition::There`] and [`Condition::Unknown`].

mod hypercalls;
#[allow(unsafe_code)]
mod privcmd;
mod store;

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use serde::Serialize;
use tokio::time::sleep;
use xs_client::{DomId, Error};

pub use hypercalls::Hypercalls;
pub use store::StoreFacts;
pub(crate) use store::is_introduced;

/// The condition of a domain that is being found out.
pub type Looking<'a> = Pin<Box<dyn Future<Output = Result<Condition, Error>> + Send + 'a>>;

/// Tells of the domains of a host. It may be asked several times in a second.
pub trait DomainFacts: fmt::Debug + Send + Sync {
    /// The condition of a domain, now.
    fn look(&self, domid: DomId) -> Looking<'_>;
}

/// What is known of a domain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Condition {
    /// Nothing: the source may not ask.
    #[default]
    Unknown,
    /// It is there. Whether it runs is not known.
    There,
    /// It runs, or waits for an event.
    Running,
    /// A toolstack has paused it. It goes on when it is unpaused.
    Paused,
    /// It does not run any more, by its own wish or by a fault, and is still there.
    ShutDown(Reason),
    /// It was destroyed, and the hypervisor still holds what others use of it.
    Dying,
    /// It is not there: it has been destroyed, or never was. For a source that cannot tell one from the other
    /// also one that is dying.
    Gone,
}

/// Why a domain does not run any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// It was switched off.
    PowerOff,
    /// It is to be made anew.
    Reboot,
    /// It is saved or migrated, and may be resumed.
    Suspend,
    /// It crashed.
    Crash,
    /// Its watchdog was not fed.
    Watchdog,
    /// It is to begin anew in its place.
    SoftReset,
    /// One that is not known here.
    Other(u8),
}

impl Condition {
    /// Whether the hypervisor has it no more, but for what others still use of it.
    pub fn is_gone(self) -> bool {
        matches!(self, Self::Dying | Self::Gone)
    }

    /// Whether it will never run again, so that it closes nothing that it has open. One that is paused or suspended
    /// goes on as it was; of one that is not known this is not said.
    pub fn is_over(self) -> bool {
        match self {
            Self::ShutDown(reason) => {
                matches!(reason, Reason::PowerOff | Reason::Reboot | Reason::Crash | Reason::Watchdog)
            }
            _ => self.is_gone(),
        }
    }
}

/// As in `has shut down (crash)`, said of a guest.
impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "may be there or not",
            Self::There => "is there",
            Self::Running => "is running",
            Self::Paused => "is paused",
            Self::ShutDown(reason) => return write!(f, "has shut down ({reason})"),
            Self::Dying => "is dying",
            Self::Gone => "is gone",
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PowerOff => "poweroff",
            Self::Reboot => "reboot",
            Self::Suspend => "suspend",
            Self::Crash => "crash",
            Self::Watchdog => "watchdog",
            Self::SoftReset => "soft reset",
            Self::Other(code) => return write!(f, "reason {code}"),
        })
    }
}

/// How often a domain is looked at whose end is waited for: of all that may end it nothing tells everybody.
const LOOK: Duration = Duration::from_millis(250);

/// Waits until this is so of a domain. A store that fails says nothing.
pub(crate) async fn until(facts: &dyn DomainFacts, domid: DomId, is_so: impl Fn(Condition) -> bool) {
    while !facts.look(domid).await.is_ok_and(&is_so) {
        sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// B-6: libxl takes a paused guest for one whose device model is going.
    #[test]
    fn b6_a_paused_guest_is_not_over() {
        assert!(!Condition::Paused.is_over());
    }

    #[test]
    fn only_what_never_runs_again_is_over() {
        let shut_down = [Reason::PowerOff, Reason::Reboot, Reason::Crash, Reason::Watchdog];
        for condition in
            shut_down.map(Condition::ShutDown).into_iter().chain([Condition::Dying, Condition::Gone])
        {
            assert!(condition.is_over(), "{condition}");
        }
        let may_go_on = [Reason::Suspend, Reason::SoftReset, Reason::Other(9)];
        let others = [Condition::Unknown, Condition::There, Condition::Running];
        for condition in may_go_on.map(Condition::ShutDown).into_iter().chain(others) {
            assert!(!condition.is_over(), "{condition}");
        }
    }
}
