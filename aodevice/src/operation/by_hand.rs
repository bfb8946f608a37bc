//! A run of a device's hotplug script by hand: the very run that its add or its removal would make, with the same
//! inputs, checks and lock, and nothing of what comes before and after it.
//!
//! The device stays. So while the script runs, the operation is recorded as one of another toolstack would be, and what
//! was on record before is put back: an add or a removal that died is still to be gone on with. After a removal that went
//! well the keys by which the script told what it made are taken out of BE, as a removal takes all of BE away: whoever
//! removes the device later would give back what is somebody else's by then.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path as FsPath;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Serialize, Serializer};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use xen_devstate::XenbusState;
use xen_hotplug::{Action, Limits, Permit, Report, Request, Runner, SpawnError};
use xs_client::{Path, Request as StoreRequest};

use super::record::{Occupant, Record, Stage};
use super::script::{Task, Undo};
use super::steps::{Inputs, Seen};
use super::store::{self, Depth, Probed};
use super::{Job, Target, saved};
use crate::kind::Recorded;
use crate::machine::{Event, Purpose};
use crate::report::Named;
use crate::{Cause, DeviceId, Failure, Observation, Operation, Toolstack, Warning, Which};

/// Which run of which device's script is to be made by hand.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ByHand {
    /// The device.
    pub which: Which,
    /// What the script is to do.
    pub action: Action,
    /// The backend's directory that the device must have, if that was said.
    pub backend: Option<Path>,
    /// Whether it is done although the device is in use.
    pub force: bool,
}

impl ByHand {
    /// A run for a device that is not in use.
    pub fn new(which: Which, action: Action) -> Self {
        Self { which, action, backend: None, force: false }
    }

    /// Demands that the device has its backend in this directory.
    #[must_use]
    pub fn backend(self, backend: Option<Path>) -> Self {
        Self { backend, ..self }
    }

    /// Sets whether it is done although the device is in use.
    #[must_use]
    pub fn force(self, force: bool) -> Self {
        Self { force, ..self }
    }
}

/// What a run by hand would be.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ByHandPreview {
    /// The device.
    pub device: DeviceId,
    /// What the script is to do.
    pub action: Action,
    /// What would be run, one after the other; nothing if the script has nothing to undo.
    pub runs: Vec<PlannedRun>,
    /// Why it would be refused, unless it is forced.
    pub refused: Option<String>,
}

/// A run that would be made.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct PlannedRun {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// All of its environment.
    pub environment: BTreeMap<String, String>,
    /// The directory of the store in which it is run.
    pub directory: String,
    /// Whether that is made for the run, since BE is gone or does not tell what the script needs.
    pub is_copy: bool,
    /// The keys that it finds there.
    pub keys: BTreeMap<String, String>,
    /// Whether a native handler does its work instead.
    pub native: bool,
}

/// A run that was made by hand.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct Rerun {
    /// The device.
    pub device: DeviceId,
    /// What the script was to do.
    pub action: Action,
    /// What was run, one after the other; nothing if the script had nothing to undo.
    pub runs: Vec<Ran>,
    /// The backend's directory.
    pub directory: String,
    /// Its keys before.
    pub before: BTreeMap<String, String>,
    /// Its keys now.
    pub after: BTreeMap<String, String>,
    /// What did not go well besides.
    pub warnings: Vec<Warning>,
    /// Why it failed, if it did.
    #[serde(skip)]
    pub failure: Option<Box<Failure>>,
    /// How long it took, in seconds when serialised.
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub elapsed: Duration,
}

/// A run that was made.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Ran {
    /// What was run.
    pub request: Request,
    /// How it ended.
    pub report: Report,
}

fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

/// Runs scripts, and keeps what came of them.
struct Recorder {
    runner: Arc<dyn Runner>,
    runs: Mutex<Vec<Ran>>,
}

