//! Errors: the ones servers send, and the two that encoding and decoding can have.

use alloc::borrow::Cow;
use alloc::string::String;
use core::fmt;

use bytes::Bytes;
use thiserror::Error;

use crate::{Op, PathError};

/// The error name in an `ERROR` reply.
///
/// Numbers never appear on the wire. A name outside the protocol (oxenstored sends `EQUOTA`) is
/// kept as it came, in [`ErrorCode::Other`].
/// Source: `xsd_errors` in `xen/include/public/io/xs_wire.h`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorCode {
    /// Syntax: a bad path, argument or permission entry; also what has no name of its own.
    EINVAL,
    /// No permission. Guests also get it for nodes whose absence they may not learn.
    EACCES,
    /// The watch exists already.
    EEXIST,
    /// Not sent by current servers.
    EISDIR,
    /// No such node, watch, transaction or domain.
    ENOENT,
    /// The server is out of memory, or the transaction was spoiled by an earlier failure.
    ENOMEM,
    /// A quota is used up.
    ENOSPC,
    /// Internal failure; in oxenstored also an unknown transaction.
    EIO,
    /// Not sent by current servers.
    ENOTEMPTY,
    /// The server does not have this operation.
    ENOSYS,
    /// Not sent by current servers.
    EROFS,
    /// A transaction inside a transaction, or a feature set too late.
    EBUSY,
    /// The transaction conflicts with another change: try it again.
    EAGAIN,
    /// Not sent by current servers.
    EISCONN,
    /// The reply or value is too long; watch quota in C servers up to 4.21.
    E2BIG,
    /// The owner of a node may not be changed by this domain.
    EPERM,
    /// A name that is not in the protocol, as received, without its NUL.
    Other(Bytes),
}

const KNOWN: [(&str, ErrorCode); 16] = [
    ("EINVAL", ErrorCode::EINVAL),
    ("EACCES", ErrorCode::EACCES),
    ("EEXIST", ErrorCode::EEXIST),
    ("EISDIR", ErrorCode::EISDIR),
    ("ENOENT", ErrorCode::ENOENT),
    ("ENOMEM", ErrorCode::ENOMEM),
    ("ENOSPC", ErrorCode::ENOSPC),
    ("EIO", ErrorCode::EIO),
    ("ENOTEMPTY", ErrorCode::ENOTEMPTY),
    ("ENOSYS", ErrorCode::ENOSYS),
    ("EROFS", ErrorCode::EROFS),
    ("EBUSY", ErrorCode::EBUSY),
    ("EAGAIN", ErrorCode::EAGAIN),
    ("EISCONN", ErrorCode::EISCONN),
    ("E2BIG", ErrorCode::E2BIG),
    ("EPERM", ErrorCode::EPERM),
];

impl ErrorCode {
    /// The code for a name as it stands in a payload, its NUL removed.
    pub fn from_wire(name: Bytes) -> Self {
        let known = KNOWN.iter().find(|(text, _)| text.as_bytes() == &name[..]);
        known.map_or(Self::Other(name), |(_, code)| code.clone())
    }

    /// The name as it goes on the wire, without its NUL.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Other(name) => name,
            known => {
                let entry = KNOWN.iter().find(|(_, code)| code == known);
                entry.map_or(b"EINVAL", |(text, _)| text.as_bytes())
            }
        }
    }

    /// Whether the code says that a quota is used up, whichever server said so.
    pub fn is_quota(&self) -> bool {
        match self {
            Self::ENOSPC | Self::E2BIG => true,
            Self::Other(name) => &name[..] == b"EQUOTA",
            _ => false,
        }
    }

    /// A sentence for people.
    pub fn meaning(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::EINVAL => "the store refuses the request as malformed",
            Self::EACCES | Self::EPERM => "no permission",
            Self::EEXIST => "it exists already",
            Self::ENOENT => "there is no such node, transaction or domain",
            Self::ENOMEM => "the store is out of memory or dropped the transaction",
            Self::ENOSPC => "a store quota is used up",
            Self::EIO => "internal error of the store",
            Self::ENOSYS => "the store does not have this operation",
            Self::EBUSY => "busy",
            Self::EAGAIN => "another change came in between",
            Self::E2BIG => "too long",
            Self::Other(name) if &name[..] == b"EQUOTA" => "a store quota is used up",
            _ => return String::from_utf8_lossy(self.as_bytes()).into_owned().into(),
        })
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(self.as_bytes()))
    }
}

/// Why a request or reply cannot be put on the wire. Nothing has been queued when it is returned.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// The payload is longer than a message may carry.
    #[error("{op}: a payload of {len} bytes is over the limit of {max}")]
    TooLong {
        /// The operation.
        op: Op,
        /// Bytes that the payload would have.
        len: usize,
        /// Bytes that are allowed.
        max: usize,
    },
    /// A string argument holds a NUL byte, which the protocol uses as its separator.
    #[error("{op}: an argument holds a NUL byte")]
    EmbeddedNul {
        /// The operation.
        op: Op,
    },
    /// A permission list without entries: the first one names the owner.
    #[error("a permission list needs at least the owner's entry")]
    NoOwner,
}

/// Why bytes from the other side are not a valid message.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The header announces more payload than the limit. The stream cannot be trusted any more.
    #[error("a message with {len} bytes of payload is over the limit of {max}")]
    TooLong {
        /// Bytes announced.
        len: u32,
        /// Bytes allowed.
        max: usize,
    },
    /// The stream ended inside a message.
    #[error("the stream ended inside a message, after {got} bytes")]
    Truncated {
        /// Bytes of the unfinished message that had arrived.
        got: usize,
    },
    /// The payload does not have the form of its operation.
    #[error("malformed payload of {op}: expected {expected}")]
    Malformed {
        /// The operation.
        op: Op,
        /// What its payload should be.
        expected: &'static str,
    },
    /// A path in the payload is not valid.
    #[error("malformed payload of {op}")]
    Path {
        /// The operation.
        op: Op,
        /// What is wrong with the path.
        #[source]
        source: PathError,
    },
    /// The number is not an operation of this version, or not one that may be sent as a request.
    #[error("{0} is not a request")]
    UnknownOp(Op),
}
