//! What the commands for disks and for network interfaces have in common.

use aodevice::{Device, Force, Kind, Limits, Toolstack, find_domain};
use serde_json::Value;
use xs_client::{Client, DomId};

use crate::args::{Attaching, Detaching, ListArgs, Telling};
use crate::output::say;
use crate::problem::{Exit, Problem};
use crate::progress::Progress;
use crate::signals::cancel_on_signal;
use crate::world::{StoreChoice, World};
use crate::{output, table};

pub(crate) async fn domain(client: &Client, text: &str) -> Result<DomId, Problem> {
    find_domain(client, text).await.map_err(|cause| Problem::domain(text, cause))
}

/// A toolstack whose steps are told, and who tells them.
async fn watched(world: &World, limits: Limits, telling: &Telling) -> Result<(Toolstack, Progress), Problem> {
    let progress = Progress::new(telling);
    let steps = progress.clone();
    Ok((world.toolstack(limits).await?.with_observer(move |step| steps.step(step)), progress))
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
    let outcome = toolstack.add(fe, device, attaching.wait_for(), &cancel).await;
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
    let outcome = toolstack.remove(fe, which, force, &cancel).await;
    progress.done();
    output::report(&detaching.telling, outcome)
}

/// Lists the devices of guests. A guest that is not found is told, and the others are listed.
pub(crate) async fn list(store: &StoreChoice, args: &ListArgs, kind: Kind) -> Result<Exit, Problem> {
    let world = World::open(store).await?;
    let mut all: Vec<Value> = Vec::new();
    let mut exit = Exit::Done;
    if !args.json {
        say(&table::header(kind));
    }
    for text in &args.domains {
        let fe = match domain(&world.client, text).await {
            Ok(fe) => fe,
            Err(problem) => {
                problem.print();
                exit = problem.exit;
                continue;
            }
        };
        let devices = aodevice::list(&world.client, fe, kind)
            .await
            .map_err(|error| Problem::store(format!("cannot list the devices of domain {fe}"), &error))?;
        if args.json {
            all.extend(devices.iter().map(|device| output::listed(fe, device)));
        } else {
            say(&table::rows(fe, kind, &devices));
        }
    }
    if args.json {
        say(&format!("{}\n", Value::Array(all)));
    }
    Ok(exit)
}
