//! xen-9pfsd, the daemon that serves 9pfs of the type `xen_9pfsd`: it is started by the first device that needs it.
//!
//! It says in its node `libxl/xen-9pfs/state` that it runs, and libxl keeps its pid beside that. libxl looks at the first
//! node alone, so two first devices start two daemons, and one that has died is taken to run for ever (B-50). Here
//! whoever starts it claims that in a transaction, by an operation record in `op` beside the two, which counts as long
//! as its owner lives; and a daemon that is said to run must have a process.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path as FilePath, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use xs_client::Path;

use super::Job;
use super::record::Record;
use super::store::text;
use super::wait::{self, Cancel};
use crate::Cause;

/// The name of its program.
const NAME: &str = "xen-9pfsd";

/// How long it may take to start, as for libxl.
const START: Duration = Duration::from_secs(60);

/// How often to look whether it, or whoever starts it, lives.
const LOOK: Duration = Duration::from_millis(100);

/// Starts xen-9pfsd, and sees whether it lives.
pub trait Daemons: fmt::Debug + Send + Sync {
    /// Starts it, so that it outlives this process, and returns its pid.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    fn start(&self) -> io::Result<u32>;

    /// Whether it lives under this pid; also if that cannot be seen.
    fn lives(&self, pid: u32) -> bool;
}

/// The daemon as a process of this host.
#[derive(Clone, Debug)]
pub(crate) struct Processes;

impl Processes {
    /// Where Xen's own programs are: it depends on who has built Xen.
    fn program() -> Option<PathBuf> {
        let versions = fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path());
        let is_xen = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("xen-4."))
        };
        let mut versions: Vec<PathBuf> = versions.filter(is_xen).collect();
        versions.sort();
        let places = ["/usr/libexec/xen", "/usr/lib/xen", "/usr/local/lib/xen"].map(PathBuf::from);
        let programs =
            places.into_iter().chain(versions.into_iter().rev()).map(|place| place.join("bin").join(NAME));
        programs.into_iter().find(|program| program.exists())
    }
}

impl Daemons for Processes {
    fn start(&self) -> io::Result<u32> {
        let program = Self::program().ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, "it is in none of the directories of Xen's programs")
        })?;
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let mut child = command.current_dir("/").spawn()?;
        let pid = child.id();
        // Or it would stay as a zombie when it ends before this process does.
        std::thread::spawn(move || child.wait());
        Ok(pid)
    }

    fn lives(&self, pid: u32) -> bool {
        match fs::read_to_string(FilePath::new("/proc").join(pid.to_string()).join("comm")) {
            Ok(name) => name.trim_end() == NAME,
            Err(_) => !FilePath::new("/proc/self/comm").exists(),
        }
    }
}

/// What is to be done so that it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Need {
    /// Nothing.
    Nothing,
    /// Somebody starts it, or it has not said yet that it runs.
    Patience,
    /// It must be started.
    Start,
}

/// What the store says of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    state: Option<String>,
    pid: Option<u32>,
    /// Whether somebody who lives starts it.
    claimed: bool,
}

impl Seen {
    fn need(&self, lives: impl Fn(u32) -> bool) -> Need {
        let lives = self.pid.map(lives);
        match (self.state.as_deref(), lives) {
            (Some("running"), None | Some(true)) => Need::Nothing,
            _ if self.claimed || lives == Some(true) => Need::Patience,
            _ => Need::Start,
        }
    }
}

fn failed(problem: impl fmt::Display) -> Cause {
    Cause::Daemon { name: NAME, problem: problem.to_string() }
}

