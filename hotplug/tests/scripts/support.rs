//! Little scripts in a directory of their own, and a look at the processes they make.

use std::fs;
use std::future::Future;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use xen_hotplug::{Action, Kind, Limits, Report, Request, Runner, ScriptRunner};

/// A directory with scripts, which find it in `$DIR`.
pub(crate) struct Scripts(TempDir);

impl Scripts {
    pub(crate) fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// An executable file. Another process writes it: if this one did, a child that another test forks
    /// meanwhile would hold it open for writing, and executing it would fail with `ETXTBSY`.
    pub(crate) fn file(&self, name: &str, mode: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        let mut install =
            Command::new("install").args(["-m", mode, "/dev/stdin"]).arg(&path).stdin(Stdio::piped()).spawn();
        let install = install.as_mut().unwrap();
        install.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(install.wait().unwrap().success());
        path
    }

    /// A run of a shell script with this body.
    pub(crate) fn run(&self, body: &str) -> Request {
        self.named_run("script", body)
    }

    pub(crate) fn named_run(&self, name: &str, body: &str) -> Request {
        request(self.file(name, "755", &format!("#!/bin/sh\nexport DIR=${{0%/*}}\n{body}\n")))
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// The number that a script has written into a file, as soon as it has.
    pub(crate) async fn number(&self, name: &str) -> i32 {
        let number = || Some(fs::read_to_string(self.path(name)).ok()?.strip_suffix('\n')?.parse().unwrap());
        eventually(name, || number().is_some()).await;
        number().unwrap()
    }
}

/// A run of a script for a device that no other run is for.
pub(crate) fn request(script: impl Into<PathBuf>) -> Request {
    static DEVICES: AtomicU32 = AtomicU32::new(0);
    let devid = DEVICES.fetch_add(1, Ordering::Relaxed);
    Request::new(Kind::Vbd, Action::Add, std::process::id(), devid, script)
}

/// The default runner, but for the place of its locks.
pub(crate) fn runner() -> ScriptRunner {
    ScriptRunner::new().lock_dir(concat!(env!("CARGO_TARGET_TMPDIR"), "/locks"))
}

/// Runs a script with the default runner and limits.
pub(crate) async fn run(request: &Request) -> Report {
    run_with(&runner(), request).await
}

pub(crate) async fn run_with(runner: &dyn Runner, request: &Request) -> Report {
    runner.run(request, &Limits::default(), &CancellationToken::new()).await
}

/// Well above what anything here takes, and well below the 60 s that scripts sleep.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// What a future gives, if it does so soon.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.expect("it takes as long as the script would sleep")
}

pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < SOON, "not so after {SOON:?}: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// The fields of `/proc/PID/stat` behind the name: state, parent, group, session.
pub(crate) fn stat(pid: &str) -> Option<(String, i32, i32, i32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.to_owned();
    let mut number = || fields.next()?.parse().ok();
    Some((state, number()?, number()?, number()?))
}

/// The processes of a group that are not dead.
pub(crate) fn living_members(group: i32) -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let processes = processes.filter_map(|process| process.file_name().into_string().ok());
    let lives = |process: &String| {
        stat(process)
            .is_some_and(|(state, _, its_group, _)| its_group == group && state != "Z" && state != "X")
    };
    processes.filter(lives).collect()
}

pub(crate) fn lives(pid: i32) -> bool {
    stat(&pid.to_string()).is_some_and(|(state, ..)| state != "Z" && state != "X")
}

/// Whether a process is there at all, be it a zombie.
pub(crate) fn exists(pid: i32) -> bool {
    stat(&pid.to_string()).is_some()
}

/// A process that a script has left behind; killed at the end of the test.
pub(crate) struct Daemon(pub(crate) i32);

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.0) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}
