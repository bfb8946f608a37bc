//! Which device has its turn: one watch, a queue, and a bounded number of workers.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error as ThisError;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use xen_hotplug::{Limits, Runner};
use xs_client::{Changes, Client, DomId, Error, ErrorCode, Lifecycle, Path, Watch};

use super::course::{Action, Doing, next};
use super::place::{BACKENDS, Hint, NOTES, Place};
use super::qemu::{self, QemuProgram, Qemus};
use super::worker::{Kick, Shared, Turn, Worker};
use super::{Event, Holder, look, unreadable};
use crate::operation::text;

/// The pauses before something is tried again that the store has failed.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// How often a worker tries again what the store has refused, or a script that cannot be started. What a lost connection
/// has ended is tried for ever.
pub(super) const REFUSALS: u32 = 5;

/// What can be chosen for a [`Daemon`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Settings {
    /// How many devices are worked on at one time: 16 by default.
    pub at_once: usize,
    /// The limits of each script.
    pub scripts: Limits,
    /// How long to wait for the interface that the kernel makes for a `vif`: 10 s by default.
    pub interface: Duration,
    /// Where the kernel tells of network interfaces.
    pub interfaces: PathBuf,
    /// How long looking at an image may take: 5 s by default.
    pub file: Duration,
    /// Whether the devices that domain 0 serves are served too, whose own toolstack does so: not by default.
    pub serve_domain0: bool,
    /// What starts QEMU for guests with disks or file systems that it serves: by default the program of this system.
    pub qemus: Arc<dyn Qemus>,
    /// How long a QEMU may take to start: 60 s by default.
    pub qemu_start: Duration,
    /// How long one that runs may take to take up a device: 10 s by default.
    pub qemu_device: Duration,
    /// How long one may take to end, before it is killed: 10 s by default.
    pub qemu_end: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            at_once: 16,
            scripts: Limits::default(),
            interface: Duration::from_secs(10),
            interfaces: "/sys/class/net".into(),
            file: Duration::from_secs(5),
            serve_domain0: false,
            qemus: Arc::new(QemuProgram::default()),
            qemu_start: Duration::from_secs(60),
            qemu_device: Duration::from_secs(10),
            qemu_end: Duration::from_secs(10),
        }
    }
}

/// Why there can be no daemon, or none any more.
#[derive(Clone, Debug, ThisError)]
#[non_exhaustive]
pub enum DaemonError {
    /// This is domain 0, whose toolstack runs the scripts itself.
    #[error("this is domain 0, where the toolstack itself runs the scripts of the devices that it attaches")]
    Domain0,
    /// The store does not say which domain this is.
    #[error("the store does not say which domain this is: its node domid holds {0:?}")]
    NoDomid(Option<String>),
    /// This domain may not write its notes.
    #[error(
        "this domain may not write below its node libxl, as a domain that was made with driver_domain=1 may"
    )]
    NoNotes,
    /// Another process serves this domain.
    #[error("{0} serves them")]
    RunsAlready(Holder),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] Error),
}

/// The domain whose connection this is.
pub(super) async fn own_domain(client: &Client) -> Result<DomId, DaemonError> {
    let domid = text(client.read_opt(&Path::new("domid").map_err(Error::from)?).await?);
    let own = domid.as_ref().and_then(|domid| domid.trim().parse().ok()).map(DomId);
    own.ok_or(DaemonError::NoDomid(domid))
}

/// Serves the devices of a driver domain.
///
/// # Examples
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
///
/// use xen_aodevice::devd::{Daemon, Settings};
/// use xen_hotplug::ScriptRunner;
/// use tokio_util::sync::CancellationToken;
/// use xs_client::Client;
///
/// let client = Client::connect().await?;
/// let scripts = Arc::new(ScriptRunner::new());
/// let daemon = Daemon::new(client, scripts, Settings::default()).await?;
/// let stop = CancellationToken::new();
/// daemon.run(stop, |event| println!("{event}"), |devices| println!("{devices} devices")).await?;
/// # Ok(())
/// # }
/// ```
pub struct Daemon {
    client: Client,
    runner: Arc<dyn Runner>,
    own: DomId,
    settings: Settings,
}

