//! Waiting: for a node, for another operation to end, and beside both for whatever ends the wait
//! early: the caller cancels, somebody asks for the device, or the device is lost.

use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use xen_devstate::{Ended, Goal, Outcome, StateValue, deadline, wait, wait_until};
use xs_client::{Client, Path, Watch};

use super::observe::shown;
use super::record::{Occupant, Record, Token};
use super::{Job, Target, elsewhere, model, store};
use crate::machine::{Event, Node, Reached, Until};
use crate::{BackendKind, Cause, Condition, Toolstack, Which, facts};

/// How often to look whether an owner is alive, of whose death the store does not tell.
pub(super) const LOOK: Duration = Duration::from_millis(100);

/// For how long a store that does not answer is waited for after a cancellation.
const HUNG: Duration = Duration::from_secs(1);

/// By which a step is cancelled: by nothing but the loss of the device in a roll-back.
pub(crate) type Cancel<'a> = Option<&'a CancellationToken>;

pub(crate) async fn cancelled(cancel: Cancel<'_>) {
    match cancel {
        Some(cancel) => cancel.cancelled().await,
        None => std::future::pending().await,
    }
}

/// Ends early if the caller cancels.
pub(crate) async fn unless_cancelled<T>(
    work: impl Future<Output = Result<T, Cause>>,
    cancel: Cancel<'_>,
) -> Result<T, Cause> {
    tokio::select! {
        biased;
        result = work => result,
        () = cancelled(cancel) => Err(Cause::Aborted),
    }
}

/// The same for a transaction, which ends by itself between two attempts: only a store that does not
/// answer is not waited for.
pub(crate) async fn unless_hung<T>(
    transaction: impl Future<Output = Result<T, Cause>>,
    cancel: Cancel<'_>,
) -> Result<T, Cause> {
    tokio::select! {
        biased;
        result = transaction => result,
        () = async { cancelled(cancel).await; sleep(HUNG).await } => Err(Cause::Aborted),
    }
}

/// The node by which another operation asks the owner of a record to cancel.
fn cancel_node(target: &Path) -> Result<Path, xs_client::PathError> {
    target.join("cancel")
}

/// What is watched of a device from wait to wait: to begin anew costs requests, and looks at what has been looked at.
#[derive(Default)]
pub(super) struct Watched {
    /// The operation's record.
    record: Option<Watch>,
    /// As far as it was looked at since it last changed.
    looked: Looked,
    /// The backend's state. Each wait watches it by itself, and is served by the watch that the store has for this one.
    state: Option<Watch>,
}

/// How far the record was looked at, without finding that the operation is to end.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Looked {
    #[default]
    Not,
    /// It is ours.
    Ours,
    /// And nobody asks for the device.
    Unasked,
}

