//! The second face of the client: without a runtime, for small tools.
//!
//! The same operations as those of [`crate::Client`], over the same core, as calls that block their
//! thread. A [`Client`] is shared by any number of threads; one of those that wait reads for all,
//! and no thread of its own is started. A request is two system calls, one that sends and one that
//! receives.
//!
//! ```no_run
//! # fn example() -> Result<(), xs_client::Error> {
//! use xs_client::blocking::Client;
//!
//! let client = Client::connect()?;
//! let name = client.read(&"/local/domain/0/name".parse()?)?;
//! println!("{}", String::from_utf8_lossy(&name));
//! # Ok(())
//! # }
//! ```
//!
//! What it does not do:
//!
//! - Make a lost connection again: [`crate::Config::reconnect`] means nothing here. The end of the
//!   connection is an [`Error::Disconnected`] for everybody.
//! - Read while nobody waits. A program that has watches and does other things should look at them
//!   now and then ([`Watch::changed`]), or wait for its descriptor in a loop of its own ([`Watches`]); until then the store keeps
//!   the events.
//! - Speak to Linux's xenstore device, or over a ring: sockets only, hence to a store that is on the
//!   same machine and lets the program in.

mod calls;
mod link;
mod look;
mod requests;
mod stream;
mod transaction;
mod watch;
mod watches;

use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path as FsPath;
use std::sync::Arc;
use std::time::Duration;

use xs_proto::TxId;

use crate::{Config, Error, Stats, default_socket};
use link::Link;
pub use look::Look;
pub use requests::Requests;
use stream::Stream;
pub use transaction::Transaction;
pub use watch::Watch;
pub use watches::Watches;

/// A connection to a store, shared by all clones.
///
/// The node operations are those of [`Requests`], to which it dereferences. The connection ends
/// when its last clone and its last watch are dropped.
#[derive(Clone, Debug)]
pub struct Client {
    requests: Requests,
}

impl Deref for Client {
    type Target = Requests;

    fn deref(&self) -> &Requests {
        &self.requests
    }
}

/// The socket, for `poll` and its like: when it can be read, [`Watches::changed`] and [`Watch::changed`] find what has come.
/// Nobody else is to read from it or write to it.
impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }
}

impl Client {
    /// Connects to the machine's xenstored: [`crate::default_socket`].
    pub fn connect() -> Result<Self, Error> {
        Self::connect_unix(default_socket(), Config::default())
    }

    /// Connects to a store's Unix socket. Fails with [`Error::Connect`].
    pub fn connect_unix(path: impl AsRef<FsPath>, config: Config) -> Result<Self, Error> {
        let path = path.as_ref();
        let stream = Stream::connect(path, config.deadline).map_err(|error| Error::Connect {
            at: path.display().to_string(),
            reason: error.to_string().into(),
        })?;
        Ok(Self::on(stream, config))
    }

    /// A connection over a stream socket, such as one end of `UnixStream::pair`. It is made a blocking
    /// one, with a timeout. Fails for what is no socket.
    pub fn over(socket: impl Into<OwnedFd>, config: Config) -> io::Result<Self> {
        Ok(Self::on(Stream::new(socket.into(), config.deadline)?, config))
    }

    fn on(stream: Stream, config: Config) -> Self {
        let deadline = config.deadline;
        let link = Arc::new(Link::new(stream, config));
        Self { requests: Requests { link, deadline, tx: TxId::NONE, attempt: None } }
    }

    /// The same connection, whose calls may take so long.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { requests: self.requests.with_deadline(deadline) }
    }

    /// What this connection has done so far.
    pub fn stats(&self) -> Stats {
        self.link.stats()
    }
}