impl fmt::Debug for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Daemon")
            .field("own", &self.own)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// The pause before the next attempt.
pub(super) fn pause(attempt: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << attempt.min(10)).min(LAST_PAUSE)
}

impl Daemon {
    /// A daemon for the domain whose connection this is. Nothing is done yet. That there is no other in this domain is for
    /// a [`Claim`](super::Claim) to see to.
    ///
    /// # Errors
    ///
    /// If this is domain 0 and that was not chosen, if this domain may not write its notes, or if the store fails.
    pub async fn new(
        client: Client,
        runner: Arc<dyn Runner>,
        settings: Settings,
    ) -> Result<Self, DaemonError> {
        let own = own_domain(&client).await?;
        if own == DomId::DOM0 && !settings.serve_domain0 {
            return Err(DaemonError::Domain0);
        }
        match client.mkdir(&Path::new(NOTES).map_err(Error::from)?).await {
            Err(error) if error.code() == Some(&ErrorCode::EACCES) => Err(DaemonError::NoNotes),
            made => Ok(made.map(|()| Self { client, runner, own, settings })?),
        }
    }

    /// The domain that is served.
    pub fn own(&self) -> DomId {
        self.own
    }

    /// Serves until `stop` is cancelled: then no script begins any more, and those that run go on to their ends. All
    /// devices stay as they are.
    ///
    /// `ready` is called once, with how many devices there are, when those that are there are taken note of; scripts of
    /// some may be running. `tell` is told of whatever happens.
    ///
    /// # Errors
    ///
    /// If the connection to the store is gone for good. One that is to serve for ever has
    /// [`Reconnect::within`](xs_client::Reconnect::within) at [`Duration::MAX`].
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, running scripts are killed; another daemon goes on from what is noted.
    pub async fn run(
        self,
        stop: CancellationToken,
        tell: impl Fn(&Event) + Send + Sync + 'static,
        ready: impl FnOnce(usize) + Send,
    ) -> Result<(), DaemonError> {
        let Self { client, runner, own, settings } = self;
        let at_once = settings.at_once.max(1);
        let shared = Arc::new(Shared {
            client: client.clone(),
            runner,
            own,
            settings,
            tell: Box::new(tell),
            stop: stop.clone(),
            searching: tokio::sync::Mutex::default(),
        });
        let mut turns = Turns {
            shared,
            at_once,
            queue: Queue::default(),
            running: HashMap::new(),
            tasks: JoinSet::new(),
            guests: HashMap::new(),
            keepers: JoinSet::new(),
        };
        let served = turns.serve(&stop, ready).await;
        turns.finish().await;
        served
    }
}

/// Devices that wait for a worker, each once, first come, first served.
#[derive(Debug, Default)]
struct Queue {
    order: VecDeque<Place>,
    waiting: HashSet<Place>,
}

impl Queue {
    fn push(&mut self, place: Place) {
        if self.waiting.insert(place) {
            self.order.push_back(place);
        }
    }

    fn pop(&mut self) -> Option<Place> {
        let place = self.order.pop_front()?;
        self.waiting.remove(&place);
        Some(place)
    }
}

struct Turns {
    shared: Arc<Shared>,
    at_once: usize,
    queue: Queue,
    running: HashMap<Place, Arc<Kick>>,
    tasks: JoinSet<Place>,
    /// The guests with a QEMU, or with devices that wait for one.
    guests: HashMap<DomId, Arc<Kick>>,
    keepers: JoinSet<DomId>,
}

