//! What the stock scripts for network interfaces do: `vif-bridge`, `vif-route` and `vif-nat` over netlink, without a
//! process; `vif-openvswitch` with Open vSwitch's own tool besides.
//!
//! [`run`] takes the [`Request`] that the script would be run for, and yields the keys of the store that the script would
//! have written. Like [`ScriptRunner`](crate::ScriptRunner) it has no connection to the store: who calls it writes them.
//!
//! ```no_run
//! use xen_hotplug::native::Tools;
//! use xen_hotplug::native::vif::{self, Script};
//! use xen_hotplug::{Action, Kind, Limits, Request};
//! use tokio_util::sync::CancellationToken;
//!
//! let request = Request::new(Kind::Vif, Action::Add, 7, 0, "/etc/xen/scripts/vif-bridge")
//!     .recorded("bridge", "xenbr0");
//! let (limits, cancel) = (Limits::default(), CancellationToken::new());
//! let outcome = vif::run(Script::Bridge, &request, &Tools::new(), &limits, &cancel)?;
//! assert_eq!(outcome.backend, [("hotplug-status", "connected".to_owned())]);
//! # Ok::<(), vif::VifError>(())
//! ```
//!
//! # What it is equal to
//!
//! The texts that [`Script::release_of`] knows, unless [`Script::extras`] names something that the handler does not do. `cargo lab
//! native-vif` runs both in network namespaces and compares links, ports, addresses, routes, settings, the store, and the
//! database of a real Open vSwitch.
//!
//! These texts write no rules for packets and take no locks: Debian has disabled the function of its scripts that would
//! (`handle_iptable`). So the key `ip` restricts nobody under `vif-bridge`, here as there.
//!
//! # What differs
//!
//! In all:
//!
//! - **An interface that is not there yet** is awaited for 2 s; the scripts fail at once.
//! - **A failed add has changed nothing** where that can be known before: the bridge, the gateway and the addresses
//!   are looked at before the interface is renamed. The scripts leave it renamed, so that another attempt fails.
//! - **Remove succeeds if nothing is left to do**: the interface gone, the bridge gone, the gateway without an address.
//!   The scripts fail there, and write `hotplug-status`, which brings back a directory that was deleted.
//! - **Remove touches the device's interface only.** The scripts take down whatever has the device's `vifname`, which is
//!   another guest's interface if the add failed for that reason.
//! - **The emulated twin's keys** are those of the request. The scripts read them below `/local/domain/0`, which is wrong
//!   in a driver domain.
//! - **A `vifname` that the interface has already** is no failure: one that is the device's own name, and one that netback's
//!   interface got from an earlier add.
//! - **An interface of netback under a third name** is found on remove.
//! - Nothing is written to the system's log and to `/var/log/xen/xen-hotplug.log`: the caller gets it.
//! - The text of `hotplug-error`: the scripts mostly write that they failed, or nothing, when a command fails in one of their
//!   functions.
//!
//! `vif-bridge`:
//!
//! - **The frontend's `mtu`** is written for a renamed interface too. The script makes the frontend's path of the
//!   interface's name, and writes to a directory such as `/local/domain/web/device/vif/web`. If the interface refuses
//!   the MTU, which both tolerate, the one that it has is written; the script writes the one that it has not.
//! - **Without a recorded bridge** and without `brctl` the script fails unless the host has exactly one port of a bridge;
//!   the handler fails if it has ports of several bridges. On remove the interface leaves the bridge that it is on.
//! - **Something else than a bridge** is refused before anything is changed; the script without `brctl` tries.
//! - **A port of another bridge** is moved; the script with `brctl` fails.
//!
//! `vif-route`:
//!
//! - `ifconfig` is not needed. Addresses that an interface has already are all replaced.
//! - `ifdown` is not run, which on Debian knows no interface of a guest unless `/etc/network/interfaces` has it.
//! - Addresses are IPv4 with all four octets, looked at beforehand; the script fails with IPv6, and understands `10.1/16`.
//!
//! `vif-nat`:
//!
//! - **An interface with routes already** is left as it is by both. The script then says nothing to netback, and takes the
//!   routes of `vif1.10` for those of `vif1.1`; the handler reports `connected`.
//! - DHCP is left to the script: see [`Script::extras`].
//!
//! `vif-openvswitch` (both leave the MTU of the interface alone):
//!
//! - **The switch is looked for** before anything is changed; a failure names those that there are. The script has set up
//!   and renamed the interface by then.
//! - **A failed add** takes the port away again, also when it was killed or cancelled, and a port of which Open vSwitch says
//!   that it does not work is a failure. The script leaves the port, and reports `connected`.
//! - **A guest's name** may have blanks, quotes and commas in it; the script splits it into arguments and fails. An id that is
//!   not known is left out; the script writes `hotplug-error` and an empty id.
//! - **A port whose interface is gone** is removed under each name that it may have had. The script removes the one of the
//!   device's `vifname` alone, also if that is another guest's.
//! - **A remove without Open vSwitch** fails, and says that the port stays in its database; the script says nothing.

mod bridge;
mod digests;
mod error;
mod interface;
mod nat;
mod netlink;
mod openvswitch;
mod route;
mod session;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use crate::native::Tools;
use crate::{Action, Kind, Limits, Request};
pub use error::{Refusal, VifError};
use interface::Names;
use session::Session;

/// Where the scripts look for what an administrator has added to them.
const HOOKS: &str = "/etc/xen/scripts/vif-post.d";

