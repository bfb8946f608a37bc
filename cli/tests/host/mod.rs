//! A host for the `xendev` program to work on: one of Debian's real daemons, a guest and domain 0
//! with simulated drivers, and hotplug scripts that are real processes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use lab::daemon::{Daemon, DaemonKind};
use tempfile::TempDir;
use tokio::process::Command;
use xen_aodevice::sim::{self, Drivers};
use xs_client::{Client, Config, DomId};

pub(crate) const GUEST: DomId = DomId(1);

pub(crate) struct Host {
    pub(crate) daemon: Daemon,
    folder: TempDir,
    pub(crate) client: Client,
    pub(crate) backends: Option<Drivers>,
    pub(crate) frontends: Option<Drivers>,
}

/// What became of a run of `xendev`.
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Ran {
    /// Demands a success that says nothing.
    #[track_caller]
    pub(crate) fn quietly(&self) -> &Self {
        assert_eq!((self.code, self.stderr.as_str(), self.stdout.as_str()), (Some(0), "", ""));
        self
    }

    /// Demands an error of three parts with this exit status, which says all of these.
    #[track_caller]
    pub(crate) fn failed(&self, code: i32, says: &[&str]) -> &Self {
        let stderr = &self.stderr;
        assert_eq!(self.code, Some(code), "{stderr}");
        for part in ["error: ", "\n  observed: ", "\n  hint: "].iter().chain(says) {
            assert!(stderr.contains(part), "no {part:?} in:\n{stderr}");
        }
        self
    }
}

impl Host {
    pub(crate) async fn start(kind: DaemonKind) -> Self {
        let daemon = Daemon::start(kind).unwrap();
        daemon.create_domain(GUEST).unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("d.img"), [0; 4096]).unwrap();
        let client = Self::connect(&daemon).await;
        sim::create_domain0(&client).await.unwrap();
        sim::create_domain(&client, GUEST, "guest").await.unwrap();
        let mut host = Self { daemon, folder, client, backends: None, frontends: None };
        let be = Self::connect(&host.daemon).await;
        host.backends = Some(Drivers::backends(be, DomId::DOM0, Duration::ZERO).unwrap());
        host.start_guest().await;
        host
    }

    pub(crate) async fn start_guest(&mut self) {
        let fe = Self::connect(&self.daemon).await;
        self.frontends = Some(Drivers::frontends(fe, GUEST, Duration::ZERO).unwrap());
    }

    async fn connect(daemon: &Daemon) -> Client {
        Client::connect_unix(daemon.socket(), Config::default()).await.unwrap()
    }

    /// A hotplug script, and its path.
    pub(crate) fn script(&self, name: &str, body: &str) -> String {
        let path = self.folder.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.display().to_string()
    }

    /// A script that does for disks and interfaces what the backends wait for.
    pub(crate) fn good_script(&self) -> String {
        self.script(
            "good",
            r#"case "$1" in
add) xenstore-write "$XENBUS_PATH/physical-device" 7:0 "$XENBUS_PATH/hotplug-status" connected;;
online) xenstore-write "$XENBUS_PATH/hotplug-status" connected;;
esac"#,
        )
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.folder.path().join("d.img")
    }

    /// The arguments of a disk `xvda` with this script.
    pub(crate) fn disk(&self, script: &str) -> String {
        format!("vdev=xvda,format=raw,access=rw,script={script},target={}", self.image().display())
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xendev"));
        command.arg("--store").arg(self.daemon.socket()).args(args).kill_on_drop(true);
        command
    }

    pub(crate) async fn xendev(&self, args: &[&str]) -> Ran {
        self.command(args).output().await.unwrap().into()
    }

    /// The whole store, as Xen's own tool shows it.
    pub(crate) async fn dump(&self) -> String {
        let mut command = Command::new("xenstore-ls");
        command.arg("-fp").env("XENSTORED_PATH", self.daemon.socket());
        let output = command.output().await.expect("install the Debian package xenstore-utils");
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    }
}
