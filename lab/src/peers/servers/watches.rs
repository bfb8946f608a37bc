//! Watches: registering many, and how fast changes get from a writer to a watcher.
//!
//! **What counts as an event.** A watch event says "look again", so a server may leave one out
//! while the same one still waits to be sent. The C daemon and the store do, so with 32 writes in
//! flight over fewer nodes than that, not every write becomes an event, and the faster server leaves
//! out more of them. The goal is about *events that arrive* per second where there are more nodes
//! than that, from the first write until the watcher has the event of a last node, which is written
//! after all others and cannot overtake them; all *writes* of that time are given beside it.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use xs_proto::Op;

use super::super::figure::Figure;
use super::super::harness::{Better, Goal, Workload};
use super::super::wire::{Batch, Wire};
use super::{BUDGET, Running, Server, one_row, row};

/// Writes in flight while events are counted.
const IN_FLIGHT: usize = 32;

/// Registrations in flight.
const REGISTERING: usize = 256;

/// The node that is written when the counting is to end, and the token of its watch.
const END: &str = "/end";

pub(super) fn workloads(xendev: &Path) -> Vec<Workload<'_, Server>> {
    let mut all: Vec<_> = [1, 10, 100, 1000, 10_000]
        .into_iter()
        .map(|nodes| {
            let name = format!("watch events, N = {nodes}");
            let values = "events/s / writes/s";
            let goal = (nodes > IN_FLIGHT).then_some(Goal::Times(10.0));
            let row = row(name, values, Better::Higher, goal);
            one_row(xendev, row, move |server| events(server, nodes))
        })
        .collect();
    let registering = row("register 10000 watches", "µs per watch", Better::Lower, None);
    all.push(one_row(xendev, registering, |server| {
        let (mut wire, watches) = (server.connect()?, watches(10_000));
        let begun = Instant::now();
        wire.ask_all(&watches)?;
        Ok(vec![begun.elapsed().as_secs_f64() * 1e6 / 10_000.0])
    }));
    all
}

fn watched(number: usize) -> String {
    format!("/local/domain/0/backend/vif/{number}/0/state")
}

fn watches(count: usize) -> Vec<Batch> {
    let watches = (0..count).map(|number| Batch::watch(&watched(number), &number.to_string()));
    Batch::in_groups(watches, REGISTERING)
}

/// One connection watches the nodes, another writes to them in turn.
fn events(server: &Running, nodes: usize) -> Result<Figure> {
    let (mut watcher, mut writer) = (server.connect()?, server.connect()?);
    // Whole batches, so some nodes may come once more than others.
    let writes = (0..nodes.next_multiple_of(IN_FLIGHT)).map(|turn| Batch::write(&watched(turn % nodes), "4"));
    let writes = Batch::in_groups(writes, IN_FLIGHT);
    writer.ask_all(&writes)?;
    watcher.ask_all(&watches(nodes))?;
    watcher.ask(&Batch::watch(END, END))?;
    thread::scope(|scope| {
        let begun = Instant::now();
        let writing = scope.spawn(move || write_for(&mut writer, &writes, BUDGET));
        let mut events = 0;
        let end = format!("{END}\0{END}\0");
        loop {
            let (op, payload) = watcher.next().context("watching")?;
            anyhow::ensure!(op == Op::WATCH_EVENT, "an answer that nobody asked for");
            if payload == end.as_bytes() {
                break;
            }
            events += 1;
        }
        let seconds = begun.elapsed().as_secs_f64();
        let written = writing.join().map_err(|_| anyhow!("the writer panicked"))?.context("writing")?;
        Ok(vec![f64::from(events) / seconds, f64::from(written) / seconds])
    })
}

fn write_for(writer: &mut Wire, batches: &[Batch], budget: Duration) -> Result<u32> {
    let begun = Instant::now();
    let mut written = 0;
    for batch in batches.iter().cycle() {
        writer.ask(batch)?;
        written += batch.replies as u32;
        if begun.elapsed() >= budget {
            break;
        }
    }
    writer.ask(&Batch::write(END, ""))?;
    Ok(written)
}
