//! Our own program as cargo builds it, and its store as a process of its own.
//!
//! What is compared with Debian's daemons has to be run as they are: another process behind a
//! socket, which knows nothing of who looks at it.

use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Result;
use tempfile::TempDir;

use crate::cargo;
use crate::failure::Failure;

/// Builds `xendev`, unless that is done already, and tells where it is.
pub fn build(release: bool) -> Result<PathBuf> {
    cargo::build("xendev", "xendev", release)
}

/// A running `xendev store`, or a program that is started like it. Dropping it ends the store and
/// removes its socket.
#[derive(Debug)]
pub struct StoreProcess {
    process: Child,
    folder: TempDir,
}

impl StoreProcess {
    /// Starts a store and waits until it takes connections.
    pub fn start(program: &Path) -> Result<Self> {
        Self::start_as(tempdir()?, Command::new(program).arg("store"))
    }

    /// The same with domains, under the stand-in hypervisor of [`Self::state_dir`].
    pub fn start_with_domains(program: &Path) -> Result<Self> {
        let folder = tempdir()?;
        let state = folder.path().join("xen");
        std::fs::create_dir(&state)?;
        Self::start_as(folder, Command::new(program).args(["store", "--test-domains"]).arg(state))
    }

    /// Starts another program that takes `--socket` and prints a line when it is ready.
    pub(crate) fn start_other(command: &mut Command) -> Result<Self> {
        Self::start_as(tempdir()?, command)
    }

    fn start_as(folder: TempDir, command: &mut Command) -> Result<Self> {
        command.arg("--socket").arg(folder.path().join("socket"));
        let shown = format!("{command:?}");
        let failure = |observed: String| Failure {
            tried: "starting a store".into(),
            observed,
            hint: format!("run it by hand: {shown}"),
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
