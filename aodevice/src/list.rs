//! Listing a guest's devices, from the toolstack's record of them.

use std::collections::BTreeMap;

use devstate::StateValue;
use serde::Serialize;
use xs_client::{Client, DomId, Error, Path};

use crate::id::lx_parent;
use crate::operation::observe::shown;
use crate::{BackendKind, DeviceId, Kind, Record, Which};

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
    pub of_kind: BTreeMap<&'static str, Option<ListedValue>>,
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
}

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

    /// What its operation record says.
    pub fn record(&self) -> Option<Record> {
        Record::parse(self.operation.as_deref()?)
    }
}

/// The guest's devices of a kind, in the order of their ids.
///
/// Devices that vanish while they are read are left out. Entries without a backend in the
/// toolstack's record are no devices.
pub async fn list(client: &Client, fe: DomId, kind: Kind) -> Result<Vec<Listed>, Error> {
    let mut devices = Vec::new();
    for (which, backend) in backends_of(client, fe, kind).await? {
        devices.push(read(client, which, &backend).await?);
    }
    Ok(devices)
}

/// The devices that [`list`] lists, and what serves them.
pub(crate) async fn recorded(
    client: &Client,
    fe: DomId,
    kind: Kind,
) -> Result<Vec<(Which, BackendKind)>, Error> {
    let backends = backends_of(client, fe, kind).await?;
    Ok(backends.into_iter().map(|(which, backend)| (which, id_of(which, &backend).be_kind)).collect())
}

async fn backends_of(client: &Client, fe: DomId, kind: Kind) -> Result<Vec<(Which, Path)>, Error> {
    let parent = lx_parent(fe, kind)?;
    let names = client.directory_or_empty(&parent).await?;
    let mut devids: Vec<u32> = names.iter().filter_map(|name| name.parse().ok()).collect();
    devids.retain(|devid| *devid >= kind.info().first_devid);
    devids.sort_unstable();
    let recorded: Vec<Path> =
        devids.iter().map(|devid| parent.join(format!("{devid}/backend"))).collect::<Result<_, _>>()?;
    let backends = client.read_many(&recorded).await?;
    let named = devids.into_iter().zip(backends);
    let found = |(devid, backend): (u32, Option<bytes::Bytes>)| {
        Some((Which { fe, kind, devid }, Path::new(&backend?).ok()?))
    };
    Ok(named.filter_map(found).collect())
}

fn id_of(which: Which, backend: &Path) -> DeviceId {
    let be = || backend.names().nth(2).and_then(|domid| domid.parse().ok()).unwrap_or(DomId::DOM0);
    DeviceId::served_at(which, backend).unwrap_or_else(|| DeviceId::new(which, be()))
}

async fn read(client: &Client, which: Which, backend: &Path) -> Result<Listed, Error> {
    let id = id_of(which, backend);
    let (lx, frontend) = (id.toolstack()?, id.frontend()?);
    let of_kind = which.kind.info().listed;
    let mut keys = vec![lx.join("op")?];
    for key in ["state", "online", "hotplug-status"] {
        keys.push(backend.join(key)?);
    }
    keys.push(frontend.join("state")?);
    for listed in of_kind {
        keys.push(if listed.of_guest { frontend.join(listed.key)? } else { lx.join(listed.key)? });
    }
    let mut values = client.read_many(&keys).await?.into_iter();
    let mut next = || values.next().flatten();
    // In the order of the keys.
    let text = |value: Option<bytes::Bytes>| value.map(|text| shown(&text));
    let mut listed = Listed::new(id, backend.to_string());
    listed.operation = text(next());
    listed.backend_state = next().as_deref().map(StateValue::parse);
    listed.online = next().and_then(|online| match &online[..] {
        b"0" => Some(false),
        b"1" => Some(true),
        _ => None,
    });
    listed.hotplug_status = text(next());
    listed.frontend_state = next().as_deref().map(StateValue::parse);
    for key in of_kind {
        let value = next();
        let value = if key.is_number {
            let number = value.and_then(|value| std::str::from_utf8(&value).ok()?.parse().ok());
            number.map(ListedValue::Number)
        } else {
            text(value).map(ListedValue::Text)
        };
        listed.of_kind.insert(key.name, value);
    }
    Ok(listed)
}
