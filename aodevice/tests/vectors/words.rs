//! What a script says decides: its report in the store besides its exit status, and only what it said in
//! this run. Likewise the error texts of both ends.

use std::os::unix::fs::FileTypeExt;

use tokio::join;
use xen_aodevice::{Cause, Device, Force, Hint};

use crate::world::{BE, Ended, LX, Line, World, disk, nic, path, told, warned};

const VIF: &str = "/local/domain/0/backend/vif/1/0";
const GUEST_SAYS: &str = "/local/domain/1/error/device/vbd/51712/error";

/// An add whose backend is ready at once, and closes when it is told to.
async fn add(world: &World, device: Device) -> Ended {
    let be = if matches!(device, Device::Vif(_)) { VIF } else { BE };
    let state = format!("{be}/state");
    let (ended, ()) = join!(world.add(device), async {
        world.exists(be).await;
        world.write(&state, "2").await;
    });
    ended
}

/// The same for a failure: its texts, and the store is as it was.
async fn fails(world: &World, device: Device) -> Box<xen_aodevice::Failure> {
    let before = world.dump().await;
    let failure = add(world, device).await.unwrap_err();
    assert_eq!(world.dump().await, before);
    failure
}

/// C1: exit status 0, and the report of a failure.
#[tokio::test(start_paused = true)]
async fn c1_a_reported_failure_is_one_whatever_the_exit_status() {
    let world = World::new().await;
    let says = &[("hotplug-error", "No such LUN"), ("hotplug-status", "error")];
    for action in ["add", "online"] {
        world.scripts.on(action, Line::Says(says, 0));
    }
    let words = "reported a failure (hotplug-status is error): No such LUN";
    let failure = fails(&world, disk()).await;
    assert!(matches!(failure.cause, Cause::Reported { .. }), "{failure}");
    assert_eq!(told(&failure)[1], format!("the hotplug script `/etc/xen/scripts/block add` {words}"));
    assert_eq!(failure.hint(), Hint::ReadScriptLog);
    assert_eq!(failure.cause.kind(), xen_aodevice::FailureKind::Failed);
    let runs = world.scripts.runs();
    assert!(runs.last().unwrap().contains("block remove exited with status 0"), "{runs:?}");

    let failure = fails(&world, nic()).await;
    let run = "the hotplug script `/etc/xen/scripts/vif-bridge online type_if=vif`";
    assert_eq!(told(&failure)[1], format!("{run} {words}"));
}

#[tokio::test(start_paused = true)]
async fn c1_a_target_in_use_is_told_with_what_to_do() {
    let world = World::new().await;
    let says = &[("hotplug-error", "Device /dev/sdb is mounted"), ("hotplug-status", "busy")];
    for status in [0, 1] {
        world.scripts.on("add", Line::Says(says, status));
        let failure = fails(&world, disk()).await;
        assert!(failure.to_string().ends_with(": Device /dev/sdb is mounted"), "{failure}");
        assert_eq!(failure.hint(), Hint::FreeTarget, "exit status {status}");
    }
    // Without a text the status alone decides.
    world.scripts.on("add", Line::Says(&[("hotplug-status", "busy")], 0));
    let failure = fails(&world, disk()).await;
    assert!(failure.to_string().ends_with("reported a failure (hotplug-status is busy)"), "{failure}");
}

/// An error text of an earlier run is not today's cause, and an earlier status no report.
#[tokio::test(start_paused = true)]
async fn what_stood_there_before_the_run_is_not_told_as_its_result() {
    let world = World::new().await;
    let stale = async |line| {
        world.scripts.on("add", line);
        let (ended, ()) = join!(world.add(disk()), async {
            world.exists(BE).await;
            world.write(&format!("{BE}/hotplug-error"), "of yesterday").await;
            world.write(&format!("{BE}/hotplug-status"), "error").await;
            world.backend_says("2").await;
        });
        ended
    };
    let failure = stale(Line::Says(&[], 1)).await.unwrap_err();
    assert!(!told(&failure).concat().contains("yesterday"), "{:?}", told(&failure));
    let success = stale(Line::Forgets).await.unwrap();
    assert_eq!(warned(&success).len(), 1, "{:?}", warned(&success));
    assert!(warned(&success)[0].ends_with("exited with status 0 but did not write physical-device"));
    assert_eq!(world.read(&format!("{BE}/hotplug-error")).await, "not there");
    world.remove(Force::AtOnce).await.unwrap();
    // The same words again are of this run.
    let same = &[("hotplug-error", "of yesterday"), ("hotplug-status", "error")];
    let failure = stale(Line::Says(same, 0)).await.unwrap_err();
    assert!(failure.to_string().ends_with("(hotplug-status is error): of yesterday"), "{failure}");
}

