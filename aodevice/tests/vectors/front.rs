//! Which domain is meant, and which devices it can have.

use tokio::join;
use tokio_util::sync::CancellationToken;
use xen_aodevice::{Cause, Device, Force, Kind, find_domain, sim, vbd, vif};
use xs_client::DomId;

use crate::world::{GUEST, World, told};

fn nic_of(arguments: &[&str]) -> Device {
    Device::Vif(vif::parse(arguments).unwrap())
}

/// Adds an interface to a guest whose backend is ready at once.
async fn add_nic(world: &World, fe: DomId, arguments: &[&str], devid: u32) -> crate::world::Ended {
    let (device, never) = (nic_of(arguments), CancellationToken::new());
    let backend = format!("/local/domain/0/backend/vif/{fe}/{devid}");
    let ready = async {
        world.exists(&backend).await;
        world.write(&format!("{backend}/state"), "2").await;
    };
    tokio::select! {
        added = world.toolstack.add(fe, &device, xen_aodevice::WaitFor::Script, &never) => added,
        () = async { ready.await; std::future::pending().await } => unreachable!(),
    }
}

async fn found(world: &World, text: &str) -> Result<DomId, String> {
    find_domain(&world.dom0, text).await.map_err(|cause| cause.to_string())
}

/// D8. A name is that of a domain that runs: homes that dead domains have left do not count.
#[tokio::test(start_paused = true)]
async fn a_domain_by_name_is_one_that_runs() {
    let world = World::new().await;
    for (domid, name) in [(2, "web"), (3, "web"), (4, "gone"), (5, "12"), (6, "1x")] {
        world.store.introduce(DomId(domid));
        sim::create_domain(&world.dom0, DomId(domid), name).await.unwrap();
    }
    assert_eq!(found(&world, "web").await, Err("domains 2 and 3 all have the name web".to_owned()));
    for domid in [2, 4] {
        world.store.release(DomId(domid));
    }
    assert_eq!(found(&world, "web").await, Ok(DomId(3)));
    let gone = "domain 4 does not run: it has a home in the store, but the store does not know it";
    assert_eq!(found(&world, "gone").await, Err(gone.to_owned()));
    // As for xl, digits are a number and anything else is a name.
    for (text, domid) in [("3", 3), ("003", 3), ("1x", 6), ("Domain-0", 0), ("0", 0), ("g", 1)] {
        assert_eq!(found(&world, text).await, Ok(DomId(domid)), "{text}");
    }
    for text in ["", "12", "+3", " 3", "0x3", "99999999999999999999", "Web", "web "] {
        assert_eq!(found(&world, text).await, Err(format!("the store knows no domain {text}")), "{text:?}");
    }
    assert_eq!(found(&world, "4").await, Err(gone.to_owned()));
}

/// A domain that is gone gets no device, and what is left of its devices is removed by its number.
#[tokio::test(start_paused = true)]
async fn a_dead_domain_gets_no_device_and_is_cleaned_up() {
    let world = World::new().await;
    world.add_connected().await;
    world.store.release(GUEST);
    let failure = world.add(nic_of(&[])).await.unwrap_err();
    assert!(matches!(failure.cause, Cause::DomainGone(GUEST)), "{failure}");
    assert_eq!(told(&failure)[2], "CleanUpById(DomId(1))");
    world.backend_says("6").await;
    world.remove(Force::AtOnce).await.unwrap();
    assert_eq!(xen_aodevice::list(&world.dom0, GUEST, Kind::Vbd).await.unwrap(), []);
}

