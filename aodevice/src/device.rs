//! Which device: its identity, and the three directories that it has in the store.

use std::fmt;

use serde::Serialize;
use xs_client::{DomId, Path, PathError};

/// The kind of a device, as it stands in store paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Kind {
    /// A disk, served by the kernel's blkback.
    Vbd,
    /// A network interface, served by the kernel's netback.
    Vif,
}

impl Kind {
    /// Its name in store paths.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vbd => "vbd",
            Self::Vif => "vif",
        }
    }

    /// The kernel module that serves it in the backend's domain (Linux).
    pub const fn backend_module(self) -> &'static str {
        match self {
            Self::Vbd => "xen-blkback",
            Self::Vif => "xen-netback",
        }
    }

    /// The kernel module that drives it in the guest (Linux).
    pub const fn frontend_module(self) -> &'static str {
        match self {
            Self::Vbd => "xen-blkfront",
            Self::Vif => "xen-netfront",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The identity of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct DeviceId {
    /// The guest that has it.
    #[serde(serialize_with = "domid_number")]
    pub fe: DomId,
    /// Its kind on the guest's side.
    pub kind: Kind,
    /// Its number among the guest's devices of that kind.
    pub devid: u32,
    /// The domain that serves it.
    #[serde(serialize_with = "domid_number")]
    pub be: DomId,
    /// Its kind on the backend's side.
    pub be_kind: Kind,
}

fn domid_number<S: serde::Serializer>(domid: &DomId, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u32(domid.0)
}

impl DeviceId {
    /// FE: the guest's directory of the device. The guest may write in it: trust nothing there.
    pub fn frontend(&self) -> Result<Path, PathError> {
        Path::new(format!("/local/domain/{}/device/{}/{}", self.fe, self.kind, self.devid))
    }

    /// BE: the backend's directory of the device.
    pub fn backend(&self) -> Result<Path, PathError> {
        Path::new(format!("/local/domain/{}/backend/{}/{}/{}", self.be, self.be_kind, self.fe, self.devid))
    }

    /// LX: the toolstack's own directory of the device. The device exists as long as it does.
    pub fn toolstack(&self) -> Result<Path, PathError> {
        lx_parent(self.fe, self.kind)?.join(self.devid.to_string())
    }

    /// The three directories.
    pub fn paths(&self) -> Result<Paths, PathError> {
        let (frontend, backend) = (self.frontend()?, self.backend()?);
        Ok(Paths { frontend, backend, toolstack: self.toolstack()? })
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} of domain {}", self.kind, self.devid, self.fe)
    }
}

/// Where the toolstack keeps the guest's devices of a kind.
pub(crate) fn lx_parent(fe: DomId, kind: Kind) -> Result<Path, PathError> {
    Path::new(format!("/libxl/{fe}/device/{kind}"))
}

/// The directories of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// FE, in the guest's home.
    pub frontend: Path,
    /// BE, in the home of the backend's domain.
    pub backend: Path,
    /// LX, the toolstack's own.
    pub toolstack: Path,
}
