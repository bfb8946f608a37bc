//! The handler of the script `block`: a disk of a block device, or of a file through a loop device.
//!
//! An attach has three steps, and the caller speaks to the store between them:
//!
//! ```text
//! handler                                        caller
//! begin    opens the target, takes the lock
//!                                                reads from the store that the backend still waits, and which
//!                                                disks there are
//! attach   looks who has the target,
//!          sets up a loop device
//!                                                writes `keys` into the backend's directory
//! keep     lets the device stay, gives the lock back
//! ```
//!
//! The lock is the script's, and is held from the look to the write, as the script holds it: who looks later finds
//! what was written. The target, which may be on slow storage, is opened before. Each of the three values undoes its part
//! of the work when it is dropped, also with a future: a loop device does not outlive an attach that failed.
//!
//! ```no_run
//! use std::collections::BTreeMap;
//! use std::time::Duration;
//!
//! use xen_hotplug::native::block::{Block, Disk, Domain, Failure, Saved, detach};
//! use tokio_util::sync::CancellationToken;
//!
//! # async fn attach(keys: BTreeMap<String, String>, guest: Domain) -> Result<(), Failure> {
//! let (limit, cancel) = (Duration::from_secs(40), CancellationToken::new());
//! let begun = Block::new().begin(&Disk::of(&keys)?, limit, &cancel).await?;
//! // Here the other guests' disks are read from the store.
//! let attached = begun.attach(guest, Vec::new()).await?;
//! // Here the keys are written.
//! assert_eq!(attached.keys()[0], ("node", "/dev/loop0".to_owned()));
//! if let Some(saved) = attached.keep() {
//!     detach(saved, limit, &cancel).await?;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Differences from the script
//!
//! All else is equal, as `cargo lab native` shows: the keys with their values in their order, and the loop device with its
//! file, name, offset, size, and flags (read-only where the disk is; never direct I/O, also with `direct-io-safe`,
//! which is for who serves the disk; no search for partitions; it stays until it is told to go).
//!
//! | what | the script | here | because |
//! | --- | --- | --- | --- |
//! | one image for two guests | gives it, unless the number of its file system reads the same in hexadecimal and in decimal | refuses | two writers destroy it |
//! | an image through another loop device of it | gives it | refuses | the same |
//! | a loop device that serves nothing | gives it | refuses | whoever sets one up next may be given it, and the guest his file |
//! | an image that a device model serves (`qdisk`) | does not look | refuses | the same |
//! | a file system that is writable, mounted here read-only (`mount -o bind,ro`) | gives it read-only | refuses | it may be written to by another mount |
//! | a target that does not exist | says `connected`, and exits with 1 | says `error`, and why | it is not connected |
//! | a target that is neither a file nor a block device | the same | the same | the same |
//! | a device's name without `/dev` | the same | takes it from `/dev` | it was meant to |
//! | a writable disk of a file on a read-only file system | makes a read-only loop device | says `busy` | no backend can serve it |
//! | a loop device that others took since it was found | fails | takes the next | nobody's fault |
//! | an image that was removed or replaced while it was attached | leaves the loop device | gives it back | it leaks |
//! | a loop device that serves another file by now | gives it back | leaves it | it is another's |
//! | a detach while another disk is attached | waits for the lock | does not | a device that goes leads to no wrong answer, and its descriptor keeps the number from being used anew |
//! | a failure's text | tells no guest's name, nor what to do | does | |
//! | a removal after an attach that failed | fails for want of `node`, and writes a `hotplug-error` | has nothing to do | it is idempotent |
//!
//! Neither looks at swap space, at the whole of a disk whose partition is asked for or the other way round, nor at volumes
//! that are made of it.

mod bounds;
mod failure;
mod ioctl;
mod loopdev;
mod sharing;
mod target;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

pub(super) use self::bounds::Locked;
use self::bounds::{Bounds, Lock};
pub use self::failure::Failure;
use self::loopdev::LoopDevice;
pub use self::sharing::{Domain, FileId, Holder, Loop, Medium, Mode, Mount, Numbers, Seen, Use, holder};
use self::target::Target;
use super::digest::Stock;
use crate::printable::printable_path;

/// Where the stock scripts have their locks, and what the one of `block` is called.
const LOCK_DIR: &str = "/var/run/xen-hotplug";
const LOCK: &str = "block";

