//! `xendev devd` as a program, on Debian's daemon: in the background and in the foreground, killed, refused, and with real
//! loop devices. It serves domain 0 here, whose connection a socket is. Needs root, for loop devices.

#[allow(dead_code, reason = "this test attaches as another domain's toolstack does, and not by the command")]
#[path = "../host/mod.rs"]
mod host;
#[path = "../schema/mod.rs"]
mod schema;
mod service;
mod world;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path as FsPath;
use std::process::{self, Stdio};
use std::time::{Duration, Instant};

use host::Ran;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tokio::io::AsyncReadExt;
use tokio::net::UnixListener;
use tokio::process::Command;
use tokio::time::{sleep, timeout};
use world::{BACKEND, Background, LONG, World};
use xs_client::Path;

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
    let claim = "/local/domain/0/libxl/xendev-devd";
    let named = world.read(claim).await;
    world.host.client.rm(&Path::new(claim).unwrap()).await.unwrap();
    world.reads(claim, named.as_deref()).await;
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
    status.failed(1, &["no daemon runs here; devices noted: 1"]);
    assert!(status.stdout.starts_with("backend/vbd/1/51712 attached for "), "{}", status.stdout);
    assert_eq!(world.read(&format!("{BACKEND}/state")).await.as_deref(), Some("4"));

    world.devd(&files).await.quietly();
    let second = Background(fs::read_to_string(&pidfile).unwrap().trim().parse().unwrap());
    world.detach().await;
    // Another process's by now.
    fs::write(&pidfile, "12345\n").unwrap();
    second.end(Signal::TERM);
    assert_eq!(fs::read_to_string(&pidfile).unwrap(), "12345\n");
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

/// An init script that has waited for too long ends what it has started: the daemon is not to go on in the background.
#[tokio::test(flavor = "multi_thread")]
async fn it_ends_with_who_starts_it_until_it_is_ready() {
    let run = tempfile::tempdir().unwrap();
    let file = |name: &str| run.path().join(name).display().to_string();
    // A store that takes the connection and answers nothing.
    let listener = UnixListener::bind(file("socket")).unwrap();
    let mut starter = Command::new(env!("CARGO_BIN_EXE_xendev"))
        .args(["--store", &file("socket"), "devd", "--serve-domain0"])
        .args(["--log", &file("log"), "--run-dir", &file("locks")])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (mut daemon, _) = timeout(LONG, listener.accept()).await.unwrap().unwrap();
    starter.kill().await.unwrap();
    let mut asked = Vec::new();
    timeout(LONG, daemon.read_to_end(&mut asked)).await.expect("the daemon goes on").unwrap();
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
    let fifo = world.file("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RWXU, 0).unwrap();
    let fifo = fifo.display().to_string();
    world.devd(&["--log", &fifo]).await.failed(1, &[&fifo, "--log"]);
    let locks = world.host.image().join("locks").display().to_string();
    let ran = world.host.xendev(&["devd", "--serve-domain0", "-F", "--run-dir", &locks]).await;
    ran.failed(1, &[&locks, "--run-dir"]);
    // A folder in which no lock can be made.
    let ran = world.host.xendev(&["devd", "--serve-domain0", "-F", "--run-dir", "/proc/self"]).await;
    ran.failed(1, &["/proc/self", "--run-dir"]);
    world.devd(&["--log", &log, "--pidfile", &fifo]).await.failed(1, &[&fifo, "--pidfile"]);
    for (program, told) in [("/nonexistent/qemu", "No such file"), ("/etc/passwd", "it is no program")] {
        world.devd(&["--log", &log, "--qemu", program]).await.failed(1, &[program, told, "--qemu"]);
    }
    let mut elsewhere = Command::new(env!("CARGO_BIN_EXE_xendev"));
    elsewhere.args(["--store", "/nonexistent/socket", "devd", "--status", "--json"]);
    let ran = Ran::from(elsewhere.output().await.unwrap());
    assert_eq!(
        (ran.code, &schema::checked(&ran.stdout, "devd --status")["code"]),
        (Some(1), &"store".into())
    );
}

/// The stand-in for QEMU: it has its words, says that it serves devices, and takes up every disk that has an image.
const QEMU: &str = r#"fe=$2
echo "begins as $$ for $fe"
trap 'echo "ends as $$"; exit 0' TERM
xenstore-write device-model/$fe/state running
while :; do
    for devid in $(xenstore-list backend/qdisk/$fe 2> /dev/null); do
        device=backend/qdisk/$fe/$devid
        image=$(xenstore-read $device/params 2> /dev/null)
        case "$(xenstore-read $device/online 2> /dev/null) $(xenstore-read $device/state 2> /dev/null)" in
        "1 1")
            if [ -e "${image#*:}" ]; then
                xenstore-write $device/hotplug-status connected $device/state 2
            else
                echo "qemu: failed to create 'qdisk' device '$devid': Could not open '${image#*:}'"
            fi;;
        "1 2") xenstore-write $device/state 4;;
        "0 5")
            if [ "$(xenstore-read $device/hotplug-status 2> /dev/null)" = connected ]; then
                xenstore-write $device/state 6; xenstore-rm $device
            fi;;
        esac
    done
    sleep 0.05
