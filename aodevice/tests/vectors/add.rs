//! Adding a device: vectors 1 to 5, 7 and 8, and what else may stand in the way.

use std::time::Duration;

use tokio::join;
use tokio_util::sync::CancellationToken;
use xen_aodevice::{Cause, Device, FailureKind, Force, Hint, Kind, Step, Toolstack, WaitFor, sim, vbd, vif};
use xs_client::{DomId, ErrorCode, Op};

use crate::world::{BE, FE, GUEST, LX, Line, SAVED, World, added, disk, nic, path, tenths, told, warned};

/// 1. Backend reaches 2 at 3 s, script exit 0: ok at 3 s, and the tree is there.
#[tokio::test(start_paused = true)]
async fn the_backend_is_ready_and_the_script_succeeds() {
    let world = World::new().await;
    let before = world.dump().await;
    let (ended, ()) = join!(world.add(disk()), async {
        world.at(3.0).await;
        assert!(world.read(&format!("{LX}/op")).await.starts_with("add:"));
        world.backend_says("2").await;
    });
    let success = ended.unwrap();
    assert_eq!(tenths(success.elapsed), 3.0);
    assert_eq!(warned(&success), [""; 0]);
    assert_eq!(success.id.to_string(), "vbd 51712 of domain 1");
    assert_eq!(world.scripts.runs(), ["at 3 s: block add exited with status 0"]);
    let tree = added(&before, &world.dump().await);
    for directory in [BE, FE, LX] {
        assert!(tree.iter().any(|line| line.starts_with(&format!("{directory} = "))), "{directory}");
    }
    assert_eq!(world.read(&format!("{LX}/op")).await, "not there", "nobody works on it any more");
    assert_eq!(world.read(&format!("{BE}/physical-device")).await, "7:0");
}

/// 1, as it is told step by step.
#[tokio::test(start_paused = true)]
async fn every_step_is_told() {
    let world = World::new().await;
    let (tell, told) = std::sync::mpsc::channel();
    let toolstack = world.toolstack.clone().with_observer(move |step: &Step| {
        tell.send(format!("{} {step}", tenths(step.elapsed))).unwrap();
    });
    let (device, never) = (disk(), CancellationToken::new());
    let (ended, ()) = join!(toolstack.add(GUEST, &device, WaitFor::Script, &never), async {
        world.at(3.0).await;
        world.backend_says("2").await;
    });
    ended.unwrap();
    assert_eq!(
        told.try_iter().collect::<Vec<_>>(),
        [
            "0 vbd xvda of domain 1: looking at what the device needs",
            "0 vbd xvda of domain 1: writing the device's nodes",
            "0 vbd xvda of domain 1: waiting up to 10s for the backend to get to 2 (InitWait), 3 (Initialised) or 4 (Connected)",
            "3 vbd xvda of domain 1: running the hotplug script",
            "3 vbd xvda of domain 1: removing the operation record",
            "3 vbd xvda of domain 1: attached",
        ]
    );
}

/// 2. Backend never leaves 1: timed out at 10 s, store as before.
///
/// The roll-back takes no time: a backend in 1 has not taken the device up, so there is nothing to
/// wait for, and the tree goes in the same transaction.
#[tokio::test(start_paused = true)]
async fn the_backend_never_leaves_1() {
    let world = World::new().await;
    let before = world.dump().await;
    let failure = world.add(disk()).await.unwrap_err();
    assert_eq!(world.clock(), 10.0);
    assert_eq!(
        told(&failure),
        [
            "cannot attach vbd xvda to domain 1",
            "the backend did not get to 2 (InitWait), 3 (Initialised) or 4 (Connected) within 10s",
            "backend state 1 (Initialising), frontend state 1 (Initialising)",
            "no backend driver has taken the device up",
            "after 10.0 s in all",
            r#"LoadBackend("xen-blkback")"#,
        ]
    );
    assert_eq!(failure.cause.kind(), FailureKind::TimedOut);
    assert!(failure.warnings.is_empty(), "{:?}", failure.warnings);
    assert_eq!(world.dump().await, before);
    assert_eq!(world.scripts.runs(), [""; 0]);
}

/// 3. Script exit 1 with `hotplug-error`: failed with that text; remove run executed; store clean.
#[tokio::test(start_paused = true)]
async fn the_script_fails() {
    let world = World::new().await;
    let before = world.dump().await;
    world.scripts.on("add", Line::Fails("losetup: no free device"));
    let (ended, ()) = join!(world.add(disk()), async {
        world.at(3.0).await;
        world.backend_says("2").await;
        world.is_told_to_close().await;
        assert_eq!(world.read(&format!("{BE}/online")).await, "0");
        world.at(4.0).await;
        world.backend_says("6").await;
    });
    let failure = ended.unwrap_err();
    assert_eq!(
        told(&failure),
        [
            "cannot attach vbd xvda to domain 1",
            "the hotplug script `/etc/xen/scripts/block add` exited with status 1: losetup: no free device",
            "backend state 2 (InitWait), frontend state 1 (Initialising)",
            "after 4.0 s in all",
            "ReadScriptLog",
        ]
    );
    assert_eq!(failure.cause.kind(), FailureKind::Failed);
    assert_eq!(
        world.scripts.runs(),
        ["at 3 s: block add exited with status 1", "at 4 s: block remove exited with status 0"]
    );
    assert_eq!(world.dump().await, before);
}

