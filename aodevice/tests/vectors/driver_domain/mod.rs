//! Devices whose backends are in a driver domain: its kernel moves the backend's state, its daemon runs the script and
//! removes the backend's directory.

mod hostile;
mod losses;

use std::time::Duration;

use tokio::join;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use xen_aodevice::sim::{self, Devd, Drivers};
use xen_aodevice::{
    Cause, Device, DriverDomainFault, FailureKind, Force, Hint, Kind, Plan, Removal, RunBy, WaitFor, Warning,
    vbd, vif,
};
use xs_client::{Client, Config, DomId};

use crate::world::{Ended, FE, GUEST, LX, World, path, storm, told, warned};

const DD: DomId = DomId(3);
const HOME: &str = "/local/domain/3";
const BE: &str = "/local/domain/3/backend/vbd/1/51712";
const QDISK: &str = "/local/domain/3/backend/qdisk/1/51712";
const LATENCY: Duration = Duration::from_millis(10);

/// A world with a driver domain, whose kernel and that of the guest run.
struct Scene {
    world: World,
    /// The driver domain's connection.
    dd: Client,
    _drivers: [Drivers; 2],
    before: Vec<String>,
}

/// `xvda`, of an image that this host does not have.
fn disk() -> Device {
    disk_of("dd")
}

fn disk_of(backend: &str) -> Device {
    Device::Vbd(vbd::parse(&[format!("/srv/only-there.img,raw,xvda,w,backend={backend}")]).unwrap())
}

fn nic() -> Device {
    Device::Vif(vif::parse(&["bridge=xenbr0", "backend=dd"]).unwrap())
}

/// What is told of a backend that the driver domain's daemon did not remove.
fn left() -> String {
    Warning::DriverDomainLeft { be: DD, limit: Duration::from_secs(50) }.to_string()
}

impl Scene {
    async fn new() -> Self {
        let world = World::new().await;
        world.store.introduce(DD);
        sim::create_domain(&world.dom0, DD, "dd").await.unwrap();
        let dd = Client::over(world.store.connect(DD), Config::default());
        let drivers = [
            Drivers::backends(dd.clone(), DD, LATENCY).unwrap(),
            Drivers::frontends(world.guest.clone(), GUEST, LATENCY).unwrap(),
        ];
        let before = world.dump().await;
        Self { world, dd, _drivers: drivers, before }
    }

    /// Both kernels stand still from now on.
    fn stop_drivers(&mut self) {
        self._drivers = [0, 1].map(|_| Drivers::backends(self.dd.clone(), DomId(9), LATENCY).unwrap());
    }

    fn devd(&self) -> Devd {
        Devd::start(self.dd.clone(), DD, LATENCY).unwrap()
    }

    async fn add(&self) -> Ended {
        self.world.add(disk()).await
    }

    async fn remove(&self, force: Force) -> Ended {
        self.world.remove(force).await
    }

    /// The driver domain writes a key of the backend of `xvda`.
    async fn says(&self, key: &str, value: &str) {
        self.dd.write(&path(format!("{BE}/{key}")), value.to_owned()).await.unwrap();
    }

    async fn state_is(&self, state: &str) {
        self.world.reads(&format!("{BE}/state"), |value| value == state).await;
    }

    /// The daemon removes the backend's directory once the device is closed.
    async fn cleans_up(&self) {
        self.state_is("6").await;
        self.dd.rm(&path(BE)).await.unwrap();
    }

    /// Adds `xvda`, which the guest connects to.
    async fn add_connected(&self) {
        let _devd = self.devd();
        let never = CancellationToken::new();
        self.world.add_with(disk(), WaitFor::Connected, &never).await.unwrap();
    }

    /// `xl destroy dd`: the store's daemon removes what the domain owned, and `xl` its home.
    async fn dies(&self) {
        self.world.store.release(DD);
        for tree in [HOME, "/libxl/3"] {
            self.world.dom0.rm(&path(tree)).await.unwrap();
        }
    }

    async fn nothing_is_left(&self) {
        assert_eq!(self.world.dump().await, self.before);
    }

    /// But for the driver domain, which is gone.
    async fn nothing_is_left_of_either(&self) {
        let is_of_dd = |line: &&String| line.starts_with(HOME) || line.starts_with("/libxl/3");
        let expected: Vec<_> = self.before.iter().filter(|line| !is_of_dd(line)).cloned().collect();
        assert_eq!(self.world.dump().await, expected);
    }
}