/// The stock script, and the texts of it that were compared.
const STOCK: Stock = Stock {
    sources: &[
        "block-common.sh",
        "xen-hotplug-common.sh",
        "hotplugpath.sh",
        "logging.sh",
        "xen-script-common.sh",
        "locking.sh",
    ],
    proven: &[
        ("7c51b7984b1fb29504f259f6415c0bc0830cc10e6c2c77f51b12321cabc7ad2b", "Debian 12 (Xen 4.17)"),
        ("d3aeb6e4c00e8e212389d786b8d119415167e194c550e5dffef64a7020c5e84e", "Debian 13 (Xen 4.20)"),
    ],
};

/// Which stock script this is, as in `Debian 12 (Xen 4.17)`, if it is one that the handler was proven equal to: by the
/// text of the script and of all files that it sources. It reads files, which may block.
///
/// # Errors
///
/// If the path is not absolute, or one of the files cannot be read: then it is none.
pub fn release_of(script: &Path) -> io::Result<Option<&'static str>> {
    STOCK.release_of(script)
}

/// The digest of a script's text and of the texts of all files that it sources: a SHA-256, in hexadecimal. It reads files,
/// which may block.
///
/// # Errors
///
/// As [`release_of`].
pub fn digest(script: &Path) -> io::Result<String> {
    STOCK.digest(script)
}

/// A disk to be attached, as its backend's directory tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The target: the path of a file or of a block device, or the name of one in `/dev`.
    pub params: String,
    /// How the guest may use it.
    pub mode: Mode,
}

impl Disk {
    /// The disk of a backend with these keys.
    ///
    /// One that has a `physical-device` is attached already: the script does nothing for it, and whoever asks
    /// for the handler should not either.
    ///
    /// # Errors
    ///
    /// [`Failure::NoKey`] if `params` or `mode` is missing or empty.
    pub fn of(keys: &BTreeMap<String, String>) -> Result<Self, Failure> {
        let key = |name| keys.get(name).filter(|value| !value.is_empty()).ok_or(Failure::NoKey(name));
        Ok(Self { params: key("params")?.clone(), mode: Mode::parse(key("mode")?) })
    }
}

/// A disk of any guest that stands in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// Whose.
    pub domain: Domain,
    /// The kind of its backend: `vbd`, `vbd3`, `qdisk`.
    pub kind: String,
    /// The guest's name for the disk, the backend's `dev`.
    pub vdev: String,
    /// The backend's `physical-device`.
    pub physical_device: Option<String>,
    /// The backend's `params`.
    pub params: Option<String>,
    /// The backend's `mode`.
    pub mode: String,
}

impl User {
    /// What it has, if that can be told. A `vbd` has nothing until its `physical-device` is written.
    fn into_use(self) -> Option<Use> {
        let device = self.physical_device.as_deref().and_then(Numbers::parse).map(Medium::Device);
        let named = || {
            let params = self.params.as_deref().filter(|_| self.kind != "vbd")?;
            // Of a device model it begins with the format: `aio:/srv/d.img`.
            let path = if params.starts_with('/') { params } else { params.split_once(':')?.1 };
            target::medium(Path::new(path)).filter(|_| path.starts_with('/'))
        };
        let medium = device.or_else(named)?;
        Some(Use { domain: self.domain, vdev: self.vdev, medium, mode: Mode::parse(&self.mode) })
    }
}

/// The handler. Attaches that share one, or clones of it, wait for the lock in their order.
#[derive(Clone, Debug)]
pub struct Block {
    lock: Lock,
}

impl Block {
    /// A handler that takes the lock that the stock scripts take.
    pub fn new() -> Self {
        Self::with_lock_dir(Path::new(LOCK_DIR))
    }

    /// A handler whose lock is in this directory, which is made if it is not there. It is for tests: the stock scripts
    /// know one place.
    pub fn with_lock_dir(directory: &Path) -> Self {
        Self { lock: Lock::new(directory.join(LOCK)) }
    }

    /// Opens the disk's target and takes the lock. The three steps of an attach together may take this long.
    ///
    /// # Errors
    ///
    /// Why the target cannot be opened, or the lock not be had. Nothing has been changed.
    ///
    /// # Cancel safety
    ///
    /// Nothing is left if the future is dropped.
    pub async fn begin(
        &self,
        disk: &Disk,
        within: Duration,
        cancel: &CancellationToken,
    ) -> Result<Begun, Failure> {
        let bounds = Bounds::new(within, cancel);
        let Disk { params, mode } = disk.clone();
        let tried = format!("open {}", printable_path(Path::new(&params)));
        // Before the lock: storage that does not answer must not keep others from theirs.
        let target = bounds.blocking(tried, move || Target::open(&params, mode)).await?;
        let lock = bounds.lock(&self.lock).await?;
        Ok(Begun { target, mode, lock, bounds })
    }

