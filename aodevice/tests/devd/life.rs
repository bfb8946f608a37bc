//! One device, from its attach to its detach.

use std::fs;
use std::time::Duration;

use tokio::time::sleep;
use xen_aodevice::devd::{self, Daemon, DaemonError, Settings, Stage};
use xs_client::{Client, Config, DomId};

use super::world::*;

#[tokio::test(start_paused = true)]
async fn a_disk_and_an_interface_come_and_go_and_leave_nothing() {
    let world = World::new().await;
    let devd = world.devd().await;
    world.attach_disk().await;
    world.attach_nic().await;
    world.reads(&format!("{BE}/state"), "4").await;
    world.reads(&format!("{VIF}/state"), "4").await;
    world.noted(NOTE, "attached").await;
    for backend in [BE, VIF] {
        assert_eq!(world.read(&format!("{backend}/hotplug-status")).await, "connected");
    }
    let request = locked(&world.scripts.last).clone().unwrap();
    let variables = request.variables();
    assert!(variables.contains(&("XENBUS_BASE_PATH", "backend".to_owned())), "{variables:?}");
    assert!(variables[2].1.starts_with("backend/v"), "relative to this domain's home: {variables:?}");
    let served = devd::served(&devd.client).await.unwrap();
    assert_eq!(served.len(), 2);
    assert!(served.iter().all(|served| served.stage == Stage::Attached && served.error.is_none()));

    world.detach(BE).await;
    world.detach(VIF).await;
    assert_eq!(world.left().await, [""; 0]);
    let mut runs = world.scripts.runs();
    runs[..2].sort();
    assert_eq!(
        runs,
        [
            "0 online exited with status 0",
            "51712 add exited with status 0",
            "51712 remove exited with status 0",
            "0 offline exited with status 0",
        ]
    );
    devd.stop().await;
}

/// Vector 21, and B-10: the toolstack is told of a script that fails, in its words.
#[tokio::test(start_paused = true)]
async fn v21_a_script_that_fails_is_told_and_cleaned_up_after() {
    let world = World::new().await;
    let _devd = world.devd().await;
    let said: &[_] = &[("hotplug-error", "Could not find bridge device nobr"), ("hotplug-status", "error")];
    world.scripts.on("online", Line::Says(said, 1));
    world.attach_nic().await;
    world.reads(&format!("{VIF}/hotplug-status"), "error").await;
    assert_eq!(world.read(&format!("{VIF}/hotplug-error")).await, "Could not find bridge device nobr");
    world.detach(VIF).await;
    assert_eq!(world.left().await, [""; 0]);
    assert_eq!(world.scripts.runs(), ["0 online exited with status 1", "0 offline exited with status 0"]);
}

/// What `xl devd` says only in its log: a script that was killed, one that says `connected` of a missing disk and exits
/// with 1, and one that exits with 0 and has reported no disk.
#[tokio::test(start_paused = true)]
async fn the_outcome_is_always_written() {
    for (line, expected) in [
        (
            Line::Hangs,
            "/etc/xen/scripts/block add did not finish in time and was killed with its process group",
        ),
        (
            Line::Says(&[("hotplug-status", "connected")], 1),
            "/etc/xen/scripts/block add exited with status 1",
        ),
        (
            Line::Says(&[], 0),
            "/etc/xen/scripts/block add exited with status 0 and did not write physical-device",
        ),
    ] {
        let world = World::new().await;
        let _devd = world.devd().await;
        world.scripts.on("add", line);
        world.attach_disk().await;
        world.reads(&format!("{BE}/hotplug-status"), "error").await;
        let error = world.read(&format!("{BE}/hotplug-error")).await;
        assert!(
            error.starts_with(expected.split(" within").next().unwrap()) || error.contains("did not finish"),
            "{error}"
        );
        world.detach(BE).await;
        assert_eq!(world.left().await, [""; 0]);
    }
}

