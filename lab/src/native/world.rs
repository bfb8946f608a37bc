//! A store with guests, files and devices, for one pass through a case.

use std::collections::BTreeMap;
use std::fs;
use std::future::ready;
use std::path::{Path as FsPath, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use xen_aodevice::sim;
use xen_hotplug::native::block::{Block, Disk, Domain, Failure, Saved, User, detach};
use xen_hotplug::{Action, Held, Kind, Limits, Report, Request, Runner as _, ScriptRunner};
use xs_client::{Client, Config, DomId, Path};

use super::observe::loops_of;
use crate::daemon::{Daemon, DaemonKind};
use crate::failure::{Failure as LabFailure, output_of};

/// The guest whose disk is attached, the other guest, and the disk of either.
pub(super) const GUEST: u32 = 1;
pub(super) const OTHER: u32 = 2;
pub(super) const VDEV: u32 = 51712;

/// How long a handler may take.
pub(super) const LIMIT: Duration = Duration::from_secs(20);

/// A store, a folder, and the devices that were made in it. Dropping it gives all back.
pub(super) struct World {
    pub(super) client: Client,
    daemon: Daemon,
    folder: TempDir,
    mounts: Vec<PathBuf>,
}

impl World {
    /// Domain 0 and the guests 1 and 2, without disks.
    pub(super) async fn start() -> Result<Self> {
        let boot = || {
            let daemon = Daemon::start(DaemonKind::Xenstored)?;
            [GUEST, OTHER].iter().try_for_each(|domid| daemon.create_domain(DomId(*domid)))?;
            anyhow::Ok(daemon)
        };
        let daemon = tokio::task::spawn_blocking(boot).await.context("starting a store")??;
        let client = Client::connect_unix(daemon.socket(), Config::default()).await?;
        sim::create_domain0(&client).await?;
        for domid in [GUEST, OTHER] {
            sim::create_domain(&client, DomId(domid), &format!("guest-{domid}")).await?;
        }
        // The loop driver shows the path behind a device without links.
        let place = std::env::temp_dir().canonicalize()?;
        let folder = tempfile::Builder::new().prefix("xendev-native-").tempdir_in(place)?;
        let world = Self { client, daemon, folder, mounts: Vec::new() };
        world.set_vm(GUEST, "/vm/one").await?;
        world.set_vm(OTHER, "/vm/two").await?;
        Ok(world)
    }

    /// Which virtual machine a domain is.
    pub(super) async fn set_vm(&self, domid: u32, vm: &str) -> Result<()> {
        self.write(&format!("/local/domain/{domid}/vm"), vm).await
    }

    /// Makes a domain another's stub domain.
    pub(super) async fn set_target(&self, stub: u32, target: u32) -> Result<()> {
        self.write(&format!("/local/domain/{stub}/target"), &target.to_string()).await
    }

    async fn write(&self, path: &str, value: &str) -> Result<()> {
        Ok(self.client.write(&Path::new(path)?, value.to_owned()).await?)
    }

    pub(super) async fn read(&self, path: &str) -> Result<Option<String>> {
        let value = self.client.read_opt(&Path::new(path)?).await?;
        Ok(value.map(|value| String::from_utf8_lossy(&value).into_owned()))
    }

    pub(super) async fn list(&self, path: &str) -> Result<Vec<String>> {
        Ok(self.client.directory_or_empty(&Path::new(path)?).await?)
    }

    /// A path in the folder.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// An image of this size.
    pub(super) fn image(&self, name: &str, size: u64) -> Result<PathBuf> {
        let path = self.path(name);
        fs::File::create(&path)?.set_len(size)?;
        Ok(path)
    }

    /// A loop device that serves a file, made by losetup: a block device like any other. Its number reads differently
    /// in hexadecimal.
    pub(super) fn device(&self, image: &FsPath) -> Result<String> {
        let mut last = None;
        for number in 26..64 {
            let node = format!("/dev/loop{number}");
            match losetup(&[&node, &image.to_string_lossy()]) {
                Ok(_) => return Ok(node),
                // It may be in use.
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("no device was tried")?)
    }

    /// Makes a file system on a device and mounts it.
    pub(super) fn mount(&mut self, node: &str, options: &str) -> Result<()> {
        output_of(Command::new("/usr/sbin/mkfs.ext4").args(["-q", node]))?;
        self.mount_as(&["-t", "ext4", "-o", options, node])
    }

    /// Mounts something in the folder, as `mnt`.
    pub(super) fn mount_as(&mut self, args: &[&str]) -> Result<()> {
        let point = self.path("mnt");
        fs::create_dir(&point)?;
        output_of(Command::new("mount").args(args).arg(&point))?;
        self.mounts.push(point);
        Ok(())
    }

    /// Changes the mount.
    pub(super) fn remount(&self, options: &str) -> Result<()> {
        let options = format!("remount,{options}");
        output_of(Command::new("mount").args(["-o", &options]).arg(self.path("mnt"))).map(drop)
    }

    /// Writes the backend's directory of a disk, as a toolstack does.
    pub(super) async fn backend(&self, kind: &str, domid: u32, keys: &[(&str, &str)]) -> Result<()> {
        let directory = format!("/local/domain/0/backend/{kind}/{domid}/{VDEV}");
        for (key, value) in [
            ("frontend-id", &*domid.to_string()),
            ("online", "1"),
            ("state", "2"),
            ("dev", "xvda"),
            ("type", "phy"),
        ]
        .iter()
        .chain(keys)
        {
            self.write(&format!("{directory}/{key}"), value).await?;
        }
        Ok(())
    }

    /// The keys of a guest's disk in the order in which they were made, with their values.
    pub(super) async fn keys(&self, domid: u32) -> Result<Vec<(String, String)>> {
        let directory = Self::directory(domid);
        let mut keys = Vec::new();
        for key in self.list(&directory).await? {
            let value = self.read(&format!("{directory}/{key}")).await?.unwrap_or_default();
            keys.push((key, value));
        }
        Ok(keys)
    }

    /// The backend's directory of a guest's disk.
    pub(super) fn directory(domid: u32) -> String {
        format!("/local/domain/0/backend/vbd/{domid}/{VDEV}")
    }

    /// Runs the script for a guest's disk.
    pub(super) async fn script(&self, domid: u32, script: &FsPath, action: Action) -> Result<Report> {
        let request = Request::new(Kind::Vbd, action, domid, VDEV, script);
        Ok(self.runner().run(&request, &Limits::default(), &CancellationToken::new()).await)
    }

    fn runner(&self) -> ScriptRunner {
        let runner = ScriptRunner::new().env("XENSTORED_PATH", self.daemon.socket());
        runner.lock_dir(self.folder.path().join("locks"))
    }

    /// Keeps the scripts of a guest's disk waiting.
    async fn hold(&self, domid: u32, action: Action) -> Result<Held> {
        let request = Request::new(Kind::Vbd, action, domid, VDEV, "/etc/xen/scripts/block");
        let held = self
            .runner()
            .hold(&request, &Limits::default(), &CancellationToken::new(), Box::pin(ready(true)))
            .await;
        held.map_err(|ending| anyhow::anyhow!("the lock of the device {ending}"))
    }

    /// Attaches a guest's disk by the handler, and writes what the handler says, whatever came of it.
    pub(super) async fn attach(&self, domid: u32, block: &Block) -> Result<Result<Option<Saved>, Failure>> {
        let _held = self.hold(domid, Action::Add).await?;
        let keys: BTreeMap<String, String> = self.keys(domid).await?.into_iter().collect();
        let cancel = CancellationToken::new();
        let begun = match Disk::of(&keys) {
            Ok(disk) => block.begin(&disk, LIMIT, &cancel).await,
            Err(failure) => Err(failure),
        };
        let attached = match begun {
            Ok(begun) => begun.attach(self.domain(domid).await?, self.users(domid).await?).await,
            Err(failure) => Err(failure),
        };
        let keys = match &attached {
            Ok(attached) => attached.keys(),
            Err(failure) => failure.keys().to_vec(),
        };
        for (key, value) in keys {
            self.write(&format!("{}/{key}", Self::directory(domid)), &value).await?;
        }
        Ok(attached.map(xen_hotplug::native::block::Attached::keep))
    }

    /// Detaches a guest's disk by the handler, from what the store holds of it.
    pub(super) async fn detach(&self, domid: u32) -> Result<String> {
        let _held = self.hold(domid, Action::Remove).await?;
        let keys: BTreeMap<String, String> = self.keys(domid).await?.into_iter().collect();
        let Some(saved) = Saved::of(&keys) else { return Ok("nothing to do".to_owned()) };
        Ok(format!("{:?}", detach(saved, LIMIT, &CancellationToken::new()).await?))
    }

    pub(super) async fn domain(&self, domid: u32) -> Result<Domain> {
        let home = format!("/local/domain/{domid}");
        let (name, vm) = (self.read(&format!("{home}/name")).await?, self.read(&format!("{home}/vm")).await?);
        let target_vm = match self.read(&format!("{home}/target")).await? {
            Some(target) => self.read(&format!("/local/domain/{target}/vm")).await?,
            None => None,
        };
        Ok(Domain { domid, name, vm, target_vm })
    }

    /// All disks in the store but one guest's.
    pub(super) async fn users(&self, own: u32) -> Result<Vec<User>> {
        let mut users = Vec::new();
        for kind in ["vbd", "vbd3", "qdisk"] {
            let backends = format!("/local/domain/0/backend/{kind}");
            for domid in self.list(&backends).await? {
                for devid in self.list(&format!("{backends}/{domid}")).await? {
                    let directory = format!("{backends}/{domid}/{devid}");
                    if directory == Self::directory(own) {
                        continue;
                    }
                    let key = async |key: &str| self.read(&format!("{directory}/{key}")).await;
                    users.push(User {
                        domain: self.domain(domid.parse()?).await?,
                        kind: kind.to_owned(),
                        vdev: key("dev").await?.unwrap_or_default(),
                        physical_device: key("physical-device").await?,
                        params: key("params").await?,
                        mode: key("mode").await?.unwrap_or_default(),
                    });
                }
            }
        }
        Ok(users)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for point in &self.mounts {
            // What cannot be undone here shows as a folder that stays.
            _ = output_of(Command::new("umount").arg(point));
        }
        // Devices on devices: the upper ones hold the lower ones.
        for _ in 0..2 {
            for node in loops_of(self.folder.path()).unwrap_or_default() {
                _ = losetup(&["--detach", &node]);
            }
        }
    }
}

/// Runs losetup.
pub(super) fn losetup(args: &[&str]) -> Result<String> {
    // Users have no sbin in their path.
    let output = output_of(Command::new("losetup").env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").args(args));
    let output = output.map_err(|error| LabFailure {
        tried: "making a loop device".into(),
        observed: format!("{error:#}"),
        hint: "run as root on a machine that has loop devices (modprobe loop)".into(),
    })?;
    Ok(String::from_utf8(output)?)
}

/// Fails unless it is so.
pub(super) fn must(is_so: bool, what: &str) -> Result<()> {
    ensure!(is_so, "{what}");
    Ok(())
}
