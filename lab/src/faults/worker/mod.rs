//! A caller: it takes its steps, and compares what it gets with what it knows.

mod knock;
mod transaction;

use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::{Instant, sleep_until, timeout};
use xs_client::{Access, Error, Path, Permissions, Reply, Request};
use xs_proto::DecodeError;

use super::face::{Asks, Face, Watches, slack};
use super::fault::STORM;
use super::own::Own;
use super::schedule::{
    Act, FOREVER, GiveUp, NODES, SHARED, Step, Worker, flag, own, path, shared, shared_node,
};
use super::world::World;

/// Each worker acts in moments of its own, so that a schedule has one course: who is woken first
/// of those that a lost connection wakes together is nobody's promise.
const MOMENTS: u64 = 8;

/// Longer than what is still under way when the storm ends.
const AFTER_STORM: u64 = 60_000;

pub(super) struct Caller<F: Face> {
    world: Arc<World>,
    client: F,
    number: usize,
    own: Own,
    /// Counts what it has written.
    serial: u32,
    watches: Vec<(u64, F::Watch)>,
    /// Clones of transactions that have ended.
    kept: Vec<F::Requests>,
}

impl<F: Face> Caller<F> {
    pub(super) fn new(world: Arc<World>, client: F, worker: &Worker) -> Self {
        let number = worker.number;
        Self {
            world,
            client,
            number,
            own: Own::new(number),
            serial: 0,
            watches: Vec::new(),
            kept: Vec::new(),
        }
    }

    /// Takes all steps. Returns the watches that it still has, and their numbers.
    pub(super) async fn run(mut self, steps: Vec<Step>) -> Vec<(u64, F::Watch)> {
        for Step { pause, act, give_up } in steps {
            let now = self.world.now() + pause;
            let moment = (now / MOMENTS + 1) * MOMENTS + self.number as u64 % MOMENTS;
            sleep_until(self.world.at(moment)).await;
            self.own.sync(self.world.epoch());
            let words = format!("worker {}, {act:?}", self.number);
            let step = self.act(act);
            match give_up {
                None => {
                    if timeout(FOREVER, step).await.is_err() {
                        self.world.violation(format!("{words} does not end"));
                    }
                }
                Some(GiveUp::After(ms)) => _ = timeout(Duration::from_millis(ms), step).await,
                Some(GiveUp::Polls(polls)) => drop_after(polls, step).await,
            }
            self.own.sync(self.world.epoch());
        }
        self.watches
    }

    async fn act(&mut self, act: Act) {
        match act {
            Act::Write(node) => {
                let value = self.value(node);
                let request = Request::Write { path: self.own.path(node), value: value.clone().into() };
                self.change(node, Some(value), request).await;
            }
            Act::Remove(node) => self.change(node, None, Request::Rm(self.own.path(node))).await,
            Act::Mkdir(node) => {
                // One that is there keeps its value.
                self.own.may_be(node, Some(String::new()));
                self.ask(Request::Mkdir(self.own.path(node))).await;
            }
            Act::SetPerms(node) => {
                let perms = Permissions::owned_by(self.world.domid(), Access::None);
                self.ask(Request::SetPerms { path: self.own.path(node), perms }).await;
            }
            Act::Read(node) => self.read(node).await,
            Act::List => self.list().await,
            Act::Batch(nodes) => self.batch(&nodes).await,
            Act::Burst(reads) => self.burst(reads).await,
            Act::WriteShared(directory, node) => {
                let path = shared_node(directory, node);
                self.serial += 1;
                let value = value_of(&path, format!("{}.{}", self.number, self.serial)).into();
                self.ask(Request::Write { path, value }).await;
            }
            Act::ReadTree(directory) => self.read_tree(directory).await,
            Act::Transaction(nodes, body) => self.transaction(&nodes, body).await,
            Act::Watch(directory) => {
                let (path, present) = (shared(directory), self.world.present());
                let outcome = self.timed("a watch", 1, self.client.watch(&path, None)).await;
                if let Some(watch) = self.judge("a watch", outcome, std::slice::from_ref(&path)) {
                    self.watches.push((self.world.hold((path, None), present), watch));
                }
            }
            Act::Drain(ms) => self.drain(ms).await,
            Act::Unwatch => {
                if !self.watches.is_empty() {
                    let (id, _watch) = self.watches.remove(0);
                    self.world.let_go(id);
                }
            }
            Act::WaitFor(number) => self.wait_for(number).await,
            Act::Oversized => {
                let outcome = self.client.write(&self.own.path(0), vec![b'x'; 4096]).await;
                let fair = match outcome {
                    Ok(()) => false,
                    Err(Error::Encode(_) | Error::Timeout { .. }) => true,
                    Err(_) => self.world.has_ended(),
                };
                if !fair {
                    self.world.violation(format!("a value of 4096 bytes is answered with {outcome:?}"));
                }
            }
            Act::Clone(node) => {
                let (client, path) = (self.client.clone(), self.own.path(node));
                let reading = tokio::spawn(async move { client.read_opt(&path).await });
                match reading.await {
                    Ok(outcome) => self.was_read(node, outcome),
                    Err(error) => self.world.violation(format!("a task with a clone fails: {error}")),
                }
            }
            Act::Knock(calls, knock) => self.knock(calls, &knock).await,
        }
    }