/// In whose working directory would it be?
#[tokio::test(start_paused = true)]
async fn a_script_that_is_no_path_from_the_root_is_refused_by_its_value() {
    for script in ["", "block", "../scripts/block"] {
        let world = World::new().await;
        let _devd = world.devd().await;
        world.attach("vbd", 51712, &[("params", "/srv/d.img"), ("script", script), ("type", "phy")]).await;
        world.reads(&format!("{BE}/hotplug-status"), "error").await;
        let error = world.read(&format!("{BE}/hotplug-error")).await;
        assert!(error.contains("node script holds") && error.contains(script), "{error}");
        world.detach(BE).await;
        assert_eq!((world.left().await, world.scripts.runs()), (vec![], vec![]));
    }
}

/// B-22.
#[tokio::test(start_paused = true)]
async fn b22_the_script_waits_for_its_interface_and_not_for_ever() {
    let world = World::new().await;
    let _devd = world.devd().await;
    let interface = world.net.path().join("vif2.0");
    fs::remove_dir(&interface).unwrap();
    world.attach_nic().await;
    sleep(Duration::from_secs(3)).await;
    assert_eq!(world.scripts.runs(), [""; 0]);
    fs::create_dir(&interface).unwrap();
    world.reads(&format!("{VIF}/hotplug-status"), "connected").await;
    world.detach(VIF).await;

    fs::remove_dir(&interface).unwrap();
    world.attach_nic().await;
    world.reads(&format!("{VIF}/hotplug-status"), "error").await;
    let error = world.read(&format!("{VIF}/hotplug-error")).await;
    assert!(error.starts_with("the interface vif2.0 is not there after 10s"), "{error}");
    world.detach(VIF).await;
    assert_eq!(world.left().await, [""; 0]);
}

/// B-20: the twin that QEMU emulates is where QEMU is, and its script looks for its backend in domain 0.
#[tokio::test(start_paused = true)]
async fn b20_the_script_of_an_emulated_twin_runs_only_where_the_twin_is() {
    let keys = [("script", "/etc/xen/scripts/vif-bridge"), ("type", "vif_ioemu"), ("hotplug-status", "")];
    for (is_here, runs) in [(false, 1), (true, 2)] {
        let world = World::new().await;
        let _devd = world.devd().await;
        if is_here {
            fs::create_dir(world.net.path().join("vif2.0-emu")).unwrap();
        }
        world.attach("vif", 0, &keys).await;
        world.noted("/local/domain/1/libxl/2/devd/vif/0", "attached").await;
        assert_eq!(world.scripts.runs().len(), runs, "{:?}", world.scripts.runs());
        let request = locked(&world.scripts.last).clone().unwrap();
        assert_eq!(request.variables()[2], ("XENBUS_PATH", "backend/vif/2/0".to_owned()));
    }
}

/// Vector 24 and B-44.
#[tokio::test(start_paused = true)]
async fn v24_b44_scripts_of_an_id_that_is_used_again_alternate() {
    let world = World::new().await;
    let _devd = world.devd().await;
    world.scripts.on("add", Line::Takes(10.0));
    world.scripts.on("remove", Line::Takes(10.0));
    world.attach_disk().await;
    world.noted(NOTE, "adding").await;
    // A toolstack that waits for nothing, such as `xl block-detach --force`, while the first script runs.
    world.dom0.rm(&path(BE)).await.unwrap();
    world.attach_disk().await;
    world.reads(&format!("{BE}/state"), "4").await;
    assert_eq!(
        world.scripts.runs(),
        [
            "51712 add was cancelled",
            "51712 remove in a copy exited with status 0",
            "51712 add exited with status 0"
        ]
    );
    world.detach(BE).await;
    world.attach_disk().await;
    world.reads(&format!("{BE}/state"), "4").await;
    world.detach(BE).await;
    assert_eq!(world.scripts.runs().len(), 6);
    assert_eq!((world.left().await, *locked(&world.scripts.leaked)), (vec![], 0));
}

