//! What an add would do, without doing it: for a dry run.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use xen_hotplug::{Action, Ending, Output, Report};
use xs_client::{DomId, PAYLOAD_MAX, Request};

use super::model::Model;
use super::steps::Obstacle;
use super::store::{self, Depth};
use super::{Target, files, place, steps};
use crate::libxl::Userdata;
use crate::report::Named;
use crate::{
    Addition, Cause, Device, DeviceId, DriverDomainFault, Failure, Guest, Kind, Observation, Operation,
    Toolstack, WaitFor, Which, guest,
};

/// How many digits more than the smallest a device id may have.
const DEVID_DIGITS: usize = 9;

/// What an add would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Preview {
    /// The device, with the id that it would get now.
    pub device: DeviceId,
    /// What would be written into the store, in this order and in one transaction. The record of the
    /// operation, which is gone when it is done, is not among it.
    pub writes: Vec<PlannedWrite>,
    /// The hotplug scripts that would be run then.
    pub scripts: Vec<PlannedScript>,
}

/// A change of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "op", rename_all = "snake_case")]
#[non_exhaustive]
pub enum PlannedWrite {
    /// A value is written.
    Write {
        /// Where.
        path: String,
        /// What.
        value: String,
    },
    /// An empty node is made.
    Mkdir {
        /// Where.
        path: String,
    },
    /// The permissions of a node are set.
    SetPerms {
        /// Where.
        path: String,
        /// The owner and what others may do, as in `n1,r0`.
        permissions: String,
    },
}

/// A run of a hotplug script.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PlannedScript {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// What its environment has besides the runner's own.
    pub environment: BTreeMap<&'static str, String>,
}

impl PlannedWrite {
    fn of(request: Request) -> Option<Self> {
        Some(match request {
            Request::Write { path, value } => {
                let value = String::from_utf8_lossy(&value).into_owned();
                Self::Write { path: path.to_string(), value }
            }
            Request::Mkdir(path) => Self::Mkdir { path: path.to_string() },
            Request::SetPerms { path, perms } => {
                Self::SetPerms { path: path.to_string(), permissions: perms.to_string() }
            }
            _ => return None,
        })
    }
}

impl Toolstack {
    /// What [`Self::add`] would do now. Nothing is changed.
    ///
    /// An address or an id that is not fixed is chosen anew each time.
    ///
    /// # Errors
    ///
    /// Whatever `add` would fail with before it writes anything. What only others could make it fail with,
    /// such as an operation that is under way, is not among it.
    pub async fn preview(
        &self,
        fe: DomId,
        device: &Device,
        addition: impl Into<Addition>,
    ) -> Result<Preview, Box<Failure>> {
        let device = device.settled();
        self.preview_settled(fe, &device, addition.into()).await.map_err(|cause| {
            Box::new(Failure {
                operation: Operation::Attach,
                device: Named::of_device(fe, &device),
                cause,
                observed: Observation::default(),
                warnings: Vec::new(),
                elapsed: Duration::ZERO,
            })
        })
    }

    async fn preview_settled(
        &self,
        fe: DomId,
        device: &Device,
        addition: Addition,
    ) -> Result<Preview, Cause> {
        let (guest, _) = self.check(fe, device, addition.wait_for).await?;
        let id = place::identify(&self.client, fe, device, &guest).await?;
        let seen = store::look(&self.client, &id, &id.paths()?, Depth::Made).await?;
        match steps::create(&seen) {
            Err(Obstacle::NoBackendHome(be)) => {
                return Err(Cause::DriverDomain { be, fault: DriverDomainFault::Gone });
            }
            Err(Obstacle::NoHome) => return Err(Cause::NoSuchDomain(fe.to_string())),
            Err(Obstacle::Exists) => return Err(Cause::Exists),
            Err(Obstacle::Alive(state)) => return Err(Cause::Unrecorded(state)),
            // Gone by then, or not: that is for the add to see.
            Err(Obstacle::Stale | Obstacle::Occupied(_) | Obstacle::Unfinished(_)) | Ok(()) => {}
        }
        place::check(&self.client, &id, &id.paths()?, device).await?;
        let tree = device.as_spec().tree(&id, &guest);
        let target = Target::new(id, tree.backend.recorded())?.with_scripts_run_by(self.run_by(id.be));
        let record = target.paths().toolstack.join("op")?;
        let requests = tree.requests(&id, target.paths(), "")?;
        let is_record = |request: &Request| matches!(request, Request::Write { path, .. } if *path == record);
        let scripts = target.run_kinds().iter().map(|kind| {
            let request = target.request(self.own, *kind, Action::Add, target.recorded());
            let program = request.script.display().to_string();
            let arguments = request.args().into_iter().map(str::to_owned);
            PlannedScript {
                command: std::iter::once(program).chain(arguments).collect(),
                environment: request.variables().into_iter().collect(),
            }
        });
        Ok(Preview {
            device: id,
            writes: requests
                .into_iter()
                .filter(|request| !is_record(request))
                .filter_map(PlannedWrite::of)
                .collect(),
            scripts: scripts.collect(),
        })
    }

