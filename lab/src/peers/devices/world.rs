//! Which devices there are, the nodes of each, and the domains that they belong to.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use xs_proto::{DomId, Op};

use super::link::Link;
use crate::daemon::{Daemon, DaemonKind};
use crate::fakexen::FakeXen;
use crate::xendev::StoreProcess;

/// Disks of a domain.
pub(super) const PER_DOMAIN: usize = 10;

/// Where the backends of all disks are.
pub(super) const BACKENDS: &str = "/local/domain/0/backend/vbd";

/// A disk by its number: the first ten are those of domain 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Disk(pub(super) usize);

impl Disk {
    pub(super) fn domid(self) -> usize {
        1 + self.0 / PER_DOMAIN
    }

    pub(super) fn letter(self) -> char {
        char::from(b'a' + (self.0 % PER_DOMAIN) as u8)
    }

    /// `xvda` is 51712.
    pub(super) fn devid(self) -> usize {
        51712 + 16 * (self.0 % PER_DOMAIN)
    }

    pub(super) fn backend(self) -> String {
        format!("{BACKENDS}/{}/{}", self.domid(), self.devid())
    }

    pub(super) fn frontend(self) -> String {
        format!("/local/domain/{}/device/vbd/{}", self.domid(), self.devid())
    }

    pub(super) fn recorded(self) -> String {
        format!("/libxl/{}/device/vbd/{}", self.domid(), self.devid())
    }

    /// The disk whose backend's state this is.
    pub(super) fn of_state(path: &str) -> Option<Self> {
        let (domid, devid) =
            path.strip_prefix(BACKENDS)?.strip_prefix('/')?.strip_suffix("/state")?.split_once('/')?;
        let (domid, devid): (usize, usize) = (domid.parse().ok()?, devid.parse().ok()?);
        Some(Self((domid.checked_sub(1)?) * PER_DOMAIN + devid.checked_sub(51712)? / 16))
    }

    /// The keys of the frontend, in libxl's order, after `backend`.
    pub(super) fn frontend_keys(self) -> Vec<(&'static str, String)> {
        vec![
            ("backend-id", "0".to_owned()),
            ("state", "1".to_owned()),
            ("virtual-device", self.devid().to_string()),
            ("device-type", "disk".to_owned()),
            ("trusted", "1".to_owned()),
        ]
    }

    /// The keys of the backend, in libxl's order, after `frontend`.
    pub(super) fn backend_keys(self, target: &str) -> Vec<(&'static str, String)> {
        let text = str::to_owned;
        vec![
            ("params", text(target)),
            ("script", text("/etc/xen/scripts/block")),
            ("frontend-id", self.domid().to_string()),
            ("online", text("1")),
            ("removable", text("0")),
            ("bootable", text("1")),
            ("state", text("1")),
            ("dev", format!("xvd{}", self.letter())),
            ("type", text("phy")),
            ("mode", text("w")),
            ("device-type", text("disk")),
            ("discard-enable", text("1")),
            ("specification", text("xen")),
        ]
    }
}

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ServerKind {
    Xenstored,
    Xendev,
}

impl fmt::Display for ServerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Xenstored => "xenstored",
            Self::Xendev => "xendev store",
        })
    }
}

/// A server that runs; dropping it ends it.
pub(super) enum Running {
    Daemon(Daemon),
    Store(StoreProcess),
}

impl Running {
    /// A fresh server that knows the domains of so many disks. `xendev` is our program.
    pub(super) fn start(kind: ServerKind, xendev: &Path, disks: usize) -> Result<Self> {
        let running = match kind {
            ServerKind::Xenstored => Self::Daemon(Daemon::start(DaemonKind::Xenstored)?),
            ServerKind::Xendev => Self::Store(StoreProcess::start_with_domains(xendev)?),
        };
        let (xen, mut link) = (running.hypervisor(), Link::connect(&running.socket())?);
        link.ask(Op::WRITE, &["/local/domain/0/domid\0", "0"])?;
        link.ask(Op::WRITE, &["/local/domain/0/name\0", "Domain-0"])?;
        for domid in 1..=disks.div_ceil(PER_DOMAIN) {
            xen.create(DomId(domid as u32))?;
            link.ask(Op::INTRODUCE, &[&format!("{domid}\x001\x005\0")])?;
            // What a guest has besides disks, so that their parents do not go with them.
            for (node, value) in [
                (format!("/local/domain/{domid}/name"), format!("guest{domid}")),
                (format!("/local/domain/{domid}/domid"), domid.to_string()),
                (format!("/local/domain/{domid}/device/suspend/event-channel"), String::new()),
                (format!("/libxl/{domid}/type"), "pvh".to_owned()),
                (format!("/libxl/{domid}/device/console/0/frontend"), String::new()),
                (format!("/local/domain/0/backend/console/{domid}/0/state"), "1".to_owned()),
            ] {
                link.ask(Op::WRITE, &[&node, "\0", &value])?;
            }
        }
        Ok(running)
    }

    pub(super) fn socket(&self) -> PathBuf {
        match self {
            Self::Daemon(daemon) => daemon.socket().to_owned(),
            Self::Store(store) => store.socket(),
        }
    }

    fn hypervisor(&self) -> FakeXen {
        match self {
            Self::Daemon(daemon) => daemon.hypervisor(),
            Self::Store(store) => FakeXen::at(store.state_dir()),
        }
    }

    /// All nodes with their values and permissions.
    pub(super) fn dump(&self) -> Result<BTreeMap<String, (String, String)>> {
        let (mut link, mut nodes) = (Link::connect(&self.socket())?, BTreeMap::new());
        let mut todo = vec![String::new()];
        while let Some(path) = todo.pop() {
            let node = if path.is_empty() { "/" } else { &*path };
            let mut text = |op| -> Result<String> {
                let reply = link.ask(op, &[node, "\0"])?;
                Ok(String::from_utf8_lossy(&reply.payload).into_owned())
            };
            let names = text(Op::DIRECTORY)?;
            todo.extend(
                names.split('\0').filter(|name| !name.is_empty()).map(|name| format!("{path}/{name}")),
            );
            nodes.insert(node.to_owned(), (text(Op::READ)?, text(Op::GET_PERMS)?));
        }
        Ok(nodes)
    }
}
