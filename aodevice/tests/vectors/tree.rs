//! The tree of a device, byte for byte, with permissions and in order of creation: what `xl` of Xen
//! 4.17 left on a real host, as `xenstore-ls -fp` showed it, with `state` and `hotplug-status` as they
//! were created and without what drivers and scripts wrote.

use tokio::join;
use tokio_util::sync::CancellationToken;
use xen_aodevice::{Device, Force, Kind, WaitFor, vbd, vif};

use crate::world::{World, added};

/// `xl block-attach g format=raw,vdev=xvda,access=rw,target=/tmp/d.img`
const VBD: &str = r#"
/local/domain/0/backend/vbd = ""   (n0)
/local/domain/0/backend/vbd/1 = ""   (n0)
/local/domain/0/backend/vbd/1/51712 = ""   (n0,r1)
/local/domain/0/backend/vbd/1/51712/frontend = "/local/domain/1/device/vbd/51712"   (n0,r1)
/local/domain/0/backend/vbd/1/51712/params = "/tmp/d.img"   (n0,r1)
/local/domain/0/backend/vbd/1/51712/script = "/etc/xen/scripts/block"   (n0,r1)
/local/domain/0/backend/vbd/1/51712/frontend-id = "1"   (n0,r1)
/local/domain/0/backend/vbd/1/51712/online = "1"   (n0,r1)
/local/domain/0/backend/vbd/1/51712/removable = "0"   (n0,r1)
/local/domain/0/backend/vbd/1/51712/bootable = "1"   (n0,r1)
/local/domain/0/backend/vbd/1/51712/state = "1"   (n0,r1)
/local/domain/0/backend/vbd/1/51712/dev = "xvda"   (n0,r1)
/local/domain/0/backend/vbd/1/51712/type = "phy"   (n0,r1)
/local/domain/0/backend/vbd/1/51712/mode = "w"   (n0,r1)
/local/domain/0/backend/vbd/1/51712/device-type = "disk"   (n0,r1)
/local/domain/0/backend/vbd/1/51712/discard-enable = "1"   (n0,r1)
/local/domain/0/backend/vbd/1/51712/specification = "xen"   (n0,r1)
/local/domain/1/device/vbd = ""   (n0,r1)
/local/domain/1/device/vbd/51712 = ""   (n1,r0)
/local/domain/1/device/vbd/51712/backend = "/local/domain/0/backend/vbd/1/51712"   (n1,r0)
/local/domain/1/device/vbd/51712/backend-id = "0"   (n1,r0)
/local/domain/1/device/vbd/51712/state = "1"   (n1,r0)
/local/domain/1/device/vbd/51712/virtual-device = "51712"   (n1,r0)
/local/domain/1/device/vbd/51712/device-type = "disk"   (n1,r0)
/local/domain/1/device/vbd/51712/trusted = "1"   (n1,r0)
/local/domain/1/device/vbd/51712/protocol = "x86_64-abi"   (n1,r0)
/libxl/1/device/vbd = ""   (n0)
/libxl/1/device/vbd/51712 = ""   (n0)
/libxl/1/device/vbd/51712/frontend = "/local/domain/1/device/vbd/51712"   (n0)
/libxl/1/device/vbd/51712/backend = "/local/domain/0/backend/vbd/1/51712"   (n0)
/libxl/1/device/vbd/51712/params = "/tmp/d.img"   (n0)
/libxl/1/device/vbd/51712/script = "/etc/xen/scripts/block"   (n0)
/libxl/1/device/vbd/51712/frontend-id = "1"   (n0)
/libxl/1/device/vbd/51712/online = "1"   (n0)
/libxl/1/device/vbd/51712/removable = "0"   (n0)
/libxl/1/device/vbd/51712/bootable = "1"   (n0)
/libxl/1/device/vbd/51712/state = "1"   (n0)
/libxl/1/device/vbd/51712/dev = "xvda"   (n0)
/libxl/1/device/vbd/51712/type = "phy"   (n0)
/libxl/1/device/vbd/51712/mode = "w"   (n0)
/libxl/1/device/vbd/51712/device-type = "disk"   (n0)
/libxl/1/device/vbd/51712/discard-enable = "1"   (n0)
/libxl/1/device/vbd/51712/specification = "xen"   (n0)
"#;

