//! PCI functions of the host, all of which are in one directory of the kernel's pciback.
//!
//! That directory is the device `pci 0` of its guest: libxl keeps no record of it, and functions come and go while it
//! stays. So a function is not one of [`Device`](crate::Device): see
//! [`Toolstack::attach_pci`](crate::Toolstack::attach_pci).
//!
//! Source of the keys: `xen/include/public/io/pciif.h`. That of the words: `docs/man/xl-pci-configuration.5.pod`.

use std::fmt;
use std::str::FromStr;

use serde_json::{Map, Value};

use super::members::Members;
use super::words::{self, SpecError};
use super::{BackendKind, KindInfo};
use crate::libxl::Listing;

pub(crate) const INFO: KindInfo = KindInfo {
    name: "pci",
    backends: &[BackendKind::Pci],
    backend_module: "xen-pciback",
    frontend_module: "xen-pcifront",
    libxl: Listing::by_devid("pcidevs"),
    ..super::SCRIPTLESS
};

/// Where a PCI function of the host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PciAddress {
    /// Its domain, also called its segment.
    pub domain: u16,
    /// Its bus.
    pub bus: u8,
    /// Its device, at most 31.
    pub device: u8,
    /// Its function, at most 7.
    pub function: u8,
}

/// As in `0000:03:00.1`.
impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

/// A hexadecimal number of at most `most`, in digits alone.
pub(crate) fn hexadecimal(text: &str, most: u32) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    u32::from_str_radix(text, 16).ok().filter(|number| digits && *number <= most)
}

/// Of `0000:03:00.1`, or of `03:00.1` in the domain 0.
impl FromStr for PciAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let read = || {
            let byte = |text: &str, most: u32| u8::try_from(hexadecimal(text, most)?).ok();
            let (rest, function) = text.rsplit_once('.')?;
            let (rest, device) = rest.rsplit_once(':')?;
            let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0", rest));
            Some(Self {
                domain: hexadecimal(domain, 0xffff)?.try_into().ok()?,
                bus: byte(bus, 0xff)?,
                device: byte(device, 0x1f)?,
                function: byte(function, 7)?,
            })
        };
        read().ok_or("give a function as in 0000:03:00.1 or 03:00.1")
    }
}

/// How strictly the memory that firmware has reserved for a device is kept free in the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RdmPolicy {
    /// A conflict is an error.
    #[default]
    Strict,
    /// A conflict is a warning.
    Relaxed,
}

impl RdmPolicy {
    /// Its name in a configuration and in libxl's JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Relaxed => "relaxed",
        }
    }
}

/// A PCI function as it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PciDev {
    /// Which function of the host.
    pub address: PciAddress,
    /// The slot that it gets in the guest, at most 31; one that is free if not said.
    pub slot: Option<u8>,
    /// Whether interrupts of the kind MSI are shown to the guest as others.
    pub msitranslate: bool,
    /// Whether the guest may change its states of power.
    pub power_mgmt: bool,
    /// Whether the guest may write all of its configuration.
    pub permissive: bool,
    /// What is done with reserved memory.
    pub rdm_policy: RdmPolicy,
}

impl PciDev {
    /// A function with no options.
    pub fn new(address: PciAddress) -> Self {
        Self {
            address,
            slot: None,
            msitranslate: false,
            power_mgmt: false,
            permissive: false,
            rdm_policy: RdmPolicy::default(),
        }
    }

    /// The value of `opts-N`.
    pub(crate) fn options(&self) -> String {
        let Self { msitranslate, power_mgmt, permissive, rdm_policy, .. } = self;
        let flag = |flag: &bool| u8::from(*flag);
        format!(
            "msitranslate={},power_mgmt={},permissive={},rdm_policy={}",
            flag(msitranslate),
            flag(power_mgmt),
            flag(permissive),
            rdm_policy.name()
        )
    }

    /// What libxl's configuration of a domain holds of it.
    pub(crate) fn libxl(&self) -> Map<String, Value> {
        let PciAddress { domain, bus, device, function } = self.address;
        let said = |number: u32| (number > 0).then_some(number);
        let yes = |flag: bool| flag.then_some(true);
        let mut members = Members::new();
        members.option("func", said(function.into())).option("dev", said(device.into()));
        members.option("bus", said(bus.into())).option("domain", said(domain.into()));
        members.option("vdevfn", self.slot.and_then(|slot| said(u32::from(slot) << 3))).add("vfunc_mask", 1);
        members.option("msitranslate", yes(self.msitranslate)).option("power_mgmt", yes(self.power_mgmt));
        members.option("permissive", yes(self.permissive)).add("rdm_policy", self.rdm_policy.name());
        members.into()
    }

    /// The value of `vdevfn-N`, in hexadecimal, if the guest's slot is said.
    pub(crate) fn place(&self) -> Option<String> {
        self.slot.map(|slot| format!("{:x}", u32::from(slot) << 3))
    }
}

/// Reads what xl calls a PCI specification: `[DOMAIN:]BUS:DEVICE.FUNCTION[@SLOT]` and options, with commas between them;
/// all numbers of the address are hexadecimal.
///
/// # Errors
///
/// They name the parameter.
pub fn parse(text: &str) -> Result<PciDev, SpecError> {
    parse_with(text, "")
}

