//! What can go wrong between a caller and the store.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use xs_proto::{DecodeError, EncodeError, ErrorCode, Op, Path, PathError};

fn at(path: &Option<Path>) -> String {
    path.as_ref().map(|path| format!(" of {path}")).unwrap_or_default()
}

fn list(paths: &[Path]) -> String {
    paths.iter().map(|path| path.as_str()).collect::<Vec<_>>().join(", ")
}

fn stray(op: &Op, req_id: u32, asked: &Option<Op>) -> String {
    match asked {
        Some(asked) => format!("it answered {asked} with {op}"),
        None => format!("it sent a reply to a {op} that nobody waits for, with the id {req_id}"),
    }
}

/// Why a call failed.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The store answered with an error.
    #[error("{op}{} was refused: {code}, {}", at(.path), .code.meaning())]
    Store {
        /// What was asked.
        op: Op,
        /// The node it was asked of.
        path: Option<Path>,
        /// The answer.
        code: ErrorCode,
    },
    /// The call cannot be put on the wire; nothing was sent.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// A path is not valid; nothing was sent.
    #[error(transparent)]
    Path(#[from] PathError),
    /// No answer within the deadline. Whether the store carried it out is not known.
    #[error("{op}{} was not answered within {after:?}", at(.path))]
    Timeout {
        /// What was asked.
        op: Op,
        /// The node it was asked of.
        path: Option<Path>,
        /// The deadline.
        after: Duration,
    },
    /// The connection is gone; so are its watches and transactions. Whether the store carried
    /// out a request that was under way is not known.
    #[error("the connection to the store is gone: {reason}")]
    Disconnected {
        /// What ended it.
        reason: Arc<str>,
    },
    /// The other side does not speak the protocol; the connection was closed.
    #[error("the store broke the protocol: {0}")]
    Protocol(#[from] DecodeError),
    /// The store sent a reply to what was not asked; the connection was closed.
    #[error("the store broke the protocol: {}", stray(.op, *.req_id, .asked))]
    Stray {
        /// The operation that it answers.
        op: Op,
        /// The id of the request that it answers.
        req_id: u32,
        /// What was asked with this id; `None` if nothing was.
        asked: Option<Op>,
    },
    /// The request is one that the client itself sends, and keeps account of; nothing was sent.
    #[error("{op} is for the client to send, which keeps account of watches and transactions")]
    Reserved {
        /// What was asked.
        op: Op,
    },
    /// Other transactions of this client have taken all its turns
    /// ([`crate::Config::transactions`]); nothing was sent.
    #[error("no transaction could begin within {after:?}: this client has {limit} open, as many as it may")]
    NoTurn {
        /// How many may be open at one time.
        limit: usize,
        /// How long was waited.
        after: Duration,
    },
    /// A batch of the transaction was dropped, or took too long, and a part of it may have been sent.
    /// The transaction was aborted.
    #[error("a batch of the transaction was given up, so nothing was committed")]
    Unfinished,
    /// The payload of a reply does not have the form of its operation. Other calls are not
    /// concerned; whether the store carried out this one is not known.
    #[error("the store's reply cannot be read: {0}")]
    Reply(#[source] DecodeError),
    /// A transaction conflicted in every attempt.
    #[error("the transaction conflicted with other changes {attempts} times within {elapsed:?}")]
    Contended {
        /// Attempts made.
        attempts: u32,
        /// Time they took.
        elapsed: Duration,
    },
    /// A node holds what it was not asked for.
    #[error("{path} holds \"{found}\", which is no {expected}")]
    Value {
        /// The node.
        path: Path,
        /// The type that was asked for.
        expected: &'static str,
        /// The beginning of what it holds, in a form that can be shown.
        found: String,
    },
    /// There are more nodes than [`crate::Config::tree_limit`].
    #[error("there are more than {limit} nodes at and below {path}")]
    TooLarge {
        /// The node that was to be read with all below it.
        path: Path,
        /// The limit.
        limit: usize,
    },
    /// What the store says goes on beyond what any can have: a list in parts of more than 64 MiB, or a
    /// tree of more than 4096 bytes for each node of [`crate::Config::tree_limit`].
    #[error("what the store says of {path} does not end within {limit} bytes")]
    Endless {
        /// The node whose list, or which with all below it, was to be read.
        path: Path,
        /// What there may be.
        limit: usize,
    },
    /// What was waited for did not come in time.
    #[error("not satisfied within {after:?} by what the store says at {}", list(.paths))]
    Unsatisfied {
        /// The nodes that were read when it was last looked, none if nothing was.
        paths: Vec<Path>,
        /// How long was waited.
        after: Duration,
    },
    /// The store cannot be reached.
    #[error("cannot connect to the store at {at}: {reason}")]
    Connect {
        /// The socket.
        at: String,
        /// What the system said.
        reason: Arc<str>,
    },
}

impl Error {
    /// The code the store answered with, if it answered.
    pub fn code(&self) -> Option<&ErrorCode> {
        match self {
            Self::Store { code, .. } => Some(code),
            _ => None,
        }
    }

    /// Whether the node, domain or transaction is not there.
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(&ErrorCode::ENOENT)
    }

    /// Whether a transaction conflicted.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Contended { .. }) || self.code() == Some(&ErrorCode::EAGAIN)
    }

    /// Whether a quota of the store is used up.
    pub fn is_quota(&self) -> bool {
        self.code().is_some_and(ErrorCode::is_quota)
    }

    /// Whether the connection is gone.
    pub fn is_disconnected(&self) -> bool {
        matches!(
            self,
            Self::Disconnected { .. } | Self::Protocol(_) | Self::Stray { .. } | Self::Connect { .. }
        )
    }

    /// What the system would call it: what a [`std::io::Error`] that is made of it says.
    pub fn io_kind(&self) -> io::ErrorKind {
        use io::ErrorKind as Kind;
        match self {
            Self::Store { code, .. } => match *code {
                ErrorCode::ENOENT => Kind::NotFound,
                ErrorCode::EACCES | ErrorCode::EPERM => Kind::PermissionDenied,
                ErrorCode::EEXIST => Kind::AlreadyExists,
                ErrorCode::EINVAL => Kind::InvalidInput,
                ErrorCode::EAGAIN => Kind::WouldBlock,
                ErrorCode::EBUSY => Kind::ResourceBusy,
                ErrorCode::ENOSYS => Kind::Unsupported,
                _ if self.is_quota() => Kind::QuotaExceeded,
                _ => Kind::Other,
            },
            Self::Timeout { .. } | Self::NoTurn { .. } | Self::Unsatisfied { .. } => Kind::TimedOut,
            Self::Encode(_) | Self::Path(_) | Self::Reserved { .. } => Kind::InvalidInput,
            Self::Disconnected { .. } => Kind::ConnectionAborted,
            Self::Connect { .. } => Kind::NotConnected,
            Self::Protocol(_) | Self::Stray { .. } | Self::Reply(_) | Self::Value { .. } => Kind::InvalidData,
            _ => Kind::Other,
        }
    }

    /// What a person may do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "see that xenstored runs, that you are root, or name its socket",
            Self::Disconnected { .. } | Self::Protocol(_) | Self::Stray { .. } => {
                "see whether xenstored still runs, then try again"
            }
            Self::Reply(_) | Self::Endless { .. } => {
                "see whether this store is another or newer than what this program knows"
            }
            Self::Timeout { .. } => "see whether xenstored is stopped or overloaded, then try again",
            Self::Contended { .. } => {
                "something keeps writing to the same nodes: find it, or try again later"
            }
            Self::NoTurn { .. } => "let transactions end sooner, or allow more of them at one time",
            Self::Unfinished => "wait for the batches of a transaction before it ends",
            Self::Reserved { .. } => "use the watches and transactions of the client",
            Self::Value { .. } => "see who writes the node",
            Self::TooLarge { .. } => "read a smaller part, or raise the limit of nodes",
            Self::Store { .. } if self.is_quota() => {
                "remove what the domain no longer needs, or raise its quota"
            }
            Self::Store { code: ErrorCode::EACCES | ErrorCode::EPERM, .. } => {
                "run it in the domain that may do this, usually domain 0"
            }
            Self::Encode(_) => "make it shorter: a message of the protocol has room for 4096 bytes",
            Self::Path(_) => "give a path of the store: letters, digits and -_@ between slashes",
            Self::Unsatisfied { .. } => "wait longer, or see who should write there",
            _ => "look at the node with xenstore-ls -p",
        }
    }
}