/// Resolves when the operation is to end early, with the reason. `ready`: what the backend is to go on
/// holding.
async fn lost(
    client: &Client,
    target: &Target,
    token: Token,
    cancel: Cancel<'_>,
    (ready, kept): (Option<Goal>, &mut Watched),
) -> Cause {
    let watched = async {
        let paths = target.paths();
        let op = paths.toolstack.join("op")?;
        let state = paths.backend.join("state")?;
        let of_record = if cancel.is_some() { vec![op.clone(), cancel_node(&op)?] } else { vec![op.clone()] };
        let of_backend = [state.clone(), paths.backend.join("online")?];
        let mut backend = if ready.is_some() { Some(client.watch(&state).await?) } else { None };
        // Each fires once at first, and what is read is read after that.
        let Watched { record, looked, .. } = kept;
        let watch = match record {
            Some(watch) => watch,
            None => {
                let mut watch = client.watch(&op).await?;
                watch.changed().await?;
                *looked = Looked::Not;
                record.insert(watch)
            }
        };
        if let Some(backend) = &mut backend {
            backend.changed().await?;
        }
        let backend_event = async |watch: &mut Option<Watch>| match watch {
            Some(watch) => watch.changed().await.map(drop),
            None => std::future::pending().await,
        };
        // Only what may have changed is read.
        let enough = if cancel.is_some() { Looked::Unasked } else { Looked::Ours };
        let mut backend_changed = ready.is_some();
        let [mut state, mut online] = [const { None }; 2];
        loop {
            let record_changed = *looked < enough;
            let changed = (record_changed.then_some(&of_record[..]).into_iter())
                .chain(backend_changed.then_some(&of_backend[..]))
                .flatten();
            let changed: Vec<Path> = changed.cloned().collect();
            let mut seen = client.read_many(&changed).await?.into_iter().map(store::text);
            let mut next = || seen.next().flatten();
            if record_changed {
                if !Record::is_of(next().as_deref(), token) {
                    let there = client.read_many(&[paths.toolstack.clone(), paths.home.clone()]).await?;
                    let gone = Cause::Gone { domain: there[1].is_none() };
                    return Ok(if there[0].is_some() { Cause::Taken } else { gone });
                }
                let asked = cancel.and_then(|_| next());
                let asked = asked.as_deref().and_then(|asked| asked.strip_prefix(&format!("{token} ")));
                if let Some(who) = asked {
                    return Ok(Cause::Asked(shown(who.as_bytes())));
                }
                *looked = enough;
            }
            if backend_changed {
                (state, online) = (next(), next());
            }
            let state = state.as_deref().map(|state: &str| StateValue::parse(state.as_bytes()));
            let node = Node::BackendState;
            match ready.and_then(|goal| Some((goal, goal.decide(state.as_ref())?))) {
                // Told so by another toolstack, and not by its driver.
                Some((_, Outcome::Failed(_))) if online.as_deref() == Some("0") => {
                    let home = client.read_opt(&paths.home).await?;
                    return Ok(Cause::Gone { domain: home.is_none() });
                }
                Some((goal, Outcome::Failed(found))) => {
                    return Ok(Cause::Refused { node, goal: goal.to_string(), found: found.to_string() });
                }
                Some((_, Outcome::Vanished)) => return Ok(Cause::Vanished(node)),
                _ => {}
            }
            backend_changed = tokio::select! {
                changed = watch.changed() => {
                    changed?;
                    *looked = Looked::Not;
                    false
                }
                changed = backend_event(&mut backend) => changed.map(|()| true)?,
            };
        }
    };
    let watched = async {
        let ended: Result<Cause, Cause> = watched.await;
        match ended {
            Ok(cause) => cause,
            // A store that fails ends the work itself.
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        () = cancelled(cancel) => Cause::Aborted,
        cause = watched => cause,
    }
}

/// Waits for a state of the node at this path. Whoever calls cancels by dropping it.
pub(super) async fn for_state(
    client: &Client,
    path: &Path,
    (node, goal): (Node, Goal),
    limit: Duration,
) -> Result<Reached, Cause> {
    match wait(client, path, goal, limit, &CancellationToken::new()).await {
        Outcome::Reached(_) => Ok(Reached::Value),
        Outcome::Gone => Ok(Reached::Gone),
        Outcome::Failed(state) => {
            Err(Cause::Refused { node, goal: goal.to_string(), found: state.to_string() })
        }
        Outcome::Vanished => Err(Cause::Vanished(node)),
        Outcome::TimedOut { .. } => Err(Cause::TimedOut { node, goal: goal.to_string(), limit }),
        Outcome::Io(error) => Err(Cause::Store(error)),
        _ => Err(Cause::Aborted),
    }
}

impl Job<'_> {
    /// Waits for a node of a device that is ours.
    pub(super) async fn wait(
        &mut self,
        target: &Target,
        node: Node,
        until: Until,
        (limit, by_guest): (Duration, bool),
        cancel: Cancel<'_>,
    ) -> Result<Reached, Cause> {
        let client = &self.toolstack.client;
        let path = node_path(target, node)?;
        let mut watched = std::mem::take(&mut self.watched);
        let mut state = watched.state.take();
        // Asked for beside the wait's own, so that both are one for the store.
        let keep = async {
            if state.is_none() && node == Node::BackendState {
                state = client.watch(&path).await.ok();
            }
            std::future::pending::<Result<Reached, Cause>>().await
        };
        let waited = async {
            match until {
                Until::State(goal) => for_state(client, &path, (node, goal), limit).await,
                Until::Scripted => elsewhere::scripted(client, target, limit).await,
                Until::Removed => elsewhere::removed(client, target, limit).await,
            }
        };
        let closing = matches!(until, Until::State(goal) if goal == Goal::CLOSED);
        let waited = async {
            if let (true, Some(_), Some(survives)) = (closing, &self.ending, &self.model_survives) {
                // What the backend says meanwhile is no evidence, and its end is that of all that it serves. How long
                // that may take is for whoever ends it to say.
                survives.cancelled().await;
                return Err(Cause::TimedOut { node, goal: until.to_string(), limit });
            }
            // What the model does once the backend is closed the guest has no part in.
            let waited = if by_guest { self.unless_over(target, waited).await } else { waited.await };
            match waited {
                Ok(reached) if closing && reached != Reached::GuestOver => {
                    self.image_closed(target, reached).await
                }
                waited => waited,
            }
        };
        // Of a device that is to come up.
        let may_be_refused = target.is_remote() && until == Until::State(Goal::BACKEND_READY);
        let within = self.toolstack.limits.taken_up_elsewhere();
        let refused = async {
            if !may_be_refused {
                return std::future::pending().await;
            }
            tokio::select! {
                cause = elsewhere::refused(client, target) => cause,
                () = elsewhere::idles(client, target, within) => {
                    Cause::TimedOut { node, goal: until.to_string(), limit: within }
                }
            }
        };
        let ended = tokio::select! {
            biased;
            waited = waited => waited,
            ended = self.server_ended(target, closing) => ended,
            cause = lost(client, target, self.record.token, cancel, (None, &mut watched)) => Err(cause),
            cause = elsewhere::gone(self.toolstack, target) => Err(cause),
            cause = refused => Err(cause),
            never = keep => never,
        };
        watched.state = state;
        self.watched = watched;
        match ended {
            // The store removes the nodes that a domain had with it, and that is seen first.
            Err(Cause::Vanished(_)) => match elsewhere::is_gone(self.toolstack, target).await {
                Some(cause) => Err(cause),
                None => ended,
            },
            Ok(reached) if may_be_refused && target.runs_of_daemon() == 0 => {
                elsewhere::is_refused(client, target).await.map_or(Ok(reached), Err)
            }
            ended => ended,
        }
    }

    /// Ends a wait in which the guest has a part when it is over.
    async fn unless_over(
        &self,
        target: &Target,
        wait: impl Future<Output = Result<Reached, Cause>>,
    ) -> Result<Reached, Cause> {
        tokio::select! {
            biased;
            waited = wait => waited,
            () = facts::until(&*self.toolstack.facts, target.id().fe, Condition::is_over) => {
                Ok(Reached::GuestOver)
            }
        }
    }

    /// Waits until the device model has closed the image, or, where that cannot be seen, has removed the nodes of the
    /// backend, which it does shortly before.
    async fn image_closed(&self, target: &Target, reached: Reached) -> Result<Reached, Cause> {
        let Toolstack { client, limits, .. } = self.toolstack;
        match &self.image {
            Some(image) if image.closed(limits.close).await => Ok(reached),
            Some(_) => Ok(Reached::ImageOpen),
            None if target.is_of_model()
                && target.id().be_kind == BackendKind::Qdisk
                && reached == Reached::Value =>
            {
                let gone = |value: Option<&[u8]>| value.is_none().then_some(());
                let never = CancellationToken::new();
                match wait_until(client, &target.paths().backend, limits.unseen, &never, gone).await {
                    Ended::Io(error) => Err(Cause::Store(error)),
                    _ => Ok(reached),
                }
            }
            None => Ok(reached),
        }
    }

    /// Waits until whoever is to move the backend cannot do so any more, or has said that it will not.
    async fn server_ended(&self, target: &Target, closing: bool) -> Result<Reached, Cause> {
        if target.is_remote() {
            return std::future::pending().await;
        }
        if closing {
            let image = self.image.as_ref().map(|image| &image.process);
            return model::let_go(self.toolstack, target, self.ending.as_ref().or(image)).await;
        }
        let refused = async {
            match &self.model_log {
                Some(log) => {
                    Cause::DeviceModel { said: log.refusal(target).await, log: log.path().to_owned() }
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            cause = refused => Err(cause),
            gone = model::let_go(self.toolstack, target, None) => {
                gone.and(Err(Cause::NoDeviceModel(target.id().fe)))
            }
        }
    }

    /// Runs one of the scripts of an add; ends it early if the device is lost meanwhile.
    pub(super) async fn run_unless_lost(
        &mut self,
        target: &Target,
        index: usize,
        cancel: Cancel<'_>,
    ) -> Event {
        let stop = CancellationToken::new();
        let client = self.toolstack.client.clone();
        let token = self.record.token;
        let mut watched = std::mem::take(&mut self.watched);
        let ready = (Some(Goal::BACKEND_READY), &mut watched);
        let ran = {
            let mut run = pin!(self.run_add(target, index, &stop));
            let ended = tokio::select! {
                biased;
                ran = &mut run => Ok(ran),
                cause = lost(&client, target, token, cancel, ready) => Err(cause),
            };
            match ended {
                Ok(ran) => ran,
                Err(cause) => {
                    stop.cancel();
                    match run.await {
                        Event::Ran(Err(Cause::Aborted)) => Event::Ran(Err(cause)),
                        Event::NotRun(Cause::Aborted) => Event::NotRun(cause),
                        ran => ran,
                    }
                }
            }
        };
        self.watched = watched;
        ran
    }

    /// Waits until another operation has ended, or its owner is dead.
    pub(super) async fn await_owner(
        &mut self,
        which: Which,
        occupant: Occupant,
        take_over: bool,
        cancel: Cancel<'_>,
    ) -> Result<(), Cause> {
        let limit = self.toolstack.limits.owner;
        let left = limit.saturating_sub(self.owner_awaited.get_or_insert_with(Instant::now).elapsed());
        let client = &self.toolstack.client;
        let token = occupant.record.as_ref().map(|record| record.token);
        let released = async {
            let op = crate::DeviceId::new(which, self.toolstack.own).toolstack()?.join("op")?;
            let mut watch = client.watch(&op).await?;
            watch.changed().await?;
            if let Some(token) = token.filter(|_| take_over) {
                self.ask(&op, token).await?;
            }
            while let Some(text) = store::text(client.read_opt(&op).await?) {
                let now = self.occupant(text).await?;
                if !now.alive || now.record.map(|record| record.token) != token {
                    break;
                }
                tokio::select! {
                    changed = watch.changed() => drop(changed?),
                    () = sleep(LOOK) => {}
                }
            }
            Ok(())
        };
        tokio::select! {
            biased;
            () = cancelled(cancel) => Err(Cause::Aborted),
            released = released => released,
            () = deadline(left) => {
                if take_over && !occupant.seen {
                    // He was asked, and would have answered at once.
                    self.given_up = token;
                    return Ok(());
                }
                Err(Cause::Busy { occupant: Box::new(occupant.clone()), limit })
            }
        }
    }

    /// Asks the owner of this record to cancel his operation, if it is still his.
    async fn ask(&self, op: &Path, token: Token) -> Result<(), Cause> {
        let who = self
            .record
            .owner
            .as_ref()
            .map(|owner| format!("process {} of domain {}", owner.pid, owner.domid));
        let asked = &format!("{token} {}", who.unwrap_or_default());
        self.toolstack
            .client
            .transaction(|tx| async move {
                let record = store::text(tx.read_opt(op).await?);
                if Record::is_of(record.as_deref(), token) {
                    tx.write(&cancel_node(op)?, asked.clone()).await?;
                }
                Ok(())
            })
            .await
    }
}

fn node_path(target: &Target, node: Node) -> Result<Path, Cause> {
    let id = target.id();
    Ok(match node {
        Node::BackendState => target.paths().backend.join("state")?,
        Node::BackendDirectory => target.paths().backend.clone(),
        Node::HotplugStatus => target.paths().backend.join("hotplug-status")?,
        Node::DeviceModelState => Path::new(format!("/local/domain/{}/device-model/{}/state", id.be, id.fe))?,
    })
}
