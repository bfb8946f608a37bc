//! Several at once: vectors 6, 9 and 26, and operations that get in each other's way.

use std::time::Duration;

use tokio::join;
use xen_aodevice::{Cause, Force, Hint, WaitFor, multi, vif};

use tokio_util::sync::CancellationToken;

use crate::world::{BE, GUEST, World, disk, disk_named, nic, tenths};

/// 6. Commit conflicts 5 times, then succeeds: ok; 6 attempts; delays increasing.
#[tokio::test(start_paused = true)]
async fn five_conflicts() {
    let world = World::new().await;
    world.proxy.conflict(5);
    let (ended, ()) = join!(world.add(disk()), async {
        world.exists(BE).await;
        assert_eq!(world.proxy.commits().len(), 6);
        world.backend_says("2").await;
    });
    ended.unwrap();
    let attempts = &world.proxy.commits()[..6];
    let delays: Vec<Duration> = attempts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(delays.is_sorted() && delays[0] < delays[4], "{delays:?}");
    // A sleep ends with the millisecond.
    let bounds = [1, 2, 4, 8, 16].map(|bound| Duration::from_millis(bound + 1));
    assert!(delays.iter().zip(bounds).all(|(delay, bound)| *delay <= bound), "{delays:?}");
}

/// 6. 64 conflicts: conflict error; store clean.
#[tokio::test(start_paused = true)]
async fn conflicts_without_end() {
    let world = World::new().await;
    let before = world.dump().await;
    world.proxy.conflict(usize::MAX);
    let failure = world.add(disk()).await.unwrap_err();
    assert_eq!(world.proxy.commits().len(), 64);
    assert!(matches!(&failure.cause, Cause::Store(error) if error.is_conflict()), "{failure}");
    assert!(
        failure.to_string().contains("the transaction conflicted with other changes 64 times"),
        "{failure}"
    );
    assert!(
        matches!(failure.hint(), Hint::Store(hint) if hint.starts_with("something keeps writing to the same nodes"))
    );
    assert_eq!(world.dump().await, before);
}

/// The same as a device is told to close: it is left as it was.
#[tokio::test(start_paused = true)]
async fn conflicts_without_end_on_removal() {
    let world = World::new().await;
    world.add_connected().await;
    let before = world.dump().await;
    world.proxy.conflict(usize::MAX);
    let failure = world.remove(Force::AfterTimeout).await.unwrap_err();
    assert!(matches!(&failure.cause, Cause::Store(error) if error.is_conflict()), "{failure}");
    assert_eq!(world.dump().await, before);
}

/// 9. Two concurrent adds of the same vdev: exactly one ok, one exists.
#[tokio::test(start_paused = true)]
async fn two_add_the_same_disk() {
    let world = World::new().await;
    let (other, never) = (world.another_toolstack().await, CancellationToken::new());
    let device = disk();
    let (first, second, ()) =
        join!(world.add(disk()), other.add(GUEST, &device, WaitFor::Script, &never), async {
            world.exists(BE).await;
            world.backend_says("2").await;
        });
    let failure = match (first, second) {
        (Ok(_), Err(failure)) | (Err(failure), Ok(_)) => failure,
        both => panic!("{both:?}"),
    };
    assert!(matches!(failure.cause, Cause::Exists), "{failure}");
    assert_eq!(world.scripts.runs(), ["at 0 s: block add exited with status 0"]);
}

/// 9. Two concurrent nic adds with automatic ids: ids 0 and 1.
/// B-16.
#[tokio::test(start_paused = true)]
async fn two_add_interfaces_with_automatic_ids() {
    let world = World::new().await;
    let (other, never) = (world.another_toolstack().await, CancellationToken::new());
    let device = nic();
    let (first, second, ()) =
        join!(world.add(nic()), other.add(GUEST, &device, WaitFor::Script, &never), async {
            for devid in [0, 1] {
                let backend = format!("/local/domain/0/backend/vif/1/{devid}");
                world.exists(&backend).await;
                world.write(&format!("{backend}/state"), "2").await;
            }
        });
    let mut devids = [first.unwrap().id.devid, second.unwrap().id.devid];
    devids.sort_unstable();
    assert_eq!(devids, [0, 1]);
}

