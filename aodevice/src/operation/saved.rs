//! The saved copy of a backend's keys: what a script needs to undo its work when BE is gone.
//!
//! It is the value of one node, `/tool/xendev/backend/<kind>/<fe>/<devid>`: a JSON object of BE's keys, and of ours.
//! Below that node, or where it may be another device's by then below `/tool/xendev/undo`, a script is run that cannot
//! be run in BE: it finds a directory of BE's shape there. The copy is not below LX, where `xl` would see keys that it
//! does not write, and not in BE, with which it would go. `xl` knows nothing of it, so it may outlive its device: it is
//! believed only for the guest that it was saved for, and only where the device still is.
//!
//! Copies are made outside of the steps' transactions: those of all devices have common parents, so every operation
//! would make every other one conflict. One that is there is changed, and removed, with the device.

use xs_client::{Client, Error, ErrorCode, Path, PathError, Request, Requests, Transaction};

use super::store::{text, writes};
use super::{Target, cleanup};
use crate::kind::Recorded;
use crate::{BackendKind, Cause, DeviceId, Paths};

/// Our own key beside the copies: the guest's `vm` node, which no two guests share.
const GUEST: &str = "xendev-guest";

/// Our own key beside the copies, while the script of an add has not come to its end: by which is known what
/// was made of the target already before it began.
pub(crate) const BEFORE: &str = "xendev-before";

/// Our own key beside the copies: the target's file, by which it is known again.
pub(crate) const FILE: &str = "xendev-file";

/// Our own key beside the copies: which use of the block device in `node` it was, by the kernel's count.
pub(crate) const SEQUENCE: &str = "xendev-diskseq";

/// The device and the number in that of the file that a copy tells of.
pub(crate) fn file_of(copy: &Recorded) -> Option<(u64, u64)> {
    super::files::Origin::parse(copy.get(FILE)?)?.inode
}

/// Where the copies of a kind of backends are.
pub(crate) fn of_kind(kind: BackendKind) -> Result<Path, PathError> {
    Path::new(format!("{ALL}/{kind}"))
}

/// Where all copies are, by the kinds of backends.
const ALL: &str = "/tool/xendev/backend";

/// Above which no clean-up of copies goes.
const ROOT: &str = "/tool";

/// What is in a copy; nothing if there is none, or it was not written as one.
pub(crate) fn parse(value: Option<&[u8]>) -> Option<Recorded> {
    serde_json::from_slice(value?).ok()
}

pub(crate) async fn read(store: &Requests, copy: &Path) -> Result<Option<Recorded>, Error> {
    Ok(parse(store.read_opt(copy).await?.as_deref()))
}

/// The request that writes a copy.
pub(crate) fn write(paths: &Paths, copy: &Recorded) -> Request {
    let value = serde_json::Value::from_iter(copy.clone()).to_string();
    Request::Write { path: paths.saved.clone(), value: value.into() }
}

/// By what a guest differs from an earlier one of its number.
pub(crate) async fn guest_of(store: &Requests, paths: &Paths) -> Result<Option<String>, Cause> {
    Ok(text(store.read_opt(&paths.home.join("vm")?).await?))
}

/// Whether what the script of such a device makes may stay without its backend.
fn outlives_backend(id: &DeviceId) -> bool {
    id.be_kind.is_scripted() && id.kind.info().outlives_backend
}

/// Whether the copy is of an add whose script was begun and has not come to its end, and may have made what
/// stays without its backend.
pub(crate) fn is_unfinished(id: &DeviceId, copy: Option<&Recorded>) -> bool {
    outlives_backend(id) && copy.is_some_and(|copy| copy.contains_key(BEFORE))
}

/// The same of the copy that is there now.
pub(crate) async fn unfinished(store: &Requests, id: &DeviceId, paths: &Paths) -> Result<bool, Cause> {
    Ok(outlives_backend(id) && is_unfinished(id, read(store, &paths.saved).await?.as_ref()))
}

/// Whether a backend's key is the driver's own, of no use to a script.
fn is_of_driver(key: &str) -> bool {
    const OWN: [&str; 11] = [
        "state",
        "online",
        "hotplug-status",
        "hotplug-error",
        "sectors",
        "sector-size",
        "physical-sector-size",
        "info",
        "discard-alignment",
        "discard-granularity",
        "discard-secure",
    ];
    OWN.contains(&key)
        || ["feature-", "multi-queue-", "max-ring-"].iter().any(|prefix| key.starts_with(prefix))
}

