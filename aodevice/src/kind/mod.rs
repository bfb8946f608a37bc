//! The kinds of device. One kind is one file or folder here, a line in [`Kind`], and an arm in
//! [`crate::Device`]: whatever the rest of the crate needs to know of it is in its [`KindInfo`] and
//! its [`Spec`].

mod backend;
pub mod console;
mod members;
pub mod p9;
pub mod pcidev;
pub mod pvcalls;
#[cfg(test)]
mod table;
pub mod usbctrl;
pub mod usbdev;
pub mod vbd;
pub mod vdispl;
pub mod vfb;
pub mod vif;
pub mod virtio;
pub mod vkb;
pub mod vsnd;
pub mod vtpm;
mod words;

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value};
use xs_client::DomId;

pub use backend::{BackendKind, Server};
pub use words::SpecError;

use crate::libxl::Listing;
use crate::tree::Keys;
use crate::{Cause, DeviceId, Guest, Tree};

/// The kind of a device, as it stands in store paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Kind {
    /// Sockets in the backend's domain.
    Pvcalls,
    /// A disk.
    Vbd,
    /// A display.
    Vdispl,
    /// A disk whose protocol is virtio.
    #[serde(rename = "virtio_disk")]
    VirtioDisk,
    /// A framebuffer.
    Vfb,
    /// A network interface.
    Vif,
    /// A virtio device that is no disk.
    Virtio,
    /// A keyboard with a pointer.
    Vkbd,
    /// A sound card.
    Vsnd,
    /// A trusted platform module.
    Vtpm,
    /// A file system.
    #[serde(rename = "9pfs")]
    P9,
    /// A channel, or the console of a domain.
    Console,
    /// A USB controller.
    Vusb,
    /// A bus for PCI functions of the host.
    Pci,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 14] = [
        Self::Pvcalls,
        Self::Vbd,
        Self::Vdispl,
        Self::VirtioDisk,
        Self::Vfb,
        Self::Vif,
        Self::Virtio,
        Self::Vkbd,
        Self::Vsnd,
        Self::Vtpm,
        Self::P9,
        Self::Console,
        Self::Vusb,
        Self::Pci,
    ];

    /// The order in which a domain's devices are added when it is created: what an earlier kind serves, a later one
    /// may need. libxl's order (`tools/libs/light/libxl_create.c`).
    pub const BRING_UP: [Self; 14] = [
        Self::Vbd,
        Self::VirtioDisk,
        Self::Console,
        Self::Pvcalls,
        Self::Virtio,
        Self::Vfb,
        Self::Vkbd,
        Self::Vif,
        Self::Vtpm,
        Self::Vusb,
        Self::Pci,
        Self::Vdispl,
        Self::Vsnd,
        Self::P9,
    ];

    /// What is to be known of the kind.
    pub const fn info(self) -> &'static KindInfo {
        match self {
            Self::Pvcalls => &pvcalls::INFO,
            Self::Vbd => &vbd::INFO,
            Self::Vdispl => &vdispl::INFO,
            Self::VirtioDisk => &vbd::VIRTIO,
            Self::Vfb => &vfb::INFO,
            Self::Vif => &vif::INFO,
            Self::Virtio => &virtio::INFO,
            Self::Vkbd => &vkb::INFO,
            Self::Vsnd => &vsnd::INFO,
            Self::Vtpm => &vtpm::INFO,
            Self::P9 => &p9::INFO,
            Self::Console => &console::INFO,
            Self::Vusb => &usbctrl::INFO,
            Self::Pci => &pcidev::INFO,
        }
    }

    /// Its name in store paths.
    pub const fn name(self) -> &'static str {
        self.info().name
    }

    /// What an operator calls a device of the kind: `channel` for what is a console in the store.
    pub const fn noun(self) -> &'static str {
        match self.info().noun {
            Some(noun) => noun,
            None => self.name(),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The backend's keys of a device, as they are recorded: by name.
pub(crate) type Recorded = BTreeMap<String, String>;

/// The facts of a kind.
#[derive(Debug)]
#[non_exhaustive]
pub struct KindInfo {
    /// Its name in store paths.
    pub name: &'static str,
    /// What serves it: the first is the kernel's, the usual one.
    pub backends: &'static [BackendKind],
    /// The kernel module that serves it in the backend's domain (Linux), if one does.
    pub backend_module: &'static str,
    /// The kernel module that drives it in the guest (Linux).
    pub frontend_module: &'static str,
    /// The first device id that a device of the kind can have: what is below goes with its domain.
    pub first_devid: u32,
    /// What an operator calls a device of the kind, if that is not the kind's name.
    pub noun: Option<&'static str>,
    /// How an operator names a device id: `xvda` for 51712. A removal that he asks for names it so.
    pub id_name: fn(u32) -> String,
    /// What a listing shows of a device besides its states.
    pub listed: &'static [ListedKey],
    /// What it has several of, with a directory of the guest's for each.
    pub parts: Option<&'static Parts>,
    /// The backend's keys by which a script tells what it made (`node`): whoever undoes its work
    /// needs them, and a backend that holds one is not deleted without the script.
    pub made: &'static [&'static str],
    /// Whether what a script made stays when the backend goes (a loop device), or goes with it (a
    /// port of a bridge).
    pub outlives_backend: bool,
    /// Where libxl's configuration of a domain has devices of the kind.
    pub(crate) libxl: Listing,
    /// The script runs of a device with these keys, in the order in which an add makes them.
    pub(crate) runs: fn(&Recorded) -> &'static [xen_hotplug::Kind],
    /// What a script which exited with 0 should have written and did not, and what it wrote instead.
    pub(crate) unreported: fn(&Recorded) -> Option<Unreported>,
    /// The key by which a script names a block device, and the one for that device's numbers, which the
    /// backend needs and the script may leave to the toolstack.
    pub(crate) numbers: Option<(&'static str, &'static str)>,
    /// The path in the toolstack's domain that the script acts on, if it is recorded.
    pub(crate) target: fn(&Recorded) -> Option<&str>,
    /// What a script has to be told besides what is recorded, to undo its work; `None` if it has none to undo.
    pub(crate) undo: fn(&Recorded, &Surroundings) -> Option<Recorded>,
}

