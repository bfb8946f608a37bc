//! Why a handler failed: what was tried, what was observed, what to do.

use std::fmt;
use std::time::Duration;

use rustix::io::Errno;
use thiserror::Error;

use crate::native::ToolError;
use crate::{LINE_SHOWN, printable};

/// Why a handler failed.
///
/// `Display` says what was tried, what was observed, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum VifError {
    /// The bridge that the device names is not there.
    #[error("cannot put {interface} on bridge {bridge}: there is no such interface ({}). Create it, or name \
             another with bridge=", Bridges(.bridges))]
    BridgeMissing {
        /// The interface that was to go on it.
        interface: String,
        /// What the device names.
        bridge: String,
        /// The bridges that there are.
        bridges: Vec<String>,
    },
    /// What the device names is no bridge.
    #[error("cannot put {interface} on {bridge}: it is no bridge of the kernel ({}). Name one with bridge=, or for a \
             switch of Open vSwitch give script=vif-openvswitch", Bridges(.bridges))]
    NotABridge {
        /// The interface that was to go on it.
        interface: String,
        /// What the device names.
        bridge: String,
        /// The bridges that there are.
        bridges: Vec<String>,
    },
    /// The device names no bridge, and none can be chosen for it.
    #[error("cannot choose a bridge for {interface}, which names none ({}). Name one with bridge=", Bridges(.bridges))]
    NoDefaultBridge {
        /// The interface that was to go on one.
        interface: String,
        /// The bridges that there are.
        bridges: Vec<String>,
    },
    /// Open vSwitch has no bridge of the name that the device names.
    #[error("cannot put {interface} on bridge {bridge}: Open vSwitch has none of that name ({}). Create it (ovs-vsctl \
             add-br {bridge}), or name another with bridge=", Bridges(.bridges))]
    SwitchMissing {
        /// The interface that was to go on it.
        interface: String,
        /// What the device names.
        bridge: String,
        /// The bridges of Open vSwitch that there are.
        bridges: Vec<String>,
    },
    /// A tool has not done its work.
    #[error("cannot {step}: {error}{}", .error.then(.fix))]
    Tool {
        /// What was tried.
        step: String,
        /// How the tool ended.
        error: ToolError,
        /// What to do.
        fix: &'static str,
    },
    /// The interface that the device's is to be named like is another.
    #[error(
        "cannot rename {interface} to {vifname}: another interface has that name. Rename or remove that one \
             (ip link show dev {vifname}), or give another vifname="
    )]
    NameTaken {
        /// The interface that was to be renamed.
        interface: String,
        /// The name.
        vifname: String,
    },
    /// The interface is not there.
    #[error("cannot set up {interface}: no such interface appeared within {} ms. Whoever makes it has failed \
             or runs elsewhere: for an emulated one see the log of the device model, for others the kernel's \
             (dmesg | grep vif), and whether module xen-netback is loaded", .waited.as_millis())]
    InterfaceMissing {
        /// The name under which it was looked for.
        interface: String,
        /// For how long.
        waited: Duration,
    },
    /// The interface went away in the midst of the work.
    #[error(
        "cannot {step}: the interface went away meanwhile. Its backend or device model has ended: see the \
             kernel's log and that of the device model, and attach the device again"
    )]
    Vanished {
        /// What was tried.
        step: String,
    },
    /// This program may not change interfaces.
    #[error(
        "cannot {step}: {error}. Run this as root, or with CAP_NET_ADMIN in the network namespace of the \
             backend"
    )]
    NotPermitted {
        /// What was tried.
        step: String,
        /// What the kernel said.
        error: Refusal,
    },
    /// The kernel refused something else.
    #[error("cannot {step}: {error}. {fix}")]
    Refused {
        /// What was tried.
        step: String,
        /// What the kernel said.
        error: Refusal,
        /// What to do.
        fix: &'static str,
    },
    /// The device that routes go over has no IPv4 address.
    #[error(
        "cannot find the address of {netdev}, over which the guest is to be routed: it has no IPv4 address, or \
             is not there. Give it one, or name another device with gatewaydev="
    )]
    NoAddress {
        /// The device.
        netdev: String,
    },
    /// A key of the device has a value that cannot be used.
    #[error("cannot use {key}={}: expected {expected}. Detach the device, and attach it with another", 
            printable(.value, LINE_SHOWN))]
    Invalid {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// The deadline passed.
    #[error(
        "cannot {step}: the deadline passed before. Something holds the kernel's network configuration: look for \
             processes in state D (ps axl)"
    )]
    TimedOut {
        /// What was not tried any more.
        step: String,
    },
    /// The caller cancelled.
    #[error("cannot {step}: cancelled before. Detach the device, which undoes what was done of it")]
    Cancelled {
        /// What was not tried any more.
        step: String,
    },
}

