//! Disks that a tool connects: what the stock scripts `block-iscsi`, `block-nbd` and `block-tap` do, through the same tools.
//!
//! An attach has three steps, and the caller speaks to the store between them:
//!
//! ```text
//! handler                                        caller
//! begin    reads the target, takes the lock
//!                                                reads from the store which disks there are
//! choose   looks whether the target is free,
//!          and what is to be made
//!                                                writes `keys` (`node`) into the backend's directory
//! make     connects the target
//!                                                writes `keys` into the backend's directory
//! ```
//!
//! `node`, which names a session or a device, is written before anything is made: so a removal knows what to undo, though the program that attached the disk was
//! killed in the midst. [`Chosen::make`] undoes its work when a step of it fails, is late or cancelled; what cannot
//! be written afterwards, the caller undoes with [`Made::undo`]. A future of either that is dropped kills its tool and undoes
//! nothing: have it finish in a task of its own, with `cancel` to hurry it.
//!
//! # Targets
//!
//! | script | `target=` |
//! | --- | --- |
//! | `block-iscsi` | `iqn=NAME,portal=ADDRESS`, and perhaps `,multipath=y`, as the stock script reads it |
//! | `block-nbd` | `SERVER:PORT`, or `SERVER:PORT/EXPORT`; an IPv6 address in brackets |
//! | `block-tap` | `TYPE:FILE`, such as `aio:/srv/d.img`, as the stock script reads it |
//!
//! # Differences from the scripts
//!
//! All else is equal, as `cargo lab native-disk` shows with stand-ins for the tools: their calls in their order, the keys with
//! their values, and the devices.
//!
//! `block-iscsi`:
//!
//! | what | the script | here | because |
//! | --- | --- | --- | --- |
//! | a disk that does not appear | waits until it is killed (its count is never compared) | logs out at the deadline, and says so | |
//! | a login that fails, is killed or cancelled | leaves what there is | logs out | |
//! | a name that is part of another's | takes their sessions and targets for its own | tells them apart | |
//! | an attach that was refused since the target is in use | its removal logs the other out | has nothing to do | |
//! | a detach while another disk is of the session | logs out | leaves the session | the other guest loses its disk |
//! | a detach without a session | waits until it is killed | has nothing to do | it is idempotent |
//! | the device of multipath | must be there at once | is awaited until the deadline | multipathd takes its time |
//! | `node` | not written | the target's name | see above |
//!
//! `block-nbd`:
//!
//! | what | the script | here | because |
//! | --- | --- | --- | --- |
//! | server and port | arguments, which no toolstack gives it | in the target | it cannot work as it stands |
//! | a free device | tries to connect each, also if the server is what fails | asks which is free (`-c`), and tries that | |
//! | `node` | not written | the device | the removal needs it |
//! | a removal | disconnects what it is given as an argument | disconnects `node`, unless a guest has it by now | |
//! | an export, read-only disks | cannot be said | `-name`, `-readonly` | |
//!
//! `block-tap` (of Debian 13; that of Debian 12 wants a driver that no Debian has, and is run as it stands):
//!
//! | what | the script | here | because |
//! | --- | --- | --- | --- |
//! | an image of another guest | gives it if no tapdisk serves it, and else fails for want of a function | refuses, by `mode`, also if a device model serves it | two writers destroy it |
//! | a disk of mode `w!` | is treated as read-only | is not looked at, as `block` does | |
//! | a file with a colon in its name | is cut there | is taken | |
//! | an attach that fails, is killed or cancelled | frees the minor | closes, detaches and frees what was done | |
//! | a removal when the backend is gone | counts one guest too few, and closes another's image | leaves it | |
//! | a removal when the tapdisk is gone | fails, or closes what has its numbers by now | has nothing to do | it is idempotent |
//!
//! Neither ends a tapdisk that was started and could not be attached.

mod error;
mod iscsi;
mod nbd;
mod tap;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use tokio_util::sync::CancellationToken;

use super::block::{Block, Domain, Locked, Mode, Numbers, User};
use super::digest::Stock;
use super::tool::{Course, ToolError, Tools};
use crate::{Kind, LINE_SHOWN, Limits, Request, printable};

