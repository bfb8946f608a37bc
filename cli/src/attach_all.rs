//! `attach-all`: all devices that a domain's configuration file lists.

use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};
use xen_aodevice::vif::Defaults;
use xen_aodevice::xl_cfg::{self, Devices, Entry, Settings};
use xen_aodevice::{Cause, Ended, Failure, Outcome, Plan, Planned, Preview, Toolstack, Undone};

use crate::args::{AttachAllArgs, Common};
use crate::plan::{self, Asked};
use crate::problem::{Code, Exit, Problem, line, unless_cancelled, within};
use crate::signals::cancel_on_signal;
use crate::world::World;
use crate::xl_conf::{XlConf, read_bounded};
use crate::{devices, output};

pub(crate) async fn run(common: &Common, args: &AttachAllArgs) -> Result<Exit, Problem> {
    let cancel = cancel_on_signal();
    let begun = Instant::now();
    let tried = format!("cannot attach the devices of {}", args.file.display());
    let Some(Ready { plan, toolstack, places, _world }) =
        within(args.deadline, &tried, prepare(common, args)).await?
    else {
        return Ok(Exit::Done);
    };
    let left = args.deadline.saturating_sub(begun.elapsed());
    let run = plan.deadline(left).undo(!args.keep).run(&toolstack, &cancel);
    report(common, args, &plan::carry_out(common, run).await, &places)
}

/// A plan that can be carried out, as far as that can be seen before.
struct Ready {
    plan: Plan,
    toolstack: Toolstack,
    places: Vec<String>,
    /// Its simulated peers, if it has some, live as long.
    _world: World,
}

/// Reads the file and checks all that it asks for; `None` if that was all that was to be done.
async fn prepare(common: &Common, args: &AttachAllArgs) -> Result<Option<Ready>, Problem> {
    let file = args.file.display().to_string();
    let settings = settings(&args.file).await?;
    let defaults = defaults(common, args, &settings).await?;
    let found = xl_cfg::devices(&settings, &defaults).map_err(|refusals| {
        let refused = refusals.iter().map(|refusal| Refused {
            place: format!("{file}:{}", refusal.place),
            code: Code::BadDevice,
            problem: refusal.problem.clone(),
        });
        let hint = "xl.cfg(5) has their syntax; nothing was changed";
        of_several(Code::BadDevice, format!("cannot understand the devices of {file}"), refused, hint)
    })?;
    unsupported(common, args, &file, &found)?;
    told(common, &file, &found.entries);

    let world = World::open(common).await?;
    let fe = devices::domain(&world.client, &args.domain).await?;
    let toolstack = args.attaching.recording.of(world.toolstack(args.attaching.limits()).await?);
    let tried = format!("cannot attach the devices of {file} to domain {fe}");
    let mut entries = found.entries;
    let (plan, places, previews) = loop {
        let places: Vec<String> = entries.iter().map(|entry| format!("{file}:{}", entry.place)).collect();
        let wanted = entries.iter().map(|entry| (entry.attachment.clone(), args.attaching.addition()));
        let plan = Plan::add(fe, wanted).at_once(args.at_once.get());
        let plan = unless_cancelled(&*tried, plan.numbered(&toolstack)).await?;
        let plan = plan.map_err(|error| Problem::store(&*tried, &error))?;
        let previews = unless_cancelled(&*tried, plan.previews(&toolstack)).await?;
        let left_out =
            if args.skip_unsupported { not_served(common, &places, &previews) } else { Vec::new() };
        if left_out.is_empty() {
            break (plan, places, previews);
        }
        // The ids of the others are chosen as if these were not in the file.
        let kept = entries.into_iter().enumerate().filter(|(index, _)| !left_out.contains(index));
        entries = kept.map(|(_, entry)| entry).collect();
    };
    if common.dry_run && !common.json {
        plan.operations().iter().filter_map(Planned::attachment).for_each(|of| devices::say_device(&of));
    }
    let previews = checked(previews, &tried, &places)?;
    if !common.dry_run {
        return Ok(Some(Ready { plan, toolstack, places, _world: world }));
    }
    if common.json {
        output::say_json(
            json!({"ok": true, "dry_run": true}),
            json!({"domid": plan.domain().0, "devices": foretold(&plan, previews, &places)}),
        );
    }
    Ok(None)
}

