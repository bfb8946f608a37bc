//! The worker of a guest's QEMU: it looks, does what was decided, and waits for what comes next.
//!
//! It lives as long as the guest's QEMU does, and remembers only what time has to do with. All else is in the store, so the
//! keeper of the next daemon goes on from there; QEMU itself is not ended with the daemon.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use xen_devstate::XenbusState::Initialising;
use xen_hotplug::{LINE_SHOWN, printable};
use xs_client::{DomId, Error, Lifecycle, Path, Request as StoreRequest, Watch};

use super::course::{Action, Device, Qemu, Seen, Why, next};
use super::record::{self, Record};
use super::{QemuProcess, SERVED};
use crate::devd::course::Seen as Stands;
use crate::devd::kick::Kick;
use crate::devd::note::{Note, Stage};
use crate::devd::place::{BACKENDS, Place};
use crate::devd::turns::pause;
use crate::devd::worker::{Shared, Worker};
use crate::devd::{Event, look};
use crate::kind::Recorded;
use crate::operation::model::Log;

/// How often a QEMU's log is looked at while a device waits for it.
const LOOK: Duration = Duration::from_millis(100);

/// How long QEMU may take to remove the directory of a disk that it has closed, or to close one that it has hardly
/// begun with. It was seen to take a second.
const CLOSING: Duration = Duration::from_secs(3);

/// How much one keeper does before it lets others have the processor.
const ROUNDS: usize = 64;

/// What a device is given time for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    TakenUp,
    Closed,
}

/// A guest's QEMU, and what is remembered of it.
struct Keeper {
    shared: Arc<Shared>,
    fe: DomId,
    kick: Arc<Kick>,
    /// Whether it was looked for one that an earlier daemon has started.
    has_searched: bool,
    process: Option<Arc<dyn QemuProcess>>,
    /// Whether it was told to end.
    is_ending: bool,
    /// Why there is none any more, which its devices do not know yet.
    failure: Option<String>,
    /// When it is to have started, or ended.
    deadline: Option<Instant>,
    /// When devices are to have been taken up, or closed.
    deadlines: HashMap<(Place, Phase), Instant>,
    /// Its log, and of each device that has been there already from where on it is about the next of that number.
    log: Option<Log>,
    logs: HashMap<Place, Log>,
    /// Its word that it serves devices, until that has been heard.
    word: Option<Watch>,
    /// Devices with which the store refuses to go on; others are not to wait for them.
    stuck: HashSet<Place>,
    /// How often it has refused something in a row, and what it said last.
    refusals: u32,
    refused: Option<String>,
}

/// What a keeper does when it has done all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    /// It waits, until then at the longest.
    Until(Option<Instant>),
    /// It is over.
    Over,
}

/// Sees to a guest's QEMU until there is none and no device waits for one.
pub(in crate::devd) async fn keep(shared: Arc<Shared>, fe: DomId, kick: Arc<Kick>) {
    let mut keeper = Keeper {
        shared,
        fe,
        kick,
        has_searched: false,
        process: None,
        is_ending: false,
        failure: None,
        deadline: None,
        deadlines: HashMap::new(),
        log: None,
        logs: HashMap::new(),
        word: None,
        stuck: HashSet::new(),
        refusals: 0,
        refused: None,
    };
    let mut attempt = 0;
    while !keeper.shared.stop.is_cancelled() {
        let until = match keeper.settle().await {
            Ok(Rest::Over) => return,
            Ok(Rest::Until(until)) => {
                attempt = 0;
                until
            }
            Err(error) => {
                let text = error.to_string();
                if keeper.is_news(&text) {
                    keeper.tell(text);
                }
                if matches!(keeper.shared.client.lifecycle().now(), Lifecycle::Ended(_)) {
                    return;
                }
                attempt += 1;
                keeper.refusals += u32::from(is_refusal(&error));
                Some(Instant::now() + pause(attempt - 1))
            }
        };
        keeper.wait(until).await;
    }
}

/// Whether the store has answered, and will answer the same again.
fn is_refusal(error: &Error) -> bool {
    matches!(error, Error::Store { .. } | Error::Encode(_) | Error::Path(_))
}

impl Keeper {
    fn tell(&self, what: impl Into<String>) {
        (self.shared.tell)(&Event::Qemu(self.fe, what.into()));
    }

    fn worker(&self, place: Place) -> Worker {
        Worker { shared: self.shared.clone(), place, kick: Arc::default() }
    }

    /// Whether an error is to be told: one that comes again and again is known.
    fn is_news(&mut self, error: &str) -> bool {
        self.refused.replace(error.to_owned()).is_none_or(|refused| refused != error)
    }