pub use error::DiskError;

/// What both scripts source.
const SOURCES: [&str; 6] = [
    "block-common.sh",
    "xen-hotplug-common.sh",
    "hotplugpath.sh",
    "logging.sh",
    "xen-script-common.sh",
    "locking.sh",
];

const DEBIAN_12: &str = "Debian 12 (Xen 4.17)";
const DEBIAN_13: &str = "Debian 13 (Xen 4.20)";

const ISCSI: Stock = Stock {
    sources: &SOURCES,
    proven: &[
        ("235376dbbf6671e4c2dc6d0fed827639c25351ede4a9f730576731126b0a8d03", DEBIAN_12),
        ("3227c07c86b7abaedc8d24008d3c87ab360388edacc7fc346bcea1feb5289f87", DEBIAN_13),
    ],
};
const NBD: Stock = Stock {
    sources: &SOURCES,
    proven: &[
        ("bc089ea79ad95601a1a86eb76673d8966638e9124b50fb8e6920610aeed1ec69", DEBIAN_12),
        ("7efe19fd0b937407d579414aa14dc041e9ad0fa3a373f9d1e05cfd4c513804c3", DEBIAN_13),
    ],
};

const TAP: Stock = Stock {
    sources: &SOURCES,
    proven: &[("69da799c97672912e4b40e6a15605c1c3a8bb93364a4fc82de27683de1266f4c", DEBIAN_13)],
};

/// A stock script that there is a handler for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Script {
    /// `block-iscsi`.
    Iscsi,
    /// `block-nbd`.
    Nbd,
    /// `block-tap`.
    Tap,
}

impl Script {
    /// The script with this file name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "block-iscsi" => Some(Self::Iscsi),
            "block-nbd" => Some(Self::Nbd),
            "block-tap" => Some(Self::Tap),
            _ => None,
        }
    }

    /// Its file name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Iscsi => "block-iscsi",
            Self::Nbd => "block-nbd",
            Self::Tap => "block-tap",
        }
    }

    fn stock(self) -> &'static Stock {
        match self {
            Self::Iscsi => &ISCSI,
            Self::Nbd => &NBD,
            Self::Tap => &TAP,
        }
    }

    /// Which stock script this is, as in `Debian 12 (Xen 4.17)`, if it is one that the handler was compared with: by the
    /// text of the script and of all files that it sources. It reads files, which may block.
    ///
    /// # Errors
    ///
    /// If the path is not absolute, or one of the files cannot be read: then it is none.
    pub fn release_of(self, script: &Path) -> io::Result<Option<&'static str>> {
        self.stock().release_of(script)
    }

    /// The digest of a script's text and of the texts of all files that it sources: a SHA-256, in hexadecimal. It reads
    /// files, which may block.
    ///
    /// # Errors
    ///
    /// As [`Script::release_of`].
    pub fn digest(self, script: &Path) -> io::Result<String> {
        self.stock().digest(script)
    }
}

/// A target, read.
#[derive(Clone, Debug)]
enum Target {
    Iscsi(iscsi::Target),
    Nbd(nbd::Target),
    Tap(tap::Target),
}

impl Target {
    fn parse(script: Script, kind: Kind, params: &str) -> Result<Self, DiskError> {
        match script {
            Script::Iscsi => iscsi::Target::parse(params).map(Self::Iscsi),
            Script::Nbd => nbd::Target::parse(params).map(Self::Nbd),
            Script::Tap => tap::Target::parse(params, kind == Kind::Vbd3).map(Self::Tap),
        }
    }
}

/// A key of the backend that must be there and hold something.
fn key<'a>(keys: &'a BTreeMap<String, String>, name: &'static str) -> Result<&'a str, DiskError> {
    let value = keys.get(name).filter(|value| !value.is_empty()).ok_or(DiskError::NoKey(name))?;
    Ok(value)
}

/// A guest's disk in an error's words.
fn user_of(user: &User) -> String {
    let name = user.domain.name.as_ref().map_or_else(String::new, |name| format!(" ({name})"));
    printable(format!("the disk {} of the guest {}{name}", user.vdev, user.domain.domid), LINE_SHOWN)
}

