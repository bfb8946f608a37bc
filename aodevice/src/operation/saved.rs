//! The saved copy of a backend's keys: what a script needs to undo its work when BE is gone.
//!
//! It is a directory of the same shape as BE, `/tool/xendev/backend/<kind>/<fe>/<devid>`, so a script
//! can be run in it. It is not below LX, where `xl` would see keys that it does not write, and not in
//! BE, where it would go with BE. `xl` knows nothing of it, so it may outlive its device: it is
//! believed only for the guest that it was saved for, and only where the device still is.
//!
//! Copies are read and written outside of the steps' transactions: those of all devices have common
//! parents, so every operation would make every other one conflict.

use futures_util::future::try_join_all;
use xs_client::{Client, DomId, Path, PathError, Request, Requests, Transaction};

use super::cleanup;
use super::store::{named, text, writes};
use crate::kind::Recorded;
use crate::{BackendKind, Cause, DeviceId, Kind, Paths};

/// Our own key beside the copies: the guest's `vm` node, which no two guests share.
const GUEST: &str = "xendev-guest";

/// Our own key beside the copies, while the script of an add has not come to its end: by which is known what
/// was made of the target already before it began.
pub(crate) const BEFORE: &str = "xendev-before";

/// Our own key beside the copies: the target's file, by which it is known again.
pub(crate) const FILE: &str = "xendev-file";

/// Our own key beside the copies: which use of the block device in `node` it was, by the kernel's count.
pub(crate) const SEQUENCE: &str = "xendev-diskseq";

/// Where the copies of a kind of backends are.
pub(crate) fn of_kind(kind: BackendKind) -> Result<Path, PathError> {
    Path::new(format!("{ALL}/{kind}"))
}

/// Where all copies are, by the kinds of backends.
const ALL: &str = "/tool/xendev/backend";

async fn guest_of(store: &Requests, paths: &Paths) -> Result<Option<String>, Cause> {
    Ok(text(store.read_opt(&paths.home.join("vm")?).await?))
}

/// Whether the copy is of an add whose script was begun and has not come to its end, and may have made what
/// stays without its backend.
pub(crate) async fn is_unfinished(store: &Requests, id: &DeviceId, paths: &Paths) -> Result<bool, Cause> {
    let outlives_backend = id.be_kind.is_scripted() && id.kind.info().outlives_backend;
    Ok(outlives_backend && store.read_opt(&paths.saved.join(BEFORE)?).await?.is_some())
}

/// Whether a backend's key is the driver's own, of no use to a script.
fn is_of_driver(key: &str) -> bool {
    const OWN: [&str; 7] =
        ["state", "online", "hotplug-status", "hotplug-error", "sectors", "sector-size", "info"];
    OWN.contains(&key)
        || ["feature-", "multi-queue-", "max-ring-"].iter().any(|prefix| key.starts_with(prefix))
}

/// Whether a key says nothing to a script: it is ours, or the driver's.
pub(crate) fn is_own(key: &str) -> bool {
    is_ours(key) || is_of_driver(key)
}

/// Whether a key is our own beside the copies.
pub(crate) fn is_ours(key: &str) -> bool {
    key.starts_with("xendev-")
}

/// Writes the copy of an add whose script is about to begin, in place of an older device's.
pub(crate) async fn begin(
    store: &Requests,
    paths: &Paths,
    keys: &Recorded,
    (before, origin): (&str, &str),
) -> Result<(), Cause> {
    let removed = async { Ok(cleanup::remove_only(store, &paths.saved).await?) };
    let ((), guest) = tokio::try_join!(removed, guest_of(store, paths))?;
    let mut keys = keys.clone();
    keys.retain(|key, _| !is_of_driver(key));
    keys.insert(BEFORE.to_owned(), before.to_owned());
    keys.insert(FILE.to_owned(), origin.to_owned());
    keys.insert(GUEST.to_owned(), guest.unwrap_or_default());
    write_at(store, &paths.saved, &keys).await
}

/// Adds what the script has reported.
pub(crate) async fn report(store: &Requests, paths: &Paths, keys: &Recorded) -> Result<(), Cause> {
    let mut keys = keys.clone();
    keys.retain(|key, _| !is_of_driver(key));
    write_at(store, &paths.saved, &keys).await
}

/// Notes that the script has come to its end.
pub(crate) async fn finish(store: &Requests, paths: &Paths) -> Result<(), Cause> {
    Ok(cleanup::remove_only(store, &paths.saved.join(BEFORE)?).await?)
}

/// Writes a copy at another place.
pub(crate) async fn write_at(store: &Requests, directory: &Path, keys: &Recorded) -> Result<(), Cause> {
    if keys.is_empty() {
        return Ok(());
    }
    let mut requests = vec![Request::Mkdir(directory.clone())];
    requests.extend(writes(directory, keys)?);
    store.all(requests).await?;
    Ok(())
}

