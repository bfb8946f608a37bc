//! Waiting for what the store says: a closure looks, and looks again when something that it has
//! read may have changed.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout_at;
use xs_proto::Path;

use super::requests::later;
use crate::queue::Queue;
use crate::watcher::Watcher;
use crate::{Client, Error, Watch};

/// What a closure of [`Client::wait_for`] reads with.
///
/// Every node that is read is watched first, so that no change to it is missed. Clones read for
/// the same wait.
#[derive(Clone, Debug)]
pub struct Look {
    client: Client,
    watched: Arc<Watched>,
}

/// The nodes that were read, and the watches on them.
#[derive(Debug)]
struct Watched {
    /// Each with whether the last look has read it.
    watches: Mutex<HashMap<Path, (Watch, bool)>>,
    /// What all of these watches tell.
    queue: Arc<Queue>,
}

impl Watched {
    fn watches(&self) -> MutexGuard<'_, HashMap<Path, (Watch, bool)>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Look {
    /// The value of a node, or `None` if there is no such node.
    pub async fn read(&self, path: &Path) -> Result<Option<Bytes>, Error> {
        self.watch(path).await?;
        self.client.read_opt(path).await
    }

    /// The names of a node's children, empty if there is no such node. It is looked at again
    /// whenever something changes anywhere below the node.
    pub async fn directory(&self, path: &Path) -> Result<Vec<String>, Error> {
        self.watch(path).await?;
        self.client.directory_or_empty(path).await
    }

    async fn watch(&self, path: &Path) -> Result<(), Error> {
        if let Some((_, read)) = self.watched.watches().get_mut(path) {
            *read = true;
            return Ok(());
        }
        let watch = self.client.watch_as(Watcher::together(path, self.watched.queue.clone())).await?;
        self.watched.watches().insert(path.clone(), (watch, true));
        Ok(())
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
    /// Fails with [`Error::Unsatisfied`] when `within` has passed. Dropping the future removes the
    /// watches.
    ///
    /// ```no_run
    /// # async fn example(client: xs_client::Client) -> Result<(), xs_client::Error> {
    /// use std::time::Duration;
    ///
    /// let state = &"/local/domain/1/device/vif/0/state".parse()?;
    /// let connected = |look: xs_client::Look| async move {
    ///     let value = look.read(state).await?;
    ///     Ok::<_, xs_client::Error>(value.filter(|value| &value[..] == b"4"))
    /// };
    /// client.wait_for(Duration::from_secs(10), connected).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn wait_for<T, E: From<Error>, F: Future<Output = Result<Option<T>, E>>>(
        &self,
        within: Duration,
        mut look: impl FnMut(Look) -> F,
    ) -> Result<T, E> {
        let until = later(within);
        let watched = Arc::new(Watched { watches: Mutex::default(), queue: Arc::default() });
        // It does not matter what has changed.
        let root = Path::root();
        let looking = async {
            loop {
                watched.watches().values_mut().for_each(|(_, read)| *read = false);
                let view = Look { client: self.clone(), watched: watched.clone() };
                if let Some(satisfied) = look(view).await? {
                    return Ok(satisfied);
                }
                watched.watches().retain(|_, (_, read)| *read);
                poll_fn(|context| watched.queue.poll(&root, context)).await?;
            }
        };
        match timeout_at(until, looking).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let mut paths: Vec<Path> = watched.watches().keys().cloned().collect();
                paths.sort_unstable();
                Err(Error::Unsatisfied { paths, after: within }.into())
            }
        }
    }
}
