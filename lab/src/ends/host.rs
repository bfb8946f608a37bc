//! The host of a cell: Debian's xenstored under the stand-in hypervisor, a guest, and drivers at both
//! ends of its devices that can be taken away.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::{Instant, sleep};
use xen_aodevice::sim::{self, Drivers};
use xs_client::{Client, Config, DomId, Path};

use super::Setting;
use super::cell::End;
use super::device::Folder;
use super::program::{Program, Stdout};
use super::relay::Relay;
use crate::daemon::{Daemon, DaemonKind};

/// The guest.
const GUEST: DomId = DomId(1);

/// Where nodes of its disk `xvda` can be.
const DIRECTORIES: [&str; 4] = [
    "/local/domain/0/backend/vbd/1/51712",
    "/local/domain/1/device/vbd/51712",
    "/libxl/1/device/vbd/51712",
    OWN,
];

/// What xendev may keep for itself.
const OWN: &str = "/tool/xendev";

/// How often to look at what there is no telling of.
const LOOK: Duration = Duration::from_millis(10);

pub(super) struct Host<'a> {
    pub(super) setting: &'a Setting,
    pub(super) folder: Folder,
    pub(super) relay: Relay,
    daemon: Daemon,
    client: Client,
    backends: Option<Drivers>,
    frontends: Option<Drivers>,
    /// Whether there is a guest that could answer.
    has_guest: bool,
}

impl<'a> Host<'a> {
    /// Starts a host with all its drivers.
    pub(super) async fn start(setting: &'a Setting, path: PathBuf) -> Result<Self> {
        let folder = Folder::new(path, setting.devices)?;
        let mut relay = Relay::new(folder.path().join("store"), &setting.program);
        let (daemon, client) = boot().await?;
        relay.open(daemon.socket().to_owned())?;
        let (backends, frontends) = (None, None);
        let mut host = Self { setting, folder, relay, daemon, client, backends, frontends, has_guest: true };
        host.enter(End::Backend).await?;
        host.enter(End::Frontend).await?;
        Ok(host)
    }

    /// Starts the drivers of an end, unless they are there, or their domain is not.
    pub(super) async fn enter(&mut self, end: End) -> Result<()> {
        let now = Duration::ZERO;
        if end == End::Backend && self.backends.is_none() {
            self.backends = Some(Drivers::backends(connect(&self.daemon).await?, DomId::DOM0, now)?);
        }
        if end == End::Frontend && self.frontends.is_none() && self.has_guest {
            self.frontends = Some(Drivers::frontends(connect(&self.daemon).await?, GUEST, now)?);
        }
        Ok(())
    }

    /// Stops the drivers of an end.
    pub(super) fn leave(&mut self, end: End) {
        match end {
            End::Backend => self.backends = None,
            End::Frontend => self.frontends = None,
        }
    }

    /// Whether the guest is there and does not answer.
    pub(super) fn guest_is_mute(&self) -> bool {
        self.has_guest && self.frontends.is_none()
    }

    /// The store is gone, and then there again with a guest and none of its devices.
    pub(super) async fn lose_store(&mut self) -> Result<()> {
        let ends = [
            (End::Backend, self.backends.take().is_some()),
            (End::Frontend, self.frontends.take().is_some()),
        ];
        self.relay.close();
        // The old one ends here, and its files with it.
        (self.daemon, self.client) = boot().await?;
        self.relay.open(self.daemon.socket().to_owned())?;
        for (end, was_there) in ends {
            if was_there {
                self.enter(end).await?;
            }
        }
        Ok(())
    }

    /// The store cannot be reached for a moment.
    pub(super) async fn cut_store(&mut self) -> Result<()> {
        self.relay.close();
        sleep(Duration::from_millis(500)).await;
        Ok(self.relay.open(self.daemon.socket().to_owned())?)
    }

    /// The guest ends, as its toolstack sees to it, but for the backends of its devices.
    pub(super) async fn end_guest(&mut self) -> Result<()> {
        self.leave(End::Frontend);
        self.has_guest = false;
        for tree in [format!("/local/domain/{GUEST}"), format!("/libxl/{GUEST}")] {
            self.client.rm(&Path::new(tree)?).await?;
        }
        Ok(self.daemon.hypervisor().destroy(GUEST)?)
    }

    /// Starts xendev on this host.
    pub(super) fn xendev(&self, args: &[&str], stdout: Stdout) -> Result<Program> {
        let socket = self.relay.socket().display().to_string();
        let args: Vec<&str> = ["--store", &socket].into_iter().chain(args.iter().copied()).collect();
        Program::spawn(&self.setting.program, &args, self.folder.path(), stdout)
    }

    /// The nodes of the device that there are, with their values.
    pub(super) async fn nodes(&self) -> Result<Vec<String>> {
        let mut nodes = Vec::new();
        for directory in DIRECTORIES {
            let Some(tree) = self.client.read_tree(&Path::new(directory)?).await? else { continue };
            // The directory itself may stay where it is no device's.
            let is_device = directory != OWN;
            let below = tree.nodes().filter(|(name, _)| is_device || !name.is_empty());
            nodes.extend(
                below.map(|(name, node)| {
                    format!("{directory}/{name}={}", String::from_utf8_lossy(&node.value))
                }),
            );
        }
        Ok(nodes)
    }

    /// A key of the backend.
    pub(super) async fn backend(&self, key: &str) -> Result<Option<String>> {
        let value = self.client.read_opt(&Path::new(format!("{}/{key}", DIRECTORIES[0]))?).await?;
        Ok(value.map(|value| String::from_utf8_lossy(&value).into_owned()))
    }
}

async fn connect(daemon: &Daemon) -> Result<Client> {
    Ok(Client::connect_unix(daemon.socket(), Config::default()).await?)
}

/// A store with domain 0 and the guest.
async fn boot() -> Result<(Daemon, Client)> {
    let start = || {
        let daemon = Daemon::start(DaemonKind::Xenstored)?;
        daemon.create_domain(GUEST)?;
        anyhow::Ok(daemon)
    };
    let daemon = tokio::task::spawn_blocking(start).await.context("starting a store")??;
    let client = connect(&daemon).await?;
    sim::create_domain0(&client).await?;
    sim::create_domain(&client, GUEST, "guest").await?;
    Ok((daemon, client))
}

/// Waits until something is so; whether it was in time.
pub(super) async fn until(limit: Duration, mut is_so: impl AsyncFnMut() -> Result<bool>) -> Result<bool> {
    let begun = Instant::now();
    while !is_so().await? {
        if begun.elapsed() > limit {
            return Ok(false);
        }
        sleep(LOOK).await;
    }
    Ok(true)
}
