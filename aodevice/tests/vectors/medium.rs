//! Changing what is in a CD-ROM drive, beside a stand-in for QEMU that listens on a socket.

use std::fs::{self, File};
use std::io::{IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::fs::{CWD, FileType, FlockOperation, Mode, flock, mknodat};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use xen_aodevice::libxl::Userdata;
use xen_aodevice::{
    Cause, Failure, FailureKind, Hint, Kind, Limits, Medium, MediumChange, MonitorError, Success, Toolstack,
    vbd,
};

use crate::world::{GUEST, World, told};

const BE: &str = "/local/domain/0/backend/qdisk/1/5632";
const LX: &str = "/libxl/1/device/vbd/5632";
const MODEL: &str = "/local/domain/0/device-model/1/state";
const UUID: &str = "0a1b2c3d-0000-4000-8000-0123456789ab";
const HDC: u32 = 5632;

const GREETING: &str =
    r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}"#;
const DONE: &str = r#"{"return": {}}"#;
const LOCKED: &str = r#"{"error": {"class": "GenericError", "desc": "Device 'ide-5632' is locked and force was not specified, wait for tray to open and try again"}}"#;

/// What the stand-in heard: each command, and the bytes of the file whose descriptor came with it.
type Heard = Arc<Mutex<Vec<String>>>;

/// What it answers to the command of this number; nothing, and it hangs.
type Answer = fn(usize, &Value) -> Option<String>;

/// As QEMU does what it is asked to.
fn willing(_: usize, command: &Value) -> Option<String> {
    Some(match command["execute"].as_str() {
        Some("add-fd") => r#"{"return": {"fdset-id": 4, "fd": 19}}"#.to_owned(),
        _ => DONE.to_owned(),
    })
}

struct Drive {
    world: World,
    toolstack: Toolstack,
    /// libxl's directory, QEMU's socket and the images.
    directory: TempDir,
    heard: Heard,
}

impl Drive {
    /// An HVM guest with a drive, and a QEMU that answers so.
    async fn new(answer: Answer) -> Self {
        let drive = Self::without_qemu().await;
        drive.listen(answer, |_| {});
        drive
    }

    async fn without_qemu() -> Self {
        let world = World::new().await;
        let directory = tempfile::tempdir().unwrap();
        for (node, value) in [
            (MODEL, "running"),
            ("/libxl/1/type", "hvm"),
            ("/local/domain/1/vm", &*format!("/vm/{UUID}")),
            (&*format!("{LX}/frontend"), "/local/domain/1/device/vbd/5632"),
            (&*format!("{LX}/backend"), BE),
            (&*format!("{LX}/params"), "aio:/first.iso"),
            (&*format!("{LX}/device-type"), "cdrom"),
            (&*format!("{BE}/params"), "aio:/first.iso"),
            (&*format!("{BE}/state"), "2"),
        ] {
            world.write(node, value.to_owned()).await;
        }
        fs::write(directory.path().join("second.iso"), "second").unwrap();
        let mut limits = Limits::default();
        (limits.medium, limits.config) = (Duration::from_millis(700), Duration::from_millis(100));
        let toolstack = world.toolstack.clone().with_limits(limits);
        let toolstack = toolstack.with_run_dir(directory.path()).with_libxl_dir(directory.path());
        Self { world, toolstack, directory, heard: Heard::default() }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    /// Serves one program after another. `first` is done with each before it is greeted.
    fn listen(&self, answer: Answer, first: fn(&mut UnixStream)) {
        let listener = UnixListener::bind(self.path("qmp-libxl-1")).unwrap();
        let heard = self.heard.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                first(&mut stream);
                // Who has closed its end is not served.
                _ = serve(&mut stream, answer, &heard);
            }
        });
    }

    async fn change(&self, change: MediumChange) -> Result<Success, Box<Failure>> {
        self.toolstack.change_medium(GUEST, HDC, &change, &CancellationToken::new()).await
    }

    async fn insert(&self) -> Result<Success, Box<Failure>> {
        self.change(MediumChange::insert(Medium::new(self.path("second.iso")))).await
    }

    async fn eject(&self) -> Result<Success, Box<Failure>> {
        self.change(MediumChange::eject()).await
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }

    /// What the store says is in the drive, in both places the same.
    async fn recorded(&self) -> String {
        let recorded = self.world.read(&format!("{LX}/params")).await;
        assert_eq!(self.world.read(&format!("{BE}/params")).await, recorded);
        recorded
    }

    fn config(&self) -> Userdata {
        Userdata::new(self.directory.path(), GUEST, &format!("/vm/{UUID}")).unwrap()
    }

    /// libxl keeps a configuration of the guest with these disks.
    fn keep(&self, disks: &Value) {
        fs::write(self.config().path(), format!("{:#}\n\0", json!({"disks": disks}))).unwrap();
    }

    fn kept(&self) -> Value {
        let text = fs::read_to_string(self.config().path()).unwrap();
        serde_json::from_str(text.trim_end_matches('\0')).unwrap()
    }
}

