//! Undoing what the script of a device made, and removing the device.

use tokio_util::sync::CancellationToken;
use xen_hotplug::Action as Run;
use xs_client::{Error, ErrorCode, Path, Request as StoreRequest};

use super::course::Seen;
use super::note::{Note, Stage};
use super::place::{BACKENDS, MARKER, Place};
use super::worker::{Worker, script};
use super::{Event, look};
use crate::Kind;
use crate::kind::{Recorded, Surroundings};
use crate::operation::saved::{self, BEFORE, SEQUENCE};
use crate::operation::script::never_ran;
use crate::operation::{cleanup, files};

/// Where the script that removes finds its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inputs {
    /// In the backend's directory.
    Backend,
    /// In a copy: that directory is gone, or another device's.
    Copy,
}

/// How far an undo has come, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Undo {
    Done,
    /// A script has run, and failed.
    Failed,
    /// A script could not be started: nothing says that it cannot be later.
    NotBegun,
}

impl Worker {
    /// Undoes the script's work, and removes the backend's directory and the note. That one stays if the script could not be
    /// started.
    pub(super) async fn remove(&self, seen: &Seen) -> Result<(), Error> {
        let token = seen.note.as_ref().map(|note| note.token.clone());
        if let Some(note) = &seen.note
            && !self.begin_undo(note).await?
        {
            return Ok(());
        }
        let keys = self.known(seen.note.as_ref()).await?;
        // netback takes the word of the script away, so an interface is always taken to have had one.
        let is_known = seen.note.is_some()
            || self.place.kind() == Some(Kind::Vif)
            || seen.backend.as_ref().is_some_and(|backend| backend.made || backend.status.is_some());
        let is_touched = !seen.note.as_ref().is_some_and(|note| note.untouched);
        if is_known && is_touched && self.undo(keys.clone(), Inputs::Backend).await? == Undo::NotBegun {
            return self.postpone(seen, keys).await;
        }
        self.clean(token.as_ref(), true).await?;
        self.tell(&Event::Removed(self.place));
        Ok(())
    }

    /// Undoes the work of a device whose backend is gone, or was replaced. Yields whether that is over: what could not be
    /// begun stays noted as long as there is no other device of this id, which is not to wait for it.
    pub(super) async fn undo_gone(&self, seen: &Seen) -> Result<bool, Error> {
        let Some(note) = &seen.note else { return Ok(true) };
        let undo = self.undo_of(note, note.keys.clone()).await?;
        if undo == Undo::NotBegun && seen.backend.is_none() {
            self.postpone(seen, note.keys.clone()).await?;
            return Ok(false);
        }
        self.clean(Some(&note.token), false).await?;
        self.tell_of(undo);
        Ok(true)
    }

    /// Undoes the script's work, and makes the backend's directory as new. Not in that directory: what a script that removes
    /// says there, the toolstack would take for the outcome of the add that it waits for.
    pub(super) async fn reset(&self, seen: &Seen) -> Result<(), Error> {
        let Some(note) = &seen.note else { return Ok(()) };
        let keys = self.known(Some(note)).await?;
        let undo = self.undo_of(note, keys).await?;
        let made = self.place.kind().map_or(&[] as &[&str], |kind| kind.info().made);
        let reset = self.step(true, |seen| {
            let token = seen.backend.as_ref().and_then(|backend| backend.token.as_ref());
            if token != Some(&note.token) {
                return Ok(None);
            }
            let backend = self.place.backend()?;
            let keys = made.iter().copied().chain(["hotplug-error", MARKER]);
            let mut requests =
                keys.map(|key| Ok(StoreRequest::Rm(backend.join(key)?))).collect::<Result<Vec<_>, _>>()?;
            let status = backend.join("hotplug-status")?;
            requests.push(match self.place.kind() {
                // netback connects at once if it is not there.
                Some(Kind::Vif) => StoreRequest::Write { path: status, value: "".into() },
                _ => StoreRequest::Rm(status),
            });
            Ok(Some(requests))
        });
        if reset.await? {
            self.tell_of(undo);
        }
        Ok(())
    }

