//! The kinds of device that have no hotplug script: their trees, as `xl` of Xen 4.17 left them on a real host, and
//! their ways from attach to detach, with who serves them and without.

use std::time::Duration;

use tokio::join;
use tokio_util::sync::CancellationToken;
use xen_aodevice::{
    BackendKind, Cause, Device, Force, Hint, Kind, Listed, ListedValue, Plan, Server, WaitFor, list, pvcalls,
    sim, vdispl, virtio, vkb, vsnd, vtpm,
};
use xs_client::DomId;

use crate::tree::written;
use crate::world::{GUEST, World, added, path};

const UUID: &str = "11111111-2222-3333-4444-555555555555";

fn tpm() -> Device {
    Device::Vtpm(vtpm::parse(&["backend=0", &format!("uuid={UUID}")]).unwrap())
}

fn keyboard() -> Device {
    let words = [
        "backend-type=linux",
        "unique-id=T:1",
        "feature-multi-touch=1",
        "multi-touch-width=100",
        "multi-touch-height=200",
        "multi-touch-num-contacts=10",
        "feature-abs-pointer=1",
        "feature-raw-pointer=1",
        "feature-disable-keyboard=1",
        "feature-disable-pointer=1",
        "width=800",
        "height=600",
    ];
    Device::Vkb(vkb::parse(&words).unwrap())
}

fn display() -> Device {
    Device::Vdispl(vdispl::parse(&["be-alloc=1", "connectors=id0:800x600;id1:1024x768"]).unwrap())
}

fn sound() -> Device {
    let words = [
        "card, short-name=Main, long-name=A long one, sample-rates=8000;44100, sample-formats=s16_le;s8",
        "channels-min=1, channels-max=6, buffer-size=1000",
        "pcm, name=dev1, channels-max=2",
        "stream, unique-id=0, type=p",
        "stream, unique-id=1, type=c, buffer-size=7",
        "pcm, name=dev2, sample-formats=u8",
        "stream, unique-id=x, type=c",
    ];
    Device::Vsnd(vsnd::parse(&words).unwrap())
}

fn sockets() -> Device {
    Device::Pvcalls(pvcalls::parse(&["backend="]).unwrap())
}

fn i2c() -> Device {
    Device::Virtio(virtio::parse(&["type=virtio,device22,irq=33,base=0x2000000"]).unwrap())
}

