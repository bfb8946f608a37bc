//! The store's side of the steps: reads what a decision needs and writes what it says, in one
//! transaction each.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use devstate::{StateValue, XenbusState};
use futures_util::future::try_join3;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use xs_client::{Client, DomId, ErrorCode, Op, Path, Request, Requests, Transaction};

use super::cleanup::{self, CleanupRoots};
use super::observe::{Texts, shown};
use super::record::Record;
use super::said::Said;
use super::steps::{self, Change, Obstacle, Seen};
use super::wait::Cancel;
use super::{Target, files, place, saved};
use crate::kind::Recorded;
use crate::machine::{Claim, Closing, Destroyed, Frontend};
use crate::{Cause, Device, DeviceId, Guest, Kind, Paths, Which};

pub(crate) fn text(value: Option<bytes::Bytes>) -> Option<String> {
    value.and_then(|value| String::from_utf8(value.into()).ok())
}

/// How much of a device is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// Whose it is, and where its backend stands. When many devices of a domain go at once, requests are what takes
    /// the time.
    Standing,
    /// Also what scripts have made and said.
    All,
}

/// Reads what there is of a device, but for what its guest can change.
pub(crate) async fn look(store: &Requests, kind: Kind, paths: &Paths) -> Result<Seen, xs_client::Error> {
    look_at(store, kind, paths, Depth::All).await
}

/// Reads whose a device is, and where its backend stands.
pub(crate) async fn look_whose(
    store: &Requests,
    kind: Kind,
    paths: &Paths,
) -> Result<Seen, xs_client::Error> {
    look_at(store, kind, paths, Depth::Standing).await
}

async fn look_at(
    store: &Requests,
    kind: Kind,
    paths: &Paths,
    depth: Depth,
) -> Result<Seen, xs_client::Error> {
    let Paths { home, backend, toolstack, .. } = paths;
    let mut keys = vec![home.clone(), toolstack.clone(), toolstack.join("op")?];
    keys.extend([backend.clone(), backend.join("state")?]);
    if depth == Depth::All {
        keys.extend(Said::nodes(backend)?);
        for key in kind.info().made {
            keys.push(backend.join(key)?);
        }
    }
    let mut values = store.read_many(&keys).await?.into_iter();
    let mut next = || values.next().flatten();
    Ok(Seen {
        home: next().is_some(),
        lx: next().is_some(),
        op: next().map(|op| String::from_utf8_lossy(&op).into_owned()),
        fe: false,
        fe_state: None,
        be: next().is_some(),
        be_state: next().as_deref().map(StateValue::parse),
        unfinished: false,
        said: Said::from_values(next(), next()),
        made: values.any(|made| made.is_some()),
        held: false,
    })
}

/// Writes what a decision says.
pub(crate) async fn apply(
    tx: &Transaction,
    target: &Target,
    record: &Record,
    seen: &Seen,
    changes: &[Change],
) -> Result<(), Cause> {
    let Paths { frontend, backend, toolstack, .. } = target.paths();
    let roots = CleanupRoots::new(&target.id(), seen.home)?;
    for change in changes {
        match change {
            Change::Record(stage) => tx.write(&toolstack.join("op")?, record.at(*stage).to_string()).await?,
            Change::Release => tx.rm(&toolstack.join("op")?).await?,
            Change::DeleteFrontend => {}
            Change::Offline => tx.write(&backend.join("online")?, "0").await?,
            Change::TellToClose => tx.write(&backend.join("state")?, XenbusState::Closing.digits()).await?,
            Change::SayClosed => tx.write(&backend.join("state")?, XenbusState::Closed.digits()).await?,
            Change::ForgetError => tx.rm(&backend.join("hotplug-error")?).await?,
            Change::RemoveTree => {
                // They have no parents in common. Boxed, since every operation holds this future.
                let frontend = Box::pin(cleanup::remove(tx, frontend, &roots.frontend));
                let toolstack = Box::pin(cleanup::remove(tx, toolstack, &roots.toolstack));
                let backend = Box::pin(cleanup::remove(tx, backend, &roots.backend));
                try_join3(frontend, toolstack, backend).await?;
            }
        }
    }
    Ok(())
}

/// What came of an attempt to write a device's tree.
pub(crate) enum Written {
    Done(Target),
    Blocked(Which, Obstacle),
}

