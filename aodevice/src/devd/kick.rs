//! How who works on a device is told to look at it again.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// Tells a worker that its device is to be looked at again.
#[derive(Debug, Default)]
pub(super) struct Kick {
    dirty: AtomicBool,
    notify: Notify,
}

impl Kick {
    pub(super) fn kick(&self) {
        self.dirty.store(true, Ordering::Release);
        self.notify.notify_one();
    }

    /// Whether nobody has looked since.
    pub(super) fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::Acquire)
    }

    /// Resolves when it is to be looked again.
    pub(super) async fn kicked(&self) {
        self.notify.notified().await;
    }

    pub(super) fn looks(&self) {
        self.dirty.store(false, Ordering::Release);
    }
}