/// Greets, and answers until it is told nothing more.
fn serve(stream: &mut UnixStream, answer: Answer, heard: &Heard) -> std::io::Result<()> {
    // What nobody asked for comes in between.
    write!(stream, "{GREETING}\r\n{{\"event\": \"NIC_RX_FILTER_CHANGED\", \"data\": {{}}}}\r\n")?;
    let (mut bytes, mut image) = (Vec::new(), None);
    for number in 0.. {
        while !bytes.ends_with(b"\r\n") {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            // Byte by byte, so that it is seen with which one a descriptor comes.
            let mut byte = [0];
            let got =
                recvmsg(&*stream, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
            if got.bytes == 0 {
                return Ok(());
            }
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(mut fds) = message {
                    assert!(bytes.is_empty(), "it comes with the first byte");
                    image = fds.next();
                    assert!(fds.next().is_none());
                }
            }
            bytes.push(byte[0]);
        }
        let command: Value = serde_json::from_slice(&bytes).unwrap();
        bytes.clear();
        let mut said = command["execute"].as_str().unwrap().to_owned();
        if let Some(arguments) = command.get("arguments") {
            said = format!("{said} {arguments}");
        }
        if let Some(image) = image.take() {
            let mut image = File::from(image);
            assert!(image.write(b"x").is_err(), "it can be read alone");
            let mut content = String::new();
            image.read_to_string(&mut content)?;
            said = format!("{said} with {content:?}");
        }
        heard.lock().unwrap().push(said);
        let Some(answer) = answer(number, &command) else { continue };
        let mut answer: Value = serde_json::from_str(&answer)?;
        answer["id"] = command["id"].clone();
        // An answer to somebody who is gone, and events.
        write!(
            stream,
            "{{\"return\": {{}}, \"id\": 4711}}\r\n{{\"event\": \"DEVICE_TRAY_MOVED\"}}\r\n{answer}\r\n"
        )?;
    }
    Ok(())
}

const EJECT: &str = r#"eject {"id":"ide-5632"}"#;
const CHANGE: &str = r#"blockdev-change-medium {"id":"ide-5632","filename":"/dev/fdset/4","format":"raw"}"#;
const REMOVE: &str = r#"remove-fd {"fdset-id":4}"#;

