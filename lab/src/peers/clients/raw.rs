//! The program `raw`: requests that were encoded before the clock starts, one blocking socket,
//! replies that are counted and not looked at. What a client does besides is overhead.

use std::iter::repeat_n;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use peer_program::{Figures, Registering, Samples, Task, Writer};
use xs_proto::Op;

use super::super::wire::{Batch, Transaction, Wire};

/// Requests in flight while watches are registered.
const REGISTERING: usize = 256;

/// Does the task.
pub(super) fn run(task: &Task) -> Result<Figures> {
    let mut wire = Wire::connect(Path::new(task.text("socket")?))?;
    match task.workload.as_str() {
        "read" => {
            let read = Batch::read(task.text("node")?);
            samples(task.counted()?, || wire.ask(&read))?.latencies()
        }
        "pipelined" => {
            let (depth, reads) = task.pipelined()?;
            let window = repeat_n(Batch::read(task.text("node")?), depth);
            let window = Batch::in_groups(window, depth).pop().context("depth= is 0")?;
            samples(task.timed()?, || wire.keep_asking(&window, reads))?.rate(reads)
        }
        "transaction" => {
            let mut transaction = Transaction::new(task.text("below")?);
            samples(task.counted()?, || transaction.run(&mut wire))?.latencies()
        }
        "watch" => {
            let watches = watches(&task.watched()?);
            wire.ask(&Batch::watch("/warm", "warm"))?;
            let registering = Registering::begin()?;
            wire.ask_all(&watches)?;
            registering.end(task.number("nodes")?)
        }
        "events" => events(task, &mut wire),
        "fanout" => fanout(task, &mut wire),
        other => bail!("there is no workload {other}"),
    }
}

/// Takes the time of each turn.
pub(super) fn samples(turns: impl Iterator, mut turn: impl FnMut() -> Result<()>) -> Result<Samples> {
    let mut samples = Samples::default();
    for _ in turns {
        let begun = Instant::now();
        turn()?;
        samples.add(begun);
    }
    Ok(samples)
}

fn watches(nodes: &[String]) -> Vec<Batch> {
    let watches = nodes.iter().enumerate().map(|(number, node)| Batch::watch(node, &number.to_string()));
    Batch::in_groups(watches, REGISTERING)
}

fn events(task: &Task, wire: &mut Wire) -> Result<Figures> {
    if task.number("subtree")? == 1 {
        wire.ask(&Batch::watch(task.text("below")?, "all"))?;
    } else {
        wire.ask_all(&watches(&task.watched()?))?;
    }
    let end = task.text("end")?;
    wire.ask(&Batch::watch(end, "end"))?;
    let end = format!("{end}\0end\0");
    peer_program::ready();
    let (begun, mut told) = (Instant::now(), 0.0);
    while wire.next().context("watching")? != (Op::WATCH_EVENT, end.as_bytes()) {
        told += 1.0;
    }
    Ok(vec![("seconds", begun.elapsed().as_secs_f64()), ("told", told)])
}

/// One watch; whoever waits for it has a counter here.
fn fanout(task: &Task, wire: &mut Wire) -> Result<Figures> {
    let node = task.text("node")?;
    let mut writer = Writer::connect(task.text("socket")?, node)?;
    let mut watchers = vec![0_u64; task.number("watchers")?];
    wire.ask(&Batch::watch(node, "node"))?;
    let mut samples = Samples::default();
    for _ in task.counted()? {
        let begun = Instant::now();
        writer.write()?;
        wire.next().context("watching")?;
        watchers.iter_mut().for_each(|watcher| *watcher += 1);
        std::hint::black_box(&watchers);
        samples.add(begun);
        writer.finish()?;
    }
    samples.latencies()
}
