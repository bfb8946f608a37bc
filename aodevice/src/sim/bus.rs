//! What both sides have in common: finding devices below a directory, and one task per device
//! that looks at both ends after every hint and moves its own.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use xen_devstate::{StateValue, XenbusState};
use xs_client::{Client, DomId, Error, ErrorCode, Path, PathError, Watch};

use super::{backend, frontend};
use crate::{End, Kind, Server};

/// What a driver sees when it looks.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) kind: Kind,
    /// Its own state.
    pub(super) own: XenbusState,
    /// The other end's state; `None` if its directory is gone.
    pub(super) other: Option<XenbusState>,
    /// Whether the hotplug script has reported to the backend.
    pub(super) script_done: bool,
}

/// What a driver does: the keys to write, and then its new state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reaction {
    pub(super) keys: Vec<(&'static str, &'static str)>,
    pub(super) state: XenbusState,
}

impl Reaction {
    pub(super) fn to(state: XenbusState) -> Option<Self> {
        Some(Self { keys: Vec::new(), state })
    }

    pub(super) fn with(keys: &[(&'static str, &'static str)], state: XenbusState) -> Option<Self> {
        Some(Self { keys: keys.to_vec(), state })
    }
}

/// The drivers of one side of one domain. Dropping them is as if their kernel had stopped: no
/// device moves any more.
#[derive(Debug)]
#[must_use = "dropped drivers do nothing"]
pub struct Drivers {
    scan: JoinHandle<()>,
}

impl Drop for Drivers {
    fn drop(&mut self) {
        self.scan.abort();
    }
}

impl Drivers {
    /// The backend drivers of a domain. `latency` passes between a hint and what they do.
    pub fn backends(client: Client, domid: DomId, latency: Duration) -> Result<Self, Error> {
        Self::start(client, format!("/local/domain/{domid}/backend"), End::Backend, latency)
    }

    /// The frontend drivers of a guest. `latency` passes between a hint and what they do.
    pub fn frontends(client: Client, domid: DomId, latency: Duration) -> Result<Self, Error> {
        Self::start(client, format!("/local/domain/{domid}/device"), End::Frontend, latency)
    }

    fn start(client: Client, root: String, end: End, latency: Duration) -> Result<Self, Error> {
        let bus = Bus { client, root: Path::new(root)?, end, latency };
        let scan = tokio::spawn(async move {
            // A store that goes away ends the drivers, as it would a kernel's.
            _ = bus.scan().await;
        });
        Ok(Self { scan })
    }
}

/// A device's task; ends with the bus.
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Clone)]
struct Bus {
    client: Client,
    root: Path,
    end: End,
    latency: Duration,
}

impl Bus {
    async fn scan(&self) -> Result<(), Error> {
        let mut watch = self.client.watch(&self.root).await?;
        let mut drivers: HashMap<Path, Driver> = HashMap::new();
        loop {
            watch.changed().await?;
            let devices = self.devices().await?;
            // A driver goes by this alone: one that ended by itself might miss that its directory is made again.
            let there: HashSet<&Path> = devices.iter().map(|(_, directory)| directory).collect();
            drivers.retain(|directory, driver| there.contains(directory) && !driver.0.is_finished());
            for (kind, directory) in devices {
                drivers.entry(directory).or_insert_with_key(|directory| {
                    let device = Device { bus: self.clone(), kind, directory: directory.clone() };
                    Driver(tokio::spawn(async move { _ = device.drive().await }))
                });
            }
        }
    }

    /// The devices that have a `state`: a backend's are a level deeper, below their guest.
    async fn devices(&self) -> Result<Vec<(Kind, Path)>, Error> {
        let mut devices = Vec::new();
        let there = self.client.directory_or_empty(&self.root).await?;
        // A PCI bus has drivers of its own, which change its functions.
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Pci) {
            for parent in self.parents(kind, &there).await? {
                devices.extend(self.children(&parent).await?.into_iter().map(|device| (kind, device)));
            }
        }
        Ok(devices)
    }

    /// The directories that hold devices of a kind, but for backends that a device model serves: there is none.
    async fn parents(&self, kind: Kind, there: &[String]) -> Result<Vec<Path>, Error> {
        let is_there = |name: &&str| there.iter().any(|there| there == name);
        if self.end == End::Frontend {
            return Ok([kind.name()]
                .into_iter()
                .filter(is_there)
                .map(|name| self.root.join(name))
                .collect::<Result<_, _>>()?);
        }
        let backends = kind.info().backends.iter().filter(|backend| backend.server() != Server::DeviceModel);
        let mut parents = Vec::new();
        for name in backends.map(|backend| backend.name()).filter(is_there) {
            parents.extend(self.children(&self.root.join(name)?).await?);
        }
        Ok(parents)
    }

    async fn children(&self, parent: &Path) -> Result<Vec<Path>, Error> {
        let names = self.client.directory_or_empty(parent).await?;
        names.iter().map(|name| Ok(parent.join(name)?)).collect()
    }
}

/// What is there of a device.
enum Look {
    View(View),
    /// It is being made, or is gone by half.
    NoState,
    /// It is gone, or is another one by now.
    AnotherPeer,
}

struct Device {
    bus: Bus,
    kind: Kind,
    directory: Path,
}

impl Device {
    /// Never ends but by an error. A directory that is removed and made again before its driver looks is another device with
    /// another peer.
    async fn drive(&self) -> Result<(), Error> {
        let mut own = self.bus.client.watch(&self.directory).await?;
        loop {
            match self.bus.client.read_opt(&self.peer_key()?).await? {
                Some(peer) => self.serve(&peer, &mut own).await?,
                None => _ = own.changed().await?,
            }
        }
    }