    /// Takes the lock that all of the scripts for disks have in common.
    pub(super) async fn lock(&self, within: Duration, cancel: &CancellationToken) -> Result<Locked, Failure> {
        Bounds::new(within, cancel).lock(&self.lock).await
    }
}

impl Default for Block {
    fn default() -> Self {
        Self::new()
    }
}

/// An attach that has the lock and its target. No disk of the host changes hands as long as this lives.
#[derive(Debug)]
pub struct Begun {
    target: Target,
    mode: Mode,
    lock: Locked,
    bounds: Bounds,
}

impl Begun {
    /// Looks whether the target is free for the guest, and if it is a file, sets up a loop device for it.
    ///
    /// `users` are all disks in the store, as they stand since the lock was taken, but for the one to be attached.
    ///
    /// # Errors
    ///
    /// Who has the target, or why there is no loop device for it. Nothing is left.
    ///
    /// # Cancel safety
    ///
    /// Nothing is left if the future is dropped.
    pub async fn attach(self, guest: Domain, users: Vec<User>) -> Result<Attached, Failure> {
        let Self { target, mode, lock, bounds } = self;
        let tried = format!("see who has {}", printable_path(&target.path));
        let made = bounds.finished(tried, move || make(target, mode, &guest, users)).await?;
        Ok(Attached { made, _lock: lock })
    }
}

/// What the disk is served from.
#[derive(Debug)]
struct Made {
    path: PathBuf,
    numbers: Numbers,
    /// For a file.
    device: Option<(LoopDevice, FileId)>,
}

fn make(target: Target, mode: Mode, guest: &Domain, users: Vec<User>) -> Result<Made, Failure> {
    if mode != Mode::Unchecked {
        let seen = see(target.medium, users)?;
        if let Some(holder) = holder(target.medium, mode, guest, &seen) {
            return Err(Failure::InUse { path: target.path, writes: mode == Mode::Write, holder });
        }
    }
    match (target.medium, target.image) {
        (Medium::File(file), Some(image)) => {
            let device = LoopDevice::set_up(&image, &target.path, mode == Mode::Read)?;
            let (path, numbers) = (device.node().into(), device.numbers());
            Ok(Made { path, numbers, device: Some((device, file)) })
        }
        (Medium::Device(numbers), _) => Ok(Made { path: target.path, numbers, device: None }),
        (Medium::File(_), None) => Err(Failure::NotADisk(target.path)),
    }
}

/// Looks at what there is on the host.
fn see(medium: Medium, users: Vec<User>) -> Result<Seen, Failure> {
    let loops = loopdev::all().map_err(|error| Failure::of("list the loop devices", error))?;
    if let Medium::Device(device) = medium
        && device.major == loopdev::MAJOR
        && !loops.iter().any(|loop_| loop_.device == device)
    {
        // Whoever asks for a free one next would be given it, and the guest his file.
        return Err(Failure::Unbound(format!("/dev/loop{}", device.minor)));
    }
    let mounts = fs::read("/proc/self/mountinfo").map_err(|error| Failure::of("list the mounts", error))?;
    let numbers_of =
        |source: &str| match target::medium(Path::new(source).has_root().then_some(source)?.as_ref())? {
            Medium::Device(numbers) => Some(numbers),
            Medium::File(_) => None,
        };
    let mounts = sharing::mounts(&String::from_utf8_lossy(&mounts), numbers_of);
    Ok(Seen { loops, mounts, uses: users.into_iter().filter_map(User::into_use).collect() })
}

/// A disk that is ready, and the lock. Dropping it gives both back.
#[derive(Debug)]
pub struct Attached {
    // Before the lock: fields are dropped in their order.
    made: Made,
    _lock: Locked,
}

impl Attached {
    /// What is to be written into the backend's directory, in the order in which the script writes it.
    pub fn keys(&self) -> Vec<(&'static str, String)> {
        let path = self.made.path.to_string_lossy().into_owned();
        let node = self.made.device.is_some().then(|| ("node", path.clone()));
        let rest = [
            ("physical-device", self.made.numbers.to_string()),
            ("physical-device-path", path),
            ("hotplug-status", "connected".to_owned()),
        ];
        node.into_iter().chain(rest).collect()
    }

