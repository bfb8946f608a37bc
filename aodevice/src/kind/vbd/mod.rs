//! Disks.
//!
//! Source of the keys: `xen/include/public/io/blkif.h`, and what `xl` of Xen 4.17 was seen to
//! write, in this order. That of the specification: `docs/man/xl-disk-configuration.5.pod.in`, and what
//! `xlu_disk_parse` of libxlutil 4.17 was seen to make of it.
//!
#![doc = include_str!("grammar.md")]

mod grammar;
mod spec;
mod vdev;

use std::path::Path;

use serde_json::{Map, Value};
use xs_client::DomId;

pub use spec::{DiskSpecError, parse};
pub use vdev::{Vdev, VdevError};

use xen_hotplug::{LINE_SHOWN, printable};

use super::members::Members;
use super::{BackendKind, KindInfo, ListedKey, Recorded, Spec, Surroundings};
use crate::libxl::Listing;
use crate::tree::Keys;
use crate::{Cause, DeviceId, Guest, Tree};

pub(crate) const INFO: KindInfo = KindInfo {
    name: "vbd",
    noun: None,
    backends: &[BackendKind::Vbd, BackendKind::Qdisk, BackendKind::Vbd3],
    backend_module: "xen-blkback",
    frontend_module: "xen-blkfront",
    first_devid: 0,
    id_name: |devid| Vdev::from_devid(devid).name().to_owned(),
    listed: &[
        ListedKey::recorded("vdev", "dev"),
        ListedKey::recorded("params", "params"),
        ListedKey::of_guest("event_channel", "event-channel"),
        ListedKey::of_guest("ring_ref", "ring-ref"),
    ],
    parts: None,
    made: &["node", "physical-device", "physical-device-path", "pid", "minor"],
    outlives_backend: true,
    libxl: Listing {
        array: "disks",
        devid: |entry| Some(Vdev::new(entry.get("vdev")?.as_str()?).ok()?.devid()),
        complete: |_, _| {},
    },
    runs: |keys| if is_of_tap(keys) { &[xen_hotplug::Kind::Vbd3] } else { &[xen_hotplug::Kind::Vbd] },
    unreported: |keys| {
        if is_of_tap(keys) {
            // Of a socket, which has no numbers.
            return (!keys.contains_key("physical-device-path")).then_some(("physical-device-path", None));
        }
        let numbers = keys.get("physical-device");
        if numbers.is_some_and(|numbers| is_numbers(numbers)) {
            return None;
        }
        let wrote = |key: &str| keys.get(key).map(|value| format!("{key}={}", printable(value, LINE_SHOWN)));
        Some(("physical-device", wrote("physical-device").or_else(|| wrote("physical-device-path"))))
    },
    numbers: Some(("physical-device-path", "physical-device")),
    target: |keys| keys.get("params").map(String::as_str).filter(|params| params.starts_with('/')),
    undo,
};

/// Disks whose protocol is virtio. Their server is told by xenstore where the guest has their registers.
pub(crate) const VIRTIO: KindInfo = KindInfo {
    name: "virtio_disk",
    backends: &[BackendKind::VirtioDisk],
    backend_module: "none: a program of its own serves it",
    frontend_module: "virtio_blk",
    made: &[],
    outlives_backend: false,
    runs: |_| &[],
    unreported: |_| None,
    numbers: None,
    target: |_| None,
    undo: |_, _| Some(Recorded::new()),
    ..INFO
};

/// Whether tapback serves a disk of these keys.
fn is_of_tap(keys: &Recorded) -> bool {
    keys.get("type").is_some_and(|kind| kind == "vbd3")
}

/// Whether a text is what blkback reads: the numbers of a block device in hexadecimal, as in `7:0`.
fn is_numbers(text: &str) -> bool {
    let is_hex = |text: &str, most: u32| {
        text.bytes().all(|byte| byte.is_ascii_hexdigit())
            && u32::from_str_radix(text, 16).is_ok_and(|n| n <= most)
    };
    text.split_once(':').is_some_and(|(major, minor)| is_hex(major, 0xfff) && is_hex(minor, 0xf_ffff))
}

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

