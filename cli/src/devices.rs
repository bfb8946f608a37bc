//! What the commands for all kinds of device have in common.

use serde_json::{Value, json};
use xen_aodevice::{Attachment, Device, Failure, Force, Kind, Limits, Listed, Toolstack, find_domain, libxl};
use xs_client::{Client, DomId};

use crate::args::{Common, ListArgs};
use crate::options::{Attaching, Detaching};
use crate::output::say;
use crate::problem::{Code, Exit, Problem, unless_cancelled};
use crate::progress::Progress;
use crate::signals::cancel_on_signal;
use crate::world::World;
use crate::xl_conf::XlConf;
use crate::{hint, kinds, output, table};

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
    let world = World::open(common).await?;
    if common.dry_run {
        return dry_run(common, &world, guest, device, attaching).await;
    }
    let found = domain(&world.client, guest);
    let (fe, (toolstack, progress)) = tokio::try_join!(found, watched(&world, attaching.limits(), common))?;
    let outcome = attaching.recording.of(toolstack).add(fe, device, attaching.addition(), &cancel).await;
    progress.done();
    output::report(common, outcome)
}

/// What xl calls a device.
pub(crate) fn xl_name(attachment: &Attachment) -> &'static str {
    match attachment.kind() {
        Kind::Vbd | Kind::VirtioDisk => "disk",
        Kind::Vif => "vif",
        Kind::Vusb if matches!(attachment, Attachment::UsbDev(_)) => "usbdev",
        kind => kinds::name(kind),
    }
}

/// Prints a device as `xl -N` does.
pub(crate) fn say_device(attachment: &Attachment) {
    say(format!("{}: {}\n", xl_name(attachment), libxl::pretty(&attachment.libxl().into())));
}

/// Prints what `xl -N` prints; with `--json` what an attach would do.
async fn dry_run(
    common: &Common,
    world: &World,
    guest: &str,
    device: &Device,
    attaching: &Attaching,
) -> Result<Exit, Problem> {
    let attachment = Attachment::from(device.clone());
    if !common.json {
        // As for xl, a number is not looked up.
        domain_or_id(&world.client, guest).await?;
        say_device(&attachment);
        return Ok(Exit::Done);
    }
    let fe = domain(&world.client, guest).await?;
    let toolstack = world.toolstack(attaching.limits()).await?;
    let tried = format!("cannot tell what attaching to domain {fe} would do");
    let preview = unless_cancelled(tried, toolstack.preview(fe, device, attaching.addition())).await??;
    let name = xl_name(&attachment);
    output::say_json(json!({"ok": true, "dry_run": true, name: device.libxl()}), json!(preview));
    Ok(Exit::Done)
}

/// Sees that a device of the host could be attached, and prints it as libxl has it: which port or place it would get is
/// found when it is attached.
pub(crate) async fn foresee(
    common: &Common,
    fe: DomId,
    attachment: &Attachment,
    check: impl Future<Output = Result<(), Box<Failure>>>,
) -> Result<Exit, Problem> {
    unless_cancelled(format!("cannot tell what attaching to domain {fe} would do"), check).await??;
    if common.json {
        let first = json!({"ok": true, "dry_run": true, "domid": fe.0});
        output::say_json(first, json!({xl_name(attachment): attachment.libxl()}));
    } else {
        say_device(attachment);
    }
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

/// The devices of a guest: of one kind, or all.
pub(crate) async fn devices(client: &Client, fe: DomId, kind: Option<Kind>) -> Result<Vec<Listed>, Problem> {
    let tried = format!("cannot list the devices of domain {fe}");
    let devices = async {
        match kind {
            Some(Kind::Vbd) => {
                let mut disks = xen_aodevice::list(client, fe, Kind::Vbd).await?;
                disks.extend(xen_aodevice::list(client, fe, Kind::VirtioDisk).await?);
                Ok(disks)
            }
            Some(kind) => xen_aodevice::list(client, fe, kind).await,
            None => xen_aodevice::list_all(client, fe).await,
        }
    };
    let devices = unless_cancelled(&*tried, devices).await?;
    devices.map_err(|error| Problem::store(tried, &error))
}

/// By what a device can be named besides its id.
#[derive(Debug)]
pub(crate) struct OtherName {
    /// The key of the listing that holds it.
    pub(crate) key: &'static str,
    /// What it is, in words.
    pub(crate) what: &'static str,
    /// Whether a text is meant to be one.
    pub(crate) is: fn(&str) -> bool,
    /// The text as a listing has it, or what is wrong with it.
    pub(crate) read: fn(&str) -> Result<String, String>,
}

/// The id of a device that is to be detached.
pub(crate) async fn devid(
    world: &World,
    (fe, kind): (DomId, Kind),
    text: &str,
    other: Option<&OtherName>,
) -> Result<u32, Problem> {
    let tried = || format!("cannot detach {text} from domain {fe}");
    let hint = || format!("xendev {} {fe} shows what can be detached", hint::commands(kind).0);
    let bad = |observed: String| Problem::new(Code::BadDevice, tried(), observed, hint());
    let ambiguous = |observed| Problem::new(Code::Of("ambiguous_name"), tried(), observed, hint());
    let Some(other) = other.filter(|other| (other.is)(text)) else {
        let devid: u32 = text.parse().map_err(|_| match other {
            Some(other) => bad(format!("it is neither a device id nor {}", other.what)),
            None => bad("it is no device id".to_owned()),
        })?;
        // A channel is the console of the next higher number, and is named by its own.
        let devid = devid.saturating_add(kind.info().first_devid);
        // And its name may be the number of another one.
        let name = other.and_then(|other| Some((other.key, (other.read)(text).ok()?)));
        if let Some((key, name)) = name
            && devices(&world.client, fe, Some(kind))
                .await?
                .iter()
                .any(|device| device.text(key) == Some(&name) && device.id.devid != devid)
        {
            return Err(ambiguous("it is the name of a device that has another number"));
        }
        return Ok(devid);
    };
    let wanted = (other.read)(text).map_err(bad)?;
    let devices = devices(&world.client, fe, Some(kind)).await?;
    let mut found = devices.iter().filter(|device| device.text(other.key) == Some(&wanted));
    let none = || Problem::new(Code::Of("no_such_device"), tried(), "the guest has no such device", hint());
    let devid = found.next().ok_or_else(none)?.id.devid;
    match found.next() {
        None => Ok(devid),
        Some(_) => Err(ambiguous("the guest has several devices of that name")),
    }
}

/// The devices of a guest, by its number also those that a domain left which is gone. By a name it could be
/// mistaken for one that runs.
async fn listed(client: &Client, text: &str, kind: Option<Kind>) -> Result<Vec<Listed>, Problem> {
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

/// Lists the devices of guests, of one kind or all. If several guests are named, one that is not found is told, in
/// JSON as an object in its place, and the others are listed.
pub(crate) async fn list(common: &Common, args: &ListArgs, kind: Option<Kind>) -> Result<Exit, Problem> {
    let world = World::open(common).await?;
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
            say(table::rows(kind, &devices));
        }
    }
    if common.json {
        say(format!("{}\n", Value::Array(all)));
    }
    Ok(exit)
}
