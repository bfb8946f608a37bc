//! USB controllers: what is written for them, and what of them cannot be had.

use tokio_util::sync::CancellationToken;
use xen_aodevice::{Cause, Device, Force, Kind, WaitFor, usb_controllers, usbctrl};

use crate::world::{GUEST, World, added};

/// What `xl usbctrl-attach k type=qusb version=2 ports=3` of Xen 4.17 wrote, as `xenstore-ls -fp` showed it, with `state`
/// as it was created and without what QEMU wrote.
const QUSB: &str = r#"
/local/domain/0/backend/qusb = ""   (n0)
/local/domain/0/backend/qusb/1 = ""   (n0)
/local/domain/0/backend/qusb/1/0 = ""   (n0,r1)
/local/domain/0/backend/qusb/1/0/frontend = "/local/domain/1/device/vusb/0"   (n0,r1)
/local/domain/0/backend/qusb/1/0/frontend-id = "1"   (n0,r1)
/local/domain/0/backend/qusb/1/0/online = "1"   (n0,r1)
/local/domain/0/backend/qusb/1/0/state = "1"   (n0,r1)
/local/domain/0/backend/qusb/1/0/type = "qusb"   (n0,r1)
/local/domain/0/backend/qusb/1/0/usb-ver = "2"   (n0,r1)
/local/domain/0/backend/qusb/1/0/num-ports = "3"   (n0,r1)
/local/domain/0/backend/qusb/1/0/port = ""   (n0,r1)
/local/domain/0/backend/qusb/1/0/port/1 = ""   (n0,r1)
/local/domain/0/backend/qusb/1/0/port/2 = ""   (n0,r1)
/local/domain/0/backend/qusb/1/0/port/3 = ""   (n0,r1)
/local/domain/1/device/vusb = ""   (n0,r1)
/local/domain/1/device/vusb/0 = ""   (n1,r0)
/local/domain/1/device/vusb/0/backend = "/local/domain/0/backend/qusb/1/0"   (n1,r0)
/local/domain/1/device/vusb/0/backend-id = "0"   (n1,r0)
/local/domain/1/device/vusb/0/state = "1"   (n1,r0)
/libxl/1/device/vusb = ""   (n0)
/libxl/1/device/vusb/0 = ""   (n0)
/libxl/1/device/vusb/0/frontend = "/local/domain/1/device/vusb/0"   (n0)
/libxl/1/device/vusb/0/backend = "/local/domain/0/backend/qusb/1/0"   (n0)
/libxl/1/device/vusb/0/frontend-id = "1"   (n0)
/libxl/1/device/vusb/0/online = "1"   (n0)
/libxl/1/device/vusb/0/state = "1"   (n0)
/libxl/1/device/vusb/0/type = "qusb"   (n0)
/libxl/1/device/vusb/0/usb-ver = "2"   (n0)
/libxl/1/device/vusb/0/num-ports = "3"   (n0)
/libxl/1/device/vusb/0/port = ""   (n0)
/libxl/1/device/vusb/0/port/1 = ""   (n0)
/libxl/1/device/vusb/0/port/2 = ""   (n0)
/libxl/1/device/vusb/0/port/3 = ""   (n0)
"#;

fn ctrl(words: &str) -> Device {
    Device::UsbCtrl(usbctrl::parse(&[words]).unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_controller_of_the_device_model() {
    let world = World::new().await;
    let before = world.dump().await;
    let never = CancellationToken::new();
    world.add_with(ctrl("type=qusb,version=2,ports=3"), WaitFor::Tree, &never).await.unwrap();
    assert_eq!(format!("\n{}\n", added(&before, &world.dump().await).join("\n")), QUSB);
    world.add_with(ctrl("ports=31"), WaitFor::Tree, &never).await.unwrap();
    world.write("/local/domain/0/backend/qusb/1/1/port/31", "1-2").await;
    let controllers = usb_controllers(&world.dom0, GUEST).await.unwrap();
    let occupied = |port: &Option<String>| port.is_some();
    let seen =
        controllers.iter().map(|ctrl| (ctrl.devid, ctrl.ports.len(), ctrl.ports.iter().position(occupied)));
    assert_eq!(seen.collect::<Vec<_>>(), [(0, 3, None), (1, 31, Some(30))]);
    for devid in [0, 1] {
        world.toolstack.remove(GUEST, (Kind::Vusb, devid), Force::AtOnce, &never).await.unwrap();
    }
    assert_eq!(world.dump().await, before);
}

/// One of the kernel's usbback, of which `xl` leaves all this behind when there is none.
#[tokio::test(start_paused = true)]
async fn without_usbback_nothing_is_left() {
    let world = World::new().await;
    let before = world.dump().await;
    let failure = world.add(ctrl("type=pv")).await.unwrap_err();
    assert_eq!(
        (failure.cause.code(), failure.hint()),
        ("timed_out", xen_aodevice::Hint::LoadBackend("xen-usbback"))
    );
    assert_eq!(world.dump().await, before);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_had_is_refused_by_its_name() {
    let world = World::new().await;
    let before = world.dump().await;
    for (words, why) in [
        ("type=qusb,version=3", "a paravirtual USB controller has version 1 or 2"),
        ("type=pv,backend=g", "backend=1, of a vusb, is not served yet"),
        (
            "type=devicemodel",
            "a USB controller of type=devicemodel is not supported: it needs the device model's monitor (QMP)",
        ),
        ("", "domain 1 has no device model that runs, and QEMU is to serve the device"),
    ] {
        let failure = world.add(ctrl(words)).await.unwrap_err();
        assert_eq!(failure.cause.to_string(), why, "{words}");
    }
    // An HVM guest's is emulated if nothing else is said.
    world.write("/libxl/1/type", "hvm").await;
    assert!(matches!(world.add(ctrl("")).await.unwrap_err().cause, Cause::NotSupported { .. }));
    world.write("/libxl/1/type", "pv").await;
    assert_eq!(world.dump().await, before);
}
