//! What is not ours beside what is: `xl`, which knows nothing of records, a domain that goes, and devices and
//! copies that somebody else left. Findings B1, B3 and B4.

use std::time::Duration;

use tokio::join;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use xen_aodevice::{Cause, Force, Hint, Kind, Removal, WaitFor};

use crate::owners::remove;
use crate::world::{BE, FE, GUEST, LX, Line, World, disk, path, warned};

impl World {
    /// `xl` tears the device down: it knows nothing of records.
    async fn xl_removes(&self) {
        for directory in [FE, LX, BE] {
            _ = self.dom0.rm(&path(directory)).await;
        }
    }

    /// `xl` adds a device of the same id, which the guest connects to.
    async fn xl_adds(&self) {
        for (node, value) in [
            (format!("{LX}/frontend"), FE),
            (format!("{LX}/backend"), BE),
            (format!("{LX}/params"), "/srv/other.img"),
            (format!("{FE}/backend"), BE),
            (format!("{FE}/state"), "4"),
            (format!("{BE}/frontend"), FE),
            (format!("{BE}/params"), "/srv/other.img"),
            (format!("{BE}/node"), "/dev/sim7"),
            (format!("{BE}/state"), "4"),
        ] {
            self.write(&node, value).await;
        }
    }
}

/// B3: the domain goes while the add waits for the backend, or runs its script: what was made is
/// undone, what is left is cleaned, and the report says which it was.
#[tokio::test(start_paused = true)]
async fn b3_the_domain_goes_in_mid_attach() {
    for during_script in [false, true] {
        let world = World::new().await;
        if during_script {
            world.scripts.on("add", Line::Hangs);
        }
        let (ended, ()) = join!(world.add(disk()), async {
            world.exists(BE).await;
            if during_script {
                world.backend_says("2").await;
            }
            world.at(1.0).await;
            if during_script {
                // What the script has made when it is killed.
                world.write(&format!("{BE}/node"), "/dev/sim0").await;
            }
            world.store.release(GUEST);
            for tree in ["/libxl/1", "/local/domain/1"] {
                world.dom0.rm(&path(tree)).await.unwrap();
            }
            if during_script {
                world.is_told_to_close().await;
                world.backend_says("6").await;
            }
        });
        let failure = ended.unwrap_err();
        assert!(matches!(failure.cause, Cause::Gone { domain: true }), "{failure}");
        assert_eq!(failure.hint(), Hint::ListDomains);
        assert_eq!(world.clock(), 1.0, "at once");
        let runs = world.scripts.runs();
        let undone = ["at 0 s: block add was cancelled", "at 1 s: block remove exited with status 0"];
        assert_eq!(runs, if during_script { &undone[..] } else { &[] });
        for node in [BE, "/local/domain/0/backend/vbd", "/libxl/1", "/local/domain/1", "/tool/xendev"] {
            assert_eq!(world.read(node).await, "not there", "{node}");
        }
    }
}

/// B3: a later removal by the id of a domain that is gone cleans what is left of its device.
/// B-39.
#[tokio::test(start_paused = true)]
async fn b3_a_device_of_a_domain_that_is_gone_can_be_removed() {
    let world = World::new().await;
    world.add_connected().await;
    world.store.release(GUEST);
    for tree in ["/libxl/1", "/local/domain/1"] {
        world.dom0.rm(&path(tree)).await.unwrap();
    }
    world.backend_says("6").await;
    world.remove(Force::Never).await.unwrap();
    assert_eq!(world.scripts.runs(), ["at 0 s: block remove exited with status 0"]);
    for node in ["/local/domain/0/backend/vbd", "/libxl/1", "/local/domain/1", "/tool/xendev"] {
        assert_eq!(world.read(node).await, "not there", "{node}");
    }
    let failure = world.remove(Force::Never).await.unwrap_err();
    assert!(matches!(failure.cause, Cause::NoSuchDomain(_)), "{failure}");
}

