//! File systems: their trees, and the daemon that serves some of them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use tokio::join;
use tokio_util::sync::CancellationToken;
use xen_aodevice::{BackendKind, Cause, Daemons, Device, Force, Kind, WaitFor, list, p9};

use crate::world::{Ended, GUEST, World, added, told};

/// What `xl create` of Xen 4.17 wrote for `p9=[...]`, as `xenstore-ls -fp` showed it, with `state` as it was created, without
/// what QEMU wrote, and with another directory.
const QEMU: &[&str] = &[
    "/local/domain/0/backend/9pfs/1/0 = \"\"   (n0,r1)",
    "/local/domain/0/backend/9pfs/1/0/frontend = \"/local/domain/1/device/9pfs/0\"   (n0,r1)",
    "/local/domain/0/backend/9pfs/1/0/frontend-id = \"1\"   (n0,r1)",
    "/local/domain/0/backend/9pfs/1/0/online = \"1\"   (n0,r1)",
    "/local/domain/0/backend/9pfs/1/0/state = \"1\"   (n0,r1)",
    "/local/domain/0/backend/9pfs/1/0/path = \"/\"   (n0,r1)",
    "/local/domain/0/backend/9pfs/1/0/security_model = \"none\"   (n0,r1)",
    "/local/domain/1/device/9pfs/0 = \"\"   (n1,r0)",
    "/local/domain/1/device/9pfs/0/backend = \"/local/domain/0/backend/9pfs/1/0\"   (n1,r0)",
    "/local/domain/1/device/9pfs/0/backend-id = \"0\"   (n1,r0)",
    "/local/domain/1/device/9pfs/0/state = \"1\"   (n1,r0)",
    "/local/domain/1/device/9pfs/0/tag = \"share\"   (n1,r0)",
];

const NODES: &str = "/local/domain/0/libxl/xen-9pfs";

fn of_qemu() -> Device {
    Device::P9(p9::parse(&["tag=share,path=/"]).unwrap())
}

fn of_daemon(tag: &str) -> Device {
    Device::P9(p9::parse(&[format!("type=xen_9pfsd,path=/,tag={tag},max-space=10")]).unwrap())
}

/// A daemon that lives from its start to its end, and is told by the test what it says.
#[derive(Debug, Default)]
struct Daemon {
    /// Its pid is the count of its starts.
    starts: AtomicU32,
    dead: AtomicU32,
}

impl Daemons for Daemon {
    fn start(&self) -> io::Result<u32> {
        Ok(self.starts.fetch_add(1, SeqCst) + 1)
    }

    fn lives(&self, pid: u32) -> bool {
        pid > self.dead.load(SeqCst)
    }
}

#[derive(Debug)]
struct Missing;

impl Daemons for Missing {
    fn start(&self) -> io::Result<u32> {
        Err(io::Error::new(io::ErrorKind::NotFound, "it is not there"))
    }

    fn lives(&self, _: u32) -> bool {
        false
    }
}

