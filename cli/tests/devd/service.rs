//! What a service manager is told, and asks for.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path as FsPath;
use std::process::Stdio;
use std::time::Instant;

use rustix::fs::fstat;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::world::{BACKEND, LONG, World};

/// Systemd's side of a service.
struct Manager {
    socket: UnixDatagram,
    told: String,
}

impl Manager {
    fn new(path: &FsPath) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { socket, told: String::new() }
    }

    /// Waits until it is told this, from now on.
    async fn hears(&mut self, wanted: &str) {
        let begun = Instant::now();
        self.told.clear();
        while !self.told.contains(wanted) {
            assert!(begun.elapsed() < LONG, "no {wanted} in:\n{}", self.told);
            let mut buffer = [0; 4096];
            match self.socket.recv(&mut buffer) {
                Ok(length) => self.told += &(String::from_utf8_lossy(&buffer[..length]) + "\n"),
                Err(_) => sleep(std::time::Duration::from_millis(10)).await,
            }
        }
    }
}

fn signal(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|pid| Pid::from_raw(pid.try_into().unwrap())).unwrap();
    kill_process(pid, signal).unwrap();
}

async fn logs(log: &FsPath, wanted: &str) -> String {
    let begun = Instant::now();
    loop {
        let told = fs::read_to_string(log).unwrap_or_default();
        if told.contains(wanted) {
            return told;
        }
        assert!(begun.elapsed() < LONG, "no {wanted:?} in:\n{told}");
        sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// A service of systemd's with a watchdog: its standard error is what systemd calls the journal.
fn service(world: &World, journal: &FsPath, notify: &FsPath) -> Command {
    let file = File::options().append(true).create(true).open(journal).unwrap();
    let found = fstat(file.as_fd()).unwrap();
    let mut arguments = world.arguments();
    arguments.push("-F".to_owned());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut command = world.host.command(&arguments);
    command
        .env("JOURNAL_STREAM", format!("{}:{}", found.st_dev, found.st_ino))
        .env("NOTIFY_SOCKET", notify)
        .env("WATCHDOG_USEC", "200000")
        .stderr(file);
    command
}

/// A stop whose scripts take longer than the service manager waits: it is asked for more time, and the watchdog is fed until
/// the end. Lines of the journal have priorities.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_takes_as_long_as_its_scripts() {
    let world = World::start().await;
    let (notify, journal, go) = (world.file("notify"), world.file("journal"), world.file("go"));
    let mut manager = Manager::new(&notify);
    let mut daemon = service(&world, &journal, &notify).spawn().unwrap();
    manager.hears("READY=1").await;
    manager.hears("WATCHDOG=1").await;

    let wait = format!("while ! [ -e {} ]; do sleep 0.02; done; echo no luck >&2; exit 1", go.display());
    world.attach(&world.host.script("waits", &wait), &world.host.image()).await;
    logs(&journal, "waits add").await;
    signal(&daemon, Signal::TERM);
    manager.hears("STOPPING=1").await;
    for _ in 0..2 {
        manager.hears("EXTEND_TIMEOUT_USEC=").await;
        assert!(manager.told.contains("WATCHDOG=1"), "{}", manager.told);
    }
    fs::write(&go, "").unwrap();
    assert!(timeout(LONG, daemon.wait()).await.unwrap().unwrap().success());
    world.reads(&format!("{BACKEND}/hotplug-status"), Some("error")).await;
    let told = fs::read_to_string(&journal).unwrap();
    let failed = told.lines().find(|line| line.contains("failed: ")).unwrap();
    assert!(failed.starts_with("<3>backend/vbd/1/51712"), "{told}");
    assert!(told.starts_with("<6>serving"), "{told}");
}

/// HUP is what a log rotator sends.
#[tokio::test(flavor = "multi_thread")]
async fn hup_opens_the_log_again_and_ends_nothing() {
    let world = World::start().await;
    let (log, old) = (world.file("log"), world.file("log.1"));
    let mut arguments = world.arguments();
    arguments.extend(["-F", "--log", &log.display().to_string()].map(str::to_owned));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut daemon = world.host.command(&arguments).spawn().unwrap();
    logs(&log, "ready, ").await;
    fs::rename(&log, &old).unwrap();
    signal(&daemon, Signal::HUP);
    let begun = Instant::now();
    while !log.exists() {
        assert!(begun.elapsed() < LONG && daemon.try_wait().unwrap().is_none());
        sleep(std::time::Duration::from_millis(10)).await;
    }
    world.attach(&world.host.good_script(), &world.host.image()).await;
    logs(&log, "attached").await;
    assert!(!fs::read_to_string(&old).unwrap().contains("attached"));
    signal(&daemon, Signal::TERM);
    assert!(timeout(LONG, daemon.wait()).await.unwrap().unwrap().success());
}

/// A store that the environment names, and not the command line: the scripts' own programs are to find it too.
#[tokio::test(flavor = "multi_thread")]
async fn scripts_find_the_store_that_the_environment_names() {
    let world = World::start().await;
    let log = world.file("log");
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_xendev"))
        .args(world.arguments())
        .args(["-F", "--log", &log.display().to_string()])
        .env("XENSTORED_PATH", world.host.daemon.socket())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    logs(&log, "ready, ").await;
    world.attach(&world.host.good_script(), &world.host.image()).await;
    world.reads(&format!("{BACKEND}/hotplug-status"), Some("connected")).await;
    signal(&daemon, Signal::TERM);
    assert!(timeout(LONG, daemon.wait()).await.unwrap().unwrap().success());
}
