//! The store, and what it does to a daemon.

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

/// B-40: what fails ends, and holds nothing.
#[tokio::test(start_paused = true)]
async fn b40_what_the_store_refuses_is_tried_again_and_given_up_in_the_end() {
    let world = World::new().await;
    let devd = world.devd().await;
    let proxy = locked(&devd.dial.proxy).clone().unwrap();
    for _ in 0..3 {
        proxy.refuse(Op::WRITE, "libxl/2/devd/vbd/51712", ErrorCode::ENOSPC);
    }
    world.attach_disk().await;
    world.reads(&format!("{BE}/state"), "4").await;
    let refused = devd.events().iter().filter(|event| event.contains("ENOSPC")).count();
    assert_eq!(refused, 3, "{:?}", devd.events());
    for _ in 0..100 {
        proxy.refuse(Op::DIRECTORY, "backend/vif/2/0", ErrorCode::EIO);
    }
    world.attach_nic().await;
    sleep(LONG).await;
    let before = devd.client.stats().requests;
    sleep(LONG).await;
    assert_eq!(devd.client.stats().requests, before, "it does not go on for ever");
    world.detach(BE).await;
}
