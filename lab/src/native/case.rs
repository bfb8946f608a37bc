//! The cases in which the script and the handler are compared.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use xen_hotplug::Action;
use xen_hotplug::native::block::Block;

use super::observe::Observed;
use super::world::{GUEST, OTHER, World};

/// A disk, and what there is besides.
pub(super) struct Case {
    pub(super) name: &'static str,
    disk: What,
    mode: &'static str,
    around: &'static [Around],
    /// What the handler must say as `hotplug-status`.
    status: &'static str,
    /// Why the script is not equal, if it is not.
    differs: Option<&'static str>,
}

/// What the guest's disk is made of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    File,
    Link,
    /// A size that is no multiple of a sector, and a name that is longer than the driver keeps.
    OddFile,
    Device,
    DeviceLink,
    Missing,
    Directory,
    /// A device, by its name in `/dev`.
    ShortName,
    /// A file on a file system that is mounted read-only.
    OnReadOnly,
}

/// What there is besides.
#[derive(Clone, Copy)]
enum Around {
    /// Nobody may write to the file.
    Protected,
    /// The backend has `direct-io-safe`.
    DirectIo,
    /// The second guest has it, in this mode, by the kernel.
    Used(&'static str),
    /// The second guest has it by its device model.
    ByModel,
    /// The second guest is the same machine.
    SameVm,
    /// The second guest is the stub domain of the first, or the other way round.
    Stub(u32, u32),
    /// It is mounted with these options.
    Mounted(&'static str),
    /// It is mounted read-only, and its file system may write.
    MountedWritable,
    /// The file is removed before the detach.
    Removed,
}

const WRITERS: Option<&str> =
    Some("the script compares hexadecimal with decimal numbers, so two guests write to one image");

impl Case {
    /// All of them.
    pub(super) fn all() -> Vec<Self> {
        use Around::{ByModel, DirectIo, Mounted, MountedWritable, Protected, Removed, SameVm, Stub, Used};
        use What::{Device, DeviceLink, Directory, File, Link, Missing, OddFile, OnReadOnly, ShortName};
        let equal =
            |name, disk, mode, around, status| Self { name, disk, mode, around, status, differs: None };
        let other =
            |name, disk, mode, around, status, differs| Self { name, disk, mode, around, status, differs };
        let (good, busy, error) = ("connected", "busy", "error");
        vec![
            equal("file", File, "w", &[], good),
            equal("file, read-only", File, "r", &[], good),
            equal("file, unchecked", File, "w!", &[], good),
            equal("file, by a link", Link, "w", &[], good),
            equal("file of an odd size and a long name", OddFile, "w", &[], good),
            equal("file, direct-io-safe", File, "w", &[DirectIo], good),
            equal("protected file", File, "w", &[Protected], busy),
            equal("protected file, read-only", File, "r", &[Protected], good),
            equal("protected file, unchecked", File, "w!", &[Protected], good),
            equal("device", Device, "w", &[], good),
            equal("device, read-only", Device, "r", &[], good),
            equal("device, by a link", DeviceLink, "w", &[], good),
            equal("device of another guest", Device, "w", &[Used("w")], busy),
            equal("device of another guest, read-only there", Device, "w", &[Used("r")], busy),
            equal("device of another guest, read-only here", Device, "r", &[Used("w")], busy),
            equal("device of another guest, read-only in both", Device, "r", &[Used("r")], good),
            equal("device of another guest, unchecked", Device, "w!", &[Used("w")], good),
            equal(
                "device of another guest, unchecked there, read-only here",
                Device,
                "r",
                &[Used("w!")],
                good,
            ),
            equal("device of the same machine", Device, "w", &[Used("w"), SameVm], good),
            equal("device of the stub domain", Device, "w", &[Used("w"), Stub(OTHER, GUEST)], good),
            equal("device of the target", Device, "w", &[Used("w"), Stub(GUEST, OTHER)], good),
            equal("device that is mounted", Device, "w", &[Mounted("rw")], busy),
            equal("device that is mounted, read-only here", Device, "r", &[Mounted("rw")], busy),
            equal("device that is mounted read-only", Device, "w", &[Mounted("ro")], busy),
            equal("device that is mounted read-only, read-only here", Device, "r", &[Mounted("ro")], good),
            equal("device that is mounted, unchecked", Device, "w!", &[Mounted("rw")], good),
            equal("file of another guest, read-only in both", File, "r", &[Used("r")], good),
            equal("file of another guest, unchecked", File, "w!", &[Used("w")], good),
            equal("file of the same machine", File, "w", &[Used("w"), SameVm], good),
            other("file of another guest", File, "w", &[Used("w")], busy, WRITERS),
            other("file of another guest, read-only here", File, "r", &[Used("w")], busy, WRITERS),
            other("file of another guest, read-only there", File, "w", &[Used("r")], busy, WRITERS),
            other("file that is mounted", File, "w", &[Mounted("rw")], busy, WRITERS),
            other(
                "device that is mounted read-only and writable",
                Device,
                "r",
                &[MountedWritable],
                busy,
                Some("the script looks at what the mount allows, and not at what its file system does"),
            ),
            other(
                "device, by its name in /dev",
                ShortName,
                "w",
                &[],
                good,
                Some("the script looks for it in its working directory"),
            ),
            other(
                "file of another guest, by its device model",
                File,
                "w",
                &[ByModel],
                busy,
                Some("the script looks at backends of its own kind alone"),
            ),
            other(
                "no target",
                Missing,
                "w",
                &[],
                error,
                Some("the script says that it is connected, and exits with 1"),
            ),
            other("directory", Directory, "w", &[], error, Some("the same")),
            other(
                "file of a read-only file system",
                OnReadOnly,
                "w",
                &[],
                busy,
                Some("losetup makes a read-only device of it, which no backend can write to"),
            ),
            equal("file of a read-only file system, read-only", OnReadOnly, "r", &[], good),
            other(
                "file that is removed meanwhile",
                File,
                "w",
                &[Removed],
                good,
                Some("the script looks what the target is by now, and leaves the loop device"),
            ),
        ]
    }

    /// Makes all that there is, and the backend's directory.
    async fn prepare(&self, world: &mut World) -> Result<()> {
        let image = match self.disk {
            What::OddFile => world.image(&"long-name-".repeat(10), 1_000_321)?,
            What::OnReadOnly => {
                world.mount_as(&["-t", "tmpfs", "none"])?;
                let image = world.image("mnt/image", 1 << 20)?;
                world.remount("ro")?;
                image
            }
            _ => world.image("image", 8 << 20)?,
        };
        let is_device = matches!(self.disk, What::Device | What::DeviceLink | What::ShortName);
        let node = if is_device { world.device(&image)? } else { String::new() };
        let target = match self.disk {
            What::File | What::OddFile | What::OnReadOnly => image.clone(),
            What::Device => node.clone().into(),
            What::ShortName => node.trim_start_matches("/dev/").into(),
            What::Link | What::DeviceLink => {
                let link = world.path("link");
                symlink(if is_device { Path::new(&node) } else { &image }, &link)?;
                link
            }
            What::Missing => world.path("none"),
            What::Directory => world.path(""),
        };
        let target = target.to_string_lossy().into_owned();
        let mut keys = vec![("params", target.as_str()), ("mode", self.mode)];
        for around in self.around {
            // What it is served to others from.
            let served = async |world: &World| {
                let node = if is_device { node.clone() } else { world.device(&image)? };
                anyhow::Ok(node)
            };
            match *around {
                Around::Protected => fs::set_permissions(&image, fs::Permissions::from_mode(0o444))?,
                Around::DirectIo => keys.push(("direct-io-safe", "1")),
                Around::Used(mode) => {
                    let node = served(world).await?;
                    let device = fs::metadata(&node)?.rdev();
                    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
                    let numbers = format!("{major:x}:{minor:x}");
                    let keys = [
                        ("params", target.as_str()),
                        ("mode", mode),
                        ("node", &node),
                        ("physical-device", &numbers),
                    ];
                    world.backend("vbd", OTHER, &keys).await?;
                }
                Around::ByModel => {
                    let params = format!("aio:{target}");
                    world.backend("qdisk", OTHER, &[("params", &params), ("mode", "w")]).await?;
                }
                Around::SameVm => world.set_vm(OTHER, "/vm/one").await?,
                Around::Stub(stub, target) => world.set_target(stub, target).await?,
                Around::Mounted(options) => {
                    let node = served(world).await?;
                    world.mount(&node, options)?;
                }
                Around::MountedWritable => {
                    let node = served(world).await?;
                    world.mount(&node, "rw")?;
                    world.remount("bind,ro")?;
                }
                Around::Removed => {}
            }
        }
        world.backend("vbd", GUEST, &keys).await
    }

    fn before_detach(&self, world: &World) -> Result<()> {
        if self.around.iter().any(|around| matches!(around, Around::Removed)) {
            fs::remove_file(world.path("image"))?;
        }
        Ok(())
    }

    /// Whether this host hides what the script does wrong.
    fn is_hidden(&self, world: &World) -> Result<bool> {
        let device = fs::metadata(world.path(""))?.dev();
        Ok(self.differs == WRITERS && format!("{device:x}") == format!("{device}"))
    }
}

/// Goes through a case both ways: what was seen, if it is as it must be.
pub(super) async fn compare(case: &Case, script: &Path) -> Result<String> {
    let (by_script, hidden) = {
        let mut world = World::start().await?;
        case.prepare(&mut world).await?;
        let report = world.script(GUEST, script, Action::Add).await?;
        let seen = Observed::attached(&world, report.success()).await.context("after the script")?;
        case.before_detach(&world)?;
        // It fails if the attach did: it wants to undo what is not there.
        _ = world.script(GUEST, script, Action::Remove).await?;
        (seen.detached(&world)?, case.is_hidden(&world)?)
    };
    let by_handler = {
        let mut world = World::start().await?;
        case.prepare(&mut world).await?;
        let result = world.attach(GUEST, &Block::new()).await?;
        let seen = Observed::attached(&world, result.is_ok()).await.context("after the handler")?;
        ensure!(result.is_ok() == (seen.status() == "connected"), "{result:?}, and {seen}");
        case.before_detach(&world)?;
        world.detach(GUEST).await?;
        seen.detached(&world)?
    };
    let told = format!("\n  script:  {by_script}\n  handler: {by_handler}");
    ensure!(by_handler.status() == case.status, "the handler does not say {}:{told}", case.status);
    let is_equal = by_script.to_string() == by_handler.to_string();
    match case.differs {
        None => ensure!(is_equal, "not equal:{told}"),
        Some(_) if hidden => {}
        Some(reason) => {
            ensure!(!is_equal, "equal, and was not to be, since {reason}:{told}");
            return Ok(format!("differs as it must, {reason}:{told}"));
        }
    }
    Ok(by_handler.to_string())
}
