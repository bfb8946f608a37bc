//! Waiting for a state.
//!
//! ```text
//!             hint                    value decides
//!  Resting ---------> Reading ------------------------> finished
//!     ^                |   ^
//!     |  undecided     |   | hint came during the read: read again
//!     +----------------+---+
//! ```
//!
//! At most one read is under way, whatever number of hints come.

use std::fmt;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use xs_client::{Client, Error, Path, Watch};

use crate::{Goal, Outcome, StateValue};

/// What happens to a wait.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The watch fired, or the connection was restored: something may have changed.
    Hint,
    /// The node was read; `None` if it is not there.
    Value(Option<Vec<u8>>),
    /// The deadline has passed.
    Deadline,
    /// The caller wants no more.
    Cancel,
    /// The store failed.
    Failed(Error),
}

/// What a wait asks for.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Action<T> {
    /// Read the node.
    Read,
    /// Nothing, until the next event.
    Rest,
    /// It is over.
    Finish(Ended<T>),
}

/// How a wait for the value of any node ended.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Ended<T> {
    /// The value was decisive.
    Decided(T),
    /// The deadline passed.
    TimedOut,
    /// The wait was cancelled.
    Aborted,
    /// The store failed.
    Io(Error),
}

/// Looks at a node's value (`None` if the node is not there), and says what the wait ends with if
/// that is decisive.
type Decide<'a, T> = Box<dyn FnMut(Option<&[u8]>) -> Option<T> + Send + 'a>;

/// The wait as a plain value: feed it events, do what it asks.
pub struct Wait<'a, T> {
    decide: Decide<'a, T>,
    reading: bool,
    stale: bool,
}

impl<T> fmt::Debug for Wait<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reading, stale, .. } = self;
        f.debug_struct("Wait").field("reading", reading).field("stale", stale).finish_non_exhaustive()
    }
}

impl<'a, T> Wait<'a, T> {
    /// A wait which has not looked yet. `decide` sees every value that is read.
    pub fn new(decide: impl FnMut(Option<&[u8]>) -> Option<T> + Send + 'a) -> Self {
        Self { decide: Box::new(decide), reading: false, stale: false }
    }

    /// Takes an event. After [`Action::Finish`] it takes no more.
    pub fn on(&mut self, event: Event) -> Action<T> {
        match event {
            Event::Hint if self.reading => {
                self.stale = true;
                Action::Rest
            }
            Event::Hint => self.read(),
            Event::Value(value) => {
                self.reading = false;
                match (self.decide)(value.as_deref()) {
                    Some(decided) => Action::Finish(Ended::Decided(decided)),
                    None if self.stale => self.read(),
                    None => Action::Rest,
                }
            }
            Event::Deadline => Action::Finish(Ended::TimedOut),
            Event::Cancel => Action::Finish(Ended::Aborted),
            Event::Failed(error) => Action::Finish(Ended::Io(error)),
        }
    }

    fn read(&mut self) -> Action<T> {
        (self.reading, self.stale) = (true, false);
        Action::Read
    }
}

/// Waits until the `state` node at `path` decides the goal, for at most `limit`; `Duration::MAX` means
/// no deadline.
///
/// Costs one watch while it lasts, and one read per hint at most. A `cancel` that fires ends it
/// with [`Outcome::Aborted`].
///
/// # Cancel safety
///
/// Dropping the future removes the watch and has no other effect.
pub async fn wait(
    client: &Client,
    path: &Path,
    goal: Goal,
    limit: Duration,
    cancel: &CancellationToken,
) -> Outcome {
    let mut last = None;
    let decide = |value: Option<&[u8]>| {
        last = value.map(StateValue::parse);
        goal.decide(last.as_ref())
    };
    match wait_until(client, path, limit, cancel, decide).await {
        Ended::Decided(outcome) => outcome,
        Ended::TimedOut => Outcome::TimedOut { last },
        Ended::Aborted => Outcome::Aborted,
        Ended::Io(error) => Outcome::Io(error),
    }
}

