//! Who has done nothing: domain 0 and a guest that go on with their work, and how long each request takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use tokio::runtime::Builder;
use xs_client::{Client, Config, DomId, Path};

use super::host::{Host, home};
use crate::peers::figure::percentile;

/// Between two requests, so that a victim is not itself the load.
const PAUSE: Duration = Duration::from_micros(500);

/// Microseconds that requests took.
#[derive(Clone, Debug, Default)]
pub(super) struct Times(Vec<f64>);

impl Times {
    /// What so many of a hundred do not exceed; NaN if there are none.
    pub(super) fn percentile(&self, percent: usize) -> f64 {
        percentile(&mut self.0.clone(), percent)
    }
}

/// Whoever is cut off is to notice.
fn config() -> Config {
    Config { reconnect: None, ..Config::default() }
}

/// A victim at work, in a thread of its own.
pub(super) struct Victim {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Times>>,
}

impl Victim {
    /// Domain 0, over a socket.
    pub(super) fn domain0(host: &Host) -> Self {
        let socket = host.socket.clone();
        let connect = async move || Ok(Client::connect_unix(&socket, config()).await?);
        Self::start(connect, "/tool/victim".to_owned())
    }

    /// A guest, over its ring.
    pub(super) fn guest(host: &Host, guest: DomId) -> Self {
        let xen = host.xen.clone();
        let connect = async move || Ok(Client::connect_with(xen.way(guest)?, config()).await?);
        Self::start(connect, format!("{}/victim", home(guest)))
    }

    fn start(connect: impl AsyncFnOnce() -> Result<Client> + Send + 'static, node: String) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let client = connect().await?;
                let node = Path::new(node)?;
                let mut times = Times::default();
                while !stopped.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    client.write(&node, "x").await?;
                    times.0.push(begun.elapsed().as_secs_f64() * 1e6);
                    let begun = Instant::now();
                    client.read(&node).await?;
                    times.0.push(begun.elapsed().as_secs_f64() * 1e6);
                    tokio::time::sleep(PAUSE).await;
                }
                Ok(times)
            })
        });
        Self { stop, thread }
    }

    /// Ends its work: its times, or why it could not go on.
    pub(super) fn finish(self) -> Result<Times> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the victim panicked"))?
    }
}
