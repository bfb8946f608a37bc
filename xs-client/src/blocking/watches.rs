//! Watches of several paths in one place.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use xs_proto::Path;

use super::link::Time;
use super::{Client, Watch};
use crate::queue::Queue;
use crate::watcher::Watcher;
use crate::{Changes, Error};

/// Watches whose changes come together, for a program that waits for all of them in one place; made by [`Client::watches`].
///
/// # In a loop of one's own
///
/// The client lends its descriptor ([`AsFd`](std::os::fd::AsFd)) to `poll`, `epoll` and the like. When it can be read,
/// [`Self::changed`] without time takes what has come; it is asked again until there is nothing. Any other call of the client
/// may have received changes as well, which make no descriptor readable: ask once after those, and before the first wait.
///
/// ```no_run
/// # fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use std::os::fd::AsFd;
/// use std::time::Duration;
///
/// use rustix::event::{PollFd, PollFlags, poll};
/// use xs_client::blocking::Client;
///
/// let client = Client::connect()?;
/// let mut watches = client.watches();
/// watches.add(&"/local/domain/0/backend/vbd".parse()?)?;
/// loop {
///     while let Some(changes) = watches.changed(Duration::ZERO)? {
///         println!("look again at {:?}", changes.paths);
///     }
///     poll(&mut [PollFd::new(&client.as_fd(), PollFlags::IN)], None)?;
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Watches {
    client: Client,
    queue: Arc<Queue>,
    watches: HashMap<Path, Watch>,
}

impl Client {
    /// Watches that tell of their changes together; none at first.
    pub fn watches(&self) -> Watches {
        Watches { client: self.clone(), queue: Arc::default(), watches: HashMap::new() }
    }
}

impl Watches {
    /// Watches one more path and all below it, which fires once at first. One that is watched already stays so.
    ///
    /// # Errors
    ///
    /// As [`Client::watch`].
    pub fn add(&mut self, path: &Path) -> Result<(), Error> {
        if !self.watches.contains_key(path) {
            let watch = self.client.watch_as(Watcher::listed(path, self.queue.clone()))?;
            self.watches.insert(path.clone(), watch);
        }
        Ok(())
    }

    /// Watches a path no more; whether it was watched. What has changed there before may still be told of.
    pub fn remove(&mut self, path: &Path) -> bool {
        self.watches.remove(path).is_some()
    }

    /// How many paths are watched.
    pub fn len(&self) -> usize {
        self.watches.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.watches.is_empty()
    }

    /// Waits until something has changed since the last call, and takes all of it: where something changed, at or below what is
    /// watched. `None` if nothing has within `timeout`. A timeout of 0 only looks at what has come, one of
    /// [`Duration::MAX`] waits without end.
    ///
    /// Beyond [`crate::Config::watch_backlog`] distinct paths the changes are [`overflowed`](Changes::overflowed): look at
    /// everything then.
    ///
    /// # Errors
    ///
    /// When the connection is gone, after all that had changed before was taken.
    pub fn changed(&mut self, timeout: Duration) -> Result<Option<Changes>, Error> {
        // All paths are listed as they are.
        self.client.link.changes(Time::of(timeout), &self.queue, &Path::root())
    }
}
