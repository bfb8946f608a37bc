//! What becomes of a connection over time.

use tokio::sync::watch;

use crate::Error;

/// The state of a connection, as [`crate::Client::lifecycle`] tells it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Lifecycle {
    /// The first connection is there.
    Connected,
    /// It is lost, for this reason; another one is being made. Calls under way have failed, and
    /// transactions are gone. New calls wait.
    Lost(Error),
    /// There is another connection; so many were lost until now. The store has answered for all that
    /// was watched: it is watched again, and each watch fires, or it is refused, and the watch fails.
    /// One that was lost before that is not told of, but for another [`Lifecycle::Lost`].
    ///
    /// Where nothing is watched, nothing is known of the store but that it could be connected to.
    Restored(u64),
    /// It is gone for good.
    Ended(Error),
}

/// Tells how a connection fares; made by [`crate::Client::lifecycle`].
///
/// It tells of the present state, so a loss that was mended before anybody looked shows as
/// [`Lifecycle::Restored`] with a higher number.
#[derive(Clone, Debug)]
pub struct Lifecycles(pub(crate) watch::Receiver<Lifecycle>);

impl Lifecycles {
    /// The state now.
    pub fn now(&mut self) -> Lifecycle {
        self.0.borrow_and_update().clone()
    }

    /// Waits for a state that was not seen yet; `None` after [`Lifecycle::Ended`] was. Dropping the
    /// future loses nothing.
    pub async fn next(&mut self) -> Option<Lifecycle> {
        let seen = !self.0.has_changed().unwrap_or(false);
        if seen && matches!(*self.0.borrow(), Lifecycle::Ended(_)) {
            return None;
        }
        self.0.changed().await.ok()?;
        Some(self.now())
    }
}
