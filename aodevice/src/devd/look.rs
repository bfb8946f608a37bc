//! What the store says: of one device, and of all of them in one pass.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures_util::future::try_join_all;
use xen_devstate::StateValue;
use xs_client::{Error, ErrorCode, Path, PathError, Requests};

use super::course::{Backend, Seen};
use super::note::Note;
use super::place::{BACKENDS, MARKER, NOTES, OURS, Place};
use crate::BackendKind;
use crate::kind::Recorded;
use crate::operation::{said, text};

/// The keys of a backend that are read to see how a device stands. The first says whether it is a backend at all: a
/// script that writes late brings a directory back that is none.
const KEYS: [&str; 7] =
    ["frontend-id", "state", "online", "hotplug-status", MARKER, "physical-device", "physical-device-path"];

/// How many nodes are read for a device.
const READS: usize = KEYS.len() + 1;

/// How many devices are read in one batch, which bounds what is held of them at one time.
const AT_ONCE: usize = 256;

/// The nodes that tell of a device, the note last.
fn nodes(place: &Place) -> Result<Vec<Path>, PathError> {
    let backend = place.backend()?;
    KEYS.iter().map(|key| backend.join(key)).chain([place.note()]).collect()
}

/// What these nodes say.
fn seen(place: &Place, values: &[Option<Bytes>]) -> Seen {
    let [frontend, state, online, status, token, device, path, note] = values else {
        return Seen::default();
    };
    let made = match place.backend_kind {
        BackendKind::Vbd3 => path.is_some(),
        _ => device.is_some() || path.is_some(),
    };
    let note = note.as_deref().and_then(Note::parse);
    let backend = Backend {
        state: state.as_deref().and_then(|state| StateValue::parse(state).state()),
        online: online.as_deref() != Some(b"0"),
        status: said::some_text(status.clone()),
        made,
        // Without a note it tells of nothing: another daemon, or a store that begins anew, has removed that.
        token: text(token.clone()).filter(|_| note.is_some()),
    };
    Seen { backend: frontend.is_some().then_some(backend), note }
}

/// How a device stands.
pub(super) async fn device(store: &Requests, place: &Place) -> Result<Seen, Error> {
    Ok(seen(place, &store.read_many(&nodes(place)?).await?))
}

/// How several devices stand.
pub(super) async fn devices(store: &Requests, places: &[Place]) -> Result<Vec<(Place, Seen)>, Error> {
    let mut all = Vec::with_capacity(places.len());
    for places in places.chunks(AT_ONCE) {
        let nodes = places.iter().map(nodes).collect::<Result<Vec<_>, _>>()?.concat();
        let values = store.read_many(&nodes).await?;
        all.extend(
            places.iter().zip(values.chunks(READS)).map(|(place, values)| (*place, seen(place, values))),
        );
    }
    Ok(all)
}

/// All keys of a device's backend.
pub(super) async fn keys(store: &Requests, place: &Place) -> Result<Recorded, Error> {
    let backend = place.backend()?;
    let names = store.directory_or_empty(&backend).await?;
    let nodes = names.iter().map(|name| backend.join(name)).collect::<Result<Vec<_>, _>>()?;
    let values = store.read_many(&nodes).await?;
    let keys = names.into_iter().zip(values).filter(|(name, _)| name != MARKER);
    Ok(keys.filter_map(|(name, value)| Some((name, text(value)?))).collect())
}

/// The names below a directory; none below one that is not there, or that this domain may not look at.
async fn names(store: &Requests, directory: &Path) -> Result<Vec<String>, Error> {
    match store.directory_or_empty(directory).await {
        Err(error) if error.code() == Some(&ErrorCode::EACCES) => Ok(Vec::new()),
        names => names,
    }
}

/// The directories below each of these.
pub(super) async fn below(store: &Requests, directories: Vec<Path>) -> Result<Vec<Path>, Error> {
    let listed = try_join_all(directories.iter().map(|directory| names(store, directory))).await?;
    let paths = directories.iter().zip(listed).flat_map(|(directory, names)| {
        // A name with which the path would be too long is no device's.
        names.into_iter().filter_map(move |name| directory.join(name).ok())
    });
    Ok(paths.collect())
}

/// The devices with a backend in or below this directory.
pub(super) async fn backends(store: &Requests, directory: &Path) -> Result<BTreeSet<Place>, Error> {
    let mut paths = vec![directory.clone()];
    for _ in directory.names().count()..4 {
        paths = below(store, paths).await?;
    }
    Ok(paths.iter().filter_map(|path| place(path.names().skip(1))).collect())
}

fn place<'a>(mut names: impl Iterator<Item = &'a str>) -> Option<Place> {
    let (kind, fe, devid) = (names.next()?, names.next()?, names.next()?);
    Place::of(kind, fe, devid)
}

/// The devices with a note that would be in or below this directory of backends.
pub(super) async fn notes(store: &Requests, directory: &Path) -> Result<BTreeSet<Place>, Error> {
    let mut names = directory.names().skip(1);
    let (kind, fe) = (names.next(), names.next());
    let guests = match fe {
        Some(fe) => vec![Path::new(format!("{NOTES}/{fe}"))?],
        None => below(store, vec![Path::new(NOTES)?]).await?,
    };
    let ours = guests.iter().map(|guest| guest.join(OURS)).collect::<Result<Vec<_>, _>>()?;
    let kinds = match kind {
        Some(kind) => ours.iter().map(|ours| ours.join(kind)).collect::<Result<Vec<_>, _>>()?,
        None => below(store, ours).await?,
    };
    let notes = below(store, kinds).await?;
    Ok(notes.iter().filter_map(Place::of_note).collect())
}

/// All devices in or below this directory of backends, and those that notes tell of, as they stand.
pub(super) async fn all(store: &Requests, directory: &Path) -> Result<Vec<(Place, Seen)>, Error> {
    let (mut places, noted) = tokio::try_join!(backends(store, directory), notes(store, directory))?;
    places.extend(noted);
    devices(store, &Vec::from_iter(places)).await
}

/// The loop devices that backends of this domain name, but for this one's.
pub(super) async fn nodes_of_others(store: &Requests, own: &Place) -> Result<BTreeSet<String>, Error> {
    let all = backends(store, &Path::new(BACKENDS)?).await?;
    let others = all.into_iter().filter(|place| place != own);
    let nodes = others.map(|place| place.backend()?.join("node")).collect::<Result<Vec<_>, _>>()?;
    Ok(store.read_many(&nodes).await?.into_iter().filter_map(text).collect())
}
