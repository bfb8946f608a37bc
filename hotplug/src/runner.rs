//! Who runs scripts: the [`Runner`] trait, and [`ScriptRunner`], which executes them.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::future::{Future, ready};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::select;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::lock::{self, DeviceLock, Held};
use crate::process::{self, Environment, Group};
use crate::{Ending, Report, Request, SpawnError};

/// For how long to go on reading after the script's process has died. Normally the pipe ends with it;
/// if not, a daemon that the script started has kept it open.
pub(crate) const DRAIN: Duration = Duration::from_millis(100);

/// How often to try to get the lock of a device that somebody else has.
const POLL: Duration = Duration::from_millis(20);

/// The limits of one run. [`Duration::MAX`] is no limit.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// let limits = xen_hotplug::Limits::default().deadline(Duration::from_secs(120));
/// assert_eq!(limits.grace, Duration::from_secs(2));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// How long the script may take, from its start: 40 s by default. The stock scripts wait for each
    /// other's locks within this time.
    pub deadline: Duration,
    /// What its processes get between `SIGTERM` and `SIGKILL`: 2 s by default.
    pub grace: Duration,
    /// How long it may wait for its turn before it starts, which includes the wait for another script of
    /// the same device: 300 s by default.
    pub queue: Duration,
}

impl Limits {
    /// Sets how long the script may take.
    #[must_use]
    pub fn deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// Sets what its processes get between `SIGTERM` and `SIGKILL`.
    #[must_use]
    pub fn grace(self, grace: Duration) -> Self {
        Self { grace, ..self }
    }

    /// Sets how long it may wait for its turn.
    #[must_use]
    pub fn queue(self, queue: Duration) -> Self {
        Self { queue, ..self }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(40),
            grace: Duration::from_secs(2),
            queue: Duration::from_secs(300),
        }
    }
}

/// What is asked at the last moment, when nothing else can run for the device any more: whether the run is
/// still wanted.
pub type Permit<'a> = Pin<Box<dyn Future<Output = bool> + Send + 'a>>;

/// Something that does what a hotplug script does: [`ScriptRunner`] executes the script, another
/// implementation may do its work by itself or simulate it.
pub trait Runner: Send + Sync {
    /// Whether a script could be started now, as far as that can be seen without starting it: so that it is known
    /// before anything is prepared for it. Nothing is foreseen if not said.
    ///
    /// It may block, as looking at a file does.
    ///
    /// # Errors
    ///
    /// What [`Self::run`] would report as [`Ending::SpawnFailed`].
    fn foresee(&self, script: &Path) -> Result<(), SpawnError> {
        _ = script;
        Ok(())
    }

    /// All variables that the script of a request finds, whoever they come from; those of the request alone if not said.
    fn environment(&self, request: &Request) -> BTreeMap<OsString, OsString> {
        request.variables().into_iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    /// Whether the script's work would be done without running it now. It is not if not said.
    ///
    /// It may block, as looking at a file does.
    fn replaces(&self, request: &Request) -> bool {
        _ = request;
        false
    }

    /// Runs a script to its end.
    ///
    /// Everything that can go wrong is in the report's [`Ending`]. After `cancel` is cancelled the run
    /// ends soon, within [`Limits::grace`] and a little, as [`Ending::Aborted`] if the script had not
    /// ended by then.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives the run up: an implementation must leave no process of it behind,
    /// and need not be gentle.
    fn run<'a>(
        &'a self,
        request: &'a Request,
        limits: &'a Limits,
        cancel: &'a CancellationToken,
    ) -> Pin<Box<dyn Future<Output = Report> + Send + 'a>> {
        self.run_if(request, limits, cancel, Box::pin(ready(true)))
    }

    /// The same, but asks `permit` after all waiting and right before the script starts, while no other
    /// script of the device can run. If it yields false, the script is not started, and the run ends as
    /// [`Ending::Withdrawn`]. An implementation must await `permit` before it does anything: whoever asks for
    /// the run may claim in it what the run changes.
    fn run_if<'a>(
        &'a self,
        request: &'a Request,
        limits: &'a Limits,
        cancel: &'a CancellationToken,
        permit: Permit<'a>,
    ) -> Pin<Box<dyn Future<Output = Report> + Send + 'a>>;
}

