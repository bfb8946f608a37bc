//! Network interfaces.
//!
//! Source of the keys: `xen/include/public/io/netif.h`, and what `xl` of Xen 4.17 was seen to
//! write, in this order. That of the specification: `docs/man/xl-network-configuration.5.pod.in`, and what
//! `xl -N network-attach` of 4.17 was seen to make of it; `vlan`, in both, by `xl` of 4.20.
//!
#![doc = include_str!("grammar.md")]

mod mac;
mod rate;
mod spec;

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use xs_client::DomId;

pub use mac::{Mac, MacError};
pub use rate::{Rate, RateError};
pub use spec::{Defaults, NicSpecError, Notice, notices, parse};

use xen_hotplug::{LINE_SHOWN, printable};

use super::members::Members;
use super::{Among, BackendKind, KindInfo, ListedKey, Recorded, Spec, Unique};
use crate::libxl::Listing;
use crate::tree::Keys;
use crate::{Cause, DeviceId, Guest, Tree};

const BY_DEVID: Listing = Listing::by_devid("nics");

pub(crate) const INFO: KindInfo = KindInfo {
    name: "vif",
    noun: None,
    backends: &[BackendKind::Vif],
    backend_module: "xen-netback",
    frontend_module: "xen-netfront",
    first_devid: 0,
    id_name: |devid| devid.to_string(),
    listed: &[
        ListedKey::recorded("mac", "mac"),
        ListedKey::recorded("bridge", "bridge"),
        ListedKey::of_guest("event_channel", "event-channel"),
        ListedKey::of_guest("tx_ring_ref", "tx-ring-ref"),
        ListedKey::of_guest("rx_ring_ref", "rx-ring-ref"),
    ],
    parts: None,
    // netback's interface, which the script set up, goes with the backend.
    made: &[],
    outlives_backend: false,
    libxl: Listing {
        complete: |devid, entry| {
            (BY_DEVID.complete)(devid, entry);
            entry.entry("nictype").or_insert_with(|| "vif".into());
        },
        ..BY_DEVID
    },
    runs: |keys| match keys.get("type").map(String::as_str) {
        Some("vif_ioemu") => &[xen_hotplug::Kind::VifIoemu, xen_hotplug::Kind::Tap],
        _ => &[xen_hotplug::Kind::Vif],
    },
    unreported: |keys| {
        let status = keys.get("hotplug-status").map(String::as_str);
        let wrote = status
            .filter(|status| !status.is_empty())
            .map(|status| format!("hotplug-status={}", printable(status, LINE_SHOWN)));
        (status != Some("connected")).then_some(("hotplug-status=connected", wrote))
    },
    numbers: None,
    target: |_| None,
    undo: |_, _| Some(Recorded::new()),
};

/// The type of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NicType {
    /// Paravirtual.
    Vif,
    /// Paravirtual, with an emulated twin.
    VifIoemu,
}

impl NicType {
    /// Its name in the store and in libxl's JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vif => "vif",
            Self::VifIoemu => "vif_ioemu",
        }
    }
}

