//! The program `xs-blocking`: our own client without a runtime.
//!
//! It has one thread. Events are taken as a small tool would take them: it waits for one watch,
//! and looks at the others afterwards.

use std::path::Path as FsPath;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use peer_program::{Figures, Registering, Task, VALUE};
use xs_client::blocking::{Client, Watch};
use xs_client::{Config, Error, Path, Request};

use super::raw::samples;

/// Does the task.
pub(super) fn run(task: &Task) -> Result<Figures> {
    let client = Client::connect_unix(FsPath::new(task.text("socket")?), Config::default())?;
    match task.workload.as_str() {
        "read" => {
            let node = Path::new(task.text("node")?)?;
            samples(task.counted()?, || Ok(client.read(&node).map(drop)?))?.latencies()
        }
        "pipelined" => {
            let (depth, reads) = task.pipelined()?;
            ensure!(depth == Config::default().window, "its window is another");
            let nodes = vec![Path::new(task.text("node")?)?; reads];
            samples(task.timed()?, || Ok(client.read_many(&nodes).map(drop)?))?.rate(reads)
        }
        "transaction" => {
            let nodes = named(&task.written()?)?;
            let write = |node: &Path| Request::Write { path: node.clone(), value: VALUE.into() };
            let writes = || nodes.iter().map(write).collect();
            samples(task.counted()?, || Ok(client.commit_all(writes()).map(drop)?))?.latencies()
        }
        "watch" => {
            let nodes = named(&task.watched()?)?;
            let _warm = registered(&client, &[Path::new("/warm")?])?;
            let registering = Registering::begin()?;
            let _watches = registered(&client, &nodes)?;
            registering.end(nodes.len())
        }
        "events" => events(task, &client),
        other => bail!("it has no workload {other}"),
    }
}

fn named(paths: &[String]) -> Result<Vec<Path>> {
    paths.iter().map(|path| Ok(Path::new(path)?)).collect()
}

/// Watches that have told of themselves.
fn registered(client: &Client, nodes: &[Path]) -> Result<Vec<Watch>, Error> {
    let register = |node| {
        let mut watch = client.watch(node)?;
        watch.changed(Duration::MAX)?;
        Ok(watch)
    };
    nodes.iter().map(register).collect()
}

fn events(task: &Task, client: &Client) -> Result<Figures> {
    let mut watches = registered(client, &named(&task.watched()?)?)?;
    let mut end = registered(client, &[Path::new(task.text("end")?)?])?.pop().context("no watch")?;
    peer_program::ready();
    let begun = Instant::now();
    end.changed(Duration::MAX)?;
    let seconds = begun.elapsed().as_secs_f64();
    let mut told = 0.0;
    for watch in &mut watches {
        told += f64::from(u8::from(watch.changed(Duration::ZERO)?.is_some()));
    }
    Ok(vec![("seconds", seconds), ("told", told)])
}
