//! The process of a QEMU: started so that it outlives the daemon, known again by the next one, and told to end.
//!
//! A pid alone may be another process's by now. So a process is held by a pidfd, must say on its own command line that it
//! serves the guest, and must have started when the daemon has noted that it did. The command line is libxl's.

use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path as FilePath, PathBuf};
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustix::process::Signal;
use tokio::sync::watch;
use xs_client::DomId;

use crate::operation::model::Process;
use crate::operation::{owner, proc};

/// What names a process beyond its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProcessId {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since the boot; 0 if that cannot be read.
    pub start: u64,
}

impl ProcessId {
    /// The process of this number that has started then.
    pub fn new(pid: u32, start: u64) -> Self {
        Self { pid, start }
    }
}

/// The future of how a process ends, in words.
pub type Ended<'a> = Pin<Box<dyn Future<Output = String> + Send + 'a>>;

/// A QEMU that runs, or has ended.
pub trait QemuProcess: fmt::Debug + Send + Sync {
    /// By what it is known again.
    fn id(&self) -> ProcessId;

    /// Resolves when it has ended, with how as far as that is known. It may be asked for again and again.
    fn ended(&self) -> Ended<'_>;

    /// Tells it to end, or kills it. One that has ended already is no error.
    ///
    /// # Errors
    ///
    /// If it cannot be told.
    fn end(&self, at_once: bool) -> io::Result<()>;
}

/// Starts QEMU for guests, and finds those that run.
pub trait Qemus: fmt::Debug + Send + Sync {
    /// Starts one for a guest, which outlives this process.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    fn start(&self, fe: DomId) -> io::Result<Arc<dyn QemuProcess>>;

    /// The one of a guest with this number, if it still runs and is that; with the start if that is known. `None`: any
    /// that was started for the guest as [`start`](Self::start) does.
    fn find(&self, fe: DomId, process: Option<(u32, Option<u64>)>) -> Option<Arc<dyn QemuProcess>>;

    /// Where that of a guest writes its log.
    fn log(&self, fe: DomId) -> PathBuf;
}

/// Where QEMU is in the systems that have Xen, the one that was built for Xen first.
const PROGRAMS: [&str; 7] = [
    "/usr/libexec/xen-qemu-system-i386",
    "/usr/libexec/xen/bin/qemu-system-i386",
    "/usr/lib/xen/bin/qemu-system-i386",
    "/usr/local/lib/xen/bin/qemu-system-i386",
    "/usr/local/libexec/xen/bin/qemu-system-i386",
    "/usr/bin/qemu-system-i386",
    "/usr/bin/qemu-system-x86_64",
];

/// QEMU as a program of this system.
#[derive(Clone, Debug)]
pub struct QemuProgram {
    program: Option<PathBuf>,
    log_dir: PathBuf,
    env: Vec<(String, PathBuf)>,
}

impl Default for QemuProgram {
    /// The one that the system has for Xen; its logs are in `/var/log/xen`.
    fn default() -> Self {
        Self { program: None, log_dir: "/var/log/xen".into(), env: Vec::new() }
    }
}

impl QemuProgram {
    /// The same with this program.
    #[must_use]
    pub fn program(self, program: impl Into<PathBuf>) -> Self {
        Self { program: Some(program.into()), ..self }
    }

    /// The same with its logs in this directory.
    #[must_use]
    pub fn log_dir(self, log_dir: impl Into<PathBuf>) -> Self {
        Self { log_dir: log_dir.into(), ..self }
    }

    /// The same with a variable in its environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<PathBuf>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    fn path(&self) -> io::Result<PathBuf> {
        let known = || PROGRAMS.iter().map(PathBuf::from).find(|program| program.exists());
        self.program.clone().or_else(known).ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, "no QEMU is where the packages of Xen and QEMU put it")
        })
    }

    /// The words by which libxl starts it, too.
    fn words(fe: DomId) -> Vec<String> {
        let words = format!(
            "-xen-domid {fe} -xen-attach -name domain-{fe} -nographic -M xenpv -monitor /dev/null -serial /dev/null \
             -parallel /dev/null"
        );
        words.split(' ').map(str::to_owned).collect()
    }
}

/// A process of this system.
#[derive(Debug)]
struct Running {
    process: Process,
    id: ProcessId,
    /// How it has ended, if it is this process's child.
    status: Option<watch::Receiver<Option<String>>>,
}

impl Running {
    fn of(pid: u32, fe: DomId) -> Option<Self> {
        let process = Process::of_model(pid, fe)?;
        let id = ProcessId { pid, start: owner::start_time(pid)? };
        Some(Self { process, id, status: None })
    }
}

impl QemuProcess for Running {
    fn id(&self) -> ProcessId {
        self.id
    }

    fn ended(&self) -> Ended<'_> {
        Box::pin(async move {
            if let Some(status) = &self.status {
                let mut status = status.clone();
                if let Ok(told) = status.wait_for(Option::is_some).await {
                    return told.clone().unwrap_or_default();
                }
            }
            match self.process.ended().await {
                Ok(()) => "how is not known, since an earlier daemon has started it".to_owned(),
                // A pidfd that cannot be waited for tells nothing.
                Err(_) => std::future::pending().await,
            }
        })
    }

    fn end(&self, at_once: bool) -> io::Result<()> {
        self.process.signal(if at_once { Signal::KILL } else { Signal::TERM })
    }
}

