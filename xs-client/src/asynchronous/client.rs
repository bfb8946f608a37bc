//! The handle that callers hold.

use std::io;
use std::marker::PhantomData;
use std::ops::Deref;
#[cfg(unix)]
use std::path::Path as FsPath;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};
use tokio::time::{sleep, timeout_at};
use tracing::{Instrument, trace_span};
use xs_proto::{Op, Path};

use super::driver;
use super::handle::{Command, Tx, at_once};
use super::requests::later;
#[cfg(unix)]
use super::transport::{Auto, UnixSocket};
use crate::watcher::Watcher;
use crate::{Config, Connect, Error, Lifecycles, Requests, Stats, Transport, Watch};

/// A connection to a store, shared by all clones.
///
/// The node operations are those of [`Requests`], to which it dereferences. The connection ends
/// when its last clone and its last watch are dropped, after what was under way is answered.
#[derive(Clone, Debug)]
pub struct Client {
    requests: Requests,
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
    /// Connects to the machine's xenstored by whatever way there is: [`crate::Auto`].
    #[cfg(unix)]
    pub async fn connect() -> Result<Self, Error> {
        Self::connect_with(Auto::default(), Config::default()).await
    }

    /// Connects to a store's Unix socket. Fails with [`Error::Connect`].
    #[cfg(unix)]
    pub async fn connect_unix(path: impl AsRef<FsPath>, config: Config) -> Result<Self, Error> {
        Self::connect_with(UnixSocket::new(path.as_ref()), config).await
    }

    /// Connects by a way that can be taken again: when the connection is lost,
    /// [`Config::reconnect`] says what is done.
    ///
    /// A store that is there and has no time is asked again until [`Config::deadline`], with the
    /// pauses of a reconnection; any other failure is an [`Error::Connect`] at once, unless
    /// [`crate::Reconnect::from_start`] says that the store is waited for.
    pub async fn connect_with(mut connect: impl Connect, config: Config) -> Result<Self, Error> {
        let waits = config.reconnect.filter(|reconnect| reconnect.from_start);
        let until = later(waits.map_or(config.deadline, |reconnect| reconnect.within));
        let mut pauses = config.reconnect.unwrap_or_default().pauses();
        let error = loop {
            let attempt = timeout_at(until.min(later(config.deadline)), connect.connect());
            let error = match attempt.await {
                Ok(Ok(transport)) => return Ok(Self::drive(transport, connect, config)),
                Ok(Err(error)) => error,
                Err(_) => {
                    let reason = format!("no connection within {:?}", config.deadline);
                    io::Error::new(io::ErrorKind::TimedOut, reason)
                }
            };
            let again = waits.is_some() || error.kind() == io::ErrorKind::WouldBlock;
            let pause = pauses.next();
            if !again || later(pause) >= until {
                break error;
            }
            sleep(pause).await;
        };
        Err(Error::Connect { at: connect.at(), reason: error.to_string().into() })
    }

    /// A connection over any byte stream; when it ends, that is the end. Its driver runs as a task
    /// of the current Tokio runtime.
    pub fn over(transport: impl Transport, config: Config) -> Self {
        Self::drive(transport, Never(PhantomData), Config { reconnect: None, ..config })
    }

    fn drive<C: Connect>(transport: C::Transport, connect: C, config: Config) -> Self {
        let turns = Arc::new(Semaphore::new(at_once(config.transactions)));
        let deadline = config.deadline;
        let handle = driver::spawn(transport, connect, config);
        Self { requests: Requests { handle, deadline, tx: Tx::NONE, attempt: None }, turns }
    }

    /// The same connection, whose calls may take so long.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { requests: self.requests.with_deadline(deadline), turns: self.turns.clone() }
    }

    /// What this connection has done so far.
    pub fn stats(&self) -> Stats {
        self.handle.counters.stats()
    }

    /// Tells when the connection is lost and made again.
    pub fn lifecycle(&self) -> Lifecycles {
        Lifecycles(self.handle.lifecycle.subscribe())
    }

    /// Watches a path and all below it.
    ///
    /// The store has the watch when this returns, and it fires once at first. Several watches of a
    /// path cost the server one; hundreds with a common ancestor may cost it one as well. Fails if
    /// the store refuses (a quota, a malformed path).
    pub async fn watch(&self, path: &Path) -> Result<Watch, Error> {
        self.watch_as(Watcher::new(path, None)).await
    }

    /// Watches a path and so many levels below it: with 0, the node alone.
    ///
    /// A server that knows of depths (Xen 4.22) sends no more than that; with others, what is too
    /// deep is left out here. Of special paths, `@releaseDomain` with a depth of 1 or more tells
    /// `@releaseDomain/<domid>`, where the server knows of it.
    ///
    /// **Nodes that a write creates on its way tell nobody.** A write of `/a/b/c` where there was no
    /// `/a` fires for `/a/b/c` alone: that is no level of `/a` with a depth of 1 or less, although
    /// `/a` and `/a/b` have come into being. To wait for a node to appear, watch it with all below
    /// it ([`Client::watch`]).
    ///
    /// ```no_run
    /// # async fn example(client: xs_client::Client) -> Result<(), xs_client::Error> {
    /// let mut children = client.watch_depth(&"/a".parse()?, 1).await?;
    /// children.changed().await?; // Once at first.
    /// client.write(&"/a/b/c".parse()?, "1").await?; // Does not fire.
    /// client.mkdir(&"/a/d".parse()?).await?; // Fires for /a/d.
    /// # Ok(())
    /// # }
    /// ```
    pub async fn watch_depth(&self, path: &Path, depth: u32) -> Result<Watch, Error> {
        self.watch_as(Watcher::new(path, Some(depth))).await
    }

    pub(crate) async fn watch_as(&self, watcher: Arc<Watcher>) -> Result<Watch, Error> {
        let mut watch = Watch { watcher: watcher.clone(), handle: self.handle.clone(), is_known: false };
        // Made after the watch, hence dropped before it: so the driver can tell a watch command
        // whose watch was dropped while it waited in line.
        let (reply, answer) = oneshot::channel();
        let is_known = &mut watch.is_known;
        let call = async {
            self.handle.send(Command::Watch { watcher, reply }).await?;
            *is_known = true;
            answer.await.map_err(|_| self.handle.ended())?
        };
        let (path, depth) = (&watch.watcher.path, watch.watcher.depth());
        let span = trace_span!("watch", path = path.as_str(), depth);
        self.within(self.until(), Op::WATCH, Some(path), call).instrument(span).await?;
        Ok(watch)
    }
}

/// The way to another stream in the place of one that was given.
struct Never<T>(PhantomData<fn() -> T>);

impl<T: Transport> Connect for Never<T> {
    type Transport = T;

    fn at(&self) -> String {
        "a stream that was given".into()
    }

    async fn connect(&mut self) -> io::Result<T> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::asynchronous::handle::Handle;

    /// Without a connection nobody takes commands or chores.
    #[tokio::test(start_paused = true)]
    async fn watches_that_never_were_leave_nothing_to_do() {
        let config = Config { window: 4, ..Config::default() };
        let (handle, link, _commands) = Handle::new(config);
        let requests = Requests { handle, deadline: Duration::from_millis(1), tx: Tx::NONE, attempt: None };
        let client = Client { requests, turns: Arc::new(Semaphore::new(1)) };
        for _ in 0..1000 {
            client.watch(&Path::root()).await.unwrap_err();
        }
        // Of the four that wait in line, nobody knows.
        let chores = link.chores.take().len();
        assert!(chores <= 4, "{chores} chores");
    }
}
