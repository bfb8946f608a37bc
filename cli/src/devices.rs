//! What the commands for disks and for network interfaces have in common.

use aodevice::{Device, Force, Kind, Limits, Listed, Toolstack, find_domain};
use serde_json::Value;
use xs_client::{Client, DomId};

use crate::args::{Attaching, Detaching, ListArgs, Telling};
use crate::output::say;
use crate::problem::{Exit, Problem, unless_cancelled};
use crate::progress::Progress;
use crate::signals::cancel_on_signal;
use crate::world::{StoreChoice, World};
use crate::{output, table};

pub(crate) async fn domain(client: &Client, text: &str) -> Result<DomId, Problem> {
    let found = unless_cancelled(format!("cannot find domain {text}"), find_domain(client, text)).await?;
    found.map_err(|cause| Problem::domain(text, cause))
}

/// The same for a removal: a domain that is gone may have left devices behind, which are found by its
/// id.
pub(crate) async fn domain_or_id(client: &Client, text: &str) -> Result<DomId, Problem> {
    match text.parse() {
        Ok(domid) => Ok(domid),
        Err(_) => domain(client, text).await,
    }
}

/// A toolstack whose steps are told, and who tells them.
async fn watched(world: &World, limits: Limits, telling: &Telling) -> Result<(Toolstack, Progress), Problem> {
    let toolstack = world.toolstack(limits).await?;
    let progress = Progress::new(telling);
    Ok((toolstack.with_observer(move |step| progress.step(step)), progress))
}

/// Adds a device.
pub(crate) async fn attach(
    store: &StoreChoice,
    guest: &str,
    device: &Device,
    attaching: &Attaching,
) -> Result<Exit, Problem> {
    let cancel = cancel_on_signal();
    let world = World::open(store).await?;
    let fe = domain(&world.client, guest).await?;
    let (toolstack, progress) = watched(&world, attaching.limits(), &attaching.telling).await?;
    let outcome = attaching.recording.of(toolstack).add(fe, device, attaching.addition(), &cancel).await;
    progress.done();
    output::report(&attaching.telling, outcome)
}

/// Removes a device of an open world.
pub(crate) async fn detach(
    world: &World,
    fe: DomId,
    which: (Kind, u32),
    force: Force,
    detaching: &Detaching,
) -> Result<Exit, Problem> {
    let cancel = cancel_on_signal();
    let (toolstack, progress) = watched(world, detaching.limits(), &detaching.telling).await?;
    let outcome =
        detaching.recording.of(toolstack).remove(fe, which, detaching.removal(force), &cancel).await;
    progress.done();
    output::report(&detaching.telling, outcome)
}

/// The devices of a guest.
pub(crate) async fn devices(client: &Client, fe: DomId, kind: Kind) -> Result<Vec<Listed>, Problem> {
    let tried = format!("cannot list the devices of domain {fe}");
    let devices = unless_cancelled(&*tried, aodevice::list(client, fe, kind)).await?;
    devices.map_err(|error| Problem::store(tried, &error))
}

/// Lists the devices of guests. If several guests are named, one that is not found is told, in
/// JSON as an object in its place, and the others are listed.
pub(crate) async fn list(store: &StoreChoice, args: &ListArgs, kind: Kind) -> Result<Exit, Problem> {
    let world = World::open(store).await?;
    let mut all: Vec<Value> = Vec::new();
    let mut exit = Exit::Done;
    if !args.json {
        say(table::header(kind));
    }
    for text in &args.domains {
        let fe = match domain(&world.client, text).await {
            Ok(fe) => fe,
            Err(problem) if args.domains.len() == 1 || problem.exit == Exit::Aborted => return Err(problem),
            Err(problem) => {
                problem.print();
                exit = problem.exit;
                all.push(problem.json());
                continue;
            }
        };
        let devices = devices(&world.client, fe, kind).await?;
        if args.json {
            all.extend(devices.iter().map(output::listed));
        } else {
            say(table::rows(&devices));
        }
    }
    if args.json {
        say(format!("{}\n", Value::Array(all)));
    }
    Ok(exit)
}
