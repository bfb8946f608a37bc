//! Does the client keep its promises when everything goes wrong? `cargo lab faults` looks.
//!
//! A schedule, made from a seed, is what many callers do with one client, what others change in
//! the store meanwhile, and what happens to the connection: it is slow, broken into pieces, out of
//! order, flooded, refused, cut, garbled, or its daemon goes away and comes back. The store is the
//! embedded one, time is not real, and all of it is one thread: a schedule has one course, and
//! thousands of them take minutes.
//!
//! The blocking face goes through the same, each caller in a thread of its own. Its time is real, so
//! these schedules are fewer, and many go on at one time. They take another course each time, and how
//! long a call takes is not looked at; but some have no deadlines, so that whoever is not woken waits
//! for ever.
//!
//! What must hold in all of them:
//!
//! - every call ends, within its deadline, with its own answer or an error that has a reason;
//! - who watches a node knows, when it is quiet again, what the store says;
//! - what was dropped is gone: in the client's counts, and in the store's;
//! - what a watcher is told stays within its backlog;
//! - a change that was asked for is sent once, also when its answer is lost (`world::notes`);
//! - no request is sent that may not be, and no watch is removed that somebody needs
//!   (`wire::ledger`);
//! - of a batch, the store gets the beginning, by one connection (`world::batches`);
//! - who has a watch has it of the store, and who is told that all is restored has all of them
//!   (`world::watched`);
//! - what speaks of a transaction after its end changes nothing;
//! - the client takes its time to connect to a store that does not stand, gives up in the end
//!   (`world::outage`), and stays with the way that it has found (`dial`);
//! - it keeps nothing for those who have given up (`memory`);
//! - nothing panics.
//!
//! A schedule that fails is told in words, with all left out that need not be there.

mod course;
mod dial;
mod direct;
mod face;
mod fault;
mod follower;
mod memory;
mod own;
mod schedule;
mod wire;
mod worker;
mod world;

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::failure::Failure;
use crate::seeded::{HANG, Pool, shrink};
use fault::{FIRST_AGAIN, KINDS};
use schedule::Schedule;
use world::Outcome;

/// How often progress is told.
const PROGRESS: Duration = Duration::from_secs(5);

/// Most schedules in real time just wait: so many of them go on for each CPU.
const AT_ONCE: usize = 32;

/// So many schedules hold every kind.
const ALL_KINDS: u64 = 300;

/// Put the client through seeded schedules of faults: each call must end as promised, no change
/// be missed, and nothing be left behind
///
/// Ends at the first schedule that fails, and tells the shortest that does. Those of the blocking
/// client are in real time: they may go well when repeated, and are told whole.
#[derive(Clone, Debug, clap::Args)]
pub struct FaultsArgs {
    /// How many for the asynchronous client
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub schedules: u64,
    /// How many for the blocking client
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub blocking: u64,
    /// The seed of the first; each has the next. To repeat one, name its seed, and how many of which
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub seed: u64,
    /// Say nothing of the progress
    #[arg(short, long)]
    pub quiet: bool,
}

/// A client, and how it is put through them.
struct Trial {
    client: &'static str,
    /// What repeats one schedule.
    option: &'static str,
    schedule: fn(u64) -> Schedule,
    run: fn(&Schedule) -> io::Result<Outcome>,
    threads: usize,
    /// Whether a schedule has one course.
    repeats: bool,
}

/// Runs the subcommand; a schedule that fails is an error.
pub fn run(args: &FaultsArgs) -> Result<()> {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let asynchronous = Trial {
        client: "the asynchronous client",
        option: "--schedules 1 --blocking 0",
        schedule: Schedule::new,
        run: course::run,
        threads: cpus,
        repeats: true,
    };
    let blocking = Trial {
        client: "the blocking client",
        option: "--schedules 0 --blocking 1",
        schedule: Schedule::in_real_time,
        run: course::run_blocking,
        threads: cpus * AT_ONCE,
        repeats: false,
    };
    asynchronous.put_through(args.schedules, args)?;
    blocking.put_through(args.blocking, args)
}