/// The nodes are those of a device of this domain, but for whose they are; nothing is looked for on this host, and no
/// script is run here.
#[tokio::test(start_paused = true)]
async fn an_attach_through_a_driver_domain() {
    for backend in ["dd", "3"] {
        let scene = Scene::new().await;
        let _devd = scene.devd();
        let added = scene.world.add(disk_of(backend)).await.unwrap();
        assert_eq!((added.id.be, warned(&added)), (DD, vec![]));
        let dump = scene.world.dump().await;
        for line in [
            format!("{BE}/script = \"/etc/xen/scripts/block\"   (n3,r1)"),
            format!("{BE}/params = \"/srv/only-there.img\"   (n3,r1)"),
            format!("{BE}/physical-device = \"7:0\"   (n3,r1)"),
            format!("{FE}/backend = \"{BE}\"   (n1,r3)"),
            format!("{FE}/backend-id = \"3\"   (n1,r3)"),
            format!("{LX}/backend = \"{BE}\"   (n0)"),
            "/local/domain/3/backend/vbd/1 = \"\"   (n0,r3)".to_owned(),
        ] {
            assert!(dump.contains(&line), "{line}\n{}", dump.join("\n"));
        }
        assert_eq!(scene.world.read(&format!("{LX}/op")).await, "not there");
        assert_eq!(scene.world.read("/tool/xendev").await, "not there");
        assert_eq!(warned(&scene.remove(Force::Never).await.unwrap()), [""; 0]);
        assert_eq!(scene.world.scripts.runs(), [""; 0]);
        scene.nothing_is_left().await;
    }
}

/// Interfaces too; what a driver domain may not remove, the parents of its backends, goes with the last device.
/// B-13.
#[tokio::test(start_paused = true)]
async fn b13_no_empty_parents_pile_up_in_a_driver_domain() {
    let scene = Scene::new().await;
    let _devd = scene.devd();
    scene.add_connected().await;
    let nic = scene.world.add(nic()).await.unwrap();
    assert_eq!((nic.id.be, nic.id.devid), (DD, 0));
    let never = CancellationToken::new();
    scene.world.toolstack.remove(GUEST, (Kind::Vif, 0), Force::Never, &never).await.unwrap();
    assert_eq!(scene.world.read("/local/domain/3/backend/vif").await, "not there");
    scene.remove(Force::Never).await.unwrap();
    scene.nothing_is_left().await;
}

/// Vector 21. The daemon reports that the script failed: the attach fails with the script's words, and leaves nothing.
/// B-10.
#[tokio::test(start_paused = true)]
async fn v21_b10_the_script_fails_in_the_driver_domain() {
    let scene = Scene::new().await;
    let (added, ()) = join!(scene.add(), async {
        scene.state_is("2").await;
        scene.world.at(3.0).await;
        scene.says("hotplug-error", "/srv/only-there.img does not exist\u{1b}[2J").await;
        scene.says("hotplug-status", "error").await;
        scene.cleans_up().await;
    });
    let failure = added.unwrap_err();
    assert_eq!(failure.hint(), Hint::ReadDriverDomainLog(DD));
    assert_eq!(
        told(&failure)[..2],
        [
            "cannot attach vbd xvda to domain 1",
            "driver domain 3 reported that it could not set the device up (hotplug-status is error): \
             /srv/only-there.img does not exist\\x1b[2J"
        ]
    );
    assert_eq!(failure.cause.code(), "driver_domain_script");
    assert_eq!(failure.warnings.len(), 0, "{:?}", failure.warnings);
    scene.nothing_is_left().await;
}

/// The stock `block` reports `connected` of an image that is not there.
/// B-10.
#[tokio::test(start_paused = true)]
async fn b10_connected_without_a_device_is_a_failure() {
    let scene = Scene::new().await;
    let (added, ()) = join!(scene.add(), async {
        scene.state_is("2").await;
        scene.says("hotplug-status", "connected").await;
        scene.cleans_up().await;
    });
    let failure = added.unwrap_err();
    assert_eq!(
        failure.observations()[0],
        "driver domain 3 reported that its hotplug script has run (hotplug-status is connected), but that did \
         not write physical-device: it found nothing that it could serve"
    );
    assert_eq!(failure.hint(), Hint::NameTargetThere(DD));
    scene.nothing_is_left().await;
}

