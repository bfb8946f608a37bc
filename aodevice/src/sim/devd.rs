//! The daemon of a driver domain, as far as the store sees it: it has run a device's hotplug script once the backend has
//! taken the device up, and removes the backend's directory once the device is closed.

use std::collections::HashSet;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::sleep;
use xen_devstate::{StateValue, XenbusState};
use xs_client::{Client, DomId, Error, Path};

use crate::BackendKind;

/// Such a daemon. Dropping it is as if it had been killed.
#[derive(Debug)]
#[must_use = "a dropped daemon does nothing"]
pub struct Devd(JoinHandle<()>);

impl Drop for Devd {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What it does for a device.
enum Task {
    Add,
    Remove,
}

impl Devd {
    /// The daemon of this domain, on a connection of that. A script takes this long.
    pub fn start(client: Client, domid: DomId, duration: Duration) -> Result<Self, Error> {
        let root = Path::new(format!("/local/domain/{domid}/backend"))?;
        Ok(Self(tokio::spawn(async move {
            // A store that goes away ends it.
            _ = serve(&client, &root, duration).await;
        })))
    }
}

async fn serve(client: &Client, root: &Path, duration: Duration) -> Result<(), Error> {
    let mut watch = client.watch(root).await?;
    let mut added: HashSet<Path> = HashSet::new();
    loop {
        watch.changed().await?;
        for (kind, device) in devices(client, root).await? {
            let keys = [device.join("state")?, device.join("online")?];
            let seen = client.read_many(&keys).await?;
            let state = seen[0].as_deref().and_then(|state| StateValue::parse(state).state());
            let is_online = seen[1].as_deref() != Some(b"0");
            let task = match state {
                Some(XenbusState::InitWait) if is_online && !added.contains(&device) => Task::Add,
                Some(XenbusState::Closed) if !is_online => Task::Remove,
                _ => continue,
            };
            sleep(duration).await;
            match task {
                Task::Add => {
                    added.insert(device.clone());
                    report(client, kind, &device).await?;
                }
                Task::Remove => {
                    added.remove(&device);
                    client.rm(&device).await?;
                }
            }
        }
    }
}

/// Those that there are, with the kinds of their backends.
async fn devices(client: &Client, root: &Path) -> Result<Vec<(BackendKind, Path)>, Error> {
    let mut devices = Vec::new();
    for name in client.directory_or_empty(root).await? {
        let Some(kind) = BackendKind::from_name(&name).filter(|kind| kind.is_of_devd()) else { continue };
        let of_kind = root.join(name)?;
        for guest in client.directory_or_empty(&of_kind).await? {
            let of_guest = of_kind.join(guest)?;
            for devid in client.directory_or_empty(&of_guest).await? {
                devices.push((kind, of_guest.join(devid)?));
            }
        }
    }
    Ok(devices)
}

/// Writes what the stock script would, but not into a directory that is gone.
async fn report(client: &Client, kind: BackendKind, device: &Path) -> Result<(), Error> {
    let keys: &[(&str, &str)] = match kind {
        BackendKind::Vbd | BackendKind::Vbd3 => &[
            ("node", "/dev/sim0"),
            ("physical-device", "7:0"),
            ("physical-device-path", "/dev/sim0"),
            ("hotplug-status", "connected"),
        ],
        BackendKind::Vif => &[("hotplug-status", "connected")],
        _ => &[],
    };
    client
        .transaction(|tx| async move {
            if tx.read_opt(&device.join("state")?).await?.is_some() {
                for (key, value) in keys {
                    tx.write(&device.join(key)?, *value).await?;
                }
            }
            Ok(())
        })
        .await
}
