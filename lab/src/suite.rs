//! `cargo lab test`: everything that CI runs, in one command.
//!
//! Every step is run even if one before it failed, so that one run tells all; the cheap ones come
//! first. No step is left out silently: what cannot run has failed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::api::{self, ApiArgs};
use crate::apt::Apt;
use crate::builds::{self, BuildsArgs};
use crate::cargo::{cargo, install, succeed};
use crate::ends::{self, EndsArgs};
use crate::fuzz::{self, FuzzArgs};
use crate::grammar::{self, GrammarArgs};
use crate::hostile::{self, HostileArgs};
use crate::lanes::{self, Ended};
use crate::native::{self, NativeArgs};
use crate::native_disk::{self, NativeDiskArgs};
use crate::native_vif::{self, NativeVifArgs};
use crate::xen::debian::Debian;
use crate::xen::{self, XenArgs};

/// What the tests against real peers need, besides what the lab's Xen host does.
const PEERS: [&str; 11] = [
    "xen-utils-4.17",
    "xen-utils-common",
    "xenstore-utils",
    "libxen-dev",
    "libyajl-dev",
    "python3-pyxs",
    "gcc",
    "libc6-dev",
    "iproute2",
    "net-tools",
    "openvswitch-switch",
];

/// Run everything that CI runs: checks, tests against Debian's real daemons, the demo, and
/// ten scenarios on a real Xen host under emulation. Takes more than an hour on two cores
#[derive(Debug, clap::Args)]
pub struct TestArgs {
    /// Leave out the real Xen host, which takes the longest
    #[arg(long)]
    no_xen: bool,
    /// Run the longest scenarios of the real Xen host too, which CI leaves out: two hours more
    #[arg(long, conflicts_with = "no_xen")]
    full: bool,
    /// Install nothing; what is missing fails with the command that installs it
    #[arg(long)]
    no_install: bool,
}

/// The other scenarios of a real Xen host that CI runs, the longest first.
const SCENARIOS: [(&str, &str); 9] = [
    ("driver domain", "driver-domain-short"),
    ("door", "door"),
    ("kinds", "kinds"),
    ("sets", "sets"),
    ("creation", "creation"),
    ("qemu", "model"),
    ("native, real Xen", "native"),
    ("facts", "facts"),
    ("xenbus", "clients"),
];

/// Those that CI leaves out, but for what takes an hour by itself (`soak`) or measures.
const LONG_SCENARIOS: [(&str, &str); 7] = [
    ("driver domain, whole", "driver-domain"),
    ("owners", "owners"),
    ("ends", "ends"),
    ("ends, HVM", "ends-hvm"),
    ("qemu, whole", "qemu"),
    ("cdrom", "cdrom"),
    ("driver domain, QEMU", "driver-domain-qemu"),
];