/// Writes the device's tree, if nothing stands in the way.
///
/// Once everything is written, `written` holds the device, and the error texts that stood there before: if
/// the outcome is an error then, it is that of the commit, and if the store gave no answer it may have been
/// carried out.
pub(crate) async fn create(
    client: &Client,
    (fe, own): (DomId, DomId),
    device: &Device,
    guest: &Guest,
    record: &Record,
    written: &Mutex<Option<(Target, Texts)>>,
    cancel: Cancel<'_>,
) -> Result<Written, Cause> {
    let set = |target| *written.lock().unwrap_or_else(PoisonError::into_inner) = target;
    let fixed = device.devid().map(|devid| {
        let which = Which { fe, kind: device.kind(), devid };
        DeviceId::with_backend(which, own, device.as_spec().backend(guest))
    });
    let unfinished = match fixed {
        Some(id) => saved::is_unfinished(client, id.kind, &id.paths()?).await?,
        None => false,
    };
    transact(client, |tx| async move {
        set(None);
        // Between attempts is the one place to stop without a trace.
        if cancel.is_some_and(CancellationToken::is_cancelled) {
            return Err(Cause::Aborted);
        }
        let (id, seen) = place::find(&tx, (fe, own), device, guest).await?;
        let (paths, seen) = (id.paths()?, Seen { unfinished, ..seen });
        if let Err(obstacle) = steps::create(&seen) {
            return Ok(Written::Blocked(id.which(), obstacle));
        }
        place::check(&tx, &id, &paths, device).await?;
        // Not in the transaction: the guest can write there.
        let stood = Texts::read(client, &id, &paths).await?.without_script();
        let fe = tx.read_opt(&paths.frontend).await?.is_some();
        let stale = [(fe, &paths.frontend), (seen.be, &paths.backend)];
        for (_, path) in stale.into_iter().filter(|(there, _)| *there) {
            cleanup::remove_only(&tx, path).await?;
        }
        let tree = device.as_spec().tree(&id, guest);
        tx.all(tree.requests(&id, &paths, &record.to_string())?).await?;
        let target = Target::new(id, tree.backend.recorded())?;
        set(Some((target.clone(), stood)));
        Ok(Written::Done(target))
    })
    .await
}

/// What is known of a device, as a removal needs it.
pub(crate) struct Probed {
    pub(crate) target: Target,
    pub(crate) op: Option<String>,
}

/// What serves a device that is there, by the toolstack's record, or else by whose backend has a directory for it.
async fn identify(client: &Client, own: DomId, which: Which) -> Result<DeviceId, Cause> {
    let backends = which.kind.info().backends.iter();
    let ids: Vec<_> = backends.map(|backend| DeviceId::with_backend(which, own, *backend)).collect();
    let mut nodes = vec![ids[0].toolstack()?.join("backend")?];
    for id in &ids {
        nodes.push(id.backend()?);
    }
    let seen = client.read_many(&nodes).await?;
    let recorded = seen[0].as_ref().and_then(|backend| Path::new(backend).ok());
    if let Some(id) =
        recorded.and_then(|backend| DeviceId::served_at(which, &backend)).filter(|id| id.be == own)
    {
        return Ok(id);
    }
    let there = ids.iter().zip(&seen[1..]).find_map(|(id, backend)| backend.as_ref().map(|_| *id));
    Ok(there.unwrap_or(ids[0]))
}

/// Reads what is recorded of a device. Neither the guest nor a backend of another domain is trusted
/// with where its directories are and which script is run.
pub(crate) async fn probe(client: &Client, own: DomId, which: Which, adopt: bool) -> Result<Probed, Cause> {
    let id = identify(client, own, which).await?;
    let paths = id.paths()?;
    let unfinished = saved::is_unfinished(client, which.kind, &paths).await?;
    let seen = Seen { unfinished, ..look(client, which.kind, &paths).await? };
    if !seen.unfinished && !seen.lx && !seen.be {
        // Whoever removed the device knew nothing of the copy.
        saved::forget(client, &paths, &Recorded::new()).await?;
    }
    let recorded = recorded(client, &id, &paths, &seen, adopt).await?;
    Ok(Probed { target: Target::new(id, recorded)?, op: seen.op })
}

/// What is recorded of a device that is there: by whoever added it, and by its script.
async fn recorded(
    store: &Requests,
    id: &DeviceId,
    paths: &Paths,
    seen: &Seen,
    adopt: bool,
) -> Result<Recorded, Cause> {
    let mut recorded = if seen.lx { keys_of(store, &paths.toolstack).await? } else { Recorded::new() };
    match recorded.remove("backend") {
        Some(backend) if backend == *paths.backend => {}
        Some(other) => return Err(Cause::ForeignBackend(format!("at {}", shown(other.as_bytes())))),
        // An entry of somebody else; ours has a record if nothing else.
        None if seen.lx && seen.op.is_none() => return Err(Cause::ForeignBackend("not recorded".to_owned())),
        None if !seen.be && seen.unfinished => recorded = keys_of(store, &paths.saved).await?,
        None if !seen.be && seen.home => return Err(Cause::NoSuchDevice),
        None if !seen.be => return Err(Cause::NoSuchDomain(id.fe.to_string())),
        None => {
            if let Some(state) = seen.alive().filter(|_| seen.home && seen.op.is_none() && !adopt) {
                return Err(Cause::Unrecorded(state));
            }
            recorded = keys_of(store, &paths.backend).await?;
        }
    }
    saved::merge(store, id, paths, &mut recorded).await?;
    recorded
        .retain(|key, _| !matches!(key.as_str(), "op" | "frontend" | "state" | "online" | "hotplug-error"));
    Ok(recorded)
}

