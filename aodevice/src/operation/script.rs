//! Running the scripts of a device: where their inputs are, and what they made.

use std::sync::{Mutex, PoisonError};

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::debug;
use xen_hotplug::{Action, Ending, Permit, Report, Request};
use xs_client::Path;

use super::record::Stage;
use super::said::{self, Said};
use super::saved::{BEFORE, FILE, SEQUENCE};
use super::steps::{self, Inputs, Seen};
use super::store::{self, Depth};
use super::wait::{Cancel, LOOK};
use super::{Job, LAST_WORDS, Target, files, saved};
use crate::kind::{Recorded, Surroundings};
use crate::machine::{Event, Purpose};
use crate::{Cause, Toolstack, Warning};

/// Whether a script never ran, so that it may be tried again.
pub(crate) fn never_ran(ending: &Ending) -> bool {
    matches!(ending, Ending::SpawnFailed(_) | Ending::NotStarted)
}

/// Whether a script that failed never ran.
fn was_not_started(cause: &Cause) -> bool {
    match cause {
        Cause::Script { report, .. } => never_ran(&report.ending),
        Cause::Undecided(_) => true,
        _ => false,
    }
}

/// What the script that removes is given.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Undo {
    inputs: Inputs,
    pub(super) keys: Recorded,
    /// Where a copy of the keys is made for it.
    pub(super) copy: Option<Path>,
    /// What may be left beside what it undoes.
    surplus: Vec<String>,
}

/// What there is to do for a script that removes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Task {
    Run(Undo),
    /// Nothing is left to undo, as far as that is known.
    Nothing(Option<Unknown>),
}

/// It is not known what the script would have to undo.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unknown;

/// Whether a key of BE says nothing of what a script made.
fn is_needless(key: &str) -> bool {
    store::PASSING.contains(&key) || saved::is_own(key)
}

/// How often a run of a script that removes is begun anew, because the device changed hands meanwhile.
const ATTEMPTS: usize = 3;

