//! Many devices, many events, and none.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use xs_client::{Access, ErrorCode, Op, Permissions, Request};

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
    let backends = path("/local/domain/1/backend");
    world.dom0.mkdir(&backends).await.unwrap();
    world.dom0.set_perms(&backends, Permissions::owned_by(DRIVER, Access::None)).await.unwrap();
    let keys = [
        ("frontend-id", "10"),
        ("online", "1"),
        ("script", "/etc/xen/scripts/block"),
        ("hotplug-status", "connected"),
        ("physical-device", "7:0"),
        ("state", "4"),
    ];
    let device = |n| format!("{}/{}", 10 + n / 20, n % 20);
    let write = |(n, (key, value)): (u32, (&str, &'static str))| Request::Write {
        path: path(format!("{backends}/vbd/{}/{key}", device(n))),
        value: value.into(),
    };
    let writes = (0..1000).flat_map(|n| keys.map(|key| write((n, key))));
    world.dom0.all(writes.collect()).await.unwrap();
    let devd = world.devd().await;
    let is_ready = async |devd: &Devd| {
        while locked(&devd.ready).is_none() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    is_ready(&devd).await;
    assert_eq!(*locked(&devd.ready), Some(1000));
    assert!(
        devd.events().iter().all(|event| event.ends_with("taken as it is")),
        "{:?}",
        devd.events().first()
    );
    devd.stop().await;

    let devd = world.devd().await;
    is_ready(&devd).await;
    let asked = devd.client.stats().requests;
    // A list of the guests, and some seven requests for each, beside the reads.
    assert!((8000..8400).contains(&asked), "{asked} requests for 1000 devices");
    assert_eq!((*locked(&devd.ready), world.scripts.runs().len()), (Some(1000), 0));
}

/// One script that hangs, of many devices, holds up no other device.
#[tokio::test(start_paused = true)]
async fn scripts_that_wait_for_their_turn_hold_up_nobody() {
    let world = World::new().await;
    let _devd = world.devd().await;
    // A driver domain may have no more than a thousand nodes.
    for devid in 0..40 {
        world
            .attach("vbd", 768 + devid, &[("params", "/srv/d.img"), ("script", QUEUES), ("type", "phy")])
            .await;
    }
    let begun = Instant::now();
    world.attach_disk().await;
    world.noted(NOTE, "attached").await;
    assert!(begun.elapsed() < Duration::from_secs(1));
}

/// Nor do devices for which the store refuses something.
#[tokio::test(start_paused = true)]
async fn what_the_store_refuses_holds_up_nobody() {
    let world = World::new().await;
    let devd = world.devd().await;
    let proxy = locked(&devd.dial.proxy).clone().unwrap();
    for devid in 0..40 {
        for _ in 0..20 {
            proxy.refuse(Op::DIRECTORY, &format!("backend/vbd/2/{}", 768 + devid), ErrorCode::ENOSPC);
        }
        world.attach_disk_as(768 + devid).await;
    }
    let begun = Instant::now();
    world.attach_disk().await;
    world.noted(NOTE, "attached").await;
    assert!(begun.elapsed() < Duration::from_secs(1));
}
