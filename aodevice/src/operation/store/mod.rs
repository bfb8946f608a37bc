//! The store's side of the steps: reads what a decision needs and writes what it says, in one
//! transaction each.

mod creation;
mod look;
mod others;
mod removal;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::future::try_join4;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::debug;
use xen_devstate::XenbusState;
use xs_client::{Client, ErrorCode, Op, Path, Request, Requests, Transaction};

use super::cleanup::{self, CleanupRoots};
use super::record::Record;
use super::steps::{self, Change, Seen};
use super::wait::Cancel;
use super::{Target, saved};
use crate::kind::Recorded;
use crate::{Cause, Paths};

pub(crate) use self::creation::{Written, create};
pub(crate) use self::look::{Depth, keys_of, keys_since, look, look_beside, named};
pub(crate) use self::others::{nodes_of_others, unfinished_others};
pub(crate) use self::removal::{PASSING, Probed, close, destroy, identify, probe, recall, remove_theirs};

pub(crate) fn text(value: Option<bytes::Bytes>) -> Option<String> {
    value.and_then(|value| String::from_utf8(value.into()).ok())
}

/// What is requested for what a decision says.
pub(crate) async fn requests(
    tx: &Transaction,
    target: &Target,
    record: &Record,
    seen: &Seen,
    changes: &[Change],
) -> Result<Vec<Request>, Cause> {
    let Paths { backend, toolstack, .. } = target.paths();
    let write = |path: Path, value: String| Request::Write { path, value: value.into() };
    let mut requests = Vec::with_capacity(changes.len());
    for change in changes {
        requests.push(match change {
            Change::Record(stage) => write(toolstack.join("op")?, record.at(*stage).to_string()),
            Change::Release => Request::Rm(toolstack.join("op")?),
            Change::DeleteFrontend => continue,
            Change::Offline => write(backend.join("online")?, "0".to_owned()),
            Change::TellToClose => write(backend.join("state")?, XenbusState::Closing.digits().to_owned()),
            Change::SayClosed => write(backend.join("state")?, XenbusState::Closed.digits().to_owned()),
            Change::ForgetError => Request::Rm(backend.join("hotplug-error")?),
            Change::RemoveTree => {
                requests.extend(Trees::look(tx, target, seen.home).await?.removal());
                continue;
            }
        });
    }
    Ok(requests)
}

/// What of a device's three directories and of its copy is to be removed, with the parents that they leave empty.
pub(crate) struct Trees {
    extents: [Vec<Path>; 4],
    /// Whether more is left of a script's run.
    aside: bool,
}

impl Trees {
    pub(crate) async fn look(tx: &Requests, target: &Target, home: bool) -> Result<Self, Cause> {
        let id = target.id();
        let Paths { frontend, backend, toolstack, .. } = target.paths();
        let roots = CleanupRoots::new(&id, (home, target.is_remote()))?;
        let (frontend, toolstack, backend, (copy, aside)) = try_join4(
            cleanup::extent(tx, frontend, &roots.frontend),
            cleanup::extent(tx, toolstack, &roots.toolstack),
            cleanup::extent(tx, backend, &roots.backend),
            saved::extent(tx, target),
        )
        .await?;
        Ok(Self { extents: [frontend, toolstack, backend, copy], aside })
    }

    pub(crate) fn removal(self) -> impl Iterator<Item = Request> {
        self.extents.into_iter().flatten().map(Request::Rm)
    }
}

/// How often, and for how long, a transaction is tried that touches what a guest or a driver domain may write to.
const TRIES: u32 = 8;
const PATIENCE: Duration = Duration::from_secs(1);

/// The attempts at a transaction.
///
/// A guest owns FE, and a driver domain BE. Who writes there all the time makes every transaction conflict that touches it,
/// and none of ours may depend on that. So after some attempts a transaction leaves such a directory alone, and it is read
/// and written beside it: the harm of what comes in between is the writer's own.
#[derive(Debug)]
pub(crate) struct Tries {
    tried: AtomicU32,
    begun: Instant,
}

impl Default for Tries {
    fn default() -> Self {
        Self { tried: AtomicU32::new(0), begun: Instant::now() }
    }
}

/// An attempt.
#[derive(Clone, Copy, Debug)]
struct Try {
    is_first: bool,
    /// It is to leave alone what others may write to.
    beside: bool,
}

impl Tries {
    fn next(&self) -> Try {
        let tried = self.tried.fetch_add(1, Ordering::Relaxed);
        Try { is_first: tried == 0, beside: tried >= TRIES || tried > 0 && self.begun.elapsed() >= PATIENCE }
    }

    /// Where this attempt reads the backend's directory.
    fn of_backend<'a>(&self, client: &'a Client, tx: &'a Transaction, remote: bool) -> &'a Requests {
        if self.next().beside && remote { client } else { tx }
    }
}

