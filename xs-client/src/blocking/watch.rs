//! Watches.

use std::sync::Arc;
use std::time::Duration;

use xs_proto::{Op, Path};

use super::Client;
use super::link::{Link, Time};
use crate::watcher::Watcher;
use crate::{Changes, Error};

/// A watch on a path and all below it; made by [`Client::watch`].
///
/// It fires once right after it was made; also when one watch on the server takes the place of many.
/// Dropping it removes it, without waiting for the store;
/// the last one of a path removes the watch on the server. Of many that are dropped together, some
/// are removed there only while a thread waits for something else.
#[derive(Debug)]
#[must_use = "a dropped watch is removed"]
pub struct Watch {
    watcher: Arc<Watcher>,
    link: Arc<Link>,
}

impl Watch {
    /// What is watched.
    pub fn path(&self) -> &Path {
        &self.watcher.path
    }

    /// Waits until something has changed since the last call, and takes all of it; `None` if
    /// nothing has within `timeout`. A timeout of 0 only looks at what has come, one of
    /// [`Duration::MAX`] waits without end.
    ///
    /// Fails when the connection is gone, after all that had changed before was taken.
    pub fn changed(&mut self, timeout: Duration) -> Result<Option<Changes>, Error> {
        self.link.changes(Time::of(timeout), self.watcher.queue(), self.path())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.link.unwatch(&self.watcher);
    }
}

impl Client {
    /// Watches a path and all below it.
    ///
    /// The watch is registered when this returns, and fires once at first. Several watches of a
    /// path cost the server one; hundreds with a common ancestor may cost it one as well. Fails if
    /// the store refuses (a quota, a malformed path).
    ///
    /// Nothing is read while no thread waits, so the store keeps the events of a client that
    /// neither looks nor calls.
    pub fn watch(&self, path: &Path) -> Result<Watch, Error> {
        self.watch_as(Watcher::new(path, None))
    }

    /// Watches a path and so many levels below it: with 0, the node alone. See
    /// [`crate::Client::watch_depth`].
    pub fn watch_depth(&self, path: &Path, depth: u32) -> Result<Watch, Error> {
        self.watch_as(Watcher::new(path, Some(depth)))
    }

    pub(super) fn watch_as(&self, watcher: Arc<Watcher>) -> Result<Watch, Error> {
        // Dropped, it takes back what the store may yet do.
        let watch = Watch { watcher, link: self.link.clone() };
        match self.link.watch(&watch.watcher, Time::of(self.deadline))? {
            Some(answers) => answers.into_iter().collect::<Result<Vec<_>, _>>().map(|_| watch),
            None => Err(self.timeout(Op::WATCH, Some(watch.path()))),
        }
    }
}
