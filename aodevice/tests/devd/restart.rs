//! A daemon that comes to devices that are there, and one that is killed.

use std::time::Duration;

use tokio::time::sleep;

use super::world::*;

/// Vector 23, and B-42.
#[tokio::test(start_paused = true)]
async fn v23_b42_a_daemon_takes_up_what_it_finds() {
    let mut world = World::without_drivers().await;
    for devid in [51712, 51728, 51744, 51760] {
        world.attach_disk_as(devid).await;
    }
    let be = |devid: u32| format!("/local/domain/1/backend/vbd/2/{devid}");
    // `xl devd` has set the second up; the third was closed while nobody was there, the fourth failed.
    for (devid, key, value) in [
        (51712, "state", "2"),
        (51728, "state", "4"),
        (51728, "hotplug-status", "connected"),
        (51728, "physical-device", "7:0"),
        (51728, "node", "/dev/sim0"),
        (51744, "hotplug-status", "connected"),
        (51744, "physical-device", "7:1"),
        (51744, "node", "/dev/sim1"),
        (51744, "online", "0"),
        (51744, "state", "6"),
        (51760, "hotplug-error", "no such LUN"),
        (51760, "hotplug-status", "error"),
        (51760, "state", "2"),
    ] {
        world.write(&format!("{}/{key}", be(devid)), value).await;
    }
    let devd = world.devd().await;
    world.is_gone(&be(51744)).await;
    world.reads(&format!("{}/physical-device", be(51712)), "7:0").await;
    for (devid, stage) in [(51712, "attached"), (51728, "attached"), (51760, "failed")] {
        world.noted(&format!("/local/domain/1/libxl/2/devd/vbd/{devid}"), stage).await;
    }
    let mut runs = world.scripts.runs();
    runs.sort();
    assert_eq!(runs, ["51712 add exited with status 0", "51744 remove exited with status 0"]);
    assert_eq!(*locked(&devd.ready), Some(4));
    // And from now on each is as one of its own.
    world.start_drivers();
    for devid in [51712, 51728, 51760] {
        world.close(&be(devid)).await;
        world.is_gone(&be(devid)).await;
    }
    world.remove_frontends().await;
    assert_eq!(world.left().await, [""; 0]);
}

