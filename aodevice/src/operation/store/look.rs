//! Reading what there is of a device, with no more requests than the decision needs: where many devices of a domain
//! go at once, or the store is slow, they are what takes the time.

use xen_devstate::StateValue;
use xs_client::{Error, Path, Requests};

use super::text;
use crate::kind::Recorded;
use crate::operation::said::Said;
use crate::operation::steps::Seen;
use crate::{Cause, DeviceId, Paths};

/// What is read of a device besides whose it is and where its backend stands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Nothing.
    Standing,
    /// What scripts have said.
    Said,
    /// Whether scripts have made something.
    Made,
}

/// Reads what there is of a device, but for what its guest can change.
pub(crate) async fn look(
    store: &Requests,
    id: &DeviceId,
    paths: &Paths,
    depth: Depth,
) -> Result<Seen, Error> {
    look_beside((store, store), id, paths, depth).await
}

/// The same, with what is in the backend's directory read by the second: see [`Tries`](super::Tries).
pub(crate) async fn look_beside(
    (store, of_backend): (&Requests, &Requests),
    id: &DeviceId,
    paths: &Paths,
    depth: Depth,
) -> Result<Seen, Error> {
    let Paths { home, backend, toolstack, .. } = paths;
    let (mut ours, mut theirs) = (vec![home.clone(), toolstack.join("op")?], vec![backend.join("state")?]);
    let scripted = id.be_kind.is_scripted();
    match depth {
        Depth::Standing => {}
        Depth::Said if scripted => theirs.extend(Said::nodes(backend)?),
        Depth::Said => {}
        Depth::Made => {
            ours.push(toolstack.clone());
            theirs.push(backend.clone());
        }
    }
    let (ours, theirs) = tokio::try_join!(store.read_many(&ours), of_backend.read_many(&theirs))?;
    let (mut ours, mut theirs) = (ours.into_iter(), theirs.into_iter());
    let mut next = || theirs.next().flatten();
    let mut seen = Seen {
        home: ours.next().flatten().is_some(),
        op: ours.next().flatten().map(|op| String::from_utf8_lossy(&op).into_owned()),
        be_state: next().as_deref().map(StateValue::parse),
        ..Seen::default()
    };
    // Whoever has the device finds keys in both directories, and need not ask for these.
    (seen.lx, seen.be) = (seen.op.is_some(), seen.be_state.is_some());
    match depth {
        Depth::Said if scripted => seen.said = Said::from_values(next(), next()),
        Depth::Made => {
            (seen.lx, seen.be) = (ours.next().flatten().is_some(), next().is_some());
            // Of one that is alive this decides nothing.
            if scripted && seen.be && seen.alive().is_none() {
                let made = id.kind.info().made.iter().map(|key| backend.join(key));
                let made = of_backend.read_many(&made.collect::<Result<Vec<_>, _>>()?).await?;
                seen.made = made.iter().any(Option::is_some);
            }
        }
        _ => {}
    }
    if depth != Depth::Made && !(seen.lx && seen.be) {
        let (lx, be) = tokio::try_join!(store.read_opt(toolstack), of_backend.read_opt(backend))?;
        (seen.lx, seen.be) = (lx.is_some(), be.is_some());
    }
    Ok(seen)
}

/// The keys of a directory that hold text.
pub(crate) async fn keys_of(store: &Requests, directory: &Path) -> Result<Recorded, Cause> {
    let names = store.directory_or_empty(directory).await?;
    named(store, directory, names).await
}

/// The keys of a directory where most values are `known`: those that are `asked` for are read in the same round trip as
/// the directory, and such as are not known in another.
pub(crate) async fn keys_since(
    store: &Requests,
    directory: &Path,
    known: &Recorded,
    asked: &[&str],
    is_needless: impl Fn(&str) -> bool,
) -> Result<Recorded, Cause> {
    let listed = async { Ok(store.directory_or_empty(directory).await?) };
    let asked: Vec<String> = asked.iter().map(|name| (*name).to_owned()).collect();
    let (names, mut keys) = tokio::try_join!(listed, named(store, directory, asked.clone()))?;
    let (old, new): (Vec<_>, Vec<_>) = names
        .into_iter()
        .filter(|name| !asked.contains(name) && !is_needless(name))
        .partition(|name| known.contains_key(name));
    keys.extend(
        old.into_iter()
            .filter_map(|name| known.get_key_value(&name))
            .map(|(name, value)| (name.clone(), value.clone())),
    );
    if !new.is_empty() {
        keys.extend(named(store, directory, new).await?);
    }
    Ok(keys)
}

/// Those of these names that are there and hold text.
pub(crate) async fn named(store: &Requests, directory: &Path, names: Vec<String>) -> Result<Recorded, Cause> {
    let paths: Vec<Path> = names.iter().map(|name| directory.join(name)).collect::<Result<_, _>>()?;
    let values = store.read_many(&paths).await?;
    Ok(names.into_iter().zip(values).filter_map(|(name, value)| Some((name, text(value)?))).collect())
}
