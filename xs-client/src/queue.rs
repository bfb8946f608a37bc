//! What has changed since a watcher last looked: a bounded set of paths, shared by the driver,
//! which adds to it, and the watcher, who takes it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use xs_proto::Path;

use crate::Error;

/// What a watcher is told when it looks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Where something changed, each path once. A watch that was just registered reports its own.
    pub paths: BTreeSet<Path>,
    /// More distinct paths than the backlog holds have changed: treat everything at and below the
    /// watched path as changed. `paths` is empty then.
    pub overflowed: bool,
}

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// The watcher will be told of its path.
    New,
    /// It will be told of it anyway.
    Coalesced,
    /// There was no room for one more path.
    Overflowed,
}

#[derive(Debug, Default)]
struct State {
    changes: Changes,
    closed: Option<Error>,
}

/// What the driver and the watcher share.
#[derive(Debug)]
pub(crate) struct Queue {
    state: Mutex<State>,
    pub(crate) notify: Notify,
    backlog: usize,
}

impl Queue {
    pub(crate) fn new(backlog: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), notify: Notify::new(), backlog })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn changed(&self, path: Path) -> Kept {
        let mut state = self.state();
        let changes = &mut state.changes;
        let kept = if changes.overflowed || changes.paths.contains(&path) {
            Kept::Coalesced
        } else if changes.paths.len() == self.backlog {
            *changes = Changes { paths: BTreeSet::new(), overflowed: true };
            Kept::Overflowed
        } else {
            // Detached, for the buffer of its message holds whatever else came with it.
            changes.paths.insert(path.detached());
            Kept::New
        };
        drop(state);
        self.notify.notify_one();
        kept
    }

    pub(crate) fn close(&self, error: Error) {
        self.state().closed = Some(error);
        self.notify.notify_one();
    }

    /// Waits until something has changed since the last call, or for the end.
    ///
    /// Dropping the future loses nothing: what it did not return, the next call does.
    pub(crate) async fn changed_since(&self) -> Result<Changes, Error> {
        loop {
            // A permit that is stored between the check and the wait ends the wait at once.
            if let Some(outcome) = self.take() {
                return outcome;
            }
            self.notify.notified().await;
        }
    }

    /// What has come together, or the end; `None` if there is neither.
    pub(crate) fn take(&self) -> Option<Result<Changes, Error>> {
        let mut state = self.state();
        let changes = std::mem::take(&mut state.changes);
        if changes != Changes::default() {
            return Some(Ok(changes));
        }
        state.closed.clone().map(Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(number: usize) -> Path {
        Path::new(format!("/{number}")).unwrap()
    }

    #[test]
    fn changes_are_merged_by_path() {
        let queue = Queue::new(4);
        assert_eq!(queue.take().map(Result::unwrap), None);
        for number in [1, 2, 1, 1] {
            queue.changed(path(number));
        }
        let changes = queue.take().unwrap().unwrap();
        assert_eq!(changes.paths.into_iter().collect::<Vec<_>>(), [path(1), path(2)]);
        assert!(!changes.overflowed);
    }

    #[test]
    fn beyond_the_backlog_everything_counts_as_changed() {
        let queue = Queue::new(4);
        for number in 0..100 {
            queue.changed(path(number));
        }
        let changes = queue.take().unwrap().unwrap();
        assert_eq!(changes, Changes { paths: BTreeSet::new(), overflowed: true });
        queue.changed(path(1));
        assert!(!queue.take().unwrap().unwrap().overflowed, "looking makes room again");
    }

    #[test]
    fn the_end_comes_after_what_changed_before() {
        let queue = Queue::new(4);
        queue.changed(path(1));
        queue.close(Error::Disconnected { reason: "gone".into() });
        assert!(queue.take().unwrap().is_ok());
        assert!(queue.take().unwrap().is_err());
        assert!(queue.take().unwrap().is_err());
    }
}
