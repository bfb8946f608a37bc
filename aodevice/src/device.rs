//! A device as it is asked for.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::Kind;
use crate::kind::Spec;
use crate::kind::console::Channel;
use crate::kind::p9::P9;
use crate::kind::pcidev::PciDev;
use crate::kind::pvcalls::Pvcalls;
use crate::kind::usbctrl::UsbCtrl;
use crate::kind::usbdev::UsbDev;
use crate::kind::vbd::{Specification, Vbd};
use crate::kind::vdispl::Vdispl;
use crate::kind::vfb::Vfb;
use crate::kind::vif::Vif;
use crate::kind::virtio::Virtio;
use crate::kind::vkb::Vkb;
use crate::kind::vsnd::Vsnd;
use crate::kind::vtpm::Vtpm;

/// A device to add.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Device {
    /// Sockets in the backend's domain.
    Pvcalls(Pvcalls),
    /// A disk.
    Vbd(Vbd),
    /// A display.
    Vdispl(Vdispl),
    /// A framebuffer.
    Vfb(Vfb),
    /// A network interface.
    Vif(Vif),
    /// A virtio device that is no disk.
    Virtio(Virtio),
    /// A keyboard with a pointer.
    Vkb(Vkb),
    /// A sound card.
    Vsnd(Vsnd),
    /// A trusted platform module.
    Vtpm(Vtpm),
    /// A file system.
    P9(P9),
    /// A channel.
    Channel(Channel),
    /// A USB controller.
    UsbCtrl(UsbCtrl),
}

/// What a guest can be given: a device, or one of the host's that becomes part of one ([`usbdev`](crate::usbdev),
/// [`pcidev`](crate::pcidev)).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Attachment {
    /// A device.
    Device(Arc<Device>),
    /// A USB device of the host, for a port of a controller.
    UsbDev(UsbDev),
    /// A PCI function of the host, for the bus.
    PciDev(PciDev),
}

impl From<Device> for Attachment {
    fn from(device: Device) -> Self {
        Self::Device(Arc::new(device))
    }
}

impl Attachment {
    /// The kind of the device that it is, or becomes part of.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Device(device) => device.kind(),
            Self::UsbDev(_) => Kind::Vusb,
            Self::PciDev(_) => Kind::Pci,
        }
    }

    /// What libxl keeps of it: see [`Device::libxl`].
    pub fn libxl(&self) -> Map<String, Value> {
        match self {
            Self::Device(device) => device.libxl(),
            Self::UsbDev(dev) => dev.libxl(),
            Self::PciDev(dev) => dev.libxl(),
        }
    }
}

impl Device {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Pvcalls(_) => Kind::Pvcalls,
            Self::Vbd(vbd) if vbd.specification == Some(Specification::Virtio) => Kind::VirtioDisk,
            Self::Vbd(_) => Kind::Vbd,
            Self::Vdispl(_) => Kind::Vdispl,
            Self::Vfb(_) => Kind::Vfb,
            Self::Vif(_) => Kind::Vif,
            Self::Virtio(_) => Kind::Virtio,
            Self::Vkb(_) => Kind::Vkbd,
            Self::Vsnd(_) => Kind::Vsnd,
            Self::Vtpm(_) => Kind::Vtpm,
            Self::P9(_) => Kind::P9,
            Self::Channel(_) => Kind::Console,
            Self::UsbCtrl(_) => Kind::Vusb,
        }
    }

    /// Its device id, if that is fixed.
    pub fn devid(&self) -> Option<u32> {
        self.as_spec().devid()
    }

    /// What libxl keeps of it: an entry of `disks`, `nics` or another array in a domain's configuration, with what was
    /// said, in libxl's names and order. `xl -N` prints the same.
    pub fn libxl(&self) -> Map<String, Value> {
        self.as_spec().libxl()
    }

    /// The same device with what was left open settled, so that every attempt writes the same.
    pub(crate) fn settled(&self) -> Self {
        let mut device = self.clone();
        device.as_spec_mut().settle();
        device
    }

    /// Gives it this device id, if it has none and can have any.
    pub(crate) fn number(&mut self, devid: u32) {
        self.as_spec_mut().number(devid);
    }

    fn as_spec_mut(&mut self) -> &mut dyn Spec {
        match self {
            Self::Pvcalls(pvcalls) => pvcalls,
            Self::Vbd(vbd) => vbd,
            Self::Vdispl(vdispl) => vdispl,
            Self::Vfb(vfb) => vfb,
            Self::Vif(vif) => vif,
            Self::Virtio(virtio) => virtio,
            Self::Vkb(vkb) => vkb,
            Self::Vsnd(vsnd) => vsnd,
            Self::Vtpm(vtpm) => vtpm,
            Self::P9(p9) => p9,
            Self::Channel(channel) => channel,
            Self::UsbCtrl(ctrl) => ctrl,
        }
    }

    pub(crate) fn as_spec(&self) -> &dyn Spec {
        match self {
            Self::Pvcalls(pvcalls) => pvcalls,
            Self::Vbd(vbd) => vbd,
            Self::Vdispl(vdispl) => vdispl,
            Self::Vfb(vfb) => vfb,
            Self::Vif(vif) => vif,
            Self::Virtio(virtio) => virtio,
            Self::Vkb(vkb) => vkb,
            Self::Vsnd(vsnd) => vsnd,
            Self::Vtpm(vtpm) => vtpm,
            Self::P9(p9) => p9,
            Self::Channel(channel) => channel,
            Self::UsbCtrl(ctrl) => ctrl,
        }
    }
}
