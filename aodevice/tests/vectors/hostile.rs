//! A guest that writes what it likes where it may, and other visitors of the store.

use tokio::join;
use tokio_util::sync::CancellationToken;
use xen_aodevice::{Force, Hint, Kind, vbd};
use xs_client::{Client, Config, DomId, Path};

use crate::world::{BE, FE, GUEST, LX, World, disk, path, told, warned};

/// 2 KB of whatever is worst to show on a terminal.
fn junk() -> Vec<u8> {
    b"\x1b[2J\x1b[31m\0\xff\xfe\r\n\"quoted\"\\\x07".iter().copied().cycle().take(2000).collect()
}

/// Nothing that a guest wrote reaches a terminal as it was, and none of it is long.
fn assert_printable(lines: &[String]) {
    for line in lines {
        assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{line:?}");
        assert!(line.len() < 1000, "{} bytes: {line}", line.len());
    }
}

/// Garbage in FE/state and in its error node, as an add and a removal fail: shown escaped and short,
/// and taken for nothing.
#[tokio::test(start_paused = true)]
async fn the_guest_writes_garbage() {
    let world = World::new().await;
    let before = world.dump().await;
    let errors = path("/local/domain/1/error/device/vbd/51712/error");
    let (ended, ()) = join!(world.add(disk()), async {
        world.exists(FE).await;
        world.guest.write(&path(format!("{FE}/state")), junk()).await.unwrap();
        world.guest.write(&errors, junk()).await.unwrap();
    });
    let failure = ended.unwrap_err();
    let text = told(&failure);
    assert_printable(&text);
    assert!(text.iter().any(|line| line.starts_with(r"the guest says: \x1b[2J\x1b[31m\x00")), "{text:#?}");
    assert!(text.iter().any(|line| line.ends_with("which is no state")), "{text:#?}");
    world.guest.rm(&path("/local/domain/1/error/device")).await.unwrap();
    assert_eq!(world.dump().await, before);

    world.add_connected().await;
    world.guest.write(&path(format!("{FE}/state")), junk()).await.unwrap();
    world.guest.write(&errors, junk()).await.unwrap();
    world.guest.write(&path(format!("{FE}/event-channel")), junk()).await.unwrap();
    let listed = xen_aodevice::list(&world.dom0, GUEST, Kind::Vbd).await.unwrap();
    assert_eq!(listed[0].number("event_channel"), None);
    assert_printable(&[listed[0].frontend_state.as_ref().unwrap().to_string()]);
    assert_printable(&told(&world.remove(Force::Never).await.unwrap_err()));
    world.remove(Force::AfterTimeout).await.unwrap();
    world.guest.rm(&path("/local/domain/1/error/device")).await.unwrap();
    assert_eq!(world.dump().await, before);
}

/// A guest that points FE/backend at the disk of another guest: removal touches its own alone.
/// B-52.
#[tokio::test(start_paused = true)]
async fn the_guest_points_at_the_backend_of_another() {
    let world = World::new().await;
    let before = world.dump().await;
    let victim = DomId(2);
    world.store.introduce(victim);
    xen_aodevice::sim::create_domain(&world.dom0, victim, "victim").await.unwrap();
    let (theirs, never) = (disk(), CancellationToken::new());
    let adding = world.toolstack.add(victim, &theirs, xen_aodevice::WaitFor::Script, &never);
    let (ended, ()) = join!(adding, async {
        world.exists("/local/domain/0/backend/vbd/2/51712").await;
        world.write("/local/domain/0/backend/vbd/2/51712/state", "4").await;
    });
    ended.unwrap();
    let with_victim = world.dump().await;

    for force in [Force::AfterTimeout, Force::AtOnce] {
        world.add_connected().await;
        let target = "/local/domain/0/backend/vbd/2/51712";
        world.guest.write(&path(format!("{FE}/backend")), target).await.unwrap();
        let (ended, ()) = join!(world.remove(force), async {
            world.is_told_to_close().await;
            world.backend_says("6").await;
        });
        ended.unwrap();
        assert_eq!(world.dump().await, with_victim);
    }
    assert_ne!(with_victim, before);
}

/// A guest that points FE/backend somewhere else before the toolstack rolls back.
#[tokio::test(start_paused = true)]
async fn the_guest_rewrites_its_directory_during_an_add() {
    let world = World::new().await;
    let before = world.dump().await;
    let (ended, ()) = join!(world.add(disk()), async {
        world.exists(FE).await;
        world.guest.write(&path(format!("{FE}/backend")), "/libxl").await.unwrap();
        world.guest.write(&path(format!("{FE}/a/deep/tree/of/nodes")), "x").await.unwrap();
    });
    ended.unwrap_err();
    assert_eq!(world.dump().await, before);
}

/// A guest that claims to be connected to a backend that is not there: the roll-back then asks it,
/// but for no longer than its limit.
#[tokio::test(start_paused = true)]
async fn the_guest_claims_to_be_connected() {
    let world = World::new().await;
    let before = world.dump().await;
    let (ended, ()) = join!(world.add(disk()), async {
        world.exists(FE).await;
        world.guest_says("4").await;
    });
    let failure = ended.unwrap_err();
    assert_eq!(world.clock(), 20.0);
    assert_eq!(failure.warnings.len(), 1, "{:?}", failure.warnings);
    assert_eq!(world.dump().await, before);
}

