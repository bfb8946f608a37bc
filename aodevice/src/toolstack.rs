//! The driver of the machines: it carries out what they ask for, and nothing else.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use devstate::{Outcome, wait};
use hotplug::{Ending, Runner};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use xs_client::{Client, DomId, Error, Path};

use crate::machine::{Action, Add, Event, Force, Limits, Remove, WaitFor};
use crate::observe::observe;
use crate::transactions::{self, Record, Subject};
use crate::vbd::Vdev;
use crate::{Cause, Device, DeviceId, Failure, Guest, Kind, Observation, Operation, Warning};

/// A step of an operation, as it is taken.
#[derive(Clone, Debug)]
pub struct Step {
    /// The device and its domain, in words.
    pub device: String,
    /// Time since the operation began.
    pub elapsed: Duration,
    /// What is being done, in words.
    pub doing: String,
}

/// An operation that succeeded.
#[derive(Clone, Debug)]
pub struct Success {
    /// The device.
    pub id: DeviceId,
    /// What did not go well all the same.
    pub warnings: Vec<Warning>,
    /// How long it took.
    pub elapsed: Duration,
}

type Observer = Arc<dyn Fn(&Step) + Send + Sync>;

/// Adds and removes devices on behalf of the domain it runs in.
///
/// Clones share the connection and the script runner.
#[derive(Clone)]
pub struct Toolstack {
    client: Client,
    runner: Arc<dyn Runner>,
    own: DomId,
    script_dir: PathBuf,
    limits: Limits,
    observer: Option<Observer>,
}

impl fmt::Debug for Toolstack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { own, script_dir, limits, .. } = self;
        let mut debug = f.debug_struct("Toolstack");
        debug.field("own", own).field("script_dir", script_dir).field("limits", limits);
        debug.finish_non_exhaustive()
    }
}

impl Toolstack {
    /// A toolstack on this connection, whose scripts `runner` runs.
    ///
    /// Its own domid is read from the relative node `domid`; a store without it is taken to be
    /// domain 0's.
    pub async fn new(client: Client, runner: Arc<dyn Runner>) -> Result<Self, Error> {
        let domid = client.read_opt(&Path::new("domid")?).await?;
        let domid = domid.and_then(|text| std::str::from_utf8(&text).ok()?.parse().ok());
        Ok(Self {
            client,
            runner,
            own: domid.unwrap_or(DomId::DOM0),
            script_dir: "/etc/xen/scripts".into(),
            limits: Limits::default(),
            observer: None,
        })
    }

    /// With these time limits.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// With scripts in this directory, `/etc/xen/scripts` if not said.
    #[must_use]
    pub fn with_script_dir(mut self, script_dir: impl Into<PathBuf>) -> Self {
        self.script_dir = script_dir.into();
        self
    }

    /// With someone to be told of every step. It is called from within operations: it must not
    /// block.
    #[must_use]
    pub fn with_observer(mut self, observer: impl Fn(&Step) + Send + Sync + 'static) -> Self {
        self.observer = Some(Arc::new(observer));
        self
    }

    /// The connection.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Adds a device to a guest.
    ///
    /// Done when the backend is ready and the scripts have run, or when the guest has connected:
    /// see [`WaitFor`]. On failure, and when `cancel` is cancelled, everything is rolled back
    /// before this returns, within [`Limits::close`] and the scripts' limits.
    ///
    /// If the future is dropped, the operation stops where it is, and what it wrote stays with its
    /// operation record for a later removal to clean. Prefer to cancel.
    pub async fn add(
        &self,
        fe: DomId,
        device: &Device,
        wait_for: WaitFor,
        cancel: &CancellationToken,
    ) -> Result<Success, Box<Failure>> {
        let label = format!("{} to domain {fe}", device.label());
        let mut job = Job::new(self, Operation::Attach, label, device.kind());
        let mut machine = Add::new(wait_for, self.limits);
        let never = CancellationToken::new();
        let device = device.completed();
        let mut action = machine.on(Event::Begin);
        while action != Action::Finish {
            job.step(&machine);
            let cancel = if machine.is_cancellable() { cancel } else { &never };
            let event = match action {
                Action::Create => job.create(fe, &device, cancel).await,
                other => job.carry_out(other, cancel).await,
            };
            action = machine.on(event);
        }
        job.step(&machine);
        job.finish(machine.outcome())
    }

