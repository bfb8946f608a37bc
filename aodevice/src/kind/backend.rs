//! The kinds of backend: what serves a device. A kind of device may have several.

use std::fmt;

use serde::Serialize;

/// The kind of a backend, as it stands in store paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum BackendKind {
    /// The kernel's blkback.
    Vbd,
    /// The kernel's netback.
    Vif,
    /// QEMU, for disks.
    Qdisk,
    /// tapback, of blktap.
    Vbd3,
    /// A program for disks whose protocol is virtio.
    #[serde(rename = "virtio_disk")]
    VirtioDisk,
    /// QEMU, for framebuffers.
    Vfb,
    /// QEMU, for keyboards and pointers.
    Vkbd,
    /// The stub domain of a trusted platform module.
    Vtpm,
    /// A daemon, for keyboards and pointers.
    Vinput,
    /// A daemon, for displays.
    Vdispl,
    /// A daemon, for sound.
    Vsnd,
    /// The kernel's pvcalls-back.
    Pvcalls,
    /// A daemon, for virtio devices that are no disks.
    Virtio,
    /// QEMU, for file systems.
    #[serde(rename = "9pfs")]
    P9,
    /// QEMU, or xenconsoled, for consoles.
    Console,
    /// The kernel's usbback.
    Vusb,
    /// QEMU, for USB controllers.
    Qusb,
    /// xen-9pfsd.
    #[serde(rename = "xen_9pfs")]
    Xen9pfs,
    /// The kernel's pciback.
    Pci,
}

/// Who moves a backend's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Server {
    /// The kernel of the backend's domain.
    Kernel,
    /// The guest's device model: a process that may be asked to end, or die.
    DeviceModel,
    /// A program of its own in the backend's domain.
    Daemon,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::DeviceModel => "device model",
            Self::Daemon => "daemon",
        })
    }
}

impl BackendKind {
    /// All kinds.
    pub const ALL: [Self; 19] = [
        Self::Vbd,
        Self::Vif,
        Self::Qdisk,
        Self::Vbd3,
        Self::VirtioDisk,
        Self::Vfb,
        Self::Vkbd,
        Self::P9,
        Self::Xen9pfs,
        Self::Console,
        Self::Vusb,
        Self::Qusb,
        Self::Vtpm,
        Self::Vinput,
        Self::Vdispl,
        Self::Vsnd,
        Self::Pvcalls,
        Self::Virtio,
        Self::Pci,
    ];

    /// Its name in store paths.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vbd => "vbd",
            Self::Vif => "vif",
            Self::Qdisk => "qdisk",
            Self::Vbd3 => "vbd3",
            Self::VirtioDisk => "virtio_disk",
            Self::Vfb => "vfb",
            Self::Vkbd => "vkbd",
            Self::Vtpm => "vtpm",
            Self::Vinput => "vinput",
            Self::Vdispl => "vdispl",
            Self::Vsnd => "vsnd",
            Self::Pvcalls => "pvcalls",
            Self::Virtio => "virtio",
            Self::P9 => "9pfs",
            Self::Xen9pfs => "xen_9pfs",
            Self::Console => "console",
            Self::Vusb => "vusb",
            Self::Qusb => "qusb",
            Self::Pci => "pci",
        }
    }

    /// The kind of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether hotplug scripts may be run for it (on Linux).
    pub const fn is_scripted(self) -> bool {
        matches!(self, Self::Vbd | Self::Vbd3 | Self::Vif)
    }

    /// Whether the daemon of a driver domain takes care of it there: it runs the scripts, or starts QEMU.
    pub const fn is_of_devd(self) -> bool {
        self.is_scripted() || matches!(self, Self::Qdisk)
    }

    /// Who moves its state.
    pub const fn server(self) -> Server {
        match self {
            Self::Vbd | Self::Vif | Self::Vusb | Self::Pvcalls | Self::Pci => Server::Kernel,
            Self::Qdisk | Self::Vfb | Self::Vkbd | Self::P9 | Self::Console | Self::Qusb => {
                Server::DeviceModel
            }
            Self::Xen9pfs
            | Self::Vbd3
            | Self::VirtioDisk
            | Self::Vtpm
            | Self::Vinput
            | Self::Vdispl
            | Self::Vsnd
            | Self::Virtio => Server::Daemon,
        }
    }

    /// The name of the program that serves it, if that is one of its own.
    pub(crate) const fn daemon(self) -> Option<&'static str> {
        match self {
            Self::Xen9pfs => Some("xen-9pfsd"),
            Self::Vbd3 => Some("tapback"),
            Self::VirtioDisk => Some("virtio-disk"),
            _ => None,
        }
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