impl Job<'_> {
    /// Runs one of the scripts of an add. Whether the device is still ours, and its backend ready, is looked
    /// at when nothing else can run for the device any more.
    pub(super) async fn run_add(
        &mut self,
        target: &Target,
        index: usize,
        cancel: &CancellationToken,
    ) -> Event {
        let Some(kind) = target.run_kinds().get(index).copied() else { return Event::Ran(Ok(None)) };
        let request = target.request(self.toolstack.own, kind, Action::Add, target.recorded());
        let begun = Mutex::new(None);
        let permit = async {
            let begin = self.begin_add(target, index).await;
            let permitted = begin.is_ok();
            *begun.lock().unwrap_or_else(PoisonError::into_inner) = Some(begin);
            permitted
        };
        let ran = self.run(&request, cancel, Box::pin(permit)).await;
        let said = match begun.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(Ok((first, said))) => {
                if let Some(copy) = first {
                    self.copy = copy;
                }
                said
            }
            Some(Err(cause)) => return Event::NotRun(cause),
            None => match &ran {
                Err(cause @ Cause::Aborted) => return Event::NotRun(cause.clone()),
                Err(cause) if was_not_started(cause) => return Event::NotRun(cause.clone()),
                _ => return Event::Ran(Err(Cause::NotPermitted)),
            },
        };
        match ran {
            Err(cause) if was_not_started(&cause) => Event::NotRun(cause),
            Err(cause) => {
                let cause = self.in_its_words(cause, &said).await;
                self.told = said::tell(&self.toolstack.client, target, self.record.token, &cause).await;
                Event::Ran(Err(cause))
            }
            Ok(report) => Event::Ran(self.reported(target, request, report, &said).await),
        }
    }

    /// Begins the first or another run. Before the first the keys that the script is given are saved, with
    /// what was made of its target already: who has to clean up after a script that was killed must not
    /// take that for its work.
    ///
    /// Yields the copy, and what earlier scripts have said of their runs.
    async fn begin_add(&self, target: &Target, index: usize) -> Result<(Option<Recorded>, Said), Cause> {
        let client = &self.toolstack.client;
        let begin = |seen: &Seen| {
            // The error is forgotten in this step.
            let said = Said { error: None, ..seen.said.clone() };
            Ok((said, steps::begin_add(seen, self.record.token)?))
        };
        let begun = async {
            match store::without_change(client, target, Depth::Said, begin).await? {
                Some(said) => Ok(said),
                None => store::step(client, target, &self.record, (None, Depth::Said), begin).await,
            }
        };
        let (said, guest) = tokio::try_join!(begun, saved::guest_of(client, target.paths()))?;
        if index > 0 {
            return Ok((None, said));
        }
        let found = match (target.id().kind.info().target)(target.recorded()) {
            Some(path) => files::look_at(path, None, self.toolstack.limits.file).await,
            None => None,
        };
        let found = found.unwrap_or_default();
        let before = found.baseline();
        let origin = found.origin.to_string();
        let origins = (guest, &*before, &*origin);
        let copy = saved::begin(client, target.paths(), target.recorded(), origins).await?;
        Ok((Some(copy), said))
    }

    /// The failure of a script with what it said of that in the store, if it said anything since `before`.
    async fn in_its_words(&self, cause: Cause, before: &Said) -> Cause {
        let Cause::Script { run, report } = cause else { return cause };
        let client = self.toolstack.client.with_deadline(LAST_WORDS);
        let said = async { Said::read(&client, &Path::new(run.directory())?).await };
        match said.await {
            Ok(said) => {
                let report = said.since(before).into_report(*report);
                Cause::Script { run, report: Box::new(report) }
            }
            Err(error) => {
                debug!(%error, "what the script said cannot be read");
                Cause::Script { run, report }
            }
        }
    }

    /// Takes note of what a script that exited with 0 has reported; of a failure, if it reported one.
    async fn reported(
        &mut self,
        target: &Target,
        request: Request,
        report: Report,
        before: &Said,
    ) -> Result<Option<Warning>, Cause> {
        let (client, backend) = (&self.toolstack.client, &target.paths().backend);
        let asked: Vec<&str> =
            target.id().kind.info().made.iter().copied().chain(["hotplug-status"]).collect();
        let (said, mut made) = match &report.wrote {
            Some(wrote) => {
                let mut made = self.made.clone();
                made.extend(wrote.clone());
                (Said::of(wrote), made)
            }
            None => {
                let read = store::keys_since(client, backend, target.recorded(), &asked, is_needless);
                let (said, made) = tokio::try_join!(async { Ok(Said::read(client, backend).await?) }, read)?;
                (said.since(before), made)
            }
        };
        if said.is_failure() {
            let report = Box::new(said.into_report(report));
            return Err(Cause::Reported { run: Box::new(request), report });
        }
        // The others are as they were written.
        made.retain(|name, _| name == "hotplug-status" || !target.recorded().contains_key(name));
        self.made = made;
        if let Some(sequence) = self.made.get("node").and_then(|node| files::sequence(node)) {
            self.made.insert(SEQUENCE.to_owned(), sequence);
        }
        self.add_numbers(target).await?;
        saved::add(&mut self.copy, &self.made);
        // Whoever goes on after us is to know it too. What a handler made he finds in the backend, or by what was there
        // before; it is written when the add has come to its end.
        if report.wrote.is_none() {
            client.all(vec![saved::write(target.paths(), &self.copy)]).await?;
        }
        let mut keys = target.recorded().clone();
        keys.extend(self.made.clone());
        let unreported = (target.id().kind.info().unreported)(&keys);
        let report = said.into_report(report);
        Ok(unreported.map(|(missing, wrote)| Warning::NotReported {
            run: Box::new(request),
            missing,
            wrote,
            words: report.last_words(),
        }))
    }

    /// Writes the numbers of a block device that the script has named by its path alone.
    async fn add_numbers(&mut self, target: &Target) -> Result<(), Cause> {
        let Some((path, key)) = target.id().kind.info().numbers else { return Ok(()) };
        let path = self.made.get(path).filter(|path| path.starts_with('/') && !self.made.contains_key(key));
        let Some(path) = path else { return Ok(()) };
        if let Some(numbers) = files::device_numbers(path, self.toolstack.limits.file).await {
            store::complete(&self.toolstack.client, target, &self.record, (key, &numbers)).await?;
            self.made.insert(key.to_owned(), numbers);
        }
        Ok(())
    }

    /// Runs one of the scripts of a removal, in BE or in a copy of it.
    pub(super) async fn run_remove(
        &mut self,
        target: &Target,
        purpose: Purpose,
        index: usize,
        cancel: Cancel<'_>,
    ) -> Event {
        let Some(kind) = target.run_kinds().get(index).copied() else { return Event::Ran(Ok(None)) };
        match self.undo(target, kind, purpose, cancel).await {
            Err(cause) if was_not_started(&cause) => Event::NotRun(cause),
            ran => Event::Ran(ran),
        }
    }

    async fn undo(
        &mut self,
        target: &Target,
        kind: xen_hotplug::Kind,
        purpose: Purpose,
        cancel: Cancel<'_>,
    ) -> Result<Option<Warning>, Cause> {
        let never = CancellationToken::new();
        for _ in 0..ATTEMPTS {
            let undo = match self.decided_task(target, purpose).await? {
                Task::Run(undo) => undo,
                Task::Nothing(unknown) => return Ok(unknown.map(|Unknown| Warning::ScriptSkipped)),
            };
            let mut request = target.request(self.toolstack.own, kind, Action::Remove, &undo.keys);
            if let Some(directory) = &undo.copy {
                saved::write_at(&self.toolstack.client, directory, &undo.keys).await?;
                request = request.copy(directory.to_string());
            }
            // What stands there by now is of the add, or of an earlier attempt.
            let directory = Path::new(request.directory())?;
            let said = Said::read(&self.toolstack.client, &directory).await.unwrap_or_default();
            // The same again, when nothing else can run for the device any more.
            let permit =
                async { matches!(self.task(target, purpose).await, Ok(Task::Run(now)) if now == undo) };
            let ran = match self.run(&request, cancel.unwrap_or(&never), Box::pin(permit)).await {
                Err(cause) => Err(self.in_its_words(cause, &said).await),
                ran => ran,
            };
            if undo.inputs.is_aside() {
                saved::remove_aside(&self.toolstack.client, target.paths()).await?;
            }
            match ran {
                Err(Cause::Script { report, .. }) if report.ending == Ending::Withdrawn => {}
                Err(Cause::Script { .. }) if self.is_undone(target, &undo.keys).await => return Ok(None),
                ran => {
                    let surplus = (!undo.surplus.is_empty()).then_some(Warning::Surplus(undo.surplus));
                    return ran.map(|_| surplus);
                }
            }
        }
        Err(Cause::Taken)
    }

    /// The same as [`Self::task`], but waits as long as the script of another device runs that may have made
    /// what ours may have made.
    async fn decided_task(&self, target: &Target, purpose: Purpose) -> Result<Task, Cause> {
        let begun = Instant::now();
        loop {
            match self.task(target, purpose).await {
                Err(Cause::Undecided(_)) if begun.elapsed() < self.toolstack.limits.close => {
                    sleep(LOOK).await;
                }
                task => return task,
            }
        }
    }

    /// What there is to do for the script that removes, and what it is to be given for it.
    async fn task(&self, target: &Target, purpose: Purpose) -> Result<Task, Cause> {
        let (client, token) = (&self.toolstack.client, self.record.token);
        let seen = store::look(client, &target.id(), target.paths(), Depth::Standing).await?;
        let inputs = match purpose {
            Purpose::Undo => {
                let outlives_backend = target.id().kind.info().outlives_backend;
                steps::begin_undo(&seen, token, outlives_backend)
            }
            _ => steps::begin_remove(&seen, token)?,
        };
        match inputs {
            Some(inputs) => self.task_of(target, purpose, inputs).await,
            None => Ok(Task::Nothing(None)),
        }
    }

    /// The same, where it is known where the inputs are.
    pub(super) async fn task_of(
        &self,
        target: &Target,
        purpose: Purpose,
        inputs: Inputs,
    ) -> Result<Task, Cause> {
        let (client, info, paths) = (&self.toolstack.client, target.id().kind.info(), target.paths());
        let mut keys = target.recorded().clone();
        keys.extend(self.made.clone());
        let backend = if inputs.reads_backend() {
            let asked: Vec<&str> = info.made.iter().copied().chain(["params"]).collect();
            store::keys_since(client, &paths.backend, &keys, &asked, is_needless).await?
        } else {
            Recorded::new()
        };
        let counted = keys.get("node").cloned();
        keys.extend(backend.clone());
        let node = keys.get("node");
        // Nobody began to undo it, so the backend's word holds: `xl` may have removed the device that was
        // saved, and have added this one.
        let is_begun = purpose == Purpose::Undo || self.resumes;
        let is_other = |node: &String| keys.get(SEQUENCE) != files::sequence(node).as_ref();
        let is_used_anew =
            keys.contains_key(SEQUENCE) && node == counted.as_ref() && node.is_some_and(is_other);
        if node != counted.as_ref() || inputs == Inputs::Backend && !is_begun && node.is_some_and(is_other) {
            keys.remove(SEQUENCE);
        }
        let around = self.surroundings(target, inputs, &keys).await?;
        let Some(told) = (info.undo)(&keys, &around) else { return Ok(Task::Nothing(None)) };
        // What is known and does not stand where the script would look: BE was lost and came back.
        let unseen = |key: &str| !backend.contains_key(key) && !saved::is_own(key);
        let rewritten = !told.is_empty() || keys.keys().any(|key| unseen(key));
        keys.extend(told);
        let begun = purpose == Purpose::Undo || keys.contains_key(BEFORE);
        let known = begun || info.made.is_empty() || info.made.iter().any(|key| keys.contains_key(*key));
        if inputs != Inputs::Backend && !known {
            // Nothing says what it made, if it made anything.
            return Ok(Task::Nothing((inputs != Inputs::Leftover).then_some(Unknown)));
        }
        let undone = match inputs {
            // Undone already, by a run that was killed later or by hand, if the kernel's count says so: what has
            // the number by now, and serves another file, is somebody else's.
            Inputs::Backend => {
                around.node_serves == Some(false) && (keys.contains_key(SEQUENCE) || is_used_anew)
            }
            Inputs::Saved | Inputs::Vanished | Inputs::Taken => around.node_serves == Some(false),
            Inputs::Leftover => around.node_serves != Some(true),
        };
        if undone {
            return Ok(Task::Nothing(None));
        }
        let copy = match inputs {
            Inputs::Backend if !rewritten => None,
            inputs if inputs.is_aside() => Some(paths.undo.clone()),
            _ => Some(paths.saved.clone()),
        };
        Ok(Task::Run(Undo { inputs, keys, copy, surplus: around.surplus }))
    }

    async fn run(
        &self,
        request: &Request,
        cancel: &CancellationToken,
        permit: Permit<'_>,
    ) -> Result<Report, Cause> {
        let Toolstack { runner, limits, .. } = self.toolstack;
        let report = runner.run_if(request, &limits.scripts, cancel, permit).await;
        debug!(%request, %report, "script");
        match report.ending {
            Ending::Aborted => Err(Cause::Aborted),
            _ if report.success() => Ok(report),
            _ => Err(Cause::Script { run: Box::new(request.clone()), report: Box::new(report) }),
        }
    }

    /// Whether a script that failed had nothing left to do: `xl` runs its own, and takes no notice of locks.
    async fn is_undone(&self, target: &Target, keys: &Recorded) -> bool {
        let known = ((target.id().kind.info().target)(keys), keys.get("node"), keys.get(SEQUENCE));
        let (Some(path), Some(node), sequence @ Some(_)) = known else { return false };
        let found = files::look_at(path, None, self.toolstack.limits.file).await;
        found.is_some_and(|found| files::serves(node, sequence, &found) == Some(false))
    }

    async fn surroundings(
        &self,
        target: &Target,
        inputs: Inputs,
        keys: &Recorded,
    ) -> Result<Surroundings, Cause> {
        let (client, info) = (&self.toolstack.client, target.id().kind.info());
        // What was reported is known by its count.
        let unreported = keys.contains_key(BEFORE) && !keys.contains_key(SEQUENCE);
        let origin = keys.get(FILE).filter(|_| unreported);
        let found = match (info.target)(keys) {
            Some(path) => files::look_at(path, origin, self.toolstack.limits.file).await,
            None => None,
        };
        // What cannot be looked at is taken to be as it was.
        let Some(found) = found else {
            return Ok(Surroundings { target_is_file: true, ..Surroundings::default() });
        };
        // Where the toolstack's record is gone with its domain, BE may stand yet, and is no other's.
        let is_ours = inputs != Inputs::Taken;
        let others = async || store::nodes_of_others(client, target, is_ours).await;
        let mut around = Surroundings { target_is_file: found.is_file, ..Surroundings::default() };
        let before = self.copy.get(BEFORE).or(keys.get(BEFORE));
        let since = before.map(|before| found.made_since(before));
        match keys.get("node") {
            Some(node) => {
                around.node_serves = files::serves(node, keys.get(SEQUENCE), &found);
                // Of an add that did not come to its end, whose loop device was not counted.
                let gone = |made: &Vec<String>| !made.contains(node) && around.node_serves.is_some();
                around.made_none = !keys.contains_key(SEQUENCE) && since.as_ref().is_some_and(gone);
                if inputs != Inputs::Backend && others().await?.contains(node) {
                    around.node_serves = Some(false);
                }
            }
            // Whatever else is made of the target by now may be anybody's.
            None if inputs == Inputs::Taken || inputs == Inputs::Leftover => {}
            None => {
                let mut made = since.clone().unwrap_or_default();
                if !made.is_empty() {
                    let named = others().await?;
                    made.retain(|node| !named.contains(node));
                    (around.unreported, around.surplus) = self.decide(target, &found, made).await?;
                }
                around.made_none = since.is_some() && around.unreported.is_empty();
            }
        }
        Ok(around)
    }

    /// Shares what was made of a target since a script of it began, and is not named by any backend, among
    /// the devices whose scripts may have made it. One of them may be running, and tell of its own soon.
    async fn decide(
        &self,
        target: &Target,
        found: &files::Found,
        made: Vec<String>,
    ) -> Result<(Vec<String>, Vec<String>), Cause> {
        let origin = found.origin.to_string();
        let others = store::unfinished_others(&self.toolstack.client, target, &origin).await?;
        for (_, record) in &others {
            let Some(record) = record else { continue };
            let occupant = self.occupant(record.clone()).await?;
            let stage = occupant.record.as_ref().map(|record| record.stage);
            if occupant.alive && matches!(stage, Some(Stage::Backend | Stage::Script)) && !made.is_empty() {
                return Err(Cause::Undecided(made));
            }
        }
        let copies: Vec<&Path> = others.iter().map(|(copy, _)| copy).collect();
        Ok(share(made, &target.paths().saved, &copies))
    }
}