    /// Removes a device from a guest.
    ///
    /// Where its backend is, and which script is run, is taken from the toolstack's own record.
    /// See [`Force`] for what is done if the guest does not let go.
    ///
    /// A removal that fails or is cancelled after the device was told to close leaves it closing,
    /// with its operation record; a later removal goes on from there. The same holds if the
    /// future is dropped.
    ///
    /// Removing with the guest's consent does not mean that nothing in the guest used the device:
    /// Linux's blkfront was seen to let go of a disk that was held open.
    pub async fn remove(
        &self,
        fe: DomId,
        (kind, devid): (Kind, u32),
        force: Force,
        cancel: &CancellationToken,
    ) -> Result<Success, Box<Failure>> {
        let name = match kind {
            Kind::Vbd => Vdev::from_devid(devid).name().to_owned(),
            Kind::Vif => devid.to_string(),
        };
        let label = format!("{kind} {name} from domain {fe}");
        let mut job = Job::new(self, Operation::Detach, label, kind);
        let mut machine = Remove::new(force, self.limits);
        let mut action = machine.on(Event::Begin);
        while action != Action::Finish {
            job.step(&machine);
            let event = match action {
                Action::Probe => Event::Known(job.probe((fe, kind, devid)).await),
                other => job.carry_out(other, cancel).await,
            };
            action = machine.on(event);
        }
        job.step(&machine);
        job.finish(machine.outcome())
    }
}

/// One operation under way.
struct Job<'a> {
    toolstack: &'a Toolstack,
    operation: Operation,
    label: String,
    kind: Kind,
    record: Record,
    begun: Instant,
    subject: Option<Subject>,
    /// Whether the record is in the store, or was: from then on the device may be another's.
    recorded: bool,
    observed: Observation,
}

impl<'a> Job<'a> {
    fn new(toolstack: &'a Toolstack, operation: Operation, label: String, kind: Kind) -> Self {
        let (record, begun) = (Record::new(operation), Instant::now());
        let observed = Observation::default();
        Self { toolstack, operation, label, kind, record, begun, subject: None, recorded: false, observed }
    }

    fn step(&self, machine: &dyn fmt::Display) {
        let step =
            Step { device: self.label.clone(), elapsed: self.begun.elapsed(), doing: machine.to_string() };
        debug!(device = step.device, doing = step.doing, "step");
        if let Some(observer) = &self.toolstack.observer {
            observer(&step);
        }
    }

    async fn create(&mut self, fe: DomId, device: &Device, cancel: &CancellationToken) -> Event {
        let Toolstack { client, own, script_dir, .. } = self.toolstack;
        let written = Mutex::new(None);
        let created = async {
            device.check().map_err(Cause::Invalid)?;
            let guest = Guest::look(client, fe, script_dir.clone()).await?;
            transactions::create(client, (fe, *own), device, &guest, &self.record, &written, cancel).await
        };
        let created = created.await;
        let written = written.into_inner().unwrap_or_else(PoisonError::into_inner);
        match (created, written) {
            (Ok(subject), _) => {
                self.recorded = true;
                Event::Known(Ok(self.know(subject)))
            }
            (
                Err(Cause::Store(error @ (Error::Timeout { .. } | Error::Disconnected { .. }))),
                Some(subject),
            ) => {
                self.recorded = true;
                self.know(subject);
                Event::Unsure(error.into())
            }
            (Err(Cause::Exists), _) => {
                // The device that is there is what the report is about.
                if let Some(devid) = device.devid() {
                    self.subject = transactions::probe(client, *own, (fe, self.kind, devid)).await.ok();
                }
                Event::Known(Err(Cause::Exists))
            }
            (Err(cause), _) => Event::Known(Err(cause)),
        }
    }

