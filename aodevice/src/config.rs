//! A device as it is asked for.

use hotplug::{Action, ScriptRun};

use crate::vbd::Vbd;
use crate::vif::{Mac, Vif};
use crate::{DeviceId, Guest, Kind, Tree};

/// A device to add.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Device {
    /// A disk.
    Vbd(Vbd),
    /// A network interface.
    Vif(Vif),
}

impl Device {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Vbd(_) => Kind::Vbd,
            Self::Vif(_) => Kind::Vif,
        }
    }

    /// Its device id, if that is fixed.
    pub fn devid(&self) -> Option<u32> {
        match self {
            Self::Vbd(vbd) => Some(vbd.vdev.devid()),
            Self::Vif(vif) => vif.devid,
        }
    }

    /// Its kind and name, in words.
    pub(crate) fn label(&self) -> String {
        match self {
            Self::Vbd(vbd) => format!("vbd {}", vbd.vdev),
            Self::Vif(Vif { devid: Some(devid), .. }) => format!("vif {devid}"),
            Self::Vif(vif) => format!("vif on {}", vif.bridge),
        }
    }

    /// Settles what was left open and must be the same in every attempt to write it.
    pub(crate) fn completed(&self) -> Self {
        let mut device = self.clone();
        if let Self::Vif(vif) = &mut device {
            vif.mac.get_or_insert_with(Mac::random);
        }
        device
    }

    /// Whether it can be had at all, as far as this domain can tell.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self {
            Self::Vbd(vbd) => vbd.check(),
            Self::Vif(_) => Ok(()),
        }
    }

    pub(crate) fn tree(&self, id: &DeviceId, guest: &Guest) -> Tree {
        match self {
            Self::Vbd(vbd) => vbd.tree(id, guest),
            Self::Vif(vif) => vif.tree(id, guest),
        }
    }
}

/// The script of a device and what it needs, as recorded when the device was added: changing the
/// backend's nodes later has no effect on what is run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scripts {
    pub(crate) script: Option<String>,
    pub(crate) gatewaydev: String,
}

impl Scripts {
    /// The runs of an action, in order.
    pub(crate) fn runs(&self, id: &DeviceId, action: Action) -> Vec<ScriptRun> {
        match (&self.script, id.kind) {
            (None, _) => Vec::new(),
            (Some(script), Kind::Vbd) => Vbd::scripts(script, id, action),
            (Some(script), Kind::Vif) => Vif::scripts(script, id, action, &self.gatewaydev),
        }
    }
}
