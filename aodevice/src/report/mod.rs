//! How operations end: a [`Success`] or a [`Failure`], both with warnings, and the [`Step`]s on the
//! way. All of them carry the identity of the device, and all can be serialised.

mod cause;
mod failure;
mod hint;
mod observation;
mod warning;

use std::time::Duration;

use serde::{Serialize, Serializer};
use xen_hotplug::printable;
use xs_client::DomId;

pub use cause::{Cause, DriverDomainFault, End, FailureKind};
pub use failure::{Failure, Operation};
pub use hint::Hint;
pub use observation::Observation;
pub use warning::{InDrive, Warning};

use crate::id::domid_number;
use crate::pcidev::PciAddress;
use crate::usbdev::UsbDev;
use crate::{Device, DeviceId, Kind, Which};

/// How many characters of a device's name are shown.
const NAME_SHOWN: usize = 100;

/// A device in a report: its identity, as far as it is known, and its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Named {
    /// The guest.
    #[serde(serialize_with = "domid_number")]
    pub fe: DomId,
    /// Its kind.
    pub kind: Kind,
    /// Its number; `None` as long as it has none.
    pub devid: Option<u32>,
    /// What an operator calls it: `xvda`, the number of a channel, or the bridge of an interface that has no number yet.
    pub name: String,
}

impl Named {
    /// A device that is asked for.
    pub(crate) fn of_device(fe: DomId, device: &Device) -> Self {
        Self { fe, kind: device.kind(), devid: device.devid(), name: device.as_spec().label() }
    }

    /// A USB device of the host that is asked for.
    pub(crate) fn of_usb(fe: DomId, dev: &UsbDev) -> Self {
        Self { fe, kind: Kind::Vusb, devid: dev.controller, name: format!("device {}", dev.host) }
    }

    /// A PCI function of the host.
    pub(crate) fn of_pci(fe: DomId, address: PciAddress) -> Self {
        Self { fe, kind: Kind::Pci, devid: Some(0), name: address.to_string() }
    }

    /// A device that has its number.
    pub(crate) fn of_id(which: Which) -> Self {
        let Which { fe, kind, devid } = which;
        Self { fe, kind, devid: Some(devid), name: (kind.info().id_name)(devid) }
    }
}

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind.noun(), printable(&self.name, NAME_SHOWN))
    }
}

/// A step of an operation, as it is taken.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Step {
    /// The device.
    pub device: Named,
    /// The operation.
    pub operation: Operation,
    /// Time since the operation began, in seconds when serialised.
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub elapsed: Duration,
    /// What is being done, in words.
    pub doing: String,
    /// Whether the device's backend has been told to close, if that was to be done.
    #[serde(skip)]
    pub(crate) told: bool,
    /// Whether the device has its place in the store, and so its id.
    #[serde(skip)]
    pub(crate) placed: bool,
}

/// As in `vbd xvda of domain 1: running the hotplug script`.
impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of domain {}: {}", self.device, self.device.fe, self.doing)
    }
}

/// An operation that succeeded.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Success {
    /// The device.
    #[serde(rename = "device")]
    pub id: DeviceId,
    /// Which part of it, if what came or went is a device of the host that is part of another one.
    #[serde(flatten)]
    pub part: Option<Part>,
    /// What did not go well all the same.
    pub warnings: Vec<Warning>,
    /// How long it took, in seconds when serialised.
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub elapsed: Duration,
}

/// Which device it is, as in `port 1 of vusb 0 of domain 7`.
impl std::fmt::Display for Success {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.part {
            Some(Part::Port { port, .. }) => write!(f, "port {port} of {}", self.id),
            Some(Part::Function { function }) => write!(f, "function {function} of {}", self.id),
            None => self.id.fmt(f),
        }
    }
}

/// A device of the host that is part of a guest's device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum Part {
    /// A USB device in a port of a controller.
    #[non_exhaustive]
    Port {
        /// The number of the port, from 1.
        port: u32,
        /// Whether the controller was made for it.
        made_controller: bool,
    },
    /// A PCI function of a bus.
    #[non_exhaustive]
    Function {
        /// Where the host has it.
        #[serde(serialize_with = "as_text")]
        function: PciAddress,
    },
}

fn as_text<S: Serializer>(address: &PciAddress, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(address)
}

pub(crate) fn seconds<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(duration.as_secs_f64())
}