done"#;

impl World {
    /// What a toolstack of another domain writes for a disk of QEMU's.
    async fn attach_qdisk(&self, devid: u32, image: &str) {
        let backend = format!("/local/domain/0/backend/qdisk/1/{devid}");
        let keys =
            [("params", image), ("type", "qdisk"), ("frontend-id", "1"), ("online", "1"), ("state", "1")];
        for (key, value) in keys {
            let path = Path::new(format!("{backend}/{key}")).unwrap();
            self.host.client.write(&path, value.to_owned()).await.unwrap();
        }
    }

    async fn close_qdisk(&self, devid: u32) {
        let backend = format!("/local/domain/0/backend/qdisk/1/{devid}");
        for (key, value) in [("online", "0"), ("state", "5")] {
            self.host.client.write(&Path::new(format!("{backend}/{key}")).unwrap(), value).await.unwrap();
        }
        self.reads(&backend, None).await;
    }
}

fn is_there(pid: &str) -> bool {
    test_kill_process(Pid::from_raw(pid.parse().unwrap()).unwrap()).is_ok()
}

/// B-41, with real processes: one QEMU for two disks; it outlives the daemon, whose successor ends it after the last; one
/// that is killed is told of, and the next attach starts another.
#[tokio::test(flavor = "multi_thread")]
async fn b41_the_qemu_of_a_guest_outlives_the_daemon_and_ends_with_its_last_disk() {
    let world = World::start().await;
    let before = world.host.dump().await;
    let qemu = world.host.script("qemu-stand-in", QEMU);
    let logs = world.file("qemu").display().to_string();
    let options = ["--qemu", &qemu, "--qemu-log-dir", &logs];
    let image = format!("raw:{}", world.host.image().display());
    let disk = |devid: u32, key: &str| format!("/local/domain/0/backend/qdisk/1/{devid}/{key}");
    let pid_node = "/local/domain/0/libxl/1/qdisk-backend-pid";
    let mut first = world.foreground(&options).await;
    for devid in [51712, 51728] {
        world.attach_qdisk(devid, &image).await;
        world.reads(&disk(devid, "state"), Some("4")).await;
    }
    let pid = world.read(pid_node).await.unwrap();
    let status = world.status().await;
    assert_eq!(
        status["qemus"],
        serde_json::json!([{"domid": 1, "pid": pid.parse::<u32>().unwrap(), "ending": false, "running": true}])
    );
    let ran = world.devd(&["--status"]).await;
    assert!(
        ran.stdout.contains(&format!("the QEMU of domain 1, process {pid}: serves devices")),
        "{}",
        ran.stdout
    );
    world.attach_qdisk(51744, "raw:/nonexistent.img").await;
    world.reads(&disk(51744, "hotplug-status"), Some("error")).await;
    let error = world.read(&disk(51744, "hotplug-error")).await.unwrap();
    assert!(error.contains("Could not open '/nonexistent.img'"), "{error}");
    world.close_qdisk(51744).await;

    first.kill().await.unwrap();
    assert!(is_there(&pid));
    let mut second = world.foreground(&options).await;
    world.close_qdisk(51712).await;
    assert!(is_there(&pid));
    world.close_qdisk(51728).await;
    world.reads(pid_node, None).await;
    // Whoever is its parent by now has still to take note.
    let begun = Instant::now();
    while is_there(&pid) {
        assert!(begun.elapsed() < LONG, "process {pid} is there");
        sleep(Duration::from_millis(20)).await;
    }
    let log = fs::read_to_string(world.file("qemu").join("qdisk-1.log")).unwrap();
    let lives = |log: &str, word: &str| log.lines().filter(|line| line.starts_with(word)).count();
    assert_eq!((lives(&log, "begins as"), lives(&log, "ends as")), (1, 1), "{log}");

    // A crash, and the next attach.
    world.attach_qdisk(51712, &image).await;
    world.reads(&disk(51712, "state"), Some("4")).await;
    let pid = world.read(pid_node).await.unwrap();
    kill_process(Pid::from_raw(pid.parse().unwrap()).unwrap(), Signal::KILL).unwrap();
    world.reads(&disk(51712, "hotplug-status"), Some("error")).await;
    let error = world.read(&disk(51712, "hotplug-error")).await.unwrap();
    assert!(
        error.starts_with("the QEMU of domain 1 ended by itself (signal: 9 (SIGKILL)), its last words:"),
        "{error}"
    );
    world.reads(pid_node, None).await;
    world.attach_qdisk(51728, &image).await;
    world.reads(&disk(51728, "state"), Some("4")).await;
    let pid = world.read(pid_node).await.unwrap();
    // And one that nobody saw end.
    second.kill().await.unwrap();
    kill_process(Pid::from_raw(pid.parse().unwrap()).unwrap(), Signal::KILL).unwrap();
    let _third = world.foreground(&options).await;
    world.reads("/local/domain/0/device-model/1/state", Some("running")).await;
    let begun = Instant::now();
    while world.read(pid_node).await.is_none_or(|now| now == pid) {
        assert!(begun.elapsed() < LONG, "no other one is started");
        sleep(Duration::from_millis(20)).await;
    }
    world.reads(&disk(51728, "state"), Some("4")).await;
    for devid in [51712, 51728] {
        world.close_qdisk(devid).await;
    }
    world.reads(pid_node, None).await;
    _ = world.host.client.rm(&Path::new("/local/domain/0/backend/qdisk").unwrap()).await;
    let is_of_daemon = |line: &&str| {
        ["libxl = ", "libxl/xendev-devd = ", "device-model = "]
            .iter()
            .any(|node| line.starts_with(&format!("/local/domain/0/{node}")))
    };
    let after = world.host.dump().await;
    let after: Vec<&str> = after.lines().filter(|line| !is_of_daemon(line)).collect();
    assert_eq!(after.join("\n"), before.trim_end());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_qemu_that_is_not_there_any_more_is_told_to_the_toolstack() {
    let world = World::start().await;
    let program = world.file("qemu-program");
    symlink("/bin/true", &program).unwrap();
    let (named, logs) = (program.display().to_string(), world.file("qemu").display().to_string());
    let _devd = world.foreground(&["--qemu", &named, "--qemu-log-dir", &logs]).await;
    fs::remove_file(&program).unwrap();
    world.attach_qdisk(51712, "raw:/dev/null").await;
    let backend = "/local/domain/0/backend/qdisk/1/51712";
    world.reads(&format!("{backend}/hotplug-status"), Some("error")).await;
    let error = world.read(&format!("{backend}/hotplug-error")).await.unwrap();
    assert!(
        error.contains(&format!("the QEMU of domain 1 cannot be started: {named}: No such file")),
        "{error}"
    );
    world.close_qdisk(51712).await;
}
