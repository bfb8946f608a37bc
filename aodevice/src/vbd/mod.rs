//! Disks.
//!
//! Source of the keys: `xen/include/public/io/blkif.h`, and what `xl` of Xen 4.17 was seen to
//! write, in this order.

mod spec;
mod vdev;

use std::fs;
use std::os::unix::fs::FileTypeExt;

use hotplug::{Action, ScriptRun};

pub use spec::{DiskSpecError, parse};
pub use vdev::{Vdev, VdevError};

use crate::tree::Keys;
use crate::{DeviceId, Guest, Tree};

/// The format of a disk's image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// The bytes of the disk.
    Raw,
    /// QEMU's first format.
    Qcow,
    /// QEMU's second format.
    Qcow2,
    /// QEMU's enhanced disk.
    Qed,
    /// Virtual hard disk.
    Vhd,
    /// No medium.
    Empty,
}

impl Format {
    const ALL: [Self; 6] = [Self::Raw, Self::Qcow, Self::Qcow2, Self::Qed, Self::Vhd, Self::Empty];

    /// Its name in a disk specification.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow => "qcow",
            Self::Qcow2 => "qcow2",
            Self::Qed => "qed",
            Self::Vhd => "vhd",
            Self::Empty => "empty",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        if name.is_empty() {
            Some(Self::Raw)
        } else {
            Self::ALL.into_iter().find(|format| format.name() == name)
        }
    }
}

/// A disk of the phy backend: a block device, or a file that its script puts behind one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Vbd {
    /// What is served: an absolute path, or whatever the script understands.
    pub target: String,
    /// What the guest sees.
    pub vdev: Vdev,
    /// Whether the guest may write.
    pub writable: bool,
    /// Whether it is a CD-ROM.
    pub cdrom: bool,
    /// The hotplug script, absolute or in the script directory; `block` if none.
    pub script: Option<String>,
    /// Whether the guest may discard sectors; if not said, when it may write.
    pub discard: Option<bool>,
    /// Whether the backend may use direct I/O on any target.
    pub direct_io_safe: bool,
    /// Whether the guest is to trust the backend.
    pub trusted: bool,
}

impl Vbd {
    /// A writable disk.
    pub fn new(target: impl Into<String>, vdev: Vdev) -> Self {
        Self {
            target: target.into(),
            vdev,
            writable: true,
            cdrom: false,
            script: None,
            discard: None,
            direct_io_safe: false,
            trusted: true,
        }
    }

    /// Whether the target can be served: if no script of its own is to make sense of it, it must
    /// be an absolute path to a file or block device of this domain.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.script.is_some() {
            return Ok(());
        }
        if !self.target.starts_with('/') {
            return Err(format!("the target {:?} is not an absolute path", self.target));
        }
        let kind =
            fs::metadata(&self.target).map_err(|error| format!("the target {}: {error}", self.target))?;
        if kind.is_file() || kind.file_type().is_block_device() {
            return Ok(());
        }
        Err(format!("the target {} is neither a file nor a block device", self.target))
    }

    /// What is written for it.
    pub(crate) fn tree(&self, id: &DeviceId, guest: &Guest) -> Tree {
        let flag = |yes: bool| if yes { "1" } else { "0" };
        let device_type = if self.cdrom { "cdrom" } else { "disk" };
        let mut be = Keys::new();
        be.add("params", &self.target);
        be.add("script", guest.script(self.script.as_deref().unwrap_or("block")));
        be.add("frontend-id", id.fe).add("online", 1);
        be.add("removable", flag(self.cdrom)).add("bootable", 1);
        be.add("state", 1).add("dev", &self.vdev).add("type", "phy");
        be.add("mode", if self.writable { "w" } else { "r" }).add("device-type", device_type);
        if self.direct_io_safe {
            be.add("direct-io-safe", 1);
        }
        be.add("discard-enable", flag(self.discard.unwrap_or(self.writable))).add("specification", "xen");
        let mut fe = Keys::new();
        fe.add("backend-id", id.be).add("state", 1).add("virtual-device", id.devid);
        fe.add("device-type", device_type).add("trusted", flag(self.trusted));
        if let Some(abi) = guest.protocol() {
            fe.add("protocol", abi);
        }
        Tree { frontend: fe, frontend_read_only: Keys::new(), backend: be }
    }

    /// The script runs of an action.
    pub(crate) fn scripts(script: &str, id: &DeviceId, action: Action) -> Vec<ScriptRun> {
        vec![ScriptRun::vbd(script, action, id.fe.0, id.devid)]
    }
}