/// The smallest free id is taken, by number and not by order of creation.
#[tokio::test(start_paused = true)]
async fn an_automatic_id_is_the_smallest_that_is_free() {
    let world = World::new().await;
    for devid in [10, 2, 0, 1] {
        world.write(&format!("/libxl/1/device/vif/{devid}/backend"), "/x").await;
    }
    let (ended, ()) = join!(world.add(nic()), async {
        world.exists("/local/domain/0/backend/vif/1/3").await;
        world.write("/local/domain/0/backend/vif/1/3/state", "2").await;
    });
    assert_eq!(ended.unwrap().id.devid, 3);
}

/// Two interfaces of one guest with one address: the second is refused, also if both come at once.
/// B-49.
#[tokio::test(start_paused = true)]
async fn two_add_interfaces_with_one_address() {
    let world = World::new().await;
    let device = || xen_aodevice::Device::Vif(vif::parse(&["mac=00:16:3e:01:02:03"]).unwrap());
    let (other, never) = (world.another_toolstack().await, CancellationToken::new());
    let same = device();
    let (first, second, ()) =
        join!(world.add(device()), other.add(GUEST, &same, WaitFor::Script, &never), async {
            world.exists("/local/domain/0/backend/vif/1/0").await;
            world.write("/local/domain/0/backend/vif/1/0/state", "2").await;
        });
    let failure = match (first, second) {
        (Ok(_), Err(failure)) | (Err(failure), Ok(_)) => failure,
        both => panic!("{both:?}"),
    };
    assert!(
        failure.to_string().ends_with("vif 0 of domain 1 has the mac 00:16:3e:01:02:03 already"),
        "{failure}"
    );
}

/// 26. Three devices, the second fails first: the aggregate is the second; others reported ok.
#[tokio::test(start_paused = true)]
async fn one_of_three_fails() {
    let world = World::new().await;
    let adding = multi::all(["xvda", "xvdb", "xvdc"].map(|name| world.add(disk_named(name))));
    let (outcomes, ()) = join!(adding, async {
        for (seconds, devid, state) in [(1.0, 51728, "6"), (2.0, 51744, "2"), (3.0, 51712, "2")] {
            world.at(seconds).await;
            world.write(&format!("/local/domain/0/backend/vbd/1/{devid}/state"), state).await;
        }
    });
    assert_eq!(world.clock(), 3.0, "a failure stops none of the others");
    assert_eq!(outcomes.first_failure, Some(1));
    let ended: Vec<f64> = outcomes
        .all
        .iter()
        .map(|outcome| match outcome {
            Ok(success) => tenths(success.elapsed),
            Err(failure) => -tenths(failure.elapsed),
        })
        .collect();
    assert_eq!(ended, [3.0, -1.0, 2.0]);
    let failure = outcomes.into_result().unwrap_err();
    assert!(failure.to_string().starts_with("cannot attach vbd xvdb to domain 1: "), "{failure}");
}

/// 26, with two failures: the aggregate is the one that came first, not the one that was given first.
#[tokio::test(start_paused = true)]
async fn two_of_three_fail() {
    let world = World::new().await;
    let adding = multi::all(["xvda", "xvdb", "xvdc"].map(|name| world.add(disk_named(name))));
    let (outcomes, ()) = join!(adding, async {
        for (seconds, devid, state) in [(1.0, 51744, "6"), (2.0, 51712, "6"), (3.0, 51728, "2")] {
            world.at(seconds).await;
            world.write(&format!("/local/domain/0/backend/vbd/1/{devid}/state"), state).await;
        }
    });
    assert_eq!(outcomes.first_failure, Some(2));
    assert_eq!(outcomes.all.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true, false]);
    assert!(outcomes.into_result().unwrap_err().to_string().contains("xvdc"));
    // None at all.
    assert!(multi::all(std::iter::empty::<std::future::Ready<Result<(), ()>>>()).await.into_result().is_ok());
}
