//! The place of a new device: its number, and that nobody else has it or what it must have for itself.
//!
//! An add looks for it inside of its transaction, so two that find the same one conflict, and the second looks
//! again; a dry run looks without one.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::try_join_all;
use xen_devstate::{StateValue, XenbusState};
use xs_client::{DomId, Error, Path, Requests};

use super::steps;
use super::store::text;
use crate::id::lx_parent;
use crate::kind::{Among, Unique};
use crate::{Cause, Device, DeviceId, Guest, Kind, Paths, Which};

/// The identity that a device would have now.
pub(crate) async fn identify(
    store: &Requests,
    fe: DomId,
    device: &Device,
    guest: &Guest,
) -> Result<DeviceId, Cause> {
    let kind = device.kind();
    let devid = match device.devid() {
        Some(devid) => devid,
        None => free_devid(store, fe, guest.be, kind).await?,
    };
    Ok(DeviceId::with_backend(Which { fe, kind, devid }, guest.be, device.as_spec().backend(guest)))
}

/// Refuses a device whose frontend another backend serves, or whose address or name another device has.
pub(crate) async fn check(
    store: &Requests,
    id: &DeviceId,
    paths: &Paths,
    device: &Device,
) -> Result<(), Cause> {
    let alone = async {
        match in_use_elsewhere(store, id, paths).await? {
            Some(state) => Err(Cause::FrontendInUse(state)),
            None => device.as_spec().check_place(id),
        }
    };
    tokio::try_join!(alone, check_unique(store, id, device)).map(drop)
}

/// The smallest id that no device of the kind has. Found inside of the transaction, so that two who find the same
/// one conflict, and the second looks again.
async fn free_devid(store: &Requests, fe: DomId, be: DomId, kind: Kind) -> Result<u32, Cause> {
    let taken = taken(store, (fe, be), kind).await?;
    smallest_free(kind, &taken).ok_or_else(|| Cause::Invalid("every device id is taken".to_owned()))
}

/// The ids that devices of the kind have, by the toolstack's record, the guest's directory and the backend's.
async fn taken(store: &Requests, (fe, be): (DomId, DomId), kind: Kind) -> Result<BTreeSet<u32>, Error> {
    let backends = kind.info().backends.iter();
    let backends = backends.map(|backend| Path::new(format!("/local/domain/{be}/backend/{backend}/{fe}")));
    let others = [lx_parent(fe, kind), Path::new(format!("/local/domain/{fe}/device/{kind}"))];
    let parents: Vec<Path> = backends.chain(others).collect::<Result<_, _>>()?;
    let names = try_join_all(parents.iter().map(|parent| store.directory_or_empty(parent))).await?;
    Ok(names.iter().flatten().filter_map(|name| name.parse().ok()).collect())
}

fn smallest_free(kind: Kind, taken: &BTreeSet<u32>) -> Option<u32> {
    (kind.info().first_devid..).find(|devid| !taken.contains(devid))
}

/// Gives ids to the devices that have none: those that they would get one after the other, in this order.
pub(crate) async fn number(
    store: &Requests,
    (fe, own): (DomId, DomId),
    devices: &mut [&mut Device],
) -> Result<(), Error> {
    let mut of_kinds = BTreeMap::new();
    for kind in devices.iter().filter(|device| device.devid().is_none()).map(|device| device.kind()) {
        if let Entry::Vacant(entry) = of_kinds.entry(kind) {
            entry.insert(taken(store, (fe, own), kind).await?);
        }
    }
    for (kind, taken) in &mut of_kinds {
        taken.extend(
            devices.iter().filter(|device| device.kind() == *kind).filter_map(|device| device.devid()),
        );
    }
    for device in devices {
        if device.devid().is_none()
            && let Some(taken) = of_kinds.get_mut(&device.kind())
            && let Some(devid) = smallest_free(device.kind(), taken)
        {
            device.number(devid);
            taken.insert(devid);
        }
    }
    Ok(())
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
    for Unique { key, value, among } in device.as_spec().uniques() {
        let mut places = Vec::new();
        match among {
            Among::OfGuest => places.push((lx_parent(id.fe, kind)?, id.fe.to_string())),
            Among::OfAllGuests => {
                let backends = Path::new(format!("/local/domain/{}/backend/{}", id.be, id.be_kind))?;
                for fe in store.directory_or_empty(&backends).await? {
                    places.push((backends.join(&fe)?, fe));
                }
            }
            Among::InFrontends => {}
        }
        for (place, fe) in places {
            let mut devids = store.directory_or_empty(&place).await?;
            devids.retain(|devid| fe != id.fe.to_string() || *devid != id.devid.to_string());
            let held: Vec<Path> =
                devids.iter().map(|devid| place.join(format!("{devid}/{key}"))).collect::<Result<_, _>>()?;
            for (devid, held) in devids.iter().zip(store.read_many(&held).await?) {
                if text(held).as_ref() == Some(&value) {
                    return Err(has_it_already((&fe, kind, devid), (key, &value)));
                }
            }
        }
    }
    Ok(())
}

fn has_it_already((fe, kind, devid): (&str, Kind, &str), (key, value): (&str, &str)) -> Cause {
    let name = devid.parse().map_or_else(|_| devid.to_owned(), kind.info().id_name);
    Cause::Invalid(format!("{} {name} of domain {fe} has the {key} {value} already", kind.noun()))
}

/// The same of what stands in the guest's directories alone: of those of devices that the toolstack has recorded.
pub(crate) async fn check_frontends(store: &Requests, fe: DomId, device: &Device) -> Result<(), Cause> {
    let kind = device.kind();
    let uniques = device.as_spec().uniques();
    for Unique { key, value, .. } in uniques.iter().filter(|unique| unique.among == Among::InFrontends) {
        let mut devids = store.directory_or_empty(&lx_parent(fe, kind)?).await?;
        devids.retain(|devid| devid.parse().ok() != device.devid());
        let held =
            devids.iter().map(|devid| Path::new(format!("/local/domain/{fe}/device/{kind}/{devid}/{key}")));
        let held: Vec<Path> = held.collect::<Result<_, _>>()?;
        for (devid, held) in devids.iter().zip(store.read_many(&held).await?) {
            if text(held).as_ref() == Some(value) {
                return Err(has_it_already((&fe.to_string(), kind, devid), (key, value)));
            }
        }
    }
    Ok(())
}
