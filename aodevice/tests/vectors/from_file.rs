//! A plan from a domain's configuration file: its order, its ids, its dry run, and that it leaves no half.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use xen_aodevice::xl_cfg::{Settings, devices};
use xen_aodevice::{Addition, Attachment, Ended, Kind, Listed, Plan, list_all, sim};
use xs_client::DomId;

use crate::world::{GUEST, Line, World, path};
use crate::{pci, usbdev};

const LATENCY: Duration = Duration::from_millis(100);

const FILE: &str = "\
name = 'vm'
vif = [ 'mac=00:16:3e:00:00:01,script=vif-slow', # the first
        'mac=00:16:3e:00:00:02,script=vif-fast' ]
disk = [ '/srv/a.img,raw,xvda,w,script=block-a',
         '/srv/b.img,raw,xvdb,w,script=block-b', ]
";

fn of_file(text: &str) -> Vec<(Attachment, Addition)> {
    let found = devices(&Settings::parse(text).unwrap(), &Default::default()).unwrap();
    found.entries.into_iter().map(|entry| (entry.attachment, Addition::default())).collect()
}

/// The devices of the guest, as in `vif 0`; an interface with the end of its address.
async fn there(world: &World) -> Vec<String> {
    let shown = |device: &Listed| {
        let (kind, devid) = (device.id.kind, device.id.devid);
        let mac = device.text("mac").map_or_else(String::new, |mac| format!(" {}", &mac[12..]));
        format!("{kind} {}{mac}", (kind.info().id_name)(devid))
    };
    list_all(&world.dom0, GUEST).await.unwrap().iter().map(shown).collect()
}

/// Which interface a guest has first is said by the file, not by which script is faster.
#[tokio::test(start_paused = true)]
async fn ids_are_in_the_order_of_the_file() {
    let world = World::new().await;
    let _backends = sim::Drivers::backends(world.dom0.clone(), DomId::DOM0, LATENCY).unwrap();
    world.scripts.on("vif-slow online", Line::Takes(5.0));
    let cancel = CancellationToken::new();
    let plan = Plan::add(GUEST, of_file(FILE)).numbered(&world.toolstack).await.unwrap();
    let outcome = plan.run(&world.toolstack, &cancel).finish().await;
    assert!(outcome.is_done(), "{outcome:?}");
    assert_eq!(there(&world).await, ["vbd xvda", "vbd xvdb", "vif 0 00:01", "vif 1 00:02"]);

    // Ids that are said, or taken, are nobody else's.
    let more = "vif=['mac=00:16:3e:00:00:03', 'mac=00:16:3e:00:00:04,devid=2', 'mac=00:16:3e:00:00:05']";
    let plan = Plan::add(GUEST, of_file(more)).numbered(&world.toolstack).await.unwrap();
    assert!(plan.run(&world.toolstack, &cancel).finish().await.is_done());
    assert_eq!(there(&world).await[4..], ["vif 2 00:04", "vif 3 00:03", "vif 4 00:05"]);
}

