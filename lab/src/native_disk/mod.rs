//! Do the handlers for disks that a tool connects do what the stock scripts do? `cargo lab native-disk` runs both and
//! compares.
//!
//! A machine of the lab has neither iSCSI nor network block devices, so the tools are stand-ins that behave as the real
//! ones do, write down what they were asked to change, and put up real loop devices. Each case is gone through twice, in a
//! mount namespace of its own: once with `--hotplug script`, once with `--hotplug auto`, which takes the handler for the
//! text of the installed script. After each step the calls, the store's nodes and the devices must be equal, but for the
//! differences that the case lists; and each of those must be seen.
//!
//! | module | holds |
//! | --- | --- |
//! | `case` | the cases |
//! | `side` | one way through a case |

mod case;
mod side;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use xen_hotplug::native::disk::Script;

use crate::beside::{Views, faults};
use crate::xen::debian::Debian;
use crate::xen::{packages, target_folder};
use case::{CASES, Case, Step};
pub use side::DiskSideArgs;

/// Compare the native handlers for disks that a tool connects with the stock scripts, on stand-ins for the tools
///
/// Needs root and loop devices. Takes half a minute.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct NativeDiskArgs {
    /// Only cases whose name contains this, such as `iscsi/`
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// The release whose scripts are run, on this machine
    #[arg(long, value_enum, default_value_t)]
    debian: Debian,
    /// Print the differences that are listed, with their reasons
    #[arg(long)]
    show: bool,
}

impl NativeDiskArgs {
    /// What CI runs.
    pub(crate) fn for_ci(debian: Debian) -> Self {
        Self { debian, ..Self::default() }
    }
}

/// Runs the subcommand. The last line is `N passed, N failed`; a case that failed is an error.
pub fn run(args: &NativeDiskArgs) -> Result<()> {
    let cache = target_folder()?.join("lab/packages");
    let scripts = packages::scripts(&cache, true, args.debian)?;
    // The handler does what the script of this release does.
    let of_tap = packages::scripts(&cache, true, Debian::Trixie)?;
    let cases: Vec<_> = CASES.iter().filter(|case| case.name.contains(&args.only)).collect();
    ensure!(!cases.is_empty(), "no case's name contains {:?}", args.only);
    let mut failed = 0;
    for case in &cases {
        let scripts = if case.script == Script::Tap { &of_tap } else { &scripts };
        let faults = compare(case, scripts, args.show).unwrap_or_else(|error| vec![format!("{error:#}")]);
        if !faults.is_empty() {
            failed += 1;
            println!("FAILED {}:\n  {}", case.name, faults.join("\n  "));
        }
    }
    println!("{} passed, {failed} failed", cases.len() - failed);
    ensure!(failed == 0, "{failed} cases failed");
    Ok(())
}

/// Goes through a case both ways; what was not as it should be.
fn compare(case: &Case, scripts: &Path, show: bool) -> Result<Vec<String>> {
    let views = |way: &str| -> Result<Views> {
        let printed = side::spawn(case.name, way, scripts)?;
        serde_json::from_slice(&printed).with_context(|| format!("reading what the {way} side printed"))
    };
    let (script, native) = (views("script")?, views("native")?);
    let mut faults = faults(case.name, (&script, &native), case.differences, show)?;
    for (number, (step, view)) in case.steps.iter().zip(&native).enumerate() {
        let ended = view.get("ended").map(String::as_str);
        let well = match step {
            Step::Run(_, well) => *well,
            Step::Cancelled => false,
            Step::Sh(_) | Step::Gone => continue,
        };
        if ended != Some(if well { "well" } else { "badly" }) {
            faults.push(format!("{number}: the handler ended {}", ended.unwrap_or("never")));
        }
        // A failure leaves the host as it was.
        let before = if number == 0 { None } else { native.get(number - 1) };
        if !well && step.is_add() && !case.leaves {
            for (key, value) in view.iter().filter(|(key, _)| key.starts_with("host/")) {
                if before.is_some_and(|before| before.get(key) != Some(value)) {
                    faults.push(format!("{number}/{key}: {value} is left of a failure"));
                }
            }
        }
    }
    Ok(faults)
}

/// Runs one side, in its namespace.
pub fn side(args: &DiskSideArgs) -> Result<()> {
    side::run(args)
}
