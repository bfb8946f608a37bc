//! Who runs scripts: the [`Runner`] trait, and [`ScriptRunner`], which executes them.

use std::collections::HashMap;
use std::ffi::OsString;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::select;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::child;
use crate::environment::Environment;
use crate::group::Group;
use crate::output::Capture;
use crate::{Ending, Report, ScriptRun, SpawnError};

/// For how long to go on reading after the script's process has died. Normally the pipe ends with it;
/// if not, a daemon that the script started has kept it open.
const DRAIN: Duration = Duration::from_millis(100);

/// The limits of one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long the script may take, from its start: 40 s by default. The stock scripts wait for each
    /// other's locks within this time.
    pub deadline: Duration,
    /// What its processes get between `SIGTERM` and `SIGKILL`: 2 s by default.
    pub grace: Duration,
    /// How long it may wait for its turn before it starts: 300 s by default.
    pub queue: Duration,
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

/// Something that runs scripts: [`ScriptRunner`], or in tests and demonstrations something that plays
/// them.
pub trait Runner: Send + Sync {
    /// Runs a script to its end.
    ///
    /// Everything that can go wrong is in the report's [`Ending`]. After `cancel` is cancelled the run
    /// ends soon, within [`Limits::grace`] and a little, as [`Ending::Aborted`] if the script had not
    /// ended by then.
    ///
    /// Dropping the future gives the run up: an implementation must leave no process of it behind,
    /// and need not be gentle.
    fn run<'a>(
        &'a self,
        run: &'a ScriptRun,
        limits: &'a Limits,
        cancel: &'a CancellationToken,
    ) -> Pin<Box<dyn Future<Output = Report> + Send + 'a>>;
}

/// Executes scripts as the [crate's documentation](crate) says, a bounded number at a time.
///
/// The stock scripts serialise themselves with locks that all runs of one script have in common
/// (`block` for disks, `iptables` for NICs), and waiting for a lock counts against their deadline. So
/// there are two bounds: one for all scripts together, and a lower one for runs of the same script.
/// Whoever has to wait waits here, first come, first served, where it costs no deadline.
///
/// It needs a tokio runtime with I/O and time enabled, and panics without; the runtime's handler for
/// `SIGCHLD` is how it learns that a script has ended.
///
/// All users of one host should share one runner, since the bounds are its own. Runs for one device
/// must not overlap; that is the caller's duty.
#[derive(Debug)]
pub struct ScriptRunner {
    environment: Environment,
    slots: Semaphore,
    slots_per_script: usize,
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

    /// Sets a variable for every script; the variables of a [`ScriptRun`] win over it.
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

    async fn execute(&self, run: &ScriptRun, limits: &Limits, cancel: &CancellationToken) -> Report {
        let turn = select! {
            biased;
            () = cancel.cancelled() => return Report::unstarted(Ending::Aborted),
            turn = timeout(limits.queue, self.turn(&run.script)) => turn,
        };
        let Ok(_turn) = turn else {
            return Report::unstarted(Ending::NotStarted);
        };
        let (mut group, mut capture) = match self.start(run) {
            Ok(started) => started,
            Err(error) => {
                let error = SpawnError::explain(&run.script, &error);
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
        let _ = timeout(DRAIN, capture.read_to_end()).await;
        Report { ending, output: capture.finish(), duration }
    }

    fn start(&self, run: &ScriptRun) -> io::Result<(Group, Capture)> {
        let variables = self.environment.variables(std::env::vars_os(), &run.env);
        let deaths = signal(SignalKind::child())?;
        let (leader, pipe) = child::spawn(run, &variables)?;
        // In this order: if the pipe cannot be read, the group is killed.
        let group = Group::new(leader, deaths);
        Ok((group, Capture::new(pipe)?))
    }

    /// Waits for a turn.
    async fn turn(&self, script: &Path) -> Turn<'_> {
        // Whoever waits for others of the same script must not hold a slot that other scripts could use.
        let of_script = self.slots_of(script).acquire_owned().await.ok();
        let of_all = self.slots.acquire().await.ok();
        Turn { _of_script: of_script, _of_all: of_all }
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
    fn run<'a>(
        &'a self,
        run: &'a ScriptRun,
        limits: &'a Limits,
        cancel: &'a CancellationToken,
    ) -> Pin<Box<dyn Future<Output = Report> + Send + 'a>> {
        let span = tracing::debug_span!("hotplug_script", %run);
        Box::pin(
            async move {
                let report = self.execute(run, limits, cancel).await;
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
    _of_script: Option<OwnedSemaphorePermit>,
    _of_all: Option<SemaphorePermit<'a>>,
}

/// Waits for the end of a script that has just started, or makes it end. Tells how it ended, and after
/// how long it did or was told to.
async fn end(group: &mut Group, limits: &Limits, cancel: &CancellationToken) -> (Ending, Duration) {
    let start = Instant::now();
    let ending = select! {
        biased;
        ending = group.ended() => {
            group.leave();
            return (ending, start.elapsed());
        }
        () = cancel.cancelled() => Ending::Aborted,
        () = sleep(limits.deadline) => Ending::TimedOut,
    };
    let duration = start.elapsed();
    group.terminate(limits.grace).await;
    (ending, duration)
}