    /// A guest that is to get a device, and libxl's configuration of it, if that is there.
    pub(super) async fn guest(&self, fe: DomId, device: &Device) -> Result<(Guest, Option<Userdata>), Cause> {
        let guest = async {
            let guest = Guest::look(&self.client, (fe, self.own), self.script_dir.clone()).await?;
            guest.served_by(&self.client, device.as_spec().backend_name()).await
        };
        tokio::try_join!(guest, self.config_that_is_there(fe))
    }

    /// Sees that a domain runs and can have a device, and that what the device needs in this domain is there. Yields
    /// the guest, as [`Self::guest`] does.
    pub(super) async fn check(
        &self,
        fe: DomId,
        device: &Device,
        wait_for: WaitFor,
    ) -> Result<(Guest, Option<Userdata>), Cause> {
        let ((), (guest, config)) =
            tokio::try_join!(guest::must_run(&self.client, fe), self.guest(fe, device))?;
        if let Some(lack) = device.as_spec().domain0_lacks().filter(|_| fe == DomId::DOM0) {
            return Err(Cause::NotInDomain0(lack));
        }
        // What these give to a guest is a thing of this host.
        if guest.is_remote() && matches!(device.kind(), Kind::Vusb | Kind::Pci) {
            return Err(Cause::Unsupported(format!("backend={}, of a {},", guest.be, device.kind().noun())));
        }
        if guest.is_remote() && guest.be == fe {
            return Err(Cause::Invalid("a guest cannot serve a device of its own".to_owned()));
        }
        device.as_spec().check(&guest)?;
        let backend = device.as_spec().backend(&guest);
        let by_model = guest.is_served_by_model(device);
        let model_runs = by_model && Model::look(&self.client, (fe, self.own)).await?.is_running(fe);
        if wait_for != WaitFor::Tree && by_model && !model_runs {
            return Err(Cause::NoDeviceModel(fe));
        }
        if model_runs {
            self.check_model(fe, backend).await?;
        }
        // A device model that runs has taken up what was to be there at its start.
        if wait_for != WaitFor::Tree || model_runs {
            device.as_spec().check_hot(&guest)?;
        }
        // What a backend in another domain serves is there, and cannot be seen from here.
        if !guest.is_remote() {
            self.check_files(fe, device).await?;
        }
        place::check_frontends(&self.client, fe, device).await?;
        self.check_writes(fe, device, &guest).await?;
        if let Some(config) = config.as_ref().filter(|_| self.enters) {
            self.check_entry(config, device.kind()).await?;
        }
        Ok((guest, config))
    }

    /// Sees that what a backend of this domain needs of its files and interfaces is there.
    async fn check_files(&self, fe: DomId, device: &Device) -> Result<(), Cause> {
        if let Some(target) = device.as_spec().must_exist() {
            files::check_target(target, self.limits.file).await.map_err(Cause::Target)?;
        }
        if let Some(directory) = device.as_spec().must_be_directory() {
            files::check_directory(directory, self.limits.file).await.map_err(Cause::Target)?;
        }
        match device.as_spec().emulated_twin(fe) {
            Some(twin)
                if !files::exists(&self.sys_dir.join("class/net").join(&twin), self.limits.file).await =>
            {
                Err(Cause::NoEmulatedTwin(twin))
            }
            _ => Ok(()),
        }
    }

    /// Sees that what is to be written fits into requests, and that the script of an add is there to be run.
    async fn check_writes(&self, fe: DomId, device: &Device, guest: &Guest) -> Result<(), Cause> {
        let (kind, backend) = (device.kind(), device.as_spec().backend(guest));
        let devid = device.devid().unwrap_or(kind.info().first_devid);
        let id = DeviceId::with_backend(Which { fe, kind, devid }, guest.be, backend);
        let tree = device.as_spec().tree(&id, guest);
        let target = Target::new(id, tree.backend.recorded())?.with_scripts_run_by(self.run_by(id.be));
        // An id that is not known yet may have more digits.
        let room = PAYLOAD_MAX - if device.devid().is_some() { 0 } else { DEVID_DIGITS };
        let paths = target.paths();
        let backend = [&paths.backend, &paths.toolstack, &paths.saved, &paths.undo];
        let backend = backend.map(|path| path.as_str().len()).into_iter().max().unwrap_or_default();
        let frontend =
            (paths.frontend.as_str().len(), tree.frontend.iter().chain(tree.frontend_read_only.iter()));
        for (directory, (key, value)) in
            frontend.1.map(|pair| (frontend.0, pair)).chain(tree.backend.iter().map(|pair| (backend, pair)))
        {
            // A slash before the key, and a zero byte before the value.
            if directory + key.len() + 2 + value.len() > room {
                return Err(Cause::Invalid(format!(
                    "its {key} has {} bytes, and the store takes at most {room} with the path",
                    value.len()
                )));
            }
        }
        let Some(run) = target.run_kinds().first() else { return Ok(()) };
        let run = Box::new(target.request(self.own, *run, Action::Add, target.recorded()));
        let (runner, script) = (self.runner.clone(), run.script.clone());
        // One that does not answer is left to the run, which has a deadline of its own.
        match files::blocking(self.limits.file, move || runner.foresee(&script)).await {
            Some(Err(error)) => {
                let report = Report::new(Ending::SpawnFailed(error), Output::default(), Duration::ZERO);
                Err(Cause::Script { run, report: Box::new(report) })
            }
            Some(Ok(())) | None => Ok(()),
        }
    }
}