/// 4. Script hangs: timed out at 3 s + 40 s, store clean.
///
/// That its process group is gone within 2 s more is tested with real processes, in the crate that
/// runs them.
/// B-1.
#[tokio::test(start_paused = true)]
async fn the_script_hangs() {
    let world = World::new().await;
    let before = world.dump().await;
    world.scripts.on("add", Line::Hangs);
    let (ended, ()) = join!(world.add(disk()), async {
        world.at(3.0).await;
        world.backend_says("2").await;
        world.is_told_to_close().await;
        assert_eq!(world.clock(), 43.0);
        world.backend_says("6").await;
    });
    let failure = ended.unwrap_err();
    assert_eq!(world.clock(), 43.0);
    assert_eq!(
        told(&failure),
        [
            "cannot attach vbd xvda to domain 1",
            "the hotplug script `/etc/xen/scripts/block add` did not finish within 40 s and was killed with its process group",
            "backend state 2 (InitWait), frontend state 1 (Initialising)",
            "after 43.0 s in all",
            "GiveScriptTime(40s)",
        ]
    );
    assert_eq!(failure.cause.kind(), FailureKind::TimedOut);
    assert_eq!(world.dump().await, before);
    assert_eq!(world.scripts.runs()[1], "at 43 s: block remove exited with status 0");
}

/// 3, with a backend that does not close either: the tree goes all the same, 10 s later, and a
/// warning says so beside the original cause.
#[tokio::test(start_paused = true)]
async fn the_script_fails_and_the_backend_does_not_close() {
    let world = World::new().await;
    let before = world.dump().await;
    world.scripts.on("add", Line::Fails("no"));
    let (ended, ()) = join!(world.add(disk()), async {
        world.exists(BE).await;
        world.backend_says("2").await;
    });
    let failure = ended.unwrap_err();
    assert!(matches!(failure.cause, Cause::Script { .. }), "{failure}");
    let warnings: Vec<String> = failure.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings, ["forced: the backend did not close within 10s"]);
    assert_eq!(world.clock(), 10.0);
    assert_eq!(world.dump().await, before);
}

/// 5. Add with LX present: exists; no write at all.
#[tokio::test(start_paused = true)]
async fn the_guest_has_the_device_already() {
    let world = World::new().await;
    world.add_connected().await;
    let (before, writes) = (world.dump().await, world.proxy.writes());
    let failure = world.add(disk()).await.unwrap_err();
    assert_eq!(
        told(&failure),
        [
            "cannot attach vbd xvda to domain 1",
            "the guest has this device already",
            "hotplug-status is connected",
            "backend state 4 (Connected), frontend state 4 (Connected)",
            "ListDevices(Vbd)",
        ]
    );
    assert_eq!(world.proxy.writes(), writes);
    assert_eq!(world.dump().await, before);
    assert_eq!(world.scripts.runs(), [""; 0]);
}

/// 7. Backend state already 4 at the first read: on at once.
/// B-37.
#[tokio::test(start_paused = true)]
async fn the_backend_is_ahead() {
    let world = World::new().await;
    let (ended, ()) = join!(world.add(disk()), async {
        world.exists(BE).await;
        world.backend_says("4").await;
    });
    ended.unwrap();
    assert_eq!(world.clock(), 0.0);
}

/// 7. Backend goes 1 -> 6: failed at once, store as before.
#[tokio::test(start_paused = true)]
async fn the_backend_refuses() {
    let world = World::new().await;
    let before = world.dump().await;
    let (ended, ()) = join!(world.add(disk()), async {
        world.at(1.0).await;
        world.backend_says("6").await;
    });
    let failure = ended.unwrap_err();
    assert_eq!(
        told(&failure),
        [
            "cannot attach vbd xvda to domain 1",
            "the backend went to 6 (Closed) instead of 2 (InitWait), 3 (Initialised) or 4 (Connected)",
            "backend state 6 (Closed), frontend state 1 (Initialising)",
            "after 1.0 s in all",
            "ReadKernelLog",
        ]
    );
    assert_eq!(world.dump().await, before);
}

