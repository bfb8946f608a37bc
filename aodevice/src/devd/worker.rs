//! Carries out what was decided for one device, as long as there is something to do.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use xen_hotplug::{Action as Run, Ending, LINE_SHOWN, Report, Request, Runner, printable};
use xs_client::{Client, DomId, Error, Path, PathError, Request as StoreRequest};

use super::aside::Waiting;
use super::course::{Action, Backend, Doing, Seen, next};
use super::kick::Kick;
use super::note::{Note, Stage};
use super::place::{MARKER, NOTES, Place};
use super::{Event, Settings, look};
use crate::Kind;
use crate::kind::Recorded;
use crate::operation::cleanup;
use crate::operation::files;
use crate::operation::said::{self, Said};
use crate::operation::saved::{self, BEFORE, FILE, SEQUENCE};
use crate::operation::script::never_ran;

/// How often one worker does something before it takes its turn behind others.
const ROUNDS: usize = 16;

/// How often it is looked whether an interface is there.
const LOOK: Duration = Duration::from_millis(20);

/// What all workers have in common.
pub(super) struct Shared {
    pub(super) client: Client,
    pub(super) runner: Arc<dyn Runner>,
    pub(super) own: DomId,
    pub(super) settings: Settings,
    pub(super) tell: Box<dyn Fn(&Event) + Send + Sync>,
    /// No script is to begin any more.
    pub(super) stop: CancellationToken,
    /// Held while a loop device that nobody reported is searched for and given back, so that no two devices take one.
    pub(super) searching: tokio::sync::Mutex<()>,
    /// Those whose scripts wait for their turn.
    pub(super) waiting: Waiting,
}

/// Whether a worker's turn is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Over,
    /// It is to be tried again after a pause, though not for ever; what becomes of it otherwise.
    Again(&'static str),
}

/// Who works on a device. There is no other for the device meanwhile.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) place: Place,
    pub(super) kick: Arc<Kick>,
}

/// The script that a backend names. One that is relative would be another in each working directory.
pub(super) fn script(keys: &Recorded) -> Option<&String> {
    keys.get("script").filter(|script| script.starts_with('/'))
}

/// How an attempt to set a device up went.
enum Attempt {
    /// With what is known of the device then.
    Made(Recorded),
    /// It failed, or was cancelled. `untouched`: before a script had begun.
    Failed { why: String, said: Said, untouched: bool },
    /// The device was not as it had been seen when its turn had come, or no script is to begin any more.
    Withdrawn,
}

impl Attempt {
    /// Before a script had begun.
    fn not_begun(why: impl Into<String>) -> Self {
        Self::Failed { why: why.into(), said: Said::default(), untouched: true }
    }

    fn failed(why: impl Into<String>, said: Said) -> Self {
        Self::Failed { why: why.into(), said, untouched: false }
    }
}

impl Worker {
    /// Looks at the device and does what is to be done for it, until that is nothing.
    pub(super) async fn work(&self) -> Result<Turn, Error> {
        for _ in 0..ROUNDS {
            if self.shared.stop.is_cancelled() {
                return Ok(Turn::Over);
            }
            self.kick.looks();
            let seen = look::device(&self.shared.client, &self.place).await?;
            match next(self.place.backend_kind, &seen, Doing::Nothing) {
                Action::Nothing | Action::Cancel => return Ok(Turn::Over),
                Action::Add => self.add(&seen).await?,
                Action::Adopt(stage) => self.adopt(stage, seen.note).await?,
                Action::Refuse => self.refuse().await?,
                Action::Remove => self.remove(&seen).await?,
                Action::Reset => self.reset(&seen).await?,
                Action::Undo => {
                    if !self.undo_gone(&seen).await? {
                        let what =
                            "not undone: it stays noted, and is tried again when the daemon starts anew";
                        return Ok(Turn::Again(what));
                    }
                }
            }
        }
        // Whoever changes it so often is not to keep others from their turns.
        Ok(Turn::Again("comes to no rest, and is looked at again when it changes"))
    }

