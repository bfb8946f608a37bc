//! The clients: ours, Xen's own, and those that others wrote, each as a program of its own.
//!
//! All of them do the same workloads (`lab/peers/README.md`), on Debian's C daemon, where the
//! server costs most, and on a server that does next to nothing, where the client does. `raw` is
//! what no client can beat. Each measurement has a fresh server.
//!
//! **Events.** What counts are the events that the server has sent until the client's user knows
//! of the last one; the second value says how many of a hundred the user was told of. One that
//! was not told of may have been merged into another of the same node, which is what a watch
//! promises.

mod null_server;
mod programs;
mod raw;
mod workloads;
mod xs_blocking;
mod xs_client;

use std::env;
use std::fmt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use peer_program::Task;

use crate::apt::Apt;
use programs::Programs;
pub(super) use workloads::workloads;

/// The columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Client {
    Raw,
    XsAsync,
    XsBlocking,
    /// Ours without [`xs_client::Config::spin`].
    XsSleeping,
    Libxenstore,
    Pyxs,
    XenstoreRs,
    Krata,
}

pub(super) const ALL: &[Client] = &[
    Client::Raw,
    Client::XsAsync,
    Client::XsBlocking,
    Client::XsSleeping,
    Client::Libxenstore,
    Client::Pyxs,
    Client::XenstoreRs,
    Client::Krata,
];

/// What ours is compared with.
pub(super) const RIVALS: &[Client] = &[Client::Raw, Client::Libxenstore, Client::XenstoreRs];

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Raw => "raw",
            Self::XsAsync => "xs-client",
            Self::XsBlocking => "xs-client blocking",
            Self::XsSleeping => "xs-client sleeping",
            Self::Libxenstore => "libxenstore",
            Self::Pyxs => "pyxs",
            Self::XenstoreRs => "xenstore-rs",
            Self::Krata => "krata-xenstore",
        })
    }
}

impl Client {
    fn is_gpl(self) -> bool {
        matches!(self, Self::XenstoreRs | Self::Krata)
    }
}

/// Installs and builds all client programs. Those under the GPL can be left out.
pub(super) fn prepare(without_gpl: bool) -> Result<Programs> {
    Apt::new(true).install_missing(&programs::PACKAGES)?;
    let mut programs = Programs::build(env::current_exe().context("where is this program?")?)?;
    if without_gpl {
        let left_out = ALL.iter().filter(|client| client.is_gpl()).map(ToString::to_string);
        let left_out = left_out.collect::<Vec<_>>().join(", ");
        eprintln!("lab: left out, as asked: {left_out}, and the goals that name them");
    } else {
        programs.build_gpl()?;
    }
    Ok(programs)
}

/// One of the programs that `cargo lab peers --clients` runs
#[derive(Debug, clap::Args)]
pub struct PeerArgs {
    #[command(subcommand)]
    program: Program,
}

#[derive(Debug, clap::Subcommand)]
enum Program {
    /// The client without overhead: WORKLOAD KEY=VALUE...
    Raw { task: Vec<String> },
    /// Ours: WORKLOAD KEY=VALUE...
    XsClient { task: Vec<String> },
    /// Ours, which sleeps for a reply at once: WORKLOAD KEY=VALUE...
    XsSleeping { task: Vec<String> },
    /// Ours without a runtime: WORKLOAD KEY=VALUE...
    XsBlocking { task: Vec<String> },
    /// Drivers of disks, and contestants that let disks live: WORKLOAD KEY=VALUE...
    Life { task: Vec<String> },
    /// The server that does next to nothing
    NullServer {
        #[arg(long, value_name = "PATH")]
        socket: PathBuf,
    },
}

/// Runs the subcommand.
pub fn peer(args: PeerArgs) -> Result<()> {
    let figures = match args.program {
        Program::Raw { task } => raw::run(&Task::new(task)?)?,
        Program::XsClient { task } => peer_program::run::<xs_client::XsClient<true>>(&Task::new(task)?)?,
        Program::XsSleeping { task } => peer_program::run::<xs_client::XsClient<false>>(&Task::new(task)?)?,
        Program::XsBlocking { task } => xs_blocking::run(&Task::new(task)?)?,
        Program::Life { task } => match super::devices::live(&Task::new(task)?)? {
            Some(figures) => figures,
            None => return Ok(()),
        },
        Program::NullServer { socket } => return null_server::serve(&socket),
    };
    peer_program::print(&figures);
    Ok(())
}