/// B1 with `xl`: it tears the device down while our script runs, which is killed and undone.
#[tokio::test(start_paused = true)]
async fn b1_xl_tears_down_in_mid_attach() {
    let world = World::new().await;
    let before = world.dump().await;
    world.scripts.on("add", Line::Hangs);
    let (ended, ()) = join!(world.add(disk()), async {
        world.exists(BE).await;
        world.backend_says("2").await;
        world.at(1.0).await;
        world.xl_removes().await;
        // A last word of the script.
        world.write(&format!("{BE}/node"), "/dev/sim0").await;
    });
    let failure = ended.unwrap_err();
    assert_eq!(
        failure.to_string(),
        "cannot attach vbd xvda to domain 1: the device was removed by another toolstack"
    );
    assert_eq!(
        world.scripts.runs(),
        ["at 0 s: block add was cancelled", "at 1 s: block remove in a copy exited with status 0"]
    );
    assert_eq!(world.dump().await, before);
}

/// `xl` removes the device and adds one of the same id while our script runs: its device stays as it
/// is, what our script has made is undone in a copy.
/// B-34.
#[tokio::test(start_paused = true)]
async fn xl_replaces_a_device_in_mid_attach() {
    let world = World::new().await;
    let never = CancellationToken::new();
    let adding = world.add_with(disk(), WaitFor::Connected, &never);
    let (ended, ()) = join!(adding, async {
        world.exists(BE).await;
        world.backend_says("2").await;
        world.at(1.0).await;
        world.dom0.rm(&path(LX)).await.unwrap();
        world.xl_adds().await;
    });
    let failure = ended.unwrap_err();
    assert!(matches!(failure.cause, Cause::Taken), "{failure}");
    assert_eq!(
        world.scripts.runs(),
        ["at 0 s: block add exited with status 0", "at 1 s: block remove in a copy exited with status 0"]
    );
    for (node, value) in [(FE, "4"), (BE, "4")] {
        assert_eq!(world.read(&format!("{node}/state")).await, value);
    }
    assert_eq!(world.read(&format!("{BE}/node")).await, "/dev/sim7");
    assert_eq!(world.read(&format!("{LX}/params")).await, "/srv/other.img");
    assert_eq!(world.read("/tool/xendev/undo").await, "not there");
}

/// A removal whose device `xl` has removed meanwhile is done; one whose device `xl` has replaced leaves
/// the new one alone, and does not say that it is gone.
#[tokio::test(start_paused = true)]
async fn xl_is_faster_than_a_removal() {
    for replaces in [false, true] {
        let world = World::new().await;
        world.add_connected().await;
        let (ended, ()) = join!(world.remove(Force::AfterTimeout), async {
            world.at(1.0).await;
            world.proxy.hold(true);
            world.xl_removes().await;
            if replaces {
                world.xl_adds().await;
            }
            world.proxy.hold(false);
        });
        assert_eq!(world.clock(), 1.0);
        if replaces {
            assert!(matches!(ended.unwrap_err().cause, Cause::Taken));
            for (node, value) in [(FE, "4"), (BE, "4")] {
                assert_eq!(world.read(&format!("{node}/state")).await, value);
            }
            assert_eq!(world.read(&format!("{BE}/node")).await, "/dev/sim7");
        } else {
            assert_eq!(warned(&ended.unwrap()), [""; 0]);
        }
        assert_eq!(world.scripts.runs(), [""; 0], "its own scripts have done it");
    }
}

/// B4: a device that is alive by its backend's state, and that nobody has recorded, is refused; it can
/// be adopted for removal.
#[tokio::test(start_paused = true)]
async fn b4_a_device_that_nobody_recorded_is_not_destroyed() {
    let world = World::new().await;
    let clean = world.dump().await;
    for state in ["2", "3", "4", "5", "7"] {
        world.add_connected().await;
        world.dom0.rm(&path("/libxl/1/device/vbd")).await.unwrap();
        world.backend_says(state).await;
        let before = world.dump().await;
        let failure = world.add(disk()).await.unwrap_err();
        assert!(matches!(failure.cause, Cause::Unrecorded(_)), "{failure}");
        assert_eq!(failure.hint(), Hint::RemoveOrAdopt(Kind::Vbd));
        for force in [Force::Never, Force::AtOnce] {
            let failure = world.remove(force).await.unwrap_err();
            assert!(matches!(failure.cause, Cause::Unrecorded(_)), "{failure}");
        }
        assert_eq!(world.dump().await, before, "state {state}");
        let adopted = remove(&world.toolstack, Removal::from(Force::AtOnce).adopt(true));
        let (adopted, ()) = join!(adopted, async {
            world.is_gone(FE).await;
            world.backend_says("6").await;
        });
        adopted.unwrap();
        assert_eq!(world.dump().await, clean);
    }
}

