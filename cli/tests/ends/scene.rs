//! A store with a guest and a backend, and runs of `xendev` on it whose ends are looked at.

use std::fs;
use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_setfl};
use rustix::pipe::fcntl_setpipe_size;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::UnixListener;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};
use xen_aodevice::sim::{self, Drivers};
use xs_client::{Client, Config, DomId, Path};
use xs_store::Store;

pub(crate) const GUEST: DomId = DomId(1);

/// What a run may take that does not hang.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Scene {
    pub(crate) folder: TempDir,
    client: Client,
    _backends: Drivers,
}

impl Scene {
    /// A store at a socket, and in it domain 0, a guest without drivers, and a backend.
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        fs::write(folder.path().join("d.img"), [0; 4096]).unwrap();
        let store = Store::new();
        store.introduce(GUEST);
        let connect = || Client::over(store.connect(DomId::DOM0), Config::default());
        let client = connect();
        sim::create_domain0(&client).await.unwrap();
        sim::create_domain(&client, GUEST, "guest").await.unwrap();
        let backends = Drivers::backends(connect(), DomId::DOM0, Duration::ZERO).unwrap();
        tokio::spawn(async move { store.serve(listener).await });
        Self { folder, client, _backends: backends }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// The command on this store, with its output discarded until something else is said.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        xendev(&self.socket(), args)
    }

    /// A disk `xvda` whose script runs this for `add`, and nothing for `remove`.
    pub(crate) fn disk(&self, add: &str) -> String {
        self.disk_with(&format!("[ \"$1\" = add ] || exit 0\n{add}"))
    }

    pub(crate) fn disk_with(&self, body: &str) -> String {
        let (script, image) = (self.folder.path().join("script"), self.folder.path().join("d.img"));
        fs::write(&script, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        format!("vdev=xvda,format=raw,access=rw,script={},target={}", script.display(), image.display())
    }

    /// A disk whose script does what the backend waits for.
    pub(crate) fn good_disk(&self) -> String {
        let keys = r#""$XENBUS_PATH/physical-device" 7:0 "$XENBUS_PATH/hotplug-status" connected"#;
        self.disk(&format!("xenstore-write {keys}"))
    }

    /// A disk whose script takes long; and the file that is there once the script runs.
    pub(crate) fn slow_disk(&self) -> (String, PathBuf) {
        let runs = self.folder.path().join("runs");
        _ = fs::remove_file(&runs);
        (self.disk(&format!("touch {}; exec sleep 20", runs.display())), runs)
    }

    /// Whether the toolstack has a record of the disk, and whether an operation works on it.
    pub(crate) async fn disk_is(&self) -> (bool, bool) {
        let home = Path::new(format!("/libxl/{GUEST}/device/vbd/51712")).unwrap();
        let there = self.client.read_opt(&home).await.unwrap().is_some();
        let busy = self.client.read_opt(&home.join("op").unwrap()).await.unwrap().is_some();
        (there, busy)
    }
}

pub(crate) fn xendev(socket: &std::path::Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xendev"));
    command.arg("--store").arg(socket).args(args).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// A pipe whose reader has gone away.
pub(crate) fn broken() -> PipeWriter {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    writer
}

/// A pipe that is full, and its reader.
pub(crate) fn full() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = io::pipe().unwrap();
    fcntl_setpipe_size(&writer, 4096).unwrap();
    let flags = rustix::fs::fcntl_getfl(&writer).unwrap();
    fcntl_setfl(&writer, flags | OFlags::NONBLOCK).unwrap();
    while writer.write(&[b'.'; 512]).is_ok() {}
    fcntl_setfl(&writer, flags).unwrap();
    (reader, writer)
}

pub(crate) fn stdio(end: impl Into<OwnedFd>) -> Stdio {
    Stdio::from(end.into())
}

pub(crate) fn send(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(child.id().unwrap().try_into().unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// Waits for what comes at once unless something hangs.
pub(crate) async fn soon<T>(coming: impl Future<Output = T>) -> T {
    timeout(PATIENCE, coming).await.expect("nothing hangs")
}

/// Waits until a file is there.
pub(crate) async fn appears(path: &std::path::Path) {
    let looking = async {
        while !path.exists() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    soon(looking).await;
}

/// Waits for the end of a program that must not hang.
pub(crate) async fn end(child: &mut Child) -> ExitStatus {
    soon(child.wait()).await.unwrap()
}

/// The exit status of a run.
pub(crate) async fn code(mut command: Command) -> Option<i32> {
    end(&mut command.spawn().unwrap()).await.code()
}

/// The exit status of a run and what it wrote to standard error.
pub(crate) async fn explained(mut command: Command) -> (Option<i32>, String) {
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut text = String::new();
    soon(child.stderr.take().unwrap().read_to_string(&mut text)).await.unwrap();
    (end(&mut child).await.code(), text)
}

/// The exit status of a run and the JSON that it wrote to standard output.
pub(crate) async fn reported(mut command: Command) -> (Option<i32>, serde_json::Value) {
    let output = soon(command.stdout(Stdio::piped()).output()).await.unwrap();
    (output.status.code(), serde_json::from_slice(&output.stdout).expect("it is JSON"))
}

#[track_caller]
pub(crate) fn three_parts(text: &str) {
    for part in ["error: ", "\n  observed: ", "\n  hint: "] {
        assert!(text.contains(part), "no {part:?} in:\n{text}");
    }
}
