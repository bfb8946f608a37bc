//! One who watches a path: what it wants to hear of, and where that goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};

use xs_proto::Path;

use crate::Error;
use crate::queue::{Changes, Kept, Queue};

/// What the connection knows of a [`crate::Watch`], and shares with it.
#[derive(Debug)]
pub(crate) struct Watcher {
    pub(crate) path: Path,
    /// How many levels below the path it wants to hear of.
    depth: u32,
    /// The token of the watch that the server has for it. There may be ten thousand watchers, so it
    /// is here and not in a table of the connection's, which alone looks at it.
    token: AtomicU32,
    told: Told,
}

/// As many levels as there are.
const ALL: u32 = u32::MAX;

#[derive(Debug)]
enum Told {
    Alone(Queue),
    /// Together with others, of whom it does not matter which.
    Together(Arc<Queue>),
    /// Together with others, each change by its path.
    Listed(Arc<Queue>),
}

impl Watcher {
    /// One that is told of changes so many levels below its path, or of all.
    pub(crate) fn new(path: &Path, depth: Option<u32>) -> Arc<Self> {
        Self::telling(path, depth.unwrap_or(ALL), Told::Alone(Queue::default()))
    }

    pub(crate) fn together(path: &Path, queue: Arc<Queue>) -> Arc<Self> {
        Self::telling(path, ALL, Told::Together(queue))
    }

    pub(crate) fn listed(path: &Path, queue: Arc<Queue>) -> Arc<Self> {
        Self::telling(path, ALL, Told::Listed(queue))
    }

    fn telling(path: &Path, depth: u32, told: Told) -> Arc<Self> {
        Arc::new(Self { path: path.detached(), depth, token: AtomicU32::default(), told })
    }

    /// All levels without.
    pub(crate) fn depth(&self) -> Option<u32> {
        Some(self.depth).filter(|depth| *depth != ALL)
    }

    /// 0 at first.
    pub(crate) fn token(&self) -> u32 {
        self.token.load(Ordering::Relaxed)
    }

    pub(crate) fn set_token(&self, token: u32) {
        self.token.store(token, Ordering::Relaxed);
    }

    /// Where it is told.
    pub(crate) fn queue(&self) -> &Queue {
        match &self.told {
            Told::Alone(queue) => queue,
            Told::Together(queue) | Told::Listed(queue) => queue,
        }
    }

    /// Whether an event of a path at or below its own is deeper than it wants to know.
    fn ignores(&self, below: &Path) -> bool {
        let Some(depth) = self.depth() else { return false };
        let levels = |path: &Path| path.names().count();
        levels(below).saturating_sub(levels(&self.path)) > depth as usize
    }

    /// Takes a change at or below its path; `None` if that is not for it.
    pub(crate) fn changed(&self, path: &Path, backlog: usize) -> Option<Kept> {
        if self.ignores(path) {
            return None;
        }
        let below = match &self.told {
            Told::Alone(_) => Some(path).filter(|path| **path != self.path),
            Told::Together(_) => None,
            Told::Listed(_) => Some(path),
        };
        Some(self.queue().changed(below, backlog))
    }

    pub(crate) fn close(&self, error: Error) {
        self.queue().close(error);
    }

    pub(crate) fn poll(&self, context: &Context<'_>) -> Poll<Result<Changes, Error>> {
        self.queue().poll(&self.path, context)
    }
}
