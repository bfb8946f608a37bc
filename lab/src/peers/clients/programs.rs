//! The client programs: getting them built, and running one on a server.

use std::env;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Map, Value};

use super::Client;
use crate::cargo::cargo;
use crate::cc;
use crate::failure::{Failure, output_of};

/// How long a program may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Debian's packages that the programs need.
pub(super) const PACKAGES: [&str; 5] = ["xen-utils-4.17", "libxen-dev", "python3-pyxs", "gcc", "libc6-dev"];

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/peers");
const LIBXENSTORE: &str = include_str!("../../../peers/libxenstore.c");

/// Where the programs are.
#[derive(Debug)]
pub(in super::super) struct Programs {
    lab: PathBuf,
    libxenstore: PathBuf,
    /// The folder of those under the GPL, if they are wanted.
    gpl: Option<PathBuf>,
}

impl Programs {
    /// Builds those that are not under the GPL. `lab` is our own program.
    pub(super) fn build(lab: PathBuf) -> Result<Self> {
        let libxenstore = cc::compiled(
            "libxenstore-client",
            LIBXENSTORE,
            &["-O2", "-Wall", "-Wextra", "-lxenstore"],
            "gcc libc6-dev libxen-dev",
        )?;
        Ok(Self { lab, libxenstore, gpl: None })
    }

    /// Builds those under the GPL as well, in a workspace and a target folder of their own.
    pub(super) fn build_gpl(&mut self) -> Result<()> {
        let target = self.lab.with_file_name("gpl-clients");
        let mut command = cargo();
        command.args(["build", "--release", "--locked", "--manifest-path"]);
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../benches/gpl/Cargo.toml"));
        eprintln!("lab: building the clients under the GPL");
        output_of(command.arg("--target-dir").arg(&target)).map_err(|error| Failure {
            tried: "building the clients under the GPL, xenstore-rs and krata-xenstore".into(),
            observed: format!("{error:#}"),
            hint: "cargo has to reach its registry once; --without-gpl leaves them out".into(),
        })?;
        self.gpl = Some(target.join("release"));
        Ok(())
    }

    pub(super) fn has(&self, client: Client) -> bool {
        !client.is_gpl() || self.gpl.is_some()
    }

    /// Those of the columns that there are programs for.
    pub(in super::super) fn present(&self, columns: &[Client]) -> Vec<Client> {
        columns.iter().copied().filter(|client| self.has(*client)).collect()
    }

    fn command(&self, client: Client) -> Result<Command> {
        let ours = |name: &str| {
            let mut command = Command::new(&self.lab);
            command.args(["peer", name]);
            command
        };
        Ok(match client {
            Client::Raw => ours("raw"),
            Client::XsAsync => ours("xs-client"),
            Client::XsBlocking => ours("xs-blocking"),
            Client::XsSleeping => ours("xs-sleeping"),
            Client::Libxenstore => Command::new(&self.libxenstore),
            Client::Pyxs => {
                // Not another Python, which does not see Debian's packages.
                let mut command = Command::new("/usr/bin/python3");
                command.arg(Path::new(FOLDER).join("pyxs.py"));
                command
            }
            Client::XenstoreRs | Client::Krata => {
                let folder = self.gpl.as_ref().context("this client has not been built")?;
                Command::new(folder.join(format!("{client}-client")))
            }
        })
    }

    /// The null server.
    pub(super) fn null_server(&self) -> Command {
        let mut command = Command::new(&self.lab);
        command.args(["peer", "null-server"]);
        command
    }

    /// Has a client do a workload on the store at a socket. Once it says that it is ready,
    /// `meanwhile` is done.
    pub(super) fn run(
        &self,
        client: Client,
        socket: &Path,
        workload: &str,
        settings: &[(&str, String)],
        meanwhile: impl FnOnce() -> Result<()>,
    ) -> Result<Map<String, Value>> {
        let mut command = self.command(client)?;
        // Some clients take no other name of a socket.
        command.env("XENSTORED_PATH", socket);
        command.arg(workload).arg(format!("socket={}", socket.display()));
        command.args(settings.iter().map(|(key, value)| format!("{key}={value}")));
        let mut process = Process::start(&mut command)?;
        let figures = process.line().and_then(|line| {
            if line != "ready" {
                return Ok(line);
            }
            meanwhile()?;
            process.line()
        });
        let figures = figures.and_then(|line| Ok(serde_json::from_str(&line)?));
        figures.map_err(|error| {
            let failure = Failure {
                tried: format!("running {client} with {command:?}"),
                observed: format!("{error:#}\n{}", process.complaints()),
                hint: "start a server and run it by hand; lab/peers/README.md has the settings".into(),
            };
            failure.into()
        })
    }
}

/// A program that runs. Dropping it ends it.
struct Process {
    child: Child,
    lines: mpsc::Receiver<String>,
    until: Instant,
}

impl Process {
    fn start(command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
        let stdout = child.stdout.take().context("no pipe")?;
        let (sender, lines) = mpsc::channel();
        // Ends with the program's output, or when nobody listens any more.
        thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Ok(Self { child, lines, until: Instant::now() + PATIENCE })
    }

    /// The next line that it prints.
    fn line(&self) -> Result<String> {
        let line = self.lines.recv_timeout(self.until.saturating_duration_since(Instant::now()));
        line.map_err(|error| match error {
            mpsc::RecvTimeoutError::Timeout => {
                anyhow::anyhow!("it did not end within {} s", PATIENCE.as_secs())
            }
            mpsc::RecvTimeoutError::Disconnected => anyhow::anyhow!("it ended without its figures"),
        })
    }

    /// Ends it, and returns what it has printed as errors.
    fn complaints(&mut self) -> String {
        let _ = self.child.kill();
        let mut text = String::new();
        if let Some(stderr) = &mut self.child.stderr {
            let _ = stderr.read_to_string(&mut text);
        }
        text
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails if it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
