//! What the commands for disks and for network interfaces have in common.

use aodevice::{Device, Force, Kind, Limits, Listed, Toolstack, find_domain, libxl};
use serde_json::{Value, json};
use xs_client::{Client, DomId};

use crate::args::{Attaching, Common, Detaching, DeviceDetachArgs, ListArgs};
use crate::output::say;
use crate::problem::{Code, Exit, Problem, unless_cancelled};
use crate::progress::Progress;
use crate::signals::cancel_on_signal;
use crate::world::World;
use crate::xl_conf::XlConf;
use crate::{hint, output, table};

pub(crate) async fn domain(client: &Client, text: &str) -> Result<DomId, Problem> {
    let tried = format!("cannot find domain {text}");
    let found = unless_cancelled(&*tried, find_domain(client, text)).await?;
    found.map_err(|cause| Problem::of_cause(tried, cause))
}

/// The same for a removal: a domain that is gone may have left devices behind, which are found by its
/// id.
pub(crate) async fn domain_or_id(client: &Client, text: &str) -> Result<DomId, Problem> {
    match text.parse() {
        Ok(domid) => Ok(domid),
        Err(_) => domain(client, text).await,
    }
}

/// Tells who set `run_hotplug_scripts=0` that it has no effect.
pub(crate) fn scripts_run(common: &Common, conf: &XlConf) {
    if conf.forbids_scripts {
        let text =
            "xl.conf says run_hotplug_scripts=0, which has no effect, here as with xl: scripts are run";
        output::warn(common, &text);
    }
}

/// A toolstack whose steps are told, and who tells them.
pub(crate) async fn watched(
    world: &World,
    limits: Limits,
    common: &Common,
) -> Result<(Toolstack, Progress), Problem> {
    let toolstack = world.toolstack(limits).await?;
    let progress = Progress::new(common);
    progress.say(&world.facts());
    Ok((toolstack.with_observer(move |step| progress.step(step)), progress))
}

/// Adds a device, or tells what that would do.
pub(crate) async fn attach(
    common: &Common,
    guest: &str,
    device: &Device,
    attaching: &Attaching,
) -> Result<Exit, Problem> {
    let cancel = cancel_on_signal();
    let world = World::open(&common.store).await?;
    if common.dry_run {
        return dry_run(common, &world, guest, device, attaching).await;
    }
    let fe = domain(&world.client, guest).await?;
    let (toolstack, progress) = watched(&world, attaching.limits(), common).await?;
    let outcome = attaching.recording.of(toolstack).add(fe, device, attaching.addition(), &cancel).await;
    progress.done();
    output::report(common, outcome)
}

/// Prints what `xl -N` prints; with `--json` what an attach would do.
async fn dry_run(
    common: &Common,
    world: &World,
    guest: &str,
    device: &Device,
    attaching: &Attaching,
) -> Result<Exit, Problem> {
    let name = match device.kind() {
        Kind::Vbd | Kind::VirtioDisk => "disk",
        Kind::P9 => "p9",
        Kind::Vusb => "usbctrl",
        Kind::Console => "channel",
        kind => kind.name(),
    };
    if !common.json {
        // As for xl, a number is not looked up.
        domain_or_id(&world.client, guest).await?;
        say(format!("{name}: {}\n", libxl::pretty(&device.libxl().into())));
        return Ok(Exit::Done);
    }
    let fe = domain(&world.client, guest).await?;
    let toolstack = world.toolstack(attaching.limits()).await?;
    let tried = format!("cannot tell what attaching to domain {fe} would do");
    let preview = unless_cancelled(tried, toolstack.preview(fe, device, attaching.addition())).await??;
    output::say_json(json!({"ok": true, "dry_run": true, name: device.libxl()}), json!(preview));
    Ok(Exit::Done)
}

/// Removes a device of an open world.
pub(crate) async fn detach(
    common: &Common,
    world: &World,
    fe: DomId,
    which: (Kind, u32),
    force: Force,
    detaching: &Detaching,
) -> Result<Exit, Problem> {
    let cancel = cancel_on_signal();
    let (toolstack, progress) = watched(world, detaching.limits(), common).await?;
    let outcome =
        detaching.recording.of(toolstack).remove(fe, which, detaching.removal(force), &cancel).await;
    progress.done();
    output::report(common, outcome)
}

/// Removes a device that is named by its device id.
pub(crate) async fn detach_by_id(
    common: &Common,
    args: &DeviceDetachArgs,
    kind: Kind,
) -> Result<Exit, Problem> {
    let DeviceDetachArgs { domain, device, detaching } = args;
    let devid = device.parse::<u32>().map_err(|_| {
        let tried = format!("cannot detach {device} from domain {domain}");
        let hint = format!("xendev {} shows the guest's devices", hint::commands(kind).0);
        Problem::new(Code::BadDevice, tried, "it is not a device id", hint)
    })?;
    let world = World::open(&common.store).await?;
    let fe = domain_or_id(&world.client, domain).await?;
    // A channel is the console of the next higher number.
    let devid = devid.saturating_add(kind.info().first_devid);
    detach(common, &world, fe, (kind, devid), Force::AfterTimeout, detaching).await
}

/// The devices of a guest.
pub(crate) async fn devices(client: &Client, fe: DomId, kind: Kind) -> Result<Vec<Listed>, Problem> {
    let tried = format!("cannot list the devices of domain {fe}");
    let devices = unless_cancelled(&*tried, async {
        let mut devices = aodevice::list(client, fe, kind).await?;
        if kind == Kind::Vbd {
            devices.extend(aodevice::list(client, fe, Kind::VirtioDisk).await?);
        }
        Ok(devices)
    });
    devices.await?.map_err(|error| Problem::store(tried, &error))
}

/// The devices of a guest, by its number also those that a domain left which is gone. By a name it could be
/// mistaken for one that runs.
async fn listed(client: &Client, text: &str, kind: Kind) -> Result<Vec<Listed>, Problem> {
    let problem = match domain(client, text).await {
        Ok(fe) => return devices(client, fe, kind).await,
        Err(problem) => problem,
    };
    let left = match text.parse() {
        Ok(fe) if matches!(problem.code, Code::Of("domain_gone" | "no_such_domain")) => {
            devices(client, fe, kind).await?
        }
        _ => Vec::new(),
    };
    if left.is_empty() { Err(problem) } else { Ok(left) }
}

/// Lists the devices of guests. If several guests are named, one that is not found is told, in
/// JSON as an object in its place, and the others are listed.
pub(crate) async fn list(common: &Common, args: &ListArgs, kind: Kind) -> Result<Exit, Problem> {
    let world = World::open(&common.store).await?;
    let mut all: Vec<Value> = Vec::new();
    let mut exit = Exit::Done;
    if !common.json {
        say(table::header(kind));
    }
    for text in &args.domains {
        let devices = match listed(&world.client, text, kind).await {
            Ok(devices) => devices,
            Err(problem) if args.domains.len() == 1 || problem.is_about_all() => return Err(problem),
            Err(problem) => {
                problem.print();
                exit = problem.exit;
                all.push(problem.json());
                continue;
            }
        };
        if common.json {
            all.extend(devices.iter().map(output::listed));
        } else {
            say(table::rows(&devices));
        }
    }
    if common.json {
        say(format!("{}\n", Value::Array(all)));
    }
    Ok(exit)
}
