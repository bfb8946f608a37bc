//! Domain ids.

use core::fmt;
use core::num::ParseIntError;
use core::str::FromStr;

/// The number of a domain.
///
/// The hypervisor's numbers have 16 bits, and those from 32752 (0x7ff0) on are reserved and name
/// no domain. There is room for 32 because the store takes any such number in a permission list,
/// and gives it back: it must not be mistaken for the domain that its lower half would name.
/// Source: `xen/include/public/xen.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DomId(pub u32);

impl DomId {
    /// Domain 0, where the toolstack usually runs.
    pub const DOM0: Self = Self(0);
    /// `DOMID_SELF`: the calling domain, whatever its number.
    pub const SELF: Self = Self(0x7ff0);
    /// `DOMID_ANY` in a permission list: every domain (servers from 4.22).
    pub const ANY: Self = Self(0x7ff5);
    /// The first reserved number.
    pub const FIRST_RESERVED: Self = Self(0x7ff0);

    /// Whether the number can name a domain of its own.
    pub fn is_regular(self) -> bool {
        self < Self::FIRST_RESERVED
    }
}

impl fmt::Display for DomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for DomId {
    type Err = ParseIntError;

    /// Plain decimal digits only, no sign, no blanks, of at most 16 bits.
    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        // Parsing takes a leading '+', which no xenstore peer means.
        let number: u16 = if text.starts_with('+') { "+".parse() } else { text.parse() }?;
        Ok(number.into())
    }
}

impl From<u16> for DomId {
    fn from(number: u16) -> Self {
        Self(number.into())
    }
}