impl Trial {
    /// Runs so many schedules; the first that fails is an error.
    fn put_through(&self, schedules: u64, args: &FaultsArgs) -> Result<()> {
        if schedules == 0 {
            return Ok(());
        }
        let begun = Instant::now();
        let mut told = begun;
        let mut done = 0;
        let mut messages = 0;
        let mut kinds: BTreeMap<usize, u64> = BTreeMap::new();
        let (schedule, run) = (self.schedule, self.run);
        let pool = Pool::start(self.threads, args.seed, schedules, move |seed| run(&schedule(seed)));
        while done < schedules {
            match pool.results.recv_timeout(PROGRESS) {
                Ok((seed, outcome)) => {
                    let outcome = outcome?;
                    if !outcome.violations.is_empty() {
                        pool.stop();
                        return Err(self.failure(seed, outcome)?.into());
                    }
                    done += 1;
                    messages += outcome.messages;
                    outcome.kinds.into_iter().for_each(|kind| *kinds.entry(kind).or_default() += 1);
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    bail!("the threads that run schedules have ended")
                }
            }
            if let Some(seed) = pool.hangs() {
                pool.stop();
                return Err(self.hang(seed).into());
            }
            if !args.quiet && told.elapsed() >= PROGRESS {
                told = Instant::now();
                let (client, seconds) = (self.client, begun.elapsed().as_secs());
                eprintln!("lab: {client}: {done} schedules, {messages} messages, {seconds} s");
            }
        }
        let wanted = if self.repeats { &KINDS } else { &KINDS[..FIRST_AGAIN] };
        let counts = wanted.iter().enumerate();
        let counts = counts.map(|(kind, name)| format!("{name} {}", kinds.get(&kind).copied().unwrap_or(0)));
        let counts = counts.collect::<Vec<_>>().join(", ");
        if schedules >= ALL_KINDS && !(0..wanted.len()).all(|kind| kinds.contains_key(&kind)) {
            bail!("of some kind, nothing happened in {schedules} schedules: {counts}");
        }
        let client = self.client;
        println!("{client}: {schedules} schedules, {messages} messages: all as promised; with {counts}");
        Ok(())
    }

    fn failure(&self, seed: u64, outcome: Outcome) -> io::Result<Failure> {
        let mut schedule = (self.schedule)(seed);
        let mut violations = outcome.violations;
        let mut of = "";
        if self.repeats {
            eprintln!("lab: the schedule of seed {seed} fails; looking for the shortest");
            for violation in &violations {
                eprintln!("lab:   {violation}");
            }
            let again = (self.run)(&schedule)?;
            if again.trace != outcome.trace {
                eprintln!("lab: it takes another course now, with {} violations", again.violations.len());
            }
            let run = |schedule: &Schedule| Ok::<_, io::Error>((self.run)(schedule)?.violations);
            (schedule, violations) = shrink(schedule, violations, run)?;
            of = "; the shortest that fails is";
        }
        let client = self.client;
        Ok(Failure {
            tried: format!("{client} in the schedule of faults of seed {seed}{of}:\n{schedule}"),
            observed: violations.join("\n"),
            hint: format!("run it again with: cargo lab faults --seed {seed} {}", self.option),
        })
    }

    fn hang(&self, seed: u64) -> Failure {
        let (client, schedule) = (self.client, (self.schedule)(seed));
        Failure {
            tried: format!("{client} in the schedule of faults of seed {seed}:\n{schedule}"),
            observed: format!("it is not done after {} s: something is busy without end", HANG.as_secs()),
            hint: format!("run it in a debugger: cargo lab faults --seed {seed} {}", self.option),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// But for few, where the client leaves to chance which of several watchers is served first.
    #[test]
    fn a_schedule_has_one_course() {
        let schedules = (0..200).map(Schedule::new).filter(|schedule| schedule.followers.len() < 10);
        let differ = |schedule: &Schedule| {
            let traces = [(); 2].map(|()| course::run(schedule).unwrap().trace);
            traces[0] != traces[1]
        };
        let differing: Vec<u64> = schedules.filter(differ).map(|schedule| schedule.seed).collect();
        assert!(differing.len() < 10, "{differing:?}");
    }
}