/// B-26: a removal does not wait for the script of an add that nobody wants any more.
#[tokio::test(start_paused = true)]
async fn b26_a_removal_ends_the_add() {
    let world = World::new().await;
    let devd = world.devd().await;
    world.scripts.on("add", Line::Hangs);
    world.attach_disk().await;
    world.noted(NOTE, "adding").await;
    let begun = tokio::time::Instant::now();
    world.detach(BE).await;
    assert!(begun.elapsed() < Duration::from_secs(40), "the script's time is not waited for");
    assert_eq!(world.left().await, [""; 0]);
    assert!(devd.events().iter().any(|event| event.contains("was given up: the device is being removed")));
}

/// B-43.
#[tokio::test(start_paused = true)]
async fn b43_a_failed_device_is_begun_anew_when_the_toolstack_says_so() {
    let world = World::new().await;
    let _devd = world.devd().await;
    world.scripts.on("online", Line::Says(&[], 1));
    world.attach_nic().await;
    world.noted("/local/domain/1/libxl/2/devd/vif/0", "failed").await;
    world.scripts.on("online", Line::Takes(0.0));
    world.write(&format!("{VIF}/state"), "1").await;
    world.reads(&format!("{VIF}/hotplug-status"), "connected").await;
    assert_eq!(world.read(&format!("{VIF}/hotplug-error")).await, "not there");
}

/// B-21: a backend that is gone before its script is undone in a copy of what it needs.
#[tokio::test(start_paused = true)]
async fn b21_a_backend_that_vanishes_is_undone() {
    let world = World::new().await;
    let _devd = world.devd().await;
    world.attach_disk().await;
    world.noted(NOTE, "attached").await;
    world.dom0.rm(&path("/local/domain/1/backend")).await.unwrap();
    world.is_gone(NOTE).await;
    assert_eq!(world.left().await, [""; 0]);
    let request = locked(&world.scripts.last).clone().unwrap();
    assert_eq!(request.directory(), NOTE);
    assert_eq!(request.recorded.get("node").map(String::as_str), Some("/dev/sim0"));
    assert_eq!((locked(&world.scripts.held).clone(), *locked(&world.scripts.leaked)), (vec![], 0));
}

/// A script that writes after its backend has gone brings the directory back (B-21).
#[tokio::test(start_paused = true)]
async fn what_a_late_script_brings_back_goes() {
    let world = World::new().await;
    let _devd = world.devd().await;
    world.attach_disk().await;
    world.noted(NOTE, "attached").await;
    world.scripts.on("remove", Line::Takes(5.0));
    world.dom0.rm(&path(BE)).await.unwrap();
    world.write(&format!("{BE}/hotplug-status"), "connected").await;
    world.is_gone(NOTE).await;
    assert_eq!(world.scripts.runs().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_only_the_qemu_of_domain_0_serves_is_refused_in_words() {
    let world = World::new().await;
    let _devd = world.devd().await;
    world.attach("vfb", 0, &[("vnc", "1")]).await;
    let be = "/local/domain/1/backend/vfb/2/0";
    world.reads(&format!("{be}/hotplug-status"), "error").await;
    let error = world.read(&format!("{be}/hotplug-error")).await;
    assert!(
        error.starts_with("vfb is served by QEMU, which xendev devd starts for qdisk and 9pfs alone"),
        "{error}"
    );
    world.detach(be).await;
    assert_eq!((world.left().await, world.qemus.history()), (vec![], vec![]));
}

#[tokio::test(start_paused = true)]
async fn domain_0_is_not_served_unless_that_is_asked_for() {
    let world = World::without_drivers().await;
    let client = Client::over(world.store.connect(DomId::DOM0), Config::default());
    let daemon = async |settings| Daemon::new(client.clone(), world.scripts.clone(), settings).await;
    assert!(matches!(daemon(Settings::default()).await, Err(DaemonError::Domain0)));
    let mut settings = Settings::default();
    settings.serve_domain0 = true;
    daemon(settings).await.unwrap();
    // A guest that is no driver domain.
    let client = Client::over(world.store.connect(GUEST), Config::default());
    let daemon = Daemon::new(client, world.scripts.clone(), Settings::default()).await;
    assert!(matches!(daemon, Err(DaemonError::NoNotes)), "{daemon:?}");
}