/// What is believed of the copy of a device: nothing if it is of an earlier guest of the number.
pub(crate) async fn trusted(store: &Requests, kind: Kind, paths: &Paths) -> Result<Recorded, Cause> {
    let names = ["params", GUEST, BEFORE, FILE, SEQUENCE].iter().chain(kind.info().made);
    let names = names.map(|name| (*name).to_owned()).collect();
    let home = async { Ok(store.read_opt(&paths.home).await?) };
    let (saved, home, guest) =
        tokio::try_join!(named(store, &paths.saved, names), home, guest_of(store, paths))?;
    let is_of_another =
        home.is_some() && saved.get(GUEST).map(String::as_str) != Some(&*guest.unwrap_or_default());
    Ok(if is_of_another { Recorded::new() } else { saved })
}

/// Adds what the script of the device has made, as far as it is in the copy and not recorded otherwise.
pub(crate) fn merge(id: &DeviceId, saved: Recorded, recorded: &mut Recorded) {
    if saved.get("params") != recorded.get("params") {
        return;
    }
    for key in id.kind.info().made.iter().copied().chain([BEFORE, FILE, SEQUENCE]) {
        if let Some(value) = saved.get(key) {
            recorded.entry(key.to_owned()).or_insert_with(|| value.clone());
        }
    }
}

/// How often the removal of a copy is tried again: a transaction in which others have removed the same
/// parents fails in the middle, each daemon with errors of its own.
const ATTEMPTS: usize = 16;

/// Removes a copy, and the parents that it leaves empty, as long as none of the nodes is there that say that it may be
/// another's by now. Nothing depends on it: a copy that stays is not believed.
async fn remove(client: &Client, copy: &Path, unless: &[Path]) -> Result<(), Cause> {
    let root = &Path::new("/tool")?;
    for _ in 0..ATTEMPTS {
        let remove = |tx: Transaction| async move {
            let (seen, extent) = tokio::try_join!(tx.read_many(unless), cleanup::extent(&tx, copy, root))?;
            let goes = seen.iter().all(Option::is_none);
            Ok(((), extent.into_iter().filter(|_| goes).map(Request::Rm).collect()))
        };
        match client.decide(remove).await {
            Err(xs_client::Error::Store { .. }) => {}
            removed => return Ok(removed?),
        }
    }
    Ok(())
}

/// Removes the copy that was made for a single run.
pub(crate) async fn remove_aside(client: &Client, paths: &Paths) -> Result<(), Cause> {
    remove(client, &paths.undo, &[]).await
}

/// Removes the copies of a device that is not there any more. One of an add that did not come to its end,
/// of another device than the one with these `params`, stays for a removal: `xl` has put its own in that one's place.
pub(crate) async fn forget(
    client: &Client,
    id: &DeviceId,
    paths: &Paths,
    params: Option<&String>,
) -> Result<(), Cause> {
    if !id.be_kind.is_scripted() {
        return Ok(());
    }
    let Paths { toolstack, backend, saved, undo, .. } = paths;
    let mut nodes = Vec::from([toolstack, backend, saved, undo].map(Clone::clone));
    nodes.extend([saved.join(BEFORE)?, saved.join("params")?]);
    let seen = client.read_many(&nodes).await?;
    if seen[0].is_some() || seen[1].is_some() {
        return Ok(());
    }
    // One without `params` was not written to its end.
    let is_its = seen[4].is_none() || seen[5].is_none() || seen[5].as_deref() == params.map(String::as_bytes);
    if seen[2].is_some() && is_its {
        remove(client, saved, &nodes[..2]).await?;
    }
    if seen[3].is_some() { remove(client, undo, &nodes[..2]).await } else { Ok(()) }
}

/// How many other guests are looked at by a sweep, so that an add costs no more the more guests there are.
const SWEPT: usize = 8;

/// Removes copies of devices whose guests are gone: `xl` removed both and knew nothing of the copies.
/// Those of an add that did not come to its end stay, for a removal. The guest `fe` is there.
pub(crate) async fn sweep(client: &Client, fe: DomId) -> Result<(), Cause> {
    let kinds = BackendKind::ALL.into_iter().filter(|kind| kind.is_scripted());
    try_join_all(kinds.map(|kind| sweep_kind(client, kind, fe))).await.map(drop)
}

async fn sweep_kind(client: &Client, kind: BackendKind, fe: DomId) -> Result<(), Cause> {
    let parent = of_kind(kind)?;
    let mut guests = client.directory_or_empty(&parent).await?;
    guests.retain(|guest| *guest != fe.to_string());
    fastrand::shuffle(&mut guests);
    guests.truncate(SWEPT);
    let homes = guests.iter().map(|guest| Path::new(format!("/local/domain/{guest}")));
    let homes = client.read_many(&homes.collect::<Result<Vec<_>, _>>()?).await?;
    for (guest, _) in guests.iter().zip(homes).filter(|(_, home)| home.is_none()) {
        let home = Path::new(format!("/local/domain/{guest}"))?;
        let of_guest = parent.join(guest)?;
        for devid in client.directory_or_empty(&of_guest).await? {
            let copy = of_guest.join(devid)?;
            if client.read_opt(&copy.join(BEFORE)?).await?.is_none() {
                remove(client, &copy, std::slice::from_ref(&home)).await?;
            }
        }
    }
    Ok(())
}
