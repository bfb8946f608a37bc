//! Disks.
//!
//! Source of the keys: `xen/include/public/io/blkif.h`, and what `xl` of Xen 4.17 was seen to
//! write, in this order.

mod spec;
mod vdev;

use std::path::Path;

pub use spec::{DiskSpecError, parse};
pub use vdev::{Vdev, VdevError};

use super::{KindInfo, ListedKey, Recorded, Spec, Surroundings};
use crate::tree::Keys;
use crate::{DeviceId, Guest, Tree};

pub(crate) const INFO: KindInfo = KindInfo {
    name: "vbd",
    backend_module: "xen-blkback",
    frontend_module: "xen-blkfront",
    id_name: |devid| Vdev::from_devid(devid).name().to_owned(),
    listed: &[
        ListedKey::recorded("vdev", "dev"),
        ListedKey::recorded("params", "params"),
        ListedKey::of_guest("event_channel", "event-channel"),
        ListedKey::of_guest("ring_ref", "ring-ref"),
    ],
    made: &["node", "physical-device", "physical-device-path", "pid", "minor"],
    outlives_backend: true,
    runs: |_| &[hotplug::Kind::Vbd],
    unreported: |keys| (!keys.contains_key("physical-device")).then_some("physical-device"),
    numbers: Some(("physical-device-path", "physical-device")),
    target: |keys| keys.get("params").map(String::as_str).filter(|params| params.starts_with('/')),
    undo,
};

/// What a script needs to give its loop device back.
///
/// It reads the device from `node`, which a script that was killed has not written. And the stock script
/// `block` takes the way for files only if `params` names a file *now* (defect B-47).
fn undo(recorded: &Recorded, around: &Surroundings) -> Option<Recorded> {
    let stock = recorded.get("script").filter(|script| Path::new(script).ends_with("xen/scripts/block"));
    // All that the stock script makes of a file is a loop device. Another script that was killed before it
    // told of anything may have made what cannot be seen.
    if around.made_none && (recorded.contains_key("node") || stock.is_some() && around.target_is_file) {
        return None;
    }
    let mut told = Recorded::new();
    let node = recorded.get("node").or(around.unreported.first());
    let Some(node) = node.filter(|node| node.starts_with("/dev/loop")) else {
        return Some(told);
    };
    if !recorded.contains_key("node") {
        told.insert("node".to_owned(), node.clone());
    }
    if let Some(script) = stock.filter(|_| !around.target_is_file) {
        // Any file will do: the script does nothing with it.
        told.insert("params".to_owned(), script.clone());
    }
    Some(told)
}

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
    /// Whether the target must be a file or block device of the toolstack's domain when the stock
    /// script serves it. A runner that knows other targets sets it to false.
    pub target_is_local: bool,
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
            target_is_local: true,
        }
    }
}

impl Spec for Vbd {
    fn devid(&self) -> Option<u32> {
        Some(self.vdev.devid())
    }

    fn label(&self) -> String {
        self.vdev.to_string()
    }

    fn must_exist(&self) -> Option<&str> {
        (self.script.is_none() && self.target_is_local).then_some(&self.target)
    }

    fn tree(&self, id: &DeviceId, guest: &Guest) -> Tree {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(keys: &[(&str, &str)]) -> Recorded {
        keys.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    /// B-47: the target was deleted or replaced while its loop device was in use.
    #[test]
    fn b47_the_stock_script_gives_back_the_loop_device_of_a_target_that_is_gone() {
        let script = ("script", "/etc/xen/scripts/block");
        let file = Surroundings { target_is_file: true, ..Surroundings::default() };
        let gone = Surroundings::default();
        let with_node = recorded(&[script, ("params", "/d.img"), ("node", "/dev/loop3")]);
        assert_eq!(undo(&with_node, &file), Some(recorded(&[])));
        assert_eq!(undo(&with_node, &gone), Some(recorded(&[("params", script.1)])));
        // A script that was killed before it could tell.
        let unreported = vec!["/dev/loop4".to_owned()];
        let killed = Surroundings { target_is_file: true, unreported, ..gone.clone() };
        assert_eq!(
            undo(&recorded(&[script, ("params", "/d.img")]), &killed),
            Some(recorded(&[("node", "/dev/loop4")]))
        );
        // Other scripts have their own ways, and other targets no loop device.
        assert_eq!(
            undo(&recorded(&[("script", "/opt/block-x"), ("node", "/dev/loop3")]), &gone),
            Some(recorded(&[]))
        );
        assert_eq!(undo(&recorded(&[script, ("physical-device", "8:1")]), &gone), Some(recorded(&[])));
    }

    #[test]
    fn a_script_that_made_nothing_has_nothing_to_undo() {
        let none = Surroundings { target_is_file: true, made_none: true, ..Surroundings::default() };
        let stock = ("script", "/etc/xen/scripts/block");
        assert_eq!(undo(&recorded(&[stock, ("params", "/d.img")]), &none), None);
        // The number of what it made is another's by now.
        let (other, node) = (("script", "/opt/scripts/block"), ("node", "/dev/loop3"));
        assert_eq!(undo(&recorded(&[other, node]), &none), None);
        // What another script makes before it tells of a node may be no loop device.
        assert_eq!(undo(&recorded(&[other, ("params", "/d.img")]), &none), Some(recorded(&[])));
    }
}