/// What a kind has that knows no hotplug scripts, besides its names and what a listing shows.
const SCRIPTLESS: KindInfo = KindInfo {
    first_devid: 0,
    name: "",
    noun: None,
    backends: &[],
    backend_module: "none: a program serves it",
    frontend_module: "",
    id_name: |devid| devid.to_string(),
    listed: &[],
    parts: None,
    made: &[],
    outlives_backend: false,
    libxl: Listing::by_devid(""),
    runs: |_| &[],
    unreported: |_| None,
    numbers: None,
    target: |_| None,
    undo: |_, _| Some(Recorded::new()),
};

/// A key that a script did not write as the backend reads it, and what it wrote instead.
pub(crate) type Unreported = (&'static str, Option<String>);

/// What a kind may know of the toolstack's domain when a script's work is undone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Surroundings {
    /// Whether the target is still a file.
    pub(crate) target_is_file: bool,
    /// Block devices that this device's script made of the target and did not report.
    pub(crate) unreported: Vec<String>,
    /// More such devices, which may be anybody's.
    pub(crate) surplus: Vec<String>,
    /// Whether it is known that no block device that is made of the target now is the script's.
    pub(crate) made_none: bool,
    /// Whether the block device that is recorded still serves the target; `None` if that cannot be seen.
    pub(crate) node_serves: Option<bool>,
}

/// A key that listings show.
#[derive(Debug)]
#[non_exhaustive]
pub struct ListedKey {
    /// Its name in the listing.
    pub name: &'static str,
    /// Its name in the store.
    pub key: &'static str,
    /// Whether it is the guest's word, or the toolstack's.
    pub of_guest: bool,
    /// Whether it is a number, or text.
    pub is_number: bool,
}

/// What a device has several of: each is a directory below that of the guest, by its number from 0 on.
#[derive(Debug)]
#[non_exhaustive]
pub struct Parts {
    /// Their name in the listing.
    pub name: &'static str,
    /// What a listing shows of each.
    pub listed: &'static [ListedKey],
    /// What each of them has several of.
    pub parts: Option<&'static Self>,
}