impl Job<'_> {
    /// Sees that xen-9pfsd runs; starts it if it does not.
    pub(super) async fn run_9pfsd(&self, cancel: Cancel<'_>) -> Result<(), Cause> {
        let (client, daemons) = (&self.toolstack.client, &*self.toolstack.daemons);
        let home = Path::new(format!("/local/domain/{}/libxl/xen-9pfs", self.toolstack.own))?;
        let mut watch = client.watch(&home).await?;
        let begun = Instant::now();
        let mut started = None;
        loop {
            match self.claim(&home).await? {
                Need::Nothing if started.is_some() => {
                    return Ok(client.rm(&home.join("op")?).await?);
                }
                Need::Nothing => return Ok(()),
                Need::Start if started.is_some() => {
                    _ = client.rm(&home).await;
                    return Err(failed("ended before it said that it runs"));
                }
                Need::Start => match daemons.start() {
                    Ok(pid) => {
                        started = Some(pid);
                        client.write(&home.join("pid")?, pid.to_string()).await?;
                    }
                    Err(error) => {
                        _ = client.rm(&home).await;
                        return Err(failed(format!("cannot be started: {error}")));
                    }
                },
                Need::Patience if begun.elapsed() >= START => {
                    if started.is_some() {
                        _ = client.rm(&home.join("op")?).await;
                    }
                    return Err(failed(format!("did not say within {START:?} that it runs")));
                }
                Need::Patience => {
                    let changed = async {
                        tokio::select! {
                            changed = watch.changed() => drop(changed?),
                            () = sleep(LOOK) => {}
                        }
                        Ok(())
                    };
                    wait::unless_cancelled(changed, cancel).await?;
                }
            }
        }
    }

    /// What is to be done; if that is to start it, it is this operation's to do so from now on.
    async fn claim(&self, home: &Path) -> Result<Need, Cause> {
        let client = &self.toolstack.client;
        let nodes =
            ["state", "pid", "op"].map(|name| home.join(name)).into_iter().collect::<Result<Vec<_>, _>>()?;
        // Whether owners live is asked outside of the transaction, which looks again whether all is as it was.
        let before: Vec<Option<String>> = client.read_many(&nodes).await?.into_iter().map(text).collect();
        let ours = Record::is_of(before[2].as_deref(), self.record.token);
        let claimed = match &before[2] {
            Some(op) if !ours => self.occupant(op.clone()).await?.alive,
            _ => false,
        };
        let pid = before[1].as_deref().and_then(|pid| pid.parse().ok());
        let need =
            Seen { state: before[0].clone(), pid, claimed }.need(|pid| self.toolstack.daemons.lives(pid));
        if need != Need::Start || ours {
            return Ok(need);
        }
        let record = self.record.to_string();
        let (nodes, before, record) = (&nodes, &before, &record);
        client
            .transaction(|tx| async move {
                let now: Vec<Option<String>> = tx.read_many(nodes).await?.into_iter().map(text).collect();
                if now != *before {
                    return Ok(Need::Patience);
                }
                // What a daemon that is dead has said.
                if now.iter().any(Option::is_some) {
                    tx.rm(home).await?;
                }
                tx.write(&nodes[2], record.clone()).await?;
                Ok(Need::Start)
            })
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_that_is_said_to_run_has_a_process() {
        let seen = |state: Option<&str>, pid, claimed| Seen { state: state.map(str::to_owned), pid, claimed };
        let need = |seen: Seen| seen.need(|pid| pid == 7);
        assert_eq!(need(seen(Some("running"), Some(7), false)), Need::Nothing);
        assert_eq!(need(seen(Some("running"), None, false)), Need::Nothing, "one that another has started");
        assert_eq!(need(seen(Some("running"), Some(8), false)), Need::Start);
        assert_eq!(need(seen(None, Some(7), false)), Need::Patience);
        assert_eq!(need(seen(None, Some(8), false)), Need::Start);
        assert_eq!(need(seen(None, None, true)), Need::Patience);
        assert_eq!(need(Seen::default()), Need::Start);
    }

    #[test]
    fn a_process_of_another_name_is_not_it() {
        assert!(!Processes.lives(std::process::id()));
    }
}
