//! Removing a device: finding what is recorded of it, claiming it, and removing its tree.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio_util::sync::CancellationToken;
use xen_devstate::StateValue;
use xs_client::{Client, DomId, Path, Request, Requests};

use super::{Depth, Trees, Tries, keys_of, keys_since, look, look_beside, named, requests, transact};
use crate::kind::Recorded;
use crate::machine::{Claim, Closing, Destroyed, Frontend};
use crate::operation::observe::shown;
use crate::operation::record::Record;
use crate::operation::steps::{self, Change, Seen};
use crate::operation::wait::Cancel;
use crate::operation::{Target, cleanup, saved};
use crate::{Cause, DeviceId, Paths, RunBy, Which};

/// What is known of a device, as a removal needs it.
pub(crate) struct Probed {
    pub(crate) target: Target,
    pub(crate) op: Option<String>,
}

/// What serves a device that is there, by the toolstack's record, or else by whose backend has a directory for it.
pub(crate) async fn identify(client: &Client, own: DomId, which: Which) -> Result<DeviceId, Cause> {
    let backends = which.kind.info().backends.iter();
    let ids: Vec<_> = backends.map(|backend| DeviceId::with_backend(which, own, *backend)).collect();
    let mut nodes = vec![ids[0].toolstack()?.join("backend")?];
    for id in &ids {
        nodes.push(id.backend()?);
    }
    let seen = client.read_many(&nodes).await?;
    let recorded = seen[0].as_ref().and_then(|backend| Path::new(backend).ok());
    if let Some(id) = recorded.and_then(|backend| DeviceId::served_at(which, &backend)) {
        return Ok(id);
    }
    let there = ids.iter().zip(&seen[1..]).find_map(|(id, backend)| backend.as_ref().map(|_| *id));
    match there {
        Some(id) => Ok(id),
        None if seen[0].is_some() => Ok(ids[0]),
        None => Ok(in_driver_domains(client, own, which).await?.unwrap_or(ids[0])),
    }
}

/// The device by a directory of a backend in another domain, where the toolstack has no record of it any more.
async fn in_driver_domains(client: &Client, own: DomId, which: Which) -> Result<Option<DeviceId>, Cause> {
    let domids = client.directory_or_empty(&Path::new("/local/domain")?).await?;
    let domids = domids.iter().filter_map(|domid| domid.parse().ok()).filter(|domid| *domid != own);
    let backends = which.kind.info().backends;
    let ids: Vec<_> = domids
        .flat_map(|be| backends.iter().map(move |backend| DeviceId::with_backend(which, be, *backend)))
        .collect();
    let nodes: Vec<Path> = ids.iter().map(DeviceId::backend).collect::<Result<_, _>>()?;
    let seen = client.read_many(&nodes).await?;
    Ok(ids.into_iter().zip(seen).find_map(|(id, backend)| backend.map(|_| id)))
}

/// Reads what is recorded of a device. Neither the guest nor a backend of another domain is trusted
/// with where its directories are and which script is run.
pub(crate) async fn probe(
    client: &Client,
    id: DeviceId,
    run_by: RunBy,
    adopt: bool,
) -> Result<Probed, Cause> {
    let paths = id.paths()?;
    let none = Recorded::new();
    let (seen, sources) = tokio::try_join!(
        async { Ok(look(client, &id, &paths, Depth::Made).await?) },
        Sources::read(client, (&id, run_by), &paths, &none),
    )?;
    let seen = Seen { unfinished: sources.is_unfinished(&id), ..seen };
    if run_by == RunBy::Toolstack && !seen.unfinished && !seen.lx && !seen.be {
        // Whoever removed the device knew nothing of the copy.
        saved::forget(client, &id, &paths, None).await?;
    }
    let recorded = sources.recorded(client, (&id, run_by), &paths, &seen, adopt).await?;
    Ok(Probed { target: Target::new(id, recorded)?.with_scripts_run_by(run_by), op: seen.op })
}

/// The same of a device that may be gone but for the copy that was saved of it, and for somebody who wants to know
/// alone: nothing is forgotten.
pub(crate) async fn recall(client: &Client, id: DeviceId) -> Result<Probed, Cause> {
    let paths = id.paths()?;
    let (none, run_by) = (Recorded::new(), RunBy::Toolstack);
    let (seen, sources) = tokio::try_join!(
        async { Ok(look(client, &id, &paths, Depth::Made).await?) },
        Sources::read(client, (&id, run_by), &paths, &none),
    )?;
    let seen = Seen { unfinished: sources.saved.copy.is_some(), ..seen };
    let recorded = sources.recorded(client, (&id, run_by), &paths, &seen, true).await?;
    Ok(Probed { target: Target::new(id, recorded)?, op: seen.op })
}

/// Keys that say nothing of what a device is.
pub(crate) const PASSING: [&str; 5] = ["op", "frontend", "state", "online", "hotplug-error"];

/// Where it stands what is recorded of a device.
struct Sources {
    toolstack: Recorded,
    saved: saved::Found,
}

