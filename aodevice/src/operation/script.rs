//! Running the scripts of a device: where their inputs are, and what they made.

use hotplug::{Action, Ending, Request};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::saved::BEFORE;
use super::steps::{self, Inputs};
use super::store::{self, keys_of};
use super::wait::Cancel;
use super::{Job, Target, files, saved};
use crate::kind::{Recorded, Surroundings};
use crate::machine::{Event, Purpose};
use crate::{Cause, Warning};

/// Whether a script that failed never ran.
fn was_not_started(cause: &Cause) -> bool {
    let Cause::Script { report, .. } = cause else { return false };
    matches!(report.ending, Ending::SpawnFailed(_) | Ending::NotStarted)
}

impl Job<'_> {
    /// Runs one of the scripts of an add.
    pub(super) async fn run_add(
        &mut self,
        target: &Target,
        index: usize,
        cancel: &CancellationToken,
    ) -> Event {
        match self.begin_add(target, index, cancel).await {
            Ok(()) => match self.add(target, index, cancel).await {
                Err(cause @ Cause::Script { .. }) if was_not_started(&cause) => Event::NotRun(cause),
                ran => Event::Ran(ran),
            },
            Err(cause) => Event::NotRun(cause),
        }
    }

    async fn begin_add(
        &mut self,
        target: &Target,
        index: usize,
        cancel: &CancellationToken,
    ) -> Result<(), Cause> {
        if index == 0 {
            self.save_before(target).await?;
        }
        store::step(&self.toolstack.client, target, &self.record, Some(cancel), |seen| {
            Ok(((), steps::begin_add(seen, self.record.token)?))
        })
        .await
    }

    async fn add(
        &mut self,
        target: &Target,
        index: usize,
        cancel: &CancellationToken,
    ) -> Result<Option<Warning>, Cause> {
        let Some(kind) = target.run_kinds().get(index).copied() else { return Ok(None) };
        let client = &self.toolstack.client;
        let request = self.request(target, kind, Action::Add, target.recorded());
        self.run(&request, cancel).await?;
        let reported = keys_of(client, &target.paths().backend).await?;
        let missing = (target.id().kind.info().unreported)(&reported);
        self.made = reported;
        Ok(missing.map(|missing| Warning::NotReported { run: Box::new(request), missing }))
    }

    /// Saves the keys that the script is given, and what was made of its target already: who has to
    /// clean up after a script that was killed must not take that for its work.
    async fn save_before(&mut self, target: &Target) -> Result<(), Cause> {
        let mut keys = target.recorded().clone();
        if let Some(path) = (target.id().kind.info().target)(target.recorded())
            && let Some(found) = files::look_at(path, self.toolstack.limits.file).await
        {
            self.before = Some(found.loops.join(" "));
        }
        keys.insert(BEFORE.to_owned(), self.before.clone().unwrap_or_default());
        saved::write(&self.toolstack.client, target.paths(), &keys).await
    }

    /// Runs one of the scripts of a removal, in BE or in a copy of it.
    pub(super) async fn run_remove(
        &mut self,
        target: &Target,
        purpose: Purpose,
        index: usize,
        cancel: Cancel<'_>,
    ) -> Result<Option<Warning>, Cause> {
        let Some(kind) = target.run_kinds().get(index).copied() else { return Ok(None) };
        let never = CancellationToken::new();
        let (client, info) = (&self.toolstack.client, target.id().kind.info());
        let begun = store::step(client, target, &self.record, None, |seen| {
            let token = self.record.token;
            match purpose {
                Purpose::Undo => Ok(steps::begin_undo(seen, token, info.outlives_backend)),
                _ => steps::begin_remove(seen, token),
            }
        });
        let Some(inputs) = begun.await? else { return Ok(None) };
        let mut keys = target.recorded().clone();
        keys.extend(self.made.clone());
        if inputs != Inputs::Aside {
            keys.extend(keys_of(client, &target.paths().backend).await?);
        }
        let around = self.surroundings(target, &keys).await;
        let told = (info.undo)(&keys, &around);
        let rewritten = !told.is_empty();
        keys.extend(told);
        if inputs != Inputs::Backend
            && !info.made.is_empty()
            && !info.made.iter().any(|key| keys.contains_key(*key))
        {
            // Nothing says what it made, if it made anything.
            let skipped = self.made.is_empty() && inputs != Inputs::Leftover;
            return Ok(skipped.then_some(Warning::ScriptSkipped));
        }
        let undone = match inputs {
            Inputs::Backend => false,
            Inputs::Saved | Inputs::Aside => around.node_serves == Some(false),
            Inputs::Leftover => around.node_serves != Some(true),
        };
        if undone {
            return Ok(None);
        }
        let copy = match inputs {
            Inputs::Backend if !rewritten => None,
            Inputs::Backend | Inputs::Saved | Inputs::Leftover => Some(&target.paths().saved),
            Inputs::Aside => Some(&target.paths().undo),
        };
        let mut request = self.request(target, kind, Action::Remove, &keys);
        if let Some(directory) = copy {
            saved::write_at(client, directory, &keys).await?;
            request = request.copy(directory.to_string());
        }
        let ran = self.run(&request, cancel.unwrap_or(&never)).await;
        if inputs == Inputs::Aside {
            saved::remove(client, target.paths()).await?;
        }
        ran.map(|()| None)
    }

    fn request(&self, target: &Target, kind: hotplug::Kind, action: Action, keys: &Recorded) -> Request {
        let id = target.id();
        let script = target.recorded().get("script").cloned().unwrap_or_default();
        let request = Request::new(kind, action, id.fe.0, id.devid, script).own(self.toolstack.own.0);
        keys.iter().fold(request, |request, (key, value)| request.recorded(key, value))
    }

    async fn run(&self, request: &Request, cancel: &CancellationToken) -> Result<(), Cause> {
        let report = self.toolstack.runner.run(request, &self.toolstack.limits.scripts, cancel).await;
        debug!(%request, %report, "script");
        match report.ending {
            Ending::Aborted => Err(Cause::Aborted),
            _ if report.success() => Ok(()),
            _ => Err(Cause::Script { run: Box::new(request.clone()), report: Box::new(report) }),
        }
    }

    async fn surroundings(&self, target: &Target, keys: &Recorded) -> Surroundings {
        let info = target.id().kind.info();
        let found = match (info.target)(keys) {
            Some(path) => files::look_at(path, self.toolstack.limits.file).await,
            None => None,
        };
        // What cannot be looked at is taken to be as it was.
        let Some(found) = found else {
            return Surroundings { target_is_file: true, ..Surroundings::default() };
        };
        let before = self.before.as_ref().or(keys.get(BEFORE));
        let unreported = match before {
            Some(before) if !keys.contains_key("node") => {
                let known = |node: &&String| before.split(' ').any(|known| known == node.as_str());
                let mine = found.loops.iter().filter(|node| !known(node)).cloned().collect();
                self.not_of_others(target, mine).await
            }
            _ => Vec::new(),
        };
        let node_serves = keys.get("node").and_then(|node| files::serves(node, &found));
        Surroundings { target_is_file: found.is_file, unreported, node_serves }
    }

    /// Leaves out what the backends of other devices name: it was made for them.
    async fn not_of_others(&self, target: &Target, nodes: Vec<String>) -> Vec<String> {
        if nodes.is_empty() {
            return nodes;
        }
        // Without an answer nothing is ours for sure.
        let Ok(taken) = store::nodes_of_kind(&self.toolstack.client, target).await else { return Vec::new() };
        nodes.into_iter().filter(|node| !taken.contains(node)).collect()
    }
}