    /// That it is not done is not called done: nobody is left who would do it.
    fn tell_of(&self, undo: Undo) {
        self.tell(&match undo {
            Undo::Done => Event::Undone(self.place),
            Undo::Failed | Undo::NotBegun => Event::Trouble(
                self.place,
                "not undone: what its script made may be left, and is to be removed by hand".to_owned(),
            ),
        });
    }

    /// What is known of the device: by the backend, and where that says nothing by the note.
    async fn known(&self, note: Option<&Note>) -> Result<Recorded, Error> {
        let mut keys = note.map(|note| note.keys.clone()).unwrap_or_default();
        let counted = keys.get("node").cloned();
        keys.extend(look::keys(&self.shared.client, &self.place).await?);
        if keys.get("node") != counted.as_ref() {
            keys.remove(SEQUENCE);
        }
        // The script is the one that has set the device up.
        if let Some(script) = note.and_then(|note| note.keys.get("script")) {
            keys.insert("script".to_owned(), script.clone());
        }
        Ok(keys)
    }

    /// Notes that the device is being removed, if it is still the one that was seen.
    async fn begin_undo(&self, note: &Note) -> Result<bool, Error> {
        let removing = note.at(Stage::Removing, note.error.clone());
        self.step(false, |seen| {
            let is_same = seen.note.as_ref().is_some_and(|now| now.token == note.token);
            let token = seen.backend.as_ref().and_then(|backend| backend.token.as_ref());
            if !is_same || token != Some(&note.token) { Ok(None) } else { self.noted(&removing).map(Some) }
        })
        .await
    }

    /// Runs the script that removes in a copy, if one was ever started for this device.
    async fn undo_of(&self, note: &Note, keys: Recorded) -> Result<Undo, Error> {
        if note.untouched { Ok(Undo::Done) } else { self.undo(keys, Inputs::Copy).await }
    }

    /// Runs the script that removes. That it fails is told, and changes nothing: the device goes.
    async fn undo(&self, mut keys: Recorded, inputs: Inputs) -> Result<Undo, Error> {
        let Some(kind) = self.place.kind() else { return Ok(Undo::Done) };
        if keys.is_empty() {
            // A note that had no room for them.
            return Ok(Undo::Failed);
        }
        if script(&keys).is_none() {
            return Ok(Undo::Done);
        }
        let info = kind.info();
        let searches = keys.contains_key(BEFORE) && !keys.contains_key("node");
        let _searching = if searches { Some(self.shared.searching.lock().await) } else { None };
        let around = self.surroundings(kind, &keys).await?;
        let is_undone = around.node_serves == Some(false);
        if is_undone && (inputs == Inputs::Copy || keys.contains_key(SEQUENCE)) {
            return Ok(Undo::Done);
        }
        let Some(told) = (info.undo)(&keys, &around) else { return Ok(Undo::Done) };
        let aside = inputs == Inputs::Copy || !told.is_empty();
        keys.extend(told);
        if !around.surplus.is_empty() {
            let what = format!("{} may be left of its image", around.surplus.join(", "));
            self.tell(&Event::Trouble(self.place, what));
        }
        let copy = if aside { Some(self.copy(&keys).await?) } else { None };
        let never = CancellationToken::new();
        let mut undo = Undo::Done;
        for run in self.runs(kind, &keys).into_iter().rev() {
            let mut request = self.request(run, Run::Remove, &keys);
            if let Some(copy) = &copy {
                request = request.copy(copy.clone());
            }
            self.tell(&Event::Begins(self.place, Box::new(request.clone())));
            let aside = self.shared.waiting.aside();
            let begins = async {
                aside.back();
                true
            };
            let limits = &self.shared.settings.scripts;
            let report = self.shared.runner.run_if(&request, limits, &never, Box::pin(begins)).await;
            if !report.success() {
                let this = if never_ran(&report.ending) { Undo::NotBegun } else { Undo::Failed };
                undo = undo.max(this);
                self.tell(&Event::Trouble(self.place, format!("{request} {report}")));
            }
        }
        Ok(undo)
    }

