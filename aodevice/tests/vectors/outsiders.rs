//! What outsiders broke once: each test failed before its fault was mended.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::join;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use xen_aodevice::{Cause, Force, Kind, Limits, Record, Removal, Toolstack, WaitFor, multi, sim};
use xen_hotplug::{Permit, Report, Request, Runner};
use xs_client::{DomId, ErrorCode, Op};

use crate::world::{BE, FE, GUEST, LX, Line, SAVED, World, disk, disk_named, path, warned};

/// A backend that closed, or vanished, while the script ran: the device is not as it was asked for.
#[tokio::test(start_paused = true)]
async fn a_backend_that_closes_during_the_script_is_no_success() {
    for vanishes in [false, true] {
        let world = World::new().await;
        let before = world.dump().await;
        world.scripts.on("add", Line::Takes(8.0));
        let (ended, ()) = join!(world.add(disk()), async {
            world.exists(BE).await;
            world.backend_says("2").await;
            world.at(1.0).await;
            if vanishes {
                world.dom0.rm(&path(BE)).await.unwrap();
            } else {
                world.backend_says("6").await;
            }
        });
        let failure = ended.unwrap_err();
        match failure.cause {
            Cause::Refused { .. } => assert!(!vanishes),
            Cause::Vanished(_) => assert!(vanishes),
            _ => panic!("{failure}"),
        }
        assert_eq!(world.scripts.runs().len(), 2, "and it was undone: {:?}", world.scripts);
        assert_eq!(world.dump().await, before);
    }
}

/// `xl` tells the backend to close while our script runs, and waits for the script's lock: the script is
/// ended at once.
#[tokio::test(start_paused = true)]
async fn an_attach_that_xl_closes_ends_its_script() {
    let world = World::new().await;
    world.scripts.on("add", Line::Hangs);
    let (ended, ()) = join!(world.add(disk()), async {
        world.exists(BE).await;
        world.backend_says("2").await;
        world.at(1.0).await;
        world.write(&format!("{BE}/online"), "0").await;
        world.backend_says("5").await;
        world.backend_says("6").await;
    });
    assert!(matches!(ended.unwrap_err().cause, Cause::Gone { domain: false }));
    assert_eq!(world.clock(), 1.0);
}

/// A guest that writes in its directory all the time, whatever it writes, cannot keep a failed attach from
/// being undone.
#[tokio::test(start_paused = true)]
async fn a_guest_that_writes_all_the_time_does_not_hinder_a_roll_back() {
    let world = World::new().await;
    let before = world.dump().await;
    let guest = world.guest.clone();
    let (ended, ()) = join!(world.add(disk()), async {
        world.exists(FE).await;
        let perms = guest.get_perms(&path(FE)).await.unwrap();
        while guest.write(&path(format!("{FE}/junk")), "x").await.is_ok() {
            _ = guest.set_perms(&path(FE), perms.clone()).await;
            tokio::time::sleep(Duration::from_micros(100)).await;
        }
    });
    assert_eq!(ended.unwrap_err().warnings.len(), 0);
    assert_eq!(world.dump().await, before);
}

/// A script of a removal that cannot be started leaves the device for a later one; only who does without
/// the guest does without the script.
#[tokio::test(start_paused = true)]
async fn a_script_that_cannot_be_started_is_not_one_that_failed() {
    let world = World::new().await;
    let before = world.dump().await;
    world.add_connected().await;
    world.backend_says("6").await;
    world.scripts.on("remove", Line::CannotStart);
    let failure = world.remove(Force::Never).await.unwrap_err();
    assert!(matches!(failure.cause, Cause::Script { .. }), "{failure}");
    assert!(world.read(&format!("{LX}/op")).await.contains("stage=left"));
    world.scripts.on("remove", Line::Takes(0.0));
    world.remove(Force::Never).await.unwrap();
    assert_eq!(world.dump().await, before);

    world.add_connected().await;
    world.backend_says("6").await;
    world.scripts.on("remove", Line::CannotStart);
    let success = world.remove(Force::AtOnce).await.unwrap();
    assert!(warned(&success)[0].contains("may be left"), "{:?}", warned(&success));
    assert_eq!(world.dump().await, before);
}

/// The same in a roll-back: the device stays, with its record, for a later removal.
#[tokio::test(start_paused = true)]
async fn a_roll_back_whose_script_cannot_be_started_leaves_the_device() {
    let world = World::new().await;
    let before = world.dump().await;
    world.scripts.on("remove", Line::CannotStart);
    world.scripts.on("add", Line::Fails("no"));
    let (ended, ()) = join!(world.add(disk()), async {
        world.exists(BE).await;
        world.backend_says("2").await;
        world.is_told_to_close().await;
        world.backend_says("6").await;
    });
    assert_eq!(ended.unwrap_err().warnings.len(), 1);
    world.scripts.on("remove", Line::Takes(0.0));
    world.remove(Force::Never).await.unwrap();
    assert_eq!(world.dump().await, before);
}

