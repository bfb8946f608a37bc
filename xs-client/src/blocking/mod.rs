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
//! What it does not do: make a lost connection again ([`crate::Config::reconnect`] means nothing
//! here; the end is an [`Error::Disconnected`] for everybody), and read while nobody waits. A
//! program that has watches and does other things should look at them now and then
//! ([`Watch::changed`]); until then the store keeps the events.

mod link;
mod look;
mod requests;
mod stream;
mod transaction;
mod watch;

use std::io;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::path::Path as FsPath;
use std::sync::Arc;
use std::time::Duration;

use xs_proto::TxId;

use crate::transport::auto;
use crate::{Config, Error, Stats};
use link::Link;
pub use look::Look;
pub use requests::Requests;
use stream::Stream;
pub use transaction::Transaction;
pub use watch::Watch;

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

impl Client {
    /// Connects to the machine's xenstored by whatever way there is, as [`crate::Auto`] finds it: its
    /// socket, or Linux's xenstore device.
    pub fn connect() -> Result<Self, Error> {
        let config = Config::default();
        let places = auto::places();
        let refused = |error| refused(auto::any_of(&places), &error);
        let mut unreachable = auto::Unreachable::default();
        for place in &places {
            match Stream::connect(place, config.deadline) {
                Ok(stream) => return Ok(Self::on(stream, config)),
                Err(error) => unreachable.add(place, &error).map_err(refused)?,
            }
        }
        Err(refused(unreachable.into_error()))
    }

    /// Connects to a store's Unix socket. Fails with [`Error::Connect`].
    pub fn connect_unix(path: impl AsRef<FsPath>, config: Config) -> Result<Self, Error> {
        let path = path.as_ref();
        let stream = Stream::connect(path, config.deadline);
        Ok(Self::on(stream.map_err(|error| refused(path.display().to_string(), &error))?, config))
    }

    /// A connection over a stream socket, such as one end of `UnixStream::pair`. It is made a blocking
    /// one, with a timeout. Fails for what is no socket.
    pub fn over(socket: impl Into<OwnedFd>, config: Config) -> io::Result<Self> {
        Ok(Self::on(Stream::new(socket.into(), config.deadline)?, config))
    }

    fn on(stream: Stream, config: Config) -> Self {
        let deadline = config.deadline;
        let link = Arc::new(Link::new(stream, config));
        Self { requests: Requests { link, deadline, tx: TxId::NONE } }
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

fn refused(at: String, error: &io::Error) -> Error {
    Error::Connect { at, reason: error.to_string().into() }
}
