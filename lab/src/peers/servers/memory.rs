//! Memory: by how much a server's resident memory grows with each node and each watch.
//!
//! The connection is warmed up before the first look, so that its buffers are not counted.

use std::path::Path;

use anyhow::Result;

use super::super::figure::Figure;
use super::super::harness::{Better, Goal, Workload};
use super::super::wire::Batch;
use super::{DEPTH, Running, Server, fill, node, one_row, row};

const NODES: usize = 100_000;
const WATCHES: usize = 10_000;

/// It varies little, and filling takes long.
const REPETITIONS: usize = 3;

pub(super) fn workloads(xendev: &Path) -> Vec<Workload<'_, Server>> {
    let bytes = |name| row(name, "bytes", Better::Lower, Some(Goal::Times(1.0)));
    let few = |workload| Workload { repetitions: REPETITIONS, ..workload };
    vec![
        few(one_row(xendev, bytes("memory per node, of 100000"), per_node)),
        few(one_row(xendev, bytes("memory per watch, of 10000"), per_watch)),
    ]
}

fn per_node(server: &Running) -> Result<Figure> {
    let mut wire = server.connect()?;
    for _ in 0..20 {
        fill(&mut wire, 0..DEPTH)?;
    }
    let before = server.resident()?;
    fill(&mut wire, DEPTH..NODES)?;
    Ok(vec![(server.resident()? - before) / (NODES - DEPTH) as f64])
}

fn per_watch(server: &Running) -> Result<Figure> {
    let mut wire = server.connect()?;
    let watches = |numbers: std::ops::Range<usize>| {
        let watches = numbers.map(|number| Batch::watch(&node(number), &number.to_string()));
        Batch::in_groups(watches, DEPTH)
    };
    for _ in 0..20 {
        fill(&mut wire, 0..DEPTH)?;
    }
    wire.ask_all(&watches(0..DEPTH))?;
    let before = server.resident()?;
    wire.ask_all(&watches(DEPTH..WATCHES))?;
    Ok(vec![(server.resident()? - before) / (WATCHES - DEPTH) as f64])
}
