//! Permission lists.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use crate::{DomId, EncodeError};

/// What a domain may do with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Nothing (`n`).
    None,
    /// Read (`r`).
    Read,
    /// Write (`w`).
    Write,
    /// Read and write (`b`).
    Both,
}

impl Access {
    /// The letter on the wire.
    pub const fn letter(self) -> u8 {
        match self {
            Self::None => b'n',
            Self::Read => b'r',
            Self::Write => b'w',
            Self::Both => b'b',
        }
    }

    /// The access of a letter.
    pub const fn from_letter(letter: u8) -> Option<Self> {
        Some(match letter {
            b'n' => Self::None,
            b'r' => Self::Read,
            b'w' => Self::Write,
            b'b' => Self::Both,
            _ => return None,
        })
    }

    /// Whether it allows reading.
    pub const fn reads(self) -> bool {
        matches!(self, Self::Read | Self::Both)
    }

    /// Whether it allows writing.
    pub const fn writes(self) -> bool {
        matches!(self, Self::Write | Self::Both)
    }
}

/// One entry of a permission list, such as `r5`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Permission {
    /// The domain it speaks of.
    pub domid: DomId,
    /// What that domain may do.
    pub access: Access,
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Servers keep the number as a signed one of 32 bits, and print it so.
        write!(f, "{}{}", char::from(self.access.letter()), self.domid.0 as i32)
    }
}

/// The permission list of a node; never empty.
///
/// The first entry names the owner, who may do everything; its letter is the default for every
/// domain that has no entry. Of several entries for one domain the first counts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Permissions(Vec<Permission>);

impl Permissions {
    /// A list from its entries, the owner's first.
    pub fn new(entries: Vec<Permission>) -> Result<Self, EncodeError> {
        if entries.is_empty() { Err(EncodeError::NoOwner) } else { Ok(Self(entries)) }
    }

    /// A node of `owner` with `default` for all other domains.
    pub fn owned_by(owner: DomId, default: Access) -> Self {
        Self(vec![Permission { domid: owner, access: default }])
    }

    /// The same list with an entry for one more domain.
    #[must_use]
    pub fn grant(mut self, domid: DomId, access: Access) -> Self {
        self.0.push(Permission { domid, access });
        self
    }

    /// The domain that owns the node.
    pub fn owner(&self) -> DomId {
        self.0[0].domid
    }

    /// The entries, the owner's first.
    pub fn entries(&self) -> &[Permission] {
        &self.0
    }

    /// What `domid` may do, whether by ownership, by an entry or by default.
    pub fn access_of(&self, domid: DomId) -> Access {
        if self.owner() == domid {
            return Access::Both;
        }
        let entry = self.0[1..].iter().find(|entry| entry.domid == domid);
        entry.unwrap_or(&self.0[0]).access
    }
}

impl fmt::Display for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, entry) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{entry}")?;
        }
        Ok(())
    }
}