/// An id that was chosen, and that somebody else takes before it is the device's, is chosen anew.
#[tokio::test(start_paused = true)]
async fn an_id_that_another_took_meanwhile_is_passed_over() {
    let world = World::new().await;
    let _backends = sim::Drivers::backends(world.dom0.clone(), DomId::DOM0, LATENCY).unwrap();
    let cancel = CancellationToken::new();
    let plan = Plan::add(GUEST, of_file(FILE)).numbered(&world.toolstack).await.unwrap().undo(true);
    let other = of_file("vif=['mac=00:16:3e:00:00:09']");
    assert!(Plan::add(GUEST, other).run(&world.toolstack, &cancel).finish().await.is_done());
    assert!(plan.previews(&world.toolstack).await.iter().all(|(_, preview)| preview.is_ok()));
    world.scripts.on("vif-slow online", Line::Takes(5.0));
    let outcome = plan.run(&world.toolstack, &cancel).finish().await;
    assert!(outcome.is_done(), "{outcome:?}");
    assert_eq!(there(&world).await[2..], ["vif 0 00:09", "vif 1 00:01", "vif 2 00:02"]);

    // Nor is one waited for that another is about to take.
    world.scripts.on("vif-held online", Line::Takes(20.0));
    let held = of_file("vif=['mac=00:16:3e:00:00:0a,script=vif-held']");
    let more = of_file("vif=['mac=00:16:3e:00:00:0b', 'mac=00:16:3e:00:00:0c']");
    let plan = Plan::add(GUEST, more).numbered(&world.toolstack).await.unwrap().take_over(true);
    let begun = world.clock();
    let (held, outcome) =
        tokio::join!(Plan::add(GUEST, held).run(&world.toolstack, &cancel).finish(), async {
            world.at(begun + 2.0).await;
            plan.run(&world.toolstack, &cancel).finish().await
        });
    assert!(held.is_done() && outcome.is_done(), "{held:?} {outcome:?}");
    assert_eq!(there(&world).await[5..], ["vif 3 00:0a", "vif 4 00:0b", "vif 5 00:0c"]);
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_tells_every_device_and_changes_nothing() {
    let world = World::new().await;
    let before = world.dump().await;
    let plan = Plan::add(GUEST, of_file(FILE)).numbered(&world.toolstack).await.unwrap();
    let previews = plan.previews(&world.toolstack).await;
    let devices: Vec<_> = previews
        .iter()
        .map(|(_, preview)| preview.as_ref().unwrap().as_ref().unwrap().device)
        .map(|id| (id.kind, id.devid))
        .collect();
    assert_eq!(devices, [(Kind::Vbd, 51712), (Kind::Vbd, 51728), (Kind::Vif, 0), (Kind::Vif, 1)]);
    assert_eq!(world.dump().await, before);
}

/// What is there already is told before anything is written, and is no part of what is undone.
#[tokio::test(start_paused = true)]
async fn what_is_there_already_stays() {
    let world = World::new().await;
    let _backends = sim::Drivers::backends(world.dom0.clone(), DomId::DOM0, LATENCY).unwrap();
    let cancel = CancellationToken::new();
    let first = of_file("disk=['/srv/b.img,raw,xvdb,w,script=block-b']");
    assert!(Plan::add(GUEST, first).run(&world.toolstack, &cancel).finish().await.is_done());
    let before = world.dump().await;
    let plan = Plan::add(GUEST, of_file(FILE)).numbered(&world.toolstack).await.unwrap().undo(true);
    let codes = plan.previews(&world.toolstack).await;
    let codes: Vec<_> =
        codes.iter().map(|(_, preview)| preview.as_ref().err().map(|no| no.cause.code())).collect();
    assert_eq!(codes, [None, Some("exists"), None, None]);
    let outcome = plan.run(&world.toolstack, &cancel).finish().await;
    assert!(matches!(&outcome.devices[1], Ended::Failed(no) if no.cause.code() == "exists"), "{outcome:?}");
    assert_eq!((world.dump().await, there(&world).await), (before, vec!["vbd xvdb".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_the_last_leaves_no_half() {
    let world = World::new().await;
    let _backends = sim::Drivers::backends(world.dom0.clone(), DomId::DOM0, LATENCY).unwrap();
    let before = world.dump().await;
    world.scripts.on("vif-slow online", Line::FailsAfter(2.0));
    let plan = Plan::add(GUEST, of_file(FILE)).numbered(&world.toolstack).await.unwrap();
    let outcome = plan.clone().undo(true).run(&world.toolstack, &CancellationToken::new()).finish().await;
    // In the order of the file's kinds: two disks, and the first interface failed.
    assert_eq!((outcome.first_failure, outcome.undone.len()), (Some(2), 3), "{outcome:?}");
    assert_eq!(outcome.undone.iter().map(|undone| undone.operation).next(), Some(3), "the last stage first");
    assert_eq!(world.dump().await, before);
    // Without, what was added stays.
    world.scripts.on("vif-slow online", Line::FailsAfter(2.0));
    plan.run(&world.toolstack, &CancellationToken::new()).finish().await;
    assert_eq!(there(&world).await, ["vbd xvda", "vbd xvdb", "vif 1 00:02"]);
}

/// USB devices of the host come into the controllers of the same file, and go again when a later one fails.
#[tokio::test(start_paused = true)]
async fn usb_devices_come_behind_their_controllers() {
    let host = usbdev::Host::new().await;
    let (world, toolstack) = (&host.world, &host.toolstack);
    let _backends = sim::Drivers::backends(world.dom0.clone(), DomId::DOM0, LATENCY).unwrap();
    let before = world.dump().await;
    let file = of_file(
        "usbdev=['hostbus=1,hostaddr=26,controller=0,port=2', 'hostbus=1,hostaddr=3,controller=0']
         usbctrl=['type=pv,ports=2']
         vif=['mac=00:16:3e:00:00:01,script=vif-a']",
    );
    let plan = Plan::add(GUEST, file).numbered(toolstack).await.unwrap().undo(true);
    let previews = plan.previews(toolstack).await;
    let told: Vec<_> = previews.iter().map(|(_, preview)| preview.as_ref().unwrap().is_some()).collect();
    assert_eq!(told, [true, true, false, false]);
    assert_eq!(world.dump().await, before);
    let cancel = CancellationToken::new();
    host.keeps(&["1-3:1.0"]);
    let outcome = plan.clone().run(toolstack, &cancel).finish().await;
    assert_eq!((outcome.first_failure, outcome.undone.len()), (Some(3), 3), "{outcome:?}");
    assert_eq!(outcome.undone.iter().map(|undone| undone.operation).collect::<Vec<_>>(), [2, 1, 0]);
    assert!(host.is_untouched());
    assert_eq!(world.dump().await, before);

    host.keeps(&[]);
    let outcome = plan.run(toolstack, &cancel).finish().await;
    assert!(outcome.is_done(), "{outcome:?}");
    let parts: Vec<_> = outcome.devices[2..].iter().map(told_of).collect();
    assert_eq!(parts, ["2 false", "1 false"]);
    // What another guest has, or this one, is seen before.
    let again = of_file("usbdev=['hostbus=1,hostaddr=26']");
    let previews = Plan::add(GUEST, again).previews(toolstack).await;
    assert_eq!(previews[0].1.as_ref().unwrap_err().cause.code(), "assigned");
}

/// A port in JSON, and whether its controller was made for it.
fn told_of(ended: &Ended) -> String {
    let told = serde_json::to_value(ended).unwrap();
    format!("{} {}", told["port"], told["made_controller"])
}

/// A controller that was made for a device goes with it.
#[tokio::test(start_paused = true)]
async fn a_controller_that_was_made_for_a_usb_device_is_undone() {
    let host = usbdev::Host::new().await;
    let (world, toolstack) = (&host.world, &host.toolstack);
    world.write("/local/domain/0/device-model/1/state", "running").await;
    let before = world.dump().await;
    let file = of_file(
        "usbdev=['hostbus=1,hostaddr=3', 'hostbus=1,hostaddr=26']
         vdispl=['connectors=a:1x1']",
    );
    let plan = Plan::add(GUEST, file).undo(true);
    let state = "/local/domain/0/backend/qusb/1/0/state";
    let served = async {
        world.exists(state).await;
        world.write(state, "2").await;
        // The device model lets go of it.
        world.reads(state, |state| state == "5").await;
        world.write(state, "6").await;
    };
    // Nobody serves displays.
    let (outcome, ()) = tokio::join!(plan.run(toolstack, &CancellationToken::new()).finish(), served);
    assert_eq!(outcome.first_failure, Some(2), "{outcome:?}");
    let parts: Vec<_> = outcome.devices[..2].iter().map(told_of).collect();
    assert_eq!(parts, ["1 true", "2 false"]);
    assert_eq!(world.dump().await, before, "{outcome:?}");
}

/// PCI functions come to one bus one after the other, and go again.
#[tokio::test(start_paused = true)]
async fn pci_functions_come_one_after_the_other() {
    let host = pci::Host::new().await;
    let (world, toolstack) = (&host.world, &host.toolstack);
    let before = world.dump().await;
    let cancel = CancellationToken::new();
    let lines = "pci=['3:0.0', '4:0.0@6,permissive=1']\n";
    let failing = of_file(&format!("{lines}vdispl=['connectors=a:1x1']"));
    let outcome = Plan::add(GUEST, failing).undo(true).run(toolstack, &cancel).finish().await;
    assert_eq!((outcome.first_failure, outcome.undone.len()), (Some(2), 2), "{outcome:?}");
    assert_eq!(host.functions().await, (Vec::new(), Vec::new()));
    assert_eq!(world.dump().await, before);
    let outcome = Plan::add(GUEST, of_file(lines)).run(toolstack, &cancel).finish().await;
    assert!(outcome.is_done(), "{outcome:?}");
    assert_eq!(serde_json::to_value(&outcome).unwrap()["devices"][1]["function"], "0000:04:00.0");
    assert_eq!(host.functions().await.0, ["3:0.0", "4:0.0"]);
    // What can be seen before: the guest has it, the host has none, or there is nobody to ask the hypervisor.
    let previews = Plan::add(GUEST, of_file("pci=['4:0.0', 'ff:0.0', '5:0.0']")).previews(toolstack).await;
    let codes = previews.iter().map(|(_, told)| told.as_ref().map_or_else(|no| no.cause.code(), |_| "ok"));
    assert_eq!(codes.collect::<Vec<_>>(), ["exists", "no_host_device", "ok"]);
    let previews = Plan::add(GUEST, of_file("pci=['5:0.0']")).previews(&world.toolstack).await;
    assert_eq!(previews[0].1.as_ref().unwrap_err().cause.code(), "not_supported");
}

/// One listing has what those of the kinds have, and what vanished or is no device is left out.
#[tokio::test(start_paused = true)]
async fn a_listing_of_all_kinds() {
    let world = World::new().await;
    let _backends = sim::Drivers::backends(world.dom0.clone(), DomId::DOM0, LATENCY).unwrap();
    let cancel = CancellationToken::new();
    assert!(Plan::add(GUEST, of_file(FILE)).run(&world.toolstack, &cancel).finish().await.is_done());
    world.write("/libxl/1/device/vif/7/no-backend", "").await;
    world.write("/libxl/1/device/vbd/nonsense/backend", "/local/domain/0/backend/vbd/1/1").await;
    let all = list_all(&world.dom0, GUEST).await.unwrap();
    let mut of_kinds = Vec::new();
    for kind in Kind::ALL {
        of_kinds.extend(xen_aodevice::list(&world.dom0, GUEST, kind).await.unwrap());
    }
    assert_eq!((all.len(), &all), (4, &of_kinds));
    world.dom0.rm(&path("/libxl/1")).await.unwrap();
    assert_eq!(list_all(&world.dom0, GUEST).await.unwrap(), []);
}
