//! Do toolstack and daemon keep their promises together? `cargo lab lives` looks.
//!
//! A schedule, made from a seed, is what some toolstacks do with devices whose backends are in a driver domain, how their
//! processes end before their time, and what happens to the daemon, the kernels and the domains meanwhile: each may
//! be killed at any step and come back later. Scripts take their time, fail or hang. The store is the embedded one,
//! kernels and scripts are simulated, and time is not real; toolstacks and daemon are those that everybody uses.
//!
//! What must hold in all of them:
//!
//! - every operation ends, and no task panics;
//! - no two scripts of a device run at once, and what one has made is not made again;
//! - an attach that succeeds was set up by a script; one that fails leaves nothing; a detach that succeeds leaves
//!   nothing (where one toolstack works alone); an attach succeeds if no more is wrong than that the daemon was away shortly;
//! - when all is quiet, what scripts have made is that of the devices that there are;
//! - all of these can be detached then, and after that the store is as it was, and nothing is kept that a script has made.
//!
//! A schedule that fails is told in words, with all left out that need not be there.

mod course;
mod schedule;
mod scripts;
mod world;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::failure::Failure;
use crate::seeded::{HANG, Pool, shrink};
use schedule::Schedule;

/// How often progress is told.
const PROGRESS: Duration = Duration::from_secs(5);

/// Put devices of a driver domain through seeded lives, in which toolstacks, the daemon, kernels and domains
/// are killed at any step: nothing may be left behind
///
/// Ends at the first schedule that fails, and tells the shortest that does.
#[derive(Clone, Debug, clap::Args)]
pub struct LivesArgs {
    /// How many
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    pub schedules: u64,
    /// The seed of the first; each has the next
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub seed: u64,
    /// Say nothing of the progress
    #[arg(short, long)]
    pub quiet: bool,
}

/// Runs the subcommand; a schedule that fails is an error.
///
/// # Errors
///
/// The first that fails.
pub fn run(args: &LivesArgs) -> Result<()> {
    let (begun, mut told) = (Instant::now(), Instant::now());
    let _made_once = world::interfaces();
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let pool = Pool::start(threads, args.seed, args.schedules, |seed| course::run(&Schedule::new(seed)));
    let mut ended: BTreeMap<String, u64> = BTreeMap::new();
    let mut done = 0;
    while done < args.schedules {
        match pool.results.recv_timeout(PROGRESS) {
            Ok((seed, outcome)) if !outcome.violations.is_empty() => {
                pool.stop();
                return Err(failure(seed, outcome.violations).into());
            }
            Ok((_, outcome)) => {
                done += 1;
                outcome.ended.into_iter().for_each(|(what, count)| *ended.entry(what).or_default() += count);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => bail!("the threads that run schedules have ended"),
        }
        if let Some(seed) = pool.hangs() {
            pool.stop();
            return Err(hang(seed).into());
        }
        if !args.quiet && told.elapsed() >= PROGRESS {
            told = Instant::now();
            eprintln!("lab: {done} schedules, {} s", begun.elapsed().as_secs());
        }
    }
    println!("{done} schedules, all as promised:");
    for (what, count) in ended {
        println!("  {what} {count}");
    }
    Ok(())
}

fn failure(seed: u64, violations: Vec<String>) -> Failure {
    eprintln!("lab: the schedule of seed {seed} fails; looking for the shortest");
    for violation in &violations {
        eprintln!("lab:   {violation}");
    }
    let run = |schedule: &Schedule| Ok::<_, Infallible>(course::run(schedule).violations);
    let Ok((schedule, violations)) = shrink(Schedule::new(seed), violations, run);
    let trace = course::run(&schedule).trace.join("\n");
    Failure {
        tried: format!(
            "lives in the schedule of seed {seed}; the shortest that fails is:\n{schedule}{trace}"
        ),
        observed: violations.join("\n"),
        hint: format!("run it again with: cargo lab lives --seed {seed} --schedules 1"),
    }
}

fn hang(seed: u64) -> Failure {
    Failure {
        tried: format!("lives in the schedule of seed {seed}:\n{}", Schedule::new(seed)),
        observed: format!("it is not done after {} s: something is busy without end", HANG.as_secs()),
        hint: format!("run it in a debugger: cargo lab lives --seed {seed} --schedules 1"),
    }
}