async fn settings(file: &Path) -> Result<Settings, Problem> {
    let file_name = file.display();
    let tried = format!("cannot read {file_name}");
    let unread = |error: String| {
        let hint = "name a configuration file that is there and may be read";
        Problem::new(Code::BadXlCfg, &*tried, error, hint)
    };
    let path = file.to_owned();
    // In a thread, since a file system that does not answer must not make it deaf to signals.
    let read = tokio::task::spawn_blocking(move || read_bounded(&path));
    let read = unless_cancelled(&*tried, read).await?.map_err(|error| unread(error.to_string()))?;
    let text = read.map_err(|error| unread(error.to_string()))?;
    Settings::parse(&text).map_err(|error| {
        let hint = "name a configuration file as of xl create; xl.cfg(5) has its syntax";
        let tried = format!("cannot understand {file_name}");
        let problem = Problem::new(Code::BadXlCfg, tried, format!("{file_name}:{error}"), hint);
        // What was said cannot be understood.
        problem.with_exit(Exit::Usage).with_detail("place", format!("{file_name}:{}", error.line))
    })
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

/// A device that is refused, and why.
struct Refused {
    place: String,
    code: Code,
    problem: String,
}

fn of_several(code: Code, tried: String, refused: impl IntoIterator<Item = Refused>, hint: &str) -> Problem {
    let (mut observed, mut details) = (Vec::new(), Vec::new());
    for Refused { place, code, problem } in refused {
        observed.push(format!("{place}: {problem}"));
        details.push(json!({"place": place, "code": code.text(), "problem": line(&problem)}));
    }
    let mut problem = Problem::new(code, tried, "", hint);
    problem.observed = observed;
    problem.with_detail("place", details[0]["place"].clone()).with_detail("refused", details)
}

/// Refuses devices that cannot be attached yet, or tells that they are left out.
fn unsupported(common: &Common, args: &AttachAllArgs, file: &str, found: &Devices) -> Result<(), Problem> {
    let code = Code::Of("unsupported");
    let refused = found.unsupported.iter().map(|place| Refused {
        place: format!("{file}:{place}"),
        code,
        problem: "these are not attached from a file yet".to_owned(),
    });
    if args.skip_unsupported {
        refused.for_each(|Refused { place, problem, .. }| {
            output::warn(common, &format!("{place}: {problem}; left out"));
        });
        return Ok(());
    }
    if found.unsupported.is_empty() {
        return Ok(());
    }
    let hint = "attach the others with --skip-unsupported, and these by xl; nothing was changed";
    Err(of_several(code, format!("cannot attach all devices of {file}"), refused, hint))
}

/// Tells what is to be told though all can be understood.
fn told(common: &Common, file: &str, entries: &[Entry]) {
    if entries.is_empty() {
        output::warn(common, &format!("{file} lists no devices"));
    }
    for entry in entries {
        for notice in &entry.notices {
            output::warn(common, &format!("{file}:{}: {notice}", entry.place));
        }
    }
}

/// What is told of each operation before.
type Previews = Vec<(usize, Result<Option<Preview>, Box<Failure>>)>;

/// Whether this version does not serve what is asked for, here or at all.
fn is_not_served(failure: &Failure) -> bool {
    matches!(failure.cause, Cause::NotSupported { .. } | Cause::Unsupported(_))
}

/// Which devices cannot be attached since this version does not serve them; they are told to be left out.
fn not_served(common: &Common, places: &[String], previews: &Previews) -> Vec<usize> {
    let mut left_out = Vec::new();
    for (index, preview) in previews {
        if let Err(failure) = preview
            && is_not_served(failure)
        {
            output::warn(common, &format!("{}: {failure}; left out", places[*index]));
            left_out.push(*index);
        }
    }
    left_out
}

/// What would be done for each device.
fn foretold(plan: &Plan, previews: Vec<(usize, Option<Preview>)>, places: &[String]) -> Vec<Value> {
    let told = previews.into_iter().filter_map(|(index, preview)| {
        let attachment = plan.operations()[index].attachment()?;
        let mut value = json!({"place": places[index]});
        value[devices::xl_name(&attachment)] = attachment.libxl().into();
        if let (Value::Object(value), Value::Object(preview)) = (&mut value, json!(preview)) {
            value.extend(preview);
        }
        Some(value)
    });
    told.collect()
}

/// Sees that each device can be attached as far as that can be seen before.
fn checked(
    previews: Previews,
    tried: &str,
    places: &[String],
) -> Result<Vec<(usize, Option<Preview>)>, Problem> {
    let (mut good, mut failures) = (Vec::new(), Vec::new());
    for (index, preview) in previews {
        match preview {
            Ok(preview) => good.push((index, preview)),
            Err(failure) => failures.push((&places[index], failure)),
        }
    }
    let refused = failures.iter().map(|(place, failure)| Refused {
        place: (*place).clone(),
        code: Code::Of(failure.cause.code()),
        problem: failure.to_string(),
    });
    let refused: Vec<_> = refused.collect();
    match failures.into_iter().next() {
        None => Ok(good),
        Some((_, first)) => {
            let is_not_served = is_not_served(&first);
            let first = Problem::from(first);
            let mut problem = of_several(first.code, tried.to_owned(), refused, &first.hint);
            problem.hint += if is_not_served { "; --skip-unsupported leaves it out" } else { "" };
            problem.hint += "; nothing was changed";
            Err(problem.with_exit(first.exit))
        }
    }
}

fn report(
    common: &Common,
    args: &AttachAllArgs,
    outcome: &Outcome,
    places: &[String],
) -> Result<Exit, Problem> {
    let is_done = |ended: &Ended| matches!(ended, Ended::Done(_));
    let go_on = if !outcome.devices.iter().any(is_done) {
        "none of them was added: run it again when what failed is mended"
    } else if args.keep {
        "those that were added stay, and would be added again, or refused, if all of the file were run again: run a file \
         that lists the others alone"
    } else if outcome.undone.iter().all(|undone| is_done(&undone.ended)) {
        "all that was added was removed again: run it again when what failed is mended"
    } else {
        "detach what could not be removed again, and run it again when what failed is mended"
    };
    for Undone { operation, .. } in outcome.undone.iter().filter(|undone| is_done(&undone.ended)) {
        output::warn(common, &format!("{}: removed again", places[*operation]));
    }
    let asked = Asked { verb: "attach", preposition: "to", places, go_on };
    asked.conclude(common, outcome, asked.problems(outcome))
}
