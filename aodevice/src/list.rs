//! Listing a guest's devices, from the toolstack's record of them.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::future::try_join_all;
use serde::Serialize;
use xen_devstate::StateValue;
use xs_client::{Client, DomId, Error, Path};

use crate::id::lx_parent;
use crate::operation::observe::shown;
use crate::{DeviceId, Kind, ListedKey, Parts, Record, Which};

/// A device of a guest, with what both ends say of it.
///
/// What is read from the guest's directory is its word alone.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Listed {
    /// Its identity.
    pub id: DeviceId,
    /// Its directory in the backend's domain.
    pub backend_path: String,
    /// The frontend's state.
    pub frontend_state: Option<StateValue>,
    /// The backend's state.
    pub backend_state: Option<StateValue>,
    /// Whether the backend is to survive a frontend that goes.
    pub online: Option<bool>,
    /// What the hotplug script reported.
    pub hotplug_status: Option<String>,
    /// The record of an operation that is under way, or was left unfinished.
    pub operation: Option<String>,
    /// What its kind has besides, by [`crate::KindInfo::listed`].
    #[serde(flatten)]
    pub of_kind: ListedValues,
}

/// A value of a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum ListedValue {
    /// A number.
    Number(u32),
    /// A text that can be shown.
    Text(String),
    /// What the device has several of: each with its own values, by [`crate::Parts::listed`].
    Parts(Vec<ListedValues>),
}

/// Values of a listing, by their names in it.
pub type ListedValues = BTreeMap<&'static str, Option<ListedValue>>;

/// How many parts a device, or a part, can have, and how many are listed. A guest may make as many as its quota of nodes
/// has room for; neither the protocol of displays nor that of sound has a bound.
pub(crate) const PARTS_MOST: usize = 1024;

impl Listed {
    /// A device of which nothing but its identity is known.
    pub fn new(id: DeviceId, backend_path: impl Into<String>) -> Self {
        Self {
            id,
            backend_path: backend_path.into(),
            frontend_state: None,
            backend_state: None,
            online: None,
            hotplug_status: None,
            operation: None,
            of_kind: BTreeMap::new(),
        }
    }

    /// A text of its kind.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.of_kind.get(name)? {
            Some(ListedValue::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// A number of its kind.
    pub fn number(&self, name: &str) -> Option<u32> {
        match self.of_kind.get(name)? {
            Some(ListedValue::Number(number)) => Some(*number),
            _ => None,
        }
    }

    /// What it has several of.
    pub fn parts(&self) -> &[ListedValues] {
        self.id.kind.info().parts.map_or(&[], |parts| parts.of(&self.of_kind))
    }

    /// What its operation record says.
    pub fn record(&self) -> Option<Record> {
        Record::parse(self.operation.as_deref()?)
    }
}

impl Parts {
    /// These parts, of what has these values.
    pub fn of<'a>(&self, values: &'a ListedValues) -> &'a [ListedValues] {
        match values.get(self.name) {
            Some(Some(ListedValue::Parts(parts))) => parts,
            _ => &[],
        }
    }
}

/// The guest's devices of a kind, in the order of their ids.
///
/// Devices that vanish while they are read are left out. Entries without a backend in the
/// toolstack's record are no devices.
///
/// # Errors
///
/// Those of reading them.
pub async fn list(client: &Client, fe: DomId, kind: Kind) -> Result<Vec<Listed>, Error> {
    list_of(client, fe, &[kind]).await
}

/// All devices of the guest, kind after kind, each in the order of their ids: [`list`] for all kinds, in no more
/// round trips.
///
/// # Errors
///
/// Those of reading them.
pub async fn list_all(client: &Client, fe: DomId) -> Result<Vec<Listed>, Error> {
    list_of(client, fe, &Kind::ALL).await
}

async fn list_of(client: &Client, fe: DomId, kinds: &[Kind]) -> Result<Vec<Listed>, Error> {
    let devices = backends_of(client, fe, kinds).await?;
    let keys: Vec<Vec<Path>> =
        devices.iter().map(|(which, backend)| keys_of(*which, backend)).collect::<Result<_, _>>()?;
    let mut values = client.read_many(&keys.concat()).await?.into_iter();
    let mut listed: Vec<_> =
        devices.iter().map(|(which, backend)| listed(*which, backend, &mut values)).collect();
    for device in &mut listed {
        if let Some(parts) = device.id.kind.info().parts {
            let there = read_parts(client, &device.id.frontend()?, parts).await?;
            device.of_kind.insert(parts.name, Some(ListedValue::Parts(there)));
        }
    }
    Ok(listed)
}