/// B4: a backend that is not alive and holds what a script made is not deleted without the script.
#[tokio::test(start_paused = true)]
async fn b4_a_stale_backend_is_undone_by_its_script() {
    let world = World::new().await;
    world.add_connected().await;
    world.backend_says("6").await;
    world.dom0.rm(&path("/libxl/1/device/vbd")).await.unwrap();
    let (ended, ()) = join!(world.add(disk()), async {
        world.at(1.0).await;
        world.backend_says("2").await;
    });
    ended.unwrap();
    assert_eq!(
        world.scripts.runs(),
        ["at 0 s: block remove exited with status 0", "at 1 s: block add exited with status 0"]
    );
}

/// What the script made is saved beside LX, where `xl` does not look, as long as the device lives.
#[tokio::test(start_paused = true)]
async fn what_a_script_needs_to_undo_its_work_is_saved() {
    let world = World::new().await;
    world.add_connected().await;
    for (key, value) in
        [("params", "/srv/d.img"), ("node", "/dev/sim0"), ("mode", "w"), ("script", "/etc/xen/scripts/block")]
    {
        assert_eq!(world.saved(key).await, value);
    }
    world.backend_says("6").await;
    world.remove(Force::Never).await.unwrap();
    assert_eq!(world.read("/tool/xendev").await, "not there");
}

/// A copy that is left of a device which `xl` removed is not taken for that of another guest's, or of a
/// later device.
#[tokio::test(start_paused = true)]
async fn a_copy_of_another_device_is_not_believed() {
    let world = World::new().await;
    world.add_connected().await;
    world.xl_removes().await;
    assert_eq!(world.saved("node").await, "/dev/sim0");
    world.xl_adds().await;
    world.dom0.rm(&path(BE)).await.unwrap();
    world.write(&format!("{LX}/script"), "/etc/xen/scripts/block").await;
    let success = world.remove(Force::Never).await.unwrap();
    assert!(warned(&success)[0].contains("it is not recorded"), "{:?}", warned(&success));
    assert_eq!(world.scripts.runs(), [""; 0]);
}

/// Automatic ids look at LX, FE and BE.
#[tokio::test(start_paused = true)]
async fn an_automatic_id_is_free_in_all_three_places() {
    let world = World::new().await;
    world.write("/libxl/1/device/vif/0/backend", "/x").await;
    world.write("/local/domain/1/device/vif/1/state", "6").await;
    world.write("/local/domain/0/backend/vif/1/2/state", "4").await;
    let (ended, ()) = join!(world.add(crate::world::nic()), async {
        world.exists("/local/domain/0/backend/vif/1/3").await;
        world.write("/local/domain/0/backend/vif/1/3/state", "2").await;
    });
    assert_eq!(ended.unwrap().id.devid, 3);
}

/// An add died in its script, and `xl` has put a device with another image in its place: the removal of that
/// forgets nothing of the other one, and the next removal undoes it.
#[tokio::test(start_paused = true)]
async fn a_dead_add_below_a_device_of_xl_is_undone_by_the_next_removal() {
    let world = World::new().await;
    world.scripts.on("add", Line::Hangs);
    let (died, ()) = join!(timeout(Duration::from_secs(1), world.add(disk())), async {
        world.exists(BE).await;
        world.backend_says("2").await;
    });
    died.unwrap_err();
    world.save("node", "/dev/sim0").await;
    world.xl_removes().await;
    world.xl_adds().await;
    world.remove(Force::AtOnce).await.unwrap();
    let runs = world.scripts.runs().len();
    world.remove(Force::Never).await.unwrap();
    assert_eq!(world.scripts.runs()[runs..], ["at 11 s: block remove in a copy exited with status 0"]);
    assert!(!world.dump().await.iter().any(|node| format!("{node:?}").contains("xendev")));
    assert!(matches!(world.remove(Force::Never).await.unwrap_err().cause, Cause::NoSuchDevice));
}
