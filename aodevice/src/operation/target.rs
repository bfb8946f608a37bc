//! The device that an operation works on: where it is, and what is recorded of it.

use std::sync::Arc;

use xen_hotplug::{Action, Request};
use xs_client::{DomId, PathError};

use crate::kind::Recorded;
use crate::libxl::Userdata;
use crate::{BackendKind, DeviceId, Paths, Server};

/// Who runs the hotplug scripts of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RunBy {
    /// The toolstack: the backend is in its own domain.
    #[default]
    Toolstack,
    /// The daemon of the driver domain that has the backend: `xl devd`, or `xendev devd`.
    Daemon,
    /// Nobody that is known here: the backend is in a driver domain that runs no such daemon.
    Nobody,
}

/// A device that an operation works on. Clones share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target(Arc<Inner>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Inner {
    id: DeviceId,
    paths: Paths,
    recorded: Recorded,
    config: Option<Userdata>,
    run_by: RunBy,
}

impl Target {
    /// The device of this identity, with the backend's keys that are recorded of it: by the toolstack
    /// as it added it, and by its script.
    pub fn new(
        id: DeviceId,
        recorded: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, PathError> {
        let paths = id.paths()?;
        let recorded = recorded.into_iter().collect();
        Ok(Self(Arc::new(Inner { id, paths, recorded, config: None, run_by: RunBy::Toolstack })))
    }

    /// The same device, whose scripts are run by him: by the toolstack if nobody else is said.
    #[must_use]
    pub fn with_scripts_run_by(self, run_by: RunBy) -> Self {
        Self(Arc::new(Inner { run_by, ..Arc::unwrap_or_clone(self.0) }))
    }

    /// The same device of a domain with this configuration of libxl, in which an add enters it and a removal
    /// strikes it out.
    #[must_use]
    pub fn with_config(self, config: Option<Userdata>) -> Self {
        Self(Arc::new(Inner { config, ..Arc::unwrap_or_clone(self.0) }))
    }

    /// Its identity.
    pub fn id(&self) -> DeviceId {
        self.0.id
    }

    /// Its directories.
    pub fn paths(&self) -> &Paths {
        &self.0.paths
    }

    /// libxl's configuration of its domain, if there is one and it is to be kept up to date.
    pub fn config(&self) -> Option<&Userdata> {
        self.0.config.as_ref()
    }

    /// What is recorded of it.
    pub(crate) fn recorded(&self) -> &Recorded {
        &self.0.recorded
    }

    /// Who runs its scripts.
    pub(crate) fn run_by(&self) -> RunBy {
        self.0.run_by
    }

    /// Whether its backend is in another domain than the toolstack's.
    pub fn is_remote(&self) -> bool {
        self.0.run_by != RunBy::Toolstack
    }

    /// The kinds of the script runs that the toolstack makes, in the order in which an add makes them.
    pub(crate) fn run_kinds(&self) -> &'static [xen_hotplug::Kind] {
        if self.is_remote() { &[] } else { self.all_run_kinds() }
    }

    fn all_run_kinds(&self) -> &'static [xen_hotplug::Kind] {
        if self.recorded().contains_key("script") {
            (self.id().kind.info().runs)(self.recorded())
        } else {
            &[]
        }
    }

    /// A run of its script, which is given these keys.
    pub(crate) fn request(
        &self,
        own: DomId,
        kind: xen_hotplug::Kind,
        action: Action,
        keys: &Recorded,
    ) -> Request {
        let id = self.id();
        let script = self.recorded().get("script").cloned().unwrap_or_default();
        let request = Request::new(kind, action, id.fe.0, id.devid, script).own(own.0);
        keys.iter().fold(request, |request, (key, value)| request.recorded(key, value))
    }

    /// Whether a device model of the toolstack's domain serves it.
    pub(crate) fn is_of_model(&self) -> bool {
        !self.is_remote() && self.id().be_kind.server() == Server::DeviceModel
    }

    /// Whether a device model serves it that the daemon of a driver domain starts.
    pub(crate) fn is_of_model_elsewhere(&self) -> bool {
        self.0.run_by == RunBy::Daemon && matches!(self.id().be_kind, BackendKind::Qdisk | BackendKind::P9)
    }

    /// Whether a script that the toolstack runs is recorded to have made something for it.
    pub(crate) fn has_made(&self) -> bool {
        !self.is_remote() && self.id().kind.info().made.iter().any(|key| self.recorded().contains_key(*key))
    }

    /// How many script runs the toolstack makes.
    pub fn runs(&self) -> usize {
        self.run_kinds().len()
    }

    /// How many script runs the driver domain's daemon makes.
    pub fn runs_of_daemon(&self) -> usize {
        if self.0.run_by == RunBy::Daemon { self.all_run_kinds().len() } else { 0 }
    }

    /// Whether the driver domain's daemon removes the backend's directory once the device is closed.
    pub fn daemon_removes(&self) -> bool {
        self.0.run_by == RunBy::Daemon && self.id().be_kind.is_of_devd()
    }
}
