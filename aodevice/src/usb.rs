//! The USB controllers of a guest, with what is in their ports.
//!
//! A controller that the device model emulates has no backend, and its keys in the toolstack's directory alone, so that
//! [`list`](crate::list()) does not know it.

use serde::Serialize;
use xen_devstate::StateValue;
use xs_client::{Client, DomId, Error, Path, Requests};

use crate::id::{domid_number, lx_parent};
use crate::kind::usbctrl::PORTS;
use crate::operation::observe::shown;
use crate::operation::text;
use crate::{BackendKind, DeviceId, Kind, Which};

/// A USB controller of a guest.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct UsbController {
    /// Its guest.
    #[serde(serialize_with = "domid_number")]
    pub domid: DomId,
    /// Its device id.
    pub devid: u32,
    /// `pv`, `qusb` or `devicemodel`, as it is recorded.
    #[serde(rename = "type")]
    pub usb_type: Option<String>,
    /// The domain that serves it.
    #[serde(serialize_with = "domid_number")]
    pub backend_domid: DomId,
    /// Its directory in that domain, if it has a backend.
    pub backend_path: Option<String>,
    /// The frontend's state.
    pub frontend_state: Option<StateValue>,
    /// The version of USB.
    pub version: Option<u32>,
    /// What is in its ports, the first of which is number 1: the bus id of a device of the host, as in `1-2`.
    pub ports: Vec<Option<String>>,
}

/// The USB controllers of a guest, in the order of their ids. What vanishes while it is read is left out.
///
/// # Errors
///
/// Those of reading.
pub async fn usb_controllers(client: &Client, fe: DomId) -> Result<Vec<UsbController>, Error> {
    let mut controllers = recorded(client, fe).await?;
    let states = controllers.iter().map(|controller| controller.id().frontend()?.join("state"));
    let states: Vec<Path> = states.collect::<Result<_, _>>()?;
    for (controller, state) in controllers.iter_mut().zip(client.read_many(&states).await?) {
        controller.frontend_state = state.as_deref().map(StateValue::parse);
    }
    Ok(controllers)
}

/// The same without the frontends' states, so that nothing is read that a guest can write.
pub(crate) async fn recorded(store: &Requests, fe: DomId) -> Result<Vec<UsbController>, Error> {
    let names = store.directory_or_empty(&lx_parent(fe, Kind::Vusb)?).await?;
    let mut devids: Vec<u32> = names.iter().filter_map(|name| name.parse().ok()).collect();
    devids.sort_unstable();
    let mut controllers = Vec::new();
    for devid in devids {
        controllers.extend(read(store, Which { fe, kind: Kind::Vusb, devid }).await?);
    }
    Ok(controllers)
}

impl UsbController {
    /// Its identity; that of one without a backend as if the device model served it.
    pub(crate) fn id(&self) -> DeviceId {
        let which = Which { fe: self.domid, kind: Kind::Vusb, devid: self.devid };
        let backend = self.backend_path.as_ref().and_then(|path| Path::new(path).ok());
        let served = backend.and_then(|path| DeviceId::served_at(which, &path));
        served.unwrap_or_else(|| DeviceId::with_backend(which, DomId::DOM0, BackendKind::Qusb))
    }
}

async fn read(store: &Requests, which: Which) -> Result<Option<UsbController>, Error> {
    let lx = DeviceId::new(which, DomId::DOM0).toolstack()?;
    let mut keys = Vec::new();
    for key in ["type", "usb-ver", "num-ports", "backend"] {
        keys.push(lx.join(key)?);
    }
    keys.push(lx.clone());
    let mut seen = store.read_many(&keys).await?.into_iter();
    let mut next = || seen.next().flatten();
    let (usb_type, version, count, backend) = (next(), next(), next(), next());
    if next().is_none() {
        return Ok(None);
    }
    let backend = backend.and_then(|backend| Path::new(&backend).ok());
    let served = backend.as_ref().and_then(|backend| DeviceId::served_at(which, backend));
    let count = text(count).and_then(|count| count.parse().ok()).unwrap_or(0);
    let place = backend.as_ref().unwrap_or(&lx);
    let ports = PORTS.iter().take(count).map(|port| place.join(port)).collect::<Result<Vec<_>, _>>()?;
    let ports = store.read_many(&ports).await?.into_iter();
    Ok(Some(UsbController {
        domid: which.fe,
        devid: which.devid,
        usb_type: usb_type.map(|text| shown(&text)),
        backend_domid: served.map_or(DomId::DOM0, |id| id.be),
        frontend_state: None,
        version: text(version).and_then(|version| version.parse().ok()),
        ports: ports.map(|port| port.filter(|port| !port.is_empty()).map(|port| shown(&port))).collect(),
        backend_path: backend.map(|backend| backend.to_string()),
    }))
}
