//! Cancelling: vector 27. An add is rolled back, whenever it is cancelled; a removal leaves no trace
//! before the device is told to close, and a device that is closing after it.

use tokio::join;
use tokio_util::sync::CancellationToken;
use xen_aodevice::{Failure, FailureKind, Force, Hint, WaitFor};

use crate::world::{BE, FE, LX, Line, World, disk, tenths, told};

fn assert_aborted(failure: &Failure, tried: &str) {
    assert_eq!(failure.cause.kind(), FailureKind::Aborted, "{failure}");
    assert_eq!(failure.to_string(), format!("{tried}: cancelled"));
    let warnings: Vec<String> = failure.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings, [""; 0]);
}

const ATTACH: &str = "cannot attach vbd xvda to domain 1";
const DETACH: &str = "cannot detach vbd xvda from domain 1";

#[tokio::test(start_paused = true)]
async fn an_add_before_it_begins() {
    let world = World::new().await;
    let (before, cancel) = (world.dump().await, CancellationToken::new());
    cancel.cancel();
    let failure = world.add_with(disk(), WaitFor::Script, &cancel).await.unwrap_err();
    assert_aborted(&failure, ATTACH);
    assert_eq!(failure.hint(), Hint::AddAgain);
    assert_eq!(world.proxy.writes(), 0);
    assert_eq!(world.dump().await, before);
}

/// Between two attempts to write the tree is the last moment to leave no trace.
#[tokio::test(start_paused = true)]
async fn an_add_that_conflicts() {
    let world = World::new().await;
    let (before, cancel) = (world.dump().await, CancellationToken::new());
    world.proxy.conflict(usize::MAX);
    let (ended, ()) = join!(world.add_with(disk(), WaitFor::Script, &cancel), async {
        world.at(2.0).await;
        cancel.cancel();
    });
    assert_aborted(&ended.unwrap_err(), ATTACH);
    assert!((2.0..2.4).contains(&world.clock()), "{}", world.clock());
    assert_eq!(world.dump().await, before);
}

#[tokio::test(start_paused = true)]
async fn an_add_while_it_waits_for_the_backend() {
    let world = World::new().await;
    let (before, cancel) = (world.dump().await, CancellationToken::new());
    let (ended, ()) = join!(world.add_with(disk(), WaitFor::Script, &cancel), async {
        world.at(4.0).await;
        cancel.cancel();
    });
    assert_aborted(&ended.unwrap_err(), ATTACH);
    assert_eq!(world.clock(), 4.0);
    assert_eq!(world.scripts.runs(), [""; 0]);
    assert_eq!(world.dump().await, before);
}

/// The roll-back is complete before the add returns: backend, script, tree. Cancelling again changes
/// nothing.
#[tokio::test(start_paused = true)]
async fn an_add_while_its_script_runs() {
    let world = World::new().await;
    let (before, cancel) = (world.dump().await, CancellationToken::new());
    world.scripts.on("add", Line::Hangs);
    world.scripts.on("remove", Line::Takes(2.0));
    let (ended, ()) = join!(world.add_with(disk(), WaitFor::Script, &cancel), async {
        world.at(1.0).await;
        world.backend_says("2").await;
        world.at(5.0).await;
        cancel.cancel();
        world.is_told_to_close().await;
        assert_eq!(world.clock(), 5.0);
        world.at(6.0).await;
        cancel.cancel();
        world.at(8.0).await;
        world.backend_says("6").await;
    });
    let failure = ended.unwrap_err();
    assert_aborted(&failure, ATTACH);
    assert_eq!(tenths(failure.elapsed), 10.0);
    assert_eq!(
        world.scripts.runs(),
        ["at 1 s: block add was cancelled", "at 8 s: block remove exited with status 0"]
    );
    assert_eq!(world.dump().await, before);
}