/// A guest that removes its own directory, at any time.
#[tokio::test(start_paused = true)]
async fn the_guest_removes_its_directory() {
    let world = World::new().await;
    let before = world.dump().await;
    let gone = || async { world.guest.rm(&path(FE)).await.unwrap() };

    let (ended, ()) = join!(world.add(disk()), async {
        world.exists(FE).await;
        gone().await;
    });
    ended.unwrap_err();
    assert_eq!(world.dump().await, before, "during an add that fails");

    world.add_connected().await;
    gone().await;
    let (ended, ()) = join!(world.remove(Force::Never), async {
        world.is_told_to_close().await;
        world.backend_says("6").await;
    });
    assert_eq!(warned(&ended.unwrap()), [""; 0]);
    assert_eq!(world.dump().await, before, "before a removal");

    world.add_connected().await;
    let (ended, ()) = join!(world.remove(Force::AfterTimeout), async {
        world.is_told_to_close().await;
        gone().await;
        world.backend_says("6").await;
    });
    assert_eq!(warned(&ended.unwrap()), [""; 0]);
    assert_eq!(world.dump().await, before, "during a removal");
}

/// A guest whose domain goes while the device is being added, with all that it owned.
#[tokio::test(start_paused = true)]
async fn the_guest_is_destroyed() {
    let world = World::new().await;
    let (ended, ()) = join!(world.add(disk()), async {
        world.at(1.0).await;
        world.store.release(GUEST);
        world.dom0.rm(&path("/local/domain/1")).await.unwrap();
        world.backend_says("6").await;
    });
    let failure = ended.unwrap_err();
    assert_eq!(failure.warnings.len(), 0, "{:?}", failure.warnings);
    for node in [LX, BE, FE, "/local/domain/0/backend/vbd", "/local/domain/1"] {
        assert_eq!(world.read(node).await, "not there", "{node}");
    }
}

/// Other devices of the guest, and other things beside the device, stay.
#[tokio::test(start_paused = true)]
async fn neighbours_stay() {
    let world = World::new().await;
    world.write("/local/domain/0/backend/vbd/1/51728/state", "4").await;
    world.write("/libxl/1/device/vbd/51728/backend", "/local/domain/0/backend/vbd/1/51728").await;
    world.write("/local/domain/1/device/vbd/51728/state", "4").await;
    let before = world.dump().await;
    world.add_connected().await;
    world.remove(Force::AtOnce).await.unwrap();
    assert_eq!(world.dump().await, before);
}

/// LX entries that are no devices: listing passes them by, removal refuses them.
#[tokio::test(start_paused = true)]
async fn leftovers_in_the_toolstacks_directory() {
    let world = World::new().await;
    for (node, value) in [
        ("/libxl/1/device/vbd/51712/backend", "no path at all: ../.."),
        ("/libxl/1/device/vbd/51728", ""),
        ("/libxl/1/device/vbd/xvdc/backend", BE),
    ] {
        world.write(node, value).await;
    }
    let before = world.dump().await;
    assert!(xen_aodevice::list(&world.dom0, GUEST, Kind::Vbd).await.unwrap().is_empty());
    let never = CancellationToken::new();
    for devid in [51712, 51728] {
        let removing = world.toolstack.remove(GUEST, (Kind::Vbd, devid), Force::AtOnce, &never);
        let failure = removing.await.unwrap_err();
        assert_eq!(failure.hint(), Hint::UseOtherToolstack, "{failure}");
        assert_printable(&told(&failure));
    }
    assert_eq!(world.dump().await, before);
}

/// A guest cannot do what the toolstack does: its own connection is refused at the first write.
#[tokio::test(start_paused = true)]
async fn a_guest_is_no_toolstack() {
    let world = World::new().await;
    let before = world.dump().await;
    let client = Client::over(world.store.connect(GUEST), Config::default());
    let toolstack = xen_aodevice::Toolstack::new(client, world.scripts.clone()).await.unwrap();
    let (device, never) = (disk(), CancellationToken::new());
    let failure = toolstack.add(GUEST, &device, xen_aodevice::WaitFor::Script, &never).await.unwrap_err();
    assert!(failure.to_string().contains("EACCES"), "{failure}");
    assert_eq!(failure.hint(), Hint::Store("run it in the domain that may do this, usually domain 0"));
    assert_eq!(world.dump().await, before);
}

/// A target with every kind of byte is written as it is, and refused where it cannot be.
#[tokio::test(start_paused = true)]
async fn a_strange_target() {
    let world = World::new().await;
    let target = "/srv/ä \"x\"\n=,.img";
    let device = || {
        let mut disk = vbd::Vbd::new(target, vbd::Vdev::new("xvda").unwrap());
        disk.script = Some("block".to_owned());
        xen_aodevice::Device::Vbd(disk)
    };
    let (ended, ()) = join!(world.add(device()), async {
        world.exists(BE).await;
        world.backend_says("2").await;
    });
    ended.unwrap();
    let params = world.dom0.read(&Path::new(format!("{BE}/params")).unwrap()).await.unwrap();
    assert_eq!(params, target.as_bytes());
    world.remove(Force::AtOnce).await.unwrap();

    let before = world.dump().await;
    let long = format!("vdev=xvda,script=block,target=/{}", "x".repeat(5000));
    let device = xen_aodevice::Device::Vbd(vbd::parse(&[long]).unwrap());
    let failure = world.add(device).await.unwrap_err();
    assert!(
        failure.to_string().contains("its params has 5001 bytes, and the store takes at most 4096"),
        "{failure}"
    );
    assert_eq!(world.dump().await, before);
}