/// The note of a device is lost, as `xl devd` loses it with the guest's directory, or cannot be read: its mark in the backend
/// tells of nothing then, and the backend decides.
#[tokio::test(start_paused = true)]
async fn a_backend_whose_note_is_lost_is_taken_as_any_other() {
    for note in [None, Some("garbage"), Some(r#"{"stage":"of a later version","token":"x"}"#)] {
        let lose = async |world: &World| match note {
            Some(note) => world.write(NOTE, note).await,
            None => world.dom0.rm(&path("/local/domain/1/libxl/2")).await.unwrap(),
        };
        // While the daemon runs: the device goes, and its script is run once.
        let world = World::new().await;
        let devd = world.devd().await;
        world.attach_disk().await;
        world.reads(&format!("{BE}/state"), "4").await;
        world.noted(NOTE, "attached").await;
        lose(&world).await;
        world.detach(BE).await;
        assert_eq!(world.scripts.runs().len(), 2, "{note:?}: {:?}", world.scripts.runs());
        assert_eq!(locked(&world.scripts.held).len(), 0);
        devd.stop().await;

        // While none runs: it is taken as it is, and noted again.
        let world = World::new().await;
        let devd = world.devd().await;
        world.attach_disk().await;
        world.reads(&format!("{BE}/state"), "4").await;
        world.noted(NOTE, "attached").await;
        devd.stop().await;
        lose(&world).await;
        let devd = world.devd().await;
        world.noted(NOTE, "attached").await;
        sleep(LONG).await;
        assert!(devd.events().len() < 5, "it comes to rest: {:?}", devd.events());
        world.detach(BE).await;
        assert_eq!((world.left().await, world.scripts.runs().len()), (vec![], 2));
    }
}

/// B-45: whatever the daemon holds is its own, so it may end at any moment; another goes on from what is noted.
#[tokio::test(start_paused = true)]
async fn b45_a_daemon_that_is_killed_at_any_moment_leaves_nothing_undone() {
    for moment in (0..1600).step_by(25) {
        let world = World::new().await;
        world.scripts.on("add", Line::Takes(0.4));
        world.scripts.on("remove", Line::Takes(0.4));
        let devd = world.devd().await;
        let (strike, ()) = tokio::join!(
            async {
                sleep(Duration::from_millis(moment)).await;
                devd.kill().await;
                // The guard of a script kills it, and the lock keeps the next one waiting meanwhile.
                sleep(Duration::from_millis(10)).await;
                world.devd().await
            },
            async {
                world.attach_disk().await;
                world.reads(&format!("{BE}/state"), "4").await;
                sleep(Duration::from_millis(100)).await;
                world.detach(BE).await;
            }
        );
        world.is_gone(NOTE).await;
        let leaked = *locked(&world.scripts.leaked);
        assert_eq!((world.left().await, leaked), (vec![], 0), "at {moment} ms: {:?}", world.scripts.runs());
        assert_eq!(*locked(&world.scripts.held), [], "at {moment} ms: {:?}", world.scripts.runs());
        strike.stop().await;
    }
}

/// A script that undoes an add which was killed, and fails, says so where the toolstack does not look: there it would be
/// the outcome of the add.
#[tokio::test(start_paused = true)]
async fn what_undoes_a_killed_add_is_not_heard_by_the_toolstack() {
    let world = World::new().await;
    world.scripts.on("add", Line::Hangs);
    world.scripts.on("remove", Line::Says(&[("hotplug-error", "no node"), ("hotplug-status", "error")], 1));
    let devd = world.devd().await;
    world.attach_disk().await;
    world.noted(NOTE, "adding").await;
    devd.kill().await;
    world.scripts.on("add", Line::Hangs);
    let _devd = world.devd().await;
    sleep(Duration::from_secs(5)).await;
    let ended = world.scripts.runs();
    assert_eq!(ended, ["51712 add was killed", "51712 remove in a copy exited with status 1"]);
    assert_eq!(world.read(&format!("{BE}/hotplug-status")).await, "not there");
    assert_eq!(world.read(&format!("{BE}/hotplug-error")).await, "not there");
}

/// A device that was replaced while no daemon was there: the first one's script is undone, the second one's runs.
#[tokio::test(start_paused = true)]
async fn a_device_that_was_replaced_unseen_is_told_from_its_successor() {
    let world = World::new().await;
    let devd = world.devd().await;
    world.attach_disk().await;
    world.reads(&format!("{BE}/state"), "4").await;
    world.noted(NOTE, "attached").await;
    devd.kill().await;
    world.attach_disk().await;
    let _devd = world.devd().await;
    world.reads(&format!("{BE}/hotplug-status"), "connected").await;
    assert_eq!(
        world.scripts.runs(),
        [
            "51712 add exited with status 0",
            "51712 remove in a copy exited with status 0",
            "51712 add exited with status 0",
        ]
    );
    assert_eq!(*locked(&world.scripts.leaked), 0);
}

/// A signal: what runs comes to its end, what has not begun does not begin, devices stay.
#[tokio::test(start_paused = true)]
async fn a_daemon_that_is_asked_to_end_lets_its_scripts_finish() {
    let world = World::new().await;
    world.scripts.on("add", Line::Takes(20.0));
    let devd = world.devd().await;
    world.attach_disk().await;
    world.noted(NOTE, "adding").await;
    devd.stop().await;
    assert_eq!(world.read(&format!("{BE}/hotplug-status")).await, "connected");
    world.noted(NOTE, "attached").await;
    world.attach_nic().await;
    sleep(LONG).await;
    assert_eq!(world.scripts.runs(), ["51712 add exited with status 0"]);
    let _devd = world.devd().await;
    world.reads(&format!("{VIF}/hotplug-status"), "connected").await;
    for backend in [BE, VIF] {
        world.close(backend).await;
    }
    world.is_gone(BE).await;
    world.is_gone(VIF).await;
    world.remove_frontends().await;
    assert_eq!(world.left().await, [""; 0]);
}