impl Recorder {
    fn runs(&self) -> Vec<Ran> {
        std::mem::take(&mut self.runs.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Runner for Recorder {
    fn foresee(&self, script: &FsPath) -> Result<(), SpawnError> {
        self.runner.foresee(script)
    }

    fn environment(&self, request: &Request) -> BTreeMap<OsString, OsString> {
        self.runner.environment(request)
    }

    fn replaces(&self, request: &Request) -> bool {
        self.runner.replaces(request)
    }

    fn run_if<'a>(
        &'a self,
        request: &'a Request,
        limits: &'a Limits,
        cancel: &'a CancellationToken,
        permit: Permit<'a>,
    ) -> Pin<Box<dyn Future<Output = Report> + Send + 'a>> {
        Box::pin(async move {
            let report = self.runner.run_if(request, limits, cancel, permit).await;
            let ran = Ran { request: request.clone(), report: report.clone() };
            self.runs.lock().unwrap_or_else(PoisonError::into_inner).push(ran);
            report
        })
    }
}

/// What a run would harm of a device whose backend has this state and these keys.
fn harm(target: &Target, action: Action, state: Option<XenbusState>, backend: &Recorded) -> Option<String> {
    use XenbusState::{Closing, Connected, Initialised};
    match (action, state) {
        (Action::Remove, Some(state @ (Initialised | Connected | Closing))) => Some(format!(
            "the guest uses the device, which the script would take away under it: its backend's state is {state}"
        )),
        (Action::Add, Some(state @ Connected)) => {
            Some(format!("the device works, and would be set up twice: its backend's state is {state}"))
        }
        (Action::Add, _) => {
            let is_told = |key: &&&str| backend.contains_key(**key);
            let told = target.id().kind.info().made.iter().find(is_told).map(|key| (*key, &*backend[*key]));
            let status = backend.get("hotplug-status").filter(|status| *status == "connected");
            let (key, value) = told.or(status.map(|status| ("hotplug-status", &**status)))?;
            Some(format!(
                "it has been run already ({key} is {}), and what it made would be left",
                xen_hotplug::printable(value, xen_hotplug::LINE_SHOWN)
            ))
        }
        (Action::Remove, _) => None,
    }
}

impl Toolstack {
    /// What [`Self::run_by_hand`] would do now. Nothing is changed.
    ///
    /// # Errors
    ///
    /// If there is no such device, or it has no script.
    pub async fn preview_by_hand(&self, by_hand: &ByHand) -> Result<ByHandPreview, Box<Failure>> {
        let begun = Instant::now();
        let preview = self.preview_of(by_hand).await;
        preview.map_err(|cause| failed(by_hand, cause, begun.elapsed()))
    }

    async fn preview_of(&self, by_hand: &ByHand) -> Result<ByHandPreview, Cause> {
        let Probed { target, .. } = self.find_by_hand(by_hand).await?;
        let client = &self.client;
        let seen = store::look(client, &target.id(), target.paths(), Depth::Standing).await?;
        let backend = store::keys_of(client, &target.paths().backend).await?;
        let job = job(self, by_hand);
        let (keys, copy) = match by_hand.action {
            Action::Add => {
                must_be_there(&seen)?;
                (Some(backend.clone()), None)
            }
            Action::Remove => match job.task_of(&target, Purpose::Remove, inputs(&seen)).await? {
                Task::Run(Undo { keys, copy: Some(copy), .. }) => (Some(keys), Some(copy)),
                Task::Run(_) => (Some(backend.clone()), None),
                Task::Nothing(_) => (None, None),
            },
        };
        let mut runs = Vec::new();
        for kind in keys.iter().flat_map(|_| in_order(&target, by_hand.action)) {
            let keys = keys.clone().unwrap_or_default();
            let mut request = target.request(self.own, kind, by_hand.action, &keys);
            if let Some(copy) = &copy {
                request = request.copy(copy.to_string());
            }
            let text = |text: OsString| text.to_string_lossy().into_owned();
            let environment = self.runner.environment(&request).into_iter();
            let (runner, asked) = (self.runner.clone(), request.clone());
            let native = super::files::blocking(self.limits.file, move || runner.replaces(&asked)).await;
            runs.push(PlannedRun {
                command: [request.script.to_string_lossy().into_owned()]
                    .into_iter()
                    .chain(request.args().into_iter().map(str::to_owned))
                    .collect(),
                environment: environment.map(|(name, value)| (text(name), text(value))).collect(),
                directory: request.directory(),
                is_copy: copy.is_some(),
                keys: keys.into_iter().filter(|(key, _)| copy.is_none() || !saved::is_own(key)).collect(),
                native: native.unwrap_or(false),
            });
        }
        let state = seen.be_state.as_ref().and_then(xen_devstate::StateValue::state);
        let refused = harm(&target, by_hand.action, state, &backend);
        Ok(ByHandPreview { device: target.id(), action: by_hand.action, runs, refused })
    }