/// 8. Backend node deleted during the add wait: failed (gone), store as before.
#[tokio::test(start_paused = true)]
async fn the_backends_nodes_vanish() {
    let world = World::new().await;
    let before = world.dump().await;
    let (ended, ()) = join!(world.add(disk()), async {
        world.at(2.0).await;
        world.dom0.rm(&path(BE)).await.unwrap();
    });
    let failure = ended.unwrap_err();
    assert_eq!(
        told(&failure),
        [
            "cannot attach vbd xvda to domain 1",
            "the nodes of the backend vanished from the store",
            "backend state not there, frontend state 1 (Initialising)",
            "after 2.0 s in all",
            "ReadKernelLog",
        ]
    );
    assert_eq!(world.dump().await, before, "with the parents that the deletion left empty");
}

/// A guest that is to connect and does not: all is rolled back.
#[tokio::test(start_paused = true)]
async fn the_guest_does_not_connect() {
    let world = World::new().await;
    let before = world.dump().await;
    let never = CancellationToken::new();
    let adding = world.add_with(disk(), WaitFor::Connected, &never);
    let (ended, ()) = join!(adding, async {
        world.at(1.0).await;
        world.backend_says("2").await;
        // The guest never looks. The toolstack deletes its directory, which the backend sees.
        world.is_gone(FE).await;
        assert_eq!(world.clock(), 11.0);
        world.backend_says("6").await;
    });
    let failure = ended.unwrap_err();
    assert_eq!(
        told(&failure),
        [
            "cannot attach vbd xvda to domain 1",
            "the backend did not get to 4 (Connected) within 10s",
            "hotplug-status is connected",
            "backend state 2 (InitWait), frontend state 1 (Initialising)",
            "after 11.0 s in all",
            r#"CheckGuest("xen-blkfront")"#,
        ]
    );
    assert_eq!(
        world.scripts.runs(),
        ["at 1 s: block add exited with status 0", "at 11 s: block remove exited with status 0"]
    );
    assert_eq!(world.dump().await, before);
}

/// A quota in the middle of the tree: the whole transaction is off, and the error says which node.
/// B-2.
#[tokio::test(start_paused = true)]
async fn a_quota_is_used_up_in_the_middle() {
    let world = World::new().await;
    let before = world.dump().await;
    for (op, suffix) in [
        (Op::WRITE, "/51712/dev"),
        (Op::MKDIR, "/backend/vbd/1/51712"),
        (Op::SET_PERMS, "/device/vbd/51712"),
        (Op::WRITE, "/51712/op"),
    ] {
        world.proxy.refuse(op, suffix, ErrorCode::ENOSPC);
        let failure = world.add(disk()).await.unwrap_err();
        let text = failure.to_string();
        assert!(text.starts_with(&format!("cannot attach vbd xvda to domain 1: {op} of /")), "{text}");
        assert!(text.contains(&format!("{suffix} was refused: ENOSPC, ")), "{text}");
        assert_eq!(failure.hint(), Hint::Store("remove what the domain no longer needs, or raise its quota"));
        assert_eq!(world.dump().await, before, "{op} of {suffix}");
    }
    assert_eq!(world.clock(), 0.0);
}

/// So it is when the copy from which a script's work would be undone cannot be written: the script has not run.
#[tokio::test(start_paused = true)]
async fn a_quota_is_used_up_by_the_copy() {
    let world = World::new().await;
    let before = world.dump().await;
    world.proxy.refuse(Op::WRITE, SAVED, ErrorCode::ENOSPC);
    let (added, ()) = join!(world.add(disk()), async {
        world.exists(BE).await;
        world.backend_says("2").await;
    });
    assert_eq!(added.unwrap_err().cause.code(), "store");
    assert_eq!(world.scripts.runs(), [""; 0]);
    assert_eq!(world.dump().await, before);
}

#[tokio::test(start_paused = true)]
async fn there_is_no_such_domain() {
    let world = World::new().await;
    let (before, never) = (world.dump().await, CancellationToken::new());
    for device in [disk(), nic()] {
        let failure = world.toolstack.add(DomId(77), &device, WaitFor::Script, &never).await.unwrap_err();
        assert!(failure.to_string().ends_with("to domain 77: the store knows no domain 77"), "{failure}");
        assert_eq!(failure.observations(), ["the store knows no domain 77"]);
        assert_eq!(failure.hint(), Hint::ListDomains);
    }
    assert_eq!(world.proxy.writes(), 0);
    assert_eq!(world.dump().await, before);
}

#[tokio::test(start_paused = true)]
async fn there_is_no_such_target() {
    let world = World::new().await;
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("d.img");
    for (target, reason) in [
        (missing.to_str().unwrap(), "No such file or directory"),
        (folder.path().to_str().unwrap(), "is neither a file nor a block device"),
        ("d.img", "is not an absolute path"),
    ] {
        let device = Device::Vbd(vbd::parse(&[format!("{target},raw,xvda,w")]).unwrap());
        let failure = world.add(device).await.unwrap_err();
        let text = failure.to_string();
        assert!(text.contains(target) && text.contains(reason), "{text}");
        assert_eq!(failure.hint(), Hint::NameTarget);
    }
    assert_eq!(world.proxy.writes(), 0);
}