impl Sources {
    /// Reads them. Of a device that has no script only what whoever removes it has to know. `known`: what is likely
    /// to be there.
    async fn read(
        store: &Requests,
        (id, run_by): (&DeviceId, RunBy),
        paths: &Paths,
        known: &Recorded,
    ) -> Result<Self, Cause> {
        if !id.be_kind.is_scripted() {
            let names = ["backend", "params"].map(str::to_owned).to_vec();
            return Ok(Self {
                toolstack: named(store, &paths.toolstack, names).await?,
                saved: saved::Found::default(),
            });
        }
        // Their values may have changed. What the script made never stands there.
        let made = id.kind.info().made;
        let of_tree = |key: &&str| !made.contains(key) && !saved::is_own(key);
        let asked: Vec<&str> = known.keys().map(String::as_str).filter(of_tree).chain(["backend"]).collect();
        let (none, is_needless) = (Recorded::new(), |key: &str| PASSING.contains(&key));
        let toolstack = keys_since(store, &paths.toolstack, &none, &asked, is_needless);
        if run_by != RunBy::Toolstack {
            // A copy is of a device whose backend is in this domain.
            return Ok(Self { toolstack: toolstack.await?, saved: saved::Found::default() });
        }
        let (toolstack, saved) = tokio::try_join!(toolstack, saved::Found::read(store, paths))?;
        Ok(Self { toolstack, saved })
    }

    fn is_unfinished(&self, id: &DeviceId) -> bool {
        saved::is_unfinished(id, self.saved.copy.as_ref())
    }

    /// What is recorded of a device that is there: by whoever added it, and by its script.
    async fn recorded(
        self,
        store: &Requests,
        (id, run_by): (&DeviceId, RunBy),
        paths: &Paths,
        seen: &Seen,
        adopt: bool,
    ) -> Result<Recorded, Cause> {
        let mut recorded = self.toolstack;
        match recorded.remove("backend") {
            Some(backend) if backend == *paths.backend => {}
            Some(other) => return Err(Cause::ForeignBackend(format!("at {}", shown(other.as_bytes())))),
            // An entry of somebody else; ours has a record if nothing else.
            None if seen.lx && seen.op.is_none() => {
                return Err(Cause::ForeignBackend("not recorded".to_owned()));
            }
            None if !seen.be && seen.unfinished => recorded = self.saved.copy.clone().unwrap_or_default(),
            None if !seen.be && seen.home => return Err(Cause::NoSuchDevice),
            None if !seen.be => return Err(Cause::NoSuchDomain(id.fe.to_string())),
            None => {
                if let Some(state) = seen.alive().filter(|_| seen.home && seen.op.is_none() && !adopt) {
                    return Err(Cause::Unrecorded(state));
                }
                // What a driver domain has written there is believed of nothing.
                if run_by == RunBy::Toolstack {
                    recorded = keys_of(store, &paths.backend).await?;
                }
            }
        }
        saved::merge(id, self.saved.trusted(seen.home), &mut recorded);
        recorded.retain(|key, _| !PASSING.contains(&key.as_str()));
        Ok(recorded)
    }
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
    let (id, paths, run_by) = (target.id(), target.paths(), target.run_by());
    // Not in the transaction: the guest can write there.
    let of_guest = &[paths.frontend.clone(), paths.frontend.join("state")?];
    let is_first = matches!(claim, Claim::First(_));
    let tries = &Tries::default();
    let (closing, left, told): (_, _, Vec<_>) = transact(client, |tx| async move {
        if cancel.is_some_and(CancellationToken::is_cancelled) {
            return Err(Cause::Aborted);
        }
        let sources = async {
            let read = Sources::read(&tx, (&id, run_by), paths, target.recorded());
            if is_first { read.await.map(Some) } else { Ok(None) }
        };
        // The first attempt takes the guest's directory with it. A guest that writes there makes it conflict, so the next
        // ones leave it for afterwards.
        let this = tries.next();
        let takes = frontend != Frontend::Keep && this.is_first;
        let beside = target.is_remote() && this.beside;
        let of_backend = if beside { client } else { &*tx };
        let taken =
            async { if takes { Ok(tx.read_opt(&paths.frontend).await?.is_some()) } else { Ok(false) } };
        // Who reads the sources knows it from these.
        let unfinished = async {
            if is_first || target.is_remote() {
                Ok(false)
            } else {
                saved::unfinished(client, &id, paths).await
            }
        };
        let (seen, unfinished, of_guest, sources, taken) = tokio::try_join!(
            async { Ok(look_beside((&tx, of_backend), &id, paths, Depth::Made).await?) },
            unfinished,
            async { Ok(client.read_many(of_guest).await?) },
            sources,
            taken,
        )?;
        let fe_state = of_guest[1].as_deref().map(StateValue::parse);
        let unfinished = sources.as_ref().map_or(unfinished, |sources| sources.is_unfinished(&id));
        let fe = of_guest[0].is_some();
        let mut seen = Seen { unfinished, held, fe, fe_state, passing: beside, ..seen };
        seen.made &= !target.is_remote();
        let (closing, changes) = steps::close(&seen, record.token, claim, frontend);
        if let Some(sources) = sources.filter(|_| !changes.is_empty()) {
            // It was to be removed however it was made, and that was looked at before.
            let adopt = true;
            match sources.recorded(&tx, (&id, run_by), paths, &seen, adopt).await {
                Ok(recorded) if recorded == *target.recorded() => {}
                Err(cause @ Cause::Store(_)) => return Err(cause),
                // It may be gone, another backend may serve it, or others have written between these reads: who looks
                // for it anew sees what it is.
                Ok(_) | Err(_) => return Ok(((Closing::Changed, false, Vec::new()), Vec::new())),
            }
        }
        let mut requests = requests(&tx, target, record, &seen, &changes).await?;
        let deletes = changes.contains(&Change::DeleteFrontend);
        requests.extend((deletes && taken).then(|| Request::Rm(paths.frontend.clone())));
        let is_told =
            |request: &Request| beside && request.path().is_some_and(|path| path.is_within(&paths.backend));
        let (told, requests) = requests.into_iter().partition(is_told);
        Ok(((closing, deletes && !takes, told), requests))
    })
    .await?;
    let is_ours = |seen: &Seen| Record::is_of(seen.op.as_deref(), record.token);
    if !told.is_empty() {
        let seen = look(client, &id, paths, Depth::Made).await?;
        // A write would bring a directory back that is gone.
        if seen.be && is_ours(&seen) {
            client.all(told).await?;
        }
    }
    if left {
        remove_theirs(client, &id, paths, &[&paths.frontend], is_ours).await?;
    }
    // What vanished after it was claimed is still to be undone, by what is saved of it.
    if is_first && closing == Closing::Vanished && !target.is_remote() {
        saved::forget(client, &id, paths, target.recorded().get("params")).await?;
    }
    Ok(closing)
}

