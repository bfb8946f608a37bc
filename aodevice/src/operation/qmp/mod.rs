//! QMP, the protocol of QEMU's monitor, as far as changing a medium needs it, and the version that it greets with.
//!
//! Source: QEMU's `docs/interop/qmp-spec.txt`, `qapi/block.json`, `qapi/misc.json`, and what xl 4.17 was seen to
//! exchange with QEMU 7.2. A message is a JSON object on a line. QEMU greets, we say `qmp_capabilities`, and each
//! command is answered by a `return` or an `error` with its id; events come in between.
//!
//! What QEMU says is not trusted: the guest may have taken it over.

mod connection;
mod message;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use thiserror::Error;

pub(in crate::operation) use connection::Connection;
pub(in crate::operation) use message::Refusal;

/// The longest line that is read, in bytes. What is waited for has some hundred.
const LINE_MAX: usize = 64 << 10;

/// What QEMU is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::operation) enum Command {
    /// Ends the negotiation.
    Capabilities,
    /// Opens the tray of a drive and takes its medium out.
    Eject { drive: String, force: bool },
    /// Takes a descriptor over, which goes with this message.
    AddFd { opaque: String },
    /// Puts a descriptor's image into a drive, in this of QEMU's formats.
    Change { drive: String, fdset: u64, block_device: bool, format: &'static str },
    /// Gives a descriptor back.
    RemoveFd { fdset: u64 },
}

impl Command {
    /// Its name.
    pub(in crate::operation) const fn name(&self) -> &'static str {
        match self {
            Self::Capabilities => "qmp_capabilities",
            Self::Eject { .. } => "eject",
            Self::AddFd { .. } => "add-fd",
            Self::Change { .. } => "blockdev-change-medium",
            Self::RemoveFd { .. } => "remove-fd",
        }
    }

    /// As it is said, but for the id of the message.
    pub(in crate::operation) fn to_json(&self) -> Value {
        let arguments = match self {
            Self::Capabilities => return json!({"execute": self.name()}),
            Self::Eject { drive, force: false } => json!({"id": drive}),
            Self::Eject { drive, force: true } => json!({"id": drive, "force": true}),
            Self::AddFd { opaque } => json!({"opaque": opaque}),
            Self::Change { drive, fdset, block_device, format } => {
                // QEMU looks at the kind of what a name leads to, but for the names of descriptors.
                let driver = if *block_device { "host_device:" } else { "" };
                json!({"id": drive, "filename": format!("{driver}/dev/fdset/{fdset}"), "format": format})
            }
            Self::RemoveFd { fdset } => json!({"fdset-id": fdset}),
        };
        json!({"execute": self.name(), "arguments": arguments})
    }

    fn encode(&self, id: u64) -> Vec<u8> {
        let mut message = self.to_json();
        message["id"] = id.into();
        format!("{message}\r\n").into_bytes()
    }
}

/// Why the monitor of a device model could not be used.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum MonitorError {
    /// Its socket, or the lock of that, failed.
    #[error("fails: {0}")]
    Io(Arc<io::Error>),
    /// The device model closed it.
    #[error("was closed by the device model, as it was asked for {0}")]
    Closed(&'static str),
    /// No answer came in time. The device model serves one program at a time.
    #[error("did not answer {command} within {limit:?}")]
    NoAnswer {
        /// What was asked.
        command: &'static str,
        /// How long it had.
        limit: Duration,
    },
    /// Another program did not give its lock back in time.
    #[error("is in use: another program has held a lock of it for {0:?}")]
    Busy(Duration),
    /// A line had more bytes than any that is waited for.
    #[error("sent a line of more than {0} bytes")]
    TooLong(usize),
    /// What it said is none of the protocol.
    #[error("said what is no answer: {0}")]
    Strange(String),
}

impl From<io::Error> for MonitorError {
    fn from(error: io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What xl 4.17 was seen to say, but for the order of members.
    #[test]
    fn commands_are_xls() {
        let drive = || "ide-5632".to_owned();
        for (command, said) in [
            (Command::Capabilities, r#"{"execute":"qmp_capabilities","id":7}"#),
            (
                Command::Eject { drive: drive(), force: false },
                r#"{"execute":"eject","arguments":{"id":"ide-5632"},"id":7}"#,
            ),
            (
                Command::Eject { drive: drive(), force: true },
                r#"{"execute":"eject","arguments":{"id":"ide-5632","force":true},"id":7}"#,
            ),
            (
                Command::AddFd { opaque: "raw:/a \"b\"\n".to_owned() },
                r#"{"execute":"add-fd","arguments":{"opaque":"raw:/a \"b\"\n"},"id":7}"#,
            ),
            (
                Command::Change { drive: drive(), fdset: 3, block_device: false, format: "raw" },
                r#"{"execute":"blockdev-change-medium","arguments":{"id":"ide-5632","filename":"/dev/fdset/3","format":"raw"},"id":7}"#,
            ),
            // This one is ours.
            (
                Command::Change { drive: drive(), fdset: 3, block_device: true, format: "raw" },
                r#"{"execute":"blockdev-change-medium","arguments":{"id":"ide-5632","filename":"host_device:/dev/fdset/3","format":"raw"},"id":7}"#,
            ),
            (Command::RemoveFd { fdset: 3 }, r#"{"execute":"remove-fd","arguments":{"fdset-id":3},"id":7}"#),
        ] {
            assert_eq!(String::from_utf8(command.encode(7)).unwrap(), format!("{said}\r\n"));
        }
    }
}
