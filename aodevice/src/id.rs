//! Which device: its identity, and the directories that it has in the store.

use std::fmt;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use xs_client::{DomId, Path, PathError};

use crate::{BackendKind, Kind};

/// A device of a guest, as an operator names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Which {
    /// The guest that has it.
    pub fe: DomId,
    /// Its kind on the guest's side.
    pub kind: Kind,
    /// Its number among the guest's devices of that kind.
    pub devid: u32,
}

/// The identity of a device. Serialised, it also has its `name`: what an operator calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId {
    /// The guest that has it.
    pub fe: DomId,
    /// Its kind on the guest's side.
    pub kind: Kind,
    /// Its number among the guest's devices of that kind.
    pub devid: u32,
    /// The domain that serves it.
    pub be: DomId,
    /// Its kind on the backend's side.
    pub be_kind: BackendKind,
}

pub(crate) fn domid_number<S: Serializer>(domid: &DomId, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u32(domid.0)
}

impl DeviceId {
    /// A device that the domain `be` serves with the usual backend of its kind: the kernel's.
    pub fn new(which: Which, be: DomId) -> Self {
        Self::with_backend(which, be, which.kind.info().backends[0])
    }

    /// A device that the domain `be` serves with this backend.
    pub fn with_backend(which: Which, be: DomId, be_kind: BackendKind) -> Self {
        let Which { fe, kind, devid } = which;
        Self { fe, kind, devid, be, be_kind }
    }

    /// The device whose backend's directory this is; `None` if that is no directory for it.
    pub fn served_at(which: Which, backend: &Path) -> Option<Self> {
        let names: Vec<&str> = backend.names().collect();
        let ["local", "domain", be, "backend", be_kind, _, _] = names[..] else { return None };
        let be_kind = BackendKind::from_name(be_kind)?;
        let id = Self::with_backend(which, be.parse().ok()?, be_kind);
        (which.kind.info().backends.contains(&be_kind) && id.backend().ok()? == *backend).then_some(id)
    }

    /// Its guest, kind and number.
    pub fn which(&self) -> Which {
        Which { fe: self.fe, kind: self.kind, devid: self.devid }
    }

    /// FE: the guest's directory of the device. The guest may write in it: trust nothing there.
    pub fn frontend(&self) -> Result<Path, PathError> {
        Path::new(format!("/local/domain/{}/device/{}/{}", self.fe, self.kind, self.devid))
    }

    /// BE: the backend's directory of the device.
    pub fn backend(&self) -> Result<Path, PathError> {
        Path::new(format!("/local/domain/{}/{}", self.be, self.below_home()))
    }

    /// LX: the toolstack's own directory of the device. The device exists as long as it does.
    pub fn toolstack(&self) -> Result<Path, PathError> {
        lx_parent(self.fe, self.kind)?.join(self.devid.to_string())
    }

    /// The directories.
    pub fn paths(&self) -> Result<Paths, PathError> {
        Ok(Paths {
            home: Path::new(format!("/local/domain/{}", self.fe))?,
            backend_home: Path::new(format!("/local/domain/{}", self.be))?,
            frontend: self.frontend()?,
            backend: self.backend()?,
            toolstack: self.toolstack()?,
            saved: Path::new(format!("/tool/xendev/{}", self.below_home()))?,
            undo: Path::new(format!("/tool/xendev/undo/{}", self.below_home()))?,
        })
    }

    /// BE relative to the home of the backend's domain.
    fn below_home(&self) -> String {
        format!("backend/{}/{}/{}", self.be_kind, self.fe, self.devid)
    }
}

impl Serialize for DeviceId {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut fields = to.serialize_struct("DeviceId", 6)?;
        fields.serialize_field("fe", &self.fe.0)?;
        fields.serialize_field("kind", &self.kind)?;
        fields.serialize_field("devid", &self.devid)?;
        fields.serialize_field("name", &(self.kind.info().id_name)(self.devid))?;
        fields.serialize_field("be", &self.be.0)?;
        fields.serialize_field("be_kind", &self.be_kind)?;
        fields.end()
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Of the two numbers that a channel has, an operator knows this one.
        let number = self.devid.saturating_sub(self.kind.info().first_devid);
        write!(f, "{} {number} of domain {}", self.kind.noun(), self.fe)
    }
}

/// Where the toolstack keeps the guest's devices of a kind.
pub(crate) fn lx_parent(fe: DomId, kind: Kind) -> Result<Path, PathError> {
    Path::new(format!("/libxl/{fe}/device/{kind}"))
}

/// The directories of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Paths {
    /// The guest's home.
    pub home: Path,
    /// The home of the backend's domain.
    pub backend_home: Path,
    /// FE, in the guest's home.
    pub frontend: Path,
    /// BE, in the home of the backend's domain.
    pub backend: Path,
    /// LX, the toolstack's own.
    pub toolstack: Path,
    /// A copy of BE's keys, as they were when the device had been added, in which its script can still
    /// undo its work when BE is gone.
    pub saved: Path,
    /// Such a copy for a single run, when the other one belongs to somebody else by now.
    pub undo: Path,
}

impl Paths {
    /// Those of the device's directories that others may write to: the guest, and a driver domain.
    pub(crate) fn theirs(&self, remote: bool) -> Vec<&Path> {
        [&self.frontend].into_iter().chain(remote.then_some(&self.backend)).collect()
    }
}
