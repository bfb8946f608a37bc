//! A store in which this process is domain 0 and a toolstack, and the daemon that serves it.

use std::path::{Path as FsPath, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use lab::daemon::DaemonKind;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;
use tokio::time::{sleep, timeout};
use xs_client::Path;

use crate::host::{Host, Ran};
use crate::schema;

pub(crate) const BACKEND: &str = "/local/domain/0/backend/vbd/1/51712";
pub(crate) const FRONTEND: &str = "/local/domain/1/device/vbd/51712";

/// Longer than anything here takes.
pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) struct World {
    pub(crate) host: Host,
    pub(crate) run: TempDir,
}

/// A daemon in the background, which is killed if the test fails.
pub(crate) struct Background(pub(crate) u32);

impl Background {
    pub(crate) fn end(&self, signal: Signal) {
        let pid = Pid::from_raw(self.0.try_into().unwrap()).unwrap();
        _ = kill_process(pid, signal);
        let begun = Instant::now();
        while test_kill_process(pid).is_ok() {
            assert!(begun.elapsed() < LONG, "process {} does not end", self.0);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        _ = kill_process(Pid::from_raw(self.0.try_into().unwrap()).unwrap(), Signal::KILL);
    }
}

impl World {
    pub(crate) async fn start() -> Self {
        Self { host: Host::start(DaemonKind::Xenstored).await, run: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.run.path().join(name)
    }

    pub(crate) fn arguments(&self) -> Vec<String> {
        let run = self.run.path().display();
        ["devd", "--serve-domain0", "--run-dir"]
            .iter()
            .map(ToString::to_string)
            .chain([run.to_string()])
            .collect()
    }

    pub(crate) async fn devd(&self, more: &[&str]) -> Ran {
        let arguments = self.arguments();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
        self.host.xendev(&arguments).await
    }

    /// One in the foreground, which is ready.
    pub(crate) async fn foreground(&self, more: &[&str]) -> Child {
        let arguments = self.arguments();
        let arguments: Vec<&str> =
            arguments.iter().map(String::as_str).chain(["-F"]).chain(more.iter().copied()).collect();
        let mut child = self.host.command(&arguments).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let is_ready = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if line.starts_with("ready, ") {
                    return;
                }
            }
            panic!("it ended");
        };
        timeout(LONG, is_ready).await.unwrap();
        // Whoever writes there must find a reader.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        child
    }

    /// What a toolstack of another domain writes.
    pub(crate) async fn attach(&self, script: &str, image: &FsPath) {
        let client = &self.host.client;
        let backend = [
            ("frontend", FRONTEND),
            ("params", &*image.display().to_string()),
            ("script", script),
            ("type", "phy"),
            ("mode", "w"),
            ("frontend-id", "1"),
            ("online", "1"),
            ("state", "1"),
        ];
        let frontend = [("backend", BACKEND), ("backend-id", "0"), ("state", "1")];
        for (directory, keys) in [(FRONTEND, &frontend[..]), (BACKEND, &backend[..])] {
            for (key, value) in keys {
                let path = Path::new(format!("{directory}/{key}")).unwrap();
                client.write(&path, (*value).to_owned()).await.unwrap();
            }
        }
    }

    pub(crate) async fn close(&self) {
        for (key, value) in [("online", "0"), ("state", "5")] {
            self.host.client.write(&Path::new(format!("{BACKEND}/{key}")).unwrap(), value).await.unwrap();
        }
    }

    pub(crate) async fn read(&self, path: &str) -> Option<String> {
        let value = self.host.client.read_opt(&Path::new(path).unwrap()).await.unwrap();
        value.map(|value| String::from_utf8_lossy(&value).into_owned())
    }

    pub(crate) async fn reads(&self, path: &str, wanted: Option<&str>) {
        let begun = Instant::now();
        while self.read(path).await.as_deref() != wanted {
            assert!(begun.elapsed() < LONG, "{path} stays at {:?}", self.read(path).await);
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// The same, and what a toolstack removes when the daemon has done its part.
    pub(crate) async fn detach(&self) {
        self.close().await;
        self.reads(BACKEND, None).await;
        for directory in ["/local/domain/1/device/vbd", "/local/domain/0/backend/vbd"] {
            _ = self.host.client.rm(&Path::new(directory).unwrap()).await;
        }
    }

    pub(crate) async fn status(&self) -> Value {
        let ran = self.devd(&["--status", "--json"]).await;
        let status = schema::checked(&ran.stdout, "devd --status");
        let runs = status["pid"].is_u64();
        assert_eq!((&status["ok"], ran.code), (&runs.into(), Some(i32::from(!runs))), "{status}");
        status
    }
}
