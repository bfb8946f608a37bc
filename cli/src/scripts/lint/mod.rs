//! `hotplug lint`: a script is checked against its contract.
//!
//! | what | where |
//! | --- | --- |
//! | the checks, and what is found, as values | [`check`] |
//! | what is thought of what was observed | [`judge`] |
//! | where it happens: namespaces and a folder | [`sandbox`] |
//! | the store, and devices in it | [`scene`] |
//! | what is on the host before and after | [`host`] |
//! | a good add and its removal | [`course`] |
//! | what goes wrong around a script | [`trouble`] |
//! | other devices, guests and surroundings | [`company`] |

mod check;
mod company;
mod course;
mod host;
mod judge;
mod sandbox;
mod scene;
mod trouble;

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use xen_hotplug::{Runner as _, ScriptRunner};

use check::{Check, Finding, Verdict};
use sandbox::Sandbox;
use scene::{Kind, Scene, Stop, Subject};

use crate::args::Common;
use crate::options::seconds;
use crate::output::say;
use crate::printer::stderr;
use crate::problem::{Code, Exit, Problem, line};
use crate::signals::cancel_on_signal;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum KindSaid {
    Vbd,
    Vif,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    R,
    W,
}

#[derive(Debug, Args)]
pub(crate) struct LintArgs {
    /// The script; a name without a slash is one in /etc/xen/scripts
    script: PathBuf,
    /// For which kind of device it is [default: vif if its name begins with vif, else vbd]
    #[arg(long, value_enum, value_name = "KIND")]
    kind: Option<KindSaid>,
    /// What it is given: of a disk the target (params), in which %f stands for a small file that is made for it, as in
    /// dummy:%f; of an interface its keys, as in ip=192.0.2.9,bridge=br0 [default: %f for a disk, bridge=xenbr0 for an
    /// interface]
    #[arg(long, value_name = "PARAMS")]
    target: Option<String>,
    /// Whether the guest may write to the disk
    #[arg(long, value_enum, value_name = "MODE", default_value = "w")]
    mode: Mode,
    /// One more variable that the script finds in its environment
    #[arg(short = 'e', long = "env", value_name = "KEY=VALUE", value_parser = variable)]
    variables: Vec<(String, String)>,
    /// How long the script may take
    #[arg(long, value_name = "SECONDS", value_parser = seconds, allow_negative_numbers = true, default_value = "40")]
    script_timeout: Duration,
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("give a name and a value, as in KEY=VALUE".to_owned()),
    }
}

impl LintArgs {
    fn subject(&self) -> Subject {
        let is_name = self.script.components().count() == 1 && !self.script.exists();
        let script =
            if is_name { Path::new("/etc/xen/scripts").join(&self.script) } else { self.script.clone() };
        let is_of_vif = || script.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vif"));
        let kind = match self.kind {
            Some(KindSaid::Vif) => Kind::Vif,
            None if is_of_vif() => Kind::Vif,
            _ => Kind::Vbd,
        };
        Subject {
            script: std::path::absolute(&script).unwrap_or(script),
            kind,
            target: self.target.clone(),
            writable: self.mode == Mode::W,
            variables: self.variables.clone(),
            limit: self.script_timeout,
        }
    }
}

pub(crate) async fn run(common: &Common, args: &LintArgs) -> Result<Exit, Problem> {
    let subject = args.subject();
    let (script, kind) = (subject.script.display().to_string(), subject.kind);
    let tried = format!("cannot check {script}");
    let cancel = cancel_on_signal();
    let mut found = Vec::new();
    let checked = check_all(common, subject, &mut found, &cancel).await;
    if !common.quiet {
        stderr().status(None);
    }
    if let Err(stop) = checked? {
        return Err(match stop {
            Stop::Cancelled => Problem::new(
                Code::Cancelled,
                tried,
                "cancelled by a signal",
                "nothing of it is left; check it again",
            ),
            Stop::Sandbox(observed) => {
                let hint = "correct --target and --kind, or see that the tools that are named are installed";
                Problem::new(Code::Start, tried, observed, hint)
            }
        });
    }
    let reached = found.iter().map(|finding| finding.check).collect::<Vec<_>>();
    let missing = Check::ALL.into_iter().filter(|check| !reached.contains(check));
    found.extend(
        missing.filter(|check| applies(*check, kind)).map(|check| Finding::skipped(check, NOT_REACHED)),
    );
    let failed = count(&found, Verdict::Failed) > 0;
    if common.json {
        say(format!("{}\n", in_json(&script, kind, &found, !failed)));
    } else {
        say(in_words(&script, &found));
    }
    Ok(if failed { Exit::Failed } else { Exit::Done })
}

/// Why the last checks are not made.
const NOT_REACHED: &str =
    "nothing can be said of it as long as add does not do its work, or remove changes what is not its own";

/// Whether a check says something of such a script.
fn applies(check: Check, kind: Kind) -> bool {
    kind == Kind::Vbd || !matches!(check, Check::Device | Check::TargetGone | Check::Shared)
}

