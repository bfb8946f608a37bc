//! Disks of blktap, and virtio disks. Xen 4.17 of Debian serves neither: their keys are those of libxl's later versions,
//! those of blktap as `xl` of 4.20 was seen to write them (`cargo lab xen --debian 13 later`).

use tokio::join;
use tokio_util::sync::CancellationToken;
use xen_aodevice::{BackendKind, Cause, Device, Force, Kind, WaitFor, list, vbd};

use crate::world::{GUEST, Line, World, path};

const TAP: &str = "/local/domain/0/backend/vbd3/1/51712";
const VIRTIO: &str = "/local/domain/0/backend/virtio_disk/1/51712";

async fn keys(world: &World, directory: &str) -> Vec<String> {
    let mut keys = Vec::new();
    for key in world.dom0.directory(&path(directory)).await.unwrap() {
        keys.push(format!("{key}={}", world.read(&format!("{directory}/{key}")).await));
    }
    keys
}

fn tap() -> Device {
    Device::Vbd(vbd::parse(&["/proc/self/exe,vhd,xvda,w,backendtype=tap"]).unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_disk_of_blktap() {
    let world = World::new().await;
    let before = world.dump().await;
    world
        .scripts
        .on("add", Line::Says(&[("physical-device-path", "/run/tap/1"), ("hotplug-status", "connected")], 0));
    let (added, ()) = join!(world.add(tap()), async {
        world.exists(TAP).await;
        let keys = keys(&world, TAP).await;
        assert_eq!(
            keys[1..],
            [
                "params=vhd:/proc/self/exe",
                "script=/etc/xen/scripts/block-tap",
                "frontend-id=1",
                "online=1",
                "removable=0",
                "bootable=1",
                "state=1",
                "dev=xvda",
                "type=vbd3",
                "mode=w",
                "device-type=disk",
                "discard-enable=1",
                "specification=xen",
            ]
        );
        world.write(&format!("{TAP}/state"), "2").await;
    });
    let added = added.unwrap();
    assert_eq!((added.id.kind, added.id.be_kind, added.warnings.len()), (Kind::Vbd, BackendKind::Vbd3, 0));
    assert_eq!(world.scripts.runs(), ["at 0 s: block-tap add exited with status 0"]);
    let removed = world.remove(Force::AtOnce).await.unwrap();
    assert_eq!(removed.id.be_kind, BackendKind::Vbd3);
    assert_eq!(world.dump().await, before);
}

/// Its daemon is named, and not a module of the kernel.
#[tokio::test(start_paused = true)]
async fn without_tapback_nothing_is_left() {
    let world = World::new().await;
    let before = world.dump().await;
    let failure = world.add(tap()).await.unwrap_err();
    assert_eq!(
        (failure.cause.code(), failure.hint()),
        ("timed_out", xen_aodevice::Hint::CheckDaemon("tapback"))
    );
    assert_eq!(world.dump().await, before);
}

#[tokio::test(start_paused = true)]
async fn a_virtio_disk_is_made_with_its_domain() {
    let world = World::new().await;
    let before = world.dump().await;
    let mut disk = vbd::parse(&["/proc/self/exe,raw,xvda,w,specification=virtio"]).unwrap();
    let refused = world.add(Device::Vbd(disk.clone())).await.unwrap_err();
    assert_eq!(
        refused.cause.to_string(),
        "specification=virtio is not supported: it needs the address and the interrupt that the domain was created \
         with for it"
    );
    disk.mmio = Some(vbd::Mmio { base: 0x200_0000, irq: 33 });
    let refused = world.add(Device::Vbd(disk.clone())).await.unwrap_err();
    assert!(matches!(refused.cause, Cause::NotSupported { .. }), "{refused}");
    assert_eq!(world.dump().await, before);

    let never = CancellationToken::new();
    let (added, ()) = join!(world.add_with(Device::Vbd(disk), WaitFor::Tree, &never), async {
        world.exists(VIRTIO).await;
        world.write(&format!("{VIRTIO}/state"), "2").await;
    });
    assert_eq!(added.unwrap().id.kind, Kind::VirtioDisk);
    let keys = keys(&world, VIRTIO).await;
    assert_eq!(keys[0], "frontend=/local/domain/1/device/virtio_disk/51712");
    assert_eq!(keys[1], "params=/proc/self/exe");
    assert!(!keys.iter().any(|key| key.starts_with("script=")), "{keys:?}");
    let last = ["specification=virtio", "transport=mmio", "base=33554432", "irq=33", "grant_usage=0"];
    assert_eq!(keys[keys.len() - 5..], last);
    assert_eq!(list(&world.dom0, GUEST, Kind::VirtioDisk).await.unwrap()[0].text("vdev"), Some("xvda"));
    world.toolstack.remove(GUEST, (Kind::VirtioDisk, 51712), Force::AtOnce, &never).await.unwrap();
    assert_eq!(world.dump().await, before);
}
