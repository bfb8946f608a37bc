//! Two actors on one device: who works on it, who waits, and who takes over. Findings B1, B2 and B5 to B8.

use std::time::Duration;

use tokio::join;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use xen_aodevice::{Addition, Cause, FailureKind, Force, Hint, Kind, Limits, Removal, Toolstack, WaitFor};

use crate::world::{BE, Ended, FE, GUEST, LX, Line, World, disk, path, storm, warned};

const XVDA: (Kind, u32) = (Kind::Vbd, 51712);

pub(crate) async fn remove(toolstack: &Toolstack, removal: impl Into<Removal>) -> Ended {
    toolstack.remove(GUEST, XVDA, removal, &CancellationToken::new()).await
}

async fn add(toolstack: &Toolstack, addition: impl Into<Addition>) -> Ended {
    toolstack.add(GUEST, &disk(), addition, &CancellationToken::new()).await
}

/// B1: a plain removal beside an add whose script runs waits for it, then removes the device. No script
/// runs beside another.
#[tokio::test(start_paused = true)]
async fn b1_a_removal_waits_for_an_add_whose_script_runs() {
    let world = World::new().await;
    let before = world.dump().await;
    world.scripts.on("add", Line::Takes(6.0));
    let other = world.another_toolstack().await;
    let (added, removed, ()) = join!(
        world.add(disk()),
        async {
            world.at(1.0).await;
            remove(&other, Force::Never).await
        },
        async {
            world.exists(BE).await;
            world.backend_says("2").await;
            world.is_told_to_close().await;
            assert_eq!(world.clock(), 6.0);
            world.backend_says("6").await;
        }
    );
    added.unwrap();
    assert_eq!(warned(&removed.unwrap()), [""; 0]);
    assert_eq!(
        world.scripts.runs(),
        ["at 0 s: block add exited with status 0", "at 6 s: block remove exited with status 0"]
    );
    assert_eq!(world.dump().await, before);
}

/// It says whom it waits for, and gives up in time.
#[tokio::test(start_paused = true)]
async fn who_waits_says_for_whom_and_for_how_long() {
    let world = World::new().await;
    world.scripts.on("add", Line::Hangs);
    let mut limits = Limits::default();
    limits.owner = Duration::from_secs(5);
    let (tell, told) = std::sync::mpsc::channel();
    let other = world.another_toolstack().await.with_limits(limits);
    let other = other.with_observer(move |step| tell.send(step.doing.clone()).unwrap());
    let (added, removed, ()) = join!(
        world.add(disk()),
        async {
            world.at(1.0).await;
            let ended = remove(&other, Force::AtOnce).await;
            assert_eq!(world.clock(), 6.0);
            ended
        },
        async {
            world.exists(BE).await;
            world.backend_says("2").await;
            world.is_told_to_close().await;
            world.backend_says("6").await;
        }
    );
    let pid = std::process::id();
    let failure = removed.unwrap_err();
    assert_eq!(
        failure.to_string(),
        format!(
            "cannot detach vbd xvda from domain 1: an attach by process {pid} of domain 0 works on the device, \
             and did not end within 5s"
        )
    );
    assert_eq!(failure.cause.kind(), FailureKind::TimedOut);
    assert_eq!(failure.hint(), Hint::WaitOrTakeOver { pid: Some(pid) });
    let waiting = format!("waiting for an attach by process {pid} of domain 0 to end");
    assert!(told.try_iter().any(|doing| doing == waiting));
    assert!(matches!(added.unwrap_err().cause, Cause::Script { .. }), "it was not disturbed");
}

/// `--take-over`: the owner notices at once, rolls back, and the other goes on.
#[tokio::test(start_paused = true)]
async fn an_owner_that_is_asked_to_cancel_rolls_back() {
    let world = World::new().await;
    let before = world.dump().await;
    world.scripts.on("add", Line::Hangs);
    let other = world.another_toolstack().await;
    let (added, removed, ()) = join!(
        world.add(disk()),
        async {
            world.at(3.0).await;
            remove(&other, Removal::default().take_over(true)).await
        },
        async {
            world.exists(BE).await;
            world.backend_says("2").await;
            world.is_told_to_close().await;
            world.backend_says("6").await;
        }
    );
    let failure = added.unwrap_err();
    assert_eq!(failure.cause.kind(), FailureKind::Aborted);
    assert!(failure.to_string().ends_with("of domain 0 asked for the device"), "{failure}");
    removed.unwrap();
    assert_eq!(world.clock(), 3.0);
    assert_eq!(world.dump().await, before);
    assert_eq!(world.scripts.runs().len(), 2, "added and undone, once each: {:?}", world.scripts);
}

/// An add that is asked for by another add gives the device to that.
#[tokio::test(start_paused = true)]
async fn an_add_takes_over_from_an_add() {
    let world = World::new().await;
    let other = world.another_toolstack().await;
    let (first, second, ()) = join!(
        world.add(disk()),
        async {
            world.at(3.0).await;
            add(&other, Addition::default().take_over(true)).await
        },
        async {
            world.at(4.0).await;
            world.backend_says("2").await;
        }
    );
    assert_eq!(first.unwrap_err().cause.kind(), FailureKind::Aborted);
    second.unwrap();
    assert_eq!(world.read(&format!("{LX}/op")).await, "not there");
}

