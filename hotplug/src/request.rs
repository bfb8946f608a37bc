//! What a [`Runner`](crate::Runner) is asked to do: one run of a hotplug script, as a plain value.
//!
//! The value is typed and not an argument vector, so that a runner which is not a process (a handler that
//! sets up a loop device by itself, a simulation) has nothing to parse. What a script is given for
//! it is in `contract.rs`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use crate::printable::printable_path;

/// Whether a device is added or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// The device is being added.
    Add,
    /// The device is being removed.
    Remove,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Add => "add",
            Self::Remove => "remove",
        })
    }
}

/// Which run of which kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Kind {
    /// The only run for a disk whose backend is of kind `vbd`, such as blkback.
    Vbd,
    /// The only run for a disk whose backend is of kind `vbd3`: a tapdisk that serves the guest itself.
    Vbd3,
    /// The only run for a NIC of type `vif`.
    Vif,
    /// Run 0 for a NIC of type `vif_ioemu`: the paravirtual interface.
    VifIoemu,
    /// Run 1 for a NIC of type `vif_ioemu`: the tap device of the emulated twin. It may start only after
    /// run 0 has ended.
    ///
    /// The stock scripts take the backend's path in this run from `INTERFACE` and not from
    /// `XENBUS_PATH`, and expect the backend below `/local/domain/0`.
    Tap,
}

impl Kind {
    /// The kind of the backend, as it is called in the store: `vbd`, `vbd3` or `vif`.
    pub fn backend(self) -> &'static str {
        match self {
            Self::Vbd => "vbd",
            Self::Vbd3 => "vbd3",
            Self::Vif | Self::VifIoemu | Self::Tap => "vif",
        }
    }
}

/// One run of a hotplug script.
///
/// `Display` shows the command line: `/etc/xen/scripts/block add`. What is not printable in it is escaped.
///
/// # Examples
///
/// ```
/// use xen_hotplug::{Action, Kind, Request};
///
/// let request = Request::new(Kind::Vif, Action::Add, 7, 0, "/etc/xen/scripts/vif-route")
///     .recorded("gatewaydev", "eth0");
/// assert_eq!(request.to_string(), "/etc/xen/scripts/vif-route online type_if=vif");
/// assert_eq!(request.backend(), "/local/domain/0/backend/vif/7/0");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Request {
    /// Whether the device is added or removed.
    pub action: Action,
    /// Which run of which kind of device.
    pub kind: Kind,
    /// The domid of the guest, which is the domain of the frontend.
    pub fe: u32,
    /// The device id.
    pub devid: u32,
    /// The domid of the domain that runs the script, which is the domain of the backend.
    pub own: u32,
    /// The program. A name without a slash is searched for in the `PATH` that the script gets.
    #[serde(serialize_with = "lossy")]
    pub script: PathBuf,
    /// An absolute directory of the store with a copy of the backend's keys. The script gets it in
    /// `XENBUS_PATH` instead of the backend's own directory, when that is gone or must not be written
    /// to. `None` is the backend's own directory.
    pub copy: Option<String>,
    /// What the toolstack has recorded of the device: the backend's keys (`params`, `mode`, `node`,
    /// `bridge`, `vifname`, `gatewaydev`, ...).
    pub recorded: BTreeMap<String, String>,
}

impl Request {
    /// A run in domain 0, on the backend's own directory, with nothing recorded of the device.
    pub fn new(kind: Kind, action: Action, fe: u32, devid: u32, script: impl Into<PathBuf>) -> Self {
        let script = script.into();
        Self { action, kind, fe, devid, own: 0, script, copy: None, recorded: BTreeMap::new() }
    }

    /// Sets the domid of the domain that runs the script.
    #[must_use]
    pub fn own(self, domid: u32) -> Self {
        Self { own: domid, ..self }
    }

    /// Sets the absolute directory with a copy of the backend's keys.
    #[must_use]
    pub fn copy(self, directory: impl Into<String>) -> Self {
        Self { copy: Some(directory.into()), ..self }
    }

    /// Adds a key that the toolstack has recorded of the device.
    #[must_use]
    pub fn recorded(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.recorded.insert(key.into(), value.into());
        self
    }

    /// The backend's directory in the store, absolute.
    pub fn backend(&self) -> String {
        format!("/local/domain/{}/{}", self.own, self.relative())
    }

    /// The directory that holds the device's keys, absolute: the copy if there is one, else the backend's.
    pub fn directory(&self) -> String {
        self.copy.clone().unwrap_or_else(|| self.backend())
    }

    /// The backend's directory, relative to the store's home of the domain that runs the script.
    pub(crate) fn relative(&self) -> String {
        format!("backend/{}/{}/{}", self.kind.backend(), self.fe, self.devid)
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable_path(&self.script))?;
        self.args().iter().try_for_each(|arg| write!(f, " {arg}"))
    }
}

/// A path as text. What is not UTF-8 in it is replaced, where serde's own way would fail.
fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}
