//! What is measured of a client, on which server, and the goals.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Map, Value};

use super::super::harness::{self, Better, Workload};
use super::super::wire::{Batch, Wire};
use super::Client::{Krata, Libxenstore, Pyxs, Raw, XenstoreRs, XsAsync, XsBlocking, XsSleeping};
use super::programs::Programs;
use super::{ALL, Client};
use crate::daemon::{Daemon, DaemonKind};
use crate::xendev::StoreProcess;

type Row = harness::Row<Client>;
type Goal = harness::Goal<Client>;

/// For how long nodes are written while events are counted.
const WRITING: Duration = Duration::from_millis(300);

/// Writes in flight.
const IN_FLIGHT: usize = 32;

/// The node that is read, and written for the watchers of one node.
const NODE: &str = "/local/domain/1/device/vif/0/state";

/// What is written in transactions, and what is watched, is below this.
const BELOW: &str = "/local/domain/0/backend/vif";

/// The node whose event ends the counting.
const END: &str = "/end";

/// Those that can have many requests in flight: libxenstore and pyxs have one, krata-xenstore
/// fails with more than ten.
const PIPELINING: &[Client] = &[Raw, XsAsync, XsBlocking, XsSleeping, XenstoreRs];

/// Those that have transactions.
const TRANSACTING: &[Client] = &[Raw, XsAsync, XsBlocking, XsSleeping, Libxenstore, Pyxs, Krata];

/// Those that serve many who wait, each for a watch of its own, in one thread.
const WAITING: &[Client] = &[Raw, XsAsync, XsSleeping, Libxenstore, Pyxs, XenstoreRs, Krata];

/// What the clients run on.
#[derive(Clone, Copy)]
enum Under {
    Xenstored,
    Null,
}

/// A workload on a server, and the rows that come of it.
struct Case {
    under: Under,
    workload: &'static str,
    /// Besides those that are the same for all.
    settings: &'static [(&'static str, usize)],
    columns: &'static [Client],
    rows: Vec<Measure>,
}

/// A row, and the figures that are its values.
type Measure = (Row, &'static [&'static str]);

/// All rows, with what is wanted where client and server share a CPU, or are unpinned. Counts and
/// nodes are one in so many, for a test that everything works.
pub(in super::super) fn workloads(
    programs: &Programs,
    unpinned: bool,
    one_in: usize,
) -> Vec<Workload<'_, Client>> {
    // On another CPU to be woken can be spared.
    let asleep = unpinned.then_some(Goal::Beside(XsAsync, XsSleeping, 0.5));
    let read = [
        Goal::Beside(XsAsync, Raw, 1.25),
        Goal::Beside(XsAsync, Libxenstore, 1.0),
        Goal::Beside(XsBlocking, Raw, 1.05),
    ];
    let cases = [
        Case {
            under: Under::Xenstored,
            workload: "read",
            settings: &[("count", 4000)],
            columns: ALL,
            rows: vec![latencies("sequential READ, xenstored", read.into_iter().chain(asleep).collect())],
        },
        Case {
            under: Under::Xenstored,
            workload: "pipelined",
            settings: &[("ms", 500), ("depth", 64)],
            columns: PIPELINING,
            rows: vec![rate("64 READs in flight, xenstored", vec![Goal::Beside(XsAsync, Raw, 0.95)])],
        },
        Case {
            under: Under::Null,
            workload: "pipelined",
            settings: &[("ms", 300), ("depth", 64)],
            columns: PIPELINING,
            rows: vec![rate(
                "64 READs in flight, null server",
                vec![Goal::Reach(XsAsync, 1e6), Goal::Beside(XsAsync, XenstoreRs, 20.0)],
            )],
        },
        Case {
            under: Under::Xenstored,
            workload: "transaction",
            settings: &[("count", 500)],
            columns: TRANSACTING,
            rows: vec![latencies(
                "transaction of 8 WRITEs, xenstored",
                vec![Goal::Beside(XsAsync, Raw, 1.05), Goal::Beside(XsBlocking, Raw, 1.05)],
            )],
        },
        Case {
            under: Under::Null,
            workload: "watch",
            settings: &[("nodes", 10_000)],
            columns: ALL,
            rows: vec![
                less("register 10000 watches, null server", "µs per watch", &["us_each"], 3.0),
                less("memory of 10000 watches", "KiB", &["kib"], 2048.0),
            ],
        },
        Case {
            under: Under::Null,
            workload: "events",
            settings: &[("nodes", 1000), ("subtree", 0)],
            columns: ALL,
            rows: vec![events("events of 1000 nodes, null server", 600e3)],
        },
        Case {
            under: Under::Xenstored,
            workload: "events",
            settings: &[("nodes", 10_000), ("subtree", 1)],
            columns: ALL,
            rows: vec![events("events of 10000 nodes, xenstored", 20e3)],
        },
        Case {
            under: Under::Xenstored,
            workload: "fanout",
            settings: &[("count", 200), ("watchers", 100)],
            columns: WAITING,
            rows: vec![latencies(
                "event to the last of 100 watchers, xenstored",
                vec![Goal::Reach(XsAsync, 60.0)],
            )],
        },
    ];
    cases.into_iter().map(|case| case.workload(programs, one_in)).collect()
}

