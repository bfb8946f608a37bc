//! The handle that callers hold.

use std::ops::Deref;
use std::path::Path as FsPath;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Semaphore, oneshot};
use xs_proto::{Op, Path, TxId};

use crate::driver;
use crate::handle::Command;
use crate::queue::Queue;
use crate::watches::WatcherId;
use crate::{Config, Error, Requests, Stats, Transport, Watch, default_socket, transport};

/// A connection to a store, shared by all clones.
///
/// The node operations are those of [`Requests`], to which it dereferences. The connection ends
/// when its last clone and its last watch are dropped, after what was under way is answered.
#[derive(Clone, Debug)]
pub struct Client {
    requests: Requests,
    watchers: Arc<AtomicU64>,
    /// One for each transaction that may be opened now.
    pub(crate) turns: Arc<Semaphore>,
}

impl Deref for Client {
    type Target = Requests;

    fn deref(&self) -> &Requests {
        &self.requests
    }
}

impl Client {
    /// Connects to the machine's xenstored at [`default_socket`].
    pub async fn connect() -> Result<Self, Error> {
        Self::connect_unix(default_socket(), Config::default()).await
    }

    /// Connects to a store's Unix socket. Fails with [`Error::Connect`].
    pub async fn connect_unix(path: impl AsRef<FsPath>, config: Config) -> Result<Self, Error> {
        let stream = transport::unix(path.as_ref(), config.deadline).await?;
        Ok(Self::over(stream, config))
    }

    /// A connection over any byte stream. Its driver runs as a task of the current Tokio runtime.
    pub fn over(transport: impl Transport, config: Config) -> Self {
        let handle = driver::spawn(transport, &config);
        let turns = Arc::new(Semaphore::new(config.transactions.max(1)));
        Self { requests: Requests { handle, config, tx: TxId::NONE }, watchers: Arc::default(), turns }
    }

    /// What this connection has done so far.
    pub fn stats(&self) -> Stats {
        self.handle.counters.stats()
    }

    /// Watches a path and all below it.
    ///
    /// The watch is registered when this returns, and fires once at first. Several watches of a
    /// path cost the server one. Fails if the store refuses (a quota, a malformed path).
    pub async fn watch(&self, path: &Path) -> Result<Watch, Error> {
        self.watch_into(path, Queue::new(self.config.watch_backlog)).await
    }

    /// The same with a queue that may be that of other watches, too.
    pub(crate) async fn watch_into(&self, path: &Path, queue: Arc<Queue>) -> Result<Watch, Error> {
        let id = WatcherId(self.watchers.fetch_add(1, Ordering::Relaxed));
        let watch = Watch { path: path.clone(), id, queue: queue.clone(), handle: self.handle.clone() };
        // Made after the watch, hence dropped before it: so the driver can tell a watch command
        // whose watch was dropped while it waited in line.
        let (reply, answer) = oneshot::channel();
        let call = async {
            self.handle.send(Command::Watch { path: path.clone(), id, queue, reply }).await?;
            answer.await.map_err(|_| self.handle.ended())?
        };
        self.within(self.deadline(), Op::WATCH, Some(path), call).await?;
        Ok(watch)
    }
}