/// The file by which `vif-nat` knows that it is to configure a DHCP server.
const DHCPD: &str = "/etc/dhcpd.conf";

/// The recorded key by which [`run`] is told the name of the virtual machine that has the interface, for
/// `vif-openvswitch`: the node `name` of the directory in `/vm` that the guest's node `vm` names.
pub const VM_NAME: &str = "xen-vm-name";

/// The same for its UUID: the node `uuid`.
pub const VM_UUID: &str = "xen-vm-uuid";

/// A stock script that there is a handler for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Script {
    /// `vif-bridge`.
    Bridge,
    /// `vif-route`.
    Route,
    /// `vif-nat`.
    Nat,
    /// `vif-openvswitch`.
    OpenVswitch,
}

impl Script {
    /// The script with this file name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "vif-bridge" => Some(Self::Bridge),
            "vif-route" => Some(Self::Route),
            "vif-nat" => Some(Self::Nat),
            "vif-openvswitch" => Some(Self::OpenVswitch),
            _ => None,
        }
    }

    /// Its file name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bridge => "vif-bridge",
            Self::Route => "vif-route",
            Self::Nat => "vif-nat",
            Self::OpenVswitch => "vif-openvswitch",
        }
    }

    /// A file of this host for whose sake the script would do more than its handler: a hook of the administrator, or
    /// the configuration of a DHCP server. If there is one, the script is to be run.
    #[must_use]
    pub fn extras(self) -> Option<PathBuf> {
        // This one looks for no hooks.
        if self == Self::OpenVswitch {
            return None;
        }
        if self == Self::Nat && Path::new(DHCPD).is_file() {
            return Some(DHCPD.into());
        }
        let is_hook = |path: &PathBuf| {
            let named = path.extension().is_some_and(|extension| extension == "hook");
            named && path.metadata().is_ok_and(|found| found.permissions().mode() & 0o111 != 0)
        };
        fs::read_dir(HOOKS).ok()?.filter_map(|entry| Some(entry.ok()?.path())).find(is_hook)
    }
}

/// What a handler did, and what of that is to be written to the store.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
#[non_exhaustive]
pub struct Outcome {
    /// The name of the interface, whether it is there or not.
    pub interface: String,
    /// Keys of the backend's directory, to be written last, in one transaction, and only if the directory is still there.
    pub backend: Vec<(&'static str, String)>,
    /// Keys of the frontend's directory, likewise.
    pub frontend: Vec<(&'static str, String)>,
    /// What the kernel refused and the device can do without, as the script would.
    pub tolerated: Vec<VifError>,
}

impl Outcome {
    fn new(interface: &str) -> Self {
        let (backend, frontend, tolerated) = (Vec::new(), Vec::new(), Vec::new());
        Self { interface: interface.to_owned(), backend, frontend, tolerated }
    }

    /// Takes note of a refusal that can be tolerated; whether there was none.
    fn tolerate(&mut self, result: Result<(), VifError>) -> Result<bool, VifError> {
        match result {
            Ok(()) => Ok(true),
            Err(error @ VifError::Refused { .. }) => {
                self.tolerated.push(error);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

/// Does the work of a script for a request, in the network namespace of this thread.
///
/// It blocks, for less than a millisecond mostly, and for as long as somebody else changes the kernel's network
/// configuration, the interface is awaited, or a tool runs. So it belongs on a thread that may block, such as one of tokio's
/// `spawn_blocking`. [`Limits::deadline`] and `cancel` are heeded between its steps; the other limits are for the caller,
/// who also sees to it that nothing else runs for the device.
///
/// Of the request, its kind, its action, the device, and these recorded keys count: `vifname`; `bridge`, `mtu`; `ip`;
/// `gatewaydev`; for `vif-openvswitch` also `mac`, [`VM_NAME`] and [`VM_UUID`]. A remove needs the same as the add, and nothing else: it may come when the backend's directory is gone,
/// and again.
///
/// # Errors
///
/// An error after which the interface may be set up in part. A remove undoes that.
pub fn run(
    script: Script,
    request: &Request,
    tools: &Tools,
    limits: &Limits,
    cancel: &CancellationToken,
) -> Result<Outcome, VifError> {
    if !matches!(request.kind, Kind::Vif | Kind::VifIoemu | Kind::Tap) {
        let (value, expected) = (script.name().to_owned(), "a script for disks");
        return Err(VifError::Invalid { key: "script", value, expected });
    }
    let session = &mut Session::open(tools, limits, cancel)?;
    let names = Names::of(request);
    let handler = match (script, request.action) {
        (Script::Bridge, Action::Add) => bridge::add,
        (Script::Bridge, Action::Remove) => bridge::remove,
        (Script::Route, Action::Add) => route::add,
        (Script::Route, Action::Remove) => route::remove,
        (Script::Nat, Action::Add) => nat::add,
        (Script::Nat, Action::Remove) => nat::remove,
        (Script::OpenVswitch, Action::Add) => openvswitch::add,
        (Script::OpenVswitch, Action::Remove) => openvswitch::remove,
    };
    let mut outcome = match handler(session, request, &names) {
        // It took with it what was to be undone.
        Err(VifError::Vanished { .. }) if request.action == Action::Remove => Outcome::new(names.last()),
        result => result?,
    };
    if request.action == Action::Add && request.kind != Kind::Tap {
        outcome.backend.push(("hotplug-status", "connected".to_owned()));
    }
    Ok(outcome)
}
