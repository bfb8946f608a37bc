//! `cargo lab peers`: xendev beside its peers, measured on this machine in one run.
//!
//! Absolute figures of one machine and hour say little about another; ratios within one run do.
//! So the goals are ratios, and `--check` holds a run to them.
//!
//! | module | holds |
//! | --- | --- |
//! | `figure` | medians, and how values are told |
//! | `harness` | one CPU, turns |
//! | `report` | the table, the JSON, the goals |
//! | `wire` | the client that measures servers |
//! | `servers` | what is compared with `--servers` |
//! | `clients` | what is compared with `--clients` |
//! | `devices` | what is compared with `--devices` |

mod clients;
mod devices;
pub(crate) mod figure;
mod harness;
mod report;
mod servers;
mod wire;

use std::env;
use std::fmt::Display;
use std::num::NonZero;
use std::os::unix::process::CommandExt;

use anyhow::{Context, Result, ensure};
use clap::ArgGroup;

use crate::cargo::cargo;
use crate::xendev;
use clients::Client;
pub use clients::{PeerArgs, peer};
use devices::Contestant;
use harness::Workload;
use report::Report;
use servers::Server;

/// Measures xendev beside its peers on one CPU, in turns, and prints medians and ratios.
///
/// Ratios are those of a row's first value. A whole run takes some minutes; nothing else should
/// run meanwhile.
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("compared").required(true))]
pub struct PeersArgs {
    /// Compare Debian's xenstored and oxenstored with `xendev store`
    #[arg(long, group = "compared")]
    servers: bool,
    /// Compare libxenstore, pyxs, xenstore-rs and krata-xenstore with xs-client
    #[arg(long, group = "compared")]
    clients: bool,
    /// Compare ours with libxenstore and a raw loop by what the whole life of a disk costs
    #[arg(long, group = "compared")]
    devices: bool,
    /// Of --devices only this: every request of one life of ours, in order
    #[arg(long, requires = "devices")]
    requests: bool,
    /// Of --devices the rows with at most so many disks [default: 1000; with --check 100]
    #[arg(long, value_name = "N", requires = "devices")]
    most: Option<usize>,
    /// Leave out the clients under the GPL, which are fetched and built for this alone
    #[arg(long, conflicts_with = "servers")]
    without_gpl: bool,
    /// Let the scheduler choose the CPUs
    #[arg(long)]
    unpinned: bool,
    /// Fail if a goal is missed
    #[arg(long)]
    check: bool,
    /// Print all figures as JSON
    #[arg(long)]
    json: bool,
    /// Only rows whose name contains this, and what is measured with them
    #[arg(long, value_name = "TEXT", default_value = "")]
    rows: String,
    /// How many times everything is measured [default: 5; unpinned, where figures vary more, 9]
    #[arg(long, value_name = "N")]
    reps: Option<NonZero<usize>>,
}

/// Runs the subcommand. With `--check` a missed goal is an error, told after everything is printed.
pub fn run(args: &PeersArgs) -> Result<()> {
    if cfg!(debug_assertions) {
        // A client without optimisation would measure itself.
        let mut again = cargo();
        again.args(["run", "--release", "--package", "lab", "--"]).args(env::args_os().skip(1));
        return Err(again.exec()).context("running the lab again, built for release");
    }
    if args.devices {
        let programs = devices::Programs::prepare(xendev::build(true)?)?;
        if args.requests || !args.json {
            print!("{}", devices::accounts(&programs, args.requests)?);
        }
        if args.requests {
            return Ok(());
        }
        let most = args.most.unwrap_or(if args.check { 100 } else { 1000 });
        let workloads = devices::workloads(&programs, most, args.unpinned);
        compare(args, workloads, devices::ALL, Contestant::Ours, devices::RIVALS)
    } else if args.clients {
        let programs = clients::prepare(args.without_gpl)?;
        let columns = programs.present(clients::ALL);
        let rivals = programs.present(clients::RIVALS);
        compare(args, clients::workloads(&programs, args.unpinned, 1), &columns, Client::XsAsync, &rivals)
    } else {
        let xendev = xendev::build(true)?;
        let workloads = servers::workloads(&xendev);
        compare(args, workloads, servers::ALL, Server::Xendev, servers::RIVALS)
    }
}

/// Measures, prints, and checks.
fn compare<C: Copy + Eq + Display>(
    args: &PeersArgs,
    mut workloads: Vec<Workload<'_, C>>,
    columns: &[C],
    ours: C,
    rivals: &[C],
) -> Result<()> {
    if !args.unpinned {
        harness::pin()?;
    }
    workloads.retain(|workload| workload.rows.iter().any(|row| row.name.contains(&args.rows)));
    ensure!(!workloads.is_empty(), "no row's name contains {:?}", args.rows);
    let reps = args.reps.map_or(if args.unpinned { 9 } else { 5 }, NonZero::get);
    let rows = harness::measure(&workloads, reps)?;
    let report = Report { rows, columns, ours, rivals };
    if args.json {
        println!("{:#}", report.json());
    } else {
        print!("{}", report.table());
    }
    let missed = report.missed();
    ensure!(!args.check || missed.is_empty(), "goals missed:\n  {}", missed.join("\n  "));
    Ok(())
}
