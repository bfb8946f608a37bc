//! The program `xs-client`: our own client, as it is today.

use std::time::Duration;

use anyhow::{Result, ensure};
use peer_program::{Client, VALUE, Watch};
use xs_client::{Config, Path, Request};

/// As it is, or one that sleeps for a reply at once.
pub(super) struct XsClient<const SPINS: bool>(xs_client::Client);

pub(super) struct Watched(xs_client::Watch);

impl<const SPINS: bool> Client for XsClient<SPINS> {
    type Node = Path;
    type Watch = Watched;
    // More than its window, so that it is always full.
    const REGISTERING: usize = 256;

    async fn connect(socket: &str) -> Result<Self> {
        let mut config = Config::default();
        if !SPINS {
            config.spin = Duration::ZERO;
        }
        Ok(Self(xs_client::Client::connect_unix(socket, config).await?))
    }

    fn node(path: &str) -> Result<Path> {
        Ok(Path::new(path)?)
    }

    async fn read(&self, node: &Path) -> Result<()> {
        Ok(self.0.read(node).await.map(drop)?)
    }

    async fn read_all(&self, nodes: &[Path], in_flight: usize) -> Result<()> {
        ensure!(in_flight == Config::default().window, "its window is another");
        Ok(self.0.read_many(nodes).await.map(drop)?)
    }

    async fn transaction(&self, nodes: &[Path]) -> Result<()> {
        let write = |node: &Path| Request::Write { path: node.clone(), value: VALUE.into() };
        Ok(self.0.commit_all(nodes.iter().map(write).collect()).await.map(drop)?)
    }

    async fn watch(&self, node: &Path) -> Result<Watched> {
        Ok(Watched(self.0.watch(node).await?))
    }
}

impl Watch for Watched {
    async fn told(&mut self) -> Result<()> {
        Ok(self.0.changed().await.map(drop)?)
    }
}
