//! One who watches a path: what it wants to hear of, and where that goes.

use std::sync::Arc;
use std::task::{Context, Poll};

use xs_proto::Path;

use crate::Error;
use crate::queue::{Changes, Kept, Queue};

/// What the connection knows of a [`crate::Watch`], and shares with it.
#[derive(Debug)]
pub(crate) struct Watcher {
    pub(crate) path: Path,
    /// How many levels below the path it wants to hear of; all of them without.
    pub(crate) depth: Option<u32>,
    told: Told,
}

#[derive(Debug)]
enum Told {
    Alone(Queue),
    /// Together with others, of whom it does not matter which.
    Together(Arc<Queue>),
}

impl Watcher {
    pub(crate) fn new(path: &Path, depth: Option<u32>) -> Arc<Self> {
        Arc::new(Self { path: path.detached(), depth, told: Told::Alone(Queue::default()) })
    }

    pub(crate) fn together(path: &Path, queue: Arc<Queue>) -> Arc<Self> {
        Arc::new(Self { path: path.detached(), depth: None, told: Told::Together(queue) })
    }

    fn queue(&self) -> &Queue {
        match &self.told {
            Told::Alone(queue) => queue,
            Told::Together(queue) => queue,
        }
    }

    /// Whether an event of a path at or below its own is deeper than it wants to know.
    fn ignores(&self, below: &Path) -> bool {
        let Some(depth) = self.depth else { return false };
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
        };
        Some(self.queue().changed(below, backlog))
    }

    pub(crate) fn close(&self, error: Error) {
        self.queue().close(error);
    }

    pub(crate) fn poll(&self, context: &Context<'_>) -> Poll<Result<Changes, Error>> {
        self.queue().poll(&self.path, context)
    }

    pub(crate) fn take(&self) -> Option<Result<Changes, Error>> {
        self.queue().take(&self.path)
    }
}
