//! What is written into the store for a device, as a value.

use std::borrow::Cow;

use xs_client::{Access, DomId, Permissions, Request};

use crate::kind::Recorded;
use crate::{DeviceId, Paths};

/// Keys and values of one directory, in the order in which they are written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys(Vec<(Cow<'static, str>, String)>);

impl Keys {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// A key may have a slash, and is then in a directory below.
    pub(crate) fn add(&mut self, key: impl Into<Cow<'static, str>>, value: impl ToString) -> &mut Self {
        self.0.push((key.into(), value.to_string()));
        self
    }

    /// The keys with their values, to be kept.
    pub(crate) fn recorded(&self) -> Recorded {
        self.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    /// The keys with their values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_ref(), value.as_str()))
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.iter().find_map(|(name, value)| (name == key).then_some(value))
    }
}

/// The key sets of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// Keys that the guest owns.
    pub frontend: Keys,
    /// Keys in the guest's directory that the backend's domain owns and the guest only reads.
    pub frontend_read_only: Keys,
    /// Keys of the backend. The toolstack keeps a copy, which neither side can change later.
    pub backend: Keys,
}

/// The permissions of what one end writes and the other reads.
fn shared(owner: DomId, reader: DomId) -> Permissions {
    Permissions::owned_by(owner, Access::None).grant(reader, Access::Read)
}

impl Tree {
    /// The requests that write it, in libxl's order, so that a listing in creation order reads
    /// the same. Keys inherit the permissions of their directory; only those that differ are set.
    ///
    /// `record` is the operation record left in the toolstack's directory.
    pub(crate) fn requests(
        &self,
        id: &DeviceId,
        paths: &Paths,
        record: &str,
    ) -> Result<Vec<Request>, xs_client::Error> {
        let Paths { frontend, backend, toolstack, .. } = paths;
        let mut requests = Vec::with_capacity(64);
        let write =
            |directory: &xs_client::Path, key: &str, value: &str| -> Result<Request, xs_client::Error> {
                Ok(Request::Write { path: directory.join(key)?, value: value.to_owned().into() })
            };
        requests.push(write(toolstack, "frontend", frontend)?);
        requests.push(write(toolstack, "backend", backend)?);
        requests.push(Request::Mkdir(frontend.clone()));
        requests.push(Request::SetPerms { path: frontend.clone(), perms: shared(id.fe, id.be) });
        requests.push(write(frontend, "backend", backend)?);
        for (key, value) in self.frontend.iter() {
            requests.push(write(frontend, key, value)?);
        }
        for (key, value) in self.frontend_read_only.iter() {
            requests.push(write(frontend, key, value)?);
            requests.push(Request::SetPerms { path: frontend.join(key)?, perms: shared(id.be, id.fe) });
        }
        requests.push(Request::Mkdir(backend.clone()));
        requests.push(Request::SetPerms { path: backend.clone(), perms: shared(id.be, id.fe) });
        requests.push(write(backend, "frontend", frontend)?);
        for (key, value) in self.backend.iter() {
            requests.push(write(backend, key, value)?);
        }
        for (key, value) in self.backend.iter() {
            requests.push(write(toolstack, key, value)?);
        }
        requests.push(write(toolstack, "op", record)?);
        Ok(requests)
    }
}
