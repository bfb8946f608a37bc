//! Removing a device: vectors 11 to 17.

use tokio::join;
use tokio_util::sync::CancellationToken;
use xen_aodevice::{Cause, FailureKind, Force, Kind, sim};
use xen_devstate::XenbusState;
use xs_client::{DomId, Op};

use crate::world::{BE, FE, GUEST, LX, Line, World, disk, nic, path, tenths, told, warned};

const BE_STATE: &str = "/local/domain/0/backend/vbd/1/51712/state";

/// 11. The guest co-operates at 2 s: `online`=0 and `state`=5 in one transaction; script; tree gone;
/// parents gone; `/local/domain/<fe>/device` kept.
#[tokio::test(start_paused = true)]
async fn the_guest_cooperates() {
    let world = World::new().await;
    let before = world.dump().await;
    world.add_connected().await;
    let (ended, ()) = join!(world.remove(Force::AfterTimeout), async {
        // Whoever sees one of the two sees the other.
        let mut watch = world.dom0.watch(&path(BE)).await.unwrap();
        loop {
            match (&*world.read(&format!("{BE}/online")).await, &*world.read(BE_STATE).await) {
                ("1", "4") => watch.changed().await.unwrap(),
                ("0", "5") => break,
                other => panic!("seen: {other:?}"),
            };
        }
        assert!(world.read(&format!("{LX}/op")).await.starts_with("remove:"));
        assert_eq!(world.read(&format!("{FE}/state")).await, "4", "the guest is asked");
        world.at(2.0).await;
        world.guest_says("6").await;
        world.backend_says("6").await;
    });
    let success = ended.unwrap();
    assert_eq!(tenths(success.elapsed), 2.0);
    assert_eq!(warned(&success), [""; 0]);
    assert_eq!(world.scripts.runs(), ["at 2 s: block remove exited with status 0"]);
    assert_eq!(world.dump().await, before);
    assert_eq!(world.read("/local/domain/1/device").await, "");
}

/// 12. AUTO, the guest never reacts, the backend reacts to the deletion of FE at 12 s: ok at 12 s.
#[tokio::test(start_paused = true)]
async fn the_backend_closes_when_the_frontend_is_gone() {
    let world = World::new().await;
    let before = world.dump().await;
    world.add_connected().await;
    let (ended, ()) = join!(world.remove(Force::AfterTimeout), async {
        world.is_gone(FE).await;
        assert_eq!(world.clock(), 10.0);
        world.at(12.0).await;
        world.backend_says("6").await;
    });
    let success = ended.unwrap();
    assert_eq!(tenths(success.elapsed), 12.0);
    assert_eq!(warned(&success), [""; 0]);
    assert_eq!(world.scripts.runs(), ["at 12 s: block remove exited with status 0"]);
    assert_eq!(world.dump().await, before);
}

/// 13. AUTO, nothing reacts: FE deleted at 10 s, script run at 20 s, tree nuked, ok with a warning.
/// B-8.
#[tokio::test(start_paused = true)]
async fn nothing_reacts() {
    let world = World::new().await;
    let before = world.dump().await;
    world.add_connected().await;
    let (ended, ()) = join!(world.remove(Force::AfterTimeout), async {
        world.at(9.9).await;
        assert_eq!(world.read(&format!("{FE}/state")).await, "4");
        world.at(10.1).await;
        assert_eq!(world.read(FE).await, "not there");
        assert_eq!(world.read(BE_STATE).await, "5");
    });
    let success = ended.unwrap();
    assert_eq!(tenths(success.elapsed), 20.0);
    assert_eq!(warned(&success), ["forced: the backend did not close within 10s"]);
    assert_eq!(world.scripts.runs(), ["at 20 s: block remove exited with status 0"]);
    assert_eq!(world.dump().await, before);
}