fn latencies(name: &str, goals: Vec<Goal>) -> Measure {
    let values = "µs: median / 99 of 100";
    (Row { name: name.into(), values, better: Better::Lower, goals }, &["median_us", "p99_us"])
}

fn rate(name: &str, goals: Vec<Goal>) -> Measure {
    (Row { name: name.into(), values: "requests/s", better: Better::Higher, goals }, &["per_second"])
}

fn less(name: &str, values: &'static str, figures: &'static [&'static str], goal: f64) -> Measure {
    let goals = vec![Goal::Reach(XsAsync, goal)];
    (Row { name: name.into(), values, better: Better::Lower, goals }, figures)
}

fn events(name: &str, goal: f64) -> Measure {
    let goals = vec![Goal::Reach(XsAsync, goal)];
    let values = "events/s / % told of";
    (Row { name: name.into(), values, better: Better::Higher, goals }, &["per_second", "told_percent"])
}

impl Case {
    fn workload(self, programs: &Programs, one_in: usize) -> Workload<'_, Client> {
        let Self { under, workload, settings, columns, rows } = self;
        let (mut rows, figures): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
        for row in &mut rows {
            // One that cannot be measured, because a client was left out, would be missed.
            row.goals.retain(|goal| match goal {
                Goal::Beside(ours, to, _) => programs.has(*ours) && programs.has(*to),
                _ => true,
            });
        }
        let columns = programs.present(columns).into();
        let scaled = move |(key, value): &(&'static str, usize)| {
            (*key, if matches!(*key, "count" | "nodes" | "ms") { value / one_in } else { *value })
        };
        let settings: Vec<_> = settings.iter().map(scaled).collect();
        let run = move |client| {
            let measured = run(programs, client, under, workload, &settings)?;
            let value = |key: &&str| {
                measured.get(*key).and_then(Value::as_f64).with_context(|| format!("it measured no {key}"))
            };
            figures.iter().map(|keys| keys.iter().map(value).collect()).collect()
        };
        Workload { rows, columns, repetitions: usize::MAX, run: Box::new(run) }
    }
}

/// Has a client do a workload on a fresh server.
fn run(
    programs: &Programs,
    client: Client,
    under: Under,
    workload: &str,
    settings: &[(&str, usize)],
) -> Result<Map<String, Value>> {
    let nodes = settings.iter().find_map(|(key, value)| (*key == "nodes").then_some(*value)).unwrap_or(0);
    let server = under.start(programs)?;
    let socket = server.socket();
    let mut wire = Wire::connect(&socket)?;
    // Whole batches, so some nodes may come once more than others.
    let writes = (0..nodes.next_multiple_of(IN_FLIGHT))
        .map(|turn| Batch::write(&format!("{BELOW}/{}/0/state", turn % nodes), "4"));
    let writes = Batch::in_groups(writes, IN_FLIGHT);
    wire.ask(&Batch::write(NODE, "4"))?;
    wire.ask_all(&writes)?;

    let paths = [("node", NODE), ("below", BELOW), ("end", END)].map(|(key, path)| (key, path.to_owned()));
    let numbers = settings.iter().map(|(key, value)| (*key, value.to_string()));
    let settings: Vec<_> = paths.into_iter().chain(numbers).collect();
    let mut written = 0;
    let mut measured = programs.run(client, &socket, workload, &settings, || {
        written = write(&mut wire, &writes)?;
        Ok(())
    })?;
    let value = |key: &str| measured.get(key).and_then(Value::as_f64);
    if let (Some(seconds), Some(told)) = (value("seconds"), value("told")) {
        measured.insert("per_second".into(), (f64::from(written) / seconds).into());
        measured.insert("told_percent".into(), (100.0 * told / f64::from(written)).into());
    }
    Ok(measured)
}