/// B2: a removal that waits for another one, which dies, goes on with it: gone means gone.
#[tokio::test(start_paused = true)]
async fn b2_a_removal_goes_on_where_another_one_died() {
    let world = World::new().await;
    let before = world.dump().await;
    world.add_connected().await;
    let other = world.another_toolstack().await;
    let (died, removed, ()) = join!(
        timeout(Duration::from_secs(3), world.remove(Force::Never)),
        async {
            world.at(1.0).await;
            remove(&other, Force::Never).await
        },
        async {
            world.at(5.0).await;
            world.backend_says("6").await;
        }
    );
    died.unwrap_err();
    removed.unwrap();
    assert_eq!(world.clock(), 5.0);
    assert_eq!(world.scripts.runs(), ["at 5 s: block remove exited with status 0"]);
    assert_eq!(world.dump().await, before);
}

/// Two removals at once: the second waits for the first, the script runs once, and both say that the
/// device is gone.
#[tokio::test(start_paused = true)]
async fn two_remove_the_same_disk() {
    let world = World::new().await;
    let before = world.dump().await;
    world.add_connected().await;
    world.scripts.on("remove", Line::Takes(1.0));
    let other = world.another_toolstack().await;
    let (first, second, ()) = join!(
        world.remove(Force::AfterTimeout),
        async {
            world.at(1.0).await;
            remove(&other, Force::AfterTimeout).await
        },
        async {
            world.at(2.0).await;
            world.backend_says("6").await;
        }
    );
    assert_eq!(world.scripts.runs(), ["at 2 s: block remove exited with status 0"]);
    assert_eq!((warned(&first.unwrap()).len(), warned(&second.unwrap()).len()), (0, 0));
    assert_eq!(world.dump().await, before);
}

/// Of two removals the first times out and leaves the device closing: the second goes on.
#[tokio::test(start_paused = true)]
async fn a_removal_goes_on_where_another_one_timed_out() {
    let world = World::new().await;
    world.add_connected().await;
    let other = world.another_toolstack().await;
    let (first, second, ()) = join!(
        world.remove(Force::Never),
        async {
            world.at(1.0).await;
            remove(&other, Force::Never).await
        },
        async {
            world.at(12.0).await;
            world.backend_says("6").await;
        }
    );
    assert_eq!(first.unwrap_err().cause.kind(), FailureKind::TimedOut);
    second.unwrap();
    assert_eq!(world.clock(), 12.0);
}

/// B5: an add that died before the backend took the device up is removed by a plain removal, and
/// replaced by a plain add, at once.
#[tokio::test(start_paused = true)]
async fn b5_an_add_that_died_early_is_resumed_by_anybody() {
    let world = World::new().await;
    let before = world.dump().await;
    timeout(Duration::from_secs(1), world.add(disk())).await.unwrap_err();
    assert!(world.read(&format!("{LX}/op")).await.starts_with("add:"));
    world.remove(Force::Never).await.unwrap();
    assert_eq!(world.clock(), 1.0);
    assert_eq!(world.dump().await, before);

    timeout(Duration::from_secs(1), world.add(disk())).await.unwrap_err();
    let (ended, ()) = join!(world.add(disk()), async {
        world.at(3.0).await;
        world.backend_says("2").await;
    });
    assert_eq!(warned(&ended.unwrap()), [""; 0]);
    assert_eq!(world.scripts.runs(), ["at 3 s: block add exited with status 0"]);
}

/// B5: an add that died later, with a guest that never looked: its backend closes as the guest's
/// directory goes, without force, and its script is undone.
#[tokio::test(start_paused = true)]
async fn b5_an_add_that_died_in_its_script_is_resumed_by_anybody() {
    for then_add in [false, true] {
        let world = World::new().await;
        let before = world.dump().await;
        world.scripts.on("add", Line::Hangs);
        let (died, ()) = join!(timeout(Duration::from_secs(1), world.add(disk())), async {
            world.exists(BE).await;
            world.backend_says("2").await;
        });
        died.unwrap_err();
        world.scripts.on("add", Line::Takes(0.0));
        let resumed =
            async { if then_add { world.add(disk()).await } else { world.remove(Force::Never).await } };
        let (resumed, ()) = join!(resumed, async {
            world.is_gone(FE).await;
            world.backend_says("6").await;
            if then_add {
                world.at(2.0).await;
                world.backend_says("2").await;
            }
        });
        resumed.unwrap();
        let runs = world.scripts.runs();
        assert_eq!(runs[0], "at 1 s: block remove exited with status 0", "{runs:?}");
        if !then_add {
            assert_eq!(world.dump().await, before);
        }
    }
}

