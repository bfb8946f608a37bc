//! `cargo lab hostile`: what a guest that means harm, and a greedy neighbour, do to others.
//!
//! Each attack is run against `xendev store` and against the C daemon, under the same stand-in hypervisor.
//! Beside it a guest and a tool of domain 0 go on with their work, and somebody sleeps. Told is how long their
//! requests took (before the attack, and during it), how much memory it cost, and who was cut off.
//!
//! That nobody but a culprit is cut off, and how much memory is used, must hold on every machine, so CI looks at
//! both. Times are compared with `--check`, on a machine that does nothing else; what misses a goal is tried twice
//! more, for a single pause of the machine is in the 99th percentile.

mod attack;
mod host;
mod victim;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::task::spawn_blocking;
use xs_client::DomId;

use crate::xendev;
use attack::{Attack, CULPRIT, SLEEPER};
use host::{Host, Server};
use victim::{Times, Victim};

/// A guest's quota of memory, in bytes: that of the C daemon.
const QUOTA: f64 = 2_621_440.0;

/// How often an attack is tried before it has missed a goal of time.
const TRIES: usize = 3;

/// The guest that does its work.
const GUEST: DomId = DomId(91);

/// What a guest that means harm and a greedy neighbour do to others: `xendev store` beside the C daemon
#[derive(Debug, clap::Args)]
pub struct HostileArgs {
    /// How long each attack lasts
    #[arg(long, value_name = "SECONDS", default_value_t = HostileArgs::default().seconds)]
    seconds: f64,
    /// Fail also if a goal of time is missed, which a busy machine makes happen
    #[arg(long)]
    check: bool,
}

impl Default for HostileArgs {
    /// Two minutes.
    fn default() -> Self {
        Self { seconds: 3.0, check: false }
    }
}

impl HostileArgs {
    /// Shorter: who is cut off and how much memory is used shows early, and times are not compared.
    pub(crate) fn for_ci() -> Self {
        Self { seconds: 1.0, ..Self::default() }
    }
}

/// What an attack did.
struct Outcome {
    idle: [Times; 2],
    attacked: [Times; 2],
    /// Bytes of memory more than before.
    grown: f64,
    /// Who was cut off and is not to blame.
    cut_off: Vec<String>,
}

async fn measure(attack: Attack, server: Server, xendev: &Path, seconds: f64) -> Result<Outcome> {
    let mut guests: Vec<DomId> =
        (0..attack.culprits().max(2)).map(|guest| DomId(CULPRIT.0 + guest)).collect();
    guests.extend([SLEEPER, GUEST]);
    let host = Host::start(server, xendev, &guests).await?;
    let over = AtomicBool::new(false);
    let work = async |length: f64| {
        let victims = [Victim::domain0(&host), Victim::guest(&host, GUEST)];
        tokio::time::sleep(Duration::from_secs_f64(length)).await;
        // Until their last requests are answered, the attack goes on.
        let finished = spawn_blocking(|| victims.map(Victim::finish)).await;
        over.store(true, Ordering::Relaxed);
        finished
    };
    let [domain0, guest] = work(seconds / 2.0).await?;
    let idle = [domain0?, guest?];
    let before = host.resident()?;
    over.store(false, Ordering::Relaxed);
    let (cut_off, results) = tokio::join!(attack.run(&host, &over), work(seconds));
    let grown = host.resident()?.saturating_sub(before) as f64;
    // An attack that the server refuses, or holds up for ever, has met what a culprit has to expect.
    let mut cut: Vec<String> = cut_off.unwrap_or_default().into_iter().map(str::to_owned).collect();
    let mut attacked = Vec::new();
    for (name, result) in ["domain 0", "the guest"].into_iter().zip(results?) {
        attacked.push(result.unwrap_or_else(|error| {
            cut.push(format!("{name} ({error:#})"));
            Times::default()
        }));
    }
    let [domain0, guest] = attacked.try_into().unwrap_or_default();
    Ok(Outcome { idle, attacked: [domain0, guest], grown, cut_off: cut })
}

fn row(server: Server, outcome: &Outcome) {
    let times = |times: &Times| {
        let [p50, p99, max] = [50, 99, 100].map(|percent| times.percentile(percent));
        format!("{p50:6.0} {p99:6.0} {max:7.0}")
    };
    let [domain0, guest] = &outcome.attacked;
    let cut = if outcome.cut_off.is_empty() { "nobody".to_owned() } else { outcome.cut_off.join(", ") };
    println!(
        "    {:<9} | {} | {} | {:5.1} | {cut}",
        server.name(),
        times(domain0),
        times(guest),
        outcome.grown / 1e6
    );
}

/// What of its goals ours misses that hold on every machine, in words.
fn broken(attack: Attack, ours: &Outcome) -> Option<String> {
    if !ours.cut_off.is_empty() {
        return Some(format!("{} was cut off", ours.cut_off.join(", ")));
    }
    // What a server has anyway is not any guest's: its buffers, its allocator's.
    let allowed = QUOTA * 1.2 * f64::from(attack.culprits()) + 4e6;
    (ours.grown > allowed)
        .then(|| format!("{:.1} MB of memory, and {:.1} are allowed", ours.grown / 1e6, allowed / 1e6))
}

/// Who waits for longer than twice what is usual, and than by the C daemon.
fn too_slow(ours: &Outcome, theirs: &Outcome) -> Vec<String> {
    let victims = ["domain 0", "the guest"].into_iter().enumerate();
    victims
        .filter_map(|(index, name)| {
            let p99 = ours.attacked[index].percentile(99);
            let goal = (2.0 * ours.idle[index].percentile(99)).max(theirs.attacked[index].percentile(99));
            (p99 > goal).then(|| format!("{name} waits {p99:.0} us at 99 %, and {goal:.0} are the goal"))
        })
        .collect()
}

/// Runs the subcommand: an error if anybody but the culprit is cut off, or too much memory is used.
pub fn run(args: &HostileArgs) -> Result<()> {
    let program = xendev::build(true)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    println!(
        "us that requests took: median, 99 %, longest; MB more of memory; who was cut off and is not to blame"
    );
    println!("    server    | domain 0               | a guest                |    MB | cut off");
    let mut failures = 0;
    for attack in Attack::ALL {
        println!("{}", attack.words());
        let mut missed = Vec::new();
        for _ in 0..TRIES {
            let outcome = |server| runtime.block_on(measure(attack, server, &program, args.seconds));
            let [ours, theirs] = [outcome(Server::Xendev)?, outcome(Server::Xenstored)?];
            for (server, outcome) in Server::ALL.into_iter().zip([&ours, &theirs]) {
                row(server, outcome);
            }
            if let Some(broken) = broken(attack, &ours) {
                missed = vec![broken];
                break;
            }
            missed = if args.check { too_slow(&ours, &theirs) } else { Vec::new() };
            if missed.is_empty() {
                break;
            }
        }
        for missed in missed {
            println!("    MISSED: {missed}");
            failures += 1;
        }
    }
    ensure!(failures == 0, "{failures} goals were missed");
    Ok(())
}