    /// Runs the script of a device as its add or its removal would: in its backend's directory, or in a copy of that if
    /// the directory is gone or does not tell what the script needs; under the lock of the device, with its limits. The
    /// device stays as it is but for what the script does.
    ///
    /// What an add or a removal that died has left on record stays there.
    ///
    /// # Errors
    ///
    /// If there is no such device or it has no script, if another operation works on it, or if the run would harm it and is
    /// not forced ([`Cause::InUse`]). A script that fails is told in [`Rerun::failure`].
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the script is killed, and the record of the operation stays, from which a removal goes on.
    pub async fn run_by_hand(
        &self,
        by_hand: &ByHand,
        cancel: &CancellationToken,
    ) -> Result<Rerun, Box<Failure>> {
        let begun = Instant::now();
        let recorder = Arc::new(Recorder { runner: self.runner.clone(), runs: Mutex::default() });
        let mut toolstack = self.clone();
        toolstack.runner = recorder.clone();
        let rerun = Box::pin(toolstack.rerun(by_hand, &recorder, begun, cancel)).await;
        rerun.map_err(|cause| failed(by_hand, cause, begun.elapsed()))
    }

    async fn rerun(
        &self,
        by_hand: &ByHand,
        recorder: &Recorder,
        begun: Instant,
        cancel: &CancellationToken,
    ) -> Result<Rerun, Cause> {
        let client = &self.client;
        let Probed { target, op } = self.find_by_hand(by_hand).await?;
        let directory = &target.paths().backend;
        let before = store::keys_of(client, directory).await?;
        let mut job = job(self, by_hand);
        if let Some(op) = &op {
            let occupant = job.occupant(op.clone()).await?;
            if occupant.alive {
                return Err(busy(occupant));
            }
        }
        let claimed = job.claim_by_hand(&target, by_hand, op.as_ref(), &before).await?;
        let mut warnings = Vec::new();
        let mut cause = None;
        for index in indices(&target, by_hand.action) {
            let event = match by_hand.action {
                Action::Add => job.run_add(&target, index, cancel).await,
                Action::Remove => job.run_remove(&target, Purpose::Remove, index, Some(cancel)).await,
            };
            match event {
                Event::Ran(Ok(warning)) => warnings.extend(warning),
                Event::Ran(Err(failed)) | Event::NotRun(failed) => {
                    cause.get_or_insert(failed);
                    if by_hand.action == Action::Add {
                        break;
                    }
                }
                _ => {}
            }
        }
        let runs = recorder.runs();
        let is_undone = by_hand.action == Action::Remove && cause.is_none() && !runs.is_empty();
        let is_added = by_hand.action == Action::Add && cause.is_none();
        let finished = is_added.then(|| saved::finished(target.paths(), &job.copy)).flatten();
        if claimed {
            job.let_go(&target, op, is_undone, finished).await?;
        } else if is_undone {
            saved::forget(client, &target.id(), target.paths(), target.recorded().get("params")).await?;
        }
        let after = store::keys_of(client, directory).await?;
        let elapsed = begun.elapsed();
        Ok(Rerun {
            device: target.id(),
            action: by_hand.action,
            runs,
            directory: directory.to_string(),
            before,
            after,
            warnings,
            failure: cause.map(|cause| failed(by_hand, cause, elapsed)),
            elapsed,
        })
    }

    /// What is recorded of the device.
    async fn find_by_hand(&self, by_hand: &ByHand) -> Result<Probed, Cause> {
        let id = store::identify(&self.client, self.own, by_hand.which).await?;
        if by_hand.backend.as_ref().is_some_and(|backend| id.backend().ok().as_ref() != Some(backend)) {
            return Err(Cause::ForeignBackend(format!("at {}", id.backend()?)));
        }
        if id.be != self.own {
            return Err(Cause::ForeignBackend(format!("in domain {}", id.be)));
        }
        let probed = store::recall(&self.client, id).await?;
        if probed.target.runs() == 0 {
            return Err(Cause::NoScript(id.be_kind));
        }
        Ok(probed)
    }
}

fn failed(by_hand: &ByHand, cause: Cause, elapsed: Duration) -> Box<Failure> {
    Box::new(Failure {
        operation: Operation::Script,
        device: Named::of_id(by_hand.which),
        cause,
        observed: Observation::default(),
        warnings: Vec::new(),
        elapsed,
    })
}

fn busy(occupant: Occupant) -> Cause {
    Cause::Busy { occupant: Box::new(occupant), limit: Duration::ZERO }
}

fn job<'a>(toolstack: &'a Toolstack, by_hand: &ByHand) -> Job<'a> {
    let operation = match by_hand.action {
        Action::Add => Operation::Attach,
        Action::Remove => Operation::Detach,
    };
    Job::new(toolstack, operation, Named::of_id(by_hand.which))
}

/// The runs of a device, in the order in which an add or a removal makes them.
fn indices(target: &Target, action: Action) -> Vec<usize> {
    let runs = 0..target.runs();
    match action {
        Action::Add => runs.collect(),
        Action::Remove => runs.rev().collect(),
    }
}