impl VifError {
    /// The keys of the backend's directory that a stock script would write before it gives up: `hotplug-error` with the
    /// text of this error, and `hotplug-status`. Written in one transaction, and only if the directory is still
    /// there.
    #[must_use]
    pub fn backend_keys(&self) -> [(&'static str, String); 2] {
        [("hotplug-error", self.to_string()), ("hotplug-status", "error".to_owned())]
    }
}

/// What the kernel answered to a request that it refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub(super) errno: Errno,
    /// What it said in words of that, if it did.
    pub(super) words: Option<String>,
}

impl Refusal {
    /// A refusal without words.
    pub(super) fn bare(errno: Errno) -> Self {
        Self { errno, words: None }
    }

    /// What stands in an error of the standard library.
    pub(super) fn from_io(error: &std::io::Error) -> Self {
        Self::bare(Errno::from_io_error(error).unwrap_or(Errno::IO))
    }

    /// The error's number.
    #[must_use]
    pub fn raw_os_error(&self) -> i32 {
        self.errno.raw_os_error()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = std::io::Error::from(self.errno);
        match &self.words {
            Some(words) => write!(f, "{} ({error})", printable(words.trim_end_matches('.'), LINE_SHOWN)),
            None => write!(f, "{error}"),
        }
    }
}

/// Which bridges there are, in words.
struct Bridges<'a>(&'a [String]);

impl fmt::Display for Bridges<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => f.write_str("there are no bridges here"),
            names => write!(f, "the bridges here: {}", names.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_what_was_tried_what_was_observed_and_what_to_do() {
        let missing = |bridges: &[&str]| VifError::BridgeMissing {
            interface: "vif7.0".to_owned(),
            bridge: "xenbr0".to_owned(),
            bridges: bridges.iter().map(|&name| name.to_owned()).collect(),
        };
        assert_eq!(
            missing(&["br0", "br1"]).to_string(),
            "cannot put vif7.0 on bridge xenbr0: there is no such interface (the bridges here: br0, br1). Create it, \
             or name another with bridge="
        );
        assert!(missing(&[]).to_string().contains("(there are no bridges here)"));
        assert_eq!(missing(&[]).backend_keys()[1], ("hotplug-status", "error".to_owned()));

        let words = Some("Device does not allow enslaving to a bridge.".to_owned());
        let error = Refusal { errno: Errno::OPNOTSUPP, words };
        let refused = VifError::Refused { step: "put a on b".to_owned(), error, fix: "Take another." };
        assert_eq!(
            refused.to_string(),
            "cannot put a on b: Device does not allow enslaving to a bridge (Operation not supported (os error 95)). \
             Take another."
        );
        let value = "\u{1b}[2J".to_owned();
        let invalid = VifError::Invalid { key: "ip", value, expected: "an IPv4 address" };
        assert!(invalid.to_string().starts_with(r"cannot use ip=\x1b[2J: expected"), "{invalid}");
    }
}