/// A choice of a disk by its names in a specification.
macro_rules! choice {
    ($(#[$about:meta])* $name:ident { $($(#[$what:meta])* $variant:ident = $text:literal),* $(,)? }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$what])* $variant,)*
        }

        impl $name {
            const ALL: &[Self] = &[$(Self::$variant),*];

            /// Its name in a disk specification and in libxl's JSON.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }

            fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|choice| choice.name() == name)
            }
        }
    };
}

choice! {
    /// The format of a disk's image.
    Format {
        /// The bytes of the disk.
        Raw = "raw",
        /// QEMU's first format.
        Qcow = "qcow",
        /// QEMU's second format.
        Qcow2 = "qcow2",
        /// QEMU's enhanced disk.
        Qed = "qed",
        /// Virtual hard disk.
        Vhd = "vhd",
        /// No medium.
        Empty = "empty",
    }
}

impl Format {
    /// How `params` names it to QEMU.
    pub(crate) const fn of_qemu(self) -> &'static str {
        match self {
            Self::Raw | Self::Empty => "aio",
            other => other.name(),
        }
    }

    /// What QEMU's block layer calls it.
    pub(crate) const fn of_block_layer(self) -> &'static str {
        match self {
            Self::Raw | Self::Empty => "raw",
            Self::Vhd => "vpc",
            other => other.name(),
        }
    }
}

choice! {
    /// What serves a disk.
    Backend {
        /// The kernel's blkback.
        Phy = "phy",
        /// blktap.
        Tap = "tap",
        /// QEMU.
        Qdisk = "qdisk",
        /// A program of its own, for virtio.
        Standalone = "standalone",
    }
}

choice! {
    /// The protocol between the guest and the backend.
    Specification {
        /// Xen's block interface.
        Xen = "xen",
        /// virtio.
        Virtio = "virtio",
    }
}

/// Where a guest has the registers of a virtio disk: as its device tree says, which is made with the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mmio {
    /// Their address, as the guest has it.
    pub base: u64,
    /// The number of the interrupt.
    pub irq: u32,
}

/// What a specification says of COLO, which keeps two copies of a guest in step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Colo {
    /// `colo` or `no-colo`.
    pub enable: Option<bool>,
    /// `colo-host=`.
    pub host: Option<String>,
    /// `colo-port=`.
    pub port: Option<u16>,
    /// `colo-export=`.
    pub export: Option<String>,
    /// `active-disk=`.
    pub active_disk: Option<String>,
    /// `hidden-disk=`.
    pub hidden_disk: Option<String>,
}

/// A disk as it is asked for. `None` is what was not said: whoever adds it fills in the default.
///
/// All that xl's grammar can say is here; what this version serves is a block device, or a file that its
/// script puts behind one, by the kernel's blkback in the toolstack's own or a driver domain, images of all formats by
/// QEMU there, and raw and VHD images by blktap; and for whoever creates a domain, virtio disks. Adding anything else
/// fails with [`Cause::Unsupported`](crate::Cause::Unsupported).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Vbd {
    /// The name of the domain that serves it, or its domid; the toolstack's own if it is empty.
    pub backend_name: Option<String>,
    /// What is served: an absolute path, or whatever the script understands. A CD-ROM needs none.
    pub target: Option<String>,
    /// What the guest sees.
    pub vdev: Vdev,
    /// What serves it; if not said, what can.
    pub backend: Option<Backend>,
    /// The format of the image.
    pub format: Format,
    /// The hotplug script, absolute or in the script directory; `block` if none, or if it is empty.
    pub script: Option<String>,
    /// Whether the guest may write.
    pub writable: bool,
    /// Whether it is a CD-ROM.
    pub cdrom: bool,
    /// Whether the backend may use direct I/O on any target.
    pub direct_io_safe: bool,
    /// Whether the guest may discard sectors; if not said, when it may write.
    pub discard: Option<bool>,
    /// The protocol; Xen's if not said.
    pub specification: Option<Specification>,
    /// COLO.
    pub colo: Colo,
    /// Whether the guest is to trust the backend; it is if not said.
    pub trusted: Option<bool>,
    /// Whether a virtio backend is to use grants.
    pub grant_usage: Option<bool>,
    /// Where the guest has the registers of a virtio disk, which cannot be had without.
    pub mmio: Option<Mmio>,
    /// Whether the target must be a file or block device of the toolstack's domain when the stock
    /// script serves it. A runner that knows other targets sets it to false.
    pub target_is_local: bool,
}