/// A network interface as it is asked for. `None` is what was not said: whoever adds it fills in the default.
///
/// All that xl understands is here; what this version serves is an interface whose backend is netback in the
/// toolstack's own or a driver domain. One of type `vif_ioemu` is for whoever creates an HVM guest: its device model, which runs by
/// then, has made the emulated twin. Adding anything else fails with
/// [`Cause::Unsupported`](crate::Cause::Unsupported).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Vif {
    /// The name of the domain that serves it, or its domid; the toolstack's own if it is empty.
    pub backend_name: Option<String>,
    /// Its device id; the smallest free one if none.
    pub devid: Option<u32>,
    /// The largest packet, in bytes. If not said it is 1500, and the stock script takes the bridge's instead.
    pub mtu: Option<u32>,
    /// The model that QEMU emulates.
    pub model: Option<String>,
    /// Its address; a random one of Xen's range if none.
    pub mac: Option<Mac>,
    /// Addresses that the script allows, separated by blanks.
    pub ip: Option<String>,
    /// The bridge that its script puts it on, `xenbr0` if none; if it is empty, the script looks for one.
    pub bridge: Option<String>,
    /// The name that the script gives to the interface in the backend's domain.
    pub vifname: Option<String>,
    /// The hotplug script, absolute or in the script directory; `vif-bridge` if none, or if it is empty.
    pub script: Option<String>,
    /// Its type; `vif` if none.
    pub nic_type: Option<NicType>,
    /// How much it may send.
    pub rate: Option<Rate>,
    /// The device that the script routes over.
    pub gatewaydev: Option<String>,
    /// The VLAN that the script puts it on.
    pub vlan: Option<String>,
    /// What is said of COLO, by libxl's names.
    pub colo: BTreeMap<String, String>,
    /// Whether the guest is to trust the backend; it is if not said.
    pub trusted: Option<bool>,
}

impl Vif {
    fn bridge(&self) -> &str {
        self.bridge.as_deref().unwrap_or("xenbr0")
    }

    fn script(&self) -> &str {
        self.script.as_deref().filter(|script| !script.is_empty()).unwrap_or("vif-bridge")
    }

    fn is_emulated(&self) -> bool {
        self.nic_type == Some(NicType::VifIoemu)
    }

    /// The name of the interface in the backend's domain, if that is asked for.
    fn vifname(&self) -> Option<&str> {
        self.vifname.as_deref().filter(|name| !name.is_empty())
    }
}

/// The longest name of a network interface on Linux, in bytes.
const LONGEST_NAME: usize = 15;

/// The guest and the device id whose backend has this name unless it is renamed: `vif3.0`.
fn default_name_of(name: &str) -> Option<(u32, u32)> {
    let (fe, devid) = name.strip_prefix("vif")?.split_once('.')?;
    let devid = devid.strip_suffix("-emu").unwrap_or(devid);
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?;
    Some((number(fe)?, number(devid)?))
}

impl Spec for Vif {
    fn devid(&self) -> Option<u32> {
        self.devid
    }

    fn number(&mut self, devid: u32) {
        self.devid.get_or_insert(devid);
    }

    fn label(&self) -> String {
        self.devid.map_or_else(|| format!("on {}", self.bridge()), |devid| devid.to_string())
    }

    fn settle(&mut self) {
        self.mac.get_or_insert_with(Mac::random);
    }

    fn backend(&self, _: &Guest) -> BackendKind {
        BackendKind::Vif
    }

    /// Under its default name: the script of its run renames it.
    fn emulated_twin(&self, fe: DomId) -> Option<String> {
        let devid = self.devid.filter(|_| self.is_emulated())?;
        Some(format!("vif{fe}.{devid}-emu"))
    }

    fn backend_name(&self) -> Option<&str> {
        self.backend_name.as_deref()
    }

    fn check(&self, guest: &Guest) -> Result<(), Cause> {
        if self.is_emulated() && !guest.is_hvm() {
            return Err(Cause::Invalid("only an HVM guest has emulated interfaces (type=ioemu)".to_owned()));
        }
        if self.is_emulated() && self.devid.is_none() {
            let why =
                "an emulated interface (type=ioemu) needs the devid= that its device model was started with";
            return Err(Cause::Invalid(why.to_owned()));
        }
        if !self.colo.is_empty() {
            return Err(Cause::Unsupported("COLO".to_owned()));
        }
        Ok(())
    }