    async fn probe(&mut self, which: (DomId, Kind, u32)) -> Result<usize, Cause> {
        let subject = transactions::probe(&self.toolstack.client, self.toolstack.own, which).await?;
        Ok(self.know(subject))
    }

    /// Takes note of the device; returns how many script runs it has.
    fn know(&mut self, subject: Subject) -> usize {
        let runs = subject.scripts.runs(&subject.id, hotplug::Action::Add).len();
        self.subject = Some(subject);
        runs
    }

    /// Carries out an action on the device that is known by now.
    async fn carry_out(&mut self, action: Action, cancel: &CancellationToken) -> Event {
        let client = &self.toolstack.client;
        let Some(subject) = &self.subject else {
            // Before the device is known, a machine asks for nothing but a look at it.
            return Event::Observed;
        };
        match action {
            Action::Await { goal, limit } => Event::Waited(match subject.paths.backend.join("state") {
                Ok(path) => wait(client, &path, goal, limit, cancel).await,
                Err(error) => Outcome::Io(error.into()),
            }),
            Action::Run { action, index } => {
                Event::Ran(self.run_script(subject, action, index, cancel).await)
            }
            Action::Close(frontend) => {
                let outcome = subject.close(client, (&self.record, self.recorded), frontend, cancel).await;
                self.recorded |= outcome.is_ok();
                Event::Told(outcome)
            }
            Action::Destroy => Event::Destroyed(subject.destroy(client, &self.record).await),
            Action::Settle => Event::Settled(subject.settle(client, &self.record).await),
            Action::Observe => {
                // A store that cannot be read now has failed before, and that is the report.
                self.observed = observe(client, &subject.id, &subject.paths).await.unwrap_or_default();
                Event::Observed
            }
            // The loops that call this see to these themselves.
            Action::Create | Action::Probe | Action::Finish => Event::Observed,
        }
    }

    async fn run_script(
        &self,
        subject: &Subject,
        action: hotplug::Action,
        index: usize,
        cancel: &CancellationToken,
    ) -> Result<Option<Warning>, Cause> {
        let Toolstack { client, runner, limits, .. } = self.toolstack;
        let Some(run) = subject.scripts.runs(&subject.id, action).into_iter().nth(index) else {
            return Ok(None);
        };
        if !subject.is_ours(client, &self.record).await? {
            return Err(Cause::Superseded);
        }
        let report = runner.run(&run, &limits.scripts, cancel).await;
        debug!(%run, %report, "script");
        match report.ending {
            Ending::Aborted => Err(Cause::Aborted),
            _ if !report.success() => Err(Cause::Script { run: Box::new(run), report: Box::new(report) }),
            _ if action == hotplug::Action::Remove => Ok(None),
            _ => {
                let missing = subject.not_reported(client).await?;
                Ok(missing.map(|missing| Warning::NotReported { run: Box::new(run), missing }))
            }
        }
    }

    fn finish(self, (outcome, warnings): (Result<(), Cause>, Vec<Warning>)) -> Result<Success, Box<Failure>> {
        let elapsed = self.begun.elapsed();
        let cause = match (outcome, &self.subject) {
            (Ok(()), Some(subject)) => return Ok(Success { id: subject.id, warnings, elapsed }),
            (Ok(()), None) => Cause::NotConnected,
            (Err(cause), _) => cause,
        };
        Err(Box::new(Failure {
            operation: self.operation,
            device: self.label,
            device_kind: self.kind,
            cause,
            observed: self.observed,
            warnings,
            elapsed,
        }))
    }
}