/// Claims a device and tells it to close. Whatever is known of it is read again: who removed it and
/// added another one since it was probed may have recorded another script.
pub(crate) async fn close(
    client: &Client,
    target: &Target,
    record: &Record,
    (claim, frontend, held): (&Claim, Frontend, bool),
    cancel: Cancel<'_>,
) -> Result<Closing, Cause> {
    let (id, paths) = (target.id(), target.paths());
    let unfinished = saved::is_unfinished(client, id.kind, paths).await?;
    let of_guest = &client.read_many(&[paths.frontend.clone(), paths.frontend.join("state")?]).await?;
    let (closing, changes) = transact(client, |tx| async move {
        if cancel.is_some_and(CancellationToken::is_cancelled) {
            return Err(Cause::Aborted);
        }
        let mut seen = Seen { unfinished, held, ..look(&tx, id.kind, paths).await? };
        seen.fe = of_guest[0].is_some();
        seen.fe_state = of_guest[1].as_deref().map(StateValue::parse);
        let (closing, changes) = steps::close(&seen, record.token, claim, frontend);
        if matches!(claim, Claim::First(_)) && !changes.is_empty() {
            // It was to be removed however it was made, and that was looked at before.
            let adopt = true;
            if recorded(&tx, &id, paths, &seen, adopt).await? != *target.recorded() {
                return Ok((Closing::Changed, Vec::new()));
            }
        }
        apply(&tx, target, record, &seen, &changes).await?;
        Ok::<_, Cause>((closing, changes))
    })
    .await?;
    if changes.contains(&Change::DeleteFrontend) {
        cleanup::remove_only(client, &paths.frontend).await?;
    }
    if changes.contains(&Change::RemoveTree) {
        saved::forget(client, paths, target.recorded()).await?;
    }
    Ok(closing)
}

/// Removes the device's tree, if nobody else has it. The guest's directory goes first: as long as it is
/// there, the guest can make a transaction that removes it conflict.
pub(crate) async fn destroy(client: &Client, target: &Target, record: &Record) -> Result<Destroyed, Cause> {
    let seen = look_whose(client, target.id().kind, target.paths()).await?;
    if steps::destroy(&seen, record.token).0 == Destroyed::Gone {
        cleanup::remove_only(client, &target.paths().frontend).await?;
    }
    let decide = |seen: &Seen| Ok(steps::destroy(seen, record.token));
    let destroyed = step_at(client, target, record, (None, Depth::Standing), decide).await?;
    if destroyed == Destroyed::Gone {
        saved::forget(client, target.paths(), target.recorded()).await?;
    }
    Ok(destroyed)
}

/// The keys of a directory that hold text.
pub(crate) async fn keys_of(store: &Requests, directory: &Path) -> Result<Recorded, Cause> {
    let names = store.directory_or_empty(directory).await?;
    let paths: Vec<Path> = names.iter().map(|name| directory.join(name)).collect::<Result<_, _>>()?;
    let values = store.read_many(&paths).await?;
    Ok(names.into_iter().zip(values).filter_map(|(name, value)| Some((name, text(value)?))).collect())
}

/// Says that the backend has closed, for a device model that has ended.
pub(crate) async fn close_for_server(
    client: &Client,
    target: &Target,
    record: &Record,
    cancel: Cancel<'_>,
) -> Result<(), Cause> {
    let decide = |seen: &Seen| Ok(((), steps::close_for_server(seen, record.token)?));
    step_at(client, target, record, (cancel, Depth::Standing), decide).await
}

/// One transaction that looks, decides and writes.
pub(crate) async fn step<T>(
    client: &Client,
    target: &Target,
    record: &Record,
    cancel: Cancel<'_>,
    decide: impl Fn(&Seen) -> Result<(T, Vec<Change>), Cause>,
) -> Result<T, Cause> {
    step_at(client, target, record, (cancel, Depth::All), decide).await
}

