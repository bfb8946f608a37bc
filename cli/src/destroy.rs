//! `destroy-devices`: all devices of a domain that goes.

use std::time::Instant;

use serde_json::json;
use xen_aodevice::{ModelEnd, Outcome, Plan, Planned, Toolstack};
use xs_client::DomId;

use crate::args::{Common, DestroyArgs};
use crate::plan::{self, Asked};
use crate::problem::{Code, Exit, Problem, line, unless_cancelled, within};
use crate::signals::cancel_on_signal;
use crate::world::World;
use crate::{devices, output};

pub(crate) async fn run(common: &Common, args: &DestroyArgs) -> Result<Exit, Problem> {
    let cancel = cancel_on_signal();
    let begun = Instant::now();
    let tried = format!("cannot remove the devices of domain {}", args.domain);
    let (_world, toolstack, plan) = within(args.deadline, &tried, prepare(common, args)).await?;
    if common.dry_run {
        dry_run(common, &plan);
        return Ok(Exit::Done);
    }
    let left = args.deadline.saturating_sub(begun.elapsed());
    let plan = plan.at_once(args.at_once.get()).deadline(left).take_over(args.take_over());
    let outcome = plan::carry_out(common, plan.run(&toolstack, &cancel)).await;
    report(common, &outcome)
}

/// Finds the devices. The simulated peers of a world, if it has some, live as long as that.
async fn prepare(common: &Common, args: &DestroyArgs) -> Result<(World, Toolstack, Plan), Problem> {
    let world = World::open(common).await?;
    let found = devices::domain_or_id(&world.client, &args.domain);
    let (fe, toolstack) = tokio::try_join!(found, world.toolstack(args.limits()))?;
    if fe == DomId::DOM0 {
        return Err(Problem::new(
            Code::Usage,
            "cannot remove all devices of domain 0",
            "domain 0 does not go",
            "detach its devices one by one",
        ));
    }
    let toolstack = args.recording.of(toolstack);
    let tried = format!("cannot find the devices of domain {fe}");
    let plan = unless_cancelled(&*tried, Plan::destroy(&toolstack, fe)).await?;
    let plan = plan.map_err(|error| Problem::store(tried, &error))?;
    Ok((world, toolstack, plan))
}

fn dry_run(common: &Common, plan: &Plan) {
    let removed = |planned: &Planned| match planned {
        Planned::Remove(which, _) => Some(*which),
        _ => None,
    };
    let devices: Vec<_> = plan.operations().iter().filter_map(removed).collect();
    if common.json {
        let devices: Vec<_> = devices
            .iter()
            .map(|which| {
                let name = (which.kind.info().id_name)(which.devid);
                json!({"fe": which.fe.0, "kind": which.kind, "devid": which.devid, "name": name})
            })
            .collect();
        output::say_json(
            json!({"ok": true, "dry_run": true}),
            json!({"domid": plan.domain().0, "devices": devices, "left": plan.left()}),
        );
        return;
    }
    for which in devices {
        output::say(format!("{} {}\n", which.kind.noun(), (which.kind.info().id_name)(which.devid)));
    }
    for left in plan.left() {
        output::say(format!("{} is left: such devices are not removed yet\n", line(left)));
    }
}

fn report(common: &Common, outcome: &Outcome) -> Result<Exit, Problem> {
    let asked = Asked { verb: "remove", preposition: "from", places: &[], go_on: "run it again to go on" };
    let mut problems = asked.problems(outcome);
    if let Some(end) = outcome.model.as_ref().filter(|end| !end.is_gone()) {
        problems.push(Problem::new(
            Code::Of("device_model"),
            format!("cannot end the device model of domain {}", outcome.domid),
            end,
            "see its log (/var/log/xen/qemu-dm-*.log), end its process, and run this again",
        ));
    }
    for left in &outcome.left {
        output::warn(common, &format!("{left} is left: such devices are not removed yet"));
    }
    if let Some(end @ ModelEnd::Ended { killed, left, .. }) = &outcome.model
        && (*killed || left.is_some())
    {
        output::warn(common, end);
    }
    asked.conclude(common, outcome, problems)
}