    pub(super) fn tell(&self, event: &Event) {
        (self.shared.tell)(event);
    }

    /// One transaction that looks at the device and writes what is decided then; `None` changes nothing. `forget`: its
    /// note goes too, with the parents that it leaves empty. Yields whether something was decided.
    pub(super) async fn step(
        &self,
        forget: bool,
        decide: impl Fn(&Seen) -> Result<Option<Vec<StoreRequest>>, PathError>,
    ) -> Result<bool, Error> {
        let (place, decide) = (&self.place, &decide);
        let body = |tx: xs_client::Transaction| async move {
            let seen = look::device(&tx, place).await?;
            let Some(mut requests) = decide(&seen)? else { return Ok(false) };
            if forget {
                let gone = cleanup::extent(&tx, &place.note()?, &Path::new(NOTES)?).await?;
                requests.extend(gone.into_iter().map(StoreRequest::Rm));
            }
            tx.all(requests).await?;
            Ok(true)
        };
        self.shared.client.transaction(body).await
    }

    pub(super) fn write(&self, key: &str, value: impl Into<String>) -> Result<StoreRequest, PathError> {
        Ok(StoreRequest::Write { path: self.place.backend()?.join(key)?, value: value.into().into() })
    }

    /// The requests by which a note stands, and the backend says that it is of it.
    pub(super) fn noted(&self, note: &Note) -> Result<Vec<StoreRequest>, PathError> {
        let path = self.place.note()?;
        Ok(vec![
            StoreRequest::Write { path, value: note.text().into() },
            self.write(MARKER, note.token.clone())?,
        ])
    }

    /// Sets the device up, and says how that went.
    async fn add(&self, seen: &Seen) -> Result<(), Error> {
        let Some(kind) = self.place.kind() else {
            return self.adopt(Stage::Attached, seen.note.clone()).await;
        };
        let keys = look::keys(&self.shared.client, &self.place).await?;
        let mut noted = keys.clone();
        noted.retain(|key, _| !saved::is_own(key));
        if let Some(found) = self.target(kind, &keys).await {
            noted.insert(BEFORE.to_owned(), found.baseline());
            noted.insert(FILE.to_owned(), found.origin.to_string());
        }
        let note = Note::new(Stage::Adding, noted);
        let cancel = CancellationToken::new();
        let attempt = {
            let mut set_up = std::pin::pin!(self.set_up(kind, &keys, &note, &cancel));
            tokio::select! {
                biased;
                attempt = &mut set_up => attempt?,
                () = self.watch(&cancel) => set_up.await?,
            }
        };
        match attempt {
            Attempt::Withdrawn => Ok(()),
            Attempt::Made(keys) => {
                let note = Note { keys, ..note.at(Stage::Attached, None) };
                let number = note.keys.get("physical-device").cloned();
                let decide = |backend: &Backend| {
                    let mut requests = self.noted(&note)?;
                    if let Some(number) = number.clone().filter(|_| kind == Kind::Vbd) {
                        requests.push(self.write("physical-device", number)?);
                    }
                    if backend.status.as_deref() != Some("connected") {
                        requests.push(self.write("hotplug-status", "connected")?);
                    }
                    Ok(requests)
                };
                self.settle(&note, decide, Event::Attached(self.place)).await
            }
            Attempt::Failed { why, said, untouched } => {
                self.fail(&Note { untouched, ..note }, why, &said).await
            }
        }
    }

    /// Says in the backend and in the note that the device could not be set up, as far as its script has not.
    async fn fail(&self, note: &Note, why: String, said: &Said) -> Result<(), Error> {
        let note = note.at(Stage::Failed, Some(why.clone()));
        let decide = |_: &Backend| {
            let mut requests = self.noted(&note)?;
            // The reason first, as the stock scripts do.
            if said.error.is_none() {
                requests.push(self.write("hotplug-error", why.clone())?);
            }
            if !said.is_failure() {
                requests.push(self.write("hotplug-status", "error")?);
            }
            Ok(requests)
        };
        self.settle(&note, decide, Event::Failed(self.place, why.clone())).await
    }

