//! A watcher's end of a watch.

use std::future::poll_fn;
use std::sync::Arc;

use xs_proto::Path;

use crate::Error;
use crate::handle::{Chore, Handle};
use crate::queue::Changes;
use crate::watcher::Watcher;

/// A watch on a path and all below it; made by [`crate::Client::watch`].
///
/// It fires once right after it was made, and once whenever the connection was lost and made
/// again; also when one watch on the server takes the place of many. Dropping it removes it; the
/// last one of a path removes the watch on the server.
#[derive(Debug)]
#[must_use = "a dropped watch is removed"]
pub struct Watch {
    pub(crate) watcher: Arc<Watcher>,
    pub(crate) handle: Handle,
    /// The driver knows of it, or will: then there is something to remove.
    pub(crate) is_known: bool,
}

impl Watch {
    /// What is watched.
    pub fn path(&self) -> &Path {
        &self.watcher.path
    }

    /// Waits until something has changed since the last call, and takes all of it.
    ///
    /// Fails when the connection is gone for good, or when the store refuses to watch the path
    /// again on another one, after all that had changed before was taken. Dropping the future
    /// loses nothing: what it did not return, the next call does.
    pub async fn changed(&mut self) -> Result<Changes, Error> {
        poll_fn(|context| self.watcher.poll(context)).await
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.is_known {
            self.handle.chore(Chore::Unwatch(self.watcher.clone()));
        }
    }
}
