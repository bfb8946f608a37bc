//! Debian's real xenstore daemons, run on a machine without Xen.
//!
//! The unmodified daemon gets `fakexen.c` preloaded, which answers its calls to the hypervisor
//! from a folder of files ([`crate::fakexen`]). It runs in a mount namespace of its own with an
//! empty `/run`, so that any number of daemons can run beside each other and beside a real one.
//!
//! This is the oracle: what our own store, client and replayer hold to be xenstore is checked
//! against it. A daemon or a tool that is not installed is therefore an error, which says what
//! to install, and never a reason to skip a test.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::BytesMut;
use rustix::process::{Pid, Signal};
use tempfile::TempDir;
use xs_proto::{DomId, HEADER_LEN, Header, Op, PAYLOAD_MAX, Request, TxId};

use crate::cc;
use crate::failure::{Failure, missing};
use crate::fakexen::FakeXen;

/// How long a daemon may take to start, and to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where Debian's package has the daemons.
const DAEMONS: &str = "/usr/lib/xen-4.17/bin";

const FAKEXEN: &str = include_str!("../fakexen.c");

/// Which implementation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DaemonKind {
    /// The one in C.
    Xenstored,
    /// The one in OCaml.
    Oxenstored,
}

impl DaemonKind {
    fn command(self) -> String {
        match self {
            Self::Xenstored => format!("{DAEMONS}/xenstored -N"),
            Self::Oxenstored => format!("{DAEMONS}/oxenstored --no-fork"),
        }
    }

    fn file(self) -> PathBuf {
        Path::new(DAEMONS).join(match self {
            Self::Xenstored => "xenstored",
            Self::Oxenstored => "oxenstored",
        })
    }
}

/// A running daemon. Dropping it ends the daemon and removes its files.
#[derive(Debug)]
pub struct Daemon {
    kind: DaemonKind,
    process: Child,
    socket: PathBuf,
    state: TempDir,
}

impl Daemon {
    /// Starts a daemon and waits until it takes connections.
    pub fn start(kind: DaemonKind) -> Result<Self> {
        let tried = || format!("starting {} under the stand-in hypervisor", kind.file().display());
        if !kind.file().exists() {
            return Err(Failure {
                tried: tried(),
                observed: "there is no such file".into(),
                hint: "install it with: apt-get install xen-utils-4.17".into(),
            }
            .into());
        }
        let library = cc::compiled(
            "fakexen.so",
            FAKEXEN,
            &["-shared", "-fPIC", "-O1", "-Wall", "-ldl"],
            "gcc libc6-dev",
        )?;
        let state = tempfile::Builder::new().prefix("xendev-daemon-").tempdir()?;
        // The domain that the daemon itself runs in.
        fs::write(state.path().join("dom0"), "")?;
        let process = spawn(kind, &library, state.path())?;
        let socket = PathBuf::from(format!("/proc/{}/root/run/xenstored/socket", process.id()));
        let mut daemon = Self { kind, process, socket, state };
        if let Err(observed) = daemon.wait_until_ready() {
            return Err(Failure {
                tried: tried(),
                observed: format!("{observed}; its messages:\n{}", daemon.messages()),
                hint: "mount namespaces are needed: run as root, or allow unprivileged user namespaces"
                    .into(),
            }
            .into());
        }
        Ok(daemon)
    }

    /// Its socket. Any process of this user can connect to it while the daemon runs.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The folder of its hypervisor.
    pub fn state_dir(&self) -> &Path {
        self.state.path()
    }

    /// Its hypervisor.
    pub fn hypervisor(&self) -> FakeXen {
        FakeXen::at(self.state.path())
    }

    /// Makes a domain exist and introduces it to the daemon.
    pub fn create_domain(&self, domid: DomId) -> Result<()> {
        self.hypervisor().create(domid)?;
        let mut request = BytesMut::new();
        // The stand-in has one page per domain and any event channel; these numbers are unused.
        Request::Introduce { domid, gfn: 1, evtchn: 5 }.encode(1, TxId::NONE, &mut request)?;
        let tried = || format!("introducing domain {domid} to {}", self.kind.file().display());
        let reply = exchange(&self.socket, &request).with_context(tried)?;
        anyhow::ensure!(reply.op == Op::INTRODUCE, "{}: it refused", tried());
        Ok(())
    }

    fn wait_until_ready(&mut self) -> Result<(), String> {
        let started = Instant::now();
        loop {
            if UnixStream::connect(&self.socket).is_ok() {
                return Ok(());
            }
            if let Ok(Some(status)) = self.process.try_wait() {
                return Err(format!("it ended with {status}"));
            }
            if started.elapsed() > PATIENCE {
                return Err(format!("no connection to its socket within {} s", PATIENCE.as_secs()));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn messages(&self) -> String {
        fs::read_to_string(self.state.path().join("messages")).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // The daemon leads a process group, so whatever it started ends with it.
        if let Some(group) = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw) {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        let _ = self.process.wait();
    }
}

fn spawn(kind: DaemonKind, library: &Path, state: &Path) -> Result<Child> {
    // `exec` all the way, so that the child is the daemon and its /proc entry shows its files.
    let script = format!(
        "mount -t tmpfs tmpfs /run && mkdir /run/xenstored && \
         exec env LD_PRELOAD=\"$0\" FAKEXEN_DIR=\"$1\" {}",
        kind.command()
    );
    let messages = File::create(state.join("messages"))?;
    let mut command = Command::new("unshare");
    command.arg("--mount");
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command.args(["sh", "-c", &script]).args([library, state]);
    command.stdin(Stdio::null()).stdout(messages.try_clone()?).stderr(messages).process_group(0);
    command.spawn().map_err(|error| missing("running unshare", &error, "util-linux"))
}

/// One request on a connection of its own.
fn exchange(socket: &Path, request: &[u8]) -> Result<Header> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request)?;
    let mut head = [0; HEADER_LEN];
    stream.read_exact(&mut head)?;
    let header = Header::decode(&head);
    let length = usize::try_from(header.len)?;
    anyhow::ensure!(length <= PAYLOAD_MAX, "a reply of {length} bytes");
    stream.read_exact(&mut vec![0; length])?;
    Ok(header)
}
