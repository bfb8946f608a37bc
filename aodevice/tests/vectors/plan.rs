//! The devices of a domain as one: vector 26, and the rules of `Plan`.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use xen_aodevice::{
    Addition, Device, Ended, FailureKind, Kind, ModelEnd, Outcome, Plan, Planned, Progress, Undone, sim, vbd,
};
use xs_client::DomId;

use crate::qemu::{Model, connected};
use crate::world::{GUEST, Line, World, nic, path, tenths};

const LATENCY: Duration = Duration::from_millis(100);

/// A disk with a script of its own: `xvdb` has `block-xvdb`.
fn disk_named(name: &str) -> Device {
    Device::Vbd(vbd::parse(&[format!("/srv/d.img,raw,{name},w,script=block-{name}")]).unwrap())
}

fn additions(devices: impl IntoIterator<Item = Device>) -> Vec<(Device, Addition)> {
    devices.into_iter().map(|device| (device, Addition::default())).collect()
}

async fn run(world: &World, plan: Plan) -> Outcome {
    plan.run(&world.toolstack, &CancellationToken::new()).finish().await
}

/// In a word for each.
fn words(ended: &[Ended]) -> Vec<String> {
    let word = |ended: &Ended| match ended {
        Ended::Done(_) => "done".to_owned(),
        Ended::Failed(failure) => failure.cause.code().to_owned(),
        Ended::NotBegun { device } => format!("not begun: {device}"),
        other => panic!("{other:?}"),
    };
    ended.iter().map(word).collect()
}

/// 26. Three devices, the second fails first: that is the failure of all, and the others are done.
/// B-3.
#[tokio::test(start_paused = true)]
async fn the_failure_that_comes_first_in_time_is_named() {
    let world = World::new().await;
    let _backends = sim::Drivers::backends(world.dom0.clone(), DomId::DOM0, LATENCY).unwrap();
    world.scripts.on("block-xvda add", Line::FailsAfter(3.0));
    world.scripts.on("block-xvdb add", Line::FailsAfter(1.0));
    let plan = Plan::add(GUEST, additions(["xvda", "xvdb", "xvdc"].map(disk_named)));
    let outcome = run(&world, plan).await;
    assert_eq!(words(&outcome.devices), ["script", "script", "done"]);
    assert_eq!(outcome.first_failure, Some(1));
    assert_eq!(outcome.first_failure().unwrap().device.name, "xvdb");
    assert!(!outcome.is_done() && outcome.undone.is_empty() && !outcome.timed_out);
}

/// The order of a new domain: disks side by side, and interfaces only when all of them are there.
#[tokio::test(start_paused = true)]
async fn kinds_come_one_after_the_other() {
    let world = World::new().await;
    let _backends = sim::Drivers::backends(world.dom0.clone(), DomId::DOM0, LATENCY).unwrap();
    let before = world.dump().await;
    let devices = || additions([nic(), disk_named("xvda"), disk_named("xvdb")]);
    let mut run_of = Plan::add(GUEST, devices()).run(&world.toolstack, &CancellationToken::new());
    let mut ended = Vec::new();
    while let Some(progress) = run_of.next().await {
        if let Progress::Ended(index, _) = progress {
            ended.push(index);
        }
    }
    let outcome = run_of.finish().await;
    assert!(outcome.is_done(), "{outcome:?}");
    assert_eq!((ended.len(), ended[2]), (3, 0), "the interface comes last");

    // All of them go as one, side by side.
    let plan = Plan::destroy(&world.toolstack, GUEST).await.unwrap();
    assert_eq!((plan.operations().len(), plan.left().len()), (3, 0));
    let outcome = run(&world, plan).await;
    assert!(outcome.is_done() && matches!(outcome.model, Some(ModelEnd::NotThere)), "{outcome:?}");
    assert_eq!(world.dump().await, before);

    // If a disk fails, no interface is begun; with undo the other disk goes again.
    for undo in [false, true] {
        world.scripts.on("block-xvdb add", Line::FailsAfter(1.0));
        let outcome = run(&world, Plan::add(GUEST, devices()).undo(undo)).await;
        assert_eq!(words(&outcome.devices), ["not begun: vif on xenbr0", "done", "script"]);
        let undone: Vec<_> = outcome
            .undone
            .iter()
            .map(|Undone { operation, ended, .. }| (*operation, words(std::slice::from_ref(ended))))
            .collect();
        if undo {
            assert_eq!(undone, [(1, vec!["done".to_owned()])]);
        } else {
            assert!(undone.is_empty());
            run(&world, Plan::destroy(&world.toolstack, GUEST).await.unwrap()).await;
        }
        assert_eq!(world.dump().await, before, "undo: {undo}");
    }
}

