//! What has changed since a watcher last looked: a bounded set of paths, shared by the
//! connection, which adds to it, and the watcher, who takes it.
//!
//! There may be ten thousand watchers, most of them of a single node. So the change of the
//! watched path itself is a flag, and everything else is allocated when it happens.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

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
    /// The watched path itself has changed.
    own: bool,
    waker: Option<Waker>,
    more: Option<Box<More>>,
}

#[derive(Debug, Default)]
struct More {
    changes: Changes,
    closed: Option<Error>,
}

impl State {
    fn more(&mut self) -> &mut More {
        self.more.get_or_insert_default()
    }

    fn add(&mut self, below: Option<&Path>, backlog: usize) -> Kept {
        if self.more.as_ref().is_some_and(|more| more.changes.overflowed) {
            return Kept::Coalesced;
        }
        let Some(path) = below else {
            let known = std::mem::replace(&mut self.own, true);
            return if known { Kept::Coalesced } else { Kept::New };
        };
        let changes = &mut self.more().changes;
        if changes.paths.contains(path) {
            return Kept::Coalesced;
        }
        if changes.paths.len() >= backlog {
            *changes = Changes { paths: BTreeSet::new(), overflowed: true };
            self.own = false;
            return Kept::Overflowed;
        }
        // Detached, for the buffer of its message holds whatever else came with it.
        changes.paths.insert(path.detached());
        Kept::New
    }

    fn take(&mut self, watched: &Path) -> Option<Result<Changes, Error>> {
        let mut changes =
            self.more.as_mut().map(|more| std::mem::take(&mut more.changes)).unwrap_or_default();
        if std::mem::take(&mut self.own) {
            changes.paths.insert(watched.detached());
        }
        if changes != Changes::default() {
            return Some(Ok(changes));
        }
        let closed = self.more.as_ref().and_then(|more| more.closed.clone());
        if closed.is_none() {
            self.more = None;
        }
        closed.map(Err)
    }
}

/// What the connection and the one who waits share.
#[derive(Debug, Default)]
pub(crate) struct Queue(Mutex<State>);

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        let outcome = change(&mut state);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        outcome
    }

    /// Adds a change of the watched path, or of one `below` it.
    pub(crate) fn changed(&self, below: Option<&Path>, backlog: usize) -> Kept {
        self.change(|state| state.add(below, backlog))
    }

    /// There will be no more changes, for this reason.
    pub(crate) fn close(&self, error: Error) {
        self.change(|state| state.more().closed = Some(error));
    }

    /// Takes what has come together, or the end; `None` if there is neither.
    pub(crate) fn take(&self, watched: &Path) -> Option<Result<Changes, Error>> {
        self.state().take(watched)
    }

    /// The same, for one who waits. There may be only one.
    pub(crate) fn poll(&self, watched: &Path, context: &Context<'_>) -> Poll<Result<Changes, Error>> {
        let mut state = self.state();
        if let Some(outcome) = state.take(watched) {
            return Poll::Ready(outcome);
        }
        if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            state.waker = Some(context.waker().clone());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(number: usize) -> Path {
        Path::new(format!("/{number}")).unwrap()
    }

    fn take(queue: &Queue) -> Option<Changes> {
        queue.take(&Path::root()).map(Result::unwrap)
    }

    #[test]
    fn changes_are_merged_by_path() {
        let queue = Queue::default();
        assert_eq!(take(&queue), None);
        for number in [1, 2, 1, 1] {
            queue.changed(Some(&path(number)), 4);
        }
        assert_eq!(queue.changed(None, 4), Kept::New);
        assert_eq!(queue.changed(None, 4), Kept::Coalesced);
        let changes = take(&queue).unwrap();
        assert_eq!(changes.paths.into_iter().collect::<Vec<_>>(), [Path::root(), path(1), path(2)]);
        assert!(!changes.overflowed);
        assert_eq!(take(&queue), None);
    }

    #[test]
    fn beyond_the_backlog_everything_counts_as_changed() {
        let queue = Queue::default();
        queue.changed(None, 4);
        let kept: Vec<Kept> = (0..6).map(|number| queue.changed(Some(&path(number)), 4)).collect();
        assert_eq!(kept[3..], [Kept::New, Kept::Overflowed, Kept::Coalesced]);
        assert_eq!(queue.changed(None, 4), Kept::Coalesced);
        assert_eq!(take(&queue).unwrap(), Changes { paths: BTreeSet::new(), overflowed: true });
        queue.changed(Some(&path(1)), 4);
        assert!(!take(&queue).unwrap().overflowed, "looking makes room again");
    }

    #[test]
    fn the_end_comes_after_what_changed_before() {
        let queue = Queue::default();
        queue.changed(Some(&path(1)), 4);
        queue.close(Error::Disconnected { reason: "gone".into() });
        assert!(queue.take(&Path::root()).unwrap().is_ok());
        assert!(queue.take(&Path::root()).unwrap().is_err());
        assert!(queue.take(&Path::root()).unwrap().is_err());
    }
}