/// What only the saved copy tells is given to a script that would look for it in BE.
#[tokio::test(start_paused = true)]
async fn a_script_finds_what_was_saved_also_when_the_backend_lost_it() {
    let world = World::new().await;
    world.add_connected().await;
    world.backend_says("6").await;
    world.dom0.rm(&path(format!("{BE}/node"))).await.unwrap();
    world.remove(Force::Never).await.unwrap();
    assert_eq!(world.scripts.runs(), ["at 0 s: block remove in a copy exited with status 0"]);
}

/// A backend that holds what a script made, and of which nobody knows the script, is not removed without a
/// word.
#[tokio::test(start_paused = true)]
async fn a_device_without_a_script_that_made_something_is_warned_of() {
    let world = World::new().await;
    world.write(&format!("{BE}/node"), "/dev/sim0").await;
    let success = world.remove(Force::Never).await.unwrap();
    assert!(warned(&success)[0].contains("may be left"), "{:?}", warned(&success));
}

/// The copy of a device that `xl` removed goes with the next look at it.
#[tokio::test(start_paused = true)]
async fn a_copy_without_its_device_is_forgotten() {
    let world = World::new().await;
    let before = world.dump().await;
    world.add_connected().await;
    for directory in [FE, LX, BE] {
        world.dom0.rm(&path(directory)).await.unwrap();
    }
    for parent in ["/local/domain/1/device/vbd", "/libxl/1/device/vbd", "/local/domain/0/backend/vbd"] {
        world.dom0.rm(&path(parent)).await.unwrap();
    }
    assert_ne!(world.read(SAVED).await, "not there");
    assert!(matches!(world.remove(Force::Never).await.unwrap_err().cause, Cause::NoSuchDevice));
    assert_eq!(world.dump().await, before);
}

/// An add that died in its script, whose nodes `xl` has removed since: what it made is still undone.
#[tokio::test(start_paused = true)]
async fn an_add_that_died_is_undone_after_xl_removed_its_nodes() {
    for by_add in [false, true] {
        let world = World::new().await;
        world.scripts.on("add", Line::Hangs);
        let (died, ()) = join!(timeout(Duration::from_secs(1), world.add(disk())), async {
            world.exists(BE).await;
            world.backend_says("2").await;
        });
        died.unwrap_err();
        for directory in [FE, LX, BE] {
            world.dom0.rm(&path(directory)).await.unwrap();
        }
        // As far as that was told, in the copy.
        world.save("node", "/dev/sim0").await;
        if by_add {
            world.scripts.on("add", Line::Takes(0.0));
            let (added, ()) = join!(world.add(disk()), async {
                world.at(2.0).await;
                world.backend_says("2").await;
            });
            added.unwrap();
        } else {
            world.remove(Force::Never).await.unwrap();
        }
        assert_eq!(world.scripts.runs()[0], "at 1 s: block remove in a copy exited with status 0");
    }
}

/// An add that died between its last step and its word: the device is in use, so it exists.
#[tokio::test(start_paused = true)]
async fn a_device_in_use_whose_add_died_is_not_undone() {
    let world = World::new().await;
    world.add_connected().await;
    world.write(&format!("{LX}/op"), "add:1").await;
    let before = world.dump().await;
    assert!(matches!(world.add(disk()).await.unwrap_err().cause, Cause::Unfinished));
    assert_eq!(world.dump().await, before);
}

/// An owner who cannot be seen is taken to be alive; who was asked to give the device and did not answer in
/// time is not waited for any longer.
#[tokio::test(start_paused = true)]
async fn an_owner_who_cannot_be_seen_has_to_answer() {
    let world = World::new().await;
    world.add_connected().await;
    world.backend_says("6").await;
    let mine = world.toolstack.clone();
    // A process of this boot in namespaces of its own.
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let owner = format!("domid=0 pid=1 start=5 boot={} ns=1.1", boot.trim());
    world.write(&format!("{LX}/op"), format!("remove:1 stage=closing since=0 {owner}")).await;
    let record = Record::parse(&world.read(&format!("{LX}/op")).await).unwrap();
    assert_eq!(record.owner.unwrap().pid, 1);
    let mut limits = Limits::default();
    limits.owner = Duration::from_secs(5);
    let toolstack = mine.with_limits(limits);
    let never = CancellationToken::new();
    let xvda = (Kind::Vbd, 51712);
    let failure = toolstack.remove(GUEST, xvda, Force::AtOnce, &never).await.unwrap_err();
    assert!(matches!(failure.cause, Cause::Busy { .. }), "{failure}");
    assert!(format!("{:?}", failure.hint()).contains("pid: None"), "whose process 1 is that?");
    toolstack.remove(GUEST, xvda, Removal::default().take_over(true), &never).await.unwrap();
    assert_eq!(world.clock(), 10.0);
}

