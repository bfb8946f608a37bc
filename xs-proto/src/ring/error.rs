//! How a ring fails.

use core::fmt;

use thiserror::Error;

use super::RING_SIZE;
use super::page::{Ordering, Page};

/// Why bytes cannot be moved any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RingError {
    /// The peer's index is where it cannot be: farther from ours than the ring is long, or
    /// behind where it was before.
    #[error(
        "{index} is {found} while the other index of its ring is {own}: \
         they must be 0 to {RING_SIZE} apart and never go back"
    )]
    BadIndex {
        /// Its name in the page.
        index: &'static str,
        /// What the peer made it.
        found: u32,
        /// Our index of the same ring.
        own: u32,
    },
    /// An index that only this end writes was changed. A guest sees that when the domain was
    /// introduced again: the server has begun anew, and so must the guest, with
    /// [`super::ClientEnd::attach`].
    #[error("{index} was set to {own} by this end and is now {found}: somebody reset the ring, or broke it")]
    OwnIndex {
        /// Its name in the page.
        index: &'static str,
        /// What it was changed to.
        found: u32,
        /// What this end had made it.
        own: u32,
    },
    /// The server gave the connection up.
    #[error("the server gave this ring up: {0}")]
    Fault(RingFault),
}

/// Why a server gave a ring up: the field `error` of the page.
///
/// Unknown numbers are kept, and mean that something is wrong.
/// Source: `XENSTORE_ERROR_*` in `xen/include/public/io/xs_wire.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RingFault(pub u32);

impl RingFault {
    /// The event channel does not work.
    pub const COMM: Self = Self(1);
    /// The guest's indexes cannot be.
    pub const RINGIDX: Self = Self(2);
    /// A message is longer than the protocol allows.
    pub const PROTO: Self = Self(3);

    /// The fault that a page tells of.
    ///
    /// Whether the server offers [`crate::Features::ERROR`] makes no difference: C servers before
    /// 4.21 use the field without saying so, and others leave it 0.
    pub(super) fn told_by(page: &Page) -> Option<Self> {
        // Acquire: what the server sent before it gave up can be seen.
        let number = page.error.load(Ordering::Acquire);
        (number != 0).then_some(Self(number))
    }
}

impl fmt::Display for RingFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match *self {
            Self::COMM => "trouble with the event channel",
            Self::RINGIDX => "bad ring indexes",
            Self::PROTO => "a message over the limit",
            _ => "a reason that is not known here",
        };
        write!(f, "{text} (error {})", self.0)
    }
}
