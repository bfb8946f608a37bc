//! A course from its beginning to its end, and what must hold in it.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use lab_proxy::Proxy;
use tokio::runtime::Builder;
use tokio::time::{sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use xen_aodevice::{
    Device, Failure, Force, Kind, Plan, Success, Toolstack, WaitFor, list_all, sim, vbd, vif,
};
use xs_client::{Client, Config, DomId, Error, Path};

use super::schedule::{Act, Blow, DEVICES, End, GUESTS, Schedule, Step, Strike};
use super::world::{LONG, Outcome, World, path};
use crate::seeded::{Caught, catching};

/// All that waits for something has given up by then.
const QUIET: Duration = Duration::from_secs(200);

/// The devices of a guest.
const NAMES: [(Kind, u32, &str); DEVICES] =
    [(Kind::Vbd, 51712, "xvda"), (Kind::Vbd, 51728, "xvdb"), (Kind::Vif, 0, "vif 0")];

/// Carries a schedule out.
pub(super) fn run(schedule: &Schedule) -> Outcome {
    // The pauses of clients, and the tokens of operations.
    fastrand::seed(schedule.seed);
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without any I/O");
    match catching(|| runtime.block_on(course(schedule))) {
        Caught::Calm(outcome) => outcome,
        Caught::Beside(mut outcome) => {
            outcome.violations.push("a task panics".to_owned());
            outcome
        }
        Caught::Panicked(said) => Outcome { violations: vec![said], ..Outcome::default() },
    }
}

async fn course(schedule: &Schedule) -> Outcome {
    let world = World::new(schedule).await.expect("a store without faults");
    let before = nodes(&world.dom0).await;
    let strikes: Vec<_> =
        schedule.strikes.iter().map(|strike| tokio::spawn(fall(world.clone(), *strike))).collect();
    let actors = schedule.actors.clone().into_iter().enumerate();
    let actors: Vec<_> =
        actors.map(|(number, steps)| tokio::spawn(play(world.clone(), number, steps))).collect();
    for task in strikes.into_iter().chain(actors) {
        task.await.expect("what panics is counted");
    }
    sleep(QUIET).await;
    audit(&world).await;
    let after = nodes(&world.dom0).await;
    let left: Vec<&str> =
        after.difference(&before).map(String::as_str).filter(|node| !is_of_domain(node)).collect();
    if !left.is_empty() {
        world.violation(format!("left in the store: {}", left.join(" ")));
    }
    world.end_devd().await;
    world.outcome()
}

/// Every node that there is.
async fn nodes(dom0: &Client) -> BTreeSet<String> {
    let mut nodes = BTreeSet::new();
    let mut waiting = vec![Path::root()];
    while let Some(node) = waiting.pop() {
        let children = dom0.directory_or_empty(&node).await.expect("a store without faults");
        waiting.extend(children.iter().map(|child| node.join(child).expect("a node's name")));
        nodes.insert(node.to_string());
    }
    nodes
}

/// Whether this is a node that a domain has from its beginning, whatever its number.
fn is_of_domain(node: &str) -> bool {
    const HOME: [&str; 11] = [
        "name",
        "domid",
        "device",
        "libxl",
        "device-model",
        "control",
        "data",
        "drivers",
        "feature",
        "attr",
        "error",
    ];
    match node.split('/').skip(1).collect::<Vec<_>>()[..] {
        ["local", "domain", _] | ["libxl", _] | ["libxl", _, "device" | "type"] => true,
        ["local", "domain", _, "control", "shutdown"] => true,
        ["local", "domain", domid, node] => domid != "0" && HOME.contains(&node),
        _ => false,
    }
}

/// A strike, and what follows when its time is over.
async fn fall(world: Arc<World>, Strike { at, blow, lasts }: Strike) {
    sleep_until(world.at(at)).await;
    world.tell(&format!("{blow:?}"));
    let lasts = Duration::from_millis(lasts);
    match blow {
        Blow::CutDaemon(bytes) => world.cut_devd(bytes),
        Blow::KillDaemon | Blow::KillDaemonAfter(_) | Blow::EndDaemon => {
            match blow {
                Blow::KillDaemonAfter(bytes) => world.kill_devd_after(bytes).await,
                Blow::EndDaemon => world.end_devd().await,
                _ => world.kill_devd().await,
            }
            sleep(lasts).await;
            world.start_devd().await;
            world.tell("the daemon is there");
        }
        Blow::StopKernel => {
            world.stop_kernel();
            sleep(lasts).await;
            world.start_kernel();
        }
        Blow::StopGuest(guest) => {
            world.stop_guest(guest);
            sleep(lasts).await;
            world.start_guest(guest);
        }
        Blow::DestroyDriverDomain => {
            if world.driver().is_none() {
                return;
            }
            world.destroy_driver_domain().await;
            sleep(lasts).await;
            world.boot_driver_domain().await.expect("a store without faults");
            world.tell("another driver domain is there");
        }
        Blow::DestroyGuest(guest) => {
            let Some(domid) = world.kill_guest(guest) else { return };
            if let Ok(toolstack) = toolstack(&world, None).await {
                detach_all(&world, &toolstack, domid, "the guest's end").await;
            }
            world.remove_domain(domid).await;
            sleep(lasts).await;
            world.boot_guest(guest).await.expect("a store without faults");
            world.tell(&format!("guest {guest} is there again"));
        }
    }
}

/// A toolstack on a connection of its own.
async fn toolstack(world: &World, cut: Option<usize>) -> Result<Toolstack, Error> {
    let (stream, proxy) = Proxy::over(world.store.connect(DomId::DOM0));
    if let Some(bytes) = cut {
        proxy.cut_after(bytes);
    }
    let client = Client::over(stream, Config::default());
    let scripts = Arc::new(sim::Scripts::new(world.dom0.clone(), Duration::ZERO));
    Ok(Toolstack::new(client, scripts).await?.with_libxl_dir(world.files.path()))
}

async fn play(world: Arc<World>, number: usize, steps: Vec<Step>) {
    for step in steps {
        sleep(Duration::from_millis(step.pause)).await;
        if let Some(guest) = world.guest(step.guest) {
            act(&world, number, step, guest).await;
        }
    }
}

/// A process does what a step says.
async fn act(world: &World, number: usize, step: Step, guest: DomId) {
    let cut = match step.end {
        Some(End::Cut(bytes)) => Some(bytes),
        _ => None,
    };
    let Ok(toolstack) = toolstack(world, cut).await else { return };
    let name = format!("toolstack {number}, {:?} of {} of {guest}", step.act, NAMES[step.device].2);
    world.tell(&format!("{name} begins"));
    let driver = world.driver();
    let was_there = there(world, guest, step.device).await;
    let cancel = CancellationToken::new();
    let done = async {
        match step.act {
            Act::Attach(wait_for) => {
                let ended = attach(&toolstack, guest, step.device, wait_for, &cancel).await;
                Some(Ended::of(world, "attach", ended))
            }
            Act::Detach(force) => {
                let (kind, devid, _) = NAMES[step.device];
                let ended = toolstack.remove(guest, (kind, devid), force, &cancel).await;
                Some(Ended::of(world, "detach", ended))
            }
            Act::DetachAll => {
                detach_all(world, &toolstack, guest, "detach all").await;
                None
            }
        }
    };
    let done = async {
        match step.end {
            Some(End::Killed(after)) => timeout(Duration::from_millis(after), done).await.ok().flatten(),
            Some(End::Cancelled(after)) => {
                let give_up = async {
                    sleep(Duration::from_millis(after)).await;
                    cancel.cancel();
                    std::future::pending::<Infallible>().await
                };
                tokio::select! {
                    done = done => done,
                    never = give_up => match never {},
                }
            }
            _ => done.await,
        }
    };
    let Ok(done) = timeout(LONG, done).await else {
        world.violation(format!("{name} does not end"));
        return;
    };
    world.tell(&format!("{name}: {done:?}"));
    let is_as_it_was = world.guest(step.guest) == Some(guest)
        && world.driver().map(|(domid, _)| domid) == driver.as_ref().map(|(domid, _)| *domid);
    let Some(ended) = done.filter(|_| world.schedule.is_of_one() && is_as_it_was && cut.is_none()) else {
        return;
    };
    let Some((_, scripts)) = driver else { return };
    let (kind, devid, _) = NAMES[step.device];
    let is_held = scripts.ledger().held.contains(&(kind == Kind::Vif, guest.0, devid));
    let is_there = there(world, guest, step.device).await;
    match (step.act, ended) {
        (Act::Attach(_), Ended::Done | Ended::Warned) if !is_held => {
            world.violation(format!("{name} succeeds, and no script has set it up"));
        }
        (Act::Attach(_), Ended::Failed(said)) if !was_there && is_there => {
            world.violation(format!("{name} fails and leaves something: {said}"));
        }
        (Act::Attach(_), Ended::Failed(said))
            if !was_there && step.end.is_none() && world.schedule.is_harmless() =>
        {
            world.violation(format!("{name} fails although nothing is wrong: {said}"));
        }
        // A daemon that is away undoes its work later.
        (Act::Detach(_), Ended::Warned) if is_there => {
            world.violation(format!("{name} succeeds and leaves something"));
        }
        (Act::Detach(_), Ended::Done) if is_held || is_there => {
            world.violation(format!("{name} succeeds and leaves something"));
        }
        _ => {}
    }
}

/// Whether a guest has a device, as far as the toolstack knows.
async fn there(world: &World, guest: DomId, device: usize) -> bool {
    let (kind, devid, _) = NAMES[device];
    let recorded = path(format!("/libxl/{guest}/device/{kind}/{devid}"));
    world.dom0.read_opt(&recorded).await.expect("a store without faults").is_some()
}

async fn attach(
    toolstack: &Toolstack,
    guest: DomId,
    device: usize,
    wait_for: WaitFor,
    cancel: &CancellationToken,
) -> Result<Success, Box<Failure>> {
    let device = match NAMES[device] {
        (Kind::Vbd, _, name) => {
            let spec = format!("/srv/{guest}-{name}.img,raw,{name},w,backend=dd");
            Device::Vbd(vbd::parse(&[spec]).expect("the specification of a disk"))
        }
        (_, devid, _) => {
            let spec = format!("bridge=xenbr0,backend=dd,devid={devid}");
            Device::Vif(vif::parse(&spec.split(',').collect::<Vec<_>>()).expect("that of an interface"))
        }
    };
    toolstack.add(guest, &device, wait_for, cancel).await
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ended {
    Done,
    /// It says what it may have left.
    Warned,
    Failed(String),
}

impl Ended {
    fn of(world: &World, what: &str, ended: Result<Success, Box<Failure>>) -> Self {
        let (how, ended) = match ended {
            Ok(success) if success.warnings.is_empty() => ("done", Self::Done),
            Ok(_) => ("done, with a warning", Self::Warned),
            Err(failure) => (failure.cause.code(), Self::Failed(failure.to_string())),
        };
        world.count(format!("{what}: {how}"));
        ended
    }
}

async fn detach_all(world: &World, toolstack: &Toolstack, guest: DomId, what: &str) {
    let Ok(plan) = Plan::destroy(toolstack, guest).await else { return };
    let outcome = plan.run(toolstack, &CancellationToken::new()).finish().await;
    let said =
        outcome.first_failure().map_or_else(|| "done".to_owned(), |failure| failure.cause.code().to_owned());
    world.count(format!("{what}: {said}"));
}

/// When all is quiet, what there is agrees; what there is can be detached, and nothing is left.
async fn audit(world: &World) {
    if !world.has_devd() {
        world.violation("the daemon has ended");
        return;
    }
    let Some((_, scripts)) = world.driver() else { return world.violation("there is no driver domain") };
    let Ok(toolstack) = toolstack(world, None).await else { return };
    let mut made = scripts.ledger().held.clone();
    for guest in (0..GUESTS).filter_map(|guest| world.guest(guest)) {
        for device in list_all(&world.dom0, guest).await.expect("a store without faults") {
            let is_made = made.remove(&(device.id.kind == Kind::Vif, guest.0, device.id.devid));
            if device.hotplug_status.as_deref() == Some("connected") && !is_made {
                world.violation(format!(
                    "{:?} of {guest} is connected, and nothing was made for it",
                    device.id
                ));
            }
        }
    }
    // A device may have been closed, and be removed by the toolstack alone.
    if !made.is_empty() {
        world.violation(format!("what scripts have made is kept for no device: {made:?}"));
    }
    for guest in (0..GUESTS).filter_map(|guest| world.guest(guest)) {
        for device in list_all(&world.dom0, guest).await.expect("a store without faults") {
            let which = (device.id.kind, device.id.devid);
            let never = CancellationToken::new();
            match timeout(LONG, toolstack.remove(guest, which, Force::Never, &never)).await {
                Ok(Ok(_)) => {}
                Ok(Err(failure)) => world.violation(format!("in the end, {failure}")),
                Err(_) => world.violation(format!("in the end, {which:?} of {guest} cannot be detached")),
            }
        }
    }
    sleep(QUIET).await;
    world.audit_scripts(&scripts);
    let held = scripts.ledger().held.clone();
    if !held.is_empty() {
        world.violation(format!("what scripts have made is left: {held:?}"));
    }
}
