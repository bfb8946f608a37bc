//! Is the embedded store the daemon? `cargo lab differential` asks both the same.
//!
//! Random sequences of requests, and of what happens to domains, are carried out by Debian's C
//! daemon and by the embedded store side by side; each reply and each event must be the same. The
//! conformance cases are what somebody thought of; this finds the rest.
//!
//! A difference is told with the shortest sequence that shows it. The part of it that `known`
//! translates is not one.

mod known;
mod script;
mod step;
mod world;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail};

use crate::xendev;
use script::Script;
use step::{Answer, Step};
use world::World;

/// So many sequences are carried out by one pair of processes.
const RESTART: u64 = 500;

/// Compare Debian's C daemon with the embedded store: random sequences of requests, whose replies
/// and events must be the same
///
/// Ends at the first difference, and tells the shortest sequence that shows it.
#[derive(Clone, Debug, clap::Args)]
pub struct DifferentialArgs {
    /// How many sequences
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub sequences: u64,
    /// The seed of the first; each has the next. To repeat one, name its seed and --sequences 1
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub seed: u64,
    /// Requests in a sequence; by default 30 to 60
    #[arg(long, value_name = "N")]
    pub requests: Option<usize>,
    /// Say nothing of the progress
    #[arg(short, long)]
    pub quiet: bool,
}

/// Runs the subcommand; a difference is an error.
pub fn run(args: &DifferentialArgs) -> Result<()> {
    let program = xendev::build(false)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let requests = runtime.block_on(compare(args, &program))?;
    println!("{} sequences, {requests} requests: the same", args.sequences);
    Ok(())
}

async fn compare(args: &DifferentialArgs, program: &Path) -> Result<usize> {
    let begun = Instant::now();
    let mut pair = Pair::start(program)?;
    let mut requests = 0;
    for number in 0..args.sequences {
        let seed = args.seed + number;
        if number > 0 && number % RESTART == 0 {
            pair = Pair::start(program)?;
            if !args.quiet {
                eprintln!("lab: {number} sequences, {requests} requests, {} s", begun.elapsed().as_secs());
            }
        }
        let length = args.requests.unwrap_or(30 + (seed % 31) as usize);
        let mut steps: Vec<Step> = Vec::new();
        let mut script = Script::new(seed);
        let mut made = 0;
        let difference = pair
            .compare(|pair, last| {
                if let (Some(answer), Some(step)) = (last, steps.last()) {
                    script.note(step, answer);
                }
                if steps.last() == Some(&Step::ReadAll) {
                    return None;
                }
                let step = if made < length { script.next(pair.daemon.present()) } else { Step::ReadAll };
                made += step.requests().max(1);
                requests += step.requests();
                steps.push(step.clone());
                Some(step)
            })
            .await?;
        if let Some(difference) = difference {
            eprintln!("lab: a difference in the sequence of seed {seed}; looking for the shortest");
            let shortest = Shrink { program: program.to_owned() }.run(steps, difference).await?;
            bail!("the sequence of seed {seed} makes a difference:\n{shortest}");
        }
    }
    Ok(requests)
}

/// Both worlds.
struct Pair {
    daemon: World,
    store: World,
}

/// How the worlds differ in what a step does.
struct Difference {
    /// The step, by its place.
    at: usize,
    daemon: Answer,
    store: Answer,
}

impl Pair {
    fn start(program: &Path) -> Result<Self> {
        Ok(Self { daemon: World::daemon()?, store: World::store(program)? })
    }

    /// Takes steps in both, until they differ or `next` has no more; it is told the last answer.
    async fn compare(
        &mut self,
        mut next: impl FnMut(&Self, Option<&Answer>) -> Option<Step>,
    ) -> Result<Option<Difference>> {
        let (daemon, store) = tokio::join!(self.daemon.prepare(), self.store.prepare());
        daemon?;
        store?;
        let mut last: Option<Answer> = None;
        for at in 0.. {
            let Some(step) = next(self, last.as_ref()) else { break };
            let (mut daemon, mut store) = tokio::join!(self.daemon.take(&step), self.store.take(&step));
            known::reconcile(&step, &mut daemon, &mut store);
            if daemon != store || daemon.broken.is_some() {
                return Ok(Some(Difference { at, daemon, store }));
            }
            last = Some(daemon);
        }
        Ok(None)
    }
}

/// Looks for the shortest sequence, each time with fresh processes.
struct Shrink {
    program: PathBuf,
}

impl Shrink {
    async fn run(&self, mut steps: Vec<Step>, difference: Difference) -> Result<String> {
        let whole = tell(&steps, &difference);
        steps.truncate(difference.at + 1);
        let Some(mut difference) = self.try_again(&steps).await? else {
            return Ok(format!("{whole}(not with fresh processes, so not made shorter)"));
        };
        // In ever smaller pieces.
        let mut piece = steps.len() / 2;
        while piece > 0 {
            let mut from = 0;
            while from < steps.len() {
                let mut fewer = steps.clone();
                fewer.drain(from..steps.len().min(from + piece));
                match self.try_again(&fewer).await? {
                    Some(found) => {
                        fewer.truncate(found.at + 1);
                        (steps, difference) = (fewer, found);
                    }
                    None => from += piece,
                }
            }
            piece /= 2;
        }
        // And within what is sent at once.
        for at in (0..steps.len()).rev() {
            let mut from = 0;
            while let Some(Step::Send { asks, .. }) = steps.get(at).filter(|step| step.requests() > 1) {
                if from >= asks.len() {
                    break;
                }
                let mut fewer = steps.clone();
                if let Step::Send { asks, .. } = &mut fewer[at] {
                    asks.remove(from);
                }
                match self.try_again(&fewer).await? {
                    Some(found) => {
                        fewer.truncate(found.at + 1);
                        (steps, difference) = (fewer, found);
                    }
                    None => from += 1,
                }
            }
        }
        Ok(tell(&steps, &difference))
    }

    async fn try_again(&self, steps: &[Step]) -> Result<Option<Difference>> {
        let mut steps = steps.iter();
        Pair::start(&self.program)?.compare(|_, _| steps.next().cloned()).await
    }
}

fn tell(steps: &[Step], difference: &Difference) -> String {
    let Difference { at, daemon, store } = difference;
    let steps = steps.iter().take(at + 1).zip(1..);
    let steps: String = steps.map(|(step, number)| format!("  {number:3} {step}\n")).collect();
    let (theirs, ours) = (daemon.received.iter(), store.received.iter());
    let same = theirs.zip(ours).take_while(|(theirs, ours)| theirs == ours).count();
    let [daemon, store] = [daemon, store].map(|answer| answer.without(same));
    format!("{steps}xenstored 4.17 answers:\n{daemon}xs-store answers:\n{store}")
}