/// Whether a key says nothing to a script: it is ours, or the driver's.
pub(crate) fn is_own(key: &str) -> bool {
    is_ours(key) || is_of_driver(key)
}

/// Whether a key is our own beside the copies.
fn is_ours(key: &str) -> bool {
    key.starts_with("xendev-")
}

/// Writes the copy of an add whose script is about to begin, in place of an older device's, and yields it.
pub(crate) async fn begin(
    store: &Requests,
    paths: &Paths,
    keys: &Recorded,
    (guest, before, origin): (Option<String>, &str, &str),
) -> Result<Recorded, Cause> {
    let mut copy = keys.clone();
    copy.insert(BEFORE.to_owned(), before.to_owned());
    copy.insert(FILE.to_owned(), origin.to_owned());
    copy.insert(GUEST.to_owned(), guest.unwrap_or_default());
    copy.retain(|key, _| !is_of_driver(key));
    // A run in an older one may have left its directory; mostly there is none.
    let replaced = store.batch(vec![Request::Rm(paths.saved.clone()), write(paths, &copy)]).await?;
    replaced.into_iter().skip(1).try_for_each(|written| written.map(drop))?;
    Ok(copy)
}

/// The request by which a copy tells that the add has come to its end, if it was of one that had not.
pub(crate) fn finished(paths: &Paths, copy: &Recorded) -> Option<Request> {
    let mut finished = copy.clone();
    finished.remove(BEFORE).map(|_| write(paths, &finished))
}

/// Adds what the script has reported.
pub(crate) fn add(copy: &mut Recorded, keys: &Recorded) {
    let told = keys.iter().filter(|(key, _)| !is_of_driver(key));
    copy.extend(told.map(|(key, value)| (key.clone(), value.clone())));
}

/// Sets a key of a copy while the script of the add is at work, or takes it out. Nobody else writes it then. A driver
/// domain, which may not look here, has no copies.
pub(crate) async fn note(
    store: &Requests,
    (kind, fe, devid): (&str, u32, u32),
    (key, value): (&str, Option<&str>),
) -> Result<(), Error> {
    let Ok(path) = Path::new(format!("{ALL}/{kind}/{fe}/{devid}")) else { return Ok(()) };
    let mut copy = match read(store, &path).await {
        Ok(Some(copy)) => copy,
        Ok(None) => return Ok(()),
        Err(error) if error.code() == Some(&ErrorCode::EACCES) => return Ok(()),
        Err(error) => return Err(error),
    };
    match value {
        Some(value) => drop(copy.insert(key.to_owned(), value.to_owned())),
        None => drop(copy.remove(key)),
    }
    let value = serde_json::Value::from_iter(copy).to_string();
    store.all(vec![Request::Write { path, value: value.into() }]).await?;
    Ok(())
}

/// Makes a directory of BE's shape for the run of a script.
pub(crate) async fn write_at(store: &Requests, directory: &Path, keys: &Recorded) -> Result<(), Cause> {
    if keys.is_empty() {
        return Ok(());
    }
    let mut requests = vec![Request::Mkdir(directory.clone())];
    requests.extend(writes(directory, keys)?);
    store.all(requests).await?;
    Ok(())
}

/// A copy as it is found, and whether it is of the guest that has the number now, or had it last.
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) copy: Option<Recorded>,
    is_of_guest: bool,
}

impl Found {
    pub(crate) async fn read(store: &Requests, paths: &Paths) -> Result<Self, Cause> {
        let home = async { Ok(store.read_opt(&paths.home).await?) };
        let copy = async { Ok(read(store, &paths.saved).await?) };
        let (copy, home, guest) = tokio::try_join!(copy, home, guest_of(store, paths))?;
        let of = copy.as_ref().and_then(|copy| copy.get(GUEST));
        let is_of_guest = home.is_none() || of == Some(&guest.unwrap_or_default());
        Ok(Self { copy, is_of_guest })
    }

