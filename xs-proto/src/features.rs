//! Feature bits. A newtype and not an enum: bits that this version does not know are carried.

use core::fmt;
use core::ops::{BitAnd, BitOr};

/// What a server offers a domain, one bit each.
///
/// A guest finds them in its ring page; with a privileged connection they are asked for by
/// `GET_FEATURE`. Unknown bits are kept, and mean nothing.
/// Source: `XENSTORE_SERVER_FEATURE_*` in `xen/include/public/io/xs_wire.h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Features(pub u32);

impl Features {
    /// No feature.
    pub const NONE: Self = Self(0);
    /// A guest may ask for its ring to be reset.
    pub const RECONNECT: Self = Self(1);
    /// The server tells in the ring page why it gave a connection up.
    pub const ERROR: Self = Self(2);
    /// WATCH takes a depth.
    pub const WATCH_DEPTH: Self = Self(4);
    /// A permission entry for [`crate::DomId::ANY`] speaks of every domain.
    pub const DOMID_ANY: Self = Self(8);

    /// Whether all bits of `other` are among these.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Features {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitAnd for Features {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
