//! Network interfaces.
//!
//! Source of the keys: `xen/include/public/io/netif.h`, and what `xl` of Xen 4.17 was seen to
//! write, in this order.

mod mac;
mod rate;
mod spec;

pub use mac::{Mac, MacError};
pub use rate::{Rate, RateError};
pub use spec::{NicSpecError, parse};

use super::{KindInfo, ListedKey, Recorded, Spec};
use crate::tree::Keys;
use crate::{DeviceId, Guest, Tree};

pub(crate) const INFO: KindInfo = KindInfo {
    name: "vif",
    backend_module: "xen-netback",
    frontend_module: "xen-netfront",
    id_name: |devid| devid.to_string(),
    listed: &[
        ListedKey::recorded("mac", "mac"),
        ListedKey::recorded("bridge", "bridge"),
        ListedKey::of_guest("event_channel", "event-channel"),
        ListedKey::of_guest("tx_ring_ref", "tx-ring-ref"),
        ListedKey::of_guest("rx_ring_ref", "rx-ring-ref"),
    ],
    // netback's interface, which the script set up, goes with the backend.
    made: &[],
    outlives_backend: false,
    runs: |keys| match keys.get("type").map(String::as_str) {
        Some("vif_ioemu") => &[hotplug::Kind::VifIoemu, hotplug::Kind::Tap],
        _ => &[hotplug::Kind::Vif],
    },
    unreported: |keys| {
        let status = keys.get("hotplug-status").map(String::as_str);
        (status != Some("connected")).then_some("hotplug-status=connected")
    },
    numbers: None,
    target: |_| None,
    undo: |_, _| Some(Recorded::new()),
};

/// A network interface, served by netback.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Vif {
    /// Its address; a random one of Xen's range if none.
    pub mac: Option<Mac>,
    /// The bridge that its script puts it on.
    pub bridge: String,
    /// The hotplug script, absolute or in the script directory; `vif-bridge` if none.
    pub script: Option<String>,
    /// Its device id; the smallest free one if none.
    pub devid: Option<u32>,
    /// Addresses that the script allows, separated by blanks.
    pub ip: Option<String>,
    /// The name that the script gives to the interface in the backend's domain.
    pub vifname: Option<String>,
    /// The device that the script routes over.
    pub gatewaydev: Option<String>,
    /// How much it may send.
    pub rate: Option<Rate>,
    /// The largest packet, in bytes.
    pub mtu: u32,
    /// The VLAN that the script puts it on.
    pub vlan: Option<String>,
    /// Whether the guest is to trust the backend.
    pub trusted: bool,
}

impl Default for Vif {
    /// On `xenbr0`, with a random address.
    fn default() -> Self {
        Self {
            mac: None,
            bridge: "xenbr0".to_owned(),
            script: None,
            devid: None,
            ip: None,
            vifname: None,
            gatewaydev: None,
            rate: None,
            mtu: 1500,
            vlan: None,
            trusted: true,
        }
    }
}

impl Spec for Vif {
    fn devid(&self) -> Option<u32> {
        self.devid
    }

    fn label(&self) -> String {
        self.devid.map_or_else(|| format!("on {}", self.bridge), |devid| devid.to_string())
    }

    fn settle(&mut self) {
        self.mac.get_or_insert_with(Mac::random);
    }

    fn claims(&self) -> Vec<(&'static str, String)> {
        self.mac.iter().map(|mac| ("mac", mac.to_string())).collect()
    }

    fn tree(&self, id: &DeviceId, guest: &Guest) -> Tree {
        // Settled by then; an interface without an address is what it is.
        let mac = self.mac.unwrap_or(Mac([0; 6]));
        let mut be = Keys::new();
        be.add("frontend-id", id.fe).add("online", 1).add("state", 1);
        be.add("script", guest.script(self.script.as_deref().unwrap_or("vif-bridge")));
        let optional = |be: &mut Keys, key, value: &Option<String>| {
            if let Some(value) = value {
                be.add(key, value);
            }
        };
        optional(&mut be, "vifname", &self.vifname);
        be.add("mac", mac);
        optional(&mut be, "ip", &self.ip);
        optional(&mut be, "gatewaydev", &self.gatewaydev);
        optional(&mut be, "rate", &self.rate.map(|rate| rate.to_string()));
        optional(&mut be, "mtu", &Some(self.mtu.to_string()).filter(|_| self.mtu != 1500));
        optional(&mut be, "vlan", &self.vlan);
        be.add("bridge", &self.bridge).add("handle", id.devid).add("type", "vif");
        // That it exists makes netback wait for the script.
        be.add("hotplug-status", "");
        let mut fe = Keys::new();
        fe.add("backend-id", id.be).add("state", 1).add("handle", id.devid).add("mac", mac);
        fe.add("trusted", u8::from(self.trusted));
        let mut read_only = Keys::new();
        read_only.add("mtu", self.mtu);
        Tree { frontend: fe, frontend_read_only: read_only, backend: be }
    }
}