/// Each operation is there before the first begins: the seed's rule, without which an early end of one would be
/// taken for the end of all. And there is an end of none at all.
#[tokio::test(start_paused = true)]
async fn a_plan_without_operations_ends() {
    let world = World::new().await;
    let outcome = run(&world, Plan::add(GUEST, Vec::<(Device, Addition)>::new())).await;
    assert!(outcome.is_done() && outcome.devices.is_empty());
    let outcome = run(&world, Plan::destroy(&world.toolstack, GUEST).await.unwrap()).await;
    assert!(outcome.is_done() && outcome.devices.is_empty(), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn no_more_are_at_work_than_may_be() {
    let world = World::new().await;
    let _backends = sim::Drivers::backends(world.dom0.clone(), DomId::DOM0, LATENCY).unwrap();
    let disks = ["xvda", "xvdb", "xvdc", "xvdd", "xvde"].map(disk_named);
    let (mut at_work, mut most) = (0, 0);
    let mut run =
        Plan::add(GUEST, additions(disks)).at_once(2).run(&world.toolstack, &CancellationToken::new());
    let mut begun = std::collections::BTreeSet::new();
    while let Some(progress) = run.next().await {
        match progress {
            Progress::Step(index, _) if begun.insert(index) => {
                (at_work, most) = (at_work + 1, most.max(at_work + 1));
            }
            Progress::Ended(..) => at_work -= 1,
            _ => {}
        }
    }
    assert!(run.finish().await.is_done());
    assert_eq!(most, 2);
}

/// One deadline for all: who has not ended by then is cancelled, and leaves what a cancelled operation leaves.
#[tokio::test(start_paused = true)]
async fn one_deadline_for_all() {
    let world = World::new().await;
    let _backends = sim::Drivers::backends(world.dom0.clone(), DomId::DOM0, LATENCY).unwrap();
    let before = world.dump().await;
    world.scripts.on("block-xvdb add", Line::Takes(30.0));
    let begun = tokio::time::Instant::now();
    let plan = Plan::add(GUEST, additions(["xvda", "xvdb"].map(disk_named)));
    let outcome = run(&world, plan.deadline(Duration::from_secs(2)).undo(true)).await;
    assert_eq!(words(&outcome.devices), ["done", "deadline"]);
    assert!(outcome.timed_out && tenths(begun.elapsed()) < 4.0, "{:?}", begun.elapsed());
    assert_eq!(outcome.first_failure().unwrap().cause.kind(), FailureKind::TimedOut);
    assert_eq!(world.dump().await, before);

    // A deadline that comes when all is cancelled, or when all is being undone, has ended nothing.
    world.scripts.on("block-xvdb add", Line::Takes(30.0));
    let plan = Plan::add(GUEST, additions(["xvda", "xvdb"].map(disk_named)));
    let cancel = CancellationToken::new();
    let run = plan.deadline(Duration::from_secs(2)).undo(true).run(&world.toolstack, &cancel);
    let begun = world.clock();
    let (outcome, ()) = tokio::join!(run.finish(), async {
        world.at(begun + 1.9).await;
        cancel.cancel();
    });
    assert_eq!(words(&outcome.devices), ["done", "cancelled"]);
    assert!(!outcome.timed_out, "{outcome:?}");
    assert_eq!(world.dump().await, before);
}

/// After a failure that undoes all, nothing more is begun: neither of the same kind nor of the next.
#[tokio::test(start_paused = true)]
async fn nothing_is_begun_to_be_undone() {
    let world = World::new().await;
    let _backends = sim::Drivers::backends(world.dom0.clone(), DomId::DOM0, LATENCY).unwrap();
    let before = world.dump().await;
    let plan = || Plan::add(GUEST, additions(["xvda", "xvdb", "xvdc"].map(disk_named))).at_once(1);
    world.scripts.on("block-xvda add", Line::FailsAfter(1.0));
    let outcome = run(&world, plan().undo(true)).await;
    assert_eq!(words(&outcome.devices), ["script", "not begun: vbd xvdb", "not begun: vbd xvdc"]);
    assert_eq!(world.dump().await, before);
    // If what was added stays, so does what can be added.
    world.scripts.on("block-xvda add", Line::FailsAfter(1.0));
    assert_eq!(words(&run(&world, plan()).await.devices), ["script", "done", "done"]);
}

/// What is cancelled before all has begun is undone as well.
#[tokio::test(start_paused = true)]
async fn what_was_not_begun_is_a_reason_to_undo() {
    let world = World::new().await;
    let _backends = sim::Drivers::backends(world.dom0.clone(), DomId::DOM0, LATENCY).unwrap();
    let before = world.dump().await;
    let cancel = CancellationToken::new();
    let plan = Plan::add(GUEST, additions([disk_named("xvda"), nic()])).undo(true);
    let mut run = plan.run(&world.toolstack, &cancel);
    while let Some(progress) = run.next().await {
        if matches!(progress, Progress::Ended(0, _)) {
            cancel.cancel();
        }
    }
    let outcome = run.finish().await;
    assert_eq!(words(&outcome.devices)[0], "done");
    assert!(!outcome.is_done() && outcome.undone.len() == 1, "{outcome:?}");
    assert_eq!(world.dump().await, before);
}

/// Ten devices of a domain that goes, one of whose scripts hangs, and one of a kind that is not served.
/// B-31, B-53.
#[tokio::test(start_paused = true)]
async fn a_domain_goes_with_all_its_devices() {
    let world = World::new().await;
    let _backends = sim::Drivers::backends(world.dom0.clone(), DomId::DOM0, LATENCY).unwrap();
    let before = world.dump().await;
    let names = ["xvda", "xvdb", "xvdc", "xvdd", "xvde", "xvdf", "xvdg", "xvdh", "xvdi"];
    let devices = names.map(disk_named).into_iter().chain([nic()]);
    assert!(run(&world, Plan::add(GUEST, additions(devices))).await.is_done());
    // Its record is gone, its backend is not (B-53).
    world.dom0.rm(&path("/libxl/1/device/vbd/51728")).await.unwrap();
    world.write("/libxl/1/device/vnew/0/backend", "/local/domain/5/backend/vtpm/1/0").await;
    world.scripts.on("block-xvdc remove", Line::Hangs);
    let plan = Plan::destroy(&world.toolstack, GUEST).await.unwrap();
    assert_eq!(plan.left(), ["/libxl/1/device/vnew/0"]);
    let outcome = run(&world, plan).await;
    assert_eq!(words(&outcome.devices), ["done"; 10]);
    let warned = outcome
        .devices
        .iter()
        .filter(|ended| matches!(ended, Ended::Done(done) if !done.warnings.is_empty()));
    assert_eq!(warned.count(), 1, "the script that hangs");
    world.dom0.rm(&path("/libxl/1/device/vnew")).await.unwrap();
    assert_eq!(world.dump().await, before);
}

/// 4.10: its devices are told to close before the device model is asked to end, and no time is spent on waiting in
/// between, since its end is the evidence.
#[tokio::test(start_paused = true)]
async fn a_device_model_ends_as_soon_as_its_devices_were_told_to_close() {
    let world = connected().await;
    let _model = Model::start(&world).await;
    // Virtual time stands still while a thread is at work, so that a process can end in no time at all.
    let (done, wanted) = std::sync::mpsc::channel::<()>();
    let thread = tokio::task::spawn_blocking(move || _ = wanted.recv_timeout(Duration::from_secs(60)));
    let begun = world.clock();
    let plan = Plan::destroy(&world.toolstack, GUEST).await.unwrap();
    let mut run = plan.run(&world.toolstack, &CancellationToken::new());
    let mut happened = Vec::new();
    while let Some(progress) = run.next().await {
        happened.push(progress.to_string());
    }
    let outcome = run.finish().await;
    let elapsed = world.clock() - begun;
    drop(done);
    thread.await.unwrap();
    assert!(outcome.is_done(), "{outcome:?}");
    assert!(matches!(outcome.model, Some(ModelEnd::Ended { killed: false, .. })), "{outcome:?}");
    let of = |words: &str| happened.iter().position(|happened| happened.contains(words)).unwrap();
    assert!(of("waiting up to") < of("the device model ended"), "{happened:#?}");
    assert!(elapsed < f64::EPSILON, "it waited {elapsed} s: {happened:#?}");
}

/// Three disks of a device model, and a toolstack that does not wait long for what it tells to close.
async fn three_disks() -> (World, xen_aodevice::Toolstack) {
    let world = connected().await;
    for name in ["xvdb", "xvdc"] {
        let image = Device::Vbd(vbd::parse(&[format!("/proc/self/exe,qcow2,{name}")]).unwrap());
        world.add_with(image, xen_aodevice::WaitFor::Tree, &CancellationToken::new()).await.unwrap();
    }
    let mut limits = xen_aodevice::Limits::default();
    limits.close = Duration::from_millis(100);
    let toolstack = world.toolstack.clone().with_limits(limits);
    (world, toolstack)
}

/// Who waits for the end of the device model, which is asked to when all were told, keeps nobody from being told.
#[tokio::test(start_paused = true)]
async fn whoever_waits_for_the_device_model_keeps_no_other_waiting() {
    let (world, toolstack) = three_disks().await;
    let _model = Model::start(&world).await;
    // Virtual time stands still while a thread is at work.
    let (done, wanted) = std::sync::mpsc::channel::<()>();
    let thread = tokio::task::spawn_blocking(move || _ = wanted.recv_timeout(Duration::from_secs(60)));
    let begun = world.clock();
    let plan = Plan::destroy(&toolstack, GUEST).await.unwrap().at_once(1);
    let outcome = plan.run(&toolstack, &CancellationToken::new()).finish().await;
    let elapsed = world.clock() - begun;
    drop(done);
    thread.await.unwrap();
    assert!(outcome.is_done() && elapsed < f64::EPSILON, "{elapsed} s: {outcome:?}");
}

/// As long as the end of the device model may come, none of its devices is done without it.
#[tokio::test]
async fn a_device_model_that_is_killed_has_no_device_taken_from_it_before() {
    let (world, toolstack) = three_disks().await;
    let _model = Model::stubborn(&world).await;
    let plan = Plan::destroy(&toolstack, GUEST).await.unwrap();
    let outcome = plan.run(&toolstack, &CancellationToken::new()).finish().await;
    let killed = matches!(outcome.model, Some(ModelEnd::Ended { killed: true, .. }));
    assert!(outcome.is_done() && killed, "{outcome:?}");
    for ended in &outcome.devices {
        assert!(matches!(ended, Ended::Done(done) if done.warnings.is_empty()), "{ended:?}");
    }
}

/// A store that falls silent takes its time once, and not once for each device.
#[tokio::test(start_paused = true)]
async fn a_silent_store_is_not_waited_for_device_by_device() {
    let world = World::new().await;
    let _backends = sim::Drivers::backends(world.dom0.clone(), DomId::DOM0, LATENCY).unwrap();
    let names = ["xvda", "xvdb", "xvdc", "xvdd", "xvde", "xvdf"];
    assert!(run(&world, Plan::add(GUEST, additions(names.map(disk_named)))).await.is_done());
    world.scripts.on("remove", Line::Takes(1.0));
    let plan = Plan::destroy(&world.toolstack, GUEST).await.unwrap();
    let begun = world.clock();
    let (outcome, ()) = tokio::join!(run(&world, plan), async {
        world.at(begun + 0.9).await;
        world.proxy.silence(true);
    });
    assert!(!outcome.is_done());
    let elapsed = world.clock() - begun;
    assert!(elapsed < 20.0, "{elapsed} s: {outcome:?}");
}

#[test]
fn every_kind_has_its_turn() {
    let mut kinds = Kind::BRING_UP;
    kinds.sort_unstable();
    assert_eq!(kinds, Kind::ALL);
    let plan = Plan::add(GUEST, additions([nic()]));
    assert!(matches!(plan.operations(), [Planned::Add(..)]));
}

/// A deadline is one of the device model's end as well, and who cancels does not kill.
#[tokio::test(start_paused = true)]
async fn a_device_model_that_does_not_end_is_not_waited_for_beyond_the_deadline() {
    let world = connected().await;
    let _model = Model::stubborn(&world).await;
    let begun = world.clock();
    let plan = Plan::destroy(&world.toolstack, GUEST).await.unwrap().deadline(Duration::from_secs(1));
    let outcome = run(&world, plan).await;
    assert!(outcome.timed_out && !outcome.is_done(), "{outcome:?}");
    assert!(matches!(outcome.model, Some(ModelEnd::Alive { .. })), "{outcome:?}");
    assert_eq!(tenths(Duration::from_secs_f64(world.clock() - begun)), 1.0);
}

/// What its end left to do in the store says nothing about whether it has ended.
#[tokio::test]
async fn a_device_model_that_has_ended_is_not_said_to_be_alive() {
    let world = connected().await;
    let _model = Model::start(&world).await;
    world.dom0.rm(&path("/local/domain/0/device-model")).await.unwrap();
    let outcome = run(&world, Plan::destroy(&world.toolstack, GUEST).await.unwrap()).await;
    let ended = matches!(outcome.model, Some(ModelEnd::Ended { killed: false, left: None, .. }));
    assert!(outcome.is_done() && ended, "{outcome:?}");
}

/// Of a device model that is gone nothing stays, or each next removal would find it.
#[tokio::test]
async fn the_node_of_a_device_model_that_is_gone_goes() {
    let world = World::new().await;
    world.write("/local/domain/0/device-model/1/state", "running").await;
    world.dom0.rm(&path("/local/domain/1")).await.unwrap();
    for _ in 0..2 {
        let outcome = run(&world, Plan::destroy(&world.toolstack, GUEST).await.unwrap()).await;
        assert!(outcome.is_done() && matches!(outcome.model, Some(ModelEnd::NotThere)), "{outcome:?}");
        assert!(!world.dump().await.iter().any(|line| line.contains("device-model/1")));
    }
}

/// Where all are to go, one that somebody else has removed is done.
#[tokio::test(start_paused = true)]
async fn a_device_that_is_gone_by_then_is_done() {
    let world = World::new().await;
    let _backends = sim::Drivers::backends(world.dom0.clone(), DomId::DOM0, LATENCY).unwrap();
    let adding = Plan::add(GUEST, additions(["xvda", "xvdb"].map(disk_named)));
    assert!(run(&world, adding).await.is_done());
    let plan = Plan::destroy(&world.toolstack, GUEST).await.unwrap();
    world.remove(xen_aodevice::Force::AtOnce).await.unwrap();
    let outcome = run(&world, plan).await;
    assert_eq!((words(&outcome.devices), outcome.is_done()), (vec!["done".to_owned(); 2], true));
}
