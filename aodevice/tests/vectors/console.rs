//! Channels: what is written for them before the device model runs, and that the first console is left alone.

use tokio_util::sync::CancellationToken;
use xen_aodevice::{Cause, Device, Force, Kind, Plan, WaitFor, console, list};
use xs_client::Path;

use crate::world::{GUEST, World, added};

/// What `xl create` of Xen 4.17 wrote for `channel=['connection=socket,path=/tmp/chan.sock,name=org.x.sock']`, as
/// `xenstore-ls -fp` showed it, with the number of the channel that it should have.
const SOCKET: &str = r#"
/local/domain/0/backend/console = ""   (n0)
/local/domain/0/backend/console/1 = ""   (n0)
/local/domain/0/backend/console/1/1 = ""   (n0,r1)
/local/domain/0/backend/console/1/1/frontend = "/local/domain/1/device/console/1"   (n0,r1)
/local/domain/0/backend/console/1/1/frontend-id = "1"   (n0,r1)
/local/domain/0/backend/console/1/1/online = "1"   (n0,r1)
/local/domain/0/backend/console/1/1/state = "1"   (n0,r1)
/local/domain/0/backend/console/1/1/protocol = "vt100"   (n0,r1)
/local/domain/0/backend/console/1/1/name = "org.x.sock"   (n0,r1)
/local/domain/0/backend/console/1/1/connection = "socket"   (n0,r1)
/local/domain/0/backend/console/1/1/path = "/tmp/chan.sock"   (n0,r1)
/local/domain/1/device/console = ""   (n0,r1)
/local/domain/1/device/console/1 = ""   (n1,r0)
/local/domain/1/device/console/1/backend = "/local/domain/0/backend/console/1/1"   (n1,r0)
/local/domain/1/device/console/1/backend-id = "0"   (n1,r0)
/local/domain/1/device/console/1/state = "1"   (n1,r0)
/local/domain/1/device/console/1/protocol = "vt100"   (n1,r0)
/local/domain/1/device/console/1/name = "org.x.sock"   (n0,r1)
/local/domain/1/device/console/1/limit = "1048576"   (n0,r1)
/local/domain/1/device/console/1/type = "ioemu"   (n0,r1)
/local/domain/1/device/console/1/output = "chardev:libxl-channel0"   (n0,r1)
/local/domain/1/device/console/1/tty = ""   (n0,r1)
/libxl/1/device/console = ""   (n0)
/libxl/1/device/console/1 = ""   (n0)
/libxl/1/device/console/1/frontend = "/local/domain/1/device/console/1"   (n0)
/libxl/1/device/console/1/backend = "/local/domain/0/backend/console/1/1"   (n0)
/libxl/1/device/console/1/frontend-id = "1"   (n0)
/libxl/1/device/console/1/online = "1"   (n0)
/libxl/1/device/console/1/state = "1"   (n0)
/libxl/1/device/console/1/protocol = "vt100"   (n0)
/libxl/1/device/console/1/name = "org.x.sock"   (n0)
/libxl/1/device/console/1/connection = "socket"   (n0)
/libxl/1/device/console/1/path = "/tmp/chan.sock"   (n0)
"#;

fn channel(words: &str) -> Device {
    Device::Channel(console::parse(&[words]).unwrap())
}

/// B-46: what is wrong with one is told.
#[tokio::test(start_paused = true)]
async fn a_channel_is_written_before_the_device_model_runs() {
    let world = World::new().await;
    let before = world.dump().await;
    let socket = channel("connection=socket,path=/tmp/chan.sock,name=org.x.sock");
    let refused = world.add(socket.clone()).await.unwrap_err();
    assert!(matches!(refused.cause, Cause::NoDeviceModel(GUEST)), "{refused}");
    assert_eq!(world.dump().await, before);

    let never = CancellationToken::new();
    world.add_with(socket, WaitFor::Tree, &never).await.unwrap();
    assert_eq!(format!("\n{}\n", added(&before, &world.dump().await).join("\n")), SOCKET);
    world.add_with(channel("connection=pty,name=b"), WaitFor::Tree, &never).await.unwrap();
    assert_eq!(world.read("/local/domain/1/device/console/2/output").await, "chardev:libxl-channel1");
    let listed = list(&world.dom0, GUEST, Kind::Console).await.unwrap();
    // Whoever is told of one is told the number by which it is detached.
    let second = serde_json::json!(listed[1].id);
    assert_eq!((&second["devid"], &second["name"]), (&2.into(), &"1".into()), "{second}");
    assert_eq!(listed[1].id.to_string(), "channel 1 of domain 1");
    assert_eq!(listed[1].text("channel_name"), Some("b"));
    let connections = listed.iter().map(|channel| (channel.id.devid, channel.text("connection").unwrap()));
    assert_eq!(connections.collect::<Vec<_>>(), [(1, "socket"), (2, "pty")]);
    // No two of a guest have one name, or one socket.
    for (words, says) in [
        ("connection=pty,name=b", "channel 1 of domain 1 has the name b already"),
        (
            "connection=socket,path=/tmp/chan.sock,name=c",
            "channel 0 of domain 1 has the path /tmp/chan.sock already",
        ),
    ] {
        let refused = world.add_with(channel(words), WaitFor::Tree, &never).await.unwrap_err();
        assert_eq!(refused.cause.to_string(), says);
    }
    for devid in [1, 2] {
        world.toolstack.remove(GUEST, (Kind::Console, devid), Force::AtOnce, &never).await.unwrap();
    }
    assert_eq!(world.dump().await, before);
}

#[tokio::test(start_paused = true)]
async fn a_device_model_that_runs_gets_no_channel() {
    let world = crate::qemu::connected().await;
    let before = world.dump().await;
    let refused = world.add(channel("connection=pty,name=late")).await.unwrap_err();
    assert_eq!(
        refused.cause.to_string(),
        "a channel of a domain whose device model runs is not supported: it needs a character device that the device \
         model is started with"
    );
    assert_eq!(world.dump().await, before);
}

/// It would have to be there when the device model starts.
#[tokio::test(start_paused = true)]
async fn a_channel_is_refused_once_the_device_model_runs() {
    let world = World::new().await;
    world.write("/local/domain/0/device-model/1/state", "running").await;
    let before = world.dump().await;
    for wait_for in [WaitFor::Tree, WaitFor::Script] {
        let never = CancellationToken::new();
        let refused = world.add_with(channel("connection=pty,name=a"), wait_for, &never).await.unwrap_err();
        assert!(matches!(refused.cause, Cause::NotSupported { .. }), "{refused}");
        assert_eq!(world.dump().await, before);
    }
}

/// It has another place, and goes with its domain.
#[tokio::test(start_paused = true)]
async fn the_first_console_is_left_alone() {
    let world = World::new().await;
    let lx = "/libxl/1/device/console/0";
    let be = "/local/domain/0/backend/console/1/0";
    world.write(&format!("{lx}/backend"), be).await;
    world.write(&format!("{be}/state"), "1").await;
    assert!(list(&world.dom0, GUEST, Kind::Console).await.unwrap().is_empty());
    let plan = async || {
        let plan = Plan::destroy(&world.toolstack, GUEST).await.unwrap();
        (plan.operations().len(), plan.left().to_vec())
    };
    assert_eq!(plan().await, (0, vec![]));
    world.dom0.rm(&Path::new("/local/domain/1").unwrap()).await.unwrap();
    assert_eq!(plan().await, (0, vec![lx.to_owned()]), "it has gone without it");
}