/// Reads the target of a disk whose backend has these keys, and takes the lock of all disks where the host's devices are
/// chosen from. All of the attach together may take as long as [`Limits::deadline`] says. Of `request` its kind and the
/// recorded keys `params` and `mode` count.
///
/// # Errors
///
/// Why the target cannot be read, or the lock not be had. Nothing has been changed.
///
/// # Cancel safety
///
/// Nothing is left if the future is dropped.
pub async fn begin(
    script: Script,
    request: &Request,
    tools: &Tools,
    limits: &Limits,
    cancel: &CancellationToken,
) -> Result<Begun, DiskError> {
    let target = Target::parse(script, request.kind, key(&request.recorded, "params")?)?;
    let mode = Mode::parse(key(&request.recorded, "mode")?);
    let lock = match &target {
        // A session is one for all.
        Target::Iscsi(_) => None,
        _ => Some(Block::new().lock(limits.deadline, cancel).await?),
    };
    Ok(Begun { target, mode, course: tools.course(limits, cancel), _lock: lock })
}

/// An attach that knows its target.
#[derive(Debug)]
pub struct Begun {
    target: Target,
    mode: Mode,
    course: Course,
    /// Until the caller has written what was made.
    _lock: Option<Locked>,
}

/// What an attach will make.
#[derive(Clone, Debug)]
enum Choice {
    Session(iscsi::Target),
    /// A device, by its number.
    Device(nbd::Target, u32),
    /// A tapdisk, or the one that is there.
    Tapdisk(tap::Target, Option<tap::Tapdisk>),
}

impl Begun {
    /// Looks whether the guest can have the target, and what is to be made for it. `users` are all disks in the store but the
    /// one to be attached.
    ///
    /// # Errors
    ///
    /// Who has the target, or why it cannot be had. Nothing has been changed.
    ///
    /// # Cancel safety
    ///
    /// Nothing is left if the future is dropped.
    pub async fn choose(self, guest: &Domain, users: &[User]) -> Result<Chosen, DiskError> {
        let course = &self.course;
        let choice = match self.target.clone() {
            Target::Iscsi(target) => {
                target.look(course, users).await?;
                Choice::Session(target)
            }
            Target::Nbd(target) => Choice::Device(target, nbd::free(course, 0).await?),
            Target::Tap(target) => {
                let found = target.look(course, self.mode, guest, users).await?;
                Choice::Tapdisk(target, found)
            }
        };
        Ok(Chosen { begun: self, choice })
    }
}

/// An attach that knows what it will make.
#[derive(Debug)]
pub struct Chosen {
    begun: Begun,
    choice: Choice,
}

impl Chosen {
    /// What is to be written into the backend's directory before [`Chosen::make`]; to be removed again if that fails, unless
    /// something [is left](DiskError::is_left).
    pub fn keys(&self) -> Vec<(&'static str, String)> {
        match &self.choice {
            Choice::Session(target) => vec![("node", target.node().to_owned())],
            Choice::Device(_, number) => vec![("node", nbd::node(*number))],
            // Who attaches the image next finds it.
            Choice::Tapdisk(..) => Vec::new(),
        }
    }

    /// Connects the target.
    ///
    /// # Errors
    ///
    /// Why it cannot be connected. What was done is undone.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the tool is killed, and what it has done may be left.
    pub async fn make(self) -> Result<Attempt, DiskError> {
        let Self { begun, choice } = self;
        let course = &begun.course;
        let (keys, undo) = match choice {
            Choice::Session(target) => (target.make(course).await?.keys(), Undo::Session(target)),
            Choice::Device(target, number) => {
                let node = nbd::node(number);
                match target.make(course, &node, begun.mode).await? {
                    Some(served) => (served.keys(), Undo::Device(node)),
                    None => {
                        let other = nbd::free(course, number.saturating_add(1)).await?;
                        return Ok(Attempt::Taken(Self { begun, choice: Choice::Device(target, other) }));
                    }
                }
            }
            Choice::Tapdisk(target, Some(tapdisk)) => (target.keys(tapdisk)?, Undo::Nothing),
            Choice::Tapdisk(target, None) => {
                let tapdisk = target.create(course).await?;
                match target.keys(tapdisk) {
                    Ok(keys) => (keys, Undo::Tapdisk(tapdisk)),
                    Err(error) => return Err(error.undone(tap::undo(course, tapdisk).await)),
                }
            }
        };
        Ok(Attempt::Made(Made { begun, keys, undo }))
    }
}