/// In which order the daemon's and the script's words come does not matter, and a device that works is one if they say
/// nothing for a while.
#[tokio::test(start_paused = true)]
async fn the_order_of_reports_does_not_matter() {
    for (words, seconds) in [
        (&[("hotplug-status", "connected"), ("physical-device", "7:0")][..], 1.0),
        (&[("physical-device", "7:0"), ("hotplug-status", "connected")], 1.0),
        (&[("physical-device", "7:0")], 2.0),
        (&[("state", "4")], 2.0),
        (&[("state", "4"), ("hotplug-status", "connected")], 1.0),
        // Our daemon reports how each script ended, however long that takes.
        (
            &[
                ("xendev-devd", "1"),
                ("physical-device", "7:0"),
                ("state", "4"),
                ("a", ""),
                ("hotplug-status", "connected"),
            ],
            4.0,
        ),
    ] {
        let mut scene = Scene::new().await;
        // A guest that does not run yet.
        scene._drivers[1] = Drivers::frontends(scene.world.guest.clone(), DomId(9), LATENCY).unwrap();
        let (added, clock) = join!(async { (scene.add().await, scene.world.clock()) }, async {
            scene.state_is("2").await;
            let clock = scene.world.clock();
            for (key, value) in words {
                scene.says(key, value).await;
                sleep(Duration::from_secs(1)).await;
            }
            clock
        });
        added.0.unwrap();
        assert_eq!(added.1 - clock, seconds, "{words:?}");
    }
}

/// The backend connects as soon as there is a block device, and the script goes on and fails.
#[tokio::test(start_paused = true)]
async fn b10_a_script_that_fails_after_the_backend_has_connected() {
    let scene = Scene::new().await;
    let (added, ()) = join!(scene.add(), async {
        scene.state_is("2").await;
        scene.says("xendev-devd", "1").await;
        scene.says("physical-device", "7:0").await;
        scene.state_is("4").await;
        sleep(Duration::from_secs(5)).await;
        scene.says("hotplug-error", "late trouble").await;
        scene.says("hotplug-status", "error").await;
        scene.cleans_up().await;
    });
    assert_eq!(added.unwrap_err().cause.code(), "driver_domain_script");
    scene.nothing_is_left().await;
}

/// Vector 22. The daemon's script takes 25 s, and the backend's directory goes at 35 s.
/// B-12.
#[tokio::test(start_paused = true)]
async fn v22_b12_the_driver_domain_removes_the_backend_late() {
    let scene = Scene::new().await;
    scene.add_connected().await;
    let begun = scene.world.clock();
    let (removed, ()) = join!(scene.remove(Force::Never), async {
        scene.state_is("6").await;
        scene.world.at(begun + 35.0).await;
        scene.dd.rm(&path(BE)).await.unwrap();
    });
    assert_eq!(warned(&removed.unwrap()), [""; 0]);
    assert_eq!(scene.world.clock() - begun, 35.0);
    scene.nothing_is_left().await;
}

/// What is to be done is to be done where it was not: in the driver domain, or in the guest.
#[tokio::test(start_paused = true)]
async fn a_hint_names_the_domain_that_is_to_blame() {
    let never = CancellationToken::new();
    // The states of both ends once the toolstack has written its part, and what follows.
    for (backend, frontend, hint) in [
        (&[][..], "1", Hint::LoadBackendIn("xen-blkback", DD)),
        (&["nonsense"], "1", Hint::ReadKernelLogOf(DD)),
        (&["2"], "1", Hint::CheckGuest("xen-blkfront")),
        (&["2"], "3", Hint::ReadKernelLogOf(DD)),
        (&["2", "6"], "1", Hint::ReadKernelLogOf(DD)),
        (&["2", "gone"], "1", Hint::ReadKernelLogOf(DD)),
    ] {
        let mut scene = Scene::new().await;
        scene.stop_drivers();
        let (added, ()) = join!(scene.world.add_with(disk(), WaitFor::Connected, &never), async {
            scene.state_is("1").await;
            for state in backend {
                sleep(Duration::from_millis(100)).await;
                if *state == "gone" {
                    scene.dd.rm(&path(BE)).await.unwrap();
                    continue;
                }
                if *state == "2" {
                    scene.says("physical-device", "7:0").await;
                    scene.says("hotplug-status", "connected").await;
                }
                scene.says("state", state).await;
            }
            if frontend != "1" {
                scene.world.guest_says(frontend).await;
            }
        });
        let failure = added.unwrap_err();
        assert_eq!(failure.hint(), hint, "{backend:?} {frontend}: {failure:?}");
    }
    for (frontend, hint) in [("6", Hint::RemoveAgainOrLeave(DD)), ("4", Hint::RemoveAgainOrForce)] {
        let mut scene = Scene::new().await;
        scene.add_connected().await;
        scene.stop_drivers();
        let (removed, ()) = join!(scene.remove(Force::Never), async {
            scene.state_is("5").await;
            scene.world.guest_says(frontend).await;
        });
        assert_eq!(removed.unwrap_err().hint(), hint, "{frontend}");
    }
}