    /// Runs something that takes up to so many deadlines.
    async fn timed<T>(&self, what: &str, deadlines: u32, call: impl Future<Output = T>) -> T {
        let begun = Instant::now();
        let outcome = call.await;
        let most = self.world.schedule.settings.config.deadline * deadlines;
        // What is under way does not outlive the connection.
        if let Some(closed) = self.world.closed()
            && closed.max(begun).elapsed() > slack::<F>()
        {
            self.world.violation(format!("{what} takes {:?} longer than the connection", closed.elapsed()));
        }
        if begun.elapsed() > most + slack::<F>() {
            self.world.violation(format!("{what} takes {:?}, where {most:?} are allowed", begun.elapsed()));
        }
        outcome
    }

    fn judge<T>(&self, what: &str, outcome: Result<T, Error>, about: &[Path]) -> Option<T> {
        match outcome {
            Ok(value) => Some(value),
            Err(error) => {
                self.world.judge(&format!("worker {}: {what}", self.number), &error, about);
                None
            }
        }
    }

    fn check(&self, outcome: Result<(), String>) {
        if let Err(text) = outcome {
            self.world.violation(format!("worker {}: {text}", self.number));
        }
    }

    /// A new value for a node.
    fn value(&mut self, node: usize) -> String {
        self.serial += 1;
        value_of(&self.own.path(node), format!("{}.{}", self.number, self.serial))
    }

    /// Asks for a change. Returns whether the store has made it, if it has answered.
    async fn ask(&self, change: Request) -> Option<bool> {
        let about: Vec<Path> = change.path().cloned().into_iter().collect();
        let outcome = self.timed("a change", 1, self.world.ask(&*self.client, change)).await;
        let refused = outcome.as_ref().is_err_and(|error| error.code().is_some());
        let done = self.judge("a change", outcome, &about);
        done.map(|()| true).or(refused.then_some(false))
    }

    /// Changes a node of its own by one request.
    async fn change(&mut self, node: usize, value: Option<String>, request: Request) {
        let before = self.own.possible(node);
        self.own.may_be(node, value.clone());
        match self.ask(request).await {
            Some(true) => self.own.is(node, value),
            Some(false) => self.own.is_still(node, before),
            None => {}
        }
    }

    async fn read(&mut self, node: usize) {
        let path = self.own.path(node);
        let outcome = self.read_any(&path).await;
        self.was_read(node, outcome);
    }

    /// Reads any node.
    async fn read_any(&self, path: &Path) -> Result<Option<Bytes>, Error> {
        let outcome = self.timed("a read", 1, self.client.read_opt(path)).await;
        let policy = self.world.schedule.settings.config.reconnect;
        if policy.is_some_and(|policy| policy.retry_reads)
            && let Err(error) = &outcome
            // What is no message of the store may be the very answer to this.
            && matches!(error, Error::Disconnected { .. } | Error::Protocol(DecodeError::Truncated { .. }))
            && !self.client.has_ended().await
        {
            self.world.violation(format!("a read of {path} is not asked again: {error}"));
        }
        outcome
    }

    fn was_read(&mut self, node: usize, outcome: Result<Option<Bytes>, Error>) {
        let path = self.own.path(node);
        if let Some(value) = self.judge("a read", outcome, &[path]) {
            // Nothing but a new store changes what this worker alone writes.
            self.own.sync(self.world.epoch());
            let outcome = self.own.was_read(node, value.as_ref().map(text));
            self.check(outcome);
        }
    }

    async fn list(&mut self) {
        let path = own(self.number);
        // The parts of a long list have a deadline of their own.
        let outcome = self.timed("a list", 2, self.client.directory_or_empty(&path)).await;
        if let Some(names) = self.judge("a list", outcome, &[path]) {
            self.own.sync(self.world.epoch());
            self.check(self.own.was_listed(&names));
        }
    }

