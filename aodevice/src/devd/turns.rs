//! Which device has its turn: one watch, a queue, and a bounded number of workers.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use xs_client::{Changes, DomId, Error, Lifecycle, Path, Watch};

use super::course::{Action, Doing, next};
use super::kick::Kick;
use super::place::{BACKENDS, Hint, Place};
use super::worker::{Shared, Turn, Worker};
use super::{DaemonError, Event, look, qemu, unreadable};

/// The pauses before something is tried again that the store has failed.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// How often a script that cannot be started is tried. What the store fails is tried for as long as it does.
const ATTEMPTS: u32 = 5;

/// The pause before a device is looked at again for which something has failed, when something changes for it.
const SOON: Duration = Duration::from_secs(1);

/// The pause before the next attempt.
pub(super) fn pause(attempt: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << attempt.min(10)).min(LAST_PAUSE)
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

pub(super) struct Turns {
    shared: Arc<Shared>,
    queue: Queue,
    running: HashMap<Place, Arc<Kick>>,
    tasks: JoinSet<(Place, Ended)>,
    /// Devices that are looked at again after pauses that grow. Most often the store refuses something, since a quota is used up:
    /// nobody tells when there is room again.
    troubles: HashMap<Place, Trouble>,
    /// Their pauses, each with how often its device had been looked at when it began.
    naps: JoinSet<(Place, u32)>,
    /// The guests with a QEMU, or with devices that wait for one.
    guests: HashMap<DomId, Arc<Kick>>,
    keepers: JoinSet<DomId>,
}

/// Why a device is looked at again.
#[derive(Debug, Default)]
struct Trouble {
    /// What was told of it.
    told: Option<String>,
    /// How often it was looked at for this.
    looks: u32,
    /// Whether something has changed since the last look.
    changed: bool,
}

/// How a turn of a device has ended.
#[derive(Debug)]
enum Ended {
    Over,
    /// The store has refused something, or the connection was lost.
    Failed(String),
    /// A script could not be started; what becomes of it after several attempts.
    NotBegun(&'static str),
}

/// What is to be looked at as a whole, and when.
#[derive(Debug, Default)]
struct Looks {
    directories: HashSet<Path>,
    attempt: u32,
    not_before: Option<Instant>,
}

impl Turns {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            queue: Queue::default(),
            running: HashMap::new(),
            tasks: JoinSet::new(),
            troubles: HashMap::new(),
            naps: JoinSet::new(),
            guests: HashMap::new(),
            keepers: JoinSet::new(),
        }
    }

    /// Serves until `stop` is cancelled, or the connection to the store is gone for good. Workers go on after that.
    pub(super) async fn serve(
        &mut self,
        stop: &CancellationToken,
        ready: impl FnOnce(usize) + Send,
    ) -> Result<(), DaemonError> {
        let root = Path::new(BACKENDS).map_err(Error::from)?;
        let (client, shared) = (self.shared.client.clone(), self.shared.clone());
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
                    let (place, how) = ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
                    self.ended(place, how);
                    if self.running.remove(&place).is_some_and(|kick| kick.is_dirty()) {
                        self.mark(place);
                    } else if let Some((_, left)) = &mut adopting {
                        left.remove(&place);
                    }
                }
                Some(rested) = self.naps.join_next() => {
                    let (place, looks) = rested.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
                    let is_due = self.troubles.get(&place).is_some_and(|trouble| trouble.looks == looks);
                    if is_due && !self.running.contains_key(&place) {
                        self.queue.push(place);
                    }
                }
                () = shared.waiting.more() => {}
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
        let at_once = self.shared.settings.at_once.max(1);
        while self.tasks.len() < at_once.saturating_add(self.shared.waiting.count())
            && let Some(place) = self.queue.pop()
        {
            let kick = Arc::new(Kick::default());
            self.running.insert(place, kick.clone());
            let worker = Worker { shared: self.shared.clone(), place, kick };
            self.tasks.spawn(async move { (place, turn(&worker).await) });
        }
    }

    /// Sees to what a turn has left undone. The device does not keep its worker for that.
    fn ended(&mut self, place: Place, how: Ended) {
        let error = match how {
            Ended::Over => return drop(self.troubles.remove(&place)),
            Ended::Failed(error) => Some(error),
            Ended::NotBegun(otherwise) => {
                if self.troubles.get(&place).is_some_and(|trouble| trouble.looks + 1 >= ATTEMPTS) {
                    self.troubles.remove(&place);
                    return (self.shared.tell)(&Event::Trouble(place, otherwise.to_owned()));
                }
                None
            }
        };
        let trouble = self.troubles.entry(place).or_default();
        let pause = pause(trouble.looks);
        trouble.looks += 1;
        trouble.changed = false;
        if let Some(error) = error.filter(|error| trouble.told.as_ref() != Some(error)) {
            (self.shared.tell)(&Event::Trouble(place, error.clone()));
            trouble.told = Some(error);
        }
        let looks = trouble.looks;
        self.rest(place, looks, pause);
    }

    /// Something has changed for a device.
    fn mark(&mut self, place: Place) {
        if place.is_of_qemu() {
            return self.keep(place.domid);
        }
        if let Some(kick) = self.running.get(&place) {
            return kick.kick();
        }
        let Some(trouble) = self.troubles.get_mut(&place) else { return self.queue.push(place) };
        // An attempt that fails may have changed something itself: not at once again.
        if !std::mem::replace(&mut trouble.changed, true) {
            let looks = trouble.looks;
            self.rest(place, looks, SOON);
        }
    }

    /// Has a device looked at again after a while, unless that is done before.
    fn rest(&mut self, place: Place, looks: u32, pause: Duration) {
        self.naps.spawn(async move {
            sleep(pause).await;
            (place, looks)
        });
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
    pub(super) async fn finish(&mut self) {
        while self.tasks.join_next().await.is_some() {}
        while self.keepers.join_next().await.is_some() {}
    }
}

/// One turn of a device.
async fn turn(worker: &Worker) -> Ended {
    match worker.work().await {
        Ok(Turn::Over) => Ended::Over,
        Ok(Turn::Again(otherwise)) => Ended::NotBegun(otherwise),
        Err(error) => Ended::Failed(error.to_string()),
    }
}