    /// Writes how an add ended, if the device is still the one that it was for.
    async fn settle(
        &self,
        note: &Note,
        decide: impl Fn(&Backend) -> Result<Vec<StoreRequest>, PathError>,
        event: Event,
    ) -> Result<(), Error> {
        let settled = self.step(false, |seen| {
            let is_ours = |backend: &&Backend| match &backend.token {
                Some(token) => *token == note.token,
                None => seen.note.is_none(),
            };
            seen.backend.as_ref().filter(is_ours).map(&decide).transpose()
        });
        if settled.await? {
            self.tell(&event);
        }
        Ok(())
    }

    /// Gives the add up when the device leaves.
    async fn watch(&self, cancel: &CancellationToken) {
        loop {
            self.kick.kicked().await;
            // What cannot be seen now is seen at the next event, or when the script has ended.
            let Ok(seen) = look::device(&self.shared.client, &self.place).await else { continue };
            if next(self.place.backend_kind, &seen, Doing::Adding) == Action::Cancel {
                cancel.cancel();
                return;
            }
        }
    }

    async fn set_up(
        &self,
        kind: Kind,
        keys: &Recorded,
        note: &Note,
        cancel: &CancellationToken,
    ) -> Result<Attempt, Error> {
        let Shared { runner, settings, stop, .. } = &*self.shared;
        if script(keys).is_none() {
            let found =
                keys.get("script").map_or("is not there".to_owned(), |found| format!("holds {found:?}"));
            let why = format!(
                "the backend's node script {found}, and must hold the path of a script, from the root"
            );
            return Ok(Attempt::not_begun(printable(why, LINE_SHOWN)));
        }
        let mut known = note.keys.clone();
        for (index, run) in self.runs(kind, keys).into_iter().enumerate() {
            if kind == Kind::Vif && index == 0 {
                tokio::select! {
                    biased;
                    () = cancel.cancelled() => return Ok(Attempt::not_begun("was given up: the device is being removed")),
                    () = stop.cancelled() => return Ok(Attempt::Withdrawn),
                    there = self.interface(keys) => if let Err(why) = there { return Ok(Attempt::not_begun(why)) },
                }
            }
            let request = self.request(run, Run::Add, keys);
            let begun = Mutex::new(None);
            let has_begun = AtomicBool::new(false);
            let aside = self.shared.waiting.aside();
            let permit = async {
                aside.back();
                let begin = self.begin(index, keys, note).await;
                let permitted = matches!(begin, Ok(true));
                has_begun.store(true, Ordering::Release);
                *begun.lock().unwrap_or_else(PoisonError::into_inner) = Some(begin);
                if permitted {
                    self.tell(&Event::Begins(self.place, Box::new(request.clone())));
                }
                permitted
            };
            let ended = cancel.child_token();
            let report = {
                let mut ran = runner.run_if(&request, &settings.scripts, &ended, Box::pin(permit));
                tokio::select! {
                    biased;
                    report = &mut ran => report,
                    () = stop.cancelled() => {
                        // One that has not begun does not begin any more; one that has goes on to its end.
                        if !has_begun.load(Ordering::Acquire) {
                            ended.cancel();
                        }
                        ran.await
                    }
                }
            };
            let begun = begun.into_inner().unwrap_or_else(PoisonError::into_inner);
            match begun {
                Some(Err(error)) => return Err(error),
                Some(Ok(false)) => return Ok(Attempt::Withdrawn),
                None if stop.is_cancelled() => return Ok(Attempt::Withdrawn),
                // Without a permit it could not be started, which its report says.
                Some(Ok(true)) | None => {}
            }
            let is_unbegun = index == 0 && never_ran(&report.ending);
            match self.judge(kind, &request, report, &mut known).await? {
                Some(Attempt::Failed { why, said, .. }) => {
                    return Ok(Attempt::Failed { why, said, untouched: is_unbegun });
                }
                Some(attempt) => return Ok(attempt),
                None => {}
            }
        }
        known.remove(BEFORE);
        if let Some(counted) = known.get("node").and_then(|node| files::sequence(node)) {
            known.insert(SEQUENCE.to_owned(), counted);
        }
        Ok(Attempt::Made(known))
    }

