//! Our own program as cargo builds it, and its store as a process of its own.
//!
//! What is compared with Debian's daemons has to be run as they are: another process behind a
//! socket, which knows nothing of who looks at it.

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Result;
use serde_json::Value;
use tempfile::TempDir;

use crate::cargo::cargo;
use crate::failure::{Failure, output_of};

/// Builds `xendev`, unless that is done already, and tells where it is.
pub fn build(release: bool) -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "--package", "xendev", "--message-format", "json-render-diagnostics"]);
    if release {
        command.arg("--release");
    }
    let messages = output_of(&mut command)?;
    let is_it = |message: &Value| message["target"]["name"] == "xendev" && message["executable"].is_string();
    let mut messages =
        messages.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
    let built = messages.find(is_it);
    let program = built.as_ref().and_then(|message: &Value| message["executable"].as_str());
    let missing = || Failure {
        tried: format!("building xendev with {command:?}"),
        observed: "cargo names no program that it built".into(),
        hint: "the lab reads cargo's JSON messages; has their form changed?".into(),
    };
    Ok(program.ok_or_else(missing)?.into())
}

/// A running `xendev store`. Dropping it ends the store and removes its socket.
#[derive(Debug)]
pub struct StoreProcess {
    process: Child,
    folder: TempDir,
}

impl StoreProcess {
    /// Starts a store and waits until it takes connections.
    pub fn start(program: &Path) -> Result<Self> {
        Self::start_in(tempdir()?, program, &[])
    }

    /// The same with domains, under the stand-in hypervisor of [`Self::state_dir`].
    pub fn start_with_domains(program: &Path) -> Result<Self> {
        let folder = tempdir()?;
        let state = folder.path().join("xen");
        std::fs::create_dir(&state)?;
        Self::start_in(folder, program, &["--test-domains".as_ref(), state.as_os_str()])
    }

    fn start_in(folder: TempDir, program: &Path, options: &[&OsStr]) -> Result<Self> {
        let socket = folder.path().join("socket");
        let mut command = Command::new(program);
        command.args(["store", "--socket"]).arg(&socket).args(options);
        let failure = |observed: String| Failure {
            tried: format!("starting {}", program.display()),
            observed,
            hint: "run it by hand: xendev store --socket PATH".into(),
        };
        let process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut started = Self { process: process.map_err(|error| failure(error.to_string()))?, folder };
        let mut line = String::new();
        if let Some(stdout) = started.process.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        if line.is_empty() {
            return Err(failure("it ended without having been ready".into()).into());
        }
        Ok(started)
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// The folder of its hypervisor, if it has one.
    pub fn state_dir(&self) -> PathBuf {
        self.folder.path().join("xen")
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

fn tempdir() -> io::Result<TempDir> {
    tempfile::Builder::new().prefix("xendev-store-").tempdir()
}

impl Drop for StoreProcess {
    fn drop(&mut self) {
        // Fails if it has ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