/// What is understood and cannot be served is refused by its name, and nothing is written.
#[tokio::test(start_paused = true)]
async fn what_is_not_served_yet_is_named() {
    let world = World::new().await;
    let before = world.dump().await;
    for (spec, what) in [
        ("/d,raw,xvda,colo", "COLO"),
        ("/d,raw,xvda,grant_usage=1", "grant_usage="),
        ("vdev=hdc,cdrom,backendtype=phy", "a CD-ROM drive without a medium by backendtype=phy"),
    ] {
        let failure = world.add(Device::Vbd(vbd::parse(&[spec]).unwrap())).await.unwrap_err();
        assert_eq!(failure.cause.to_string(), format!("{what} is not served yet"), "{spec}");
        assert!(matches!(failure.cause, Cause::Unsupported(_)));
    }
    let failure = world.add(nic_of(&["forwarddev=eth1"])).await.unwrap_err();
    assert_eq!(failure.cause.to_string(), "COLO is not served yet");
    for (spec, why) in [
        ("/d,qcow2,xvda,backendtype=phy", "backendtype=phy serves the format raw alone"),
        ("/d,qcow2,xvda,backendtype=tap", "backendtype=tap serves the formats raw and vhd alone"),
        ("/d,qcow2,xvda,specification=virtio", "a virtio disk is raw, is no CD-ROM, and has no script"),
        (
            "/d,raw,xvda,specification=virtio,backendtype=phy",
            "specification=virtio and backendtype=standalone go",
        ),
        ("/d,raw,xvda,backendtype=standalone", "specification=virtio and backendtype=standalone go"),
        ("/d,qcow2,xvda,script=block-x", "QEMU serves it, which runs no script"),
    ] {
        let failure = world.add(Device::Vbd(vbd::parse(&[spec]).unwrap())).await.unwrap_err();
        assert!(matches!(&failure.cause, Cause::Invalid(text) if text.starts_with(why)), "{spec}: {failure}");
    }
    // QEMU serves a drive without a medium, and the CD-ROMs of an HVM guest.
    let drive = vbd::parse(&[",,hdc:cdrom"]).unwrap();
    assert_eq!(world.add(Device::Vbd(drive)).await.unwrap_err().cause.code(), "no_device_model");
    world.write("/libxl/1/type", "hvm").await;
    for spec in ["/proc/self/exe,raw,hdc:cdrom", ",,hdc:cdrom"] {
        let failure = world.add(Device::Vbd(vbd::parse(&[spec]).unwrap())).await.unwrap_err();
        assert_eq!(failure.cause.code(), "no_device_model", "{spec}");
    }
    world.write("/libxl/1/type", "pv").await;
    assert_eq!(world.dump().await, before);
}

/// The toolstack's own domain can be named.
#[tokio::test(start_paused = true)]
async fn a_backend_in_the_toolstacks_own_domain() {
    let world = World::new().await;
    for backend in ["", "0", "Domain-0"] {
        let spec = format!("/d,raw,xvda,w,script=block,backend={backend}");
        let device = Device::Vbd(vbd::parse(&[spec]).unwrap());
        let (added, ()) = join!(world.add(device), async {
            world.exists(crate::world::BE).await;
            world.backend_says("2").await;
        });
        added.unwrap();
        world.remove(Force::AtOnce).await.unwrap();
    }
}

/// D7, B-32. The script renames the interface, and would take it from whoever has the name.
#[tokio::test(start_paused = true)]
async fn a_name_that_another_interface_has_is_refused() {
    let world = World::new().await;
    let other = DomId(2);
    world.store.introduce(other);
    sim::create_domain(&world.dom0, other, "other").await.unwrap();
    add_nic(&world, other, &["vifname=web0"], 0).await.unwrap();
    let refused = async |fe, arguments: &[&str]| match add_nic(&world, fe, arguments, 0).await {
        Err(failure) => failure.cause.to_string(),
        Ok(_) => panic!("{arguments:?}"),
    };
    assert_eq!(refused(GUEST, &["vifname=web0"]).await, "vif 0 of domain 2 has the vifname web0 already");
    assert_eq!(refused(other, &["vifname=web0"]).await, "vif 0 of domain 2 has the vifname web0 already");
    let default = "vifname=vif2.0 is the name of interface 0 of domain 2";
    assert_eq!(refused(GUEST, &["vifname=vif2.0"]).await, default);
    let far = DomId(12345);
    world.store.introduce(far);
    sim::create_domain(&world.dom0, far, "far").await.unwrap();
    let long = refused(far, &["devid=2147483647"]).await;
    assert!(long.starts_with("no interface can be called vif12345.2147483647: "), "{long}");
    add_nic(&world, GUEST, &["vifname=vif1.0"], 0).await.unwrap();
    // The number that it would get is 1 by now.
    let own = refused(GUEST, &["vifname=vif1.0"]).await;
    assert_eq!(own, "vifname=vif1.0 is the name of interface 0 of domain 1");
}

/// D6. A value that equals the default is a value: the script takes the bridge's MTU if none is written.
#[tokio::test(start_paused = true)]
async fn an_explicit_mtu_of_1500_is_written() {
    let world = World::new().await;
    for (arguments, mtu) in [(&["mtu=1500"][..], Some("1500")), (&[], None)] {
        add_nic(&world, GUEST, arguments, 0).await.unwrap();
        let node = crate::world::path("/local/domain/0/backend/vif/1/0/mtu");
        let read = world.dom0.read_opt(&node).await.unwrap();
        assert_eq!(read.as_deref(), mtu.map(str::as_bytes), "{arguments:?}");
        let never = CancellationToken::new();
        world.toolstack.remove(GUEST, (Kind::Vif, 0), Force::AtOnce, &never).await.unwrap();
    }
}
