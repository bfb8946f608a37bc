//! The store goes away, or falls silent, in the middle of an operation: it ends, and says what may
//! be left. A later operation over a new connection cleans up.

use tokio::join;
use tokio_util::sync::CancellationToken;
use xen_aodevice::{Failure, FailureKind, Force, Hint, Kind};
use xs_client::Op;

use crate::world::{BE, GUEST, LX, Line, World, disk};

fn warnings(failure: &Failure) -> Vec<String> {
    failure.warnings.iter().map(ToString::to_string).collect()
}

const GONE: &str = "the connection to the store is gone: the store closed it";

/// Removes `xvda` over a new connection, with a backend that closes.
async fn cleaned_up(world: &World) {
    let (other, never) = (world.another_toolstack().await, CancellationToken::new());
    let (ended, ()) = join!(other.remove(GUEST, (Kind::Vbd, 51712), Force::AtOnce, &never), async {
        // One that had never been taken up is gone at once.
        if world.read(&format!("{BE}/state")).await != "1" {
            world.is_told_to_close().await;
            world.backend_says("6").await;
        }
    });
    ended.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_connection_ends_while_an_add_waits() {
    let world = World::new().await;
    let before = world.dump().await;
    let (ended, ()) = join!(world.add(disk()), async {
        world.at(2.0).await;
        world.proxy.cut_after(0);
        world.backend_says("1").await;
    });
    let failure = ended.unwrap_err();
    assert_eq!(world.clock(), 2.0, "at once");
    assert_eq!(failure.to_string(), format!("cannot attach vbd xvda to domain 1: {GONE}"));
    assert_eq!(warnings(&failure), [format!("closing the device failed: {GONE}")]);
    assert_eq!(failure.hint(), Hint::Store("see whether xenstored still runs, then try again"));
    assert!(
        world.read(&format!("{LX}/op")).await.starts_with("add:"),
        "who looks knows that it is half done"
    );
    cleaned_up(&world).await;
    assert_eq!(world.dump().await, before);
}

#[tokio::test(start_paused = true)]
async fn the_connection_ends_while_a_script_runs() {
    let world = World::new().await;
    let before = world.dump().await;
    world.scripts.on("add", Line::Takes(5.0));
    let (ended, ()) = join!(world.add(disk()), async {
        world.exists(BE).await;
        world.backend_says("2").await;
        world.at(2.0).await;
        world.proxy.cut_after(0);
    });
    let failure = ended.unwrap_err();
    assert!(failure.to_string().contains("the connection to the store is gone"), "{failure}");
    assert!(!failure.warnings.is_empty());
    cleaned_up(&world).await;
    assert_eq!(world.dump().await, before);
}

#[tokio::test(start_paused = true)]
async fn the_connection_ends_while_a_removal_waits() {
    let world = World::new().await;
    let before = world.dump().await;
    world.add_connected().await;
    let (ended, ()) = join!(world.remove(Force::AfterTimeout), async {
        world.at(2.0).await;
        world.proxy.cut_after(0);
        world.backend_says("5").await;
    });
    let failure = ended.unwrap_err();
    assert_eq!(world.clock(), 2.0, "at once");
    assert_eq!(failure.to_string(), format!("cannot detach vbd xvda from domain 1: {GONE}"));
    cleaned_up(&world).await;
    assert_eq!(world.dump().await, before);
}

/// Every step of it has its deadline.
#[tokio::test(start_paused = true)]
async fn the_store_falls_silent() {
    let world = World::new().await;
    let before = world.dump().await;
    let (ended, ()) = join!(world.add(disk()), async {
        world.at(2.0).await;
        world.proxy.silence(true);
    });
    let failure = ended.unwrap_err();
    assert_eq!(failure.cause.kind(), FailureKind::TimedOut, "{failure}");
    assert_eq!(
        warnings(&failure),
        ["closing the device failed: TRANSACTION_START was not answered within 10s"]
    );
    assert_eq!(world.clock(), 24.0);
    cleaned_up(&world).await;
    assert_eq!(world.dump().await, before);

    let begun = world.clock();
    let failure = world.remove(Force::AfterTimeout).await.unwrap_err();
    assert_eq!(failure.cause.kind(), FailureKind::TimedOut, "{failure}");
    assert_eq!(failure.hint(), Hint::Store("see whether xenstored is stopped or overloaded, then try again"));
    assert_eq!(world.clock(), begun + 10.0);
}

/// The store has the tree, but its answer to the commit was lost.
#[tokio::test(start_paused = true)]
async fn a_commit_without_an_answer_is_rolled_back() {
    let world = World::new().await;
    let before = world.dump().await;
    world.proxy.lose_reply(Op::TRANSACTION_END);
    let failure = world.add(disk()).await.unwrap_err();
    assert_eq!(failure.cause.kind(), FailureKind::TimedOut, "{failure}");
    assert_eq!(warnings(&failure), [""; 0]);
    assert_eq!(world.clock(), 10.0);
    assert_eq!(world.dump().await, before);
}

/// It was never known whether the store had the tree, and it had not.
#[tokio::test(start_paused = true)]
async fn a_commit_that_did_not_reach_the_store_leaves_nothing_to_roll_back() {
    let world = World::new().await;
    let before = world.dump().await;
    world.proxy.conflict(1);
    world.proxy.lose_reply(Op::TRANSACTION_END);
    let failure = world.add(disk()).await.unwrap_err();
    assert_eq!(failure.cause.kind(), FailureKind::TimedOut, "{failure}");
    assert_eq!(warnings(&failure), [""; 0]);
    assert_eq!(world.dump().await, before);
}