/// The record of an operation that failed and could not clean up says so: its process may live on, but
/// nobody waits for it.
#[tokio::test(start_paused = true)]
async fn what_is_left_is_nobodys() {
    let world = World::new().await;
    world.add_connected().await;
    world.remove(Force::Never).await.unwrap_err();
    let record = world.read(&format!("{LX}/op")).await;
    assert!(record.starts_with("remove:") && record.contains(" stage=left "), "{record}");
    let listed = xen_aodevice::list(&world.dom0, GUEST, Kind::Vbd).await.unwrap();
    assert_eq!(listed[0].record().unwrap().owner.unwrap().pid, std::process::id());
}

/// A record of another domain's toolstack holds as long as that domain does.
#[tokio::test(start_paused = true)]
async fn an_owner_in_another_domain_lives_with_it() {
    let world = World::new().await;
    world.add_connected().await;
    world.write("/local/domain/7/name", "other").await;
    world
        .write(&format!("{LX}/op"), "remove:1 stage=closing since=0 domid=7 pid=1 start=1 boot=x ns=1")
        .await;
    let (ended, ()) = join!(world.remove(Force::Never), async {
        world.at(5.0).await;
        world.dom0.rm(&path("/local/domain/7")).await.unwrap();
        world.is_told_to_close().await;
        world.backend_says("6").await;
    });
    ended.unwrap();
    assert!((5.0..5.2).contains(&world.clock()), "{}", world.clock());
}

/// B6: a guest that writes its state all the time cannot make a forced removal conflict for ever.
#[tokio::test(start_paused = true)]
async fn b6_a_guest_that_writes_all_the_time_is_removed_by_force() {
    let world = World::new().await;
    let before = world.dump().await;
    world.add_connected().await;
    let storm = storm(world.guest.clone(), FE);
    let (ended, ()) = join!(world.remove(Force::AtOnce), async {
        world.is_told_to_close().await;
        world.backend_says("6").await;
    });
    ended.unwrap();
    storm.await.unwrap();
    assert_eq!(world.dump().await, before);
}

/// B7: the script that is run is that of the device that was claimed, though another one took its
/// place after it was looked at.
#[tokio::test(start_paused = true)]
async fn b7_the_script_is_read_with_the_claim() {
    let world = World::new().await;
    world.add_connected().await;
    world.proxy.conflict(1);
    let (ended, ()) = join!(world.remove(Force::Never), async {
        // Between the look and the claim.
        while world.proxy.commits().len() < 3 {
            tokio::task::yield_now().await;
        }
        world.write(&format!("{LX}/script"), "/etc/xen/scripts/block-new").await;
        world.is_told_to_close().await;
        world.backend_says("6").await;
    });
    ended.unwrap();
    assert_eq!(world.scripts.runs(), ["at 0 s: block-new remove exited with status 0"]);
}

/// B7: a backend that closed after it was ready and before the script is not given one.
#[tokio::test(start_paused = true)]
async fn b7_the_backends_state_is_looked_at_before_the_script() {
    let world = World::new().await;
    world.scripts.take_turns(Duration::from_secs(1));
    let (ended, ()) = join!(world.add(disk()), async {
        world.exists(BE).await;
        world.backend_says("2").await;
        world.at(0.5).await;
        world.backend_says("6").await;
    });
    let failure = ended.unwrap_err();
    assert!(matches!(failure.cause, Cause::Refused { .. }), "{failure}");
    assert_eq!(world.scripts.runs(), [""; 0]);
}

/// B7: with `WaitFor::Connected` a guest that connects late keeps its device until the backend has
/// closed; only then the script undoes its work.
/// B-30.
#[tokio::test(start_paused = true)]
async fn b7_the_backend_closes_before_the_script_undoes() {
    let world = World::new().await;
    let never = CancellationToken::new();
    let (ended, ()) = join!(world.add_with(disk(), WaitFor::Connected, &never), async {
        world.exists(BE).await;
        world.backend_says("2").await;
        world.is_told_to_close().await;
        assert_eq!(world.scripts.runs().len(), 1);
        world.at(13.0).await;
        assert_eq!(world.scripts.runs().len(), 1, "I/O may be under way");
        world.backend_says("6").await;
    });
    ended.unwrap_err();
    assert_eq!(world.scripts.runs()[1], "at 13 s: block remove exited with status 0");
}

/// B8: a NIC with an emulated twin, which `xl` attached, has both of its scripts run.
#[tokio::test(start_paused = true)]
async fn b8_both_scripts_of_an_emulated_interface_are_run() {
    let world = World::new().await;
    let (be, fe) = ("/local/domain/0/backend/vif/1/0", "/local/domain/1/device/vif/0");
    for (key, value) in
        [("frontend", fe), ("backend", be), ("script", "/etc/xen/scripts/vif-bridge"), ("type", "vif_ioemu")]
    {
        world.write(&format!("/libxl/1/device/vif/0/{key}"), value).await;
        world.write(&format!("{be}/{key}"), value).await;
    }
    world.write(&format!("{be}/state"), "6").await;
    let never = CancellationToken::new();
    world.toolstack.remove(GUEST, (Kind::Vif, 0), Force::Never, &never).await.unwrap();
    assert_eq!(
        world.scripts.runs(),
        [
            "at 0 s: vif-bridge offline type_if=vif exited with status 0",
            "at 0 s: vif-bridge remove type_if=tap exited with status 0",
        ]
    );
}
