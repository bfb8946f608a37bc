//! A server under the stand-in hypervisor, and its connections.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::BytesMut;
use tokio::time::{sleep, timeout};
use xs_proto::{DomId, Message, Op, TxId};

use crate::conformance::line::{Conn, Line};
use crate::daemon::{Daemon, DaemonKind};
use crate::fakexen::FakeXen;
use crate::xendev::StoreProcess;

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Server {
    /// `xendev store`.
    Xendev,
    /// The C daemon.
    Xenstored,
}

impl Server {
    pub(super) const ALL: [Self; 2] = [Self::Xendev, Self::Xenstored];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Xendev => "xendev",
            Self::Xenstored => "xenstored",
        }
    }
}

/// A server that runs; dropping it ends it.
enum Running {
    Daemon(Daemon),
    Store(StoreProcess),
}

/// A server, and the hypervisor that it believes in.
pub(super) struct Host {
    running: Running,
    pub(super) xen: FakeXen,
    pub(super) socket: PathBuf,
}

impl Host {
    /// A fresh server with these guests, each with a home that everybody may read.
    pub(super) async fn start(server: Server, xendev: &Path, guests: &[DomId]) -> Result<Self> {
        let running = match server {
            Server::Xendev => Running::Store(StoreProcess::start_with_domains(xendev)?),
            Server::Xenstored => Running::Daemon(Daemon::start(DaemonKind::Xenstored)?),
        };
        let (xen, socket) = match &running {
            Running::Daemon(daemon) => (daemon.hypervisor(), daemon.socket().to_owned()),
            Running::Store(store) => (FakeXen::at(store.state_dir()), store.socket()),
        };
        let host = Self { running, xen, socket };
        let mut dom0 = host.connect().await?;
        for guest in guests {
            host.introduce(&mut dom0, *guest).await?;
        }
        Ok(host)
    }

    /// Makes a domain exist, with a home of its own.
    pub(super) async fn introduce(&self, dom0: &mut Conn, guest: DomId) -> Result<()> {
        self.xen.create(guest)?;
        done(dom0.call(Op::INTRODUCE, format!("{guest}\01\05\0").as_bytes(), TxId::NONE, None).await?)?;
        let home = home(guest);
        done(dom0.call(Op::WRITE, format!("{home}\0").as_bytes(), TxId::NONE, None).await?)?;
        let perms = format!("{home}\0r{guest}\0");
        done(dom0.call(Op::SET_PERMS, perms.as_bytes(), TxId::NONE, None).await?)
    }

    /// Another connection of domain 0.
    pub(super) async fn connect(&self) -> Result<Conn> {
        Ok(Conn::new(Line::to_socket(&self.socket).await?))
    }

    /// A guest's connection.
    pub(super) fn ring(&self, guest: DomId) -> Result<Conn> {
        Ok(Conn::new(Line::to_ring(&self.xen, guest)?))
    }

    /// Bytes of the server's memory that are resident.
    pub(super) fn resident(&self) -> Result<u64> {
        let pid = match &self.running {
            Running::Daemon(daemon) => daemon.pid(),
            Running::Store(store) => store.pid(),
        };
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib * 1024)
    }
}

pub(super) fn home(guest: DomId) -> String {
    format!("/local/domain/{guest}")
}

/// A message that is no error.
pub(super) fn done(message: Message) -> Result<()> {
    ensure!(message.op != Op::ERROR, "refused: {:?}", message.payload);
    Ok(())
}

/// Whether a connection still answers, though it was not read for a while.
pub(super) async fn is_alive(conn: &mut Conn) -> bool {
    // What waits there first may be much.
    for _ in 0..3 {
        if matches!(timeout(Duration::from_secs(10), conn.barrier()).await, Ok(Ok(()))) {
            return true;
        }
        sleep(Duration::from_millis(100)).await;
    }
    false
}

/// Requests one after the other in one buffer, for who does not wait for answers.
pub(super) fn pipelined(conn: &mut Conn, requests: &[(Op, Vec<u8>)], tx: TxId) -> BytesMut {
    let mut out = BytesMut::new();
    for (op, payload) in requests {
        conn.encode(*op, payload, tx, None, &mut out);
    }
    out
}
