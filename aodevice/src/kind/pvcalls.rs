//! POSIX sockets that the guest uses in the backend's domain (PV Calls).
//!
//! Source: `xen/include/public/io/pvcalls.h`, `docs/misc/pvcalls.pandoc` and `docs/man/xl.cfg.5.pod.in`. `xl` has no
//! commands for them, and makes them when it creates a domain.

use serde_json::{Map, Value};

use super::members::Members;
use super::words::{self, SpecError};
use super::{BackendKind, KindInfo, Spec};
use crate::libxl::Listing;
use crate::{DeviceId, Guest, Tree};

pub(crate) const INFO: KindInfo = KindInfo {
    name: "pvcalls",
    backends: &[BackendKind::Pvcalls],
    backend_module: "pvcalls-back",
    frontend_module: "pvcalls-front",
    libxl: Listing::by_devid("pvcallsifs"),
    ..super::SCRIPTLESS
};

/// Sockets as they are asked for. `None` is what was not said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pvcalls {
    /// The name of the domain that serves it, or its domid; the toolstack's own if it is empty.
    pub backend_name: Option<String>,
    /// Its device id; the smallest free one if none.
    pub devid: Option<u32>,
}

/// Reads the arguments of `pvcalls-attach`, or an entry of the list `pvcalls` of a domain configuration: `backend=`,
/// `devid=`.
///
/// # Errors
///
/// They name the parameter.
pub fn parse(arguments: &[impl AsRef<str>]) -> Result<Pvcalls, SpecError> {
    let mut pvcalls = Pvcalls::default();
    words::read(arguments, |key, value| {
        match key {
            "backend" => pvcalls.backend_name = Some(value.to_owned()),
            "devid" => pvcalls.devid = words::devid(value)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(pvcalls)
}

impl Spec for Pvcalls {
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
        BackendKind::Pvcalls
    }

    fn libxl(&self) -> Map<String, Value> {
        let mut members = Members::new();
        members.text("backend_domname", &self.backend_name).option("devid", self.devid);
        members.into()
    }

    fn tree(&self, id: &DeviceId, _: &Guest) -> Tree {
        super::plain_tree(id)
    }
}
