//! `hotplug run`: the script of a device, run by hand.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use xen_aodevice::vbd::Vdev;
use xen_aodevice::{ByHand, ByHandPreview, DeviceId, Kind, Limits, PlannedRun, Rerun, Which};
use xen_hotplug::Action;
use xs_client::{DomId, Path};

use crate::args::Common;
use crate::devices;
use crate::hint::quoted;
use crate::network::ADDRESS;
use crate::options::seconds;
use crate::output::{self, say, say_json};
use crate::problem::{Code, Exit, Problem, line, unless_cancelled};
use crate::signals::cancel_on_signal;
use crate::world::World;

/// How many of the last lines of a script's output are shown.
const LINES_SHOWN: usize = 40;

#[derive(Debug, Args)]
#[command(override_usage = "xendev hotplug run [OPTIONS] <DOMAIN> <KIND> <DEVID> <ACTION>\n       \
                            xendev hotplug run [OPTIONS] <BACKEND-PATH> <ACTION>")]
pub(crate) struct RunArgs {
    /// The device, by its guest, its kind (vbd or vif) and its name or id, as in `1 vbd xvda`, or by its backend's directory,
    /// as in `/local/domain/0/backend/vbd/1/51712`; and then what the script is to do: add or remove, for an interface also
    /// online or offline
    #[arg(required = true, num_args = 2..=4, value_name = "WORD")]
    words: Vec<String>,
    /// Run it although the device is in use
    #[arg(short, long)]
    force: bool,
    /// How long the script may take
    #[arg(long, value_name = "SECONDS", value_parser = seconds, allow_negative_numbers = true, default_value = "40")]
    script_timeout: Duration,
}

/// What the words of the command line say.
#[derive(Debug, PartialEq, Eq)]
struct Said<'a> {
    device: SaidDevice<'a>,
    action: Action,
}

#[derive(Debug, PartialEq, Eq)]
enum SaidDevice<'a> {
    /// By guest, kind and name.
    Named(&'a str, Kind, &'a str),
    /// By the backend's directory.
    At(Path, Which),
}

const FORMS: &str = "say for example xendev hotplug run 1 vbd xvda add, or \
                     xendev hotplug run /local/domain/0/backend/vif/1/0 offline";

fn read(words: &[String]) -> Result<Said<'_>, String> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        [path, action] => {
            let (path, which) = at(path)?;
            let action = action_of(which.kind, action)?;
            Ok(Said { device: SaidDevice::At(path, which), action })
        }
        [domain, kind, device, action] => {
            let kind = match kind {
                "vbd" | "block" | "disk" => Kind::Vbd,
                "vif" | "network" | "nic" => Kind::Vif,
                other => return Err(format!("{other} is no kind of device that has scripts: vbd or vif")),
            };
            Ok(Said { device: SaidDevice::Named(domain, kind, device), action: action_of(kind, action)? })
        }
        _ => Err("it needs a device and an action".to_owned()),
    }
}

fn action_of(kind: Kind, text: &str) -> Result<Action, String> {
    match (text, kind) {
        ("add", _) | ("online", Kind::Vif) => Ok(Action::Add),
        ("remove", _) | ("offline", Kind::Vif) => Ok(Action::Remove),
        (other, Kind::Vif) => Err(format!("{other} is none of add, remove, online and offline")),
        (other, _) => Err(format!("{other} is neither add nor remove")),
    }
}

/// The device whose backend's directory this is.
fn at(text: &str) -> Result<(Path, Which), String> {
    let bad = || format!("{text} is no backend's directory, such as /local/domain/0/backend/vbd/1/51712");
    let path = Path::new(text.trim_end_matches('/')).map_err(|error| error.to_string())?;
    let names: Vec<&str> = path.names().collect();
    let ["local", "domain", _, "backend", be_kind, fe, devid] = names[..] else { return Err(bad()) };
    let serves = |kind: &Kind| kind.info().backends.iter().any(|backend| backend.name() == be_kind);
    let kind = Kind::ALL.into_iter().find(serves).ok_or_else(bad)?;
    let fe: DomId = fe.parse().map_err(|_| bad())?;
    let which = Which { fe, kind, devid: devid.parse().map_err(|_| bad())? };
    DeviceId::served_at(which, &path).ok_or_else(bad)?;
    Ok((path, which))
}