#[tokio::test(start_paused = true)]
async fn a_removal_does_not_tell_the_error_of_the_add() {
    let world = World::new().await;
    let left = async || {
        world.add_connected().await;
        world.write(&format!("{BE}/hotplug-error"), "of the add").await;
        world.write(&format!("{BE}/hotplug-status"), "error").await;
        world.write("/local/domain/0/error/backend/vbd/1/51712/error", "of the add").await;
    };
    left().await;
    let failure = world.remove(Force::Never).await.unwrap_err();
    let text = told(&failure).concat();
    assert!(!text.contains("of the add") && !text.contains("hotplug-status"), "{text}");

    world.scripts.on("remove", Line::Says(&[], 1));
    world.backend_says("6").await;
    let success = world.remove(Force::Never).await.unwrap();
    assert!(
        warned(&success)[0].contains("block remove` exited with status 1; what"),
        "{:?}",
        warned(&success)
    );
    // Its own words are told.
    left().await;
    world.scripts.on("remove", Line::Says(&[("hotplug-error", "losetup -d: busy")], 1));
    world.backend_says("6").await;
    let success = world.remove(Force::Never).await.unwrap();
    assert!(
        warned(&success)[0].contains("exited with status 1: losetup -d: busy; what"),
        "{:?}",
        warned(&success)
    );
}

#[tokio::test(start_paused = true)]
async fn an_old_error_of_the_guest_is_not_todays_cause() {
    let world = World::new().await;
    let node = path(GUEST_SAYS);
    world.guest.write(&node, "of yesterday").await.unwrap();
    let failure = world.add(disk()).await.unwrap_err();
    assert!(!told(&failure).concat().contains("the guest says"), "{:?}", told(&failure));

    let (ended, ()) = join!(world.add(disk()), async {
        world.exists(BE).await;
        world.guest.write(&node, "of today").await.unwrap();
    });
    let told_today = told(&ended.unwrap_err());
    assert!(told_today.contains(&"the guest says: of today".to_owned()), "{told_today:?}");

    world.add_connected().await;
    let failure = world.add(disk()).await.unwrap_err();
    assert!(matches!(failure.cause, Cause::Exists), "{failure}");
    assert!(!told(&failure).concat().contains("the guest says"), "{:?}", told(&failure));
    let failure = world.remove(Force::Never).await.unwrap_err();
    assert!(!told(&failure).concat().contains("the guest says"), "{:?}", told(&failure));
}

#[tokio::test(start_paused = true)]
async fn a_script_of_an_interface_that_reports_nothing_is_told() {
    let world = World::new().await;
    let forgotten = "but did not write hotplug-status=connected";
    for (line, end) in [
        (Line::Forgets, Some(String::new())),
        (
            Line::Says(&[("hotplug-status", "connecting"), ("hotplug-error", "no bridge")], 0),
            Some("; it wrote hotplug-status=connecting: no bridge".to_owned()),
        ),
        (Line::Says(&[("hotplug-status", "connected")], 0), None),
    ] {
        world.scripts.on("online", line);
        let success = add(&world, nic()).await.unwrap();
        let warned = warned(&success);
        match (&warned[..], end) {
            ([], None) => {}
            ([warned], Some(end)) => assert!(warned.ends_with(&format!("{forgotten}{end}")), "{warned}"),
            _ => panic!("{line:?}: {warned:?}"),
        }
        let which = (xen_aodevice::Kind::Vif, success.id.devid);
        let never = tokio_util::sync::CancellationToken::new();
        world.toolstack.remove(success.id.fe, which, Force::AtOnce, &never).await.unwrap();
    }
}

