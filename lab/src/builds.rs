//! `cargo lab builds`: what others build these crates with. Each feature by itself, without a runtime, for other systems, with
//! the oldest compiler and with the oldest dependencies that the manifests allow.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cargo::{cargo, install, succeed};
use crate::failure::output_of;

/// What is published.
const PUBLISHED: [&str; 7] =
    ["xs-proto", "xs-store", "xs-client", "xen-devstate", "xen-hotplug", "xen-aodevice", "xendev"];

/// What runs in guests, too, which may be others than this machine.
const OF_GUESTS: [&str; 2] = ["xs-proto", "xs-client"];

const TARGETS: [&str; 4] = [
    "aarch64-unknown-linux-gnu",
    "x86_64-unknown-linux-musl",
    "x86_64-unknown-freebsd",
    "x86_64-pc-windows-gnu",
];

/// The crates of others that a program with `xs_client::blocking` alone may link.
const LINKED: usize = 12;

/// Check what others build these crates with: each feature, other systems, the oldest compiler and dependencies
#[derive(Debug, Default, clap::Args)]
pub struct BuildsArgs {
    /// Install nothing; what is missing fails with the command that installs it
    #[arg(long)]
    no_install: bool,
}

impl BuildsArgs {
    /// As CI runs it.
    pub fn for_ci(may_install: bool) -> Self {
        Self { no_install: !may_install }
    }
}

/// Runs them all.
pub fn run(args: &BuildsArgs) -> Result<()> {
    let may_install = !args.no_install;
    without_runtime()?;
    each_feature(may_install)?;
    other_systems(may_install)?;
    oldest_compiler(may_install)?;
    oldest_dependencies()
}

fn packages(names: &[&'static str]) -> Vec<&'static str> {
    names.iter().flat_map(|name| ["--package", name]).collect()
}

fn check(names: &[&'static str]) -> Command {
    let mut command = cargo();
    command.args(["check", "--quiet"]).args(packages(names));
    command
}

/// The blocking face of the client, its tests, and what it brings along.
fn without_runtime() -> Result<()> {
    let alone = ["--package", "xs-client", "--no-default-features"];
    succeed(cargo().args(["test", "--quiet", "--lib", "--test", "blocking"]).args(alone))?;
    let mut tree = cargo();
    tree.args(["tree", "--edges", "normal,no-proc-macro", "--prefix", "none", "--no-dedupe"]).args(alone);
    let listed = String::from_utf8(output_of(&mut tree)?)?;
    let mut others: Vec<&str> = listed.lines().filter(|line| !line.contains('/')).collect();
    others.sort_unstable();
    others.dedup();
    println!("lab: xs_client::blocking links {} crates of others: {}", others.len(), others.join(", "));
    ensure!((1..=LINKED).contains(&others.len()), "they may be {LINKED} at most");
    Ok(())
}

fn each_feature(may_install: bool) -> Result<()> {
    install("cargo-hack", may_install)?;
    let features = ["hack", "check", "--quiet", "--each-feature"];
    succeed(cargo().args(features).args(packages(&["xs-proto", "xs-client", "xen-aodevice"])))
}

/// Adds what `rustup` has, unless it is there.
fn rustup(arguments: &[&str], may_install: bool) -> Result<()> {
    let advice = format!("rustup {}", arguments.join(" "));
    ensure!(may_install, "it may be missing: {advice}");
    let mut command = Command::new("rustup");
    output_of(command.args(arguments)).with_context(|| format!("cannot run {advice}")).map(drop)
}

fn other_systems(may_install: bool) -> Result<()> {
    rustup(&[&["target", "add"][..], &TARGETS].concat(), may_install)?;
    for target in TARGETS {
        println!("lab: for {target}");
        succeed(check(&OF_GUESTS).args(["--target", target]))?;
    }
    Ok(())
}

fn oldest_compiler(may_install: bool) -> Result<()> {
    let version = env!("CARGO_PKG_RUST_VERSION");
    println!("lab: with Rust {version}");
    rustup(&["toolchain", "install", version, "--profile", "minimal"], may_install)?;
    let mut command = Command::new("rustup");
    // The cargo that runs this has said which toolchain is to be used.
    command.args(["run", version, "cargo", "check", "--quiet", "--target-dir", "target/oldest"]);
    succeed(command.args(packages(&PUBLISHED)).env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO"))
}

/// The versions that the manifests name themselves, in a copy of the workspace with a lock file of its own.
fn oldest_dependencies() -> Result<()> {
    println!("lab: with the oldest dependencies");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the lab has no workspace")?;
    let copy = root.join("target/oldest-dependencies");
    let files = output_of(Command::new("git").args(["ls-files", "-z"]).current_dir(root))?;
    for file in files.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let file = PathBuf::from(String::from_utf8(file.to_vec())?);
        let from = root.join(&file);
        let to = copy.join(file);
        fs::create_dir_all(to.parent().context("a file without a folder")?)?;
        if from.is_file() && fs::read(&from)? != fs::read(&to).unwrap_or_default() {
            fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        }
    }
    // Stable compilers have it only for who says that it may change.
    let mut update = cargo();
    update.args(["update", "--quiet", "-Z", "direct-minimal-versions"]).env("RUSTC_BOOTSTRAP", "1");
    succeed(update.current_dir(&copy))?;
    succeed(check(&PUBLISHED).args(["--target-dir", "../oldest"]).current_dir(&copy))
}