/// For programs whose functions fail with those. The error itself is inside of it
/// ([`std::io::Error::get_ref`]).
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::new(error.io_kind(), error)
    }
}

/// What a caller is told whose connection is gone.
pub(crate) fn ended(reason: &str) -> Error {
    Error::Disconnected { reason: reason.into() }
}

const LOST_TRANSACTION: &str = "the transaction was lost with an earlier connection";

/// The outcome of what was not sent, because its transaction was lost.
pub(crate) fn lost_transaction() -> Error {
    ended(LOST_TRANSACTION)
}

pub(crate) fn is_lost_transaction(error: &Error) -> bool {
    matches!(error, Error::Disconnected { reason } if **reason == *LOST_TRANSACTION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_an_error_of_the_system_it_is_of_its_kind_and_says_the_same() {
        let path = Path::new("/a").unwrap();
        let of_store = |code| Error::Store { op: Op::READ, path: Some(path.clone()), code };
        let after = Duration::from_secs(10);
        for (error, kind) in [
            (of_store(ErrorCode::ENOENT), io::ErrorKind::NotFound),
            (of_store(ErrorCode::EACCES), io::ErrorKind::PermissionDenied),
            (of_store(ErrorCode::E2BIG), io::ErrorKind::QuotaExceeded),
            (Error::Timeout { op: Op::READ, path: None, after }, io::ErrorKind::TimedOut),
            (Error::Disconnected { reason: "end of file".into() }, io::ErrorKind::ConnectionAborted),
            (Path::new("no/../path").unwrap_err().into(), io::ErrorKind::InvalidInput),
        ] {
            let told = error.to_string();
            let error = io::Error::from(error);
            assert_eq!((error.kind(), error.to_string()), (kind, told));
            assert!(error.get_ref().is_some_and(|inner| inner.is::<Error>()));
        }
    }
}
