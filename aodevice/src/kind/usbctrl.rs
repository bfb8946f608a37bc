//! USB controllers, whose ports take devices of the host.
//!
//! Two backends serve a paravirtual one: the guest's device model (`qusb`), and the kernel's usbback (`pv`), which
//! mainline Linux does not have. One that the device model emulates for an HVM guest (`devicemodel`) has no backend in
//! the store at all; it is QEMU's monitor that makes it.
//!
//! Source of the keys: `xen/include/public/io/usbif.h`, `tools/libs/light/libxl_types.idl` for the names in libxl's
//! JSON, and what `xl usbctrl-attach` of Xen 4.17 was seen to write. That of the words: `docs/man/xl.cfg.5.pod.in`,
//! `usbctrl=`.

use serde_json::{Map, Value};

use super::members::Members;
use super::words::{self, SpecError};
use super::{BackendKind, KindInfo, ListedKey, Spec, vkb};
use crate::libxl::Listing;
use crate::tree::Keys;
use crate::{Cause, DeviceId, Guest, Tree};

/// The most ports that a paravirtual controller has.
pub(super) const MOST_PORTS: u32 = 31;

/// The keys of the ports, from 1.
pub(crate) const PORTS: [&str; MOST_PORTS as usize] = [
    "port/1", "port/2", "port/3", "port/4", "port/5", "port/6", "port/7", "port/8", "port/9", "port/10",
    "port/11", "port/12", "port/13", "port/14", "port/15", "port/16", "port/17", "port/18", "port/19",
    "port/20", "port/21", "port/22", "port/23", "port/24", "port/25", "port/26", "port/27", "port/28",
    "port/29", "port/30", "port/31",
];

pub(crate) const INFO: KindInfo = KindInfo {
    name: "vusb",
    backends: &[BackendKind::Vusb, BackendKind::Qusb],
    backend_module: "xen-usbback",
    frontend_module: "xen-hcd",
    listed: &[
        ListedKey::recorded("type", "type"),
        ListedKey::recorded("version", "usb-ver"),
        ListedKey::recorded("ports", "num-ports"),
    ],
    libxl: Listing {
        complete: |devid, entry| {
            if entry.insert("devid".to_owned(), devid.into()).is_none() {
                let place = usize::from(entry.contains_key("type"));
                entry.shift_insert(place, "devid".to_owned(), devid.into());
            }
        },
        ..Listing::by_devid("usbctrls")
    },
    ..vkb::INFO
};

/// What serves a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum UsbCtrlType {
    /// The kernel's usbback.
    Pv,
    /// The guest's device model, as a paravirtual controller.
    Qusb,
    /// The guest's device model, which emulates it.
    DeviceModel,
}

impl UsbCtrlType {
    /// Its name in a configuration, in the store and in libxl's JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pv => "pv",
            Self::Qusb => "qusb",
            Self::DeviceModel => "devicemodel",
        }
    }
}

/// A controller as it is asked for. `None` is what was not said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UsbCtrl {
    /// Its device id; the smallest free one if none.
    pub devid: Option<u32>,
    /// What serves it; if not said, the device model: by emulation if the guest is an HVM guest.
    pub usb_type: Option<UsbCtrlType>,
    /// The version of USB, 1 or 2, or 3 of an emulated one; 2 if not said.
    pub version: Option<u32>,
    /// How many ports it has, at most 31; 8 if not said.
    pub ports: Option<u32>,
    /// The name of the domain that serves it, or its domid; the toolstack's own if it is empty.
    pub backend_name: Option<String>,
}