type Step = (&'static str, Box<dyn Fn() -> Result<()>>);

/// Runs all steps; an error if any failed. The last line is `N passed, N failed`.
pub fn run(args: &TestArgs) -> Result<()> {
    let may_install = !args.no_install;
    let release = Arc::<Release>::default();
    let begins = release.clone();
    let mut steps: Vec<Step> = vec![
        ("peers", Box::new(move || Apt::new(may_install).install_missing(&PEERS))),
        ("format", Box::new(|| run_cargo(&["fmt", "--all", "--check"]))),
        (
            "clippy",
            Box::new(|| run_cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])),
        ),
        ("docs", Box::new(docs)),
        ("public items", Box::new(|| api::run(&ApiArgs { write: false }))),
        ("licences", Box::new(move || licences(may_install))),
        ("packages", Box::new(packages)),
        ("builds", Box::new(move || builds::run(&BuildsArgs::for_ci(may_install)))),
        ("no_std", Box::new(no_std)),
        ("loom", Box::new(loom)),
        ("tests", Box::new(|| run_cargo(&["test", "--workspace"]))),
        ("release begins", Box::new(move || begins.begin())),
        ("grammar", Box::new(move || grammar::run(&GrammarArgs::for_ci(may_install)))),
        ("native", Box::new(move || native::run(&NativeArgs::for_ci(may_install, Debian::Bookworm)))),
        (
            "native, Debian 13",
            Box::new(move || native::run(&NativeArgs::for_ci(may_install, Debian::Trixie))),
        ),
        ("ends", Box::new(|| ends::run(&EndsArgs::default()))),
        ("native disk", Box::new(|| native_disk::run(&NativeDiskArgs::for_ci(Debian::Bookworm)))),
        ("native disk, Debian 13", Box::new(|| native_disk::run(&NativeDiskArgs::for_ci(Debian::Trixie)))),
        ("native vif", Box::new(|| native_vif::run(&NativeVifArgs::default()))),
        // Each benchmark runs once, in the test profile: that it works, not how fast.
        ("benches", Box::new(|| run_cargo(&["test", "--package", "benches", "--benches"]))),
        ("fuzz", Box::new(move || fuzz::run(&FuzzArgs::for_ci(may_install)))),
        ("hostile", Box::new(|| hostile::run(&HostileArgs::for_ci()))),
        (
            "demo",
            Box::new(move || {
                release.end()?;
                run_cargo(&["run", "--release", "--package", "xendev", "--", "demo"])
            }),
        ),
    ];
    if args.no_xen {
        println!("lab: the real Xen host is left out, as asked");
    } else {
        // It makes what all others boot, so it is alone.
        let args = XenArgs::for_ci("main", may_install);
        steps.push(("real Xen", Box::new(move || xen::run(&args))));
    }

    let mut results: Vec<Ended> = Vec::new();
    for (name, step) in steps {
        println!("\nlab: === {name}");
        let begun = Instant::now();
        let outcome = step();
        if let Err(error) = &outcome {
            eprintln!("lab: {name} failed: {error:#}");
        }
        results.push((name, begun.elapsed(), outcome.is_ok()));
    }
    if !args.no_xen {
        results.extend(lanes::run(&SCENARIOS, may_install));
        if args.full {
            results.extend(lanes::run(&LONG_SCENARIOS, may_install));
        }
    }
    println!("\nlab: summary");
    for (name, took, passed) in &results {
        println!("  {:6} {name:<12} {:7.1} s", if *passed { "ok" } else { "FAILED" }, took.as_secs_f64());
    }
    let passed = results.iter().filter(|(.., passed)| *passed).count();
    let failed = results.len() - passed;
    println!("{passed} passed, {failed} failed");
    ensure!(failed == 0, "{failed} steps failed");
    Ok(())
}

/// The build of the program that is shipped, beside other steps: it keeps one CPU busy for minutes, and they leave one idle.
#[derive(Default)]
struct Release(Mutex<Option<JoinHandle<Result<()>>>>);

impl Release {
    fn building(&self) -> MutexGuard<'_, Option<JoinHandle<Result<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) -> Result<()> {
        let build = || run_cargo(&["build", "--quiet", "--release", "--package", "xendev"]);
        *self.building() = Some(thread::spawn(build));
        Ok(())
    }

    fn end(&self) -> Result<()> {
        let built = self.building().take().map(JoinHandle::join);
        built.unwrap_or(Ok(Ok(()))).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

fn run_cargo(args: &[&str]) -> Result<()> {
    succeed(cargo().args(args))
}

/// Each crate as it would be published, built from its package and those of the others.
fn packages() -> Result<()> {
    let mut command = cargo();
    command.args(["package", "--quiet", "--workspace", "--allow-dirty"]);
    for name in ["lab", "lab-proxy", "peer-program", "benches"] {
        command.args(["--exclude", name]);
    }
    succeed(&mut command)
}

fn no_std() -> Result<()> {
    let manifest = ["--manifest-path", "lab/no-std/Cargo.toml", "--target-dir", "target/no-std"];
    succeed(cargo().args(["build", "--locked"]).args(manifest))
}

/// Every order in which the two ends of a ring can see each other's steps.
fn loom() -> Result<()> {
    let mut command = cargo();
    command.args([
        "test",
        "--package",
        "xs-proto",
        "--release",
        "--lib",
        "--target-dir",
        "target/loom",
        "ring::model",
    ]);
    succeed(command.env("RUSTFLAGS", "--cfg loom"))
}

fn docs() -> Result<()> {
    succeed(cargo().args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
}

/// cargo-deny, built if it is not there. Its advisory database is not used: it lives on a host
/// that a machine behind a package mirror does not reach.
fn licences(may_install: bool) -> Result<()> {
    install("cargo-deny", may_install)?;
    run_cargo(&["deny", "--log-level", "error", "check", "bans", "licenses", "sources"])
}