impl ListedKey {
    pub(crate) const fn recorded(name: &'static str, key: &'static str) -> Self {
        Self { name, key, of_guest: false, is_number: false }
    }

    pub(crate) const fn of_guest(name: &'static str, key: &'static str) -> Self {
        Self { name, key, of_guest: true, is_number: true }
    }

    pub(crate) const fn text_of_guest(name: &'static str, key: &'static str) -> Self {
        Self { name, key, of_guest: true, is_number: false }
    }
}

/// A value of a key that a device must have for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unique {
    pub(crate) key: &'static str,
    pub(crate) value: String,
    /// Which other devices may not hold it.
    pub(crate) among: Among,
}

/// Devices of one kind, and where the key stands that no two of them may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Among {
    /// Those of the guest, wherever their backends are: the toolstack's record has the key.
    OfGuest,
    /// Those of all guests in the same backend's domain: the backend has the key.
    OfAllGuests,
    /// Those of the guest, in whose directory the key stands alone. It is looked for outside of transactions, in which
    /// nothing is read that a guest can write.
    InFrontends,
}

/// The frontend's keys of a device whose driver writes all else.
fn plain_frontend(id: &DeviceId) -> Keys {
    let mut fe = Keys::new();
    fe.add("backend-id", id.be).add("state", 1);
    fe
}

/// The keys of a device of which both ends' drivers write all else.
fn plain_tree(id: &DeviceId) -> Tree {
    let mut be = Keys::new();
    be.add("frontend-id", id.fe).add("online", 1).add("state", 1);
    Tree { frontend: plain_frontend(id), frontend_read_only: Keys::new(), backend: be }
}

/// A device of some kind as it is asked for: plain values, no I/O.
pub(crate) trait Spec {
    /// Its device id, if that is fixed.
    fn devid(&self) -> Option<u32>;

    /// Gives it this device id, if it has none and can have any.
    fn number(&mut self, devid: u32) {
        _ = devid;
    }

    /// Its name for the operator.
    fn label(&self) -> String {
        self.devid().map_or_else(|| "with the next id".to_owned(), |devid| devid.to_string())
    }

    /// The domain that is to serve it, by name or number, if that was said.
    fn backend_name(&self) -> Option<&str> {
        None
    }

    /// Settles what was left open and must be the same in every attempt to write it.
    fn settle(&mut self) {}

    /// A path that must be a file or block device of the toolstack's domain.
    fn must_exist(&self) -> Option<&str> {
        None
    }

    /// A path that must be a directory of the toolstack's domain.
    fn must_be_directory(&self) -> Option<&str> {
        None
    }

    /// A network interface that the guest's device model must have made in the toolstack's domain.
    fn emulated_twin(&self, fe: DomId) -> Option<String> {
        _ = fe;
        None
    }

    /// Whether this version can serve it for this guest.
    fn check(&self, guest: &Guest) -> Result<(), Cause> {
        _ = guest;
        Ok(())
    }

    /// Whether it can be added to a guest whose device model and drivers may run.
    fn check_hot(&self, guest: &Guest) -> Result<(), Cause> {
        _ = guest;
        Ok(())
    }

    /// What serves it.
    fn backend(&self, guest: &Guest) -> BackendKind;

    /// Whether it can have this number.
    fn check_place(&self, id: &DeviceId) -> Result<(), Cause> {
        _ = id;
        Ok(())
    }

    /// Why domain 0 can never use it, if so.
    fn domain0_lacks(&self) -> Option<&'static str> {
        None
    }

    /// Keys whose values no other device may hold.
    fn uniques(&self) -> Vec<Unique> {
        Vec::new()
    }

    /// What was said of it, as libxl enters it into the configuration of a domain: in libxl's names and
    /// order, without what has its default.
    fn libxl(&self) -> Map<String, Value>;

    /// What is written for it.
    fn tree(&self, id: &DeviceId, guest: &Guest) -> Tree;
}