#[tokio::test(start_paused = true)]
async fn an_add_while_it_waits_for_the_guest() {
    let world = World::new().await;
    let (before, cancel) = (world.dump().await, CancellationToken::new());
    let (ended, ()) = join!(world.add_with(disk(), WaitFor::Connected, &cancel), async {
        world.at(1.0).await;
        world.backend_says("2").await;
        world.at(3.0).await;
        // The guest is at work already: it keeps its directory until the backend has closed.
        world.guest_says("3").await;
        cancel.cancel();
        world.is_told_to_close().await;
        assert_eq!(world.read(&format!("{FE}/state")).await, "3");
        world.at(4.0).await;
        world.guest_says("6").await;
        world.backend_says("6").await;
    });
    assert_aborted(&ended.unwrap_err(), ATTACH);
    assert_eq!(world.clock(), 4.0);
    assert_eq!(world.dump().await, before);
}

#[tokio::test(start_paused = true)]
async fn a_removal_before_it_begins() {
    let world = World::new().await;
    world.add_connected().await;
    let (before, writes, cancel) = (world.dump().await, world.proxy.writes(), CancellationToken::new());
    cancel.cancel();
    for force in [Force::AfterTimeout, Force::AtOnce, Force::Never] {
        assert_aborted(&world.remove_with(force, &cancel).await.unwrap_err(), DETACH);
    }
    assert_eq!(world.proxy.writes(), writes);
    assert_eq!(world.dump().await, before);
}

/// Left closing, and a later removal goes on from there.
#[tokio::test(start_paused = true)]
async fn a_removal_while_it_waits() {
    let world = World::new().await;
    let before = world.dump().await;
    world.add_connected().await;
    let cancel = CancellationToken::new();
    let (ended, ()) = join!(world.remove_with(Force::AfterTimeout, &cancel), async {
        world.at(3.0).await;
        cancel.cancel();
    });
    let failure = ended.unwrap_err();
    assert_aborted(&failure, DETACH);
    assert_eq!(
        told(&failure)[2..],
        [
            "hotplug-status is connected",
            "backend state 5 (Closing), frontend state 4 (Connected)",
            "after 3.0 s in all",
            "RemoveAgain",
        ]
    );
    assert_eq!(world.read(&format!("{BE}/online")).await, "0");
    assert!(world.read(&format!("{LX}/op")).await.starts_with("remove:"));
    assert_eq!(world.read(&format!("{FE}/state")).await, "4");
    let (ended, ()) = join!(world.remove(Force::Never), async {
        world.at(5.0).await;
        world.guest_says("6").await;
        world.backend_says("6").await;
    });
    ended.unwrap();
    assert_eq!(world.dump().await, before);
}

/// What the script did is not known, so the device stays; a later removal runs the script again.
#[tokio::test(start_paused = true)]
async fn a_removal_while_its_script_runs() {
    let world = World::new().await;
    let before = world.dump().await;
    world.add_connected().await;
    world.scripts.on("remove", Line::Hangs);
    let cancel = CancellationToken::new();
    let (ended, ()) = join!(world.remove_with(Force::AfterTimeout, &cancel), async {
        world.at(1.0).await;
        world.backend_says("6").await;
        world.at(2.0).await;
        cancel.cancel();
    });
    assert_aborted(&ended.unwrap_err(), DETACH);
    assert_eq!(world.read(&format!("{BE}/state")).await, "6");
    world.scripts.on("remove", Line::Takes(1.0));
    world.remove(Force::Never).await.unwrap();
    assert_eq!(
        world.scripts.runs(),
        ["at 1 s: block remove was cancelled", "at 2 s: block remove exited with status 0"]
    );
    assert_eq!(world.dump().await, before);
}

/// Between the guest's time and the forced part: FE is not deleted any more.
#[tokio::test(start_paused = true)]
async fn a_removal_that_conflicts_as_it_gets_forced() {
    let world = World::new().await;
    world.add_connected().await;
    let cancel = CancellationToken::new();
    let (ended, ()) = join!(world.remove_with(Force::AfterTimeout, &cancel), async {
        world.at(5.0).await;
        world.proxy.conflict(usize::MAX);
        world.at(11.0).await;
        cancel.cancel();
    });
    assert_aborted(&ended.unwrap_err(), DETACH);
    // It may take another 2 s to note that the operation ended.
    assert!((11.0..13.4).contains(&world.clock()), "{}", world.clock());
    assert_eq!(world.read(&format!("{FE}/state")).await, "4");
}
