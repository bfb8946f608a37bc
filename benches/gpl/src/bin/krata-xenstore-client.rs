//! krata-xenstore.

use std::env;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use peer_program::{Client, Task, VALUE, Watch};
use xenstore::bus::XsdSocket;
use xenstore::{XsdClient, XsdInterface, XsdWatchHandle};

struct Krata(XsdClient);

struct Watched(XsdWatchHandle);

impl Client for Krata {
    type Node = String;
    type Watch = Watched;
    // With more than ten requests in flight, one fails.
    const REGISTERING: usize = 8;

    async fn connect(socket: &str) -> Result<Self> {
        // It would look in one fixed place, but takes a file that is open.
        let file = File::from(OwnedFd::from(UnixStream::connect(socket)?));
        Ok(Self(XsdClient { socket: XsdSocket::from_handle(file.into()).await? }))
    }

    fn node(path: &str) -> Result<String> {
        Ok(path.to_owned())
    }

    async fn read(&self, node: &String) -> Result<()> {
        Ok(XsdInterface::read(&self.0, node).await.map(drop)?)
    }

    async fn read_all(&self, nodes: &[String], in_flight: usize) -> Result<()> {
        let reads = stream::iter(nodes).map(|node| self.read(node));
        reads.buffer_unordered(in_flight).try_collect().await
    }

    async fn transaction(&self, nodes: &[String]) -> Result<()> {
        let transaction = self.0.transaction().await?;
        for node in nodes {
            transaction.write_string(node, VALUE).await?;
        }
        ensure!(transaction.maybe_commit().await?, "the transaction conflicted");
        Ok(())
    }

    async fn watch(&self, node: &String) -> Result<Watched> {
        let watch = self.0.create_watch(node).await?;
        self.0.bind_watch(&watch).await?;
        Ok(Watched(watch))
    }
}

impl Watch for Watched {
    async fn told(&mut self) -> Result<()> {
        self.0.receiver.recv().await.map(drop).context("the watch has ended")
    }
}

fn main() -> Result<()> {
    peer_program::print(&peer_program::run::<Krata>(&Task::new(env::args().skip(1))?)?);
    Ok(())
}