/// The guest's directory belongs to a live frontend of a backend that the toolstack does not know.
/// B-35.
#[tokio::test(start_paused = true)]
async fn the_frontend_is_in_use() {
    let world = World::new().await;
    for state in ["3", "4"] {
        world.write(&format!("{FE}/backend"), "/local/domain/7/backend/vbd/1/51712").await;
        world.write(&format!("{FE}/state"), state).await;
        world.write("/local/domain/7/backend/vbd/1/51712/state", state).await;
        let before = world.dump().await;
        let failure = world.add(disk()).await.unwrap_err();
        assert!(
            failure.to_string().starts_with(
                "cannot attach vbd xvda to domain 1: the guest's frontend is served by another backend"
            ),
            "{failure}"
        );
        assert_eq!(failure.hint(), Hint::FreeFrontend);
        assert_eq!(world.dump().await, before);
    }
    // Once that has closed, the guest's directory is a leftover, whatever it says, and makes room.
    world.write("/local/domain/7/backend/vbd/1/51712/state", "6").await;
    let (ended, ()) = join!(world.add(disk()), async {
        world.at(1.0).await;
        assert_eq!(world.read(&format!("{FE}/backend")).await, BE);
        world.backend_says("2").await;
    });
    ended.unwrap();
}

/// A script that exits with 0 and reports nothing: added, but with a warning.
#[tokio::test(start_paused = true)]
async fn the_script_reports_nothing() {
    let world = World::new().await;
    world.scripts.on("add", Line::Forgets);
    let (ended, ()) = join!(world.add(disk()), async {
        world.at(1.0).await;
        world.backend_says("2").await;
    });
    assert_eq!(
        warned(&ended.unwrap()),
        [
            "the hotplug script `/etc/xen/scripts/block add` exited with status 0 but did not write physical-device"
        ]
    );
}

/// 10. An emulated interface: the runs of an add are `online type_if=vif`, then `add type_if=tap`, those of a removal
/// `offline`, then `remove`.
#[tokio::test(start_paused = true)]
async fn an_emulated_interface_has_two_runs() {
    let world = World::new().await;
    let sys = tempfile::tempdir().unwrap();
    let toolstack = world.toolstack.clone().with_sys_dir(sys.path());
    let nic = |words: &[&str]| Device::Vif(vif::parse(words).unwrap());
    let add = async |toolstack: &Toolstack, nic: Device| {
        toolstack.add(GUEST, &nic, WaitFor::Script, &CancellationToken::new()).await
    };
    // It is for HVM guests, whose device model has made the twin.
    let before = world.dump().await;
    let refused = add(&toolstack, nic(&["type=ioemu", "devid=0"])).await.unwrap_err();
    assert_eq!(refused.cause.code(), "invalid");
    world.write("/libxl/1/type", "hvm").await;
    let refused = add(&toolstack, nic(&["type=ioemu"])).await.unwrap_err();
    assert_eq!(refused.cause.code(), "invalid");
    let refused = add(&toolstack, nic(&["type=ioemu", "devid=0"])).await.unwrap_err();
    assert!(matches!(&refused.cause, Cause::NoEmulatedTwin(twin) if twin == "vif1.0-emu"), "{refused}");
    world.write("/libxl/1/type", "pv").await;
    assert_eq!(world.dump().await, before);

    world.write("/libxl/1/type", "hvm").await;
    std::fs::create_dir_all(sys.path().join("class/net/vif1.0-emu")).unwrap();
    let _backends = sim::Drivers::backends(world.dom0.clone(), DomId::DOM0, Duration::ZERO).unwrap();
    add(&toolstack, nic(&["type=ioemu", "devid=0"])).await.unwrap();
    assert_eq!(world.read("/local/domain/0/backend/vif/1/0/type").await, "vif_ioemu");
    let runs = world.scripts.runs();
    assert!(
        runs[0].contains("vif-bridge online type_if=vif") && runs[1].contains("vif-bridge add type_if=tap")
    );
    world.scripts.forget();
    let removed = toolstack.remove(GUEST, (Kind::Vif, 0), Force::AtOnce, &CancellationToken::new()).await;
    removed.unwrap();
    let runs = world.scripts.runs();
    assert!(runs[0].contains("offline type_if=vif") && runs[1].contains("remove type_if=tap"), "{runs:?}");
    world.write("/libxl/1/type", "pv").await;
    assert_eq!(world.dump().await, before);
}