pub(crate) async fn run(common: &Common, args: &RunArgs) -> Result<Exit, Problem> {
    let tried = || format!("cannot run the hotplug script of {}", args.words.join(" "));
    let said = read(&args.words).map_err(|observed| Problem::new(Code::Usage, tried(), observed, FORMS))?;
    let cancel = cancel_on_signal();
    let world = World::open(common).await?;
    let (which, backend) = match said.device {
        SaidDevice::At(path, which) => (which, Some(path)),
        SaidDevice::Named(domain, kind, device) => {
            let fe = devices::domain_or_id(&world.client, domain).await?;
            let devid = match kind {
                Kind::Vbd => {
                    let hint = format!("xendev block-list {fe} shows the guest's disks");
                    let bad = |error| Problem::new(Code::BadDevice, tried(), error, hint);
                    Vdev::new(device).map_err(bad)?.devid()
                }
                kind => devices::devid(&world, (fe, kind), device, Some(&ADDRESS)).await?,
            };
            (Which { fe, kind, devid }, None)
        }
    };
    let by_hand = ByHand::new(which, said.action).backend(backend).force(args.force);
    let mut limits = Limits::default();
    limits.scripts = limits.scripts.deadline(args.script_timeout);
    if common.dry_run {
        let toolstack = world.toolstack(limits).await?;
        let preview = unless_cancelled(tried(), toolstack.preview_by_hand(&by_hand)).await??;
        tell_preview(common, &preview);
        return Ok(Exit::Done);
    }
    let (toolstack, progress) = devices::watched(&world, limits, common).await?;
    let rerun = toolstack.run_by_hand(&by_hand, &cancel).await;
    progress.done();
    report(common, rerun?)
}

/// Prints what would be run, as commands that a shell takes.
fn tell_preview(common: &Common, preview: &ByHandPreview) {
    if common.json {
        say_json(json!({"ok": true, "dry_run": true}), json!(preview));
        return;
    }
    if let Some(why) = &preview.refused {
        output::warn(common, &format!("it would be refused without --force: {why}"));
    }
    if preview.runs.is_empty() {
        say("# nothing would be run: by what is recorded, the script has nothing to undo\n");
    }
    say(preview.runs.iter().map(in_shell).collect::<Vec<_>>().join("\n"));
}

/// A run as commands of a shell.
fn in_shell(run: &PlannedRun) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    if run.native {
        text += "# a native handler does its work, unless --hotplug script is given\n";
    }
    if run.is_copy {
        _ = writeln!(text, "# what it reads is in a directory that is made for the run");
        for (key, value) in &run.keys {
            let path = quoted(&format!("{}/{key}", run.directory));
            _ = writeln!(text, "xenstore-write {path} {}", quoted(&line(value)));
        }
    } else {
        _ = writeln!(text, "# it finds these keys in {}:", line(&run.directory));
        for (key, value) in &run.keys {
            _ = writeln!(text, "#   {} = {}", line(key), line(value));
        }
    }
    text += "env -i \\\n";
    for (name, value) in &run.environment {
        _ = writeln!(text, "  {name}={} \\", quoted(&line(value)));
    }
    let command: Vec<String> = run.command.iter().map(|word| quoted(&line(word))).collect();
    _ = writeln!(text, "  {} < /dev/null", command.join(" "));
    text
}

/// Tells what came of a run, on standard output whatever it was: it is the purpose of the command.
fn report(common: &Common, rerun: Rerun) -> Result<Exit, Problem> {
    let warnings = rerun.warnings.iter();
    warnings.for_each(|warning| output::warn(common, warning));
    if !common.json {
        say(in_words(&rerun));
        return rerun.failure.map_or(Ok(Exit::Done), |failure| Err(failure.into()));
    }
    let mut value = json!(rerun);
    value["changed"] = json!(changes(&rerun.before, &rerun.after));
    match rerun.failure {
        None => {
            say_json(json!({"ok": true}), value);
            Ok(Exit::Done)
        }
        Some(failure) => Err(Problem::from(failure).with_detail("run", value)),
    }
}