/// `xl network-attach g bridge=xenbr0 script=vif-bridge`
const VIF: &str = r#"
/local/domain/0/backend/vif = ""   (n0)
/local/domain/0/backend/vif/1 = ""   (n0)
/local/domain/0/backend/vif/1/0 = ""   (n0,r1)
/local/domain/0/backend/vif/1/0/frontend = "/local/domain/1/device/vif/0"   (n0,r1)
/local/domain/0/backend/vif/1/0/frontend-id = "1"   (n0,r1)
/local/domain/0/backend/vif/1/0/online = "1"   (n0,r1)
/local/domain/0/backend/vif/1/0/state = "1"   (n0,r1)
/local/domain/0/backend/vif/1/0/script = "/etc/xen/scripts/vif-bridge"   (n0,r1)
/local/domain/0/backend/vif/1/0/mac = "00:16:3e:46:36:49"   (n0,r1)
/local/domain/0/backend/vif/1/0/bridge = "xenbr0"   (n0,r1)
/local/domain/0/backend/vif/1/0/handle = "0"   (n0,r1)
/local/domain/0/backend/vif/1/0/type = "vif"   (n0,r1)
/local/domain/0/backend/vif/1/0/hotplug-status = ""   (n0,r1)
/local/domain/1/device/vif = ""   (n0,r1)
/local/domain/1/device/vif/0 = ""   (n1,r0)
/local/domain/1/device/vif/0/backend = "/local/domain/0/backend/vif/1/0"   (n1,r0)
/local/domain/1/device/vif/0/backend-id = "0"   (n1,r0)
/local/domain/1/device/vif/0/state = "1"   (n1,r0)
/local/domain/1/device/vif/0/handle = "0"   (n1,r0)
/local/domain/1/device/vif/0/mac = "00:16:3e:46:36:49"   (n1,r0)
/local/domain/1/device/vif/0/trusted = "1"   (n1,r0)
/local/domain/1/device/vif/0/mtu = "1500"   (n0,r1)
/libxl/1/device/vif = ""   (n0)
/libxl/1/device/vif/0 = ""   (n0)
/libxl/1/device/vif/0/frontend = "/local/domain/1/device/vif/0"   (n0)
/libxl/1/device/vif/0/backend = "/local/domain/0/backend/vif/1/0"   (n0)
/libxl/1/device/vif/0/frontend-id = "1"   (n0)
/libxl/1/device/vif/0/online = "1"   (n0)
/libxl/1/device/vif/0/state = "1"   (n0)
/libxl/1/device/vif/0/script = "/etc/xen/scripts/vif-bridge"   (n0)
/libxl/1/device/vif/0/mac = "00:16:3e:46:36:49"   (n0)
/libxl/1/device/vif/0/bridge = "xenbr0"   (n0)
/libxl/1/device/vif/0/handle = "0"   (n0)
/libxl/1/device/vif/0/type = "vif"   (n0)
/libxl/1/device/vif/0/hotplug-status = ""   (n0)
"#;

/// What an add writes before anybody reacts, without its operation record, which must come last.
pub(crate) async fn written(world: &World, device: Device) -> String {
    let before = world.dump().await;
    let (_, mut lines) = join!(world.add(device), async {
        world.at(world.clock() + 1.0).await;
        added(&before, &world.dump().await)
    });
    let record = lines.pop().unwrap();
    assert!(record.starts_with("/libxl/1/device/") && record.contains("/op = \"add:"), "{record}");
    assert!(lines.iter().all(|line| !line.contains("/op = ")));
    assert_eq!(world.dump().await, before, "all of it is gone after the time-out");
    format!("\n{}\n", lines.join("\n"))
}

// The key `protocol` names the ABI of the machine that this runs on.
#[cfg(target_arch = "x86_64")]
#[tokio::test(start_paused = true)]
async fn a_vbd() {
    let arguments = ["format=raw,vdev=xvda,access=rw,script=block,target=/tmp/d.img"];
    let device = Device::Vbd(vbd::parse(&arguments).unwrap());
    assert_eq!(written(&World::new().await, device).await, VBD);
}