/// The backends of the daemon are ready as soon as they are there.
async fn served(world: &World, devids: &[u32]) {
    for devid in devids {
        let be = format!("/local/domain/0/backend/xen_9pfs/1/{devid}");
        world.exists(&be).await;
        world.write(&format!("{be}/state"), "2").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_system_of_the_device_model() {
    let world = World::new().await;
    let before = world.dump().await;
    world.toolstack.add(GUEST, &of_qemu(), WaitFor::Tree, &CancellationToken::new()).await.unwrap();
    let lines = added(&before, &world.dump().await);
    let of_device = |line: &&String| line.contains("/9pfs/1/0") || line.contains("/device/9pfs/0");
    let lines: Vec<&String> =
        lines.iter().filter(of_device).filter(|line| !line.starts_with("/libxl")).collect();
    assert_eq!(lines, QEMU);
    let listed = &list(&world.dom0, GUEST, Kind::P9).await.unwrap()[0];
    assert_eq!((listed.text("tag"), listed.text("path")), (Some("share"), Some("/")));
    let never = CancellationToken::new();
    world.toolstack.remove(GUEST, (Kind::P9, 0), Force::AtOnce, &never).await.unwrap();
    assert_eq!(world.dump().await, before);
}

/// The guest mounts a file system by its tag.
#[tokio::test(start_paused = true)]
async fn a_tag_is_of_one_file_system() {
    let world = World::new().await;
    let never = CancellationToken::new();
    let add = async || world.toolstack.add(GUEST, &of_qemu(), WaitFor::Tree, &never).await;
    add().await.unwrap();
    let before = world.dump().await;
    let refused = add().await.unwrap_err();
    assert_eq!(refused.cause.to_string(), "9pfs 0 of domain 1 has the tag share already");
    assert_eq!(world.dump().await, before);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_served_is_refused() {
    let world = World::new().await;
    let none = world.add(of_qemu()).await.unwrap_err();
    assert_eq!(none.cause.code(), "no_device_model");
    world.write("/local/domain/0/device-model/1/state", "running").await;
    let before = world.dump().await;
    for (words, why) in [
        ("tag=t,path=/proc/self/exe", "the target /proc/self/exe is not a directory"),
        ("tag=t,path=/no/such", "the target /no/such: No such file or directory (os error 2)"),
        ("tag=t,path=/,backend=dd", "backend=dd: the store knows no domain dd"),
        (
            "path=/,type=xen_9pfsd,security_model=mapped",
            "xen-9pfsd knows the security_model none alone, not mapped",
        ),
    ] {
        let failure = world.add(Device::P9(p9::parse(&[words]).unwrap())).await.unwrap_err();
        assert_eq!(failure.cause.to_string(), why, "{words}");
    }
    assert_eq!(world.dump().await, before);
}

/// The first one starts it; what it serves has its own keys.
#[tokio::test(start_paused = true)]
async fn the_first_file_system_starts_its_daemon() {
    let world = World::new().await;
    let daemon = Arc::new(Daemon::default());
    let toolstack = world.toolstack.clone().with_daemons(daemon.clone());
    let never = CancellationToken::new();
    for (tag, devid) in [("a", 0), ("b", 1)] {
        let device = of_daemon(tag);
        let adding = toolstack.add(GUEST, &device, WaitFor::Script, &never);
        let (added, ()) = join!(adding, async {
            if devid == 0 {
                world.exists(&format!("{NODES}/pid")).await;
                world.write(&format!("{NODES}/state"), "running").await;
            }
            served(&world, &[devid]).await;
        });
        assert_eq!(added.unwrap().id.be_kind, BackendKind::Xen9pfs);
    }
    assert_eq!(daemon.starts.load(SeqCst), 1);
    assert_eq!(world.read(&format!("{NODES}/pid")).await, "1");
    assert_eq!(world.read(&format!("{NODES}/op")).await, "not there");
    let keys =
        world.dom0.directory(&crate::world::path("/local/domain/0/backend/xen_9pfs/1/0")).await.unwrap();
    let expected = "frontend frontend-id online state path security_model max-space max-files max-open-files auto-delete";
    assert_eq!(keys.join(" "), expected);
    assert_eq!(world.read("/local/domain/0/backend/xen_9pfs/1/0/max-space").await, "10");
}

/// B-50: both would start it.
#[tokio::test(start_paused = true)]
async fn b50_two_first_file_systems_start_one_daemon() {
    let world = World::new().await;
    let daemon = Arc::new(Daemon::default());
    let one = world.toolstack.clone().with_daemons(daemon.clone());
    let other = world.another_toolstack().await.with_daemons(daemon.clone());
    let never = CancellationToken::new();
    let (a, b) = (of_daemon("a"), of_daemon("b"));
    let (first, second, ()) = join!(
        one.add(GUEST, &a, WaitFor::Script, &never),
        other.add(GUEST, &b, WaitFor::Script, &never),
        async {
            world.exists(&format!("{NODES}/pid")).await;
            world.at(5.0).await;
            world.write(&format!("{NODES}/state"), "running").await;
            served(&world, &[0, 1]).await;
        }
    );
    first.unwrap();
    second.unwrap();
    assert_eq!(daemon.starts.load(SeqCst), 1);
    assert_eq!(world.read(&format!("{NODES}/op")).await, "not there");
}

/// B-50: one that is said to run, and has died, is started again.
#[tokio::test(start_paused = true)]
async fn b50_a_daemon_that_has_died_is_started_again() {
    let world = World::new().await;
    let daemon = Arc::new(Daemon { starts: 1.into(), dead: 1.into() });
    world.write(&format!("{NODES}/state"), "running").await;
    world.write(&format!("{NODES}/pid"), "1").await;
    let toolstack = world.toolstack.clone().with_daemons(daemon.clone());
    let (never, device) = (CancellationToken::new(), of_daemon("a"));
    let (added, ()) = join!(toolstack.add(GUEST, &device, WaitFor::Script, &never), async {
        world.is_gone(&format!("{NODES}/state")).await;
        world.write(&format!("{NODES}/state"), "running").await;
        served(&world, &[0]).await;
    });
    added.unwrap();
    assert_eq!((daemon.starts.load(SeqCst), world.read(&format!("{NODES}/pid")).await), (2, "2".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_does_not_come_up_leaves_nothing() {
    let world = World::new().await;
    let before = world.dump().await;
    // One that runs, and does not take the device up.
    let toolstack = world.toolstack.clone().with_daemons(Arc::new(Daemon::default()));
    world.write(&format!("{NODES}/state"), "running").await;
    let (never, device) = (CancellationToken::new(), of_daemon("a"));
    let failure = toolstack.add(GUEST, &device, WaitFor::Script, &never).await.unwrap_err();
    assert_eq!(failure.hint(), xen_aodevice::Hint::CheckDaemon("xen-9pfsd"));
    world.dom0.rm(&crate::world::path("/local/domain/0/libxl")).await.unwrap();
    let fails = |ended: Ended| {
        let failure = ended.unwrap_err();
        assert_eq!(failure.cause.code(), "daemon");
        assert!(matches!(failure.cause, Cause::Daemon { .. }));
        told(&failure)
    };
    let toolstack = world.toolstack.clone().with_daemons(Arc::new(Missing));
    let told = fails(toolstack.add(GUEST, &device, WaitFor::Script, &never).await);
    assert_eq!(told[1], "xen-9pfsd cannot be started: it is not there");
    assert_eq!(told.last().unwrap(), "CheckDaemon(\"xen-9pfsd\")");

    let daemon = Arc::new(Daemon::default());
    let toolstack = world.toolstack.clone().with_daemons(daemon.clone());
    let (ended, ()) = join!(toolstack.add(GUEST, &device, WaitFor::Script, &never), async {
        world.exists(&format!("{NODES}/pid")).await;
        daemon.dead.store(1, SeqCst);
    });
    assert_eq!(fails(ended)[1], "xen-9pfsd ended before it said that it runs");
    let ended = toolstack.add(GUEST, &device, WaitFor::Script, &never).await;
    assert_eq!(fails(ended)[1], "xen-9pfsd did not say within 60s that it runs");
    let after = world.dump().await;
    let left = added(&before, &after);
    assert!(left.iter().all(|line| line.contains("/local/domain/0/libxl")), "{left:#?}");
    assert_eq!(world.read(&format!("{NODES}/pid")).await, "2", "it lives, and may yet come up");
}