/// Removes directories of a device that others may write to, as long as `is_to_go` says so of what is there.
///
/// In a transaction, or another toolstack could put another device in its place in between. Who keeps writing to them
/// makes every transaction conflict; then it is looked at, and each is removed at once, by a request that nothing can
/// conflict with. Nobody but us can make them again.
pub(crate) async fn remove_theirs(
    client: &Client,
    id: &DeviceId,
    paths: &Paths,
    theirs: &[&Path],
    is_to_go: impl Fn(&Seen) -> bool,
) -> Result<(), Cause> {
    let (tries, is_to_go) = (&Tries::default(), &is_to_go);
    let nodes: &Vec<Path> = &theirs.iter().map(|path| (*path).clone()).collect();
    let is_done = transact(client, |tx| async move {
        if tries.next().beside {
            return Ok((false, Vec::new()));
        }
        let (seen, there) = tokio::try_join!(look(&tx, id, paths, Depth::Made), tx.read_many(nodes))?;
        let goes = is_to_go(&seen);
        let there = nodes.iter().zip(there).filter(|(_, value)| goes && value.is_some());
        Ok((true, there.map(|(path, _)| Request::Rm(path.clone())).collect()))
    })
    .await?;
    if !is_done && is_to_go(&look(client, id, paths, Depth::Made).await?) {
        for path in nodes {
            cleanup::remove_only(client, path).await?;
        }
    }
    Ok(())
}

/// Removes the device's tree, if nobody else has it.
///
/// A guest that keeps writing into its directory makes a transaction that removes it conflict, and so does a driver domain
/// with the backend's. So after a conflict these go before.
pub(crate) async fn destroy(
    client: &Client,
    target: &Target,
    record: &Record,
    depth: Depth,
) -> Result<Destroyed, Cause> {
    let (id, paths) = (target.id(), target.paths());
    let (again, aside) = (&AtomicBool::new(false), &AtomicBool::new(false));
    let destroyed = transact(client, |tx| async move {
        if again.swap(true, Ordering::Relaxed) {
            let is_to_go = |seen: &Seen| steps::destroy(seen, record.token).0 == Destroyed::Gone;
            remove_theirs(client, &id, paths, &paths.theirs(target.is_remote()), is_to_go).await?;
        }
        // Whether the guest has a home decides how much goes; nearly always it has.
        let (seen, trees) = tokio::try_join!(
            async { Ok(look(&tx, &id, paths, depth).await?) },
            Trees::look(&tx, target, true),
        )?;
        let (destroyed, changes) = steps::destroy(&seen, record.token);
        aside.store(trees.aside, Ordering::Relaxed);
        let requests = if destroyed == Destroyed::Gone && seen.home {
            trees.removal().collect()
        } else {
            requests(&tx, target, record, &seen, &changes).await?
        };
        Ok((destroyed, requests))
    })
    .await?;
    if destroyed == Destroyed::Gone && aside.load(Ordering::Relaxed) {
        saved::forget(client, &id, paths, target.recorded().get("params")).await?;
    }
    Ok(destroyed)
}