/// A device of `xl`, whose backend is where the record says: it is detached, whatever the guest's directory says.
/// B-14.
#[tokio::test(start_paused = true)]
async fn the_backend_is_in_another_domain() {
    for (be, kind) in [(BE, "phy"), (QDISK, "qdisk")] {
        let scene = Scene::new().await;
        scene.add_connected().await;
        // As `xl` has it, for a disk of the driver domain's QEMU.
        if kind == "qdisk" {
            scene.world.dom0.rm(&path("/local/domain/3/backend/vbd")).await.unwrap();
            for (node, value) in [
                (format!("{LX}/backend"), QDISK),
                (format!("{FE}/backend"), "/local/domain/0/backend/vbd/1/51712"),
                (format!("{QDISK}/state"), "4"),
                (format!("{QDISK}/online"), "1"),
            ] {
                scene.world.write(&node, value).await;
            }
        }
        let (removed, ()) = join!(scene.remove(Force::Never), async {
            scene.world.reads(&format!("{be}/online"), |value| value == "0").await;
            if kind == "qdisk" {
                scene.world.write(&format!("{be}/state"), "6").await;
            }
            scene.world.reads(&format!("{be}/state"), |value| value == "6").await;
            scene.world.dom0.rm(&path(be)).await.unwrap();
        });
        let removed = removed.unwrap();
        assert_eq!(
            (removed.id.be, removed.id.be_kind.name()),
            (DD, if kind == "phy" { "vbd" } else { kind })
        );
        scene.nothing_is_left().await;
    }
}

/// All devices of a domain that goes, wherever their backends are.
#[tokio::test(start_paused = true)]
async fn a_domain_goes_whose_backends_are_in_a_driver_domain() {
    let scene = Scene::new().await;
    let _devd = scene.devd();
    let _backends = Drivers::backends(scene.world.dom0.clone(), DomId::DOM0, LATENCY).unwrap();
    scene.add_connected().await;
    scene.world.add(nic()).await.unwrap();
    scene.world.add(crate::world::disk_named("xvdb")).await.unwrap();
    let plan = Plan::destroy(&scene.world.toolstack, GUEST).await.unwrap();
    assert_eq!((plan.operations().len(), plan.left().len()), (3, 0));
    let outcome = plan.run(&scene.world.toolstack, &CancellationToken::new()).finish().await;
    assert!(outcome.is_done(), "{outcome:?}");
    scene.nothing_is_left().await;
}

/// A dry run tells what is written there, and of no script here.
#[tokio::test(start_paused = true)]
async fn a_dry_run_of_an_attach_through_a_driver_domain() {
    let scene = Scene::new().await;
    let preview = scene.world.toolstack.preview(GUEST, &disk(), WaitFor::Script).await.unwrap();
    assert_eq!((preview.device.be, preview.scripts), (DD, vec![]));
    let writes = format!("{:?}", preview.writes);
    assert!(
        writes.contains(&format!("Write {{ path: \"{BE}/script\"")) && writes.contains("n3,r1"),
        "{writes}"
    );
    assert_eq!(scene.world.proxy.writes(), 0);
    scene.nothing_is_left().await;
}

/// An attach that died in the middle is gone on with by the next one.
#[tokio::test(start_paused = true)]
async fn an_attach_that_died_is_undone_by_the_next() {
    let scene = Scene::new().await;
    timeout(Duration::from_secs(1), scene.add()).await.unwrap_err();
    assert_eq!(scene.world.read(&format!("{BE}/state")).await, "2");
    let _devd = scene.devd();
    scene.add().await.unwrap();
    scene.remove(Force::Never).await.unwrap();
    scene.nothing_is_left().await;
}

/// A backend that no toolstack has recorded is found where it is, and can be adopted.
#[tokio::test(start_paused = true)]
async fn a_backend_that_nobody_recorded_is_found_in_the_driver_domain() {
    let scene = Scene::new().await;
    scene.add_connected().await;
    scene.world.dom0.rm(&path("/libxl/1/device/vbd")).await.unwrap();
    let failure = scene.add().await.unwrap_err();
    assert!(matches!(failure.cause, Cause::Unrecorded(_)), "{failure}");
    let never = CancellationToken::new();
    let removal = Removal::from(Force::AtOnce).adopt(true);
    let removed = scene.world.toolstack.remove(GUEST, (Kind::Vbd, 51712), removal, &never);
    let (removed, ()) = join!(removed, scene.cleans_up());
    let removed = removed.unwrap();
    assert_eq!((removed.id.be, warned(&removed)), (DD, vec![]));
    scene.nothing_is_left().await;
}