/// The share of the device with the copy `own`, and what is nobody's. The script of each device made one at
/// most; nobody can tell whose is whose, so the first device, by the paths of their copies, takes the oldest.
fn share(made: Vec<String>, own: &Path, others: &[&Path]) -> (Vec<String>, Vec<String>) {
    let rank = others.iter().filter(|other| **other < own).count();
    let surplus = made.iter().skip(1 + others.len()).cloned().collect();
    (made.into_iter().skip(rank).take(1).collect(), surplus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_takes_one_of_what_was_made_and_no_two_the_same() {
        let paths: Vec<Path> = ["/a", "/b"].iter().map(|path| Path::new(*path).expect("a path")).collect();
        let (a, b) = (&paths[0], &paths[1]);
        let made = |numbers: &[u32]| numbers.iter().map(|number| format!("/dev/loop{number}")).collect();
        let shared = |numbers: &[u32], own, others: &[&Path]| share(made(numbers), own, others);

        assert_eq!(shared(&[5, 6], a, &[b]), (made(&[5]), made(&[])));
        assert_eq!(shared(&[5, 6], b, &[a]), (made(&[6]), made(&[])));
        // One of the two had made none yet: the first takes what there is, and the second follows it.
        assert_eq!(shared(&[5], a, &[b]), (made(&[5]), made(&[])));
        assert_eq!(shared(&[5], b, &[a]), (made(&[]), made(&[])));
        // More than they can have made is left, and told of.
        assert_eq!(shared(&[5, 6, 7], b, &[a]), (made(&[6]), made(&[7])));
        assert_eq!(shared(&[5, 6], a, &[]), (made(&[5]), made(&[6])));
    }
}
