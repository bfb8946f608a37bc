//! The place of a new device: its number, and that nobody else has it or what it must have for itself.
//!
//! An add looks for it inside of its transaction, so two that find the same one conflict, and the second looks
//! again; a dry run looks without one.

use devstate::{StateValue, XenbusState};
use xs_client::{DomId, Path, Requests};

use super::steps::{self, Seen};
use super::store::{look, text};
use crate::id::lx_parent;
use crate::kind::Unique;
use crate::{Cause, Device, DeviceId, Guest, Kind, Paths, Which};

/// The identity that a device would have now, and what is there already.
pub(crate) async fn find(
    store: &Requests,
    (fe, own): (DomId, DomId),
    device: &Device,
    guest: &Guest,
) -> Result<(DeviceId, Seen), Cause> {
    let kind = device.kind();
    let devid = match device.devid() {
        Some(devid) => devid,
        None => free_devid(store, fe, own, kind).await?,
    };
    let id = DeviceId::with_backend(Which { fe, kind, devid }, own, device.as_spec().backend(guest));
    let seen = look(store, kind, &id.paths()?).await?;
    Ok((id, seen))
}

/// Refuses a device whose frontend another backend serves, or whose address or name another device has.
pub(crate) async fn check(
    store: &Requests,
    id: &DeviceId,
    paths: &Paths,
    device: &Device,
) -> Result<(), Cause> {
    if let Some(state) = in_use_elsewhere(store, id, paths).await? {
        return Err(Cause::FrontendInUse(state));
    }
    device.as_spec().check_place(id)?;
    check_unique(store, id, device).await
}

/// The smallest id that no device of the kind has, by the toolstack's record, the guest's directory
/// and the backend's. Found inside of the transaction, so that two who find the same one conflict,
/// and the second looks again.
async fn free_devid(store: &Requests, fe: DomId, own: DomId, kind: Kind) -> Result<u32, Cause> {
    let mut taken = store.directory_or_empty(&lx_parent(fe, kind)?).await?;
    let backends = kind.info().backends.iter();
    let backends = backends.map(|backend| format!("/local/domain/{own}/backend/{backend}/{fe}"));
    for parent in backends.chain([format!("/local/domain/{fe}/device/{kind}")]) {
        taken.extend(store.directory_or_empty(&Path::new(parent)?).await?);
    }
    let free = (kind.info().first_devid..).find(|devid: &u32| !taken.contains(&devid.to_string()));
    free.ok_or_else(|| Cause::Invalid("every device id is taken".to_owned()))
}

/// The state of another backend that serves the guest's directory of the device. That directory is
/// the guest's, so what it says is believed only as far as the backend that it names agrees.
async fn in_use_elsewhere(
    store: &Requests,
    id: &DeviceId,
    paths: &Paths,
) -> Result<Option<XenbusState>, Cause> {
    let named = store.read_opt(&paths.frontend.join("backend")?).await?;
    let Some(named) = named.and_then(|named| Path::new(named).ok()).filter(|named| *named != paths.backend)
    else {
        return Ok(None);
    };
    let names: Vec<&str> = named.names().collect();
    let (fe, devid) = (id.fe.to_string(), id.devid.to_string());
    match &names[..] {
        ["local", "domain", _, "backend", _, of_fe, of_devid] if *of_fe == fe && *of_devid == devid => {}
        _ => return Ok(None),
    }
    let state = store.read_opt(&named.join("state")?).await?;
    let state = state.and_then(|state| StateValue::parse(&state).state());
    Ok(state.filter(|state| steps::is_alive(*state)))
}

/// Refuses what another device has already: of the guest, wherever its backend is, or of any guest in the same
/// backend's domain.
async fn check_unique(store: &Requests, id: &DeviceId, device: &Device) -> Result<(), Cause> {
    let kind = id.kind;
    for Unique { key, value, of_all_guests } in device.as_spec().uniques() {
        let mut places = Vec::new();
        if of_all_guests {
            let backends = Path::new(format!("/local/domain/{}/backend/{}", id.be, id.be_kind))?;
            for fe in store.directory_or_empty(&backends).await? {
                places.push((backends.join(&fe)?, fe));
            }
        } else {
            places.push((lx_parent(id.fe, kind)?, id.fe.to_string()));
        }
        for (place, fe) in places {
            let mut devids = store.directory_or_empty(&place).await?;
            devids.retain(|devid| fe != id.fe.to_string() || *devid != id.devid.to_string());
            let held: Vec<Path> =
                devids.iter().map(|devid| place.join(format!("{devid}/{key}"))).collect::<Result<_, _>>()?;
            for (devid, held) in devids.iter().zip(store.read_many(&held).await?) {
                if text(held).as_ref() == Some(&value) {
                    return Err(Cause::Invalid(format!(
                        "{kind} {devid} of domain {fe} has the {key} {value} already"
                    )));
                }
            }
        }
    }
    Ok(())
}