/// Force ON: FE is deleted at once, and the backend has 10 s.
#[tokio::test(start_paused = true)]
async fn the_guest_is_not_asked() {
    let world = World::new().await;
    let before = world.dump().await;
    world.add_connected().await;
    let (ended, ()) = join!(world.remove(Force::AtOnce), async {
        world.is_gone(FE).await;
        assert_eq!(world.clock(), 0.0);
    });
    let success = ended.unwrap();
    assert_eq!(tenths(success.elapsed), 10.0);
    assert_eq!(warned(&success), ["forced: the backend did not close within 10s"]);
    assert_eq!(world.dump().await, before);
}

/// 14. OFF, nothing reacts: timed out at 10 s; LX shows closing; later the frontend closes, and a
/// new remove: ok.
#[tokio::test(start_paused = true)]
async fn the_guest_does_not_let_go() {
    let world = World::new().await;
    let before = world.dump().await;
    world.add_connected().await;
    let failure = world.remove(Force::Never).await.unwrap_err();
    assert_eq!(
        told(&failure),
        [
            "cannot detach vbd xvda from domain 1",
            "the backend did not get to 6 (Closed) within 10s",
            "hotplug-status is connected",
            "backend state 5 (Closing), frontend state 4 (Connected)",
            "after 10.0 s in all",
            "RemoveAgainOrForce",
        ]
    );
    assert_eq!(failure.cause.kind(), FailureKind::TimedOut);
    assert_eq!(world.scripts.runs(), [""; 0]);
    let listed = xen_aodevice::list(&world.dom0, GUEST, Kind::Vbd).await.unwrap();
    assert!(listed[0].operation.as_ref().unwrap().starts_with("remove:"), "{listed:?}");
    assert_eq!(listed[0].backend_state.as_ref().unwrap().state(), Some(XenbusState::Closing));

    world.at(60.0).await;
    world.guest_says("6").await;
    world.backend_says("6").await;
    let success = world.remove(Force::Never).await.unwrap();
    assert_eq!(tenths(success.elapsed), 0.0);
    assert_eq!(world.scripts.runs(), ["at 60 s: block remove exited with status 0"]);
    assert_eq!(world.dump().await, before);
}

/// 14, and the guest lets go only while the second remove waits.
/// B-9.
#[tokio::test(start_paused = true)]
async fn a_later_removal_resumes_one_that_timed_out() {
    let world = World::new().await;
    let before = world.dump().await;
    world.add_connected().await;
    world.remove(Force::Never).await.unwrap_err();
    let (ended, ()) = join!(world.remove(Force::Never), async {
        world.at(15.0).await;
        world.backend_says("6").await;
    });
    assert_eq!(tenths(ended.unwrap().elapsed), 5.0);
    assert_eq!(world.dump().await, before);
}

/// 15 (B-8, B-21). Remove with BE already gone: ok, FE and LX gone, and the script is run in the copy of
/// BE's keys that was saved.
#[tokio::test(start_paused = true)]
async fn the_backends_nodes_are_gone_already() {
    let world = World::new().await;
    let before = world.dump().await;
    world.add_connected().await;
    world.dom0.rm(&path(BE)).await.unwrap();
    let success = world.remove(Force::AfterTimeout).await.unwrap();
    assert_eq!(tenths(success.elapsed), 0.0);
    assert_eq!(warned(&success), [""; 0]);
    assert_eq!(world.scripts.runs(), ["at 0 s: block remove in a copy exited with status 0"]);
    assert_eq!(world.dump().await, before);
}

/// 16. Remove, BE disappears during the wait: ok.
#[tokio::test(start_paused = true)]
async fn the_backends_nodes_vanish() {
    let world = World::new().await;
    let before = world.dump().await;
    world.add_connected().await;
    for force in [Force::AfterTimeout, Force::AtOnce, Force::Never] {
        let begun = world.clock();
        let (ended, ()) = join!(world.remove(force), async {
            world.at(begun + 4.0).await;
            world.dom0.rm(&path(BE)).await.unwrap();
        });
        assert_eq!(tenths(ended.unwrap().elapsed), 4.0, "{force:?}");
        assert_eq!(world.dump().await, before, "{force:?}");
        world.add_connected().await;
    }
}

