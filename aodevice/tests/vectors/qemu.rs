//! Disks that the guest's device model serves: vectors 18 to 20 as far as they are of this domain, and the
//! defects of libxl that they are about.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::join;
use tokio_util::sync::CancellationToken;
use xen_aodevice::{BackendKind, Cause, Device, Force, Hint, Kind, Limits, WaitFor, list, vbd, vfb, vkb};
use xs_client::DomId;

use crate::world::{FE, GUEST, LX, World, added, path, tenths, warned};

const BE: &str = "/local/domain/0/backend/qdisk/1/51712";
const MODEL: &str = "/local/domain/0/device-model/1/state";
const PID: &str = "/local/domain/1/image/device-model-pid";

/// What the process that plays the device model has open.
const IMAGE: &str = "/bin/sh";

fn image() -> Device {
    Device::Vbd(vbd::parse(&["/proc/self/exe,qcow2,xvda"]).unwrap())
}

async fn says(world: &World, state: &'static str) {
    world.write(&format!("{BE}/state"), state).await;
}

/// A guest with a device model that has opened the image, and that the guest uses.
pub(crate) async fn connected() -> World {
    connected_to("/proc/self/exe").await
}

async fn connected_to(image: &str) -> World {
    let world = World::new().await;
    world.write(MODEL, "running").await;
    let image = Device::Vbd(vbd::parse(&[format!("{image},qcow2,xvda")]).unwrap());
    let (ended, ()) = join!(world.add(image), async {
        world.exists(BE).await;
        says(&world, "2").await;
    });
    ended.unwrap();
    world.guest_says("4").await;
    says(&world, "4").await;
    world
}

/// A process that says that it is the guest's device model.
pub(crate) struct Model(Child);

impl Model {
    pub(crate) async fn start(world: &World) -> Self {
        Self::that(world, "").await
    }

    /// One that does not end when asked.
    pub(crate) async fn stubborn(world: &World) -> Self {
        Self::that(world, "trap '' HUP; ").await
    }

