//! `cargo lab peers`: xendev beside its peers, measured on this machine in one run.
//!
//! Absolute figures of one machine and hour say little about another; ratios within one run do.
//! So the goals are ratios, and `--check` holds a run to them.
//!
//! | module | holds |
//! | --- | --- |
//! | `harness` | one CPU, turns, medians |
//! | `report` | the table, the JSON, the goals |
//! | `wire` | the client that measures servers |
//! | `servers` | what is compared with `--servers` |

mod harness;
mod report;
mod servers;
mod wire;

use std::env;
use std::num::NonZero;
use std::os::unix::process::CommandExt;

use anyhow::{Context, Result, ensure};

use crate::cargo::cargo;
use crate::xendev;
use report::Report;
use servers::Server;

/// Measures xendev beside its peers on one CPU, in turns, and prints medians and ratios.
///
/// Ratios are those of a row's first value. A whole run takes some minutes; nothing else should
/// run meanwhile.
#[derive(Debug, clap::Args)]
pub struct PeersArgs {
    /// Compare Debian's xenstored and oxenstored with `xendev store`
    #[arg(long, required = true)]
    servers: bool,
    /// Fail if a goal is missed
    #[arg(long)]
    check: bool,
    /// Print all figures as JSON
    #[arg(long)]
    json: bool,
    /// Only rows whose name contains this, and what is measured with them
    #[arg(long, value_name = "TEXT", default_value = "")]
    rows: String,
    /// How many times everything is measured
    #[arg(long, value_name = "N", default_value = "5")]
    reps: NonZero<usize>,
}

/// Runs the subcommand. With `--check` a missed goal is an error, told after everything is printed.
pub fn run(args: &PeersArgs) -> Result<()> {
    if cfg!(debug_assertions) {
        // A client without optimisation would measure itself.
        let mut again = cargo();
        again.args(["run", "--release", "--package", "lab", "--"]).args(env::args_os().skip(1));
        return Err(again.exec()).context("running the lab again, built for release");
    }
    let xendev = xendev::build(true)?;
    harness::pin()?;
    let mut workloads = servers::workloads(&xendev);
    workloads.retain(|workload| workload.rows.iter().any(|row| row.name.contains(&args.rows)));
    ensure!(!workloads.is_empty(), "no row's name contains {:?}", args.rows);
    let rows = harness::measure(&workloads, args.reps.get())?;
    let (columns, rivals) = (servers::ALL, servers::RIVALS);
    let report = Report { rows, columns, ours: Server::Xendev, rivals };
    if args.json {
        println!("{:#}", report.json());
    } else {
        print!("{}", report.table());
    }
    let missed = report.missed();
    ensure!(!args.check || missed.is_empty(), "goals missed:\n  {}", missed.join("\n  "));
    Ok(())
}