/// The tree of device 0 of guest 1: what its frontend's directory holds, with permissions, and the backend's keys, of
/// which the toolstack has a copy.
fn tree(kind: Kind, backend: BackendKind, fe: &[&str], be: &[&str]) -> String {
    let (be_parent, fe_parent) =
        (format!("/local/domain/0/backend/{backend}"), format!("/local/domain/1/device/{kind}"));
    let lx_parent = format!("/libxl/1/device/{kind}");
    let (be_path, fe_path, lx_path) =
        (format!("{be_parent}/1/0"), format!("{fe_parent}/0"), format!("{lx_parent}/0"));
    let head = [r#"frontend-id = "1""#, r#"online = "1""#, r#"state = "1""#];
    let keys = || head.iter().chain(be);
    let mut lines = vec![
        format!(r#"{be_parent} = ""   (n0)"#),
        format!(r#"{be_parent}/1 = ""   (n0)"#),
        format!(r#"{be_path} = ""   (n0,r1)"#),
        format!(r#"{be_path}/frontend = "{fe_path}"   (n0,r1)"#),
    ];
    lines.extend(keys().map(|key| format!("{be_path}/{key}   (n0,r1)")));
    lines.push(format!(r#"{fe_parent} = ""   (n0,r1)"#));
    lines.push(format!(r#"{fe_path} = ""   (n1,r0)"#));
    lines.push(format!(r#"{fe_path}/backend = "{be_path}"   (n1,r0)"#));
    lines.push(format!(r#"{fe_path}/backend-id = "0"   (n1,r0)"#));
    lines.push(format!(r#"{fe_path}/state = "1"   (n1,r0)"#));
    lines.extend(fe.iter().map(|line| format!("{fe_path}/{line}")));
    lines.push(format!(r#"{lx_parent} = ""   (n0)"#));
    lines.push(format!(r#"{lx_path} = ""   (n0)"#));
    lines.push(format!(r#"{lx_path}/frontend = "{fe_path}"   (n0)"#));
    lines.push(format!(r#"{lx_path}/backend = "{be_path}"   (n0)"#));
    lines.extend(keys().map(|key| format!("{lx_path}/{key}   (n0)")));
    format!("\n{}\n", lines.join("\n"))
}

/// `xl vtpm-attach g backend=0 uuid=...`
#[tokio::test(start_paused = true)]
async fn a_vtpm() {
    let uuid = format!("uuid = \"{UUID}\"");
    let be = [r#"handle = "0""#, &uuid, r#"resume = "False""#];
    let expected = tree(Kind::Vtpm, BackendKind::Vtpm, &[r#"handle = "0"   (n1,r0)"#], &be);
    assert_eq!(written(&World::new().await, tpm()).await, expected);
}

/// `xl vkb-attach g backend-type=linux unique-id=T:1 ...`
#[tokio::test(start_paused = true)]
async fn a_vkb() {
    let be = [
        r#"unique-id = "T:1""#,
        r#"feature-disable-keyboard = "1""#,
        r#"feature-disable-pointer = "1""#,
        r#"feature-abs-pointer = "1""#,
        r#"feature-raw-pointer = "1""#,
        r#"feature-multi-touch = "1""#,
        r#"multi-touch-width = "100""#,
        r#"multi-touch-height = "200""#,
        r#"multi-touch-num-contacts = "10""#,
        r#"width = "800""#,
        r#"height = "600""#,
    ];
    let expected = tree(Kind::Vkbd, BackendKind::Vinput, &[], &be);
    assert_eq!(written(&World::new().await, keyboard()).await, expected);
}

/// `xl vdispl-attach g be-alloc=1 'connectors=id0:800x600;id1:1024x768'`
#[tokio::test(start_paused = true)]
async fn a_vdispl() {
    let fe = [
        r#"be-alloc = "1"   (n0,r1)"#,
        r#"0 = ""   (n1,r0)"#,
        r#"0/resolution = "800x600"   (n0,r1)"#,
        r#"0/unique-id = "id0"   (n0,r1)"#,
        r#"1 = ""   (n1,r0)"#,
        r#"1/resolution = "1024x768"   (n0,r1)"#,
        r#"1/unique-id = "id1"   (n0,r1)"#,
    ];
    let expected = tree(Kind::Vdispl, BackendKind::Vdispl, &fe, &[]);
    assert_eq!(written(&World::new().await, display()).await, expected);
}

/// `xl vsnd-attach g 'card, short-name=Main, ...' 'pcm, name=dev1, ...' ...`
#[tokio::test(start_paused = true)]
async fn a_vsnd() {
    let fe = [
        r#"long-name = "A long one"   (n1,r0)"#,
        r#"short-name = "Main"   (n1,r0)"#,
        r#"sample-rates = "8000,44100"   (n1,r0)"#,
        r#"sample-formats = "s16_le,s8"   (n1,r0)"#,
        r#"channels-min = "1"   (n1,r0)"#,
        r#"channels-max = "6"   (n1,r0)"#,
        r#"buffer-size = "1000"   (n1,r0)"#,
        r#"0 = ""   (n1,r0)"#,
        r#"0/name = "dev1"   (n1,r0)"#,
        r#"0/channels-max = "2"   (n1,r0)"#,
        r#"0/0 = ""   (n1,r0)"#,
        r#"0/0/unique-id = "0"   (n1,r0)"#,
        r#"0/0/type = "p"   (n1,r0)"#,
        r#"0/1 = ""   (n1,r0)"#,
        r#"0/1/unique-id = "1"   (n1,r0)"#,
        r#"0/1/type = "c"   (n1,r0)"#,
        r#"0/1/buffer-size = "7"   (n1,r0)"#,
        r#"1 = ""   (n1,r0)"#,
        r#"1/name = "dev2"   (n1,r0)"#,
        r#"1/sample-formats = "u8"   (n1,r0)"#,
        r#"1/0 = ""   (n1,r0)"#,
        r#"1/0/unique-id = "x"   (n1,r0)"#,
        r#"1/0/type = "c"   (n1,r0)"#,
    ];
    let expected = tree(Kind::Vsnd, BackendKind::Vsnd, &fe, &[]);
    assert_eq!(written(&World::new().await, sound()).await, expected);
}

/// By the specification alone: no `xl` attaches these.
#[tokio::test(start_paused = true)]
async fn pvcalls_and_virtio() {
    let world = World::new().await;
    assert_eq!(written(&world, sockets()).await, tree(Kind::Pvcalls, BackendKind::Pvcalls, &[], &[]));
    let be = [
        r#"irq = "33""#,
        r#"base = "0x2000000""#,
        r#"type = "virtio,device22""#,
        r#"transport = "mmio""#,
        r#"grant_usage = "0""#,
    ];
    assert_eq!(written(&world, i2c()).await, tree(Kind::Virtio, BackendKind::Virtio, &[], &be));
}

fn all() -> [Device; 6] {
    [tpm(), keyboard(), display(), sound(), sockets(), i2c()]
}

/// With who serves them, all come and go, and nothing is left; their ids are counted for each kind.
#[tokio::test(start_paused = true)]
async fn with_who_serves_them() {
    let world = World::new().await;
    let before = world.dump().await;
    let _backends = sim::Drivers::backends(world.dom0.clone(), DomId::DOM0, Duration::ZERO).unwrap();
    let _frontends = sim::Drivers::frontends(world.guest.clone(), GUEST, Duration::ZERO).unwrap();
    for device in all() {
        let kind = device.kind();
        let never = CancellationToken::new();
        let success = world.add_with(device.clone(), WaitFor::Connected, &never).await.unwrap();
        assert_eq!((success.id.kind, success.id.devid), (kind, 0));
        let listed = list(&world.dom0, GUEST, kind).await.unwrap();
        let [Listed { id, .. }] = &listed[..] else { panic!("{listed:?}") };
        assert_eq!(*id, success.id);
        let another = match device {
            Device::Vtpm(_) => Device::Vtpm(vtpm::Vtpm::default()),
            Device::Virtio(_) => {
                Device::Virtio(virtio::parse(&["type=virtio,device22,irq=34,base=0x2000200"]).unwrap())
            }
            device => device,
        };
        assert_eq!(world.add(another).await.unwrap().id.devid, 1, "{kind}");
    }
    assert!(Plan::destroy(&world.toolstack, GUEST).await.unwrap().operations().len() == 12);
    for kind in all().map(|device| device.kind()) {
        for devid in [0, 1] {
            let never = CancellationToken::new();
            let removed = world.toolstack.remove(GUEST, (kind, devid), Force::AfterTimeout, &never).await;
            assert!(removed.unwrap().warnings.is_empty());
        }
    }
    assert_eq!(added(&before, &world.dump().await), Vec::<String>::new());
}

/// Nobody serves them: an attach fails after 10 s and says whom to start, unless it is told not to wait.
#[tokio::test(start_paused = true)]
async fn without_who_serves_them() {
    for device in all() {
        let (world, kind) = (World::new().await, device.kind());
        let before = world.dump().await;
        let failure = world.add(device.clone()).await.unwrap_err();
        assert!(matches!(failure.cause, Cause::TimedOut { .. }), "{failure}");
        let backend = failure.observed.served_by.unwrap();
        let expected = match backend.server() {
            Server::Daemon => Hint::StartBackend(backend),
            _ => Hint::LoadBackend("pvcalls-back"),
        };
        assert_eq!((failure.hint(), world.clock()), (expected, 10.0), "{kind}");
        assert_eq!(world.dump().await, before, "nothing is left");

        let never = CancellationToken::new();
        world.add_with(device, WaitFor::Tree, &never).await.unwrap();
        assert_eq!(world.clock(), 10.0, "{kind}: it was not waited for");
        world.toolstack.remove(GUEST, (kind, 0), Force::AfterTimeout, &never).await.unwrap();
        assert_eq!(world.clock(), 10.0, "{kind}: a backend that nobody took up goes at once");
        assert_eq!(world.dump().await, before);
    }
}

/// A program that serves a device and dies is not waited for beyond the deadline, and has left no device behind.
#[tokio::test(start_paused = true)]
async fn who_served_it_has_died() {
    let world = World::new().await;
    let before = world.dump().await;
    let never = CancellationToken::new();
    world.add_with(display(), WaitFor::Tree, &never).await.unwrap();
    world.write("/local/domain/0/backend/vdispl/1/0/state", "4").await;
    world.guest.write(&path("/local/domain/1/device/vdispl/0/state"), "4").await.unwrap();
    let removed = world.toolstack.remove(GUEST, (Kind::Vdispl, 0), Force::Never, &never).await.unwrap_err();
    assert!(matches!(removed.cause, Cause::TimedOut { .. }), "{removed}");
    let removed =
        world.toolstack.remove(GUEST, (Kind::Vdispl, 0), Force::AfterTimeout, &never).await.unwrap();
    assert!(!removed.warnings.is_empty());
    assert_eq!(world.dump().await, before);
}

#[tokio::test(start_paused = true)]
async fn one_uuid_is_of_one_module() {
    let world = World::new().await;
    let never = CancellationToken::new();
    world.add_with(tpm(), WaitFor::Tree, &never).await.unwrap();
    let failure = world.add_with(tpm(), WaitFor::Tree, &never).await.unwrap_err();
    assert!(
        failure.to_string().contains(&format!("vtpm 0 of domain 1 has the uuid {UUID} already")),
        "{failure}"
    );
}

/// Nor have two virtio devices of a guest one interrupt, or their registers in one place.
#[tokio::test(start_paused = true)]
async fn an_interrupt_and_an_address_are_of_one_virtio_device() {
    let world = World::new().await;
    let never = CancellationToken::new();
    world.add_with(i2c(), WaitFor::Tree, &never).await.unwrap();
    for (words, has) in [
        ("type=virtio,device1,irq=33,base=0x1000", "the irq 33"),
        ("type=virtio,device1,irq=1,base=33554432", "the base 0x2000000"),
    ] {
        let device = Device::Virtio(virtio::parse(&[words]).unwrap());
        let failure = world.add_with(device, WaitFor::Tree, &never).await.unwrap_err();
        let says = format!("virtio 0 of domain 1 has {has} already");
        assert_eq!(failure.cause.to_string(), says, "{words}");
    }
}

/// Where no frontend can ever serve it, it is refused and not waited for; a disk of domain 0 is as good as any.
#[tokio::test(start_paused = true)]
async fn domain_0_has_what_it_can_use() {
    let world = World::new().await;
    let before = world.dump().await;
    let never = CancellationToken::new();
    let add =
        async |device: Device, wait_for| world.toolstack.add(DomId::DOM0, &device, wait_for, &never).await;
    let channel = xen_aodevice::console::parse(&["name=c,connection=pty"]).unwrap();
    let framebuffer = xen_aodevice::vfb::parse("vnc=1").unwrap();
    for device in [keyboard(), display(), i2c(), Device::Channel(channel), Device::Vfb(framebuffer)] {
        for wait_for in [WaitFor::Script, WaitFor::Tree] {
            let failure = add(device.clone(), wait_for).await.unwrap_err();
            let code = failure.cause.code();
            assert_eq!((code, failure.hint()), ("not_in_domain0", Hint::NameGuest), "{failure}");
        }
    }
    assert_eq!(world.dump().await, before);
    add(tpm(), WaitFor::Tree).await.unwrap();
    let (added, ()) = join!(add(crate::world::disk(), WaitFor::Script), async {
        let be = "/local/domain/0/backend/vbd/0/51712";
        world.exists(be).await;
        world.write(&format!("{be}/state"), "2").await;
    });
    added.unwrap();
}

/// A backend that is a program of its own, or QEMU, does not log where the kernel does.
#[tokio::test(start_paused = true)]
async fn whoever_refuses_a_device_is_asked_why() {
    for (device, hint) in [
        (sound(), Hint::ReadBackendLog(BackendKind::Vsnd)),
        (tpm(), Hint::ReadBackendLog(BackendKind::Vtpm)),
        (sockets(), Hint::ReadKernelLog),
    ] {
        let world = World::new().await;
        let backend = device.kind().info().backends[0];
        let be = format!("/local/domain/0/backend/{backend}/1/0");
        let (ended, ()) = join!(world.add(device), async {
            world.exists(&be).await;
            world.write(&format!("{be}/state"), "6").await;
        });
        let failure = ended.unwrap_err();
        assert!(matches!(failure.cause, Cause::Refused { .. }), "{failure}");
        assert_eq!(failure.hint(), hint, "{failure}");
    }
}

/// As many as a display may be said to have.
#[tokio::test(start_paused = true)]
async fn all_connectors_are_listed() {
    let of = |count: usize| {
        let connectors: Vec<String> = (0..count).map(|index| format!("id{index}:8x6")).collect();
        vdispl::parse(&[format!("connectors={}", connectors.join(";"))])
    };
    let world = World::new().await;
    let never = CancellationToken::new();
    world.add_with(Device::Vdispl(of(100).unwrap()), WaitFor::Tree, &never).await.unwrap();
    let listed = list(&world.dom0, GUEST, Kind::Vdispl).await.unwrap();
    assert_eq!(listed[0].parts().len(), 100);
    assert!(of(1024).is_ok());
    assert_eq!(of(1025).unwrap_err().to_string(), "a display has at most 1024 connectors here");
}

#[tokio::test(start_paused = true)]
async fn a_backend_domain_that_is_not_there_is_refused_by_name() {
    for device in [
        Device::Vtpm(vtpm::parse(&["backend=tpms"]).unwrap()),
        Device::Vkb(vkb::parse(&["backend=tpms,backend-type=linux"]).unwrap()),
        Device::Vdispl(vdispl::parse(&["backend=tpms,connectors=a:1x1"]).unwrap()),
        Device::Vsnd(vsnd::parse(&["card,backend=tpms"]).unwrap()),
        Device::Pvcalls(pvcalls::parse(&["backend=tpms"]).unwrap()),
        Device::Virtio(virtio::parse(&["backend=tpms,type=virtio,device,irq=1,base=1"]).unwrap()),
    ] {
        let failure = World::new().await.add(device).await.unwrap_err();
        assert!(failure.to_string().contains("backend=tpms: the store knows no domain tpms"), "{failure}");
    }
}

/// What a guest can write into its directory is shown in part and escaped, or is not there.
#[tokio::test(start_paused = true)]
async fn parts_are_listed_as_far_as_they_can_be_trusted() {
    let world = World::new().await;
    world.add_with(sound(), WaitFor::Tree, &CancellationToken::new()).await.unwrap();
    let stream = "/local/domain/1/device/vsnd/0/0/1";
    for (key, value) in [("unique-id", "\u{1b}[2J"), ("ring-ref", "8"), ("event-channel", "x")] {
        world.guest.write(&path(format!("{stream}/{key}")), value).await.unwrap();
    }
    // More than the quota of this guest has room for.
    for index in 2..1100 {
        world.dom0.write(&path(format!("/local/domain/1/device/vsnd/0/{index}")), "").await.unwrap();
    }
    let listed = list(&world.dom0, GUEST, Kind::Vsnd).await.unwrap();
    assert_eq!(listed[0].parts().len(), 1024);
    let streams = Kind::Vsnd.info().parts.unwrap().parts.unwrap().of(&listed[0].parts()[0]);
    assert_eq!(streams.len(), 2);
    let value = |name: &str| streams[1][name].clone();
    assert_eq!(value("ring_ref"), Some(ListedValue::Number(8)));
    assert_eq!(value("event_channel"), None);
    assert!(matches!(value("unique_id"), Some(ListedValue::Text(text)) if !text.contains('\u{1b}')));
    assert_eq!(listed[0].text("long_name"), Some("A long one"));
}

/// The same keyboard of QEMU's needs QEMU, unless it is to be there when that starts.
#[tokio::test(start_paused = true)]
async fn a_keyboard_of_qemus() {
    let world = World::new().await;
    let of_qemu = || Device::Vkb(vkb::parse(&["backend-type=qemu"]).unwrap());
    let failure = world.add(of_qemu()).await.unwrap_err();
    assert!(matches!(failure.cause, Cause::NoDeviceModel(_)), "{failure}");
    let never = CancellationToken::new();
    let (ended, ()) = join!(world.add_with(of_qemu(), WaitFor::Tree, &never), async {});
    assert_eq!(ended.unwrap().id.be_kind, BackendKind::Vkbd);
    // The number is one of both backends.
    assert_eq!(world.add_with(keyboard(), WaitFor::Tree, &never).await.unwrap().id.devid, 1);
}
