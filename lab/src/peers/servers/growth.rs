//! Growth: what an operation costs while a store has more and more nodes, watches or open
//! transactions.
//!
//! Requests go out 64 at a time, so that the store's own work shows and not the socket's; a
//! transaction has two round trips. The nodes asked for are spread evenly over all there are, but
//! at every size there are as many of them, and not so many that the CPU's cache has no room for
//! what leads to them: that would measure the cache.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::super::figure::Figure;
use super::super::harness::{Better, Goal, Workload};
use super::super::wire::{Batch, Transaction, Wire};
use super::{DEPTH, Running, Server, cost, fill, node, row};

const BUDGET: Duration = Duration::from_millis(60);
const REPETITIONS: usize = 3;

/// Nodes that are asked for.
const SPREAD: usize = 4 * DEPTH;

/// What is held to the goal, and one server for comparison.
const COLUMNS: &[Server] = &[Server::Xenstored, Server::Xendev];

/// What there is more and more of.
#[derive(Clone, Copy)]
enum Dimension {
    Nodes,
    Watches,
    Transactions,
}

impl Dimension {
    fn sizes(self, server: Server) -> &'static [usize] {
        match (self, server) {
            (Self::Nodes, Server::Xendev) => &[1000, 10_000, 100_000, 1_000_000],
            // The last step alone would take it half a minute.
            (Self::Nodes, _) => &[1000, 10_000, 100_000],
            (Self::Watches, _) => &[10, 100, 1000, 10_000],
            (Self::Transactions, _) => &[0, 10, 100, 1000],
        }
    }

    /// Its name, and what the values of its rows are.
    fn texts(self) -> (&'static str, &'static str) {
        match self {
            Self::Nodes => ("nodes", "µs at 1k / 10k / 100k / 1M nodes"),
            Self::Watches => ("watches", "µs at 10 / 100 / 1k / 10k watches"),
            Self::Transactions => ("open transactions", "µs at 0 / 10 / 100 / 1k transactions"),
        }
    }
}

pub(super) fn workloads(xendev: &Path) -> Vec<Workload<'_, Server>> {
    let workload = |dimension: Dimension| {
        let operations = ["READ", "WRITE", "WRITE with an event", "transaction of 8 writes"];
        let (of, values) = dimension.texts();
        let rows = operations.map(|operation| {
            row(format!("growth with {of}, {operation}"), values, Better::Lower, Some(Goal::Growth(2.0)))
        });
        let run = move |server: Server| grow(&server.fresh(xendev)?, dimension, dimension.sizes(server));
        Workload { rows: rows.into(), columns: COLUMNS.into(), repetitions: REPETITIONS, run: Box::new(run) }
    };
    [Dimension::Nodes, Dimension::Watches, Dimension::Transactions].map(workload).into()
}

/// The costs of all operations at each size.
fn grow(server: &Running, dimension: Dimension, sizes: &[usize]) -> Result<Vec<Figure>> {
    // What there is more of belongs to another connection than the one that asks.
    let (mut wire, mut other) = (server.connect()?, server.connect()?);
    let mut nodes = 1000;
    fill(&mut other, 0..nodes)?;
    // Beside nodes that are asked for, so that they are no easier to find.
    let watched = |number| format!("{}-watched", node(number * nodes / DEPTH));
    let writes = || (0..DEPTH).map(|number| Batch::write(&watched(number), "value"));
    wire.ask_all(&Batch::in_groups(writes(), DEPTH))?;
    let watches = (0..DEPTH).map(|number| Batch::watch(&watched(number), "token"));
    wire.ask_all(&Batch::in_groups(watches, DEPTH))?;
    let noticed = Batch::in_groups(writes().map(Batch::with_event), DEPTH);

    let mut figures = vec![Figure::new(); 4];
    let mut there = 0;
    for size in sizes {
        match dimension {
            Dimension::Nodes => {
                fill(&mut other, nodes..*size)?;
                nodes = *size;
            }
            Dimension::Watches => watch(&mut other, there..*size)?,
            Dimension::Transactions => open(&mut other, there..*size)?,
        }
        there = *size;
        let asked = || (0..SPREAD).map(|number| node(number * nodes / SPREAD));
        let reads = Batch::in_groups(asked().map(|path| Batch::read(&path)), DEPTH);
        let writes = Batch::in_groups(asked().map(|path| Batch::write(&path, "value")), DEPTH);
        for (figure, batches) in figures.iter_mut().zip([&reads, &writes, &noticed]) {
            wire.ask_all(batches)?;
            figure.push(cost(&mut wire, batches, BUDGET)?);
        }
        figures[3].push(transaction_cost(&mut wire, asked())?);
    }
    Ok(figures)
}

/// Watches nodes that are not asked for.
fn watch(wire: &mut Wire, numbers: std::ops::Range<usize>) -> Result<()> {
    let watches = numbers.map(|number| Batch::watch(&format!("/elsewhere/{number}"), "token"));
    wire.ask_all(&Batch::in_groups(watches, DEPTH))
}

/// Opens transactions, each of which has written a node of its own.
fn open(wire: &mut Wire, numbers: std::ops::Range<usize>) -> Result<()> {
    let start = Batch::start_transaction();
    for number in numbers {
        let mut write = Batch::write(&format!("/elsewhere/{number}"), "value");
        write.set_transaction(wire.start_transaction(&start)?);
        wire.ask(&write)?;
    }
    Ok(())
}

/// Microseconds per transaction, of transactions below these nodes in turn.
fn transaction_cost(wire: &mut Wire, below: impl Iterator<Item = String>) -> Result<f64> {
    let mut transactions: Vec<_> = below.step_by(16).map(|path| Transaction::new(&path)).collect();
    transactions.iter_mut().try_for_each(|transaction| transaction.run(wire))?;
    let begun = Instant::now();
    let mut count = 0;
    while begun.elapsed() < BUDGET {
        transactions.iter_mut().try_for_each(|transaction| transaction.run(wire))?;
        count += transactions.len();
    }
    Ok(begun.elapsed().as_secs_f64() * 1e6 / count as f64)
}