/// Waits until `decide` says something of the value of the node at `path`, for at most `limit`;
/// `Duration::MAX` means no deadline. For nodes that hold no state: `hotplug-status`, a device
/// model's `state`.
///
/// Costs one watch while it lasts, and one read per hint at most.
///
/// # Cancel safety
///
/// Dropping the future removes the watch and has no other effect.
pub async fn wait_until<T>(
    client: &Client,
    path: &Path,
    limit: Duration,
    cancel: &CancellationToken,
    decide: impl FnMut(Option<&[u8]>) -> Option<T> + Send,
) -> Ended<T> {
    let deadline = deadline(limit);
    tokio::pin!(deadline);
    let mut wait = Wait::new(decide);
    let subscribed = tokio::select! {
        biased;
        () = cancel.cancelled() => return Ended::Aborted,
        watch = subscribe(client, path) => watch,
        () = &mut deadline => return Ended::TimedOut,
    };
    let mut watch = match subscribed {
        Ok(watch) => watch,
        Err(error) => return Ended::Io(error),
    };
    // Subscribed first, read after: what happens in between fires the watch.
    let mut action = wait.on(Event::Hint);
    loop {
        let reading = matches!(action, Action::Read);
        if let Action::Finish(ended) = action {
            return ended;
        }
        let read = async {
            match client.read_opt(path).await {
                Ok(value) => Event::Value(value.map(|bytes| bytes.to_vec())),
                Err(error) => Event::Failed(error),
            }
        };
        // A read is not interrupted by hints, so none is tracked while one is under way: the
        // watch keeps them until the next turn.
        let event = tokio::select! {
            biased;
            () = cancel.cancelled() => Event::Cancel,
            event = read, if reading => event,
            changed = watch.changed(), if !reading => match changed {
                Ok(_) => Event::Hint,
                Err(error) => Event::Failed(error),
            },
            () = &mut deadline => Event::Deadline,
        };
        action = wait.on(event);
    }
}

/// A watch that has fired, as it does once at first: what is read next is read once.
async fn subscribe(client: &Client, path: &Path) -> Result<Watch, Error> {
    let mut watch = client.watch(path).await?;
    watch.changed().await?;
    Ok(watch)
}

/// From here on a limit means no deadline. Tokio's own arithmetic has room for it.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// Resolves when `limit` has passed since this was called; never if that is 100 years or more, such as
/// `Duration::MAX`.
pub fn deadline(limit: Duration) -> impl Future<Output = ()> {
    let deadline = (limit < FOR_EVER).then(|| Instant::now() + limit);
    async move {
        match deadline {
            Some(deadline) => sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Absent, XenbusState};

    fn wait_for(goal: Goal) -> Wait<'static, Outcome> {
        Wait::new(move |value| goal.decide(value.map(StateValue::parse).as_ref()))
    }

    fn finished(action: Action<Outcome>) -> Option<Outcome> {
        match action {
            Action::Finish(Ended::Decided(outcome)) => Some(outcome),
            _ => None,
        }
    }

    fn value(text: &str) -> Event {
        Event::Value(Some(text.as_bytes().to_vec()))
    }

    #[test]
    fn hints_during_a_read_cost_one_more_read() {
        let mut wait = wait_for(Goal::CLOSED);
        assert!(matches!(wait.on(Event::Hint), Action::Read));
        for _ in 0..1000 {
            assert!(matches!(wait.on(Event::Hint), Action::Rest));
        }
        assert!(matches!(wait.on(value("4")), Action::Read));
        assert!(matches!(wait.on(value("5")), Action::Rest));
        assert!(matches!(wait.on(Event::Hint), Action::Read));
        assert!(matches!(finished(wait.on(value("6"))), Some(Outcome::Reached(XenbusState::Closed))));
    }

    #[test]
    fn a_backend_that_is_ahead_or_failed_is_decided_at_once() {
        let first = |text| {
            let mut wait = wait_for(Goal::BACKEND_READY);
            wait.on(Event::Hint);
            wait.on(value(text))
        };
        for text in ["2", "3", "4"] {
            assert!(matches!(finished(first(text)), Some(Outcome::Reached(_))), "{text}");
        }
        for text in ["5", "6"] {
            assert!(matches!(finished(first(text)), Some(Outcome::Failed(_))), "{text}");
        }
        for text in ["0", "1", "7", "9", "", "junk"] {
            assert!(matches!(first(text), Action::Rest), "{text}");
        }
    }

    #[test]
    fn absence_means_what_the_goal_says() {
        let absent = |absent| {
            let mut wait = wait_for(Goal { absent, ..Goal::CLOSED });
            wait.on(Event::Hint);
            wait.on(Event::Value(None))
        };
        assert!(matches!(finished(absent(Absent::Done)), Some(Outcome::Gone)));
        assert!(matches!(finished(absent(Absent::Fail)), Some(Outcome::Vanished)));
        assert!(matches!(absent(Absent::Ignore), Action::Rest));
    }
}