/// What came of an attempt.
#[derive(Debug)]
pub enum Attempt {
    /// The disk is connected.
    Made(Made),
    /// Somebody else has taken the device meanwhile: there is another to be tried, with keys of its own.
    Taken(Chosen),
}

/// A disk that is connected. Dropping it lets it stay.
#[derive(Debug)]
pub struct Made {
    begun: Begun,
    keys: Vec<(&'static str, String)>,
    undo: Undo,
}

/// What is to be undone.
#[derive(Debug)]
enum Undo {
    Nothing,
    Session(iscsi::Target),
    Device(String),
    Tapdisk(tap::Tapdisk),
}

impl Made {
    /// What is to be written into the backend's directory, in the order in which the scripts write it.
    pub fn keys(&self) -> &[(&'static str, String)] {
        &self.keys
    }

    /// Disconnects it again, for whoever cannot write what was made.
    ///
    /// # Errors
    ///
    /// Why it stays connected.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the disk is disconnected or not.
    pub async fn undo(self) -> Result<(), ToolError> {
        let course = &self.begun.course;
        match &self.undo {
            Undo::Nothing => Ok(()),
            Undo::Session(target) => target.undo(course).await,
            Undo::Device(node) => nbd::undo(course, node).await,
            Undo::Tapdisk(tapdisk) => tap::undo(course, *tapdisk).await,
        }
    }
}

/// A block device that serves a disk.
#[derive(Debug)]
struct Served {
    path: String,
    numbers: Numbers,
}

impl Served {
    /// The device at a path, if there is one.
    fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok().filter(|found| found.file_type().is_block_device())?;
        Some(Self { path: path.to_str()?.to_owned(), numbers: Numbers::of(found.rdev()) })
    }

    fn keys(self) -> Vec<(&'static str, String)> {
        vec![
            ("physical-device", self.numbers.to_string()),
            ("physical-device-path", self.path),
            ("hotplug-status", "connected".to_owned()),
        ]
    }
}

/// What came of a detach.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Detached {
    /// It was disconnected.
    Now,
    /// It had been disconnected before, or the attach had made nothing.
    Before,
    /// A guest has it, so it stays.
    Used {
        /// Which.
        by: String,
    },
}

/// Disconnects a disk by the recorded keys of `request`, which its backend has, or had. `users` are all other disks in the
/// store.
///
/// # Errors
///
/// Why it stays connected. It can be tried again.
///
/// # Cancel safety
///
/// If the future is dropped, the disk is disconnected or not.
pub async fn detach(
    script: Script,
    request: &Request,
    users: &[User],
    tools: &Tools,
    limits: &Limits,
    cancel: &CancellationToken,
) -> Result<Detached, DiskError> {
    let keys = &request.recorded;
    let target = Target::parse(script, request.kind, key(keys, "params")?)?;
    let course = tools.course(limits, cancel);
    let numbers = keys.get("physical-device");
    let lock = || async { Block::new().lock(limits.deadline, cancel).await };
    match (target, keys.get("node")) {
        // The script itself writes no node.
        (Target::Iscsi(_), None) if numbers.is_none() => Ok(Detached::Before),
        (Target::Iscsi(target), _) => target.detach(&course, numbers.map(String::as_str), users).await,
        (Target::Nbd(_), None) => Ok(Detached::Before),
        (Target::Nbd(_), Some(node)) => {
            let _lock = lock().await?;
            nbd::detach(&course, node, users).await
        }
        (Target::Tap(target), _) => {
            let _lock = lock().await?;
            target.detach(&course, keys, users).await
        }
    }
}