/// Many devices of one guest at once, by two toolstacks: a transaction whose view others have changed fails in
/// the middle, which is tried again like a conflict.
#[tokio::test(start_paused = true)]
async fn many_devices_come_and_go_at_once() {
    let world = World::new().await;
    let before = world.dump().await;
    let latency = Duration::from_millis(5);
    let _backends = sim::Drivers::backends(world.dom0.clone(), DomId::DOM0, latency).unwrap();
    let _frontends = sim::Drivers::frontends(world.guest.clone(), GUEST, latency).unwrap();
    let (first, second) = (world.toolstack.clone(), world.another_toolstack().await);
    let never = CancellationToken::new();
    for round in 0..5 {
        let disks: Vec<_> = (0..16).map(|disk| disk_named(&format!("d{disk}p0"))).collect();
        let toolstack = |index: usize| if index.is_multiple_of(2) { &first } else { &second };
        let adding = disks.iter().enumerate();
        let adding =
            adding.map(|(index, disk)| toolstack(index).add(GUEST, disk, WaitFor::Connected, &never));
        let added = multi::all(adding).await.into_result().unwrap();
        let removing = added.iter().enumerate().map(|(index, device)| {
            toolstack(index + round).remove(GUEST, (Kind::Vbd, device.id.devid), Force::Never, &never)
        });
        multi::all(removing).await.into_result().unwrap();
        assert_eq!(world.dump().await, before, "round {round}");
    }
}

/// What a store says in the middle of a transaction whose view others have changed is no outcome.
#[tokio::test(start_paused = true)]
async fn a_transaction_that_fails_in_the_middle_is_tried_again() {
    let world = World::new().await;
    let before = world.dump().await;
    for code in [ErrorCode::EIO, ErrorCode::EINVAL] {
        world.add_connected().await;
        world.backend_says("6").await;
        world.proxy.refuse(Op::RM, "/local/domain/1/device/vbd", code.clone());
        world.remove(Force::Never).await.unwrap();
        assert_eq!(world.dump().await, before, "{code:?}");
    }
}

/// A runner that does not ask whether it may: what it did is undone, and the report says whose fault it is.
#[tokio::test(start_paused = true)]
async fn a_runner_that_does_not_ask_is_found_out() {
    struct Naive(sim::Scripts, Mutex<Vec<String>>);
    impl Runner for Naive {
        fn run_if<'a>(
            &'a self,
            request: &'a Request,
            limits: &'a xen_hotplug::Limits,
            cancel: &'a CancellationToken,
            _: Permit<'a>,
        ) -> Pin<Box<dyn Future<Output = Report> + Send + 'a>> {
            self.1.lock().unwrap().push(request.to_string());
            self.0.run(request, limits, cancel)
        }
    }
    let world = World::new().await;
    let before = world.dump().await;
    let runner = Arc::new(Naive(sim::Scripts::new(world.dom0.clone(), Duration::ZERO), Mutex::default()));
    let toolstack = Toolstack::new(world.dom0.clone(), runner.clone()).await.unwrap();
    let (device, never) = (disk(), CancellationToken::new());
    let (ended, ()) = join!(toolstack.add(GUEST, &device, WaitFor::Script, &never), async {
        world.exists(BE).await;
        world.backend_says("2").await;
        world.is_told_to_close().await;
        world.backend_says("6").await;
    });
    assert!(matches!(ended.unwrap_err().cause, Cause::NotPermitted));
    assert_eq!(*runner.1.lock().unwrap(), ["/etc/xen/scripts/block add", "/etc/xen/scripts/block remove"]);
    assert_eq!(world.dump().await, before);
}

/// Nobody is said to have attached what waits for a guest that never comes.
#[tokio::test(start_paused = true)]
async fn limits_may_be_for_ever() {
    let world = World::new().await;
    let mut limits = Limits::default();
    (limits.backend, limits.connect, limits.close, limits.owner) =
        (Duration::MAX, Duration::MAX, Duration::MAX, Duration::MAX);
    limits.scripts = limits.scripts.deadline(Duration::MAX).queue(Duration::MAX);
    let toolstack = world.toolstack.clone().with_limits(limits);
    let (device, never) = (disk(), CancellationToken::new());
    let (ended, ()) = join!(toolstack.add(GUEST, &device, WaitFor::Connected, &never), async {
        world.at(1e6).await;
        world.backend_says("2").await;
        world.at(2e6).await;
        world.backend_says("4").await;
    });
    ended.unwrap();
}
