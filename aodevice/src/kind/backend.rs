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
    pub const ALL: [Self; 11] = [
        Self::Vbd,
        Self::Vif,
        Self::Qdisk,
        Self::Vfb,
        Self::Vkbd,
        Self::Vtpm,
        Self::Vinput,
        Self::Vdispl,
        Self::Vsnd,
        Self::Pvcalls,
        Self::Virtio,
    ];

    /// Its name in store paths.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vbd => "vbd",
            Self::Vif => "vif",
            Self::Qdisk => "qdisk",
            Self::Vfb => "vfb",
            Self::Vkbd => "vkbd",
            Self::Vtpm => "vtpm",
            Self::Vinput => "vinput",
            Self::Vdispl => "vdispl",
            Self::Vsnd => "vsnd",
            Self::Pvcalls => "pvcalls",
            Self::Virtio => "virtio",
        }
    }

    /// The kind of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether hotplug scripts may be run for it (on Linux).
    pub const fn is_scripted(self) -> bool {
        matches!(self, Self::Vbd | Self::Vif)
    }

    /// Who moves its state.
    pub const fn server(self) -> Server {
        match self {
            Self::Vbd | Self::Vif | Self::Pvcalls => Server::Kernel,
            Self::Qdisk | Self::Vfb | Self::Vkbd => Server::DeviceModel,
            Self::Vtpm | Self::Vinput | Self::Vdispl | Self::Vsnd | Self::Virtio => Server::Daemon,
        }
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
