//! `hotplug`: what an administrator does with hotplug scripts by hand.

mod lint;
mod run;

use clap::Subcommand;

use crate::args::Common;
use crate::output::Role;
use crate::problem::{Exit, Problem};

#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum OfScripts {
    /// Run the script of a device that is there, as its attach or its detach would.
    ///
    /// It gets the same arguments, environment, process group, limit and lock, and nothing is done before or after it: the
    /// device stays. If the backend's directory is gone, it is run in the copy that was saved when the device was attached.
    /// What would harm a device that is in use is refused. With -N it prints what would be run, as commands for a shell.
    Run(run::RunArgs),
    /// Check a script against the contract of hotplug scripts.
    ///
    /// The script is run many times, as attaches and detaches would run it, for devices in a store that is made for that: it
    /// is killed, its target is deleted, its backend's directory vanishes, and it is run for two devices at once. As root
    /// this happens in namespaces of its own, so that nothing of this host's store, locks, logs and network is touched; loop
    /// devices and other block devices are the host's. All that it makes is removed at the end. The exit status is 0 if no
    /// check failed.
    Lint(lint::LintArgs),
}

impl OfScripts {
    pub(crate) fn role_of_stdout(&self) -> Role {
        if matches!(self, Self::Lint(_)) { Role::Purpose } else { Role::Report }
    }

    /// Whether `-N` can be said with it.
    pub(crate) fn has_dry_run(&self) -> bool {
        matches!(self, Self::Run(_))
    }

    pub(crate) async fn run(&self, common: &Common) -> Result<Exit, Problem> {
        match self {
            Self::Run(args) => run::run(common, args).await,
            Self::Lint(args) => lint::run(common, args).await,
        }
    }
}
