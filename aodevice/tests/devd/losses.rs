//! The store, and what it does to a daemon.

use std::time::Duration;

use tokio::time::sleep;
use xs_client::{ErrorCode, Op};

use super::world::*;

/// Whatever is done while the connection is lost is seen on the next one.
#[tokio::test(start_paused = true)]
async fn a_lost_connection_is_made_again_and_everything_looked_at() {
    let world = World::new().await;
    let devd = world.devd().await;
    world.attach_disk().await;
    world.noted(NOTE, "attached").await;
    for _ in 0..3 {
        let proxy = locked(&devd.dial.proxy).clone().unwrap();
        proxy.cut_after(0);
        // An event is what comes next, and is lost.
        world.attach_nic().await;
        world.reads(&format!("{VIF}/hotplug-status"), "connected").await;
        world.close(VIF).await;
        world.is_gone(VIF).await;
    }
    world.detach(BE).await;
    assert_eq!(world.left().await, [""; 0]);
    assert!(devd.client.stats().reconnects >= 3, "{:?}", devd.client.stats());
}

/// B-40: what fails holds nobody up, is told once, and goes on when the store has room again, of which nobody tells.
#[tokio::test(start_paused = true)]
async fn b40_what_the_store_refuses_is_tried_again_now_and_then() {
    let world = World::new().await;
    let devd = world.devd().await;
    let proxy = locked(&devd.dial.proxy).clone().unwrap();
    for _ in 0..3 {
        proxy.refuse(Op::WRITE, "libxl/2/devd/vbd/51712", ErrorCode::ENOSPC);
    }
    world.attach_disk().await;
    world.reads(&format!("{BE}/state"), "4").await;
    let refused = devd.events().iter().filter(|event| event.contains("ENOSPC")).count();
    assert_eq!(refused, 1, "{:?}", devd.events());
    for _ in 0..20 {
        proxy.refuse(Op::DIRECTORY, "backend/vif/2/0", ErrorCode::ENOSPC);
    }
    world.attach_nic().await;
    // A turn's attempts, and a look after each of these pauses.
    sleep(Duration::from_secs(60)).await;
    let told = devd.events().iter().filter(|event| event.contains("DIRECTORY")).count();
    assert_eq!(told, 1, "{:?}", devd.events());
    let before = devd.client.stats().requests;
    sleep(Duration::from_secs(60)).await;
    assert!(devd.client.stats().requests - before < 40, "{:?}", devd.client.stats());
    // Others are served meanwhile.
    world.detach(BE).await;
    world.reads(&format!("{VIF}/hotplug-status"), "connected").await;
    world.detach(VIF).await;
    assert_eq!(world.left().await, [""; 0]);
}

/// A device for which the store has refused something is like any other when its script runs.
#[tokio::test(start_paused = true)]
async fn b40_what_was_refused_can_be_given_up_as_anything_else() {
    let world = World::new().await;
    let devd = world.devd().await;
    let proxy = locked(&devd.dial.proxy).clone().unwrap();
    for _ in 0..8 {
        proxy.refuse(Op::DIRECTORY, "backend/vbd/2/51712", ErrorCode::ENOSPC);
    }
    world.scripts.on("add", Line::Hangs);
    world.attach_disk().await;
    sleep(Duration::from_secs(5)).await;
    // An event while it is waited for the next attempt.
    world.write(&format!("{BE}/online"), "1").await;
    world.noted(NOTE, "adding").await;
    sleep(Duration::from_secs(2)).await;
    world.detach(BE).await;
    assert_eq!(world.scripts.runs()[0], "51712 add was cancelled");
    assert_eq!(world.left().await, [""; 0]);
}