/// A block device of this machine, and its numbers as `stat` prints them.
fn block_device() -> Option<(&'static str, String)> {
    let is_block =
        |path: &std::path::Path| path.metadata().is_ok_and(|found| found.file_type().is_block_device());
    let devices = std::fs::read_dir("/dev").unwrap().flatten().map(|entry| entry.path());
    let device = devices.filter(|path| is_block(path)).max()?.into_os_string().into_string().ok()?;
    let printed = std::process::Command::new("stat").args(["-L", "-c", "%t:%T", &device]).output().unwrap();
    Some((device.leak(), String::from_utf8(printed.stdout).unwrap().trim().to_owned()))
}

/// A script that names its block device: what blkback needs is its numbers.
#[tokio::test(start_paused = true)]
async fn c2_the_numbers_of_a_device_that_a_script_names_are_written() {
    let Some((device, numbers)) = block_device() else { return };
    let world = World::new().await;
    let keys: &'static [_] = vec![("physical-device-path", device), ("hotplug-status", "connected")].leak();
    world.scripts.on("add", Line::Says(keys, 0));
    assert_eq!(warned(&add(&world, disk()).await.unwrap()), [""; 0]);
    assert_eq!(world.read(&format!("{BE}/physical-device")).await, numbers);
    world.remove(Force::AtOnce).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn c2_what_is_no_block_device_has_no_numbers() {
    let world = World::new().await;
    for path in ["/dev/null", "/no/such/device", "relative"] {
        let keys: &'static [_] = vec![("physical-device-path", path), ("hotplug-status", "connected")].leak();
        world.scripts.on("add", Line::Says(keys, 0));
        let warned = warned(&add(&world, disk()).await.unwrap());
        let told = format!("did not write physical-device; it wrote physical-device-path={path}");
        assert!(warned.len() == 1 && warned[0].ends_with(&told), "{path}: {warned:?}");
        assert_eq!(world.read(&format!("{BE}/physical-device")).await, "not there");
        world.remove(Force::AtOnce).await.unwrap();
    }
}

/// The device is another's by the time when the script has ended.
#[tokio::test(start_paused = true)]
async fn c2_nothing_is_written_for_a_device_that_is_lost() {
    let Some((device, _)) = block_device() else { return };
    let world = World::new().await;
    let op: &'static str = format!("{LX}/op").leak();
    let keys =
        vec![("physical-device-path", device), ("hotplug-status", "connected"), (op, "add:1 stage=script")];
    world.scripts.on("add", Line::Says(keys.leak(), 0));
    let failure = add(&world, disk()).await.unwrap_err();
    assert!(matches!(failure.cause, Cause::Taken), "{failure}");
    assert_eq!(world.read(&format!("{BE}/physical-device")).await, "not there");
}

/// C4: whatever it writes or is called, nothing of it reaches a terminal raw or at length.
#[tokio::test(start_paused = true)]
async fn c4_what_a_script_says_is_escaped_and_short() {
    let world = World::new().await;
    let long: &'static str = format!("\u{1b}[2J\u{202e}{}why", "x".repeat(3000)).leak();
    let keys: &'static [_] = vec![("hotplug-error", long), ("hotplug-status", "error")].leak();
    for status in [0, 1] {
        world.scripts.on("add", Line::Says(keys, status));
        let failure = fails(&world, disk()).await;
        let json = serde_json::to_string(&failure).unwrap();
        let debug = format!("{failure:?}");
        for shown in told(&failure).iter().chain([&json, &debug]) {
            assert!(shown.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{shown:?}");
            assert!(shown.len() < 3000, "{} bytes", shown.len());
        }
        let said = &told(&failure)[1];
        assert!(said.contains(r"\x1b[2J\u{202e}xxx") && said.ends_with("xxxwhy"), "{said}");
    }
}