fn in_words(rerun: &Rerun) -> String {
    let mut text = String::new();
    if rerun.runs.is_empty() && rerun.failure.is_none() {
        text += "nothing was run: by what is recorded, the script has nothing to undo\n";
    }
    for ran in &rerun.runs {
        let report = &ran.report;
        let seconds = report.duration.as_secs_f64();
        _ = writeln!(text, "{}: {} after {seconds:.3} s", line(&ran.request.to_string()), report.ending);
        if ran.request.directory() != rerun.directory {
            _ = writeln!(text, "in a copy of the backend's keys: {}", line(&ran.request.directory()));
        }
        let output = String::from_utf8_lossy(report.output.as_bytes());
        let lines: Vec<&str> = output.lines().collect();
        let shown = &lines[lines.len().saturating_sub(LINES_SHOWN)..];
        if shown.len() < lines.len() {
            _ = writeln!(text, "  ({} lines of output before these)", lines.len() - shown.len());
        }
        shown.iter().for_each(|shown| _ = writeln!(text, "  | {}", line(shown)));
    }
    let status = rerun.after.get("hotplug-status").map_or("not there", String::as_str);
    _ = writeln!(text, "hotplug-status: {}", line(status));
    let changes = changes(&rerun.before, &rerun.after);
    if changes.is_empty() {
        _ = writeln!(text, "no key of {} has changed", line(&rerun.directory));
    } else {
        _ = writeln!(text, "changed in {}:", line(&rerun.directory));
    }
    for (key, change) in changes {
        let [was, is] = change.map(|value| value.map_or("(not there)".to_owned(), line));
        _ = writeln!(text, "  {}: {was} -> {is}", line(key));
    }
    text
}

/// The keys that differ, with their values before and now.
fn changes<'a>(
    before: &'a BTreeMap<String, String>,
    after: &'a BTreeMap<String, String>,
) -> BTreeMap<&'a str, [Option<&'a str>; 2]> {
    let keys = before.keys().chain(after.keys()).map(String::as_str);
    let both = keys.map(|key| (key, [before, after].map(|keys| keys.get(key).map(String::as_str))));
    both.filter(|(_, [was, is])| was != is).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Result<(String, Action), String> {
        let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
        let said = read(&words)?;
        let device = match said.device {
            SaidDevice::Named(domain, kind, device) => format!("{domain} {kind} {device}"),
            SaidDevice::At(path, which) => format!("{path}: {} {} {}", which.fe, which.kind, which.devid),
        };
        Ok((device, said.action))
    }

    #[test]
    fn devices_are_named_as_in_other_commands_or_by_their_backends() {
        assert_eq!(said("guest vbd xvdb add"), Ok(("guest vbd xvdb".to_owned(), Action::Add)));
        assert_eq!(said("1 network 0 offline"), Ok(("1 vif 0".to_owned(), Action::Remove)));
        let path = "/local/domain/0/backend/vbd/1/51712";
        assert_eq!(said(&format!("{path}/ remove")), Ok((format!("{path}: 1 vbd 51712"), Action::Remove)));
        let tap = "/local/domain/0/backend/vbd3/1/51712";
        assert_eq!(said(&format!("{tap} add")), Ok((format!("{tap}: 1 vbd 51712"), Action::Add)));
        for bad in [
            "1 vbd xvda offline",
            "1 vbd xvda attach",
            "1 vkb 0 add",
            "1 vbd xvda",
            "/local/domain/0/backend/vbd/1 add",
            "/local/domain/0/backend/vbd/1/051712 add",
            "/local/domain/1/device/vbd/51712 add",
        ] {
            assert!(said(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_changed_is_told_with_what_it_was() {
        let keys = |keys: &[(&str, &str)]| keys.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let (before, after) =
            (keys(&[("a", "1"), ("b", "2"), ("c", "3")]), keys(&[("a", "1"), ("b", "4"), ("d", "5")]));
        let changes = changes(&before, &after);
        assert_eq!(changes["b"], [Some("2"), Some("4")]);
        assert_eq!((changes["c"], changes["d"], changes.len()), ([Some("3"), None], [None, Some("5")], 3));
    }
}
