//! The workloads over a client that is asynchronous.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::Notify;

use crate::{Figures, Registering, Samples, Task, Writer};

/// A client that is connected.
pub trait Client: Sized {
    /// A node as the client wants it to be named.
    type Node: Clone;
    /// A watch that is registered.
    type Watch: Watch;
    /// As many watches are being registered at one time.
    const REGISTERING: usize;

    /// Connects to the store at a socket.
    fn connect(socket: &str) -> impl Future<Output = Result<Self>>;

    /// Names a node.
    fn node(path: &str) -> Result<Self::Node>;

    /// Reads a node.
    fn read(&self, node: &Self::Node) -> impl Future<Output = Result<()>>;

    /// Reads nodes, and has so many of these requests in flight for as long as there are any left.
    fn read_all(&self, nodes: &[Self::Node], in_flight: usize) -> impl Future<Output = Result<()>>;

    /// Writes [`VALUE`](crate::VALUE) to nodes, in one transaction.
    fn transaction(&self, nodes: &[Self::Node]) -> impl Future<Output = Result<()>>;

    /// Watches a node.
    fn watch(&self, node: &Self::Node) -> impl Future<Output = Result<Self::Watch>>;
}

/// A watch that is registered. Its first event comes at once.
pub trait Watch: Send + 'static {
    /// Waits for the next event, or for several at once if the client merges them. An error ends
    /// the watch.
    fn told(&mut self) -> impl Future<Output = Result<()>> + Send;
}

/// Does a task on a current-thread runtime.
pub fn run<C: Client>(task: &Task) -> Result<Figures> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = C::connect(task.text("socket")?).await?;
        match task.workload.as_str() {
            "read" => {
                let node = C::node(task.text("node")?)?;
                samples(task.counted()?, async || client.read(&node).await).await?.latencies()
            }
            "pipelined" => {
                let (depth, reads) = task.pipelined()?;
                let nodes = vec![C::node(task.text("node")?)?; reads];
                samples(task.timed()?, async || client.read_all(&nodes, depth).await).await?.rate(reads)
            }
            "transaction" => {
                let nodes = named::<C>(&task.written()?)?;
                samples(task.counted()?, async || client.transaction(&nodes).await).await?.latencies()
            }
            "watch" => {
                let nodes = named::<C>(&task.watched()?)?;
                let _warm = registered(&client, &[C::node("/warm")?]).await?;
                let registering = Registering::begin()?;
                let _watches = registered(&client, &nodes).await?;
                registering.end(nodes.len())
            }
            "events" => events(task, &client).await,
            "fanout" => fanout(task, &client).await,
            other => bail!("there is no workload {other}"),
        }
    })
}

fn named<C: Client>(paths: &[String]) -> Result<Vec<C::Node>> {
    paths.iter().map(|path| C::node(path)).collect()
}

/// Takes the time of each turn.
async fn samples(turns: impl Iterator, mut turn: impl AsyncFnMut() -> Result<()>) -> Result<Samples> {
    let mut samples = Samples::default();
    for _ in turns {
        let begun = Instant::now();
        turn().await?;
        samples.add(begun);
    }
    Ok(samples)
}

/// Watches that have told of themselves.
async fn registered<C: Client>(client: &C, nodes: &[C::Node]) -> Result<Vec<C::Watch>> {
    let mut watches = Vec::with_capacity(nodes.len());
    let mut registering = stream::iter(nodes).map(|node| client.watch(node)).buffered(C::REGISTERING);
    while let Some(mut watch) = registering.try_next().await? {
        watch.told().await?;
        watches.push(watch);
    }
    Ok(watches)
}

/// A task waits for each watch, as different parts of a program would.
async fn events<C: Client>(task: &Task, client: &C) -> Result<Figures> {
    let told = Arc::new(AtomicUsize::new(0));
    for mut watch in registered(client, &named::<C>(&task.watched()?)?).await? {
        let told = told.clone();
        tokio::spawn(async move {
            while watch.told().await.is_ok() {
                told.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let mut end = client.watch(&C::node(task.text("end")?)?).await?;
    end.told().await?;
    crate::ready();
    let begun = Instant::now();
    // A task as well, so that those who were told before have run before.
    tokio::spawn(async move { end.told().await }).await??;
    Ok(vec![("seconds", begun.elapsed().as_secs_f64()), ("told", told.load(Ordering::Relaxed) as f64)])
}

/// Here too, a task waits for each watch.
async fn fanout<C: Client>(task: &Task, client: &C) -> Result<Figures> {
    let (node, watchers) = (task.text("node")?, task.number("watchers")?);
    let mut writer = Writer::connect(task.text("socket")?, node)?;
    let (left, last) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    for mut watch in registered(client, &vec![C::node(node)?; watchers]).await? {
        let (left, last) = (left.clone(), last.clone());
        tokio::spawn(async move {
            while watch.told().await.is_ok() {
                if left.fetch_sub(1, Ordering::Relaxed) == 1 {
                    last.notify_one();
                }
            }
        });
    }
    // Until everybody has been told of what registering brought.
    tokio::time::sleep(Duration::from_millis(20)).await;
    let mut samples = Samples::default();
    for _ in task.counted()? {
        left.store(watchers, Ordering::Relaxed);
        let begun = Instant::now();
        writer.write()?;
        last.notified().await;
        samples.add(begun);
        writer.finish()?;
    }
    samples.latencies()
}
