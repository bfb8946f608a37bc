//! Network interfaces.
//!
//! Source of the keys: `xen/include/public/io/netif.h`, and what `xl` of Xen 4.17 was seen to
//! write, in this order.

mod mac;
mod rate;
mod spec;

use hotplug::{Action, ScriptRun};

pub use mac::{Mac, MacError};
pub use rate::{Rate, RateError};
pub use spec::{NicSpecError, parse};

use crate::tree::Keys;
use crate::{DeviceId, Guest, Tree};

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

impl Vif {
    /// What is written for it.
    pub(crate) fn tree(&self, id: &DeviceId, guest: &Guest) -> Tree {
        let mac = self.mac.unwrap_or_else(Mac::random);
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

    /// The script runs of an action.
    pub(crate) fn scripts(script: &str, id: &DeviceId, action: Action, gatewaydev: &str) -> Vec<ScriptRun> {
        vec![ScriptRun::vif(script, action, id.fe.0, id.devid, gatewaydev)]
    }
}
