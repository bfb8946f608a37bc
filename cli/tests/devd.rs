//! `xendev devd` as a program, on Debian's daemon: in the background and in the foreground, killed, refused, and with real
//! loop devices. It serves domain 0 here, whose connection a socket is. Needs root, for loop devices.

#[allow(dead_code, reason = "this test attaches as another domain's toolstack does, and not by the command")]
mod host;
mod schema;

use std::fs;
use std::path::{Path as FsPath, PathBuf};
use std::process::{self, Stdio};
use std::time::{Duration, Instant};

use host::{Host, Ran};
use lab::daemon::DaemonKind;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};
use xs_client::Path;

const BACKEND: &str = "/local/domain/0/backend/vbd/1/51712";
const FRONTEND: &str = "/local/domain/1/device/vbd/51712";

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

struct World {
    host: Host,
    run: TempDir,
}

/// A daemon in the background, which is killed if the test fails.
struct Background(u32);

impl Background {
    fn end(&self, signal: Signal) {
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
    async fn start() -> Self {
        Self { host: Host::start(DaemonKind::Xenstored).await, run: tempfile::tempdir().unwrap() }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.run.path().join(name)
    }

    fn arguments(&self) -> Vec<String> {
        let run = self.run.path().display();
        ["devd", "--serve-domain0", "--run-dir"]
            .iter()
            .map(ToString::to_string)
            .chain([run.to_string()])
            .collect()
    }

    async fn devd(&self, more: &[&str]) -> Ran {
        let arguments = self.arguments();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
        self.host.xendev(&arguments).await
    }

    /// One in the foreground, which is ready.
    async fn foreground(&self, more: &[&str]) -> Child {
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
    async fn attach(&self, script: &str, image: &FsPath) {
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

    async fn close(&self) {
        for (key, value) in [("online", "0"), ("state", "5")] {
            self.host.client.write(&Path::new(format!("{BACKEND}/{key}")).unwrap(), value).await.unwrap();
        }
    }

    async fn read(&self, path: &str) -> Option<String> {
        let value = self.host.client.read_opt(&Path::new(path).unwrap()).await.unwrap();
        value.map(|value| String::from_utf8_lossy(&value).into_owned())
    }

    async fn reads(&self, path: &str, wanted: Option<&str>) {
        let begun = Instant::now();
        while self.read(path).await.as_deref() != wanted {
            assert!(begun.elapsed() < LONG, "{path} stays at {:?}", self.read(path).await);
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// The same, and what a toolstack removes when the daemon has done its part.
    async fn detach(&self) {
        self.close().await;
        self.reads(BACKEND, None).await;
        for directory in ["/local/domain/1/device/vbd", "/local/domain/0/backend/vbd"] {
            _ = self.host.client.rm(&Path::new(directory).unwrap()).await;
        }
    }

    async fn status(&self) -> Value {
        let ran = self.devd(&["--status", "--json"]).await;
        let status = schema::checked(&ran.stdout, "devd --status");
        let runs = status["pid"].is_u64();
        assert_eq!((&status["ok"], ran.code), (&runs.into(), Some(i32::from(!runs))), "{status}");
        status
    }
}

/// The loop devices that serve a file.
fn loops_of(image: &FsPath) -> Vec<String> {
    let image = image.canonicalize().unwrap();
    let devices = fs::read_dir("/sys/block").unwrap().flatten();
    let serves = |device: &fs::DirEntry| {
        let backing = fs::read_to_string(device.path().join("loop/backing_file"));
        backing.is_ok_and(|backing| FsPath::new(backing.trim_end()) == image)
    };
    devices.filter(serves).map(|device| device.file_name().to_string_lossy().into_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_serves_in_the_background_until_a_signal_ends_it_and_devices_stay() {
    let world = World::start().await;
    let before = world.host.dump().await;
    let (log, pidfile) = (world.file("log"), world.file("pid"));
    let files = ["--log", &*log.display().to_string(), "-p", &*pidfile.display().to_string()];
    // As the lock of an init script, which is not to be held as long as the daemon lives.
    let passed_on = fs::File::open("/dev/zero").unwrap();
    rustix::io::fcntl_setfd(&passed_on, rustix::io::FdFlags::empty()).unwrap();
    world.devd(&files).await.quietly();
    let first = Background(fs::read_to_string(&pidfile).unwrap().trim().parse().unwrap());
    assert_ne!(first.0, process::id());
    for held in fs::read_dir(format!("/proc/{}/fd", first.0)).unwrap() {
        assert_ne!(fs::read_link(held.unwrap().path()).unwrap(), FsPath::new("/dev/zero"));
    }

    let script = world.host.good_script();
    world.attach(&script, &world.host.image()).await;
    world.reads(&format!("{BACKEND}/state"), Some("4")).await;
    world.reads(&format!("{BACKEND}/hotplug-status"), Some("connected")).await;
    // Whatever else it is started with.
    let elsewhere = world.file("elsewhere").display().to_string();
    let another = world.host.xendev(&["devd", "--serve-domain0", "-F", "--run-dir", &elsewhere]).await;
    another.failed(1, &[&format!("process {} serves them", first.0)]);
    let begun = Instant::now();
    let status = loop {
        let status = world.status().await;
        if status["devices"][0]["stage"] == "attached" {
            break status;
        }
        assert!(begun.elapsed() < LONG, "{status}");
    };
    assert_eq!((&status["pid"], &status["devices"][0]["devid"]), (&first.0.into(), &51712.into()));

    first.end(Signal::TERM);
    assert!(!pidfile.exists());
    let told = fs::read_to_string(&log).unwrap();
    for line in ["ready, 0 devices", "backend/vbd/1/51712: attached", "ended by a signal"] {
        assert!(told.contains(line), "no {line:?} in:\n{told}");
    }
    assert_eq!(world.status().await["code"], "no_daemon");
    let status = world.devd(&["--status"]).await;
    status.failed(1, &["no daemon runs here; 1 devices are noted"]);
    assert!(status.stdout.starts_with("backend/vbd/1/51712 attached for "), "{}", status.stdout);
    assert_eq!(world.read(&format!("{BACKEND}/state")).await.as_deref(), Some("4"));

    world.devd(&files).await.quietly();
    let second = Background(fs::read_to_string(&pidfile).unwrap().trim().parse().unwrap());
    world.detach().await;
    second.end(Signal::TERM);
    let home = "/local/domain/0/libxl = ";
    let after =
        world.host.dump().await.lines().filter(|line| !line.starts_with(home)).collect::<Vec<_>>().join("\n");
    assert_eq!(after, before.trim_end());
}

/// `kill -9` in the midst of a script, and later: the next one goes on, and no loop device is left.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_killed_leaves_no_loop_device() {
    let world = World::start().await;
    let image = world.host.image();
    // Makes a loop device, and tells of it later than it is killed.
    let slow = format!(
        r#"case "$1" in
add) node=$(losetup -f --show "$(xenstore-read "$XENBUS_PATH/params")"); test -e {0} || sleep 30
     numbers=$(printf '7:%x' "${{node#/dev/loop}}")
     xenstore-write "$XENBUS_PATH/node" "$node" "$XENBUS_PATH/physical-device" "$numbers" "$XENBUS_PATH/hotplug-status" connected;;
remove) losetup -d "$(xenstore-read "$XENBUS_PATH/node")";;
esac"#,
        world.file("go").display()
    );
    fs::create_dir(world.file("xen")).unwrap();
    fs::create_dir(world.file("xen/scripts")).unwrap();
    let script = world.host.script("slow", &slow);
    // By its path it is a stock script, of which is known that it makes loop devices alone.
    let stock = world.file("xen/scripts/block");
    fs::copy(&script, &stock).unwrap();
    let mut first = world.foreground(&["--hotplug", "script"]).await;
    world.attach(&stock.display().to_string(), &image).await;
    let begun = Instant::now();
    while loops_of(&image).is_empty() {
        assert!(begun.elapsed() < LONG, "the script does not begin");
        sleep(Duration::from_millis(20)).await;
    }
    first.kill().await.unwrap();
    fs::write(world.file("go"), "").unwrap();
    let mut second = world.foreground(&["--hotplug", "script"]).await;
    world.reads(&format!("{BACKEND}/state"), Some("4")).await;
    assert_eq!(loops_of(&image).len(), 1);
    second.kill().await.unwrap();
    let _third = world.foreground(&["--hotplug", "script"]).await;
    world.detach().await;
    assert_eq!(loops_of(&image), [""; 0]);

    // The handler of the stock script, for another.
    drop(_third);
    sleep(Duration::from_millis(100)).await;
    let mut native = world.foreground(&["--hotplug", "native"]).await;
    world.attach("/etc/xen/scripts/block", &image).await;
    world.reads(&format!("{BACKEND}/state"), Some("4")).await;
    assert_eq!(loops_of(&image).len(), 1);
    native.kill().await.unwrap();
    let _native = world.foreground(&["--hotplug", "native"]).await;
    world.detach().await;
    assert_eq!(loops_of(&image), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_it_from_serving_is_told_before_it_goes_to_the_background() {
    let world = World::start().await;
    let run = world.run.path().display().to_string();
    let log = world.file("log").display().to_string();
    let ran = world.host.xendev(&["devd", "--run-dir", &run, "--log", &log]).await;
    ran.failed(1, &["this is domain 0", "--serve-domain0"]);
    let ran = world.host.xendev(&["--json", "devd", "--run-dir", &run, "--log", &log]).await;
    assert_eq!(schema::checked(&ran.stdout, "devd")["code"], "domain0");
    world.devd(&["--log", "/nonexistent/log"]).await.failed(1, &["/nonexistent/log: No such file"]);
    let locks = world.host.image().join("locks").display().to_string();
    let ran = world.host.xendev(&["devd", "--serve-domain0", "-F", "--run-dir", &locks]).await;
    ran.failed(1, &[&locks, "--run-dir"]);
    let mut elsewhere = Command::new(env!("CARGO_BIN_EXE_xendev"));
    elsewhere.args(["--store", "/nonexistent/socket", "devd", "--status", "--json"]);
    let ran = Ran::from(elsewhere.output().await.unwrap());
    assert_eq!(
        (ran.code, &schema::checked(&ran.stdout, "devd --status")["code"]),
        (Some(1), &"store".into())
    );
}
