//! The real-Xen lab: `cargo lab xen [SCENARIO]`.
//!
//! Everything else in the workspace is tested against models of the other side. Here is the other side
//! itself: the Xen hypervisor, a Linux dom0 with the real backend drivers, Debian's xenstored, `xl` and
//! hotplug scripts, and a guest with the real frontends, all inside one emulated machine that boots in
//! seconds on any Linux host. What
//! `xl` leaves in xenstore there is what our own commands must leave. It is the Xen of Debian 12, or with `--debian 13`
//! that of Debian 13, with its Linux and QEMU.
//!
//! | step | module |
//! | --- | --- |
//! | get the packages of a release of Debian | [`packages`], [`debian`] |
//! | build what the machine boots | [`image`], [`cpio`] |
//! | boot it and watch over it | [`machine`] |
//! | take in what the scenario tells | [`transcript`] |
//! | judge it | [`report`] |
//!
//! Scenarios are bash scripts; [`scenario`] says where. Whatever goes wrong with the lab itself is a
//! [`Failure`].

pub mod cpio;
pub mod debian;
pub mod image;
pub mod machine;
pub mod packages;
pub mod report;
pub mod scenario;
pub mod transcript;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::cargo::cargo;
use crate::failure::{Failure, output_of};
use debian::Debian;
use image::Overlay;
use machine::{Limits, Machine, Model, Stop};
use transcript::{Seen, Transcript};

/// How much of the console an error shows.
const LAST_LINES: usize = 12;

/// Seconds that a run may take, and that its console may say nothing.
const TIMEOUT: u64 = 1200;
const SILENCE: u64 = 150;

/// Runs a scenario in dom0 of a real Xen host, emulated by QEMU.
#[derive(Debug, clap::Args)]
pub struct XenArgs {
    /// The scenario to run
    #[arg(default_value = "main")]
    scenario: String,
    /// Boot the Xen and the Linux of this release of Debian
    #[arg(long, value_name = "RELEASE", default_value = "12")]
    debian: Debian,
    /// Describe the scenarios instead of running one
    #[arg(long)]
    list: bool,
    /// Test this command instead of building xendev
    #[arg(long, value_name = "PATH")]
    xendev: Option<PathBuf>,
    /// Give up after this time [default: 1200, or what the scenario says]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Give up when the console says nothing for this time
    #[arg(long, value_name = "SECONDS", default_value_t = SILENCE)]
    silence: u64,
    /// Show only the verdicts of the console, not all of it
    #[arg(long)]
    quiet: bool,
    /// Fail instead of installing missing packages
    #[arg(long)]
    no_install: bool,
}

impl XenArgs {
    /// A scenario as CI runs it.
    pub fn for_ci(scenario: &str, may_install: bool) -> Self {
        Self {
            scenario: scenario.to_owned(),
            debian: Debian::HOST,
            list: false,
            xendev: None,
            timeout: None,
            silence: SILENCE,
            quiet: true,
            no_install: !may_install,
        }
    }
}

