//! The servers: Debian's two daemons, and the embedded store as `xendev store`.
//!
//! Each measurement has a fresh server, which [`Server::fresh`] starts on the CPU that the lab is
//! pinned to. Debian's daemons run as packaged, oxenstored with its access log on.

mod growth;
mod memory;
mod requests;
mod watches;

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::figure::Figure;
use super::harness::{self, Better, Goal, Workload};
use super::wire::{Batch, Wire};
use crate::daemon::{Daemon, DaemonKind};
use crate::xendev::StoreProcess;

/// How long one thing is measured, and for how long before the server is warmed up.
const BUDGET: Duration = Duration::from_millis(150);
const WARM_UP: Duration = Duration::from_millis(15);

/// Requests in flight where the row does not say.
const DEPTH: usize = 64;

/// The columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Server {
    /// A thread that answers without looking: what the socket alone costs.
    Nobody,
    Xenstored,
    Oxenstored,
    Xendev,
}

/// What ours is compared with; the first is the one to beat.
pub(super) const RIVALS: &[Server] = &[Server::Xenstored, Server::Oxenstored];

pub(super) const ALL: &[Server] = &[Server::Nobody, Server::Xenstored, Server::Oxenstored, Server::Xendev];

/// Those that are servers.
const REAL: &[Server] = &[Server::Xenstored, Server::Oxenstored, Server::Xendev];

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Nobody => "no server",
            Self::Xenstored => "xenstored",
            Self::Oxenstored => "oxenstored",
            Self::Xendev => "xendev store",
        })
    }
}

type Row = harness::Row<Server>;

/// A server that runs; dropping it ends it.
enum Running {
    Daemon(Daemon),
    Store(StoreProcess),
}

impl Running {
    fn connect(&self) -> Result<Wire> {
        match self {
            Self::Daemon(daemon) => Wire::connect(daemon.socket()),
            Self::Store(store) => Wire::connect(&store.socket()),
        }
    }

    /// Bytes of its memory that are resident.
    fn resident(&self) -> Result<f64> {
        let pid = match self {
            Self::Daemon(daemon) => daemon.pid(),
            Self::Store(store) => store.pid(),
        };
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kilobytes * 1024.0)
    }
}

impl Server {
    /// Starts a server that has nothing but what it starts with. `xendev` is our program.
    fn fresh(self, xendev: &Path) -> Result<Running> {
        Ok(match self {
            Self::Nobody => bail!("this row needs a server"),
            Self::Xenstored => Running::Daemon(Daemon::start(DaemonKind::Xenstored)?),
            Self::Oxenstored => Running::Daemon(Daemon::start(DaemonKind::Oxenstored)?),
            Self::Xendev => Running::Store(StoreProcess::start(xendev)?),
        })
    }
}

/// All rows. `xendev` is our program, built for release.
pub(super) fn workloads(xendev: &Path) -> Vec<Workload<'_, Server>> {
    let mut all = requests::workloads(xendev);
    all.extend(watches::workloads(xendev));
    all.extend(memory::workloads(xendev));
    all.extend(growth::workloads(xendev));
    all
}

/// A workload of one row, run on a fresh server.
fn one_row<'a>(
    xendev: &'a Path,
    row: Row,
    run: impl Fn(&Running) -> Result<Figure> + 'a,
) -> Workload<'a, Server> {
    let run = move |server: Server| Ok(vec![run(&server.fresh(xendev)?)?]);
    Workload { rows: vec![row], columns: REAL.into(), repetitions: usize::MAX, run: Box::new(run) }
}

fn row(name: impl Into<String>, values: &'static str, better: Better, goal: Option<Goal<Server>>) -> Row {
    Row { name: name.into(), values, better, goals: goal.into_iter().collect() }
}

/// Asks the batches in turn, for a time and at least once each; returns microseconds per request.
fn cost(wire: &mut Wire, batches: &[Batch], budget: Duration) -> Result<f64> {
    ensure!(!batches.is_empty(), "nothing to ask");
    let begun = Instant::now();
    let mut requests = 0;
    for (turn, batch) in batches.iter().cycle().enumerate() {
        wire.ask(batch)?;
        requests += batch.replies;
        if turn + 1 >= batches.len() && begun.elapsed() >= budget {
            break;
        }
    }
    Ok(begun.elapsed().as_secs_f64() * 1e6 / requests as f64)
}

/// The node of a device as a toolstack would make it: a thousand to a domain, a hundred to a
/// device.
fn node(number: usize) -> String {
    let (domid, device, key) = (number / 1000, number / 100 % 10, number % 100);
    format!("/local/domain/{domid}/device/vif/{device}/k{key}")
}

/// Writes a range of these nodes.
fn fill(wire: &mut Wire, numbers: std::ops::Range<usize>) -> Result<()> {
    let writes = numbers.map(|number| Batch::write(&node(number), &format!("value{number}")));
    wire.ask_all(&Batch::in_groups(writes, DEPTH))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xendev;

    /// Those that take moments. That they run on every server, not how fast.
    #[test]
    fn workloads_run_on_every_server() {
        let xendev = xendev::build(false).unwrap();
        let quick = [
            "READ, one at a time",
            "WRITE, 64 in flight",
            "transaction of 8 writes",
            "DIRECTORY of 1000 children",
            "watch events, N = 10",
            "growth with open transactions, READ",
        ];
        for name in quick {
            let mut all = workloads(&xendev);
            all.retain(|workload| workload.rows[0].name == name);
            let [workload] = &all[..] else { panic!("{name}") };
            for column in workload.columns.as_ref() {
                let figures = (workload.run)(*column).unwrap();
                assert_eq!(figures.len(), workload.rows.len());
                let values = || figures.iter().flatten();
                assert!(
                    values().all(|value| value.is_finite() && *value > 0.0),
                    "{name}, {column}: {figures:?}"
                );
            }
        }
    }

    #[test]
    fn an_error_ends_a_measurement() {
        let server = Server::Xendev.fresh(&xendev::build(false).unwrap()).unwrap();
        let error = server.connect().unwrap().ask(&Batch::read("/none")).unwrap_err();
        assert_eq!(error.to_string(), r"the server answered ENOENT\x00");
    }
}