    /// Makes a directory of the backend's shape below the note, and yields its absolute path.
    async fn copy(&self, keys: &Recorded) -> Result<String, Error> {
        let note = self.place.note()?;
        let mut requests = Vec::with_capacity(keys.len());
        for (key, value) in keys.iter().filter(|(key, _)| !saved::is_own(key)) {
            requests.push(StoreRequest::Write { path: note.join(key)?, value: value.clone().into() });
        }
        self.shared.client.all(requests).await?;
        Ok(format!("/local/domain/{}/{note}", self.shared.own))
    }

    async fn surroundings(&self, kind: Kind, keys: &Recorded) -> Result<Surroundings, Error> {
        let mut around = Surroundings { target_is_file: true, ..Surroundings::default() };
        // What cannot be looked at is taken to be as it was.
        let Some(found) = self.target(kind, keys).await else { return Ok(around) };
        around.target_is_file = found.is_file;
        match (keys.get("node"), keys.get(BEFORE)) {
            (Some(node), _) => around.node_serves = files::serves(node, keys.get(SEQUENCE), &found),
            // Of a script that was killed before it told of a node.
            (None, Some(before)) => {
                let mut made = found.made_since(before);
                if !made.is_empty() {
                    let others = look::nodes_of_others(&self.shared.client, &self.place).await?;
                    made.retain(|node| !others.contains(node));
                }
                around.made_none = made.is_empty();
                around.surplus = made.split_off(made.len().min(1));
                around.unreported = made;
            }
            (None, None) => {}
        }
        Ok(around)
    }

    /// Removes the backend's directory, if it is of the device that was seen, and notes what a later undo needs, without the
    /// copy that this one has made.
    async fn postpone(&self, before: &Seen, keys: Recorded) -> Result<(), Error> {
        let why = Some("not undone yet: its script could not be started".to_owned());
        let note = match &before.note {
            Some(note) if note.stage == Stage::Postponed => note.clone(),
            Some(note) => Note { keys, ..note.at(Stage::Postponed, why) },
            None => Note { error: why, ..Note::new(Stage::Postponed, keys) },
        };
        let token = |seen: &Seen| seen.note.as_ref().map(|note| note.token.clone());
        let (backend, path) = (self.place.backend()?, self.place.note()?);
        let postponed = self.step(false, |seen| {
            if token(seen) != token(before) {
                return Ok(None);
            }
            let is_ours = seen.backend.as_ref().is_some_and(|now| now.token == token(before));
            let gone = is_ours.then(|| StoreRequest::Rm(backend.clone()));
            // The copy is below the note. Where there is none yet, its parents may not be there either.
            let noted = StoreRequest::Write { path: path.clone(), value: note.text().into() };
            let anew = [noted.clone(), StoreRequest::Rm(path.clone()), noted];
            Ok(Some(gone.into_iter().chain(anew).collect()))
        });
        if postponed.await? {
            tidy(&self.shared.client, &self.place).await;
        }
        Ok(())
    }

    /// Removes the note of this token, and the backend's directory if it `is_over`.
    pub(super) async fn clean(&self, token: Option<&String>, is_over: bool) -> Result<(), Error> {
        let backend = self.place.backend()?;
        let cleaned = self.step(true, |seen| {
            if seen.note.as_ref().is_some_and(|note| Some(&note.token) != token) {
                return Ok(None);
            }
            let is_ours = seen.backend.as_ref().is_some_and(|now| now.token.as_ref() == token);
            Ok(Some((is_over && is_ours).then(|| StoreRequest::Rm(backend.clone())).into_iter().collect()))
        });
        if cleaned.await? {
            tidy(&self.shared.client, &self.place).await;
        }
        Ok(())
    }
}

/// Removes what a late script has brought back of a backend's directory, and the parents that are left empty, as far as
/// this domain may: in a driver domain the parents are the toolstack's.
async fn tidy(client: &xs_client::Client, place: &Place) {
    let tidied = client.transaction(|tx| async move {
        if look::device(&tx, place).await?.backend.is_none() {
            for path in cleanup::extent(&tx, &place.backend()?, &Path::new(BACKENDS)?).await? {
                tx.rm(&path).await?;
            }
        }
        Ok::<_, Error>(())
    });
    match tidied.await {
        Err(error) if error.code() != Some(&ErrorCode::EACCES) => {
            tracing::debug!(%place, %error, "parents stay");
        }
        _ => {}
    }
}
