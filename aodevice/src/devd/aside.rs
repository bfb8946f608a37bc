//! Devices whose scripts wait for their turn.
//!
//! The runner lets so many runs of one script go on at one time, and one of a device. Who waits for that does nothing, and is
//! not to keep others from being worked on: one script that hangs, of many devices, would hold up all guests.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;

/// How many wait.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    count: AtomicUsize,
    more: Notify,
}

impl Waiting {
    /// One more does, until its turn has come or it is dropped.
    pub(super) fn aside(&self) -> Aside<'_> {
        self.count.fetch_add(1, Ordering::AcqRel);
        self.more.notify_one();
        Aside { waiting: self, is_back: AtomicBool::new(false) }
    }

    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Resolves when more wait than before.
    pub(super) async fn more(&self) {
        self.more.notified().await;
    }
}

/// One who waits.
#[derive(Debug)]
pub(super) struct Aside<'a> {
    waiting: &'a Waiting,
    is_back: AtomicBool,
}

impl Aside<'_> {
    /// Its turn has come.
    pub(super) fn back(&self) {
        if !self.is_back.swap(true, Ordering::AcqRel) {
            self.waiting.count.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Drop for Aside<'_> {
    fn drop(&mut self) {
        self.back();
    }
}
