//! Listing a guest's devices, from the toolstack's record of them.

use bytes::Bytes;
use devstate::StateValue;
use xs_client::{Client, DomId, Error, Path};

use crate::device::lx_parent;
use crate::observe::shown;
use crate::{DeviceId, Kind};

/// A device of a guest, with what both ends say of it.
///
/// What is read from the guest's directory is its word alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its device id.
    pub devid: u32,
    /// The domain that serves it.
    pub be: DomId,
    /// Its directory in that domain's home.
    pub backend_path: String,
    /// Its address (vif).
    pub mac: Option<String>,
    /// Its name (vbd).
    pub vdev: Option<String>,
    /// What it serves (vbd).
    pub params: Option<String>,
    /// The bridge it is on (vif).
    pub bridge: Option<String>,
    /// The frontend's state.
    pub frontend_state: Option<StateValue>,
    /// The backend's state.
    pub backend_state: Option<StateValue>,
    /// Whether the backend is to survive a frontend that goes.
    pub online: Option<bool>,
    /// What the hotplug script reported.
    pub hotplug_status: Option<String>,
    /// The frontend's event channel.
    pub event_channel: Option<u32>,
    /// The frontend's ring (vbd).
    pub ring_ref: Option<u32>,
    /// The frontend's sending ring (vif).
    pub tx_ring_ref: Option<u32>,
    /// The frontend's receiving ring (vif).
    pub rx_ring_ref: Option<u32>,
    /// The record of an operation that is under way, or was left unfinished.
    pub operation: Option<String>,
}

fn number(value: Option<Bytes>) -> Option<u32> {
    std::str::from_utf8(&value?).ok()?.parse().ok()
}

fn text(value: Option<Bytes>) -> Option<String> {
    value.map(|text| shown(&text))
}

/// The guest's devices of a kind, in the order of their ids.
///
/// Devices that vanish while they are read are left out. Entries without a backend in the
/// toolstack's record are no devices.
pub async fn list(client: &Client, fe: DomId, kind: Kind) -> Result<Vec<Listed>, Error> {
    let parent = lx_parent(fe, kind)?;
    let names = client.directory_or_empty(&parent).await?;
    let mut devids: Vec<u32> = names.iter().filter_map(|name| name.parse().ok()).collect();
    devids.sort_unstable();
    let recorded: Vec<Path> =
        devids.iter().map(|devid| parent.join(format!("{devid}/backend"))).collect::<Result<_, _>>()?;
    let backends = client.read_many(&recorded).await?;
    let mut devices = Vec::with_capacity(devids.len());
    for (devid, backend) in devids.into_iter().zip(backends) {
        // The toolstack's and the guest's directories do not depend on the backend's domain.
        let id = DeviceId { fe, kind, devid, be: DomId::DOM0, be_kind: kind };
        let (lx, frontend) = (id.toolstack()?, id.frontend()?);
        let Some(backend) = backend.and_then(|text| Path::new(&text).ok()) else {
            continue;
        };
        let mut keys = Vec::new();
        for key in ["mac", "dev", "params", "bridge", "op"] {
            keys.push(lx.join(key)?);
        }
        for key in ["state", "online", "hotplug-status"] {
            keys.push(backend.join(key)?);
        }
        for key in ["state", "event-channel", "ring-ref", "tx-ring-ref", "rx-ring-ref"] {
            keys.push(frontend.join(key)?);
        }
        let mut values = client.read_many(&keys).await?.into_iter();
        let mut next = || values.next().flatten();
        // In the order of the keys.
        devices.push(Listed {
            devid,
            be: backend.names().nth(2).and_then(|domid| domid.parse().ok()).unwrap_or(DomId::DOM0),
            backend_path: backend.to_string(),
            mac: text(next()),
            vdev: text(next()),
            params: text(next()),
            bridge: text(next()),
            operation: text(next()),
            backend_state: next().as_deref().map(StateValue::parse),
            online: next().map(|online| &online[..] == b"1"),
            hotplug_status: text(next()),
            frontend_state: next().as_deref().map(StateValue::parse),
            event_channel: number(next()),
            ring_ref: number(next()),
            tx_ring_ref: number(next()),
            rx_ring_ref: number(next()),
        });
    }
    Ok(devices)
}