    /// What is believed of it: nothing if it is of an earlier guest of the number.
    pub(crate) fn trusted(self) -> Recorded {
        self.copy.filter(|_| self.is_of_guest).unwrap_or_default()
    }
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
    let root = &Path::new(ROOT)?;
    for _ in 0..ATTEMPTS {
        let remove = |tx: Transaction| async move {
            let extent = cleanup::extent(&tx, copy, root);
            let (seen, extent) = tokio::try_join!(tx.read_many(unless), extent)?;
            let goes = seen.iter().all(Option::is_none);
            Ok(((), extent.into_iter().filter(|_| goes).map(Request::Rm).collect()))
        };
        match client.decide(remove).await {
            Err(Error::Store { .. }) => {}
            removed => return Ok(removed?),
        }
    }
    Ok(())
}

/// What is removed with a device of its copy and the parents that it leaves empty, and whether a run that was killed
/// has left a directory aside, which is to be forgotten then.
pub(crate) async fn extent(tx: &Requests, target: &Target) -> Result<(Vec<Path>, bool), Error> {
    if target.is_remote() || !target.id().be_kind.is_scripted() {
        return Ok((Vec::new(), false));
    }
    let (Paths { saved, undo, .. }, root) = (target.paths(), Path::new(ROOT)?);
    let nodes = [saved.clone(), undo.clone()];
    let (seen, mut extent) = tokio::try_join!(tx.read_many(&nodes), cleanup::extent(tx, saved, &root))?;
    if !goes_with(parse(seen[0].as_deref()).as_ref(), target.recorded().get("params")) {
        extent.clear();
    }
    Ok((extent, seen[1].is_some()))
}

/// Removes the directory that was made for a single run.
pub(crate) async fn remove_aside(client: &Client, paths: &Paths) -> Result<(), Cause> {
    remove(client, &paths.undo, &[]).await
}

/// Whether a copy goes with the device with these `params`. One of an add that did not come to its end, of another
/// device than that, stays for a removal: `xl` has put its own in that one's place.
fn goes_with(copy: Option<&Recorded>, params: Option<&String>) -> bool {
    // What was not written as one is of no use to anybody.
    copy.is_none_or(|copy| !copy.contains_key(BEFORE) || copy.get("params") == params)
}

/// Removes the copies of a device that is not there any more.
pub(crate) async fn forget(
    client: &Client,
    id: &DeviceId,
    paths: &Paths,
    params: Option<&String>,
) -> Result<(), Cause> {
    if !id.be_kind.is_scripted() {
        return Ok(());
    }
    let nodes = [&paths.toolstack, &paths.backend, &paths.saved, &paths.undo].map(Clone::clone);
    let seen = client.read_many(&nodes).await?;
    if seen[0].is_some() || seen[1].is_some() {
        return Ok(());
    }
    if seen[2].is_some() && goes_with(parse(seen[2].as_deref()).as_ref(), params) {
        remove(client, &paths.saved, &nodes[..2]).await?;
    }
    if seen[3].is_some() { remove(client, &paths.undo, &nodes[..2]).await } else { Ok(()) }
}

/// How many other guests are looked at by a sweep, so that an add costs no more the more guests there are.
const SWEPT: usize = 8;

/// Removes copies of devices of this kind whose guests are gone: `xl` removed both and knew nothing of the copies.
/// Those of an add that did not come to its end stay, for a removal. The guest of this device is there.
pub(crate) async fn sweep(client: &Client, id: &DeviceId) -> Result<(), Cause> {
    if !id.be_kind.is_scripted() {
        return Ok(());
    }
    let parent = of_kind(id.be_kind)?;
    let mut guests = client.directory_or_empty(&parent).await?;
    guests.retain(|guest| *guest != id.fe.to_string());
    fastrand::shuffle(&mut guests);
    guests.truncate(SWEPT);
    let homes = guests.iter().map(|guest| Path::new(format!("/local/domain/{guest}")));
    let homes = client.read_many(&homes.collect::<Result<Vec<_>, _>>()?).await?;
    for (guest, _) in guests.iter().zip(homes).filter(|(_, home)| home.is_none()) {
        let home = Path::new(format!("/local/domain/{guest}"))?;
        let of_guest = parent.join(guest)?;
        for devid in client.directory_or_empty(&of_guest).await? {
            let copy = of_guest.join(devid)?;
            if read(client, &copy).await?.is_none_or(|copy| !copy.contains_key(BEFORE)) {
                remove(client, &copy, std::slice::from_ref(&home)).await?;
            }
        }
    }
    Ok(())
}