/// Writes to the nodes in turn for a time, and then to the last one; returns how often to the
/// others.
fn write(wire: &mut Wire, writes: &[Batch]) -> Result<u32> {
    let begun = Instant::now();
    let mut written = 0;
    for batch in writes.iter().cycle().take_while(|_| begun.elapsed() < WRITING) {
        wire.ask(batch)?;
        written += batch.replies as u32;
    }
    wire.ask(&Batch::write(END, ""))?;
    Ok(written)
}

/// A server that runs; dropping it ends it.
enum Running {
    Daemon(Daemon),
    Null(StoreProcess),
}

impl Under {
    fn start(self, programs: &Programs) -> Result<Running> {
        Ok(match self {
            Self::Xenstored => Running::Daemon(Daemon::start(DaemonKind::Xenstored)?),
            Self::Null => Running::Null(StoreProcess::start_other(&mut programs.null_server())?),
        })
    }
}

impl Running {
    fn socket(&self) -> PathBuf {
        match self {
            Self::Daemon(daemon) => daemon.socket().to_owned(),
            Self::Null(server) => server.socket(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::cargo;

    /// That the program does all of its workloads, not how fast.
    fn does_its_workloads(client: Client) {
        let lab = cargo::build("lab", "lab", false).unwrap();
        let programs = Programs::build(lab).unwrap();
        for workload in workloads(&programs, true, 100) {
            if !workload.columns.contains(&client) {
                continue;
            }
            let figures = (workload.run)(client).unwrap();
            assert_eq!(figures.len(), workload.rows.len());
            for (row, figure) in workload.rows.iter().zip(figures) {
                assert!(figure.iter().all(|value| value.is_finite() && *value >= 0.0), "{row:?}: {figure:?}");
            }
        }
    }

    #[test]
    fn raw_does_its_workloads() {
        does_its_workloads(Raw);
    }

    #[test]
    fn xs_client_does_its_workloads() {
        does_its_workloads(XsAsync);
    }

    #[test]
    fn xs_client_without_a_runtime_does_its_workloads() {
        does_its_workloads(XsBlocking);
    }

    #[test]
    fn xs_client_that_sleeps_at_once_does_its_workloads() {
        does_its_workloads(XsSleeping);
    }

    #[test]
    fn libxenstore_does_its_workloads() {
        does_its_workloads(Libxenstore);
    }

    #[test]
    fn pyxs_does_its_workloads() {
        does_its_workloads(Pyxs);
    }

    #[test]
    fn a_program_that_fails_is_told_with_what_it_said() {
        let programs = Programs::build(cargo::build("lab", "lab", false).unwrap()).unwrap();
        let error = programs.run(Raw, Path::new("/none"), "read", &[], || Ok(())).unwrap_err();
        assert!(error.to_string().contains("connecting to the server"), "{error}");
    }

    #[test]
    fn clients_under_the_gpl_can_be_left_out() {
        let programs = Programs::build(cargo::build("lab", "lab", false).unwrap()).unwrap();
        assert_eq!(programs.present(ALL), [Raw, XsAsync, XsBlocking, XsSleeping, Libxenstore, Pyxs]);
        for row in workloads(&programs, false, 1).iter().flat_map(|workload| &workload.rows) {
            assert!(row.goals.iter().all(|goal| !matches!(goal, Goal::Beside(_, XenstoreRs, _))));
        }
    }
}
