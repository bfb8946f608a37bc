//! Many devices, many events, and none.

use std::time::Duration;

use tokio::time::sleep;
use xs_client::Request;

use super::world::*;

#[tokio::test(start_paused = true)]
async fn an_idle_daemon_asks_for_nothing() {
    let world = World::new().await;
    let devd = world.devd().await;
    world.attach_disk().await;
    world.noted(NOTE, "attached").await;
    world.reads(&format!("{BE}/state"), "4").await;
    sleep(Duration::from_secs(1)).await;
    let before = devd.client.stats().requests;
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(devd.client.stats().requests, before);
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_events_costs_few_looks() {
    let world = World::new().await;
    let devd = world.devd().await;
    world.attach_disk().await;
    world.noted(NOTE, "attached").await;
    world.reads(&format!("{BE}/state"), "4").await;
    sleep(Duration::from_secs(1)).await;
    let before = devd.client.stats().requests;
    let write = |_| Request::Write { path: path(format!("{BE}/state")), value: "4".into() };
    world.dom0.all((0..1000).map(write).collect()).await.unwrap();
    let others = |n| Request::Write { path: path(format!("{BE}/feature-{n}")), value: "1".into() };
    world.dom0.all((0..1000).map(others).collect()).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    let asked = devd.client.stats().requests - before;
    // A thousand looks are eight thousand requests.
    assert!(asked < 2000, "{asked} requests for 2000 events");
}

/// No more than the bound are worked on at a time, and all have their turns.
#[tokio::test(start_paused = true)]
async fn a_bounded_number_of_devices_is_worked_on() {
    let world = World::new().await;
    let mut settings = world.settings();
    settings.at_once = 4;
    world.scripts.on("add", Line::Takes(5.0));
    let devd = world.devd_with(settings).await;
    for devid in 0..20 {
        world.attach_disk_as(51712 + 16 * devid).await;
    }
    for devid in 0..20 {
        world.reads(&format!("/local/domain/1/backend/vbd/2/{}/state", 51712 + 16 * devid), "4").await;
    }
    assert_eq!(world.scripts.most_at_once(), 4);
    devd.stop().await;
}

/// What a daemon costs that comes to a thousand devices which another has noted: one pass, of eight reads a device and a
/// list for each directory.
#[tokio::test]
async fn a_thousand_devices_are_adopted_in_one_pass() {
    let world = World::without_drivers().await;
    // Each backend has some twenty nodes, which are the driver domain's.
    for quota in ["nodes", "memory", "soft-memory"] {
        world.dom0.set_quota(None, quota, 0).await.unwrap();
    }
    for devid in 0..1000 {
        world.attach_disk_as(devid).await;
    }
    let keys = [("state", "4"), ("hotplug-status", "connected"), ("physical-device", "7:0")];
    let writes = (0..1000).flat_map(|devid| {
        keys.map(|(key, value)| Request::Write {
            path: path(format!("/local/domain/1/backend/vbd/2/{devid}/{key}")),
            value: value.into(),
        })
    });
    world.dom0.all(writes.collect()).await.unwrap();
    let devd = world.devd().await;
    let is_ready = async |devd: &Devd| {
        while locked(&devd.ready).is_none() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    is_ready(&devd).await;
    assert_eq!(*locked(&devd.ready), Some(1000));
    devd.stop().await;

    let devd = world.devd().await;
    is_ready(&devd).await;
    let asked = devd.client.stats().requests;
    assert!(
        (8000..8100).contains(&asked),
        "{asked} requests for 1000 devices: {:?}",
        &devd.events()[..devd.events().len().min(5)]
    );
    assert_eq!((*locked(&devd.ready), world.scripts.runs().len()), (Some(1000), 0));
}