/// 17. Remove, the script fails: ok with a warning; tree gone.
/// B-36.
#[tokio::test(start_paused = true)]
async fn the_script_fails() {
    let world = World::new().await;
    let before = world.dump().await;
    world.add_connected().await;
    world.scripts.on("remove", Line::Fails("losetup: device busy"));
    let (ended, ()) = join!(world.remove(Force::AfterTimeout), async {
        world.at(1.0).await;
        world.backend_says("6").await;
    });
    assert_eq!(
        warned(&ended.unwrap()),
        [
            "the hotplug script `/etc/xen/scripts/block remove` exited with status 1: losetup: device busy; what it was to undo \
          (loop device, bridge port) may be left"
        ]
    );
    assert_eq!(world.dump().await, before, "with hotplug-error, which the script wrote");
}

/// 17, with a script that hangs.
#[tokio::test(start_paused = true)]
async fn the_script_hangs() {
    let world = World::new().await;
    let before = world.dump().await;
    world.add_connected().await;
    world.scripts.on("remove", Line::Hangs);
    let (ended, ()) = join!(world.remove(Force::AfterTimeout), async {
        world.at(1.0).await;
        world.backend_says("6").await;
    });
    let success = ended.unwrap();
    assert_eq!(tenths(success.elapsed), 41.0);
    assert!(warned(&success)[0].contains("did not finish within 40 s"), "{:?}", warned(&success));
    assert_eq!(world.dump().await, before);
}

#[tokio::test(start_paused = true)]
async fn there_is_no_such_device() {
    let world = World::new().await;
    let before = world.dump().await;
    let failure = world.remove(Force::AfterTimeout).await.unwrap_err();
    assert_eq!(
        told(&failure),
        ["cannot detach vbd xvda from domain 1", "the guest has no such device", "ListDevices(Vbd)",]
    );
    assert_eq!(world.proxy.writes(), 0);
    assert_eq!(world.dump().await, before);
}

/// A write of the close transaction fails: nothing of it stays.
#[tokio::test(start_paused = true)]
async fn a_quota_is_used_up_as_the_device_is_told_to_close() {
    let world = World::new().await;
    world.add_connected().await;
    let before = world.dump().await;
    world.proxy.refuse(Op::WRITE, "/51712/state", xs_client::ErrorCode::ENOSPC);
    let failure = world.remove(Force::AfterTimeout).await.unwrap_err();
    assert!(failure.to_string().contains(&format!("WRITE of {BE_STATE} was refused: ENOSPC")), "{failure}");
    assert_eq!(world.dump().await, before);
}

/// Between a removal's first look and its claim another toolstack gives the device to another kind of backend: it is
/// looked for anew.
#[tokio::test(start_paused = true)]
async fn another_backend_serves_the_device_by_now() {
    const QDISK: &str = "/local/domain/0/backend/qdisk/1/51712";
    let world = World::new().await;
    world.add_connected().await;
    let commits = world.proxy.commits().len();
    world.proxy.conflict(1);
    let (removed, ()) = join!(world.remove(Force::AtOnce), async {
        while world.proxy.commits().len() == commits {
            tokio::task::yield_now().await;
        }
        for gone in [BE, "/tool/xendev"] {
            world.dom0.rm(&path(gone)).await.unwrap();
        }
        world.write(&format!("{QDISK}/state"), "6").await;
        world.write(&format!("{LX}/backend"), QDISK).await;
    });
    assert_eq!(removed.unwrap().id.be_kind, xen_aodevice::BackendKind::Qdisk);
    for directory in [FE, LX, QDISK] {
        assert_eq!(world.read(directory).await, "not there", "{directory}");
    }
}

