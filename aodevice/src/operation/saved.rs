//! The saved copy of a backend's keys: what a script needs to undo its work when BE is gone.
//!
//! It is a directory of the same shape as BE, `/tool/xendev/backend/<kind>/<fe>/<devid>`, so a script
//! can be run in it. It is not below LX, where `xl` would see keys that it does not write, and not in
//! BE, where it would go with BE. `xl` knows nothing of it, so it may outlive its device: it is
//! believed only for the guest that it was saved for, and only where the device still is.

use xs_client::{Client, Path, Request, Requests};

use super::cleanup;
use super::store::{keys_of, text, writes};
use crate::kind::Recorded;
use crate::{Cause, DeviceId, Paths};

/// Our own key beside the copies: the guest's `vm` node, which no two guests share.
const GUEST: &str = "xendev-guest";

/// Our own key beside the copies, while the script of an add has not come to its end: what was made of
/// the target already before it began.
pub(crate) const BEFORE: &str = "xendev-before";

/// Our own key beside the copies: which use of the block device in `node` it was, by the kernel's count.
pub(crate) const SEQUENCE: &str = "xendev-diskseq";

async fn guest_of(store: &Requests, paths: &Paths) -> Result<Option<String>, Cause> {
    Ok(text(store.read_opt(&paths.home.join("vm")?).await?))
}

/// Writes the copy, in place of an older one.
pub(crate) async fn write(store: &Requests, paths: &Paths, keys: &Recorded) -> Result<(), Cause> {
    let mut keys = keys.clone();
    cleanup::remove_only(store, &paths.saved).await?;
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
    for key in id.kind.info().made.iter().copied().chain([BEFORE, SEQUENCE]) {
        if let Some(value) = saved.get(key) {
            recorded.entry(key.to_owned()).or_insert_with(|| value.clone());
        }
    }
    Ok(())
}

/// Removes the copy that was made for a single run.
pub(crate) async fn remove(client: &Client, paths: &Paths) -> Result<(), Cause> {
    let root = &Path::new("/tool")?;
    client.transaction(|tx| async move { Ok(cleanup::remove(&tx, &paths.undo, root).await?) }).await
}

/// Removes the saved copy of a device that is not there any more.
pub(crate) async fn forget(client: &Client, paths: &Paths) -> Result<(), Cause> {
    let root = &Path::new("/tool")?;
    client
        .transaction(|tx| async move {
            let there = tx.read_many(&[paths.toolstack.clone(), paths.backend.clone()]).await?;
            if there.iter().all(Option::is_none) {
                cleanup::remove(&tx, &paths.saved, root).await?;
            }
            Ok(())
        })
        .await
}
