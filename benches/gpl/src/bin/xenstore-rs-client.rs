//! xenstore-rs, its Tokio face.

use std::env;

use anyhow::{Result, bail};
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use peer_program::{Client, Task, Watch};
use xenstore_rs::tokio::XsTokio;
use xenstore_rs::{AsyncWatch, AsyncXs};

struct XenstoreRs(XsTokio);

struct Watched(Box<dyn Stream<Item = Box<str>> + Send + Unpin>);

impl Client for XenstoreRs {
    type Node = String;
    type Watch = Watched;
    // It has 32 requests in flight by itself.
    const REGISTERING: usize = 256;

    async fn connect(_: &str) -> Result<Self> {
        // To where the lab has set XENSTORED_PATH: it takes no other name.
        Ok(Self(XsTokio::new().await?))
    }

    fn node(path: &str) -> Result<String> {
        Ok(path.to_owned())
    }

    async fn read(&self, node: &String) -> Result<()> {
        Ok(self.0.read(node).await.map(drop)?)
    }

    async fn read_all(&self, nodes: &[String], in_flight: usize) -> Result<()> {
        let reads = stream::iter(nodes).map(|node| self.read(node));
        reads.buffer_unordered(in_flight).try_collect().await
    }

    async fn transaction(&self, _: &[String]) -> Result<()> {
        bail!("xenstore-rs has no transactions")
    }

    async fn watch(&self, node: &String) -> Result<Watched> {
        Ok(Watched(Box::new(self.0.watch(node).await?)))
    }
}

impl Watch for Watched {
    async fn told(&mut self) -> Result<()> {
        match self.0.next().await {
            Some(_) => Ok(()),
            None => bail!("the watch has ended"),
        }
    }
}

fn main() -> Result<()> {
    peer_program::print(&peer_program::run::<XenstoreRs>(&Task::new(env::args().skip(1))?)?);
    Ok(())
}