/// The devices that [`list`] lists, and what serves them where.
pub(crate) async fn recorded(client: &Client, fe: DomId, kind: Kind) -> Result<Vec<DeviceId>, Error> {
    let backends = backends_of(client, fe, &[kind]).await?;
    Ok(backends.into_iter().map(|(which, backend)| id_of(which, &backend)).collect())
}

async fn backends_of(client: &Client, fe: DomId, kinds: &[Kind]) -> Result<Vec<(Which, Path)>, Error> {
    let parents: Vec<Path> = kinds.iter().map(|kind| lx_parent(fe, *kind)).collect::<Result<_, _>>()?;
    let names = try_join_all(parents.iter().map(|parent| client.directory_or_empty(parent))).await?;
    let mut recorded = Vec::new();
    for (kind, (parent, names)) in kinds.iter().zip(parents.iter().zip(names)) {
        let mut devids: Vec<u32> = names.iter().filter_map(|name| name.parse().ok()).collect();
        devids.retain(|devid| *devid >= kind.info().first_devid);
        devids.sort_unstable();
        for devid in devids {
            recorded.push((Which { fe, kind: *kind, devid }, parent.join(format!("{devid}/backend"))?));
        }
    }
    let paths: Vec<Path> = recorded.iter().map(|(_, path)| path.clone()).collect();
    let backends = client.read_many(&paths).await?;
    let found =
        |((which, _), backend): ((Which, Path), Option<Bytes>)| Some((which, Path::new(backend?).ok()?));
    Ok(recorded.into_iter().zip(backends).filter_map(found).collect())
}

fn id_of(which: Which, backend: &Path) -> DeviceId {
    let be = || backend.names().nth(2).and_then(|domid| domid.parse().ok()).unwrap_or(DomId::DOM0);
    DeviceId::served_at(which, backend).unwrap_or_else(|| DeviceId::new(which, be()))
}

/// What is read of a device.
fn keys_of(which: Which, backend: &Path) -> Result<Vec<Path>, Error> {
    let id = id_of(which, backend);
    let (lx, frontend) = (id.toolstack()?, id.frontend()?);
    let mut keys = vec![lx.join("op")?];
    for key in ["state", "online", "hotplug-status"] {
        keys.push(backend.join(key)?);
    }
    keys.push(frontend.join("state")?);
    for listed in which.kind.info().listed {
        keys.push(if listed.of_guest { frontend.join(listed.key)? } else { lx.join(listed.key)? });
    }
    Ok(keys)
}

/// A device, from the values of its keys in their order.
fn listed(which: Which, backend: &Path, values: &mut impl Iterator<Item = Option<Bytes>>) -> Listed {
    let mut next = || values.next().flatten();
    let text = |value: Option<Bytes>| value.map(|text| shown(&text));
    let mut listed = Listed::new(id_of(which, backend), backend.to_string());
    listed.operation = text(next());
    listed.backend_state = next().as_deref().map(StateValue::parse);
    listed.online = next().and_then(|online| match &online[..] {
        b"0" => Some(false),
        b"1" => Some(true),
        _ => None,
    });
    listed.hotplug_status = text(next());
    listed.frontend_state = next().as_deref().map(StateValue::parse);
    listed.of_kind = which.kind.info().listed.iter().map(|key| (key.name, key.value(next()))).collect();
    listed
}

impl ListedKey {
    fn value(&self, value: Option<Bytes>) -> Option<ListedValue> {
        let value = value?;
        if self.is_number {
            let number = std::str::from_utf8(&value).ok()?.parse().ok();
            number.map(ListedValue::Number)
        } else {
            Some(ListedValue::Text(shown(&value)))
        }
    }
}

/// The parts of a directory, of which the first that is not there is one too many.
async fn read_parts(client: &Client, parent: &Path, parts: &Parts) -> Result<Vec<ListedValues>, Error> {
    let mut there = Vec::new();
    for index in 0..PARTS_MOST {
        let part = parent.join(index.to_string())?;
        let keys = parts.listed.iter().map(|listed| part.join(listed.key));
        let keys: Vec<Path> = [Ok(part.clone())].into_iter().chain(keys).collect::<Result<_, _>>()?;
        let mut values = client.read_many(&keys).await?.into_iter();
        if values.next().flatten().is_none() {
            break;
        }
        let named = parts.listed.iter().zip(values);
        let mut values: ListedValues =
            named.map(|(listed, value)| (listed.name, listed.value(value))).collect();
        if let Some(of_part) = parts.parts {
            let of_part_there = Box::pin(read_parts(client, &part, of_part)).await?;
            values.insert(of_part.name, Some(ListedValue::Parts(of_part_there)));
        }
        there.push(values);
    }
    Ok(there)
}
