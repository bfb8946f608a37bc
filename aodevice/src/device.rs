//! A device as it is asked for.

use serde_json::{Map, Value};

use crate::Kind;
use crate::kind::Spec;
use crate::kind::console::Channel;
use crate::kind::p9::P9;
use crate::kind::usbctrl::UsbCtrl;
use crate::kind::vbd::{Specification, Vbd};
use crate::kind::vfb::Vfb;
use crate::kind::vif::Vif;
use crate::kind::vkb::Vkb;

/// A device to add.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Device {
    /// A disk.
    Vbd(Vbd),
    /// A framebuffer.
    Vfb(Vfb),
    /// A network interface.
    Vif(Vif),
    /// A keyboard with a pointer.
    Vkb(Vkb),
    /// A file system.
    P9(P9),
    /// A channel.
    Channel(Channel),
    /// A USB controller.
    UsbCtrl(UsbCtrl),
}

impl Device {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Vbd(vbd) if vbd.specification == Some(Specification::Virtio) => Kind::VirtioDisk,
            Self::Vbd(_) => Kind::Vbd,
            Self::Vfb(_) => Kind::Vfb,
            Self::Vif(_) => Kind::Vif,
            Self::Vkb(_) => Kind::Vkbd,
            Self::P9(_) => Kind::P9,
            Self::Channel(_) => Kind::Console,
            Self::UsbCtrl(_) => Kind::Vusb,
        }
    }

    /// Its device id, if that is fixed.
    pub fn devid(&self) -> Option<u32> {
        self.as_spec().devid()
    }

    /// What libxl keeps of it: an entry of `disks`, `nics` or another array in a domain's configuration, with what was said,
    /// in libxl's names and order. `xl -N` prints the same.
    pub fn libxl(&self) -> Map<String, Value> {
        self.as_spec().libxl()
    }

    /// The same device with what was left open settled, so that every attempt writes the same.
    pub(crate) fn settled(&self) -> Self {
        let mut device = self.clone();
        match &mut device {
            Self::Vbd(vbd) => vbd.settle(),
            Self::Vfb(vfb) => vfb.settle(),
            Self::Vif(vif) => vif.settle(),
            Self::Vkb(vkb) => vkb.settle(),
            Self::P9(p9) => p9.settle(),
            Self::Channel(channel) => channel.settle(),
            Self::UsbCtrl(ctrl) => ctrl.settle(),
        }
        device
    }

    pub(crate) fn as_spec(&self) -> &dyn Spec {
        match self {
            Self::Vbd(vbd) => vbd,
            Self::Vfb(vfb) => vfb,
            Self::Vif(vif) => vif,
            Self::Vkb(vkb) => vkb,
            Self::P9(p9) => p9,
            Self::Channel(channel) => channel,
            Self::UsbCtrl(ctrl) => ctrl,
        }
    }
}