impl Vbd {
    /// A writable disk.
    pub fn new(target: impl Into<String>, vdev: Vdev) -> Self {
        Self {
            backend_name: None,
            target: Some(target.into()),
            vdev,
            backend: None,
            format: Format::Raw,
            script: None,
            writable: true,
            cdrom: false,
            direct_io_safe: false,
            discard: None,
            specification: None,
            colo: Colo::default(),
            trusted: None,
            grant_usage: None,
            mmio: None,
            target_is_local: true,
        }
    }

    fn is_virtio(&self) -> bool {
        self.specification == Some(Specification::Virtio)
    }

    fn script(&self) -> Option<&str> {
        self.script.as_deref().filter(|script| !script.is_empty())
    }

    fn target(&self) -> &str {
        self.target.as_deref().unwrap_or_default()
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
        // QEMU knows targets that are no files, such as `nbd:`.
        let is_file = self.backend != Some(Backend::Qdisk) || self.target().starts_with('/');
        let is_here = self.script().is_none() && self.target_is_local && self.format != Format::Empty;
        (is_here && is_file).then(|| self.target())
    }

    fn backend(&self, guest: &Guest) -> BackendKind {
        if self.is_virtio() {
            return BackendKind::VirtioDisk;
        }
        if self.backend == Some(Backend::Tap) {
            return BackendKind::Vbd3;
        }
        let by_qemu = match self.backend {
            Some(backend) => backend == Backend::Qdisk,
            // QEMU emulates the drive of an HVM guest, too; and blkback has no drives without a medium.
            None => self.cdrom && guest.is_hvm() || self.format != Format::Raw,
        };
        if by_qemu { BackendKind::Qdisk } else { BackendKind::Vbd }
    }

    fn backend_name(&self) -> Option<&str> {
        self.backend_name.as_deref()
    }

    fn check(&self, guest: &Guest) -> Result<(), Cause> {
        let unsupported = |what: String| Err(Cause::Unsupported(what));
        if self.colo != Colo::default() {
            return unsupported("COLO".to_owned());
        }
        if self.grant_usage.is_some() && !self.is_virtio() {
            return unsupported("grant_usage=".to_owned());
        }
        let invalid = |why: &str| Err(Cause::Invalid(why.to_owned()));
        if self.format == Format::Empty && !(self.cdrom && self.target().is_empty()) {
            return invalid("only a CD-ROM without a target has the format empty");
        }
        let of_virtio = match self.backend {
            None => self.is_virtio(),
            Some(backend) => backend == Backend::Standalone,
        };
        if of_virtio != self.is_virtio() {
            return invalid("specification=virtio and backendtype=standalone go with each other");
        }
        match self.backend(guest) {
            BackendKind::VirtioDisk
                if self.format != Format::Raw || self.script().is_some() || self.cdrom =>
            {
                invalid("a virtio disk is raw, is no CD-ROM, and has no script")
            }
            BackendKind::VirtioDisk if self.mmio.is_none() => Err(Cause::NotSupported {
                what: "specification=virtio".to_owned(),
                needs: "the address and the interrupt that the domain was created with for it",
            }),
            BackendKind::VirtioDisk => Ok(()),
            BackendKind::Vbd3 if !matches!(self.format, Format::Raw | Format::Vhd) => {
                invalid("backendtype=tap serves the formats raw and vhd alone")
            }
            BackendKind::Vbd3 => Ok(()),
            BackendKind::Qdisk if self.script().is_some() => invalid(
                "QEMU serves it, which runs no script (only raw disks have scripts, by backendtype=phy)",
            ),
            BackendKind::Qdisk => Ok(()),
            _ if self.format == Format::Empty => {
                unsupported("a CD-ROM drive without a medium by backendtype=phy".to_owned())
            }
            _ if self.format != Format::Raw => invalid("backendtype=phy serves the format raw alone"),
            _ => Ok(()),
        }
    }