/// Says that the backend has closed, for a device model that has ended.
pub(crate) async fn close_for_server(
    client: &Client,
    target: &Target,
    record: &Record,
    cancel: Cancel<'_>,
) -> Result<(), Cause> {
    let decide = |seen: &Seen| Ok(((), steps::close_for_server(seen, record.token)?));
    // It mostly has said so itself, or removed its directory, which is asked for with all else.
    let seen = look(client, &target.id(), target.paths(), Depth::Made).await?;
    if let Ok(((), changes)) = decide(&seen)
        && changes.is_empty()
    {
        return Ok(());
    }
    step(client, target, record, (cancel, Depth::Standing), decide).await
}

/// One transaction that looks, decides and writes.
pub(crate) async fn step<T>(
    client: &Client,
    target: &Target,
    record: &Record,
    (cancel, depth): (Cancel<'_>, Depth),
    decide: impl Fn(&Seen) -> Result<(T, Vec<Change>), Cause>,
) -> Result<T, Cause> {
    step_and(client, target, record, (cancel, depth), None, decide).await
}

/// The same, with one request more.
pub(crate) async fn step_and<T>(
    client: &Client,
    target: &Target,
    record: &Record,
    (cancel, depth): (Cancel<'_>, Depth),
    also: Option<Request>,
    decide: impl Fn(&Seen) -> Result<(T, Vec<Change>), Cause>,
) -> Result<T, Cause> {
    let (decide, also, tries) = (&decide, &also, &Tries::default());
    transact(client, |tx| async move {
        if cancel.is_some_and(CancellationToken::is_cancelled) {
            return Err(Cause::Aborted);
        }
        let of_backend = tries.of_backend(client, &tx, target.is_remote());
        let seen = look_beside((&tx, of_backend), &target.id(), target.paths(), depth).await?;
        let (result, changes) = decide(&seen)?;
        let mut requests = requests(&tx, target, record, &seen, &changes).await?;
        requests.extend(also.clone());
        Ok((result, requests))
    })
    .await
}

/// What a step decides, if it would write nothing: then it needs no transaction.
pub(crate) async fn without_change<T>(
    client: &Client,
    target: &Target,
    depth: Depth,
    decide: impl Fn(&Seen) -> Result<(T, Vec<Change>), Cause>,
) -> Result<Option<T>, Cause> {
    let seen = look(client, &target.id(), target.paths(), depth).await?;
    let (outcome, changes) = decide(&seen)?;
    Ok(changes.is_empty().then_some(outcome))
}

/// Adds a key to BE that the backend needs and the script did not write, unless it is there by now. A
/// device that is not ours any more, or whose backend is not ready, is left alone: a write would bring a
/// directory back that is gone.
pub(crate) async fn complete(
    client: &Client,
    target: &Target,
    record: &Record,
    (key, value): (&str, &str),
) -> Result<(), Cause> {
    let node = &target.paths().backend.join(key)?;
    transact(client, |tx| async move {
        let seen = look(&tx, &target.id(), target.paths(), Depth::Standing).await?;
        steps::is_ready(&seen, record.token)?;
        let missing = tx.read_opt(node).await?.is_none();
        let write = Request::Write { path: node.clone(), value: value.to_owned().into() };
        Ok(((), missing.then_some(write).into_iter().collect()))
    })
    .await
}

/// A batch of writes of one directory's keys.
pub(crate) fn writes(directory: &Path, keys: &Recorded) -> Result<Vec<Request>, xs_client::Error> {
    let write = |(key, value): (&String, &String)| {
        Ok(Request::Write { path: directory.join(key)?, value: value.clone().into() })
    };
    keys.iter().map(write).collect()
}

/// How often a transaction is tried again that failed in the middle, and not at its commit.
const ATTEMPTS: u32 = 24;

/// A transaction that looks and says what is to be requested then. It is also tried again when it failed in the
/// middle: a store refuses a removal in a transaction whose view others have changed, with errors that elsewhere mean
/// something else.
pub(crate) async fn transact<T, F: Future<Output = Result<(T, Vec<Request>), Cause>>>(
    client: &Client,
    body: impl Fn(Transaction) -> F,
) -> Result<T, Cause> {
    let body = |tx: Transaction| {
        // Boxed, since every operation holds this future.
        let decided = Box::pin(body(tx.clone()));
        async move {
            let (outcome, requests) = decided.await?;
            // Of several none may be left out: they are seen done before the commit. A single one goes with it.
            if requests.len() == 1 {
                return Ok((outcome, requests));
            }
            tx.all(requests).await?;
            Ok((outcome, Vec::new()))
        }
    };
    for attempt in 0..ATTEMPTS {
        match client.decide(body).await {
            Err(Cause::Store(error)) if is_half_frozen(&error) => {
                debug!(%error, attempt, "the transaction failed in the middle");
                sleep(Duration::from_millis(fastrand::u64(1..=1 << attempt.min(7)))).await;
            }
            result => return result,
        }
    }
    client.decide(body).await
}

fn is_half_frozen(error: &xs_client::Error) -> bool {
    match error {
        xs_client::Error::Store { op, code, .. } => {
            *code == ErrorCode::EIO || (*op == Op::RM && *code == ErrorCode::EINVAL)
        }
        _ => false,
    }
}
