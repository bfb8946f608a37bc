//! `attach-all`: all devices that a domain's configuration file lists.

use std::path::Path;

use aodevice::vif::Defaults;
use aodevice::xl_cfg::{self, Devices, Entry, Settings};
use aodevice::{Ended, Outcome, Plan, Planned, Toolstack, Undone};
use serde_json::{Value, json};

use crate::args::{AttachAllArgs, Common};
use crate::problem::{Code, Exit, Problem, unless_cancelled};
use crate::signals::cancel_on_signal;
use crate::world::World;
use crate::xl_conf::{XlConf, read_bounded};
use crate::{devices, output, plan};

pub(crate) async fn run(common: &Common, args: &AttachAllArgs) -> Result<Exit, Problem> {
    let cancel = cancel_on_signal();
    let file = args.file.display().to_string();
    let settings = settings(&args.file).await?;
    let defaults = defaults(common, args, &settings).await?;
    let found = xl_cfg::devices(&settings, &defaults).map_err(|refusals| {
        let observed = refusals.iter().map(|refusal| format!("{file}:{refusal}")).collect();
        let hint = "xl.cfg(5) has their syntax; nothing was changed";
        of_several(Code::BadDevice, format!("cannot understand the devices of {file}"), observed, hint)
    })?;
    unsupported(common, args, &file, &found)?;
    let places: Vec<String> = found.entries.iter().map(|entry| format!("{file}:{}", entry.place)).collect();
    told(common, &file, &found.entries, &places);

    let world = World::open(&common.store).await?;
    let fe = devices::domain(&world.client, &args.domain).await?;
    let toolstack = args.attaching.recording.of(world.toolstack(args.attaching.limits()).await?);
    let additions = found.entries.into_iter().map(|entry| (entry.device, args.attaching.addition()));
    let plan = Plan::add(fe, additions).at_once(args.at_once.get());
    let tried = format!("cannot attach the devices of {file} to domain {fe}");
    let plan = unless_cancelled(&*tried, plan.numbered(&toolstack)).await?;
    let plan = plan.map_err(|error| Problem::store(&*tried, &error))?;
    if common.dry_run && !common.json {
        for planned in plan.operations() {
            if let Planned::Add(device, _) = planned {
                devices::say_device(device);
            }
        }
    }
    let previews = unless_cancelled(&*tried, check(&plan, &toolstack, &tried, &places)).await??;
    if common.dry_run {
        if common.json {
            output::say_json(
                json!({"ok": true, "dry_run": true}),
                json!({"domid": plan.domain().0, "devices": previews}),
            );
        }
        return Ok(Exit::Done);
    }
    let run = plan.deadline(args.deadline).undo(!args.keep).run(&toolstack, &cancel);
    report(common, &plan::carry_out(common, run).await, &places)
}

async fn settings(file: &Path) -> Result<Settings, Problem> {
    let tried = format!("cannot understand {}", file.display());
    let bad = |observed: String| {
        let hint = "name a configuration file as of xl create; xl.cfg(5) has its syntax";
        Problem::new(Code::BadXlCfg, &*tried, observed, hint)
    };
    let path = file.to_owned();
    // In a thread, since a file system that does not answer must not make it deaf to signals.
    let read = tokio::task::spawn_blocking(move || read_bounded(&path));
    let read = unless_cancelled(&*tried, read).await?.map_err(|error| bad(error.to_string()))?;
    let text = read.map_err(|error| bad(error.to_string()))?;
    Settings::parse(&text).map_err(|error| bad(format!("{}:{error}", file.display())))
}

/// What interfaces have where the file says nothing; without any, an `xl.conf` that cannot be understood is no
/// hindrance.
async fn defaults(common: &Common, args: &AttachAllArgs, settings: &Settings) -> Result<Defaults, Problem> {
    let conf = match args.attaching.xl_conf().await {
        Err(problem) if problem.code == Code::BadXlConf && settings.get("vif").is_none() => XlConf::default(),
        conf => conf?,
    };
    devices::scripts_run(common, &conf);
    Ok(conf.vif)
}

fn of_several(code: Code, tried: String, observed: Vec<String>, hint: &str) -> Problem {
    let mut problem = Problem::new(code, tried, "", hint);
    problem.observed = observed;
    problem
}

/// Refuses devices that cannot be attached yet, or tells that they are left out.
fn unsupported(common: &Common, args: &AttachAllArgs, file: &str, found: &Devices) -> Result<(), Problem> {
    let observed =
        found.unsupported.iter().map(|place| format!("{file}:{place}: xendev cannot attach these yet"));
    if args.skip_unsupported {
        observed.for_each(|observed| output::warn(common, &format!("{observed}; left out")));
        return Ok(());
    }
    let observed: Vec<String> = observed.collect();
    if observed.is_empty() {
        return Ok(());
    }
    let hint = "attach them by xl, and the others with --skip-unsupported; nothing was changed";
    let tried = format!("cannot attach all devices of {file}");
    Err(of_several(Code::Of("unsupported"), tried, observed, hint))
}

/// Tells what is to be told though all can be understood.
fn told(common: &Common, file: &str, entries: &[Entry], places: &[String]) {
    if entries.is_empty() {
        output::warn(common, &format!("{file} lists no devices"));
    }
    for (entry, place) in entries.iter().zip(places) {
        for notice in &entry.notices {
            output::warn(common, &format!("{place}: {notice}"));
        }
    }
}

/// Sees that each device can be attached as far as that can be seen before, and tells what would be done.
async fn check(
    plan: &Plan,
    toolstack: &Toolstack,
    tried: &str,
    places: &[String],
) -> Result<Vec<Value>, Problem> {
    let (mut previews, mut failures) = (Vec::new(), Vec::new());
    for (index, preview) in plan.previews(toolstack).await {
        match (preview, &plan.operations()[index]) {
            (Ok(preview), Planned::Add(device, _)) => {
                let mut value = json!({"place": places[index]});
                value[devices::xl_name(device.kind())] = device.libxl().into();
                if let (Value::Object(value), Value::Object(preview)) = (&mut value, json!(preview)) {
                    value.extend(preview);
                }
                previews.push(value);
            }
            (Ok(_), _) => {}
            (Err(failure), _) => failures.push((&places[index], failure)),
        }
    }
    let observed = failures.iter().map(|(place, failure)| format!("{place}: {failure}")).collect();
    match failures.into_iter().next() {
        None => Ok(previews),
        Some((_, first)) => {
            let first = Problem::from(first);
            let mut problem = of_several(first.code, tried.to_owned(), observed, &first.hint);
            problem.hint += "; nothing was changed";
            Err(problem.with_exit(first.exit))
        }
    }
}

fn report(common: &Common, outcome: &Outcome, places: &[String]) -> Result<Exit, Problem> {
    let mut problems = plan::problems(outcome, ("attach", "to"), places);
    for Undone { operation, ended, .. } in &outcome.undone {
        match ended {
            Ended::Failed(failure) => {
                let mut problem = Problem::from(failure.clone());
                problem.tried = format!("{}: {}", places[*operation], problem.tried);
                problems.push(problem);
            }
            _ => output::warn(common, &format!("{}: removed again", places[*operation])),
        }
    }
    plan::conclude(common, outcome, problems)
}