/// Who runs the scripts decides what is waited for.
#[test]
fn who_runs_the_scripts() {
    let which = xen_aodevice::Which { fe: GUEST, kind: Kind::Vbd, devid: 51712 };
    let recorded = || [("script".to_owned(), "/etc/xen/scripts/block".to_owned())];
    let target = |run_by| {
        let target = xen_aodevice::Target::new(xen_aodevice::DeviceId::new(which, DD), recorded()).unwrap();
        let target = target.with_scripts_run_by(run_by);
        (target.runs(), target.runs_of_daemon(), target.daemon_removes())
    };
    assert_eq!(target(RunBy::Toolstack), (1, 0, false));
    assert_eq!(target(RunBy::Daemon), (0, 1, true));
    assert_eq!(target(RunBy::Nobody), (0, 0, false));
}

/// The daemon refuses a device that it has no program for. Its kernel has no driver for it, so the state stays at 1: the
/// attach does not wait for another, and tells what the daemon has said.
#[tokio::test(start_paused = true)]
async fn what_the_daemon_refuses_is_told_whatever_the_state() {
    for state in ["1", "2"] {
        let scene = Scene::new().await;
        let disk = Device::Vbd(vbd::parse(&["/srv/d.img,qcow2,xvda,w,backend=dd"]).unwrap());
        let (ended, ()) = join!(scene.world.add(disk), async {
            scene.world.reads(&format!("{QDISK}/state"), |value| value == "1").await;
            let keys = [("hotplug-error", "no QEMU here"), ("hotplug-status", "error"), ("state", state)];
            for (key, value) in keys {
                scene.dd.write(&path(format!("{QDISK}/{key}")), value.to_owned()).await.unwrap();
            }
            scene.world.reads(&format!("{QDISK}/online"), |value| value != "1").await;
            if scene.world.read(QDISK).await != "not there" {
                scene.dd.write(&path(format!("{QDISK}/state")), "6".to_owned()).await.unwrap();
                scene.dd.rm(&path(QDISK)).await.unwrap();
            }
        });
        let failure = ended.unwrap_err();
        let Cause::DriverDomain { fault: DriverDomainFault::Script { error, .. }, .. } = &failure.cause
        else {
            panic!("{state}: {failure}")
        };
        assert_eq!(error.as_deref(), Some("no QEMU here"));
        scene.nothing_is_left().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_does_not_serve_itself() {
    let scene = Scene::new().await;
    let failure = scene.world.add(disk_of(&GUEST.to_string())).await.unwrap_err();
    assert!(matches!(failure.cause, Cause::Invalid(_)), "{failure}");
    scene.nothing_is_left().await;
}

/// A disk that the driver domain's QEMU serves: its state is the report, so also that of libxl's daemon, which writes no
/// other. A QEMU that is being started has its time, one that runs the time of any backend.
#[tokio::test(start_paused = true)]
async fn a_disk_of_the_qemu_of_a_driver_domain_has_time_for_its_start() {
    let disk = || Device::Vbd(vbd::parse(&["/srv/d.img,qcow2,xvda,w,backend=dd"]).unwrap());
    for state in ["2", "4"] {
        let scene = Scene::new().await;
        let (ended, ()) = join!(scene.world.add(disk()), async {
            scene.world.reads(&format!("{QDISK}/state"), |value| value == "1").await;
            scene.world.at(50.0).await;
            scene.dd.write(&path(format!("{QDISK}/state")), state).await.unwrap();
        });
        ended.unwrap();
        assert_eq!(scene.world.clock(), 50.0);
    }
    for (running, limit) in [(None, 75), (Some(20.0), 15)] {
        let scene = Scene::new().await;
        let (ended, ()) = join!(scene.world.add(disk()), async {
            scene.world.reads(&format!("{QDISK}/state"), |value| value == "1").await;
            if let Some(seconds) = running {
                scene.world.at(seconds).await;
                scene.world.write(&format!("{HOME}/device-model/1/state"), "running").await;
            }
        });
        let failure = ended.unwrap_err();
        let is_it =
            |cause: &Cause| matches!(cause, Cause::TimedOut { limit: had, .. } if had.as_secs() == limit);
        assert!(is_it(&failure.cause), "{running:?}: {failure}");
        _ = scene.world.dom0.rm(&path(format!("{HOME}/device-model"))).await;
        scene.nothing_is_left().await;
    }
}