async fn step_at<T>(
    client: &Client,
    target: &Target,
    record: &Record,
    (cancel, depth): (Cancel<'_>, Depth),
    decide: impl Fn(&Seen) -> Result<(T, Vec<Change>), Cause>,
) -> Result<T, Cause> {
    let decide = &decide;
    transact(client, |tx| async move {
        if cancel.is_some_and(CancellationToken::is_cancelled) {
            return Err(Cause::Aborted);
        }
        let seen = look_at(&tx, target.id().kind, target.paths(), depth).await?;
        let (result, changes) = decide(&seen)?;
        apply(&tx, target, record, &seen, &changes).await?;
        Ok(result)
    })
    .await
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
    transact(client, |tx| async move {
        steps::is_ready(&look(&tx, target.id().kind, target.paths()).await?, record.token)?;
        let node = target.paths().backend.join(key)?;
        if tx.read_opt(&node).await?.is_none() {
            tx.write(&node, value.to_owned()).await?;
        }
        Ok(())
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

/// The devices that have directories below this one of their kind, as `<fe>/<devid>`.
async fn devices_below(client: &Client, parent: &Path) -> Result<Vec<String>, Cause> {
    let mut devices = Vec::new();
    for fe in client.directory_or_empty(parent).await? {
        let devids = client.directory_or_empty(&parent.join(&fe)?).await?;
        devices.extend(devids.into_iter().map(|devid| format!("{fe}/{devid}")));
    }
    Ok(devices)
}

/// The `node`s of the devices of the target's kind in this backend's domain; of the target itself only if
/// its directory is another's by now. One that was saved with the kernel's count names that use alone.
pub(crate) async fn nodes_of_others(
    client: &Client,
    target: &Target,
    is_ours: bool,
) -> Result<Vec<String>, Cause> {
    let id = target.id();
    let kind = id.be_kind;
    let backends = Path::new(format!("/local/domain/{}/backend/{kind}", id.be))?;
    let copies = saved::of_kind(kind)?;
    let mut devices = BTreeSet::from_iter(devices_below(client, &backends).await?);
    devices.extend(devices_below(client, &copies).await?);
    let mut paths = Vec::new();
    for device in devices {
        let (backend, saved) = (backends.join(&device)?, copies.join(&device)?);
        if backend != target.paths().backend {
            paths.extend([backend.join("node")?, saved.join("node")?, saved.join(saved::SEQUENCE)?]);
        }
    }
    let seen: Vec<Option<String>> = client.read_many(&paths).await?.into_iter().map(text).collect();
    let other =
        if is_ours { None } else { text(client.read_opt(&target.paths().backend.join("node")?).await?) };
    let names = seen.chunks(3).filter_map(|device| match device {
        [Some(node), Some(saved), Some(counted)] if node == saved => {
            files::sequence(node).is_none_or(|now| now == *counted).then_some(node)
        }
        [Some(node), ..] => Some(node),
        // Its backend is gone, and what its script made is not.
        [None, Some(saved), Some(counted)] => (files::sequence(saved)? == *counted).then_some(saved),
        _ => None,
    });
    Ok(names.cloned().chain(other).collect())
}

/// The copies, and the operation records, of other devices whose scripts run, or died, that may have made
/// something of the same file and not have told of it yet.
pub(crate) async fn unfinished_others(
    client: &Client,
    target: &Target,
    origin: &str,
) -> Result<Vec<(Path, Option<String>)>, Cause> {
    let id = target.id();
    let copies = saved::of_kind(id.be_kind)?;
    let mut records = Vec::new();
    for device in devices_below(client, &copies).await? {
        let saved = copies.join(&device)?;
        let Some((fe, devid)) = device.split_once('/').filter(|_| saved != target.paths().saved) else {
            continue;
        };
        let op = Path::new(format!("/libxl/{fe}/device/{}/{devid}/op", id.kind))?;
        let keys = [saved.join(saved::BEFORE)?, saved.join(saved::FILE)?, op];
        let mut seen = client.read_many(&keys).await?.into_iter().map(text);
        if let (Some(Some(_)), Some(Some(of)), Some(op)) = (seen.next(), seen.next(), seen.next())
            && of == origin
        {
            records.push((saved, op));
        }
    }
    Ok(records)
}

/// How often a transaction is tried again that failed in the middle, and not at its commit.
const ATTEMPTS: u32 = 24;

/// A transaction that is also tried again when it failed in the middle: a store refuses a removal in a
/// transaction whose view others have changed, with errors that elsewhere mean something else.
pub(crate) async fn transact<T, F: Future<Output = Result<T, Cause>>>(
    client: &Client,
    body: impl Fn(Transaction) -> F,
) -> Result<T, Cause> {
    for attempt in 0..ATTEMPTS {
        match client.transaction(&body).await {
            Err(Cause::Store(error)) if is_half_frozen(&error) => {
                debug!(%error, attempt, "the transaction failed in the middle");
                sleep(Duration::from_millis(fastrand::u64(1..=1 << attempt.min(7)))).await;
            }
            result => return result,
        }
    }
    client.transaction(&body).await
}

fn is_half_frozen(error: &xs_client::Error) -> bool {
    match error {
        xs_client::Error::Store { op, code, .. } => {
            *code == ErrorCode::EIO || (*op == Op::RM && *code == ErrorCode::EINVAL)
        }
        _ => false,
    }
}
