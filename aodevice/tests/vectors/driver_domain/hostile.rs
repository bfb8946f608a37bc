//! A driver domain that writes what it likes, and all the time.

use super::*;

/// What a driver domain writes is believed of its own device alone, and not shown as it is.
/// B-52.
#[tokio::test(start_paused = true)]
async fn b52_a_driver_domain_writes_what_it_likes() {
    let scene = Scene::new().await;
    scene.add_connected().await;
    for (key, value) in [
        ("frontend", "/local/domain/0/device/vbd/51712"),
        ("frontend-id", "0"),
        ("script", "/bin/sh"),
        ("params", "/etc/shadow"),
        ("hotplug-status", &"x".repeat(1900)),
        ("node", "/dev/sda"),
    ] {
        scene.says(key, value).await;
    }
    let target = scene.world.read(&format!("{LX}/script")).await;
    assert_eq!(target, "/etc/xen/scripts/block");
    // It writes all the time, too.
    let noise = async {
        loop {
            _ = scene.dd.write(&path(format!("{BE}/noise")), "x").await;
            sleep(Duration::from_millis(1)).await;
            if scene.world.read(&format!("{BE}/state")).await == "6" {
                _ = scene.dd.rm(&path(BE)).await;
                break;
            }
        }
    };
    let (removed, ()) = join!(scene.remove(Force::Never), noise);
    removed.unwrap();
    assert_eq!(scene.world.scripts.runs(), [""; 0]);
    scene.nothing_is_left().await;
}

/// A driver domain that writes to its backend's directory all the time makes every transaction conflict that looks there.
/// The device goes all the same: by force, with its domain, and after an attach that failed.
#[tokio::test(start_paused = true)]
async fn a_driver_domain_that_writes_all_the_time_cannot_keep_a_device() {
    for force in [Force::AfterTimeout, Force::AtOnce] {
        let scene = Scene::new().await;
        scene.add_connected().await;
        let storm = storm(scene.dd.clone(), BE);
        let success = scene.remove(force).await.unwrap();
        assert!(warned(&success).contains(&left()), "{success:?}");
        storm.await.unwrap();
        scene.nothing_is_left().await;
    }

    let scene = Scene::new().await;
    scene.add_connected().await;
    let storms = [storm(scene.dd.clone(), BE), storm(scene.world.guest.clone(), FE)];
    let plan = Plan::destroy(&scene.world.toolstack, GUEST).await.unwrap();
    let outcome = plan.run(&scene.world.toolstack, &CancellationToken::new()).finish().await;
    assert!(outcome.is_done(), "{outcome:?}");
    for storm in storms {
        storm.await.unwrap();
    }
    scene.nothing_is_left().await;
}

/// The same from the moment in which it has the device: no script is reported, and the attach ends in its time and is
/// rolled back.
#[tokio::test(start_paused = true)]
async fn a_driver_domain_that_writes_all_the_time_does_not_hold_up_an_attach() {
    for state in ["1", "2"] {
        let scene = Scene::new().await;
        let (added, [storm]) = join!(scene.add(), async {
            scene.state_is(state).await;
            [storm(scene.dd.clone(), BE)]
        });
        let failure = added.unwrap_err();
        assert_eq!(failure.cause.kind(), FailureKind::TimedOut, "{failure}");
        let is_left = failure.warnings.iter().any(|warning| warning.to_string() == left());
        // What nobody there has taken up goes at once.
        assert!(is_left || state == "1", "{failure:?}");
        storm.await.unwrap();
        scene.nothing_is_left().await;
    }
}

/// It serves the device, and writes all the time: that is no reason to take the device away.
#[tokio::test(start_paused = true)]
async fn a_driver_domain_that_writes_all_the_time_and_serves_is_served_by() {
    let scene = Scene::new().await;
    let devd = scene.devd();
    let never = CancellationToken::new();
    let (added, [storm]) = join!(scene.world.add_with(disk(), WaitFor::Connected, &never), async {
        scene.state_is("4").await;
        [storm(scene.dd.clone(), BE)]
    });
    added.unwrap();
    assert_eq!(scene.world.read(&format!("{LX}/op")).await, "not there");
    // What it leaves when it is gone goes before a new device is made in its place.
    drop(devd);
    for gone in [LX, FE] {
        scene.world.dom0.rm(&path(gone)).await.unwrap();
    }
    storm.abort();
    scene.says("state", "6").await;
    let storm = crate::world::storm(scene.dd.clone(), BE);
    let failure = scene.add().await.unwrap_err();
    assert!(!matches!(failure.cause, Cause::Store(_)), "{failure}");
    storm.await.unwrap();
    scene.nothing_is_left().await;
}
