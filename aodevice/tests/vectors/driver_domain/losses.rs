//! A driver domain that runs no daemon, dies, or is not there.

use super::*;

/// No daemon runs: the attach fails, and says so.
#[tokio::test(start_paused = true)]
async fn nobody_runs_the_script_of_an_attach() {
    let scene = Scene::new().await;
    let failure = scene.add().await.unwrap_err();
    let limit = Duration::from_secs(45);
    let silent = DriverDomainFault::Silent { limit };
    assert!(matches!(&failure.cause, Cause::DriverDomain { be: DD, fault } if *fault == silent), "{failure}");
    assert_eq!((failure.hint(), failure.cause.kind()), (Hint::CheckDriverDomain(DD), FailureKind::TimedOut));
    assert_eq!(failure.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(), [left()]);
    scene.nothing_is_left().await;
}

/// No daemon runs: a detach fails and leaves the device closing; a later one goes on as soon as one runs; by force the
/// nodes go, with a warning.
#[tokio::test(start_paused = true)]
async fn nobody_cleans_up_after_a_detach() {
    for force in [Force::AfterTimeout, Force::AtOnce] {
        let scene = Scene::new().await;
        scene.add_connected().await;
        let failure = scene.remove(Force::Never).await.unwrap_err();
        assert_eq!(
            failure.observations()[0],
            "driver domain 3 closed the device, but did not remove the backend's directory within 50s"
        );
        assert_eq!(failure.hint(), Hint::RemoveAgainOrLeave(DD));
        assert_eq!(scene.world.read(&format!("{BE}/state")).await, "6");
        assert!(scene.world.read(&format!("{LX}/op")).await.contains("stage=left"));
        if force == Force::AtOnce {
            let success = scene.remove(force).await.unwrap();
            assert!(
                matches!(success.warnings[..], [Warning::DriverDomainLeft { be: DD, .. }]),
                "{success:?}"
            );
        } else {
            let _devd = scene.devd();
            assert_eq!(warned(&scene.remove(Force::Never).await.unwrap()), [""; 0]);
        }
        scene.nothing_is_left().await;
    }
}

/// For driver domains without a daemon there is a setting.
#[tokio::test(start_paused = true)]
async fn a_driver_domain_without_a_daemon() {
    let scene = Scene::new().await;
    let (toolstack, never) = (scene.world.toolstack.clone().without_devd(), CancellationToken::new());
    toolstack.add(GUEST, &disk(), WaitFor::Script, &never).await.unwrap();
    assert_eq!(scene.world.read(&format!("{BE}/state")).await, "2");
    toolstack.remove(GUEST, (Kind::Vbd, 51712), Force::Never, &never).await.unwrap();
    assert!(scene.world.clock() < 1.0);
    scene.nothing_is_left().await;
}

/// Vector 29. The driver domain is destroyed while an attach waits for it: it fails at once, and leaves nothing.
/// B-27.
#[tokio::test(start_paused = true)]
async fn v29_b27_the_driver_domain_dies_in_mid_attach() {
    for taken_up in [false, true] {
        let mut scene = Scene::new().await;
        if !taken_up {
            scene.stop_drivers();
        }
        let (added, ()) = join!(scene.add(), async {
            scene.state_is(if taken_up { "2" } else { "1" }).await;
            scene.world.at(4.0).await;
            scene.dies().await;
        });
        let failure = added.unwrap_err();
        let gone = DriverDomainFault::Gone;
        assert!(
            matches!(&failure.cause, Cause::DriverDomain { be: DD, fault } if *fault == gone),
            "{failure}"
        );
        assert_eq!(failure.hint(), Hint::StartDriverDomain(DD));
        assert!(failure.warnings.is_empty(), "{failure:?}");
        assert_eq!(scene.world.clock(), 4.0, "at once");
        scene.nothing_is_left_of_either().await;
    }
}

/// Vector 29. The driver domain is destroyed while a detach waits for it, or was before: the device goes at once.
/// B-27.
#[tokio::test(start_paused = true)]
async fn v29_b27_the_driver_domain_dies_in_mid_detach() {
    for before in [true, false] {
        let scene = Scene::new().await;
        scene.add_connected().await;
        let begun = scene.world.clock();
        if before {
            scene.dies().await;
        }
        let (removed, ()) = join!(scene.remove(Force::Never), async {
            if !before {
                scene.state_is("6").await;
                scene.world.at(begun + 4.0).await;
                scene.dies().await;
            }
        });
        assert_eq!(warned(&removed.unwrap()), [""; 0]);
        assert_eq!(scene.world.clock() - begun, if before { 0.0 } else { 4.0 });
        scene.nothing_is_left_of_either().await;
    }
}

/// A driver domain that crashed and keeps its nodes: the hypervisor's word counts.
/// B-27.
#[tokio::test(start_paused = true)]
async fn b27_a_driver_domain_that_is_gone_but_for_its_nodes() {
    let scene = Scene::new().await;
    scene.add_connected().await;
    // Its home is not its own, and stays until a toolstack removes it.
    scene.world.store.release(DD);
    for state in ["5", "4"] {
        scene.world.write(&format!("{BE}/state"), state).await;
    }
    let begun = scene.world.clock();
    assert_eq!(warned(&scene.remove(Force::Never).await.unwrap()), [""; 0]);
    assert_eq!(scene.world.clock(), begun);
    for node in [FE, "/libxl/1/device/vbd", "/local/domain/3/backend"] {
        assert_eq!(scene.world.read(node).await, "not there", "{node}");
    }
}

/// A domain that is not there, or is gone, gets no backend: the store would give its nodes to nobody.
#[tokio::test(start_paused = true)]
async fn a_backend_domain_that_does_not_run_is_refused() {
    let scene = Scene::new().await;
    scene.world.store.release(DD);
    let before = scene.world.dump().await;
    for (backend, observed) in [
        ("nosuch", "backend=nosuch: the store knows no domain nosuch"),
        ("7", "backend=7: the store knows no domain 7"),
        ("3", "backend=3: domain 3 does not run: it has a home in the store, but the store does not know it"),
    ] {
        let failure = scene.world.add(disk_of(backend)).await.unwrap_err();
        assert_eq!(
            told(&failure),
            ["cannot attach vbd xvda to domain 1", observed, "NameBackendDomain"],
            "{backend}"
        );
    }
    assert_eq!(scene.world.proxy.writes(), 0);
    assert_eq!(scene.world.dump().await, before);
}

/// `xl destroy` removes the nodes of a domain first, and then the domain.
#[tokio::test(start_paused = true)]
async fn a_driver_domain_that_is_being_destroyed_is_told_of_as_such() {
    let scene = Scene::new().await;
    let (ended, ()) = join!(scene.add(), async {
        scene.state_is("2").await;
        scene.world.dom0.rm(&path(HOME)).await.unwrap();
    });
    let failure = ended.unwrap_err();
    let gone = matches!(&failure.cause, Cause::DriverDomain { fault: DriverDomainFault::Gone, .. });
    assert!(gone, "{failure}");
}