/// Reads the words of `usbctrl-attach`, or an entry of `usbctrl=[...]` of a domain configuration, which is one argument.
///
/// # Errors
///
/// They name the parameter.
pub fn parse(arguments: &[impl AsRef<str>]) -> Result<UsbCtrl, SpecError> {
    let mut ctrl = UsbCtrl::default();
    words::read(arguments, |key, value| {
        match key {
            "type" => {
                ctrl.usb_type = match value {
                    "auto" => None,
                    "pv" => Some(UsbCtrlType::Pv),
                    "qusb" => Some(UsbCtrlType::Qusb),
                    "devicemodel" => Some(UsbCtrlType::DeviceModel),
                    _ => return Err("a type is auto, pv, qusb or devicemodel"),
                };
            }
            "version" => {
                let version = words::number(value, 3).filter(|version| *version > 0);
                ctrl.version = Some(version.ok_or("a version of USB is 1, 2 or 3")?);
            }
            "ports" => {
                let ports = words::number(value, MOST_PORTS).filter(|ports| *ports > 0);
                ctrl.ports = Some(ports.ok_or("a controller has 1 to 31 ports")?);
            }
            "backend" => ctrl.backend_name = Some(value.to_owned()),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(ctrl)
}

impl UsbCtrl {
    fn usb_type(&self, guest: &Guest) -> UsbCtrlType {
        let default = if guest.is_hvm() { UsbCtrlType::DeviceModel } else { UsbCtrlType::Qusb };
        self.usb_type.unwrap_or(default)
    }

    fn version(&self) -> u32 {
        self.version.unwrap_or(2)
    }

    fn ports(&self) -> u32 {
        self.ports.unwrap_or(8)
    }
}

impl Spec for UsbCtrl {
    fn devid(&self) -> Option<u32> {
        self.devid
    }

    fn number(&mut self, devid: u32) {
        self.devid.get_or_insert(devid);
    }

    fn label(&self) -> String {
        self.devid.map_or_else(|| "with the next id".to_owned(), |devid| devid.to_string())
    }

    fn backend(&self, guest: &Guest) -> BackendKind {
        match self.usb_type(guest) {
            UsbCtrlType::Pv => BackendKind::Vusb,
            UsbCtrlType::Qusb | UsbCtrlType::DeviceModel => BackendKind::Qusb,
        }
    }

    fn backend_name(&self) -> Option<&str> {
        self.backend_name.as_deref()
    }

    fn check(&self, guest: &Guest) -> Result<(), Cause> {
        if self.usb_type(guest) == UsbCtrlType::DeviceModel {
            let what = "a USB controller of type=devicemodel".to_owned();
            return Err(Cause::NotSupported { what, needs: "the device model's monitor (QMP)" });
        }
        if self.version() > 2 {
            return Err(Cause::Invalid("a paravirtual USB controller has version 1 or 2".to_owned()));
        }
        if !(1..=MOST_PORTS).contains(&self.ports()) || self.version() == 0 {
            return Err(Cause::Invalid("a USB controller has version 1 or 2, and 1 to 31 ports".to_owned()));
        }
        Ok(())
    }

    fn libxl(&self) -> Map<String, Value> {
        let mut members = Members::new();
        members.option("type", self.usb_type.map(UsbCtrlType::name)).option("devid", self.devid);
        members.add("version", self.version()).add("ports", self.ports());
        members.text("backend_domname", &self.backend_name);
        members.into()
    }

    fn tree(&self, id: &DeviceId, guest: &Guest) -> Tree {
        let mut be = Keys::new();
        be.add("frontend-id", id.fe).add("online", 1).add("state", 1);
        be.add("type", self.usb_type(guest).name()).add("usb-ver", self.version());
        be.add("num-ports", self.ports()).add("port", "");
        for port in PORTS.iter().take(self.ports() as usize) {
            be.add(*port, "");
        }
        Tree { frontend: super::plain_frontend(id), frontend_read_only: Keys::new(), backend: be }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    #[test]
    fn words_and_the_entry_that_xl_makes_of_them() {
        for (words, json) in [
            (
                &["type=qusb", "version=2", "ports=3"][..],
                r#"{"type":"qusb","devid":4,"version":2,"ports":3}"#,
            ),
            (&["type=pv,ports=31,version=1"], r#"{"type":"pv","devid":4,"version":1,"ports":31}"#),
            (&["type=auto"], r#"{"devid":4,"version":2,"ports":8}"#),
        ] {
            let mut entry = Device::UsbCtrl(parse(words).unwrap()).libxl();
            (INFO.libxl.complete)(4, &mut entry);
            assert_eq!(Value::from(entry).to_string(), json, "{words:?}");
        }
    }

    #[test]
    fn the_keys_of_the_ports() {
        for (index, port) in PORTS.iter().enumerate() {
            assert_eq!(*port, format!("port/{}", index + 1));
        }
    }

    #[test]
    fn refusals() {
        for (words, why) in [
            ("type=foo", "\"type=foo\": a type is auto, pv, qusb or devicemodel"),
            ("version=0", "\"version=0\": a version of USB is 1, 2 or 3"),
            ("version=4", "\"version=4\": a version of USB is 1, 2 or 3"),
            ("ports=0", "\"ports=0\": a controller has 1 to 31 ports"),
            ("ports=40", "\"ports=40\": a controller has 1 to 31 ports"),
            ("hostbus=1", "\"hostbus=1\" is no parameter"),
        ] {
            assert_eq!(parse(&[words]).unwrap_err().to_string(), why, "{words}");
        }
    }
}