    /// Does what is to be done, until that is nothing.
    async fn settle(&mut self) -> Result<Rest, Error> {
        for _ in 0..ROUNDS {
            self.kick.looks();
            let Some(seen) = self.look().await? else { return Ok(Rest::Over) };
            let action = next(&seen);
            if action != Action::Nothing {
                self.act(action, &seen).await?;
                continue;
            }
            let again = if self.stuck.is_empty() {
                self.refusals = 0;
                self.refused = None;
                None
            } else {
                Some(Instant::now() + pause(self.refusals))
            };
            if self.process.is_none() && self.stuck.is_empty() {
                return Ok(Rest::Over);
            }
            return Ok(Rest::Until(self.rests_until(&seen).into_iter().chain(again).min()));
        }
        Ok(Rest::Until(Some(Instant::now())))
    }

    /// Waits until something may have changed.
    async fn wait(&mut self, until: Option<Instant>) {
        let Self { shared, kick, process, word, .. } = self;
        let process = process.clone();
        let ended = async {
            match &process {
                Some(process) => process.ended().await,
                None => std::future::pending().await,
            }
        };
        let heard = async {
            match word {
                Some(watch) => watch.changed().await.is_ok(),
                None => std::future::pending().await,
            }
        };
        let time = async {
            match until {
                Some(until) => sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            how = ended => self.has_ended(&how),
            () = shared.stop.cancelled() => {}
            () = kick.kicked() => {}
            is_watched = heard => if !is_watched {
                self.word = None;
            },
            () = time => {}
        }
        self.stuck.clear();
    }

    fn has_ended(&mut self, how: &str) {
        self.process = None;
        self.deadline = None;
        self.word = None;
        if std::mem::take(&mut self.is_ending) {
            return self.tell(format!("ended ({how})"));
        }
        let said = self.log.as_ref().and_then(Log::last_words);
        let said =
            said.map_or_else(|| "and has said nothing".to_owned(), |said| format!("its last words: {said}"));
        let why = format!("ended by itself ({how}), {said}");
        self.tell(why.clone());
        self.failure = Some(why);
    }

    /// How everything stands. Nothing if another toolstack of this domain has a device model for the guest.
    async fn look(&mut self) -> Result<Option<Seen>, Error> {
        let (client, fe) = (self.shared.client.clone(), self.fe);
        if self.shared.own == DomId::DOM0 {
            let model = Path::new(format!("/local/domain/{fe}/image/device-model-pid"))?;
            if client.read_opt(&model).await?.is_some() {
                return Ok(None);
            }
        }
        let mut all = Vec::new();
        for kind in SERVED {
            all.extend(look::all(&client, &Path::new(format!("{BACKENDS}/{kind}/{fe}"))?).await?);
        }
        let mut record = Record::read(&client, fe).await?;
        if !self.has_searched {
            self.search(&record).await;
        }
        // Also where it was removed, by hand or with a store that begins anew: the next daemon finds QEMU by it.
        if let Some(id) = self.process.as_ref().map(|process| process.id())
            && (record.process, record.ending) != (Some((id.pid, Some(id.start))), self.is_ending)
        {
            record::runs(&client, fe, id, self.is_ending).await?;
            record.is_there = true;
        }
        let works = |stands: &Stands| {
            stands.note.as_ref().is_some_and(|note| note.stage == Stage::Attached) && stands.backend.is_some()
        };
        let qemu = match (&self.process, &self.failure) {
            (None, Some(_)) => Qemu::Failed,
            (None, None) => Qemu::None,
            (Some(_), _) if self.is_ending => Qemu::Ending,
            // One that serves a device serves devices.
            (Some(_), _) if record.running || all.iter().any(|(_, stands)| works(stands)) => Qemu::Running,
            (Some(_), _) => Qemu::Starting,
        };
        if qemu == Qemu::Running && self.deadline.take().is_some() {
            self.word = None;
            self.tell("serves devices");
        }
        self.deadlines.retain(|(place, _), _| all.iter().any(|(other, _)| other == place));
        let now = Instant::now();
        let overdue = self.deadline.is_some_and(|deadline| deadline <= now);
        let devices = all.into_iter().map(|(place, stands)| (place, self.device(place, stands, qemu, now)));
        Ok(Some(Seen { devices: devices.collect(), qemu, overdue, is_recorded: record.is_there }))
    }

    fn device(&mut self, place: Place, stands: Stands, qemu: Qemu, now: Instant) -> Device {
        let backend = stands.backend.as_ref();
        let waits = stands.note.as_ref().is_some_and(|note| note.stage == Stage::Adding);
        let phase = match qemu {
            _ if backend.is_some_and(|backend| backend.leaves()) => Some((Phase::Closed, CLOSING)),
            // From then on, when it can.
            Qemu::Running if waits => Some((Phase::TakenUp, self.shared.settings.qemu_device)),
            _ => None,
        };
        let mut overdue = false;
        for other in [Phase::TakenUp, Phase::Closed] {
            match phase {
                Some((phase, limit)) if phase == other => {
                    overdue = *self.deadlines.entry((place, phase)).or_insert(now + limit) <= now;
                }
                _ => drop(self.deadlines.remove(&(place, other))),
            }
        }
        let log = self.logs.get(&place).or(self.log.as_ref()).filter(|_| waits);
        let refusal = log.and_then(|log| log.refusal_now(place.backend_kind, place.devid));
        Device { stands, overdue, refusal, is_stuck: self.stuck.contains(&place) }
    }

    /// Looks for one that an earlier daemon has started.
    async fn search(&mut self, record: &Record) {
        let (qemus, fe) = (self.shared.settings.qemus.clone(), self.fe);
        let found = match record.process {
            Some(process) => qemus.find(fe, Some(process)),
            None if record.starting => qemus.find(fe, None),
            None => None,
        };
        if let Some(process) = found {
            let id = process.id();
            let stands = if record.ending { "found as it ends" } else { "taken as it is" };
            self.tell(format!("{stands}, process {}", id.pid));
            self.log = Log::at(qemus.log(fe));
            self.process = Some(process);
            if record.ending {
                self.tells_to_end(false);
            } else {
                self.starts_until(self.shared.settings.qemu_start).await;
            }
        }
        self.has_searched = true;
    }

    async fn starts_until(&mut self, limit: Duration) {
        self.deadline = Some(Instant::now() + limit);
        // One that cannot be watched is heard of when its devices move, or never.
        let Ok(state) = record::state_node(self.fe) else { return };
        self.word = self.shared.client.watch(&state).await.ok();
    }

    /// Until when there is nothing to do if nothing happens.
    fn rests_until(&self, seen: &Seen) -> Option<Instant> {
        let waits = |(_, device): &(Place, Device)| {
            device.stands.note.as_ref().is_some_and(|note| note.stage == Stage::Adding)
        };
        let listens = matches!(seen.qemu, Qemu::Starting | Qemu::Running) && seen.devices.iter().any(waits);
        let now = Instant::now();
        let deadlines = self.deadlines.values().copied().filter(|deadline| *deadline > now);
        let look = listens.then(|| now + LOOK);
        self.deadline.into_iter().chain(deadlines).chain(look).min()
    }

    async fn act(&mut self, action: Action, seen: &Seen) -> Result<(), Error> {
        let place = match &action {
            Action::Await(place)
            | Action::Adopt(place, _)
            | Action::Attached(place)
            | Action::Fail(place, _)
            | Action::Remove(place)
            | Action::Forget(place) => Some(*place),
            _ => None,
        };
        let Some(place) = place else { return self.act_on_qemu(action).await };
        let stands = seen.devices.iter().find(|(other, _)| *other == place).map(|(_, device)| &device.stands);
        let stands = stands.cloned().unwrap_or_default();
        match self.act_on_device(place, action, stands).await {
            Err(error) if is_refusal(&error) => {
                let text = error.to_string();
                if self.is_news(&text) {
                    self.worker(place).tell(&Event::Trouble(place, text));
                }
                self.stuck.insert(place);
                self.refusals += 1;
                Ok(())
            }
            // A store that is gone is gone for all.
            done => done,
        }
    }

    async fn act_on_device(&mut self, place: Place, action: Action, stands: Stands) -> Result<(), Error> {
        let worker = self.worker(place);
        match action {
            Action::Await(_) => awaits(&worker, &stands).await,
            Action::Adopt(_, stage) => worker.adopt(stage, stands.note).await,
            Action::Attached(_) => ends(&worker, &stands, Stage::Attached, None).await,
            Action::Fail(_, why) => {
                let why = printable(self.in_words(why), LINE_SHOWN);
                self.forget_words(place);
                ends(&worker, &stands, Stage::Failed, Some(why)).await
            }
            Action::Remove(_) | Action::Forget(_) => {
                self.forget_words(place);
                let token = stands.note.as_ref().map(|note| &note.token);
                worker.clean(token, matches!(action, Action::Remove(_))).await?;
                worker.tell(&Event::Removed(place));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// What has been said of a device so far is not about the next one of its number.
    fn forget_words(&mut self, place: Place) {
        if let Some(log) = Log::at(self.shared.settings.qemus.log(self.fe)) {
            self.logs.insert(place, log);
        }
    }

    fn in_words(&self, why: Why) -> String {
        let Self { fe, shared, failure, .. } = self;
        let settings = &shared.settings;
        let what = match why {
            Why::Failed => failure.clone().unwrap_or_else(|| "ended by itself".to_owned()),
            Why::Refused(said) => format!("refused the device: {said}"),
            Why::NotStarted => format!("did not say within {:?} that it serves devices", settings.qemu_start),
            Why::NotTaken => format!("did not take the device up within {:?}", settings.qemu_device),
        };
        let said = self.log.as_ref().and_then(Log::last_words);
        // Where its words are not in the reason already.
        let said = said.filter(|said| !what.contains(said.as_str()));
        let said = said.map(|said| format!("; its last words: {said}")).unwrap_or_default();
        format!("the QEMU of domain {fe} {what}{said} (see {})", settings.qemus.log(*fe).display())
    }

    async fn act_on_qemu(&mut self, action: Action) -> Result<(), Error> {
        match action {
            Action::Start => self.start().await,
            Action::End | Action::Kill => {
                if let Some(process) = self.process.clone() {
                    // Before it: no other daemon is to take one for a QEMU that serves.
                    record::runs(&self.shared.client, self.fe, process.id(), true).await?;
                }
                let is_killed = action == Action::Kill;
                self.tell(if is_killed { "killed" } else { "told to end, for no device is left" });
                self.tells_to_end(is_killed);
                Ok(())
            }
            Action::Clear => {
                record::clear(&self.shared.client, self.fe).await?;
                self.failure = None;
                self.logs.clear();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn tells_to_end(&mut self, is_killed: bool) {
        self.is_ending = true;
        self.word = None;
        let limit = self.shared.settings.qemu_end;
        self.deadline = (!is_killed).then(|| Instant::now() + limit);
        if let Some(process) = &self.process
            && let Err(error) = process.end(is_killed)
        {
            self.tell(format!("cannot be told to end: {error}"));
        }
    }

    async fn start(&mut self) -> Result<(), Error> {
        let (qemus, fe) = (self.shared.settings.qemus.clone(), self.fe);
        // Before it: one of which the daemon has no time to note that it runs is found by that.
        record::starts(&self.shared.client, fe).await?;
        self.logs.clear();
        let before = Log::at(qemus.log(fe));
        match qemus.start(fe) {
            Ok(process) => {
                let id = process.id();
                self.tell(format!("started, process {}", id.pid));
                self.process = Some(process);
                self.log = before.or_else(|| Some(Log::beginning(qemus.log(fe))));
                self.starts_until(self.shared.settings.qemu_start).await;
                Ok(())
            }
            Err(error) => {
                let why = format!("cannot be started: {error}");
                self.log = None;
                self.tell(why.clone());
                self.failure = Some(why);
                Ok(())
            }
        }
    }
}

/// Notes that a device waits for QEMU, as one that nobody has taken up; if it still is as it was seen, for a QEMU that runs
/// looks at it, too.
async fn awaits(worker: &Worker, stands: &Stands) -> Result<(), Error> {
    let note = match &stands.note {
        Some(note) => note.at(Stage::Adding, None),
        None => Note::new(Stage::Adding, Recorded::new()),
    };
    let note = &note;
    let step = worker.step(false, |seen| {
        let Some(backend) = seen.backend.as_ref().filter(|_| seen == stands) else { return Ok(None) };
        let mut requests = worker.noted(note)?;
        let directory = worker.place.backend()?;
        for key in ["hotplug-status", "hotplug-error"] {
            requests.push(StoreRequest::Rm(directory.join(key)?));
        }
        if backend.state != Some(Initialising) {
            requests.push(worker.write("state", "1")?);
        }
        Ok(Some(requests))
    });
    step.await.map(drop)
}

/// Notes what has become of a device, and says so in its backend; if it still is as it was seen.
async fn ends(worker: &Worker, stands: &Stands, stage: Stage, error: Option<String>) -> Result<(), Error> {
    let Some(note) = stands.note.as_ref().map(|note| note.at(stage, error.clone())) else { return Ok(()) };
    let (note, said) = (&note, &error);
    let step = worker.step(false, |seen| {
        let Some(backend) = seen.backend.as_ref().filter(|_| seen == stands) else { return Ok(None) };
        let mut requests = worker.noted(note)?;
        // The reason first, as the stock scripts do.
        requests.push(match said {
            Some(said) => worker.write("hotplug-error", said.clone())?,
            None => StoreRequest::Rm(worker.place.backend()?.join("hotplug-error")?),
        });
        let status = if said.is_some() { "error" } else { "connected" };
        if backend.status.as_deref() != Some(status) {
            requests.push(worker.write("hotplug-status", status)?);
        }
        Ok(Some(requests))
    });
    if step.await? {
        let place = worker.place;
        worker.tell(&error.map_or(Event::Attached(place), |error| Event::Failed(place, error)));
    }
    Ok(())
}
