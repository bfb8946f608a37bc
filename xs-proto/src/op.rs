//! Operation numbers. A newtype and not a closed enum: a number that this version does not know
//! is data to be carried or refused with `ENOSYS`, never a reason to fail decoding.

use core::fmt;

/// The operation of a message: the `type` field of its header.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Op(pub u32);

macro_rules! ops {
    ($($(#[$doc:meta])* $name:ident = $number:literal;)*) => {
        impl Op {
            $($(#[$doc])* pub const $name: Self = Self($number);)*

            /// The protocol's name of the operation, `None` if this version knows none.
            pub const fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

ops! {
    /// Commands to the daemon itself (once called `DEBUG`).
    CONTROL = 0;
    /// Lists the children of a node.
    DIRECTORY = 1;
    /// Reads the value of a node.
    READ = 2;
    /// Reads the permission list of a node.
    GET_PERMS = 3;
    /// Registers a watch.
    WATCH = 4;
    /// Removes a watch.
    UNWATCH = 5;
    /// Opens a transaction.
    TRANSACTION_START = 6;
    /// Commits or aborts a transaction.
    TRANSACTION_END = 7;
    /// Connects a domain to the store.
    INTRODUCE = 8;
    /// Disconnects a domain.
    RELEASE = 9;
    /// Asks for the home directory of a domain.
    GET_DOMAIN_PATH = 10;
    /// Sets the value of a node and creates it, with its parents, where missing.
    WRITE = 11;
    /// Creates a node if it is missing.
    MKDIR = 12;
    /// Removes a node and all below it.
    RM = 13;
    /// Replaces the permission list of a node.
    SET_PERMS = 14;
    /// Server to client: something changed at or below a watched path.
    WATCH_EVENT = 15;
    /// Server to client: the request failed.
    ERROR = 16;
    /// Asks whether a domain is connected.
    IS_DOMAIN_INTRODUCED = 17;
    /// Makes the store report a later shutdown of the domain again.
    RESUME = 18;
    /// Gives one domain the rights of another.
    SET_TARGET = 19;
    /// Drops all watches and transactions of the connection.
    RESET_WATCHES = 21;
    /// Lists the children of a node in parts of at most one payload.
    DIRECTORY_PART = 22;
    /// Asks for feature bits.
    GET_FEATURE = 23;
    /// Sets the feature bits offered to a domain.
    SET_FEATURE = 24;
    /// Asks for quotas.
    GET_QUOTA = 25;
    /// Sets a quota.
    SET_QUOTA = 26;
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "operation {}", self.0),
        }
    }
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
