//! Virtio devices that are no disks, over MMIO: for guests on Arm.
//!
//! Source: `docs/man/xl.cfg.5.pod.in` of Xen 4.18 and later, whose `xl` has no commands for them and makes them when it
//! creates a domain. The guest knows them from its device tree, so an address and an interrupt can only be what
//! whoever built the guest has set aside for it.

use serde_json::{Map, Value};

use super::members::Members;
use super::words::{self, SpecError};
use super::{Among, BackendKind, KindInfo, ListedKey, Spec, Unique};
use crate::libxl::Listing;
use crate::{DeviceId, Guest, Tree};

pub(crate) const INFO: KindInfo = KindInfo {
    name: "virtio",
    backends: &[BackendKind::Virtio],
    frontend_module: "virtio_mmio",
    listed: &[
        ListedKey::recorded("type", "type"),
        ListedKey::recorded("irq", "irq"),
        ListedKey::recorded("base", "base"),
    ],
    libxl: Listing::by_devid("virtios"),
    ..super::SCRIPTLESS
};

/// What every type begins with; a hexadecimal number of a virtio device may follow.
const TYPE: &str = "virtio,device";

/// A virtio device as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Virtio {
    /// The name of the domain that serves it, or its domid; the toolstack's own if it is empty or not said.
    pub backend_name: Option<String>,
    /// Its device id; the smallest free one if none.
    pub devid: Option<u32>,
    /// What it is, as in a device tree: `virtio,device22` for I2C.
    pub device_type: String,
    /// Whether the guest grants the backend its memory; if not said, unless that is domain 0.
    pub grant_usage: Option<bool>,
    /// Its interrupt.
    pub irq: u32,
    /// The address of its registers.
    pub base: u64,
}

impl Virtio {
    /// A device of this type, such as `virtio,device22`, with its interrupt and the address of its registers.
    pub fn new(device_type: impl Into<String>, irq: u32, base: u64) -> Self {
        let device_type = device_type.into();
        Self { backend_name: None, devid: None, device_type, grant_usage: None, irq, base }
    }
}

/// What a type is like.
const TYPE_FORM: &str = "a type is virtio,device and the number of a device, as in virtio,device22";

fn device_type(text: &str) -> Result<String, &'static str> {
    let number = text.strip_prefix(TYPE);
    let is_type = number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_hexdigit()));
    is_type.then(|| text.to_owned()).ok_or(TYPE_FORM)
}

/// An address, as `0x` and hexadecimal digits or in decimal ones.
fn address(text: &str) -> Result<u64, &'static str> {
    let (digits, radix) = text.strip_prefix("0x").map_or((text, 10), |digits| (digits, 16));
    let has_digits = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let address = u64::from_str_radix(digits, radix).ok().filter(|_| has_digits);
    address.ok_or("give an address such as 0x2000000")
}