/// Runs the subcommand. The result is an error if any verdict is, after all of them were printed.
pub fn run(args: &XenArgs) -> Result<()> {
    if args.list {
        for scenario in scenario::all()? {
            println!("{:<16} {}", scenario.name, scenario.description);
        }
        return Ok(());
    }
    let scenario = scenario::find(&args.scenario)?;
    let cache = target_folder()?.join("lab");
    let packages =
        packages::prepare(&cache.join("packages"), !args.no_install, scenario.needs_qemu, args.debian)?;
    let xendev = match &args.xendev {
        Some(path) => Some(path.clone()),
        None if scenario.needs_xendev => Some(build_xendev()?),
        None => None,
    };
    let run = match args.debian {
        Debian::HOST => scenario.name.clone(),
        other => format!("{}-{}", scenario.name, other.folder_name()),
    };
    let folder = fresh_folder(&cache.join("runs").join(run))?;
    let image = folder.join("dom0.cpio");
    let lab = folder.join("lab");
    if scenario.needs_lab {
        // This very program, though a build may have put another one in its place.
        fs::copy("/proc/self/exe", &lab).context("cannot copy the lab's program")?;
        // A guest holds it twice as it boots; with what a debugger needs it would not have the memory.
        output_of(Command::new("strip").arg("--strip-debug").arg(&lab))?;
    }
    let overlay = Overlay {
        scenarios: &scenario::folder(),
        scenario: &scenario.file_name(),
        xendev: xendev.as_deref(),
        lab: scenario.needs_lab.then_some(&lab),
        qemu: scenario.needs_qemu,
    };
    image::assemble(&packages, &cache.join("images"), &overlay, &image)?;

    let overall = args.timeout.or(scenario.limit).unwrap_or(TIMEOUT);
    let limits = Limits { overall: Duration::from_secs(overall), silence: Duration::from_secs(args.silence) };
    let started = Instant::now();
    let log = folder.join("console.log");
    println!("lab: booting the scenario {}; console in {}", scenario.name, log.display());
    let model = if scenario.needs_qemu { Model::ALL_GUESTS } else { Model::PV_ONLY };
    let mut machine = Machine::start(&model, &packages, &image, &folder)?;
    let mut transcript = Transcript::default();
    let stop = machine.watch(limits, |line| {
        let seen = transcript.line(line);
        if seen == Seen::Verdict || (seen == Seen::Other && !args.quiet) {
            println!("{:6.1} | {line}", started.elapsed().as_secs_f64());
        }
        transcript.end.is_some()
    })?;
    let errors = machine.errors();
    drop(machine);

    let rows = report::judge(&transcript, &folder);
    println!(
        "\nlab: {:.0} s; all files of this run are in {}",
        started.elapsed().as_secs_f64(),
        folder.display()
    );
    let failed = report::print(&rows, &transcript.timings);
    explain(&stop, limits, &errors, &log)
        .or_else(|| (failed > 0).then(|| failed_verdicts(failed, &log)))
        .map_or(Ok(()), |(observed, hint)| {
            let tried = format!("running the scenario {} on an emulated Xen host", scenario.name);
            Err(Failure { tried, observed, hint }.into())
        })
}

/// What was seen, and what to do, if the machine did not get to the scenario's end.
fn explain(stop: &Stop, limits: Limits, errors: &str, log: &Path) -> Option<(String, String)> {
    let (what, hint) = match stop {
        Stop::Done => return None,
        Stop::Exited(status) => (
            format!("QEMU ended ({status}) before the scenario did. {}", errors.trim_end()),
            "the console's end tells who powered the machine off; if it just stops, see qemu.log beside it"
                .to_owned(),
        ),
        Stop::Crashed(line) => (
            format!("the machine crashed: {line}"),
            "a crash before dom0 runs is mostly a CPU feature that QEMU emulates and Xen cannot stand: see \
             machine.rs; a later one is worth keeping the console for"
                .to_owned(),
        ),
        Stop::Silent => (
            format!("no output for {} s", limits.silence.as_secs()),
            "the command after the last verdict hangs; on a slow host try a longer --silence".to_owned(),
        ),
        Stop::TimedOut => (
            format!("not finished after {} s", limits.overall.as_secs()),
            "if the console shows steady progress, the host is slow: try a longer --timeout".to_owned(),
        ),
    };
    Some((format!("{what}\n{}", last_lines(log)), hint))
}

fn failed_verdicts(failed: usize, log: &Path) -> (String, String) {
    let hint = "the output of the command that failed stands before its verdict in the console".to_owned();
    (format!("verdicts that failed: {failed}; the console is in {}", log.display()), hint)
}

fn last_lines(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let tail = &lines[lines.len().saturating_sub(LAST_LINES)..];
    format!("the console ({}) ends with:\n{}", log.display(), tail.join("\n"))
}

/// Cargo's target folder, wherever the user has put it.
pub(crate) fn target_folder() -> Result<PathBuf> {
    #[derive(serde::Deserialize)]
    struct Metadata {
        target_directory: PathBuf,
    }
    let mut command = cargo();
    command.args(["metadata", "--format-version", "1", "--no-deps", "--offline"]);
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    let metadata: Metadata = serde_json::from_slice(&output_of(&mut command)?)?;
    Ok(metadata.target_directory)
}

/// Builds the command under test and returns where cargo put it.
fn build_xendev() -> Result<PathBuf> {
    println!("lab: building xendev");
    let output = cargo()
        .args(["build", "--release", "--package", "xendev", "--message-format", "json-render-diagnostics"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        return Err(Failure {
            tried: "building xendev, the command under test".into(),
            observed: format!("cargo ended with {}", output.status),
            hint: "fix what the compiler reports above, or give a finished one with --xendev PATH".into(),
        }
        .into());
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo built xendev but named no executable")
}

fn fresh_folder(path: &Path) -> Result<PathBuf> {
    if path.exists() {
        fs::remove_dir_all(path).with_context(|| format!("cannot empty {}", path.display()))?;
    }
    fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(path.to_owned())
}