    async fn that(world: &World, does: &str) -> Self {
        // It has the image open.
        let script = format!("{does}exec 3< /bin/sh; echo; read x");
        let arguments = ["-c", &script, "sh", "-xen-domid", "1"];
        let mut child =
            Command::new("sh").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // Once it speaks it has its own command line.
        child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        world.write(PID, child.id().to_string()).await;
        Self(child)
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

#[tokio::test(start_paused = true)]
async fn a_disk_of_the_device_model_is_added_and_removed() {
    let world = World::new().await;
    world.write(MODEL, "running").await;
    let before = world.dump().await;
    let (ended, ()) = join!(world.add(image()), async {
        world.exists(BE).await;
        assert_eq!(world.read(&format!("{BE}/params")).await, "qcow2:/proc/self/exe");
        world.at(1.0).await;
        // QEMU is ready when it has opened the image.
        says(&world, "2").await;
    });
    let success = ended.unwrap();
    assert_eq!((tenths(success.elapsed), success.id.be_kind), (1.0, BackendKind::Qdisk));
    assert_eq!(world.scripts.runs(), [""; 0]);
    assert_eq!(world.read(&format!("{LX}/backend")).await, BE);
    assert_eq!(world.read(&format!("{FE}/backend")).await, BE);
    assert!(!added(&before, &world.dump().await).iter().any(|line| line.contains("/script")));
    let listed = list(world.toolstack.client(), GUEST, Kind::Vbd).await.unwrap();
    assert_eq!((listed[0].id.be_kind, &*listed[0].backend_path), (BackendKind::Qdisk, BE));

    says(&world, "4").await;
    let (ended, ()) = join!(world.remove(Force::Never), async {
        world.exists(&format!("{LX}/op")).await;
        assert_eq!(world.read(&format!("{BE}/online")).await, "0");
        says(&world, "6").await;
    });
    assert_eq!(warned(&ended.unwrap()), [""; 0]);
    assert_eq!(world.dump().await, before);
}

#[tokio::test(start_paused = true)]
async fn a_guest_without_a_device_model_gets_no_disk_of_it() {
    let world = World::new().await;
    let before = world.dump().await;
    let failure = world.add(image()).await.unwrap_err();
    assert!(matches!(failure.cause, Cause::NoDeviceModel(GUEST)), "{failure}");
    assert_eq!((failure.cause.code(), failure.hint()), ("no_device_model", Hint::UseKernelBackend));
    assert_eq!(world.dump().await, before);
}

/// While a domain is created its disks are added before its device model is started (3.7), and nobody waits for it.
#[tokio::test(start_paused = true)]
async fn a_disk_is_there_before_its_device_model_is_started() {
    let world = World::new().await;
    let before = world.dump().await;
    let never = CancellationToken::new();
    let planned = world.toolstack.preview(GUEST, &image(), WaitFor::Tree).await.unwrap();
    let success = world.add_with(image(), WaitFor::Tree, &never).await.unwrap();
    assert_eq!((success.id.be_kind, success.elapsed), (BackendKind::Qdisk, Duration::ZERO));
    assert_eq!(planned.device, success.id);
    assert_eq!(world.read(&format!("{BE}/state")).await, "1");
    let failure = world.add_with(image(), WaitFor::Tree, &never).await.unwrap_err();
    assert!(matches!(failure.cause, Cause::Exists), "{failure}");
    // It is gone without anybody who would close it.
    assert_eq!(warned(&world.remove(Force::Never).await.unwrap()), [""; 0]);
    assert_eq!(world.dump().await, before);

    world.add_with(image(), WaitFor::Tree, &never).await.unwrap();
    world.write(MODEL, "running").await;
    for state in ["2", "4"] {
        says(&world, state).await;
    }
    let (ended, ()) = join!(world.remove(Force::Never), async {
        world.exists(&format!("{LX}/op")).await;
        says(&world, "6").await;
    });
    ended.unwrap();
    assert!(!world.dump().await.iter().any(|line| line.contains("/qdisk")));
}

/// QEMU opens an image before it says so.
#[tokio::test]
async fn an_image_that_is_open_already_is_waited_for() {
    let world = World::new().await;
    let disk = Device::Vbd(vbd::parse(&[format!("{IMAGE},qcow2,xvda")]).unwrap());
    world.add_with(disk, WaitFor::Tree, &CancellationToken::new()).await.unwrap();
    let mut model = Model::start(&world).await;
    let (ended, ()) = join!(world.remove(Force::Never), async {
        world.exists(&format!("{LX}/op")).await;
        assert_eq!(world.read(&format!("{BE}/state")).await, "5", "it is told to close");
        model.kill();
    });
    assert_eq!(warned(&ended.unwrap()), [""; 0]);
}

/// What a kernel serves is waited for all the same, as its script needs it.
#[tokio::test(start_paused = true)]
async fn the_disk_of_a_kernel_is_waited_for_before_a_device_model_is_there() {
    let world = World::new().await;
    let never = CancellationToken::new();
    let disk = crate::world::disk();
    let (ended, ()) = join!(world.add_with(disk, WaitFor::Tree, &never), async {
        world.exists(&format!("{FE}/state")).await;
        world.at(1.0).await;
        world.backend_says("2").await;
    });
    assert_eq!(tenths(ended.unwrap().elapsed), 1.0);
    assert_eq!(world.scripts.runs().len(), 1);
}

/// libxl says that an image is attached which QEMU could not open.
/// B-11.
#[tokio::test]
async fn b11_why_an_image_is_not_opened_is_told_by_the_log_of_the_device_model() {
    let logs = tempfile::tempdir().unwrap();
    let log = logs.path().join("qemu-dm-g.log");
    fs::write(&log, "failed to create 'qdisk' device '51712': yesterday\n").unwrap();
    let world = World::new().await;
    world.write(MODEL, "running").await;
    let before = world.dump().await;
    let toolstack = world.toolstack.clone().with_log_dir(logs.path());
    let (cancel, image) = (CancellationToken::new(), image());
    let (ended, ()) = join!(toolstack.add(GUEST, &image, xen_aodevice::WaitFor::Script, &cancel), async {
        world.exists(BE).await;
        let mut log = fs::File::options().append(true).open(&log).unwrap();
        writeln!(log, "qemu: failed to create 'qdisk' device '51712': Image is not in qcow2 format").unwrap();
    });
    let failure = ended.unwrap_err();
    assert_eq!(failure.cause.code(), "device_model");
    assert!(failure.to_string().ends_with("Image is not in qcow2 format"), "{failure}");
    assert_eq!(failure.hint(), Hint::ReadModelLog(log));
    assert_eq!(world.dump().await, before);
}

/// What `xl create` writes for an HVM guest's keyboard, and for the framebuffer of a PV guest.
/// B-46.
#[tokio::test(start_paused = true)]
async fn a_keyboard_and_a_framebuffer() {
    let world = World::new().await;
    world.write(MODEL, "running").await;
    for (device, kind, keys) in [
        (Device::Vkb(vkb::Vkb::default()), "vkbd", &[][..]),
        (
            Device::Vfb(vfb::Vfb::of_vnc(vfb::Vnc::default())),
            "vfb",
            &[
                "vnc = \"1\"",
                "vnclisten = \"127.0.0.1\"",
                "vncdisplay = \"0\"",
                "vncunused = \"1\"",
                "sdl = \"0\"",
                "opengl = \"0\"",
            ],
        ),
    ] {
        let before = world.dump().await;
        let be = format!("/local/domain/0/backend/{kind}/1/0");
        let kind_of = device.kind();
        let (ended, lines) = join!(world.add(device), async {
            world.exists(&be).await;
            let lines = added(&before, &world.dump().await);
            world.write(&format!("{be}/state"), "2").await;
            lines
        });
        ended.unwrap();
        let of = |parent: &str| {
            let lines = lines.iter().filter_map(|line| line.strip_prefix(&format!("{parent}/")));
            lines.map(|line| line.split("   (").next().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let common = [
            format!("frontend = \"/local/domain/1/device/{kind}/0\""),
            "frontend-id = \"1\"".to_owned(),
            "online = \"1\"".to_owned(),
            "state = \"1\"".to_owned(),
        ];
        assert_eq!(
            of(&be),
            [&common[..], &keys.iter().map(ToString::to_string).collect::<Vec<_>>()].concat()
        );
        let fe = ["backend-id = \"0\"", "state = \"1\""];
        assert_eq!(of(&format!("/local/domain/1/device/{kind}/0"))[1..], fe);
        let never = CancellationToken::new();
        let (removed, ()) =
            join!(world.toolstack.remove(GUEST, (kind_of, 0), Force::AtOnce, &never), async {
                world.is_gone(&format!("/local/domain/1/device/{kind}/0")).await;
                world.write(&format!("{be}/state"), "6").await;
            });
        assert_eq!(warned(&removed.unwrap()), [""; 0]);
        assert_eq!(world.dump().await, before);
    }
}

/// QEMU that is stopped, or does not know the kind.
#[tokio::test(start_paused = true)]
async fn a_device_model_that_does_nothing_is_named() {
    let world = World::new().await;
    world.write(MODEL, "running").await;
    let before = world.dump().await;
    let failure = world.add(image()).await.unwrap_err();
    assert_eq!((failure.cause.code(), failure.hint()), ("timed_out", Hint::CheckModel));
    assert!(failure.observations().contains(&"the device model has not taken the device up".to_owned()));
    assert_eq!(world.dump().await, before);
}

/// 18. The guest is paused and QEMU lives: the normal way, no sleep of 2 s, state 6 written by QEMU (libxl writes it
/// and may give the image away while QEMU writes to it).
/// B-6.
#[tokio::test(start_paused = true)]
async fn b6_a_paused_guest_has_a_living_device_model() {
    let world = connected().await;
    let begun = world.clock();
    let (ended, ()) = join!(world.remove(Force::AtOnce), async {
        world.is_gone(FE).await;
        world.at(begun + 3.5).await;
        assert_eq!(world.read(&format!("{BE}/state")).await, "5", "6 is for QEMU to write");
        // It removes the nodes right after that.
        says(&world, "6").await;
        world.dom0.rm(&path(BE)).await.unwrap();
    });
    let success = ended.unwrap();
    assert_eq!(tenths(success.elapsed), 3.5);
    assert_eq!(warned(&success), [""; 0]);
    assert_eq!(world.read(LX).await, "not there");
}

/// 19. QEMU ends: its devices are done as soon as that is seen by its process, and 6 is written only then, with
/// `online`=0 (B-4, B-5). Without that evidence this would wait for ever.
#[tokio::test]
async fn b5_the_end_of_the_device_model_is_waited_for_by_its_process() {
    let world = connected().await;
    let mut model = Model::start(&world).await;
    let mut limits = Limits::default();
    limits.close = Duration::MAX;
    let toolstack = world.toolstack.clone().with_limits(limits);
    let cancel = CancellationToken::new();
    let mut states = world.dom0.watch(&path(format!("{BE}/state"))).await.unwrap();
    let (ended, seen) = join!(toolstack.remove(GUEST, (Kind::Vbd, 51712), Force::Never, &cancel), async {
        let mut seen = Vec::new();
        loop {
            let now = (world.read(&format!("{BE}/online")).await, world.read(&format!("{BE}/state")).await);
            if seen.last() != Some(&now) {
                seen.push(now.clone());
            }
            match &*now.1 {
                "5" => model.kill(),
                "6" | "not there" => return seen,
                _ => {}
            }
            states.changed().await.unwrap();
        }
    });
    assert_eq!(warned(&ended.unwrap()), [""; 0]);
    let said: Vec<_> = seen.iter().map(|(online, state)| (&**online, &**state)).collect();
    assert!(said.starts_with(&[("1", "4"), ("0", "5")]), "{said:?}");
    assert!(said[2..].iter().all(|now| [("0", "6"), ("not there", "not there")].contains(now)), "{said:?}");
    assert_eq!(world.read(LX).await, "not there");
}

/// QEMU that ends while it is to take a disk up.
#[tokio::test]
async fn a_device_model_that_ends_is_not_waited_for() {
    let world = World::new().await;
    world.write(MODEL, "running").await;
    let mut model = Model::start(&world).await;
    let before = world.dump().await;
    let mut limits = Limits::default();
    limits.backend = Duration::MAX;
    let toolstack = world.toolstack.clone().with_limits(limits);
    let (cancel, image) = (CancellationToken::new(), image());
    let (ended, ()) = join!(toolstack.add(GUEST, &image, xen_aodevice::WaitFor::Script, &cancel), async {
        world.exists(BE).await;
        model.kill();
    });
    assert!(matches!(ended.unwrap_err().cause, Cause::NoDeviceModel(GUEST)));
    assert_eq!(world.dump().await, before);
}

/// 20. Neither QEMU nor the guest is to be seen: 2 s, then 6, and a warning.
#[tokio::test(start_paused = true)]
async fn where_nothing_is_to_be_seen_two_seconds_are_waited() {
    let world = connected().await;
    world.dom0.rm(&path("/local/domain/1")).await.unwrap();
    let success = world.remove(Force::Never).await.unwrap();
    assert_eq!(tenths(success.elapsed), 2.0);
    let warned = warned(&success);
    assert!(warned.len() == 1 && warned[0].contains("cannot be seen"), "{warned:?}");
    assert_eq!(world.read(BE).await, "not there");
}

/// B-7: QEMU removes its nodes as it ends.
#[tokio::test(start_paused = true)]
async fn b7_a_backend_that_is_gone_is_closed() {
    let world = connected().await;
    let (ended, ()) = join!(world.remove(Force::Never), async {
        world.exists(&format!("{LX}/op")).await;
        world.dom0.rm(&path(BE)).await.unwrap();
    });
    assert_eq!(warned(&ended.unwrap()), [""; 0]);
    assert_eq!(world.read(LX).await, "not there");
    assert_eq!(world.read(&format!("/local/domain/{}/backend", DomId::DOM0)).await, "");
}

/// QEMU closes the image last, after it has removed the backend's nodes: a removal is done only then.
#[tokio::test]
async fn the_image_is_closed_when_a_removal_is_done() {
    for closes in [true, false] {
        let world = connected_to(IMAGE).await;
        let mut model = Model::start(&world).await;
        let mut limits = Limits::default();
        limits.close = if closes { Duration::MAX } else { Duration::from_millis(300) };
        let toolstack = world.toolstack.clone().with_limits(limits);
        let cancel = CancellationToken::new();
        let (ended, ()) = join!(toolstack.remove(GUEST, (Kind::Vbd, 51712), Force::Never, &cancel), async {
            world.exists(&format!("{LX}/op")).await;
            world.dom0.rm(&path(BE)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert!(world.read(LX).await.is_empty(), "it is not done while the image is open");
            if closes {
                model.kill();
            }
        });
        let warned = warned(&ended.unwrap());
        assert_eq!(
            warned.iter().filter(|text| text.contains("still has the image open")).count(),
            usize::from(!closes)
        );
        assert_eq!(world.read(LX).await, "not there");
    }
}

/// QEMU 10 exits when one of its older backends is to be added, and takes its guest's disks with it: what it greets with
/// is enough to refuse.
#[tokio::test]
async fn a_device_of_which_the_device_model_would_die_is_refused() {
    let run_dir = tempfile::tempdir().unwrap();
    let monitor = UnixListener::bind(run_dir.path().join("qmp-libxl-1")).unwrap();
    let major = Arc::new(AtomicU32::new(10));
    let told = major.clone();
    std::thread::spawn(move || {
        for stream in monitor.incoming() {
            let major = told.load(Ordering::Relaxed);
            _ = writeln!(stream.unwrap(), r#"{{"QMP": {{"version": {{"qemu": {{"major": {major}}}}}}}}}"#);
        }
    });
    let world = World::new().await;
    world.write(MODEL, "running").await;
    let toolstack = world.toolstack.clone().with_run_dir(run_dir.path());
    let keyboard = Device::Vkb(vkb::parse(&["backend-type=qemu"]).unwrap());
    let before = world.dump().await;
    let cancel = CancellationToken::new();
    let failure = toolstack.add(GUEST, &keyboard, WaitFor::Script, &cancel).await.unwrap_err();
    assert_eq!(failure.cause.code(), "not_supported");
    assert!(failure.to_string().contains("QEMU 10"), "{failure}");
    assert_eq!(world.dump().await, before);

    major.store(7, Ordering::Relaxed);
    let (added, ()) = join!(toolstack.add(GUEST, &keyboard, WaitFor::Script, &cancel), async {
        world.exists("/local/domain/0/backend/vkbd/1/0/state").await;
        world.write("/local/domain/0/backend/vkbd/1/0/state", "2").await;
    });
    added.unwrap();
}
