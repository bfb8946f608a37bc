//! `cargo lab fuzz`: libFuzzer on all targets, or on one.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::{env, fmt};

use anyhow::{Context, Result, ensure};
use clap::builder::PossibleValuesParser;

use super::{TARGETS, Target, folder};
use crate::apt::Apt;
use crate::cargo::{cargo, install, succeed};
use crate::failure::{Failure, output_of};

/// What libFuzzer itself is built with.
const COMPILER: [&str; 1] = ["g++"];

/// Seconds for each target with `--short`.
const SHORT: u64 = 8;

/// Seconds after which an input counts as a hang; it takes a millisecond if all is well.
const HANG: u64 = 30;

/// Looks for inputs that break a promise of the protocol, the ring or the store.
///
/// Prints, for each target, how many inputs were tried, how much of the code they reached (before
/// and after), and how many new ones did so. Inputs that break something are kept, and named at
/// the end.
#[derive(Debug, clap::Args)]
pub struct FuzzArgs {
    /// The target; without one, all of them
    #[arg(value_parser = PossibleValuesParser::new(TARGETS.map(|target| target.name)))]
    target: Option<String>,
    /// How long to look, for each target
    #[arg(long, value_name = "N", default_value_t = 600)]
    seconds: u64,
    /// Look for just a few seconds, as CI does
    #[arg(long, conflicts_with = "seconds")]
    short: bool,
    /// Add what reaches new code to the corpus, instead of leaving it in the target folder
    #[arg(long)]
    keep: bool,
    /// Install nothing; what is missing fails with the command that installs it
    #[arg(long)]
    no_install: bool,
}

impl FuzzArgs {
    /// What CI runs.
    pub(crate) fn for_ci(may_install: bool) -> Self {
        Self { target: None, seconds: SHORT, short: true, keep: false, no_install: !may_install }
    }
}

/// Runs the subcommand: an error if a target was broken, after all of them were tried.
pub fn run(args: &FuzzArgs) -> Result<()> {
    let may_install = !args.no_install;
    Apt::new(may_install).install_missing(&COMPILER)?;
    install("cargo-fuzz", may_install)?;
    let targets = TARGETS.iter().filter(|target| args.target.as_ref().is_none_or(|name| name == target.name));
    let place = Place::new()?;
    place.build(args.target.as_deref())?;

    println!("{:<12} {:>10} {:>8} {:>14} {:>6}", "target", "inputs", "per s", "reached", "new");
    let mut broken = Vec::new();
    for target in targets {
        let seconds = if args.short { SHORT } else { args.seconds };
        let outcome = place.fuzz(target, seconds)?;
        println!("{outcome}");
        broken.extend(outcome.failure().map(|failure| failure.to_string()));
        if args.keep {
            place.keep(target)?;
        }
    }
    ensure!(broken.is_empty(), "{}", broken.join("\n"));
    Ok(())
}

/// Where everything goes: the target folder.
struct Place {
    folder: PathBuf,
    /// Named to cargo-fuzz, so that it is known where the programs will be.
    triple: String,
}

impl Place {
    fn new() -> Result<Self> {
        let folder =
            env::var_os("CARGO_TARGET_DIR").map_or_else(|| folder().join("../../target"), PathBuf::from);
        fs::create_dir_all(folder.join("fuzz"))?;
        let folder = folder.join("fuzz").canonicalize()?;
        Ok(Self { folder, triple: format!("{}-unknown-linux-gnu", env::consts::ARCH) })
    }

    /// Builds the entry points. Without a sanitizer they are built by stable Rust: the flags for
    /// coverage are stable, those for sanitizers are not.
    fn build(&self, target: Option<&str>) -> Result<()> {
        let mut command = cargo();
        command.args(["fuzz", "build", "--sanitizer", "none", "--target", &self.triple, "--fuzz-dir"]);
        command.arg(folder()).arg("--target-dir").arg(&self.folder).args(target).current_dir(folder());
        succeed(&mut command)
    }

    fn program(&self, target: &Target) -> Command {
        Command::new(self.folder.join(&self.triple).join("release").join(target.name))
    }

    /// Inputs that were found.
    fn found(&self, target: &Target) -> PathBuf {
        self.folder.join("found").join(target.name)
    }

    fn fuzz(&self, target: &Target, seconds: u64) -> Result<Outcome> {
        let (found, log) = (self.found(target), self.folder.join(format!("{}.log", target.name)));
        fs::create_dir_all(&found)?;
        let mut command = self.program(target);
        command
            .args([&found, &target.corpus()])
            .arg(format!("-max_total_time={seconds}"))
            // The short run is the same every time: what is new to be found, the long one finds.
            .args(if seconds == SHORT { &["-seed=1", "-runs=2000"][..] } else { &[] })
            .arg(format!("-max_len={}", target.max_len))
            .arg(format!("-timeout={HANG}"))
            .arg(format!("-artifact_prefix={}/{}-", self.folder.display(), target.name))
            .arg("-print_final_stats=1");
        let output = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?);
        let passed = output.status().with_context(|| format!("cannot run {command:?}"))?.success();
        let log = fs::read(&log)?;
        Ok(Outcome { target: target.name, log: String::from_utf8_lossy(&log).into_owned(), passed })
    }

    /// Adds to the corpus what reaches code that nothing in it reaches. How often an input gets to
    /// a place does not count: that would keep a hundred times as many.
    fn keep(&self, target: &Target) -> Result<()> {
        let folders = [target.corpus(), self.found(target)];
        output_of(self.program(target).args(["-merge=1", "-use_counters=0"]).args(folders)).map(drop)
    }
}

/// What libFuzzer says at the end of a run.
struct Outcome {
    target: &'static str,
    log: String,
    passed: bool,
}

impl Outcome {
    /// The word behind the last `label` in those lines that hold `mark`.
    fn word(&self, mark: &str, label: &str) -> &str {
        let line = self.log.lines().rev().find(|line| line.contains(mark) && line.contains(label));
        let word = line.and_then(|line| line.split(label).last()?.split_whitespace().next());
        word.unwrap_or("?")
    }

    /// The promise that was broken, and by what.
    fn failure(&self) -> Option<Failure> {
        if self.passed {
            return None;
        }
        let told = |line: &&str| line.contains(" panicked at ") || line.contains("ERROR: libFuzzer");
        let lines = self.log.lines().skip_while(|line| !told(line));
        let is_over = |line: &&str| {
            ["stack backtrace", "note: ", "==", "NOTE: "].iter().any(|end| line.starts_with(end))
        };
        let first = lines.clone().take(1);
        let observed: Vec<&str> = first.chain(lines.skip(1).take_while(|line| !is_over(line))).collect();
        let input = self.word("Test unit written to", "written to");
        Some(Failure {
            tried: format!("fuzzing {}", self.target),
            observed: observed.join("\n"),
            hint: format!(
                "the input is {input}; in lab/fuzz/corpus/{} it makes `cargo test -p lab --test corpus` fail until \
                 this is mended, and keeps it so",
                self.target
            ),
        })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reached = format!("{} -> {}", self.word("INITED", "cov:"), self.word("#", "cov:"));
        let stat = |name: &str| self.word("stat::", name);
        let verdict = if self.passed { "" } else { "  BROKEN" };
        write!(
            f,
            "{:<12} {:>10} {:>8} {reached:>14} {:>6}{verdict}",
            self.target,
            stat("number_of_executed_units:"),
            stat("average_exec_per_sec:"),
            stat("new_units_added:"),
        )
    }
}
