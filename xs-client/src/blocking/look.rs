//! Waiting for what the store says: a closure looks, and looks again when something that it has
//! read may have changed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use xs_proto::Path;

use super::link::Time;
use super::{Client, Watch};
use crate::Error;
use crate::queue::Queue;
use crate::watcher::Watcher;

/// What a closure of [`Client::wait_for`] reads with.
///
/// Every node that is read is watched first, so that no change to it is missed.
#[derive(Debug)]
pub struct Look {
    client: Client,
    within: Duration,
    time: Time,
    /// The nodes that were read, each with its watch and whether the last look has read it.
    watches: HashMap<Path, (Watch, bool)>,
    /// What all of these watches tell.
    queue: Arc<Queue>,
}

impl Look {
    /// The value of a node, or `None` if there is no such node.
    pub fn read(&mut self, path: &Path) -> Result<Option<Bytes>, Error> {
        self.look(path, |client| client.read_opt(path))
    }

    /// The names of a node's children, empty if there is no such node. It is looked at again
    /// whenever something changes anywhere below the node.
    pub fn directory(&mut self, path: &Path) -> Result<Vec<String>, Error> {
        self.look(path, |client| client.directory_or_empty(path))
    }

    /// Watches a node and then looks at it, as long as there is time.
    fn look<T>(&mut self, path: &Path, at: impl FnOnce(&Client) -> Result<T, Error>) -> Result<T, Error> {
        let left = self.time.left().unwrap_or_default();
        let client = self.client.with_deadline(left.min(self.client.deadline));
        let looked = self.watch(&client, path).and_then(|()| at(&client));
        looked.map_err(|error| match error {
            Error::Timeout { .. } if self.time.left().is_none() => self.unsatisfied(),
            error => error,
        })
    }

    fn watch(&mut self, client: &Client, path: &Path) -> Result<(), Error> {
        if let Some((_, read)) = self.watches.get_mut(path) {
            *read = true;
            return Ok(());
        }
        let watch = client.watch_as(Watcher::together(path, self.queue.clone()))?;
        self.watches.insert(path.clone(), (watch, true));
        Ok(())
    }

    fn unsatisfied(&self) -> Error {
        let mut paths: Vec<Path> = self.watches.keys().cloned().collect();
        paths.sort_unstable();
        Error::Unsatisfied { paths, after: self.within }
    }
}

impl Client {
    /// Waits until the store says what a closure wants it to say.
    ///
    /// The closure reads with the [`Look`] it gets and returns `Some` when it is satisfied. As long
    /// as it returns `None` it is called again after every change to something that it has read
    /// the last time; of what it reads no more, the watch is removed. An error of the closure is
    /// the outcome.
    ///
    /// Fails with [`Error::Unsatisfied`] when `within` has passed.
    ///
    /// ```no_run
    /// # fn example(client: xs_client::blocking::Client) -> Result<(), xs_client::Error> {
    /// use std::time::Duration;
    ///
    /// let state = "/local/domain/1/device/vif/0/state".parse()?;
    /// client.wait_for(Duration::from_secs(10), |look| {
    ///     Ok::<_, xs_client::Error>(look.read(&state)?.filter(|value| &value[..] == b"4"))
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn wait_for<T, E: From<Error>>(
        &self,
        within: Duration,
        mut look: impl FnMut(&mut Look) -> Result<Option<T>, E>,
    ) -> Result<T, E> {
        let time = Time::of(within);
        let queue = Arc::<Queue>::default();
        let mut view =
            Look { client: self.clone(), within, time, watches: HashMap::new(), queue: queue.clone() };
        // It does not matter what has changed.
        let root = Path::root();
        loop {
            view.watches.values_mut().for_each(|(_, read)| *read = false);
            if let Some(satisfied) = look(&mut view)? {
                return Ok(satisfied);
            }
            view.watches.retain(|_, (_, read)| *read);
            let left = Time::of(time.left().unwrap_or_default());
            if self.link.changes(left, &queue, &root)?.is_none() {
                return Err(view.unsatisfied().into());
            }
        }
    }
}