/// The same with options that count as far as the specification says nothing of them.
pub(crate) fn parse_with(text: &str, defaults: &str) -> Result<PciDev, SpecError> {
    let refused = |near: &str, problem| SpecError::Value { near: near.chars().take(80).collect(), problem };
    let (first, options) = text.split_once(',').unwrap_or((text, ""));
    let (mut bdf, mut options) = (first.trim(), options.to_owned());
    if bdf.contains('=') {
        (bdf, options) = ("", text.to_owned());
    }
    let mut address = None;
    let mut slot = None;
    let mut place = |value: &str| -> Result<(), &'static str> {
        let (of_host, of_guest) = match value.split_once('@') {
            Some((of_host, of_guest)) => (of_host, Some(of_guest)),
            None => (value, None),
        };
        if of_host.ends_with(".*") {
            return Err("all functions of a device at once are not served yet; name them one by one");
        }
        address = Some(of_host.parse()?);
        slot = of_guest.map(read_slot).transpose()?.or(slot);
        Ok(())
    };
    if !bdf.is_empty() {
        place(bdf).map_err(|problem| refused(bdf, problem))?;
    }
    let mut dev = PciDev::new(PciAddress { domain: 0, bus: 0, device: 0, function: 0 });
    let (mut vslot, mut seize) = (None, false);
    words::read(&[defaults, &options], |key, value| {
        match key {
            "bdf" => place(value)?,
            "vslot" => vslot = Some(read_slot(value)?),
            "msitranslate" => dev.msitranslate = words::flag(value)?,
            "power_mgmt" => dev.power_mgmt = words::flag(value)?,
            "permissive" => dev.permissive = words::flag(value)?,
            "seize" => seize = words::flag(value)?,
            "rdm_policy" => {
                dev.rdm_policy = match value {
                    "strict" => RdmPolicy::Strict,
                    "relaxed" => RdmPolicy::Relaxed,
                    _ => return Err("a policy is strict or relaxed"),
                };
            }
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    if seize {
        let problem = "a function is not taken from its driver yet: use xl pci-assignable-add first";
        return Err(refused("seize=1", problem));
    }
    dev.address = address.ok_or(SpecError::Missing("bdf"))?;
    dev.slot = vslot.or(slot);
    Ok(dev)
}

fn read_slot(text: &str) -> Result<u8, &'static str> {
    let slot = hexadecimal(text.strip_prefix("0x").unwrap_or(text), 0x1f);
    slot.and_then(|slot| u8::try_from(slot).ok()).ok_or("a slot is a hexadecimal number up to 1f")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        for (text, address, slot, options) in [
            (
                "0000:03:00.1",
                "0000:03:00.1",
                None,
                "msitranslate=0,power_mgmt=0,permissive=0,rdm_policy=strict",
            ),
            (
                "3:1f.7@a",
                "0000:03:1f.7",
                Some("50"),
                "msitranslate=0,power_mgmt=0,permissive=0,rdm_policy=strict",
            ),
            (
                "10:0b:00.0,permissive=1,msitranslate=1, power_mgmt=1,rdm_policy=relaxed,seize=0",
                "0010:0b:00.0",
                None,
                "msitranslate=1,power_mgmt=1,permissive=1,rdm_policy=relaxed",
            ),
            (
                "bdf=03:00.0,vslot=1f",
                "0000:03:00.0",
                Some("f8"),
                "msitranslate=0,power_mgmt=0,permissive=0,rdm_policy=strict",
            ),
        ] {
            let dev = parse(text).unwrap();
            assert_eq!(
                (dev.address.to_string().as_str(), dev.place().as_deref(), dev.options().as_str()),
                (address, slot, options),
                "{text}"
            );
        }
    }

    #[test]
    fn refusals() {
        let bdf = "give a function as in 0000:03:00.1 or 03:00.1";
        for (text, why) in [
            ("", "bdf= is missing".to_owned()),
            ("permissive=1", "bdf= is missing".to_owned()),
            ("3", format!("\"3\": {bdf}")),
            ("3:20.0", format!("\"3:20.0\": {bdf}")),
            ("3:0.8", format!("\"3:0.8\": {bdf}")),
            ("10000:3:0.0", format!("\"10000:3:0.0\": {bdf}")),
            ("0:0:+3:0.0", format!("\"0:0:+3:0.0\": {bdf}")),
            (
                "3:0.*",
                "\"3:0.*\": all functions of a device at once are not served yet; name them one by one"
                    .to_owned(),
            ),
            ("3:0.0@20", "\"3:0.0@20\": a slot is a hexadecimal number up to 1f".to_owned()),
            ("3:0.0,permissive=2", "\"permissive=2\": give 0 or 1".to_owned()),
            ("3:0.0,name=x", "\"name=x\" is no parameter".to_owned()),
            ("3:0.0,rdm_policy=no", "\"rdm_policy=no\": a policy is strict or relaxed".to_owned()),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), why, "{text}");
        }
    }
}