    /// Lets the disk stay and gives the lock back: what is to be saved for [`detach`], if there will be
    /// anything to do for it.
    pub fn keep(self) -> Option<Saved> {
        let (device, file) = self.made.device?;
        let saved =
            Saved { node: device.node(), params: None, file: Some(file), sequence: device.sequence() };
        device.keep();
        Some(saved)
    }
}

/// What is known of a disk that is to be detached: as much as there is, but always the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// The loop device: the backend's `node`.
    pub node: String,
    /// The disk's target: the backend's `params`.
    pub params: Option<String>,
    /// The file that it was made of.
    pub file: Option<FileId>,
    /// Which use of the loop device it is, by the kernel's count, its `diskseq`.
    pub sequence: Option<u64>,
}

impl Saved {
    /// What the backend's keys tell, if there is anything to undo: the disk of a block device has no `node`.
    pub fn of(keys: &BTreeMap<String, String>) -> Option<Self> {
        let node = keys.get("node")?.clone();
        Some(Self { node, params: keys.get("params").cloned(), file: None, sequence: None })
    }
}

/// What came of a detach.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Detached {
    /// The loop device was given back.
    Now,
    /// It is given back as soon as the last who has it open closes it: a backend, or a program of this domain.
    WhenClosed,
    /// It had been given back before.
    Before,
    /// It is another's by now, and was left. It serves the file of this path.
    NotOurs {
        /// As the kernel shows it.
        serves: String,
    },
}

/// Gives the loop device of a disk back, if it still serves the disk's file.
///
/// It is known by the kernel's count if that was saved, else by the file if that was, else by what the target names now, or
/// by its path if that names nothing any more.
///
/// # Errors
///
/// If the node is no loop device, or the kernel refuses. It can be tried again.
///
/// # Cancel safety
///
/// If the future is dropped, the device is given back or not.
pub async fn detach(saved: Saved, within: Duration, cancel: &CancellationToken) -> Result<Detached, Failure> {
    let tried = format!("give {} back", printable_path(Path::new(&saved.node)));
    Bounds::new(within, cancel).blocking(tried, move || give_back(&saved)).await
}

fn give_back(saved: &Saved) -> Result<Detached, Failure> {
    let tried = || format!("give {} back", printable_path(Path::new(&saved.node)));
    let number = loopdev::number(&saved.node).ok_or_else(|| {
        Failure::of(tried(), io::Error::new(io::ErrorKind::InvalidInput, "it is no loop device"))
    })?;
    let opened = loopdev::open(number).map_err(|error| Failure::of(tried(), error))?;
    let Some(device) = opened else { return Ok(Detached::Before) };
    let Some(file) = loopdev::served(&device).map_err(|error| Failure::of(tried(), error))? else {
        return Ok(Detached::Before);
    };
    let (sequence, serves) = (loopdev::sequence(number), loopdev::backing_file(number).unwrap_or_default());
    let is_ours = match (saved.sequence, saved.file) {
        (Some(saved), _) if sequence.is_some() => sequence == Some(saved),
        (_, Some(saved)) => file == saved,
        _ => saved.params.as_deref().is_some_and(|params| is_of(params, file, &serves)),
    };
    if !is_ours {
        return Ok(Detached::NotOurs { serves });
    }
    loopdev::clear(&device).map_err(|error| Failure::of(tried(), error))?;
    drop(device);
    let is_there = loopdev::backing_file(number).is_some() && loopdev::sequence(number) == sequence;
    Ok(if is_there { Detached::WhenClosed } else { Detached::Now })
}

/// Whether a loop device that serves this file was made of the target.
fn is_of(params: &str, file: FileId, serves: &str) -> bool {
    let path = Path::new(params);
    // The target may have been removed, or replaced, since.
    let former = serves.strip_suffix(" (deleted)").is_some_and(|former| {
        let folder = path.parent().and_then(|folder| fs::canonicalize(folder).ok());
        let real = folder.zip(path.file_name()).map(|(folder, name)| folder.join(name));
        Path::new(former) == path || real.is_some_and(|real| real == Path::new(former))
    });
    former || target::medium(path) == Some(Medium::File(file))
}

#[cfg(test)]
mod tests;