/// Reads the arguments of `virtio-attach`, or an entry of the list `virtio` of a domain configuration.
///
/// `type=`, `irq=` and `base=` must be said. The rest is `transport=`, which is `mmio`, `grant_usage=`, which is 0 or
/// 1, `backend=` and `devid=`. The comma in a type, such as `virtio,device22`, is part of it.
///
/// # Errors
///
/// They name the parameter.
pub fn parse(arguments: &[impl AsRef<str>]) -> Result<Virtio, SpecError> {
    let mut virtio = Virtio::new("", 0, 0);
    let (mut irq, mut base) = (None, None);
    words::read_words(arguments, |key, value| {
        let Some(value) = value else {
            // The rest of a type.
            let is_rest = virtio.device_type == "virtio";
            if is_rest {
                virtio.device_type = device_type(&format!("virtio,{key}"))?;
            }
            return Ok(is_rest);
        };
        match key {
            "backend" => virtio.backend_name = Some(value.to_owned()),
            "devid" => virtio.devid = words::devid(value)?,
            // The rest of it comes behind its comma.
            "type" if value == "virtio" => value.clone_into(&mut virtio.device_type),
            "type" => return Err(TYPE_FORM),
            "transport" if value == "mmio" => {}
            "transport" => return Err("a transport is mmio"),
            "grant_usage" => virtio.grant_usage = Some(words::flag(value)?),
            "irq" => irq = Some(words::positive(value)?),
            "base" => base = Some(address(value)?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    match virtio.device_type.as_str() {
        "" => return Err(SpecError::Missing("type")),
        "virtio" => return Err(SpecError::Whole(TYPE_FORM)),
        _ => {}
    }
    virtio.irq = irq.ok_or(SpecError::Missing("irq"))?;
    virtio.base = base.ok_or(SpecError::Missing("base"))?;
    Ok(virtio)
}

impl Spec for Virtio {
    fn devid(&self) -> Option<u32> {
        self.devid
    }

    fn number(&mut self, devid: u32) {
        self.devid.get_or_insert(devid);
    }

    fn backend_name(&self) -> Option<&str> {
        self.backend_name.as_deref()
    }

    fn backend(&self, _: &Guest) -> BackendKind {
        BackendKind::Virtio
    }

    fn domain0_lacks(&self) -> Option<&'static str> {
        Some("it would have to be in the device tree that a guest is made with")
    }

    fn uniques(&self) -> Vec<Unique> {
        let of_guest = |key, value| Unique { key, value, among: Among::OfGuest };
        vec![of_guest("irq", self.irq.to_string()), of_guest("base", format!("{:#x}", self.base))]
    }

    fn libxl(&self) -> Map<String, Value> {
        let mut members = Members::new();
        members.text("backend_domname", &self.backend_name);
        members.add("type", &*self.device_type).add("transport", "mmio");
        members.choice("grant_usage", self.grant_usage).option("devid", self.devid);
        members.add("irq", self.irq).add("base", self.base);
        members.into()
    }

    fn tree(&self, id: &DeviceId, _: &Guest) -> Tree {
        let grant_usage = self.grant_usage.unwrap_or(id.be != xs_client::DomId::DOM0);
        let mut tree = super::plain_tree(id);
        tree.backend.add("irq", self.irq).add("base", format!("{:#x}", self.base));
        tree.backend.add("type", &self.device_type).add("transport", "mmio");
        tree.backend.add("grant_usage", u8::from(grant_usage));
        tree
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::table::outcomes;

    #[test]
    fn what_is_understood() {
        let i2c = r#"{"type":"virtio,device22","transport":"mmio","irq":33,"base":33554432}"#;
        outcomes(
            |words| parse(words).map(crate::Device::Virtio),
            &[
                ("type=virtio,device22|irq=33|base=0x2000000", i2c),
                ("type=virtio,device22, transport=mmio, irq=33, base=33554432", i2c),
                (
                    "base=0x10,irq=1,type=virtio,device,grant_usage=1,backend=0,devid=2",
                    r#"{"backend_domname":"0","type":"virtio,device","transport":"mmio","grant_usage":"True","devid":2,"irq":1,"base":16}"#,
                ),
                ("irq=33|base=0x10", "type= is missing"),
                (
                    "type=virtio|irq=33|base=0x10",
                    "a type is virtio,device and the number of a device, as in virtio,device22",
                ),
                (
                    "type=foo|irq=33|base=0x10",
                    r#""type=foo": a type is virtio,device and the number of a device, as in virtio,device22"#,
                ),
                ("type=virtio,device22|base=0x10", "irq= is missing"),
                ("type=virtio,device22|irq=33", "base= is missing"),
                ("type=virtio,device22|device23", r#""device23" is no parameter"#),
                (
                    "type=virtio,disk",
                    r#""disk": a type is virtio,device and the number of a device, as in virtio,device22"#,
                ),
                ("transport=pci", r#""transport=pci": a transport is mmio"#),
                ("base=0x", r#""base=0x": give an address such as 0x2000000"#),
                ("base=+1", r#""base=+1": give an address such as 0x2000000"#),
            ],
        );
    }
}