/// Executes scripts as the [crate's documentation](crate) says, a bounded number at a time.
///
/// The stock scripts serialise themselves with locks that all runs of one script have in common
/// (`block` for disks, `iptables` for NICs), and waiting for a lock counts against their deadline. So
/// there are two bounds: one for all scripts together, and a lower one for runs of the same script.
/// Whoever has to wait waits here, first come, first served, where it costs no deadline.
///
/// Runs for one device never overlap, be they of one runner or of several in different processes: each
/// takes the lock of its device before it starts, a file in the runner's [lock
/// directory](Self::lock_dir). The lock of a run is free when no process of a script that was given up is
/// left, even if the program that ran it was killed. Waiting for it counts against [`Limits::queue`].
///
/// It needs a tokio runtime with I/O and time enabled, and panics without.
///
/// All users of one process should share one runner, since the bounds are its own.
#[derive(Debug)]
pub struct ScriptRunner {
    environment: Environment,
    slots: Semaphore,
    slots_per_script: usize,
    lock_dir: Option<PathBuf>,
    /// The slots of the scripts that are running or waiting; those of others have been freed.
    scripts: Mutex<HashMap<PathBuf, Weak<Semaphore>>>,
}

impl ScriptRunner {
    /// A runner with the default bounds: 16 scripts at a time, at most 8 of them the same.
    pub fn new() -> Self {
        Self {
            environment: Environment::default(),
            slots: Semaphore::new(16),
            slots_per_script: 8,
            lock_dir: None,
            scripts: Mutex::default(),
        }
    }

    /// Sets how many scripts may run at a time, at least one.
    #[must_use]
    pub fn concurrency(self, scripts: usize) -> Self {
        Self { slots: Semaphore::new(scripts.clamp(1, Semaphore::MAX_PERMITS)), ..self }
    }

    /// Sets how many runs of the same script (by its path) may go on at a time, at least one.
    #[must_use]
    pub fn concurrency_per_script(self, runs: usize) -> Self {
        Self { slots_per_script: runs.clamp(1, Semaphore::MAX_PERMITS), ..self }
    }

    /// Sets a variable for every script; the variables of a [`Request`] win over it.
    ///
    /// Scripts reach another store than the usual one if `XENSTORED_PATH` says where it is.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.extra.insert(name.into(), value.into());
        self
    }

    /// Sets whether scripts inherit this program's whole environment, as they do from libxl, and not
    /// only `PATH`, `HOME`, `TERM` and `LANG`. `PATH` is completed either way.
    #[must_use]
    pub fn inherit_environment(mut self, inherit: bool) -> Self {
        self.environment.inherit = inherit;
        self
    }

    /// Sets the directory for the locks of the devices, which is created if it does not exist. All
    /// programs that run scripts for the same store must have the same one.
    ///
    /// The default is `/run/xendev` for root; for other users it is `xendev` in `$XDG_RUNTIME_DIR`, or
    /// `xendev-<uid>` in the directory for temporary files if that is not set. A default directory must
    /// belong to this user, and others must not be able to write to it.
    #[must_use]
    pub fn lock_dir(self, directory: impl Into<PathBuf>) -> Self {
        Self { lock_dir: Some(directory.into()), ..self }
    }

    /// Takes the lock of a device, and then asks for the permit, as a run of its script does: no script of the device runs
    /// as long as the value lives. For who does a script's work by itself, as the handlers of
    /// [`native`](crate::native) do.
    ///
    /// # Errors
    ///
    /// How a run would have ended: [`Ending::Aborted`], [`Ending::NotStarted`] after [`Limits::queue`],
    /// [`Ending::Withdrawn`] without a permit, or [`Ending::SpawnFailed`] if there can be no lock.
    ///
    /// # Cancel safety
    ///
    /// Nothing is left if the future is dropped.
    pub async fn hold(
        &self,
        request: &Request,
        limits: &Limits,
        cancel: &CancellationToken,
        permit: Permit<'_>,
    ) -> Result<Held, Ending> {
        let variables = Runner::environment(self, request);
        let lock = self.lock_of(request, &variables)?;
        let held = select! {
            biased;
            () = cancel.cancelled() => return Err(Ending::Aborted),
            held = timeout(limits.queue, Held::take(&lock, POLL)) => held,
        };
        let held = held
            .map_err(|_| Ending::NotStarted)?
            .map_err(|error| Ending::SpawnFailed(SpawnError::lock(&lock, &error)))?;
        permitted(cancel, permit).await.map(|()| held)
    }

    /// The file of a device's lock, for a script with these variables.
    fn lock_of(
        &self,
        request: &Request,
        variables: &BTreeMap<OsString, OsString>,
    ) -> Result<PathBuf, Ending> {
        let directory = lock::directory(self.lock_dir.as_deref());
        let directory = directory.map_err(|error| Ending::SpawnFailed(SpawnError::lock_dir(&error)))?;
        Ok(directory.join(lock::name(request, variables)))
    }

    async fn execute(
        &self,
        request: &Request,
        limits: &Limits,
        cancel: &CancellationToken,
        permit: Permit<'_>,
    ) -> Report {
        if let Some(error) = SpawnError::foresee(&request.script) {
            return Report::unstarted(Ending::SpawnFailed(error));
        }
        let variables = Runner::environment(self, request);
        let lock = match self.lock_of(request, &variables) {
            Ok(lock) => lock,
            Err(ending) => return Report::unstarted(ending),
        };
        let turn = select! {
            biased;
            () = cancel.cancelled() => return Report::unstarted(Ending::Aborted),
            turn = timeout(limits.queue, self.turn(&request.script, &lock)) => turn,
        };
        let turn = match turn {
            Ok(Ok(turn)) => turn,
            Ok(Err(error)) => return Report::unstarted(Ending::SpawnFailed(SpawnError::lock(&lock, &error))),
            Err(_) => return Report::unstarted(Ending::NotStarted),
        };
        if let Err(ending) = permitted(cancel, permit).await {
            turn.lock.remove();
            return Report::unstarted(ending);
        }
        let (mut group, mut capture) = match process::start(
            request.script.as_os_str(),
            request.args(),
            &variables,
            Some(turn.lock.as_fd()),
        ) {
            Ok(started) => started,
            Err(error) => {
                turn.lock.remove();
                let error = SpawnError::explain(&request.script, &error);
                return Report::unstarted(Ending::SpawnFailed(error));
            }
        };
        let (ending, duration) = {
            // Reading goes on beside everything else, or a script that prints much would block.
            let mut end = pin!(end(&mut group, limits, cancel));
            select! {
                biased;
                end = &mut end => end,
                () = capture.read_to_end() => end.await,
            }
        };
        if group.is_gone() {
            turn.lock.remove();
        }
        let _ = timeout(DRAIN, capture.read_to_end()).await;
        Report::new(ending, capture.finish(), duration)
    }

    /// Waits for a turn.
    async fn turn(&self, script: &Path, lock: &Path) -> io::Result<Turn<'_>> {
        // First the lock: whoever waits for the device must not hold a slot that others could use.
        let lock = DeviceLock::take(lock, POLL).await?;
        // Whoever waits for others of the same script must not hold a slot that other scripts could use.
        let of_script = self.slots_of(script).acquire_owned().await.ok();
        let of_all = self.slots.acquire().await.ok();
        Ok(Turn { lock, _of_script: of_script, _of_all: of_all })
    }

    fn slots_of(&self, script: &Path) -> Arc<Semaphore> {
        let mut scripts = self.scripts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slots) = scripts.get(script).and_then(Weak::upgrade) {
            return slots;
        }
        scripts.retain(|_, slots| slots.strong_count() > 0);
        let slots = Arc::new(Semaphore::new(self.slots_per_script));
        scripts.insert(script.to_owned(), Arc::downgrade(&slots));
        slots
    }
}

