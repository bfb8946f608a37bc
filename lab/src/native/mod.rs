//! Do hotplug's native handlers leave a host as the stock scripts leave it? `cargo lab native` looks.
//!
//! Each case is gone through twice, on Debian's xenstored and on real loop devices: with the script, as xendev runs it, and
//! with the handler. What both leave is compared: the keys in the backend's directory with their values, in their order, the
//! loop device with its file and flags, and what is there after the removal. A case that is meant to differ must
//! differ, and says why; the list of these is in the documentation of `xen_hotplug::native::block`.
//!
//! | module | holds |
//! | --- | --- |
//! | `case` | the cases |
//! | `world` | a store with guests, files and devices |
//! | `observe` | what is compared |
//! | `hard` | what the handler promises beside: nothing leaks, races are survived |
//! | `times` | how long both take |

mod case;
mod hard;
mod observe;
mod times;
mod world;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use xen_hotplug::native::block;

use crate::xen::debian::Debian;
use crate::xen::{packages, target_folder};
use case::Case;
use world::World;

/// Compare hotplug's native handlers with the stock scripts, on a real store and real loop devices
///
/// Needs root, loop devices, and the packages xen-utils-4.17, xenstore-utils and e2fsprogs. Takes seconds.
#[derive(Clone, Debug, clap::Args)]
pub struct NativeArgs {
    /// Only cases whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// The release whose scripts are run, on this machine
    #[arg(long, value_enum, default_value_t)]
    debian: Debian,
    /// The directory of the scripts, instead
    #[arg(long, value_name = "DIR")]
    scripts: Option<PathBuf>,
    /// Measure, instead, how long an attach and a detach of a file take both ways
    #[arg(long)]
    times: bool,
    /// How often to measure
    #[arg(long, value_name = "N", default_value_t = 15)]
    rounds: usize,
    /// Install nothing; what is missing fails with the command that installs it
    #[arg(long)]
    no_install: bool,
}

impl NativeArgs {
    /// What CI runs.
    pub(crate) fn for_ci(may_install: bool, debian: Debian) -> Self {
        let no_install = !may_install;
        Self { only: String::new(), debian, scripts: None, times: false, rounds: 15, no_install }
    }
}

/// Runs the subcommand. The last line is `N passed, N failed`; a case that failed is an error.
pub fn run(args: &NativeArgs) -> Result<()> {
    let scripts = || packages::scripts(&target_folder()?.join("lab/packages"), !args.no_install, args.debian);
    let script = args.scripts.clone().map_or_else(scripts, Ok)?.join("block");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let release = block::release_of(&script)?;
        println!("lab: {} is that of {}", script.display(), release.unwrap_or("no release that is known"));
        if args.times {
            return times::run(&script, args.rounds).await;
        }
        let (mut passed, mut failed) = (0, 0);
        let mut told = |name: &str, result: Result<String>| match result {
            Ok(seen) => {
                passed += 1;
                println!("ok     {name}: {seen}");
            }
            Err(error) => {
                failed += 1;
                println!("FAILED {name}: {error:#}");
            }
        };
        for case in Case::all().iter().filter(|case| case.name.contains(&args.only)) {
            told(case.name, case::compare(case, &script).await);
        }
        for (name, hard) in hard::all().into_iter().filter(|(name, _)| name.contains(&args.only)) {
            let result = match World::start().await {
                Ok(world) => hard(world).await,
                Err(error) => Err(error),
            };
            told(name, result.map(|()| "as promised".to_owned()));
        }
        println!("{passed} passed, {failed} failed");
        ensure!(failed == 0 && passed > 0, "{failed} cases failed, {passed} passed");
        ensure!(
            release.is_some(),
            "the handler is not used for this text of the script, since it is not in its list; it is as good as those \
             that are, by these cases: its digest is {}",
            block::digest(&script)?
        );
        Ok(())
    })
}
