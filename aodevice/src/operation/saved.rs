//! The saved copy of a backend's keys: what a script needs to undo its work when BE is gone.
//!
//! It is a directory of the same shape as BE, `/tool/xendev/backend/<kind>/<fe>/<devid>`, so a script
//! can be run in it. It is not below LX, where `xl` would see keys that it does not write, and not in
//! BE, where it would go with BE. `xl` knows nothing of it, so it may outlive its device: it is
//! believed only for the guest that it was saved for, and only where the device still is.
//!
//! Copies are read and written outside of the steps' transactions: those of all devices have common
//! parents, so every operation would make every other one conflict.

use xs_client::{Client, Path, PathError, Request, Requests};

use super::cleanup;
use super::store::{keys_of, text, writes};
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
pub(crate) async fn is_unfinished(store: &Requests, kind: Kind, paths: &Paths) -> Result<bool, Cause> {
    Ok(kind.info().outlives_backend && store.read_opt(&paths.saved.join(BEFORE)?).await?.is_some())
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
    key.starts_with("xendev-") || is_of_driver(key)
}

/// Writes the copy of an add whose script is about to begin, in place of an older device's.
pub(crate) async fn begin(
    store: &Requests,
    paths: &Paths,
    keys: &Recorded,
    (before, origin): (&str, &str),
) -> Result<(), Cause> {
    cleanup::remove_only(store, &paths.saved).await?;
    let mut keys = keys.clone();
    keys.insert(BEFORE.to_owned(), before.to_owned());
    keys.insert(FILE.to_owned(), origin.to_owned());
    write(store, paths, &keys).await
}

/// Adds what the script has reported.
pub(crate) async fn report(store: &Requests, paths: &Paths, keys: &Recorded) -> Result<(), Cause> {
    write(store, paths, keys).await
}

/// Adds what the script has made, which has come to its end.
pub(crate) async fn finish(store: &Requests, paths: &Paths, keys: &Recorded) -> Result<(), Cause> {
    let mut keys = keys.clone();
    keys.remove(BEFORE);
    write(store, paths, &keys).await?;
    Ok(cleanup::remove_only(store, &paths.saved.join(BEFORE)?).await?)
}

async fn write(store: &Requests, paths: &Paths, keys: &Recorded) -> Result<(), Cause> {
    let mut keys = keys.clone();
    keys.retain(|key, _| !is_of_driver(key));
    keys.insert(GUEST.to_owned(), guest_of(store, paths).await?.unwrap_or_default());
    write_at(store, &paths.saved, &keys).await
}

/// Writes a copy at another place.
pub(crate) async fn write_at(store: &Requests, directory: &Path, keys: &Recorded) -> Result<(), Cause> {
    let mut requests = vec![Request::Mkdir(directory.clone())];
    requests.extend(writes(directory, keys)?);
    store.all(requests).await?;
    Ok(())
}

/// Adds what the script of the device has made, as far as it is saved and not recorded otherwise.
pub(crate) async fn merge(
    store: &Requests,
    id: &DeviceId,
    paths: &Paths,
    recorded: &mut Recorded,
) -> Result<(), Cause> {
    let saved = keys_of(store, &paths.saved).await?;
    if saved.is_empty() {
        return Ok(());
    }
    let home = store.read_opt(&paths.home).await?.is_some();
    if home
        && saved.get(GUEST).map(String::as_str) != Some(&*guest_of(store, paths).await?.unwrap_or_default())
    {
        return Ok(());
    }
    if saved.get("params") != recorded.get("params") {
        return Ok(());
    }
    for key in id.kind.info().made.iter().copied().chain([BEFORE, FILE, SEQUENCE]) {
        if let Some(value) = saved.get(key) {
            recorded.entry(key.to_owned()).or_insert_with(|| value.clone());
        }
    }
    Ok(())
}

/// How often the removal of a copy is tried again: a transaction in which others have removed the same
/// parents fails in the middle, each daemon with errors of its own.
const ATTEMPTS: usize = 16;

/// Removes a copy, and the parents that it leaves empty. Nothing depends on it: a copy that stays is not
/// believed.
async fn remove(client: &Client, copy: &Path) -> Result<(), Cause> {
    let root = &Path::new("/tool")?;
    for _ in 0..ATTEMPTS {
        let there = client.read_many(&[copy.clone(), copy.parent().unwrap_or_else(Path::root)]).await?;
        if there.iter().all(Option::is_none) {
            break;
        }
        match client.transaction(|tx| async move { cleanup::remove(&tx, copy, root).await }).await {
            Err(xs_client::Error::Store { .. }) => {}
            removed => return Ok(removed?),
        }
    }
    Ok(())
}

/// Removes the copy that was made for a single run.
pub(crate) async fn remove_aside(client: &Client, paths: &Paths) -> Result<(), Cause> {
    remove(client, &paths.undo).await
}

/// Removes the copies of a device that is not there any more. One of an add that did not come to its end,
/// of another device than the one `recorded`, stays for a removal: `xl` has put its own in that one's place.
pub(crate) async fn forget(client: &Client, paths: &Paths, recorded: &Recorded) -> Result<(), Cause> {
    let Paths { toolstack, backend, saved, undo, .. } = paths;
    let nodes = [toolstack, backend, saved, undo].map(Clone::clone);
    let there: Vec<bool> = client.read_many(&nodes).await?.iter().map(Option::is_some).collect();
    if there[0] || there[1] {
        return Ok(());
    }
    if there[2] {
        let keys = keys_of(client, saved).await?;
        if !keys.contains_key(BEFORE) || keys.get("params") == recorded.get("params") {
            remove(client, saved).await?;
        }
    }
    if there[3] { remove(client, undo).await } else { Ok(()) }
}

/// Removes the copies of devices whose guests are gone: `xl` removed both and knew nothing of the copies.
/// Those of an add that did not come to its end stay, for a removal.
pub(crate) async fn sweep(client: &Client) -> Result<(), Cause> {
    let all = Path::new(ALL)?;
    for kind in client.directory_or_empty(&all).await? {
        sweep_kind(client, &all.join(kind)?).await?;
    }
    Ok(())
}

async fn sweep_kind(client: &Client, parent: &Path) -> Result<(), Cause> {
    for fe in client.directory_or_empty(parent).await? {
        if client.read_opt(&Path::new(format!("/local/domain/{fe}"))?).await?.is_some() {
            continue;
        }
        let of_guest = parent.join(&fe)?;
        for devid in client.directory_or_empty(&of_guest).await? {
            let copy = of_guest.join(devid)?;
            if client.read_opt(&copy.join(BEFORE)?).await?.is_none() {
                remove(client, &copy).await?;
            }
        }
    }
    Ok(())
}