    /// Writes and reads each of the nodes; the store answers in their order.
    async fn batch(&mut self, nodes: &[usize]) {
        let mut requests = Vec::new();
        let mut values = Vec::new();
        for &node in nodes {
            let (path, value) = (self.own.path(node), self.value(node));
            self.own.may_be(node, Some(value.clone()));
            let write = Request::Write { path: path.clone(), value: value.clone().into() };
            self.world.note_asked(&write);
            requests.extend([write, Request::Read(path)]);
            values.push(value);
        }
        let writes = requests.iter().filter(|request| matches!(request, Request::Write { .. }));
        self.world.note_batch(writes.cloned().collect());
        let connections = self.world.connections();
        let outcome = self.timed("a batch", 1, self.client.batch(requests)).await;
        let about: Vec<Path> = nodes.iter().map(|node| self.own.path(*node)).collect();
        let Some(replies) = self.judge("a batch", outcome, &about) else { return };
        let mut replies = replies.into_iter();
        for (&node, value) in nodes.iter().zip(values) {
            let path = [self.own.path(node)];
            let (Some(written), Some(read)) = (replies.next(), replies.next()) else {
                return self.world.violation("a batch has fewer replies than requests");
            };
            let written = self.judge("a write in a batch", written, &path).is_some();
            // Reads that are asked again of another connection come after all the writes.
            let in_order = self.world.connections() == connections && !self.world.is_lost();
            if written && in_order {
                self.own.is(node, Some(value));
            }
            self.own.sync(self.world.epoch());
            let read = match read {
                Ok(Reply::Value(value)) => Some(text(&value)),
                Err(error) if error.is_not_found() => None,
                Ok(reply) => return self.world.violation(format!("a read is answered with {reply:?}")),
                Err(error) => {
                    self.judge("a read in a batch", Err::<(), _>(error), &path);
                    continue;
                }
            };
            let possible = self.own.possible(node);
            let outcome = self.own.was_read(node, read);
            self.check(outcome);
            if !in_order {
                self.own.is_still(node, possible);
            }
        }
    }

    async fn burst(&self, reads: usize) {
        let paths = (0..).map(|number| shared_node(number % SHARED, number / SHARED % NODES));
        if F::BLOCKS {
            // One call is all that it can make at a time; more than a small socket takes at once.
            return self.read_many(paths.take(4 * reads).collect()).await;
        }
        let reads = paths.take(reads).map(|path| async {
            let outcome = self.read_any(&path).await;
            let about = [path];
            if let Some(Some(value)) = self.judge("a read", outcome, &about) {
                self.is_of(&about[0], &value);
            }
        });
        join_all(reads).await;
    }

    async fn read_many(&self, paths: Vec<Path>) {
        let outcome = self.timed("many reads", 1, self.client.read_many(&paths)).await;
        let values = self.judge("many reads", outcome, &paths);
        for (path, value) in paths.iter().zip(values.into_iter().flatten()) {
            value.iter().for_each(|value| self.is_of(path, value));
        }
    }

    /// Looks whether a value is one of this path.
    fn is_of(&self, path: &Path, value: &Bytes) {
        if !value.is_empty() && !text(value).starts_with(&format!("{path}#")) {
            self.world.violation(format!("{path} is read as {value:?}, which is of another node"));
        }
    }

    async fn read_tree(&self, directory: usize) {
        let path = shared(directory);
        // A deadline for each level, and for lists that are asked for again.
        let outcome = self.timed("a tree", 9, self.client.read_tree(&path)).await;
        let tree = self.judge("a tree", outcome, std::slice::from_ref(&path)).flatten();
        for (below, tree) in tree.iter().flat_map(|tree| tree.nodes()) {
            let node = if below.is_empty() { Ok(path.clone()) } else { path.join(&below) };
            match node {
                Ok(node) => self.is_of(&node, &tree.value),
                Err(error) => self.world.violation(format!("a tree has the node {below}: {error}")),
            }
        }
    }

    async fn drain(&mut self, ms: u64) {
        let backlog = self.world.schedule.settings.config.watch_backlog;
        for (id, watch) in &mut self.watches {
            let Ok(looked) = timeout(Duration::from_millis(ms), watch.changed()).await else { continue };
            match looked {
                Ok(changes) => {
                    let stray = changes.paths.iter().find(|path| !path.is_within(watch.path()));
                    if let Some(stray) = stray {
                        self.world.violation(format!("the watch of {} tells of {stray}", watch.path()));
                    }
                    // Its own path takes no room.
                    let below = changes.paths.iter().filter(|path| *path != watch.path()).count();
                    if below > backlog || changes.overflowed != changes.paths.is_empty() {
                        self.world.violation(format!("with a backlog of {backlog} there are {changes:?}"));
                    }
                }
                // Registered again, it may be refused.
                Err(error) => {
                    self.world.check_refused(*id, &error);
                    self.world.judge("a watch", &error, &[path("/w")]);
                }
            }
        }
    }

    /// Waits for what is there before the storm is over.
    async fn wait_for(&self, number: usize) {
        let path = flag(number);
        let within = Duration::from_millis(STORM.saturating_sub(self.world.now()) + AFTER_STORM);
        let outcome = self.client.wait_for(within, &path).await;
        if let Some(value) = self.judge("waiting", outcome, std::slice::from_ref(&path)) {
            self.is_of(&path, &value);
        }
    }
}

/// A value that tells where it belongs.
pub(super) fn value_of(path: &Path, version: impl fmt::Display) -> String {
    format!("{path}#{version}")
}

pub(super) fn text(value: &Bytes) -> String {
    String::from_utf8_lossy(value).into_owned()
}

/// Polls a future so many times, with turns for others in between, and drops it.
async fn drop_after(polls: u32, future: impl Future<Output = ()>) {
    let mut future = pin!(future);
    for _ in 0..polls {
        if poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_ready())).await {
            return;
        }
        tokio::task::yield_now().await;
    }
}