impl Default for ScriptRunner {
    fn default() -> Self {
        Self::new()
    }
}

impl Runner for ScriptRunner {
    fn foresee(&self, script: &Path) -> Result<(), SpawnError> {
        SpawnError::foresee(script).map_or(Ok(()), Err)
    }

    fn environment(&self, request: &Request) -> BTreeMap<OsString, OsString> {
        self.environment.variables(std::env::vars_os(), &request.variables())
    }

    fn run_if<'a>(
        &'a self,
        request: &'a Request,
        limits: &'a Limits,
        cancel: &'a CancellationToken,
        permit: Permit<'a>,
    ) -> Pin<Box<dyn Future<Output = Report> + Send + 'a>> {
        let span = tracing::debug_span!("hotplug_script", run = %request);
        Box::pin(
            async move {
                let report = self.execute(request, limits, cancel, permit).await;
                tracing::debug!(duration = ?report.duration, "script {}", report.ending);
                report
            }
            .instrument(span),
        )
    }
}

/// The right to run one script, for as long as the value lives. (The permits would be `None` if the
/// semaphores were closed, which they never are.)
struct Turn<'a> {
    lock: DeviceLock,
    _of_script: Option<OwnedSemaphorePermit>,
    _of_all: Option<SemaphorePermit<'a>>,
}

/// Whether a run is wanted still, now that its turn has come.
async fn permitted(cancel: &CancellationToken, permit: Permit<'_>) -> Result<(), Ending> {
    select! {
        biased;
        () = cancel.cancelled() => Err(Ending::Aborted),
        permitted = permit => if permitted { Ok(()) } else { Err(Ending::Withdrawn) },
    }
}

/// Waits for the end of a script that has just started, or makes it end. Tells how it ended, and after
/// how long it did or was told to.
async fn end(group: &mut Group, limits: &Limits, cancel: &CancellationToken) -> (Ending, Duration) {
    let start = Instant::now();
    let given_up = select! {
        biased;
        ending = group.ended() => return (ending, start.elapsed()),
        () = cancel.cancelled() => Ending::Aborted,
        () = sleep(limits.deadline) => Ending::TimedOut,
    };
    let duration = start.elapsed();
    let ended = group.terminate(limits.grace).await;
    (ended.unwrap_or(given_up), duration)
}