#[tokio::test]
async fn a_medium_is_ejected_and_another_inserted() {
    let drive = Drive::new(willing).await;
    let before = drive.world.dump().await;
    drive.eject().await.unwrap();
    assert_eq!(drive.recorded().await, "");
    assert_eq!(drive.heard(), ["qmp_capabilities", EJECT]);
    let second = drive.path("second.iso");
    let success = drive.insert().await.unwrap();
    assert_eq!((success.id.devid, success.warnings.len()), (HDC, 0));
    assert_eq!(drive.recorded().await, format!("aio:{second}"));
    let add = format!(r#"add-fd {{"opaque":"raw:{second}"}} with "second""#);
    assert_eq!(drive.heard()[2..], ["qmp_capabilities", EJECT, &add, CHANGE]);
    // Nothing else has changed, and no lock is left.
    let changed = drive.world.dump().await.into_iter().filter(|line| !before.contains(line));
    assert_eq!(changed.filter(|line| !line.contains("5632/params = ")).count(), 0);
    let left = fs::read_dir(drive.directory.path()).unwrap();
    assert_eq!(
        left.filter(|entry| entry.as_ref().unwrap().path().to_string_lossy().contains("userdata")).count(),
        0
    );
}

#[tokio::test]
async fn formats_go_by_qemus_names_to_qemu_and_by_libxls_into_the_store() {
    let drive = Drive::new(willing).await;
    let second = drive.path("second.iso");
    let medium = Medium::new(&second).with_format(vbd::Format::Vhd);
    drive.change(MediumChange::insert(medium)).await.unwrap();
    assert_eq!(drive.recorded().await, format!("vhd:{second}"));
    assert!(drive.heard()[3].ends_with(r#""format":"vpc"}"#), "{:?}", drive.heard());
}

#[tokio::test]
async fn a_guest_that_opens_the_tray_in_time_is_waited_for_and_one_that_does_not_is_told() {
    let answers: Answer = |number, command| {
        if (1..3).contains(&number) { Some(LOCKED.to_owned()) } else { willing(number, command) }
    };
    let drive = Drive::new(answers).await;
    drive.eject().await.unwrap();
    assert_eq!(drive.heard(), ["qmp_capabilities", EJECT, EJECT, EJECT]);

    let drive = Drive::new(
        |number, command| if number > 0 { Some(LOCKED.to_owned()) } else { willing(number, command) },
    )
    .await;
    let failure = drive.insert().await.unwrap_err();
    assert_eq!((failure.cause.kind(), failure.hint()), (FailureKind::TimedOut, Hint::FreeMedium));
    assert_eq!(
        told(&failure)[..2],
        [
            "cannot insert a medium into vbd hdc of domain 1",
            "the device model refused eject: Device 'ide-5632' is locked and force was not specified, wait for tray to \
             open and try again"
        ]
    );
    assert_eq!((drive.recorded().await, failure.warnings.len()), ("aio:/first.iso".to_owned(), 0));

    let forced = MediumChange::eject().force(true);
    let drive = Drive::new(willing).await;
    drive.change(forced).await.unwrap();
    assert_eq!(drive.heard()[1], r#"eject {"id":"ide-5632","force":true}"#);
}

#[tokio::test]
async fn an_image_that_qemu_refuses_leaves_an_empty_drive_and_says_so() {
    let drive = Drive::new(|number, command| match command["execute"].as_str() {
        Some("blockdev-change-medium") => Some(
            r#"{"error": {"class": "GenericError", "desc": "Image is not in qcow2 format\u001b[2J"}}"#
                .to_owned(),
        ),
        _ => willing(number, command),
    })
    .await;
    drive.keep(&json!([{"pdev_path": "/first.iso", "vdev": "hdc", "format": "raw"}]));
    let failure = drive.insert().await.unwrap_err();
    assert_eq!((failure.cause.code(), failure.hint()), ("model_refused", Hint::CorrectMedium));
    assert!(failure.cause.to_string().contains(r"qcow2 format\x1b[2J"), "{failure}");
    assert_eq!(
        failure.warnings[0].to_string(),
        "the earlier medium was ejected, and the drive is empty; the store says that there is no medium"
    );
    assert_eq!(drive.recorded().await, "");
    assert_eq!(drive.heard()[3..], [CHANGE, REMOVE]);
    // Nor does a reboot bring the earlier one back.
    let kept = &drive.kept()["disks"][0];
    assert_eq!((&kept["pdev_path"], &kept["format"]), (&json!(""), &json!("empty")));
}

/// Whatever is seen beforehand changes nothing, and QEMU hears nothing.
#[tokio::test]
async fn what_can_be_seen_beforehand_changes_nothing() {
    let drive = Drive::new(willing).await;
    let pipe = drive.path("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR, 0).unwrap();
    for target in
        [drive.path("none.iso"), drive.path(""), pipe, "second.iso".to_owned(), "/dev/null".to_owned()]
    {
        let failure = drive.change(MediumChange::insert(Medium::new(&target))).await.unwrap_err();
        assert_eq!((failure.cause.code(), failure.hint()), ("target", Hint::NameTarget), "{target}");
    }
    let no_drive = async || {
        let failure = drive.eject().await.unwrap_err();
        assert_eq!(failure.hint(), Hint::ReplaceDevice(Kind::Vbd));
        failure.cause.to_string()
    };
    drive.world.write("/libxl/1/type", "pv").await;
    assert!(no_drive().await.contains("only an HVM guest"));
    drive.world.write("/libxl/1/type", "hvm").await;
    drive.world.write(&format!("{LX}/device-type"), "disk").await;
    assert!(no_drive().await.contains("it is a disk"));
    drive.world.write(&format!("{LX}/device-type"), "cdrom").await;
    drive.world.write(&format!("{LX}/backend"), "/local/domain/0/backend/vbd/1/5632").await;
    assert!(no_drive().await.contains("the kernel serves it"));
    drive.world.write(&format!("{LX}/backend"), BE).await;
    let eject = MediumChange::eject();
    let other = drive.toolstack.change_medium(GUEST, 51712, &eject, &CancellationToken::new()).await;
    assert_eq!(other.unwrap_err().cause.code(), "no_such_device");
    drive.world.write(MODEL, "paused").await;
    let failure = drive.eject().await.unwrap_err();
    assert_eq!((failure.cause.code(), failure.hint()), ("no_device_model", Hint::CheckModel));
    assert_eq!(drive.heard(), [""; 0]);
    assert_eq!(drive.recorded().await, "aio:/first.iso");
}

#[tokio::test]
async fn a_preview_asks_qemu_for_nothing() {
    let drive = Drive::new(willing).await;
    let second = drive.path("second.iso");
    let change = MediumChange::insert(Medium::new(&second));
    let preview = json!(drive.toolstack.preview_medium(GUEST, HDC, &change).await.unwrap());
    assert_eq!(
        preview["writes"],
        json!([
            {"op": "write", "path": format!("{LX}/params"), "value": format!("aio:{second}")},
            {"op": "write", "path": format!("{BE}/params"), "value": format!("aio:{second}")},
        ])
    );
    let commands = preview["commands"].as_array().unwrap().iter().map(|command| &command["execute"]);
    assert_eq!(
        commands.collect::<Vec<_>>(),
        ["qmp_capabilities", "eject", "add-fd", "blockdev-change-medium"]
    );
    let none = MediumChange::insert(Medium::new(drive.path("none.iso")));
    assert_eq!(drive.toolstack.preview_medium(GUEST, HDC, &none).await.unwrap_err().cause.code(), "target");
    assert_eq!(drive.heard(), [""; 0]);
}

/// A guest may have taken its QEMU over.
#[tokio::test]
async fn a_monitor_that_does_not_keep_to_the_protocol_is_given_up() {
    fn silent(stream: &mut UnixStream) {
        _ = stream.read(&mut [0]);
    }
    fn garbage(stream: &mut UnixStream) {
        _ = stream.write(b"\x1b[2J no JSON\r\n");
    }
    fn endless(stream: &mut UnixStream) {
        while stream.write(&[b' '; 4096]).is_ok() {}
    }
    fn closes(stream: &mut UnixStream) {
        _ = stream.shutdown(std::net::Shutdown::Both);
    }
    fn chatters(stream: &mut UnixStream) {
        // No greeting, but events for ever.
        while stream.write(b"{\"event\": \"SHUTDOWN\"}\r\n").is_ok() {}
    }
    fn floods(stream: &mut UnixStream) {
        _ = write!(stream, "{GREETING}\r\n");
        chatters(stream);
    }
    type Begin = fn(&mut UnixStream);
    type Expected = fn(&MonitorError) -> bool;
    let expected: [(Begin, Expected); 6] = [
        (silent, |problem| matches!(problem, MonitorError::NoAnswer { .. })),
        (garbage, |problem| matches!(problem, MonitorError::Strange(_))),
        (endless, |problem| matches!(problem, MonitorError::TooLong(_))),
        (closes, |problem| matches!(problem, MonitorError::Closed(_) | MonitorError::Io(_))),
        (chatters, |problem| matches!(problem, MonitorError::Strange(_))),
        (floods, |problem| matches!(problem, MonitorError::NoAnswer { .. })),
    ];
    for (first, is_expected) in expected {
        let drive = Drive::without_qemu().await;
        drive.listen(willing, first);
        let failure = drive.insert().await.unwrap_err();
        let Cause::Monitor { problem, .. } = &failure.cause else { panic!("{failure}") };
        assert!(is_expected(problem), "{failure}");
        assert!(!failure.to_string().contains('\u{1b}'));
        assert_eq!((drive.recorded().await, failure.warnings.len()), ("aio:/first.iso".to_owned(), 0));
        assert_eq!(failure.hint(), Hint::CheckModel);
    }
    // Nobody listens, or there is no socket.
    let drive = Drive::without_qemu().await;
    assert_eq!(drive.eject().await.unwrap_err().cause.code(), "monitor");
    drop(UnixListener::bind(drive.path("qmp-libxl-1")).unwrap());
    let failure = drive.eject().await.unwrap_err();
    assert!(failure.to_string().contains("Connection refused"), "{failure}");
}

#[tokio::test]
async fn a_qemu_that_hangs_in_the_middle_leaves_what_is_not_known() {
    let drive = Drive::new(|number, command| if number < 1 { willing(number, command) } else { None }).await;
    let failure = drive.eject().await.unwrap_err();
    assert_eq!((failure.cause.code(), failure.cause.kind()), ("monitor", FailureKind::TimedOut));
    assert_eq!(
        failure.warnings[0].to_string(),
        "what is in the drive is not known, since the device model did not say whether it did that; the store says that \
         there is aio:/first.iso"
    );
    assert_eq!(drive.recorded().await, "aio:/first.iso");
}

/// The time may be over while QEMU is asked again: what it answers then is known.
#[tokio::test]
async fn a_slow_refusal_is_a_refusal() {
    let answers: Answer = |number, command| {
        if number == 0 {
            return willing(number, command);
        }
        thread::sleep(Duration::from_millis(1000));
        Some(LOCKED.to_owned())
    };
    let drive = Drive::new(answers).await;
    let failure = drive.eject().await.unwrap_err();
    assert_eq!((failure.cause.code(), failure.warnings.len()), ("model_refused", 0));
    assert_eq!(failure.hint(), Hint::FreeMedium);
}

#[tokio::test]
async fn a_cancellation_ends_the_wait_for_the_guest() {
    let drive = Drive::new(
        |number, command| if number > 0 { Some(LOCKED.to_owned()) } else { willing(number, command) },
    )
    .await;
    let cancel = CancellationToken::new();
    let mut limits = Limits::default();
    limits.medium = Duration::MAX;
    let steps = cancel.clone();
    let toolstack = drive.toolstack.clone().with_limits(limits).with_observer(move |step| {
        if step.doing.contains("open the tray") {
            steps.cancel();
        }
    });
    let failure = toolstack.change_medium(GUEST, HDC, &MediumChange::eject(), &cancel).await.unwrap_err();
    assert_eq!((failure.cause.kind(), failure.hint()), (FailureKind::Aborted, Hint::ChangeAgain));
    assert_eq!(drive.recorded().await, "aio:/first.iso");
}

/// libxl holds these locks while it changes a medium.
#[tokio::test]
async fn another_toolstack_is_waited_for_within_bounds() {
    for name in ["libxl-device-changes-lock", "qmp-socket-lock"] {
        let drive = Drive::new(willing).await;
        let path = drive.path(&format!("userdata-l.1.{UUID}.{name}"));
        let lock =
            fs::OpenOptions::new().write(true).create(true).mode(0o600).truncate(true).open(&path).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        let failure = drive.eject().await.unwrap_err();
        let Cause::Monitor { problem: MonitorError::Busy(_), .. } = failure.cause else {
            panic!("{failure}")
        };
        assert_eq!(failure.cause.kind(), FailureKind::TimedOut);
        assert_eq!((drive.heard().len(), drive.recorded().await), (0, "aio:/first.iso".to_owned()));
        // As libxl gives it back.
        fs::remove_file(&path).unwrap();
        drop(lock);
        drive.eject().await.unwrap();
    }
}

#[tokio::test]
async fn an_operation_that_has_taken_the_device_is_not_overwritten() {
    let drive = Drive::new(|number, command| {
        // Time for the detach to begin.
        thread::sleep(Duration::from_millis(100));
        willing(number, command)
    })
    .await;
    drive.world.write(&format!("{LX}/op"), "remove:1 stage=left since=1").await;
    assert_eq!(drive.eject().await.unwrap_err().cause.code(), "unfinished");
    assert_eq!(drive.heard(), [""; 0]);
    drive.world.dom0.rm(&crate::world::path(format!("{LX}/op"))).await.unwrap();
    // A detach begins while QEMU ejects.
    let client = drive.world.dom0.clone();
    let toolstack = drive.toolstack.clone().with_observer(move |step| {
        if step.doing.contains("eject") {
            let client = client.clone();
            tokio::spawn(
                async move { client.write(&crate::world::path(format!("{LX}/op")), "remove:2").await },
            );
        }
    });
    let eject = MediumChange::eject();
    let failure = toolstack.change_medium(GUEST, HDC, &eject, &CancellationToken::new()).await.unwrap_err();
    assert_eq!(failure.cause.code(), "taken");
    assert_eq!(drive.recorded().await, "aio:/first.iso");
    assert!(
        failure.warnings[0].to_string().starts_with("the earlier medium was ejected"),
        "{:?}",
        failure.warnings
    );
}

/// A reboot by xl makes the guest with what stands there.
#[tokio::test]
async fn libxls_configuration_follows() {
    let drive = Drive::new(willing).await;
    let disk = json!({"pdev_path": "/d", "vdev": "hda", "format": "raw", "readwrite": 1});
    let cd = json!({"pdev_path": "/first.iso", "vdev": "hdc", "backend": "qdisk", "format": "raw", "removable": 1,
        "is_cdrom": true, "direct_io_safe": true});
    drive.keep(&json!([disk, cd]));
    drive.eject().await.unwrap();
    let empty = r#"{"pdev_path":"","vdev":"hdc","backend":"qdisk","format":"empty","removable":1,"is_cdrom":true,"direct_io_safe":true}"#;
    assert_eq!((drive.kept()["disks"][1].to_string(), &drive.kept()["disks"][0]), (empty.to_owned(), &disk));
    drive.insert().await.unwrap();
    let second = drive.path("second.iso");
    let full = format!(
        r#"{{"pdev_path":"{second}","vdev":"hdc","backend":"qdisk","format":"raw","removable":1,"is_cdrom":true,"direct_io_safe":true}}"#
    );
    assert_eq!(drive.kept()["disks"][1].to_string(), full);
    // One that does not know the drive.
    drive.keep(&json!([disk]));
    drive.insert().await.unwrap();
    let entry =
        format!(r#"{{"pdev_path":"{second}","vdev":"hdc","format":"raw","removable":1,"is_cdrom":1}}"#);
    assert_eq!(drive.kept()["disks"][1].to_string(), entry);
    // One that cannot be understood is told before anything is changed.
    fs::write(drive.config().path(), "{").unwrap();
    assert_eq!(drive.eject().await.unwrap_err().cause.code(), "libxl_config");
    assert_eq!(drive.recorded().await, format!("aio:{second}"));
    drive
        .toolstack
        .clone()
        .without_libxl_config()
        .change_medium(GUEST, HDC, &MediumChange::eject(), &CancellationToken::new())
        .await
        .unwrap();
}