fn in_order(target: &Target, action: Action) -> Vec<xen_hotplug::Kind> {
    indices(target, action).into_iter().map(|index| target.run_kinds()[index]).collect()
}

/// Where the script that removes finds its inputs, of a device that nobody else works on.
fn inputs(seen: &Seen) -> Inputs {
    match (seen.lx, seen.be) {
        (true, true) => Inputs::Backend,
        (true, false) => Inputs::Saved,
        (false, _) => Inputs::Leftover,
    }
}

fn must_be_there(seen: &Seen) -> Result<(), Cause> {
    if seen.lx && seen.be { Ok(()) } else { Err(Cause::NoSuchDevice) }
}

impl Job<'_> {
    /// Records the operation, if the device is as it was seen; whether there is a place for a record.
    async fn claim_by_hand(
        &self,
        target: &Target,
        by_hand: &ByHand,
        op: Option<&String>,
        backend: &Recorded,
    ) -> Result<bool, Cause> {
        let record = &self.record;
        store::transact(&self.toolstack.client, |tx| async move {
            let seen = store::look(&tx, &target.id(), target.paths(), Depth::Standing).await?;
            if seen.op.as_ref() != op {
                return Err(Cause::Taken);
            }
            let state = seen.be_state.as_ref().and_then(xen_devstate::StateValue::state);
            let stage = match by_hand.action {
                Action::Add => {
                    must_be_there(&seen)?;
                    Stage::Script
                }
                Action::Remove => Stage::Undoing,
            };
            if let Some(why) = harm(target, by_hand.action, state, backend).filter(|_| !by_hand.force) {
                return Err(Cause::InUse { action: by_hand.action, why });
            }
            let node = target.paths().toolstack.join("op")?;
            let write = StoreRequest::Write { path: node, value: record.at(stage).to_string().into() };
            Ok((seen.lx, seen.lx.then_some(write).into_iter().collect()))
        })
        .await
    }

    /// Puts back what was on record, if the device is still ours. `undone`: the script has undone what it told in BE and
    /// in the copy.
    async fn let_go(
        &self,
        target: &Target,
        op: Option<String>,
        undone: bool,
        also: Option<StoreRequest>,
    ) -> Result<(), Cause> {
        let client = &self.toolstack.client;
        let copy = if undone { saved::read(client, &target.paths().saved).await? } else { None };
        let (op, also, copy, token) = (&op, &also, &copy, self.record.token);
        store::transact(client, |tx| async move {
            let seen = store::look(&tx, &target.id(), target.paths(), Depth::Standing).await?;
            if !Record::is_of(seen.op.as_deref(), token) {
                return Ok(((), Vec::new()));
            }
            let node = target.paths().toolstack.join("op")?;
            let mut requests = vec![match op {
                Some(op) => StoreRequest::Write { path: node, value: op.clone().into() },
                None => StoreRequest::Rm(node),
            }];
            requests.extend(also.clone());
            if undone && seen.be {
                requests.extend(forget_told(&tx, target).await?);
            }
            if let Some(copy) = copy {
                // With the directory that was made there for the run.
                requests.push(StoreRequest::Rm(target.paths().saved.clone()));
                requests.push(saved::write(target.paths(), &without_told(target, copy)));
            }
            Ok(((), requests))
        })
        .await
    }
}

/// The requests by which BE does not tell any more what the script had made. `hotplug-status` stays where the toolstack
/// has made it, as it was then: netback connects at once if it is missing.
async fn forget_told(tx: &xs_client::Transaction, target: &Target) -> Result<Vec<StoreRequest>, Cause> {
    let backend = &target.paths().backend;
    let made = target.id().kind.info().made.iter().copied().chain(["hotplug-status"]);
    let paths: Vec<(&str, Path)> =
        made.map(|key| Ok((key, backend.join(key)?))).collect::<Result<_, xs_client::PathError>>()?;
    let nodes: Vec<Path> = paths.iter().map(|(_, path)| path.clone()).collect();
    let there = tx.read_many(&nodes).await?;
    let told = paths.into_iter().zip(there).filter(|(_, value)| value.is_some());
    Ok(told
        .map(|((key, path), _)| match target.recorded().get("hotplug-status") {
            Some(made) if key == "hotplug-status" => StoreRequest::Write { path, value: made.clone().into() },
            _ => StoreRequest::Rm(path),
        })
        .collect())
}

/// A copy without what a script told, which is undone.
fn without_told(target: &Target, copy: &Recorded) -> Recorded {
    let made = target.id().kind.info().made;
    let is_told = |key: &str| made.contains(&key) || key == saved::SEQUENCE || key == saved::BEFORE;
    copy.iter().filter(|(key, _)| !is_told(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}