    fn check_place(&self, id: &DeviceId) -> Result<(), Cause> {
        let devid = id.devid;
        let name = self.emulated_twin(id.fe).unwrap_or_else(|| format!("vif{}.{devid}", id.fe));
        if name.len() > LONGEST_NAME || i32::try_from(devid).is_err() {
            return Err(Cause::Invalid(format!(
                "no interface can be called {name}: the name has at most {LONGEST_NAME} bytes, and the device id \
                 at most 31 bits"
            )));
        }
        match self.vifname().and_then(|name| Some((name, default_name_of(name)?))) {
            Some((name, (fe, devid))) if (fe, devid) != (id.fe.0, id.devid) => {
                Err(Cause::Invalid(format!("vifname={name} is the name of interface {devid} of domain {fe}")))
            }
            _ => Ok(()),
        }
    }

    fn uniques(&self) -> Vec<Unique> {
        let claim = |key, value, among| Unique { key, value, among };
        let mac = self.mac.map(|mac| claim("mac", mac.to_string(), Among::OfGuest));
        let name = self.vifname().map(|name| claim("vifname", name.to_owned(), Among::OfAllGuests));
        mac.into_iter().chain(name).collect()
    }

    fn libxl(&self) -> Map<String, Value> {
        let mut members = Members::new();
        members.text("backend_domname", &self.backend_name).option("devid", self.devid);
        members.option("mtu", self.mtu).text("vlan", &self.vlan).text("model", &self.model);
        members.option("mac", self.mac.map(|mac| mac.to_string())).text("ip", &self.ip);
        members.text("bridge", &self.bridge).text("ifname", &self.vifname).text("script", &self.script);
        members.option("nictype", self.nic_type.map(NicType::name));
        members.option("rate_bytes_per_interval", self.rate.map(|rate| rate.bytes));
        members.option("rate_interval_usecs", self.rate.map(|rate| rate.interval_us));
        members.text("gatewaydev", &self.gatewaydev);
        for name in spec::COLO.iter().filter(|name| self.colo.contains_key(**name)) {
            members.option(name, self.colo.get(*name).cloned());
        }
        members.choice("trusted", self.trusted);
        members.into()
    }

    fn tree(&self, id: &DeviceId, guest: &Guest) -> Tree {
        // Settled by then; an interface without an address is what it is.
        let mac = self.mac.unwrap_or(Mac([0; 6]));
        let mut be = Keys::new();
        be.add("frontend-id", id.fe).add("online", 1).add("state", 1);
        be.add("script", guest.script(self.script()));
        let optional = |be: &mut Keys, key, value: Option<&str>| {
            if let Some(value) = value {
                be.add(key, value);
            }
        };
        optional(&mut be, "vifname", self.vifname());
        be.add("mac", mac);
        optional(&mut be, "ip", self.ip.as_deref());
        optional(&mut be, "gatewaydev", self.gatewaydev.as_deref());
        optional(&mut be, "rate", self.rate.map(|rate| rate.to_string()).as_deref());
        // libxl leaves out 1500, so that a bridge's MTU wins over one that was asked for.
        optional(&mut be, "mtu", self.mtu.map(|mtu| mtu.to_string()).as_deref());
        optional(&mut be, "vlan", self.vlan.as_deref());
        be.add("bridge", self.bridge())
            .add("handle", id.devid)
            .add("type", self.nic_type.unwrap_or(NicType::Vif).name());
        // That it exists makes netback wait for the script.
        be.add("hotplug-status", "");
        let mut fe = Keys::new();
        fe.add("backend-id", id.be).add("state", 1).add("handle", id.devid).add("mac", mac);
        fe.add("trusted", u8::from(self.trusted.unwrap_or(true)));
        let mut read_only = Keys::new();
        read_only.add("mtu", self.mtu.unwrap_or(1500));
        Tree { frontend: fe, frontend_read_only: read_only, backend: be }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_interfaces_have_by_default() {
        assert_eq!(default_name_of("vif3.0"), Some((3, 0)));
        assert_eq!(default_name_of("vif3.12-emu"), Some((3, 12)));
        for other in ["vif", "vif3", "vif.0", "vif3.", "vif3.x", "xvif3.0", "eth0", "vif3.+1"] {
            assert_eq!(default_name_of(other), None, "{other}");
        }
    }
}
