//! What both sides have in common: finding devices below a directory, and one task per device
//! that looks at both ends after every hint and moves its own.

use std::collections::HashMap;
use std::time::Duration;

use devstate::{StateValue, XenbusState};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use xs_client::{Client, DomId, Error, ErrorCode, Path};

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
            drivers.retain(|_, driver| !driver.0.is_finished());
            for (kind, directory) in self.devices().await? {
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

struct Device {
    bus: Bus,
    kind: Kind,
    directory: Path,
}

impl Device {
    async fn drive(&self) -> Result<(), Error> {
        let Bus { client, end, latency, .. } = &self.bus;
        let peer_key = if *end == End::Backend { "frontend" } else { "backend" };
        let Some(peer) = client.read_opt(&self.directory.join(peer_key)?).await? else {
            return Ok(());
        };
        let peer_state = Path::new(peer)?.join("state")?;
        let mut own = client.watch(&self.directory).await?;
        let mut other = client.watch(&peer_state).await?;
        while let Some(view) = self.look(&peer_state).await? {
            let reaction = match end {
                End::Backend => backend::react(&view),
                End::Frontend => frontend::react(&view),
            };
            if let Some(reaction) = reaction {
                sleep(*latency).await;
                self.apply(&reaction).await?;
                continue;
            }
            tokio::select! {
                changed = own.changed() => changed?,
                changed = other.changed() => changed?,
            };
        }
        Ok(())
    }

    /// `None` if the device's own directory is gone.
    async fn look(&self, peer_state: &Path) -> Result<Option<View>, Error> {
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
        ];
        let seen = self.bus.client.read_many(&keys).await?;
        let own = seen[0].as_deref().and_then(|state| StateValue::parse(state).state());
        let reported = ["physical-device", "hotplug-status"].into_iter().zip(&seen[1..]);
        let reported = reported.filter_map(|(key, value)| {
            Some((key.to_owned(), String::from_utf8_lossy(value.as_deref()?).into_owned()))
        });
        let script_done = (self.kind.info().unreported)(&reported.collect()).is_none();
        Ok(own.map(|own| View { kind: self.kind, own, other, script_done }))
    }

    /// Writes, but never into a directory that is gone: that would bring it back.
    async fn apply(&self, reaction: &Reaction) -> Result<(), Error> {
        let state = &self.directory.join("state")?;
        self.bus
            .client
            .transaction(|tx| async move {
                if tx.read_opt(state).await?.is_none() {
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
