//! Does a native handler do what the stock script does? `cargo lab native-vif` runs both and compares.
//!
//! Each case is a host with its interfaces, and a course of hotplug runs and other events. It is gone through twice, in
//! network namespaces of their own: once the script is run, as Debian installed it, and once the handler is called. After
//! each step the two hosts must be equal in all that the kernel and the store tell, but for the differences that the case
//! lists; and each of those must be seen.
//!
//! | module | holds |
//! | --- | --- |
//! | `case` | the cases |
//! | `side` | one way through a case |
//! | `switch` | a real Open vSwitch in user space |
//! | `host` | the host of a side: its namespaces, its store, what it looks like |
//! | `trouble` | what is in a handler's way, or beside it |
//! | `measure` | how long both take |

mod case;
mod host;
mod measure;
mod side;
mod switch;
mod trouble;

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, anyhow, bail, ensure};
use xen_hotplug::native::vif::Script;

use crate::beside::{Views, faults};
use crate::failure::{Failure, missing};
use case::{CASES, Case, Step};
pub use side::SideArgs;
use trouble::TROUBLES;

/// Cases mostly wait for the kernel to settle: so many of them go on at a time.
const AT_ONCE: usize = 4;

/// Where Debian installs the scripts.
const SCRIPTS: &str = "/etc/xen/scripts";

/// Compare the native handlers for network interfaces with Debian's scripts
///
/// Needs root for network namespaces, and Debian's openvswitch-switch; takes about a minute and a half on two CPUs.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct NativeVifArgs {
    /// Only cases whose name contains this, such as `bridge/` or `mtu`
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Measure instead, with this many rounds: the time of an online and an offline of `vif-bridge`
    #[arg(long, value_name = "ROUNDS", num_args = 0..=1, default_missing_value = "21")]
    measure: Option<usize>,
    /// Print the differences that are listed, with their reasons
    #[arg(long)]
    show: bool,
}

/// Runs the subcommand. The last line is `N passed, N failed`; a case that failed is an error.
pub fn run(args: &NativeVifArgs) -> Result<()> {
    for (tool, package) in [
        ("xenstore-write", "xenstore-utils"),
        ("ip", "iproute2"),
        ("ifconfig", "net-tools"),
        ("ovs-vsctl", "openvswitch-switch"),
    ] {
        let found = Command::new(tool).arg("--version").stdin(Stdio::null()).output();
        found.map_err(|error| missing(&format!("running {tool}"), &error, package))?;
    }
    if Command::new("brctl").stdin(Stdio::null()).output().is_ok() {
        bail!(Failure {
            tried: "comparing with scripts as they are without brctl".into(),
            observed: "it is installed, and the script chooses another bridge by it".into(),
            hint: "apt-get remove bridge-utils".into(),
        });
    }
    [Script::Bridge, Script::Route, Script::Nat, Script::OpenVswitch].into_iter().try_for_each(check_text)?;
    if let Some(rounds) = args.measure {
        print!("{}", String::from_utf8_lossy(&side::spawn(&["--measure", &rounds.to_string()])?));
        return Ok(());
    }
    let cases = CASES.iter().map(Work::Case).chain(TROUBLES.iter().map(|name| Work::Trouble(name)));
    let works: Vec<_> = cases.filter(|work| work.name().contains(&args.only)).collect();
    ensure!(!works.is_empty(), "no case's name contains {:?}", args.only);
    let queue = Mutex::new(works.iter());
    let failed = AtomicUsize::new(0);
    let work = || {
        while let Some(work) = next(&queue) {
            let faults = match work {
                Work::Case(case) => compare(case, args.show),
                Work::Trouble(name) => side::spawn(&["--trouble", name]).map(|_| Vec::new()),
            };
            let faults = faults.unwrap_or_else(|error| vec![format!("{error:#}")]);
            if !faults.is_empty() {
                failed.fetch_add(1, Ordering::Relaxed);
                println!("FAILED {}:\n  {}", work.name(), faults.join("\n  "));
            }
        }
    };
    thread::scope(|scope| (0..AT_ONCE).for_each(|_| _ = scope.spawn(work)));
    let failed = failed.into_inner();
    println!("{} passed, {failed} failed", works.len() - failed);
    ensure!(failed == 0, "{failed} cases failed");
    Ok(())
}

/// What there is to do.
#[derive(Clone, Copy, Debug)]
enum Work {
    Case(&'static Case),
    Trouble(&'static str),
}

impl Work {
    fn name(self) -> &'static str {
        match self {
            Self::Case(case) => case.name,
            Self::Trouble(name) => name,
        }
    }
}

fn next<T>(queue: &Mutex<impl Iterator<Item = T>>) -> Option<T> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).next()
}

/// Whether the installed script is one that its handler is to be equal to.
fn check_text(script: Script) -> Result<()> {
    let file = Path::new(SCRIPTS).join(script.name());
    let release = script
        .release_of(&file)
        .map_err(|error| missing(&format!("reading {}", file.display()), &error, "xen-utils-common"))?;
    if release.is_some() {
        return Ok(());
    }
    bail!(Failure {
        tried: format!("finding {} among the texts that its handler is equal to", file.display()),
        observed: format!("it, or what it sources, is none of them: its digest is {}", script.digest(&file)?),
        hint: "reinstall xen-utils-common, or add the digest once all cases pass".into(),
    })
}

/// Goes through a case both ways; what was not as it should be.
fn compare(case: &Case, show: bool) -> Result<Vec<String>> {
    let way = |way| move || views(case, way);
    let (script, native) = thread::scope(|scope| {
        let script = scope.spawn(way("script"));
        let native = way("native")();
        (script.join().map_err(|_| anyhow!("a thread panicked")), native)
    });
    let (script, native) = (script?.context("the script's side")?, native.context("the handler's side")?);
    let mut faults = faults(case.name, (&script, &native), case.differences, show)?;
    // A case in which nothing happens would show nothing.
    for (number, (step, view)) in case.steps.iter().zip(&native).enumerate() {
        let ended = view.get("ended").map(String::as_str);
        let Step::Run(_, _, well) = step else { continue };
        if ended != Some(if *well { "well" } else { "badly" }) {
            faults.push(format!("{number}: the handler ended {}", ended.unwrap_or("never")));
        }
    }
    Ok(faults)
}

fn views(case: &Case, way: &str) -> Result<Views> {
    let printed = side::spawn(&["--case", case.name, "--way", way])?;
    serde_json::from_slice(&printed).context("reading what a side printed")
}

/// Runs one side, in its namespaces.
pub fn side(args: &SideArgs) -> Result<()> {
    side::run(args)
}