#[tokio::test(start_paused = true)]
async fn a_vif() {
    let arguments = ["bridge=xenbr0", "script=vif-bridge", "mac=00:16:3e:46:36:49"];
    let device = Device::Vif(vif::parse(&arguments).unwrap());
    assert_eq!(written(&World::new().await, device).await, VIF);
}

/// For whoever creates the domain: QEMU is to serve it, also in a PV guest.
#[tokio::test(start_paused = true)]
async fn a_drive_without_a_medium() {
    for arguments in [",,xvdc:cdrom", "format=empty,vdev=xvdc,access=ro,devtype=cdrom"] {
        let world = World::new().await;
        let before = world.dump().await;
        let drive = Device::Vbd(vbd::parse(&[arguments]).unwrap());
        world.add_with(drive, WaitFor::Tree, &CancellationToken::new()).await.unwrap();
        let tree = added(&before, &world.dump().await).join("\n");
        let keys = keys_of(&tree, "/local/domain/0/backend/qdisk/1/51744/");
        assert_eq!(
            keys[1..],
            [
                "params=aio:",
                "frontend-id=1",
                "online=1",
                "removable=1",
                "bootable=1",
                "state=1",
                "dev=xvdc",
                "type=qdisk",
                "mode=r",
                "device-type=cdrom",
                "discard-enable=0",
                "specification=xen",
            ]
        );
    }
}

/// Every optional key, at its place.
#[tokio::test(start_paused = true)]
async fn optional_keys() {
    let world = World::new().await;
    let arguments = ["/i.iso,raw,hdc:cdrom,ro,direct-io-safe,no-discard,untrusted,script=block-x"];
    let tree = written(&world, Device::Vbd(vbd::parse(&arguments).unwrap())).await;
    let keys = keys_of(&tree, "/libxl/1/device/vbd/5632/");
    assert_eq!(
        keys[2..],
        [
            "params=/i.iso",
            "script=/etc/xen/scripts/block-x",
            "frontend-id=1",
            "online=1",
            "removable=1",
            "bootable=1",
            "state=1",
            "dev=hdc",
            "type=phy",
            "mode=r",
            "device-type=cdrom",
            "direct-io-safe=1",
            "discard-enable=0",
            "specification=xen",
        ]
    );
    assert!(tree.contains("/vbd/5632/trusted = \"0\""), "{tree}");

    let arguments = [
        "mac=00:16:3e:46:36:49",
        "script=/opt/vif-x",
        "vifname=web0",
        "ip=10.0.0.1 10.0.0.2",
        "gatewaydev=eth0",
        "rate=10Mb/s",
        "mtu=9000",
        "vlan=7",
        "bridge=br7",
        "devid=3",
    ];
    let tree = written(&world, Device::Vif(vif::parse(&arguments).unwrap())).await;
    let keys = keys_of(&tree, "/libxl/1/device/vif/3/");
    assert_eq!(
        keys[5..],
        [
            "script=/opt/vif-x",
            "vifname=web0",
            "mac=00:16:3e:46:36:49",
            "ip=10.0.0.1 10.0.0.2",
            "gatewaydev=eth0",
            "rate=62500,50000",
            "mtu=9000",
            "vlan=7",
            "bridge=br7",
            "handle=3",
            "type=vif",
            "hotplug-status=",
        ]
    );
    assert!(tree.contains("/device/vif/3/mtu = \"9000\"   (n0,r1)"), "{tree}");
}

/// The keys below a directory as `key=value`.
fn keys_of(tree: &str, directory: &str) -> Vec<String> {
    let lines = tree.lines().filter_map(|line| line.strip_prefix(directory));
    lines.map(|line| line.replace(" = \"", "=").split('"').next().unwrap().to_owned()).collect()
}

/// After an add the record is gone and nothing else has changed but what peers and scripts wrote;
/// after a removal everything is.
/// B-13.
#[tokio::test(start_paused = true)]
async fn nothing_is_left() {
    let world = World::new().await;
    let before = world.dump().await;
    world.add_connected().await;
    let tree = added(&before, &world.dump().await);
    assert!(tree.iter().all(|line| !line.contains("/op = ")), "{tree:#?}");
    world.remove(Force::AtOnce).await.unwrap();
    assert_eq!(world.dump().await, before);
    assert!(xen_aodevice::list(&world.dom0, crate::world::GUEST, Kind::Vbd).await.unwrap().is_empty());
}