    /// The runs of a device's script. The twin that QEMU emulates has one only where QEMU runs (B-20).
    pub(super) fn runs(&self, kind: Kind, keys: &Recorded) -> Vec<xen_hotplug::Kind> {
        let twin = format!("vif{}.{}-emu", self.place.domid, self.place.devid);
        let is_here = |run: &xen_hotplug::Kind| {
            *run != xen_hotplug::Kind::Tap || self.shared.settings.interfaces.join(&twin).exists()
        };
        (kind.info().runs)(keys).iter().copied().filter(is_here).collect()
    }

    pub(super) fn request(&self, run: xen_hotplug::Kind, action: Run, keys: &Recorded) -> Request {
        let script = keys.get("script").cloned().unwrap_or_default();
        let request = Request::new(run, action, self.place.domid.0, self.place.devid, script);
        keys.iter().fold(request.own(self.shared.own.0), |request, (key, value)| request.recorded(key, value))
    }

    /// What there is of the device's target, if it has one that is a path.
    pub(super) async fn target(&self, kind: Kind, keys: &Recorded) -> Option<files::Found> {
        let target = (kind.info().target)(keys)?;
        files::look_at(target, keys.get(FILE), self.shared.settings.file).await
    }

    /// Waits until the interface is there that the kernel makes for the device (B-22).
    async fn interface(&self, keys: &Recorded) -> Result<(), String> {
        let Settings { interfaces, interface: limit, .. } = &self.shared.settings;
        let made = format!("vif{}.{}", self.place.domid, self.place.devid);
        // One that an earlier run has renamed, or udev.
        let renamed = keys.get("vifname").filter(|name| !name.is_empty() && !name.contains('/'));
        let is_there =
            || interfaces.join(&made).exists() || renamed.is_some_and(|name| interfaces.join(name).exists());
        let begun = Instant::now();
        while !is_there() {
            if begun.elapsed() >= *limit {
                return Err(format!(
                    "the interface {made} is not there after {limit:?}: see whether xen-netback is loaded, and \
                     whether something renames its interfaces"
                ));
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Begins a run, under the lock of the device: whether it is still wanted, and for the same device.
    async fn begin(&self, index: usize, keys: &Recorded, note: &Note) -> Result<bool, Error> {
        if self.shared.stop.is_cancelled() {
            return Ok(false);
        }
        let now = look::keys(&self.shared.client, &self.place).await?;
        let is_same = |(key, value): (&String, &String)| saved::is_own(key) || now.get(key) == Some(value);
        if !keys.iter().all(is_same) {
            return Ok(false);
        }
        self.step(false, |seen| {
            if index > 0 {
                let token = seen.backend.as_ref().and_then(|backend| backend.token.as_ref());
                return Ok((token == Some(&note.token)).then(Vec::new));
            }
            if next(self.place.backend_kind, seen, Doing::Nothing) != Action::Add {
                return Ok(None);
            }
            let mut requests = self.noted(note)?;
            requests.push(StoreRequest::Rm(self.place.backend()?.join("hotplug-error")?));
            Ok(Some(requests))
        })
        .await
    }

    /// What a run that has ended means: how the attempt ends, or nothing if it goes on with what is known then.
    async fn judge(
        &self,
        kind: Kind,
        request: &Request,
        report: Report,
        known: &mut Recorded,
    ) -> Result<Option<Attempt>, Error> {
        if report.ending == Ending::Aborted {
            let why = format!("{request} was given up: the device is being removed");
            return Ok(Some(Attempt::failed(why, Said::default())));
        }
        let after = look::keys(&self.shared.client, &self.place).await?;
        let said = Said::of(&after);
        let in_its_words = |report: Report, said: &Said| {
            let report = said.clone().into_report(report);
            printable(format!("{request} {report}"), LINE_SHOWN)
        };
        if said.is_failure() {
            let why = said.error.clone().unwrap_or_else(|| in_its_words(report, &said));
            return Ok(Some(Attempt::failed(why, said)));
        }
        if !report.success() {
            // `connected` is what the stock script says of a disk that is not there.
            let told = said.error.clone();
            let why = told.clone().unwrap_or_else(|| in_its_words(report, &said));
            return Ok(Some(Attempt::failed(why, Said { status: None, error: told })));
        }
        known.extend(after.into_iter().filter(|(key, _)| !saved::is_own(key)));
        if let Some((path, key)) = kind.info().numbers
            && !known.contains_key(key)
            && let Some(path) = known.get(path).filter(|path| path.starts_with('/'))
            && let Some(numbers) = files::device_numbers(path, self.shared.settings.file).await
        {
            known.insert(key.to_owned(), numbers);
        }
        let unreported = (kind.info().unreported)(known).filter(|_| kind == Kind::Vbd);
        Ok(unreported.map(|(missing, _)| {
            Attempt::failed(in_its_words(report, &said) + " and did not write " + missing, Said::default())
        }))
    }

    /// Notes a device that another daemon has set up, or this one before it died; or that has no script. `before`: its note
    /// as it was seen.
    pub(super) async fn adopt(&self, stage: Stage, before: Option<Note>) -> Result<(), Error> {
        let keys = look::keys(&self.shared.client, &self.place).await?;
        let said = Said::of(&keys);
        let mut known = before.as_ref().map(|note| note.keys.clone()).unwrap_or_default();
        known.extend(keys.into_iter().filter(|(key, _)| !saved::is_own(key)));
        let counted = known.get("node").and_then(|node| files::sequence(node));
        if stage == Stage::Attached {
            known.remove(BEFORE);
            known.extend(counted.map(|counted| (SEQUENCE.to_owned(), counted)));
        }
        let error = (stage == Stage::Failed).then(|| {
            let silent = "the script ended without saying why, or has found no block device";
            said.error.clone().unwrap_or_else(|| silent.to_owned())
        });
        let note = match &before {
            Some(note) => Note { keys: known, ..note.at(stage, error.clone()) },
            None => Note { error: error.clone(), ..Note::new(stage, known) },
        };
        // Another daemon's script has said so where it was to.
        let is_to_be_told =
            before.is_some() && self.place.backend_kind.is_scripted() || self.place.is_of_qemu();
        let adopted = self.step(false, |seen| {
            let Some(backend) = seen.backend.as_ref().filter(|_| seen.note == before) else {
                return Ok(None);
            };
            if backend.token.is_some() && backend.token.as_ref() != Some(&note.token) {
                return Ok(None);
            }
            let mut requests = self.noted(&note)?;
            match &error {
                Some(error) if !backend.status.as_deref().is_some_and(said::is_failure) => {
                    requests.push(self.write("hotplug-error", error.clone())?);
                    requests.push(self.write("hotplug-status", "error")?);
                }
                None if is_to_be_told && backend.status.is_none() => {
                    requests.push(self.write("hotplug-status", "connected")?);
                }
                _ => {}
            }
            Ok(Some(requests))
        });
        if adopted.await? {
            self.tell(&match error {
                Some(error) => Event::Failed(self.place, error),
                None => Event::Adopted(self.place),
            });
        }
        Ok(())
    }

    /// Says that nobody will serve a device.
    async fn refuse(&self) -> Result<(), Error> {
        let kind = self.place.backend_kind;
        let why = format!(
            "{kind} is served by QEMU, which xendev devd starts for qdisk and 9pfs alone: keep it in domain 0"
        );
        self.fail(&Note::new(Stage::Failed, Recorded::new()), why, &Said::default()).await
    }
}
