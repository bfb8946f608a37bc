//! An undo that fails, and one that cannot even begin.

use std::time::Duration;

use tokio::time::sleep;

use super::world::*;

const NOT_UNDONE: &str = "not undone: what its script made may be left, and is to be removed by hand";

fn has(devd: &Devd, what: &str) -> bool {
    devd.events().iter().any(|event| event.contains(what))
}

#[tokio::test(start_paused = true)]
async fn an_undo_that_has_failed_is_not_called_done() {
    let world = World::new().await;
    let devd = world.devd().await;
    world.attach_disk().await;
    world.noted(NOTE, "attached").await;
    world.scripts.on("remove", Line::Says(&[], 1));
    world.dom0.rm(&path(BE)).await.unwrap();
    world.is_gone(NOTE).await;
    assert!(has(&devd, NOT_UNDONE) && !has(&devd, ": undone"), "{:?}", devd.events());
}

/// The toolstack's removal does not wait for it, and the next daemon undoes what this one could not.
#[tokio::test(start_paused = true)]
async fn an_undo_that_could_not_begin_stays_noted_and_a_later_daemon_does_it() {
    for vanishes in [true, false] {
        let world = World::new().await;
        let devd = world.devd().await;
        world.attach_disk().await;
        world.noted(NOTE, "attached").await;
        world.scripts.on("remove", Line::IsMissing);
        if vanishes {
            world.dom0.rm(&path("/local/domain/1/backend")).await.unwrap();
        } else {
            world.detach(BE).await;
        }
        sleep(LONG).await;
        world.noted(NOTE, "postponed").await;
        assert_eq!(world.read(BE).await, "not there");
        let tries = world.scripts.runs().len() - 1;
        assert!((2..10).contains(&tries), "not for ever: {:?}", world.scripts.runs());
        assert!(has(&devd, "not undone: it stays noted"), "{:?}", devd.events());
        assert!(!has(&devd, ": undone") && !has(&devd, ": removed"), "{:?}", devd.events());
        let served = xen_aodevice::devd::served(&devd.client).await.unwrap();
        assert!(served[0].error.as_ref().is_some_and(|error| error.contains("not undone")), "{served:?}");
        devd.stop().await;

        world.scripts.on("remove", Line::Takes(0.0));
        let devd = world.devd().await;
        world.is_gone(NOTE).await;
        sleep(Duration::from_secs(1)).await;
        assert!(has(&devd, ": undone"), "{:?}", devd.events());
        assert_eq!((world.left().await, locked(&world.scripts.held).clone()), (vec![], vec![]));
    }
}

/// A script that was killed may have made what it has not told of, whatever its image is: only it knows how that goes.
#[tokio::test(start_paused = true)]
async fn the_work_of_a_script_that_was_killed_before_it_told_of_anything_is_undone() {
    let keys = [("params", "rbd:pool/image"), ("script", "/etc/xen/scripts/block-rbd"), ("type", "phy")];
    for vanishes in [true, false] {
        let world = World::new().await;
        let first = world.devd().await;
        world.scripts.on("add", Line::Hangs);
        world.attach("vbd", 51712, &keys).await;
        world.noted(NOTE, "adding").await;
        sleep(Duration::from_secs(1)).await;
        if vanishes {
            world.dom0.rm(&path("/local/domain/1/backend")).await.unwrap();
            world.is_gone(NOTE).await;
            assert_eq!(
                world.scripts.runs(),
                ["51712 add was cancelled", "51712 remove in a copy exited with status 0"]
            );
            assert!(has(&first, ": undone"), "{:?}", first.events());
        } else {
            first.kill().await;
            world.scripts.on("add", Line::Takes(0.0));
            let _second = world.devd().await;
            world.noted(NOTE, "attached").await;
            assert_eq!(
                world.scripts.runs(),
                [
                    "51712 add was killed",
                    "51712 remove in a copy exited with status 0",
                    "51712 add exited with status 0"
                ]
            );
        }
    }
}

/// A device is not kept waiting by the remains of another that had its id.
#[tokio::test(start_paused = true)]
async fn a_device_is_set_up_though_the_one_before_could_not_be_undone() {
    let world = World::new().await;
    let devd = world.devd().await;
    world.attach_disk().await;
    world.noted(NOTE, "attached").await;
    world.scripts.on("remove", Line::IsMissing);
    world.detach(BE).await;
    world.noted(NOTE, "postponed").await;
    world.attach_disk().await;
    world.reads(&format!("{BE}/state"), "4").await;
    world.noted(NOTE, "attached").await;
    assert!(has(&devd, NOT_UNDONE), "{:?}", devd.events());
}

/// Nothing was begun, so nothing is to be undone: a driver domain does not fill up with notes of what never was.
#[tokio::test(start_paused = true)]
async fn an_add_whose_script_cannot_be_started_leaves_nothing() {
    for vanishes in [true, false] {
        let world = World::new().await;
        let devd = world.devd().await;
        world.scripts.on("add", Line::IsMissing);
        world.scripts.on("remove", Line::IsMissing);
        world.attach_disk().await;
        world.reads(&format!("{BE}/hotplug-status"), "error").await;
        if vanishes {
            world.dom0.rm(&path("/local/domain/1/backend")).await.unwrap();
            world.is_gone(NOTE).await;
        } else {
            world.detach(BE).await;
        }
        assert_eq!(world.left().await, [""; 0]);
        assert_eq!(world.scripts.runs().len(), 1, "{:?}", world.scripts.runs());
        assert!(!has(&devd, "not undone"), "{:?}", devd.events());
    }
}

/// What the script would have needed for it is not left beside the note.
#[tokio::test(start_paused = true)]
async fn an_undo_that_could_not_begin_leaves_its_note_alone() {
    let world = World::new().await;
    let _devd = world.devd().await;
    world.attach_disk().await;
    world.noted(NOTE, "attached").await;
    world.scripts.on("remove", Line::IsMissing);
    world.dom0.rm(&path("/local/domain/1/backend")).await.unwrap();
    sleep(LONG).await;
    world.noted(NOTE, "postponed").await;
    assert_eq!(world.dom0.directory(&path(NOTE)).await.unwrap(), [""; 0]);
}