/// The words of a process's command line.
fn words(pid: u32) -> Vec<Vec<u8>> {
    let command = proc::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    command.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect()
}

/// Whether a process was started for a guest by the words of [`QemuProgram::words`], `most` of them at least.
fn has_words(pid: u32, fe: DomId, most: usize) -> bool {
    let expected = QemuProgram::words(fe);
    let expected: Vec<&[u8]> = expected.iter().take(most).map(String::as_bytes).collect();
    words(pid)
        .windows(expected.len())
        .any(|words| words.iter().map(Vec::as_slice).eq(expected.iter().copied()))
}

impl Qemus for QemuProgram {
    fn start(&self, fe: DomId) -> io::Result<Arc<dyn QemuProcess>> {
        let program = self.path()?;
        let in_words = |what: &FilePath, error: io::Error| {
            io::Error::new(error.kind(), format!("{}: {error}", what.display()))
        };
        let log = self.log(fe);
        _ = DirBuilder::new().recursive(true).mode(0o755).create(&self.log_dir);
        let output =
            File::options().append(true).create(true).open(&log).map_err(|error| in_words(&log, error))?;
        let mut command = Command::new(&program);
        command.args(Self::words(fe)).envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        // No signal that the daemon's terminal sends to its group.
        command.process_group(0).current_dir("/");
        let mut child = command.spawn().map_err(|error| in_words(&program, error))?;
        let pid = child.id();
        let id = ProcessId { pid, start: owner::start_time(pid).unwrap_or(0) };
        // It is no zombie's number before the child has been waited for.
        let process = Process::open(pid)?;
        let (told, status) = watch::channel(None);
        // Nobody has to wait for it, so it is no zombie either when it ends.
        std::thread::spawn(move || {
            let ended = child.wait();
            _ = told.send(Some(ended.map_or_else(|error| error.to_string(), |status| status.to_string())));
        });
        Ok(Arc::new(Running { process, id, status: Some(status) }))
    }

    fn find(&self, fe: DomId, process: Option<(u32, Option<u64>)>) -> Option<Arc<dyn QemuProcess>> {
        let running = match process {
            // What all that serve for a guest have in common, libxl's too.
            Some((pid, start)) => Running::of(pid, fe).filter(|running| {
                start.is_none_or(|start| start == running.id.start) && has_words(pid, fe, 3)
            }),
            None => {
                let processes = fs::read_dir("/proc").ok()?.flatten();
                let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
                pids.filter(|pid| has_words(*pid, fe, usize::MAX)).find_map(|pid| Running::of(pid, fe))
            }
        };
        running.map(|running| Arc::new(running) as Arc<dyn QemuProcess>)
    }

    fn log(&self, fe: DomId) -> PathBuf {
        self.log_dir.join(format!("qdisk-{fe}.log"))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    const FE: DomId = DomId(7);

    /// A stand-in: its own command line has QEMU's words.
    fn program(folder: &FilePath, body: &str) -> QemuProgram {
        use std::os::unix::fs::PermissionsExt;
        let path = folder.join("qemu");
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        QemuProgram::default().program(path).log_dir(folder)
    }

    /// Once it speaks it has its own command line.
    fn spoken(program: &QemuProgram) {
        let begun = Instant::now();
        while fs::read_to_string(program.log(FE)).unwrap_or_default().is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[tokio::test]
    async fn a_process_is_started_found_again_and_told_to_end() {
        let folder = tempfile::tempdir().unwrap();
        let program = program(folder.path(), "trap 'exit 3' TERM; echo speaks; while :; do sleep 0.05; done");
        let started = program.start(FE).unwrap();
        spoken(&program);
        let ProcessId { pid, start } = started.id();
        for (recorded, is_it) in [
            (Some((pid, Some(start))), true),
            (Some((pid, None)), true),
            (Some((pid, Some(start + 1))), false),
            (Some((std::process::id(), None)), false),
            (None, true),
        ] {
            assert_eq!(program.find(FE, recorded).is_some(), is_it, "{recorded:?}");
        }
        assert!(program.find(DomId(70), Some((pid, Some(start)))).is_none(), "of another guest");
        let found = program.find(FE, None).unwrap();
        assert_eq!(found.id(), started.id());
        found.end(false).unwrap();
        assert_eq!(started.ended().await, "exit status: 3");
        found.ended().await;
        started.end(true).unwrap();
        assert!(program.find(FE, Some((pid, None))).is_none());
    }

    #[tokio::test]
    async fn one_that_does_not_listen_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let program = program(folder.path(), "trap '' TERM; echo speaks; while :; do sleep 0.05; done");
        let started = program.start(FE).unwrap();
        spoken(&program);
        started.end(false).unwrap();
        started.end(true).unwrap();
        assert_eq!(started.ended().await, "signal: 9 (SIGKILL)");
    }

    #[test]
    fn what_keeps_it_from_starting_is_told_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let error =
            QemuProgram::default().program("/nonexistent/qemu").log_dir(folder.path()).start(FE).unwrap_err();
        assert!(error.to_string().starts_with("/nonexistent/qemu: No such file"), "{error}");
        let nowhere = program(folder.path(), "").log_dir("/dev/null/log");
        assert!(nowhere.start(FE).unwrap_err().to_string().starts_with("/dev/null/log/qdisk-7.log: "));
    }
}