/// What is to be looked at as a whole, and when.
#[derive(Debug, Default)]
struct Looks {
    directories: HashSet<Path>,
    attempt: u32,
    not_before: Option<Instant>,
}

impl Turns {
    async fn serve(
        &mut self,
        stop: &CancellationToken,
        ready: impl FnOnce(usize) + Send,
    ) -> Result<(), DaemonError> {
        let root = Path::new(BACKENDS).map_err(Error::from)?;
        let client = self.shared.client.clone();
        // The watch comes first: what changes from now on is told.
        let mut watch = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            watch = client.watch(&root) => watch?,
        };
        let (mut looks, mut ready) = (Looks::default(), Some(ready));
        let mut adopting: Option<(usize, HashSet<Place>)> = None;
        loop {
            if let Some((count, left)) = &adopting
                && left.is_empty()
                && let Some(ready) = ready.take()
            {
                ready(*count);
            }
            self.start();
            let not_before = looks.not_before;
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                Some(ended) = self.tasks.join_next() => {
                    let place = ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
                    if self.running.remove(&place).is_some_and(|kick| kick.is_dirty()) {
                        self.queue.push(place);
                    } else if let Some((_, left)) = &mut adopting {
                        left.remove(&place);
                    }
                }
                Some(ended) = self.keepers.join_next() => {
                    let fe = ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
                    if self.guests.remove(&fe).is_some_and(|kick| kick.is_dirty()) {
                        self.keep(fe);
                    }
                }
                () = async { sleep_until(not_before.unwrap_or_else(Instant::now)).await },
                    if !looks.directories.is_empty() =>
                {
                    let found = self.look(&mut looks).await;
                    if adopting.is_none() && looks.directories.is_empty() {
                        let left = found.iter().filter(|(_, action)| matches!(action, Action::Adopt(_)));
                        adopting = Some((found.len(), left.map(|(place, _)| *place).collect()));
                    }
                    for (place, action) in found {
                        if place.is_of_qemu() || action != Action::Nothing {
                            self.mark(place);
                        }
                    }
                }
                changes = watch.changed() => match changes {
                    Ok(changes) => self.take(&changes, &root, &mut looks),
                    Err(error) => {
                        watch = self.watch_again(&root, error, stop).await?;
                        looks.directories.insert(root.clone());
                    }
                },
            }
        }
    }

    /// Lets devices have their turns as long as there is room.
    fn start(&mut self) {
        while self.tasks.len() < self.at_once
            && let Some(place) = self.queue.pop()
        {
            let kick = Arc::new(Kick::default());
            self.running.insert(place, kick.clone());
            let worker = Worker { shared: self.shared.clone(), place, kick };
            self.tasks.spawn(async move {
                turn(&worker).await;
                place
            });
        }
    }

    fn mark(&mut self, place: Place) {
        if place.is_of_qemu() {
            return self.keep(place.domid);
        }
        match self.running.get(&place) {
            Some(kick) => kick.kick(),
            None => self.queue.push(place),
        }
    }

    /// Sees to the QEMU of a guest.
    fn keep(&mut self, fe: DomId) {
        if let Some(kick) = self.guests.get(&fe) {
            return kick.kick();
        }
        let kick = Arc::new(Kick::default());
        self.guests.insert(fe, kick.clone());
        let shared = self.shared.clone();
        self.keepers.spawn(async move {
            qemu::keep(shared, fe, kick).await;
            fe
        });
    }

    fn take(&mut self, changes: &Changes, root: &Path, looks: &mut Looks) {
        if changes.overflowed {
            looks.directories.insert(root.clone());
        }
        for path in &changes.paths {
            match Hint::of(path) {
                Hint::Device(place) => self.mark(place),
                Hint::Below(directory) => {
                    looks.directories.insert(directory);
                }
                Hint::Nothing => {}
            }
        }
    }

    /// Looks at all devices in these directories, and says what is to be done for each.
    async fn look(&mut self, looks: &mut Looks) -> Vec<(Place, Action)> {
        let mut found = Vec::new();
        for directory in looks.directories.clone() {
            let client = &self.shared.client;
            let is_root = directory.names().count() == 1;
            let recorded = async { if is_root { qemu::recorded(client).await } else { Ok(Vec::new()) } };
            match tokio::try_join!(look::all(client, &directory), recorded) {
                Ok((seen, guests)) => {
                    if is_root {
                        let noted = seen.iter().filter(|(_, seen)| seen.note.is_some());
                        self.sweep(&noted.map(|(place, _)| *place).collect()).await;
                    }
                    guests.into_iter().for_each(|fe| self.keep(fe));
                    // What a store that begins anew does not tell of, their keepers do.
                    if is_root {
                        self.guests.values().for_each(|kick| kick.kick());
                    }
                    let action = |(place, seen): (Place, _)| {
                        let is_of_worker = !place.is_of_qemu();
                        let action = is_of_worker.then(|| next(place.backend_kind, &seen, Doing::Nothing));
                        (place, action.unwrap_or(Action::Nothing))
                    };
                    found.extend(seen.into_iter().map(action));
                    looks.directories.remove(&directory);
                }
                Err(error) => {
                    (self.shared.tell)(&Event::Store(error.to_string()));
                    looks.not_before = Some(Instant::now() + pause(looks.attempt));
                    looks.attempt += 1;
                    return found;
                }
            }
        }
        *looks = Looks::default();
        found
    }

    /// Removes what is among the notes and is none. Nothing depends on it.
    async fn sweep(&self, noted: &HashSet<Place>) {
        let tell = &self.shared.tell;
        match unreadable::sweep(&self.shared.client, noted).await {
            Ok(swept) => swept.into_iter().for_each(|(path, removed)| {
                tell(&Event::Unreadable { path: path.to_string(), removed });
            }),
            Err(error) => tell(&Event::Store(error.to_string())),
        }
    }

    /// A store may refuse to watch again on another connection; only a connection that is gone for good is the end.
    async fn watch_again(
        &self,
        root: &Path,
        mut error: Error,
        stop: &CancellationToken,
    ) -> Result<Watch, DaemonError> {
        let client = &self.shared.client;
        for attempt in 0.. {
            if matches!(client.lifecycle().now(), Lifecycle::Ended(_)) {
                break;
            }
            (self.shared.tell)(&Event::Store(error.to_string()));
            tokio::select! {
                () = stop.cancelled() => break,
                () = sleep(pause(attempt)) => {}
            }
            match client.watch(root).await {
                Ok(watch) => return Ok(watch),
                Err(failed) => error = failed,
            }
        }
        Err(error.into())
    }

    /// Waits for the workers, which begin nothing any more.
    async fn finish(&mut self) {
        while self.tasks.join_next().await.is_some() {}
        while self.keepers.join_next().await.is_some() {}
    }
}

/// One turn of a device. What the store has failed is tried again, and what could not be begun.
async fn turn(worker: &Worker) {
    let (mut attempt, mut refusals) = (0, 0);
    loop {
        match worker.work().await {
            Ok(Turn::Over) => return,
            Ok(Turn::Again(otherwise)) => {
                refusals += 1;
                if refusals == REFUSALS {
                    worker.tell(&Event::Trouble(worker.place, otherwise.to_owned()));
                }
            }
            Err(error) => {
                if matches!(error, Error::Store { .. } | Error::Encode(_) | Error::Path(_)) {
                    refusals += 1;
                }
                worker.tell(&Event::Trouble(worker.place, error.to_string()));
            }
        }
        if refusals >= REFUSALS || matches!(worker.shared.client.lifecycle().now(), Lifecycle::Ended(_)) {
            return;
        }
        tokio::select! {
            () = worker.shared.stop.cancelled() => return,
            () = sleep(pause(attempt)) => attempt += 1,
        }
    }
}
