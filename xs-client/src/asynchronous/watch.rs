//! A watcher's end of a watch.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::Stream;
use xs_proto::Path;

use super::handle::{Chore, Handle};
use crate::Error;
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

    /// The same as a stream, to be joined with others.
    pub fn into_stream(self) -> WatchStream {
        WatchStream(Some(self))
    }
}

/// What changes below a watched path, as a stream; made by [`Watch::into_stream`]. It ends behind an error. Dropping it
/// removes the watch.
///
/// # Examples
///
/// Several watches at once, each with a name:
///
/// ```
/// use futures_util::{StreamExt, TryStreamExt, stream};
/// use xs_client::{Client, Error, Path};
///
/// async fn watch_all(client: &Client, paths: &[Path]) -> Result<(), Error> {
///     let mut watches = stream::SelectAll::new();
///     for path in paths {
///         let watch = client.watch(path).await?.into_stream();
///         watches.push(watch.map_ok(move |changes| (path, changes)));
///     }
///     while let Some((path, changes)) = watches.try_next().await? {
///         println!("{path}: {changes:?}");
///     }
///     Ok(())
/// }
/// ```
#[derive(Debug)]
#[must_use = "a dropped watch is removed"]
pub struct WatchStream(Option<Watch>);

impl Stream for WatchStream {
    type Item = Result<Changes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(watch) = &self.0 else { return Poll::Ready(None) };
        let changes = ready!(watch.watcher.poll(context));
        if changes.is_err() {
            self.0 = None;
        }
        Poll::Ready(Some(changes))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.is_known {
            self.handle.chore(Chore::Unwatch(self.watcher.clone()));
        }
    }
}