/// Makes the checks, one after the other, until one of them shows that no other can be made; and takes all away.
async fn check_all(
    common: &Common,
    subject: Subject,
    found: &mut Vec<Finding>,
    cancel: &CancellationToken,
) -> Result<Result<(), Stop>, Problem> {
    tell(common, Check::Executable);
    let executable = Finding::ok(Check::Executable);
    if let Err(error) = ScriptRunner::new().foresee(&subject.script) {
        let hint = "name a script that is there, make it executable (chmod +x), and install the interpreter of its first line";
        found.push(executable.with(Verdict::Failed, error.to_string(), hint));
        return Ok(Ok(()));
    }
    if rustix::process::geteuid().is_root()
        && subject.script.canonicalize().is_ok_and(|script| sandbox::is_hidden(&script))
    {
        let observed = "it is in a directory that is hidden while a script is checked (/run, /var/log)";
        found.push(executable.with(Verdict::Failed, observed, "copy it elsewhere"));
        return Ok(Ok(()));
    }
    found.push(executable);
    found.push(tools());
    let sandbox = Sandbox::enter(subject.kind == Kind::Vif)?;
    let mut scene = match Scene::open(sandbox, subject, cancel.clone()).await {
        Ok(scene) => scene,
        Err(stop) => return Ok(Err(stop)),
    };
    let before = scene.host();
    let checked = checks(common, &mut scene, found).await;
    for left in scene.close(&before).await {
        crate::output::warn(common, &format!("it could not be taken away: {left}"));
    }
    Ok(checked)
}

async fn checks(common: &Common, scene: &mut Scene, found: &mut Vec<Finding>) -> Result<(), Stop> {
    tell(common, Check::Add);
    let Some(good) = course::good(scene, found).await? else { return Ok(()) };
    tell(common, Check::Vanished);
    trouble::vanished(scene, &good, found).await?;
    tell(common, Check::BadTarget);
    found.push(trouble::bad_target(scene, &good).await?);
    if !scene.is_vif() {
        tell(common, Check::TargetGone);
        found.push(trouble::target_gone(scene, &good).await?);
    }
    tell(common, Check::Killed);
    if !trouble::killed(scene, &good, found).await? {
        return Ok(());
    }
    tell(common, Check::SideBySide);
    found.push(company::side_by_side(scene, &good).await?);
    if !scene.is_vif() {
        tell(common, Check::Shared);
        found.push(company::shared(scene).await?);
    }
    tell(common, Check::Environment);
    found.push(company::environment(scene).await?);
    tell(common, Check::NoStdin);
    found.push(company::no_stdin(scene).await?);
    Ok(())
}

/// Tells whoever looks what is being checked.
fn tell(common: &Common, check: Check) {
    let text = format!("checking {}: {}", check.id(), check.about());
    if common.verbose > 0 {
        stderr().put(format!("{text}\n"));
    } else if !common.quiet {
        stderr().status(Some(text));
    }
}

fn tools() -> Finding {
    let path = env::var_os("PATH").unwrap_or_default();
    let directories: Vec<PathBuf> = env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from))
        .collect();
    let is_there = |tool: &str| directories.iter().any(|directory| directory.join(tool).exists());
    let mut finding = Finding::ok(Check::Tools);
    for tool in ["xenstore-read", "xenstore-write"].into_iter().filter(|tool| !is_there(tool)) {
        let hint =
            "install them (xenstore-utils in Debian), unless the script speaks to the store by other means";
        finding.note(Verdict::Warning, format!("{tool} is not installed"), hint);
    }
    finding
}

fn count(found: &[Finding], verdict: Verdict) -> usize {
    found.iter().filter(|finding| finding.verdict == verdict).count()
}

fn in_words(script: &str, found: &[Finding]) -> String {
    let mut text = format!("{}\n", line(script));
    let (reached, rest): (Vec<_>, Vec<_>) =
        found.iter().partition(|finding| finding.observed != [NOT_REACHED]);
    for finding in reached {
        text +=
            &format!("{:<8} {:<13} {}\n", finding.verdict.word(), finding.check.id(), finding.check.about());
        for observed in &finding.observed {
            text += &format!("  observed: {}\n", line(observed));
        }
        if !finding.hint.is_empty() {
            text += &format!("  hint: {}\n", line(&finding.hint));
        }
    }
    let rest: Vec<&str> = rest.into_iter().map(|finding| finding.check.id()).collect();
    if !rest.is_empty() {
        text += &format!("skipped, as long as add does not do its work: {}\n", rest.join(", "));
    }
    let of = |verdict: Verdict| format!("{} {}", count(found, verdict), verdict.word());
    text + &[Verdict::Ok, Verdict::Warning, Verdict::Failed, Verdict::Skipped].map(of).join(", ") + "\n"
}

fn in_json(script: &str, kind: Kind, found: &[Finding], ok: bool) -> serde_json::Value {
    let checks = found.iter().map(|finding| {
        let hint = Some(&finding.hint).filter(|hint| !hint.is_empty());
        let observed: Vec<String> = finding.observed.iter().map(|observed| line(observed)).collect();
        json!({
            "check": finding.check,
            "about": finding.check.about(),
            "verdict": finding.verdict,
            "observed": observed,
            "hint": hint,
        })
    });
    let kind = if kind == Kind::Vif { "vif" } else { "vbd" };
    json!({ "ok": ok, "script": script, "kind": kind, "checks": checks.collect::<Vec<_>>() })
}