/// Right after a removal's claim another toolstack replaces the device: the new one keeps its frontend, and the copy of
/// what its script made.
#[tokio::test(start_paused = true)]
async fn the_device_is_replaced_right_after_the_claim() {
    for conflicts in [0, 1] {
        let world = World::new().await;
        world.add_connected().await;
        world.proxy.conflict(conflicts);
        world.proxy.hold_from_commit();
        let (removed, ()) = join!(world.remove(Force::AtOnce), async {
            world.is_told_to_close().await;
            for gone in [LX, BE, FE] {
                world.dom0.rm(&path(gone)).await.unwrap();
            }
            for (directory, key, value) in [
                (LX, "backend", BE),
                (FE, "backend", BE),
                (FE, "state", "1"),
                (BE, "state", "4"),
                (BE, "params", "/new"),
            ] {
                world.write(&format!("{directory}/{key}"), value).await;
            }
            world.save("params", "/new").await;
            world.proxy.hold(false);
        });
        assert!(matches!(removed.unwrap_err().cause, Cause::Taken));
        assert_eq!(world.read(&format!("{FE}/state")).await, "1");
        assert_eq!(world.saved("params").await, "/new");
    }
}

/// A removal of the last transaction is refused: nothing of it is carried out, and the next removal goes on.
#[tokio::test(start_paused = true)]
async fn the_removal_of_a_directory_is_refused() {
    let world = World::new().await;
    let before = world.dump().await;
    let latency = std::time::Duration::from_millis(100);
    let _backends = sim::Drivers::backends(world.dom0.clone(), DomId::DOM0, latency).unwrap();
    let _frontends = sim::Drivers::frontends(world.guest.clone(), GUEST, latency).unwrap();
    let never = CancellationToken::new();
    for directory in [FE, LX, BE] {
        world.add_with(disk(), xen_aodevice::WaitFor::Connected, &never).await.unwrap();
        world.proxy.refuse(Op::RM, directory, xs_client::ErrorCode::EACCES);
        let failure = world.remove(Force::Never).await.unwrap_err();
        assert!(failure.to_string().contains(&format!("RM of {directory} was refused: EACCES")), "{failure}");
        for there in [FE, LX, BE] {
            assert_ne!(world.read(there).await, "not there", "{there}, when {directory} was refused");
        }
        world.remove(Force::Never).await.unwrap();
        assert_eq!(world.dump().await, before, "{directory}");
    }
}

/// A guest's whole life with both kinds of device, against simulated drivers on both sides.
#[tokio::test(start_paused = true)]
async fn devices_come_and_go_with_drivers_on_both_sides() {
    let world = World::new().await;
    let before = world.dump().await;
    let latency = std::time::Duration::from_millis(100);
    let _backends = sim::Drivers::backends(world.dom0.clone(), DomId::DOM0, latency).unwrap();
    let _frontends = sim::Drivers::frontends(world.guest.clone(), GUEST, latency).unwrap();
    let never = CancellationToken::new();
    for _ in 0..3 {
        for device in [disk(), nic()] {
            let success =
                world.add_with(device.clone(), xen_aodevice::WaitFor::Connected, &never).await.unwrap();
            assert_eq!(warned(&success), [""; 0]);
        }
        for device in [(Kind::Vif, 0), (Kind::Vbd, 51712)] {
            let removed = world.toolstack.remove(GUEST, device, Force::Never, &never).await.unwrap();
            assert_eq!(warned(&removed), [""; 0]);
        }
        assert_eq!(world.dump().await, before);
    }
    let runs = world.scripts.runs();
    assert_eq!(runs.len(), 12);
    let runs: Vec<&str> = runs[..4].iter().map(|run| run.split_once(": ").unwrap().1).collect();
    assert_eq!(
        runs,
        [
            "block add exited with status 0",
            "vif-bridge online type_if=vif exited with status 0",
            "vif-bridge offline type_if=vif exited with status 0",
            "block remove exited with status 0",
        ]
    );
}