    /// The node that names the directory of the other end.
    fn peer_key(&self) -> Result<Path, PathError> {
        self.directory.join(if self.bus.end == End::Backend { "frontend" } else { "backend" })
    }

    /// Until the device has no such peer any more.
    async fn serve(&self, peer: &Bytes, own: &mut Watch) -> Result<(), Error> {
        let Bus { client, end, latency, .. } = &self.bus;
        let peer_state = Path::new(peer.clone())?.join("state")?;
        let mut other = client.watch(&peer_state).await?;
        loop {
            let reaction = match (self.look(peer, &peer_state).await?, end) {
                (Look::AnotherPeer, _) => return Ok(()),
                (Look::NoState, _) => None,
                (Look::View(view), End::Backend) => backend::react(&view),
                (Look::View(view), End::Frontend) => frontend::react(&view),
            };
            if let Some(reaction) = reaction {
                sleep(*latency).await;
                self.apply(peer, &reaction).await?;
                continue;
            }
            tokio::select! {
                changed = own.changed() => changed?,
                changed = other.changed() => changed?,
            };
        }
    }

    async fn look(&self, peer: &Bytes, peer_state: &Path) -> Result<Look, Error> {
        let other = match self.bus.client.read_opt(peer_state).await {
            // What a domain may not see of another one is gone to it.
            Err(Error::Store { code: ErrorCode::EACCES, .. }) => None,
            other => other?,
        };
        let other = other.and_then(|state| StateValue::parse(&state).state());
        let keys = [
            self.directory.join("state")?,
            self.directory.join("physical-device")?,
            self.directory.join("hotplug-status")?,
            self.peer_key()?,
        ];
        let seen = self.bus.client.read_many(&keys).await?;
        if seen[3].as_ref() != Some(peer) {
            return Ok(Look::AnotherPeer);
        }
        let Some(own) = seen[0].as_deref().and_then(|state| StateValue::parse(state).state()) else {
            return Ok(Look::NoState);
        };
        let reported = ["physical-device", "hotplug-status"].into_iter().zip(&seen[1..3]);
        let reported = reported.filter_map(|(key, value)| {
            Some((key.to_owned(), String::from_utf8_lossy(value.as_deref()?).into_owned()))
        });
        let script_done = (self.kind.info().unreported)(&reported.collect()).is_none();
        Ok(Look::View(View { kind: self.kind, own, other, script_done }))
    }

    /// Writes, but never into a directory that is gone, which would bring it back, or is another device's by now.
    async fn apply(&self, peer: &Bytes, reaction: &Reaction) -> Result<(), Error> {
        let (state, peer_key) = (&self.directory.join("state")?, &self.peer_key()?);
        self.bus
            .client
            .transaction(|tx| async move {
                if tx.read_opt(peer_key).await?.as_ref() != Some(peer) || tx.read_opt(state).await?.is_none()
                {
                    return Ok(());
                }
                for (key, value) in &reaction.keys {
                    tx.write(&self.directory.join(key)?, *value).await?;
                }
                tx.write(state, reaction.state.digits()).await
            })
            .await
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;
    use xs_client::{Access, Config, Permissions};
    use xs_store::Store;

    use super::*;
    use crate::sim::{create_domain, create_domain0};

    const GUEST: DomId = DomId(1);
    const LATENCY: Duration = Duration::from_millis(200);

    fn path(text: &str) -> Path {
        Path::new(text).unwrap()
    }

    async fn device(dom0: &Client, backend: &str) {
        let (directory, state) =
            (path("/local/domain/1/device/vbd/51712"), path(&format!("{backend}/state")));
        dom0.write(&state, "2").await.unwrap();
        dom0.set_perms(&state, Permissions::owned_by(DomId::DOM0, Access::Read)).await.unwrap();
        dom0.mkdir(&directory).await.unwrap();
        dom0.set_perms(&directory, Permissions::owned_by(GUEST, Access::None)).await.unwrap();
        dom0.write(&directory.join("backend").unwrap(), backend.to_owned()).await.unwrap();
        dom0.write(&directory.join("state").unwrap(), "1").await.unwrap();
    }

    async fn frontend_gets_to(dom0: &Client, wanted: &str) {
        let state = path("/local/domain/1/device/vbd/51712/state");
        let mut watch = dom0.watch(&state).await.unwrap();
        let reached = async {
            while dom0.read_opt(&state).await.unwrap().as_deref() != Some(wanted.as_bytes()) {
                watch.changed().await.unwrap();
            }
        };
        timeout(10 * LATENCY, reached).await.expect(wanted);
    }

    #[tokio::test(start_paused = true)]
    async fn a_device_that_is_made_again_at_once_follows_its_new_backend() {
        let store = Store::new();
        store.introduce(GUEST);
        let [dom0, guest] =
            [DomId::DOM0, GUEST].map(|domid| Client::over(store.connect(domid), Config::default()));
        create_domain0(&dom0).await.unwrap();
        create_domain(&dom0, GUEST, "g").await.unwrap();
        let _drivers = Drivers::frontends(guest, GUEST, LATENCY).unwrap();
        device(&dom0, "/local/domain/0/backend/vbd/1/51712").await;
        // It has been seen, and is about to be Initialised.
        sleep(LATENCY / 2).await;
        dom0.rm(&path("/local/domain/1/device/vbd/51712")).await.unwrap();
        device(&dom0, "/local/domain/2/backend/vbd/1/51712").await;
        frontend_gets_to(&dom0, "3").await;
        dom0.write(&path("/local/domain/2/backend/vbd/1/51712/state"), "4").await.unwrap();
        frontend_gets_to(&dom0, "4").await;
    }
}