    fn check_hot(&self, _: &Guest) -> Result<(), Cause> {
        if !self.is_virtio() {
            return Ok(());
        }
        let needs = "a place in the device tree that the domain is created with";
        Err(Cause::NotSupported { what: "a virtio disk of a domain that may run".to_owned(), needs })
    }

    fn libxl(&self) -> Map<String, Value> {
        let Self { backend_name, target, vdev, backend, format, script, colo, .. } = self;
        let mut members = Members::new();
        members.text("backend_domname", backend_name).text("pdev_path", target).add("vdev", vdev.name());
        members.option("backend", backend.map(Backend::name)).add("format", format.name());
        members.text("script", script).flag("removable", self.cdrom).flag("readwrite", self.writable);
        members.flag("is_cdrom", self.cdrom).option("direct_io_safe", self.direct_io_safe.then_some(true));
        members.choice("discard_enable", self.discard);
        members.option("specification", self.specification.map(Specification::name));
        members.choice("colo_enable", colo.enable).text("colo_host", &colo.host);
        members.option("colo_port", colo.port).text("colo_export", &colo.export);
        members.text("active_disk", &colo.active_disk).text("hidden_disk", &colo.hidden_disk);
        members.choice("trusted", self.trusted).choice("grant_usage", self.grant_usage);
        members.into()
    }

    fn tree(&self, id: &DeviceId, guest: &Guest) -> Tree {
        let flag = |yes: bool| if yes { "1" } else { "0" };
        let device_type = if self.cdrom { "cdrom" } else { "disk" };
        let mut be = Keys::new();
        let with_format = || format!("{}:{}", self.format.of_qemu(), self.target());
        let (params, script, server) = match id.be_kind {
            BackendKind::Qdisk => (with_format(), None, "qdisk"),
            BackendKind::Vbd3 => (with_format(), Some("block-tap"), "vbd3"),
            BackendKind::VirtioDisk => (self.target().to_owned(), None, "standalone"),
            _ => (self.target().to_owned(), Some("block"), "phy"),
        };
        be.add("params", params);
        if let Some(script) = script {
            be.add("script", guest.script(self.script().unwrap_or(script)));
        }
        be.add("frontend-id", id.fe).add("online", 1);
        be.add("removable", flag(self.cdrom)).add("bootable", 1);
        be.add("state", 1).add("dev", &self.vdev);
        be.add("type", server);
        be.add("mode", if self.writable { "w" } else { "r" }).add("device-type", device_type);
        if self.direct_io_safe {
            be.add("direct-io-safe", 1);
        }
        be.add("discard-enable", flag(self.discard.unwrap_or(self.writable)));
        match self.mmio.filter(|_| self.is_virtio()) {
            Some(Mmio { base, irq }) => {
                be.add("specification", "virtio").add("transport", "mmio").add("base", base).add("irq", irq);
                be.add("grant_usage", flag(self.grant_usage.unwrap_or(id.be != DomId::DOM0)));
            }
            None => {
                be.add("specification", "xen");
            }
        }
        let mut fe = Keys::new();
        fe.add("backend-id", id.be).add("state", 1).add("virtual-device", id.devid);
        fe.add("device-type", device_type).add("trusted", flag(self.trusted.unwrap_or(true)));
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
    fn the_numbers_of_a_block_device() {
        for good in ["7:0", "fd:1f", "103:fffff"] {
            assert!(is_numbers(good), "{good}");
        }
        for bad in ["", ":", "7", "7:", ":0", "zz", "7:0 ", "+7:0", "1000:0", "fff:100000", "7:0:0"] {
            assert!(!is_numbers(bad), "{bad}");
        }
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
