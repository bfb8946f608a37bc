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

use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use xs_client::{Client, Error, Path};

use crate::{Absent, Goal, Outcome, StateValue};

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
pub enum Action {
    /// Read the node.
    Read,
    /// Nothing, until the next event.
    Rest,
    /// It is over.
    Finish(Outcome),
}

/// The wait as a plain value: feed it events, do what it asks.
#[derive(Clone, Debug)]
pub struct Wait {
    goal: Goal,
    reading: bool,
    stale: bool,
    last: Option<StateValue>,
}

impl Wait {
    /// A wait for this goal, which has not looked yet.
    pub fn new(goal: Goal) -> Self {
        Self { goal, reading: false, stale: false, last: None }
    }

    /// What the node held at the last look.
    pub fn last(&self) -> Option<&StateValue> {
        self.last.as_ref()
    }

    /// Takes an event. After [`Action::Finish`] it takes no more.
    pub fn on(&mut self, event: Event) -> Action {
        match event {
            Event::Hint if self.reading => {
                self.stale = true;
                Action::Rest
            }
            Event::Hint => self.read(),
            Event::Value(value) => {
                self.reading = false;
                self.last = value.as_deref().map(StateValue::parse);
                match self.decide() {
                    Some(outcome) => Action::Finish(outcome),
                    None if self.stale => self.read(),
                    None => Action::Rest,
                }
            }
            Event::Deadline => Action::Finish(Outcome::TimedOut { last: self.last.clone() }),
            Event::Cancel => Action::Finish(Outcome::Aborted),
            Event::Failed(error) => Action::Finish(Outcome::Io(error)),
        }
    }

    fn read(&mut self) -> Action {
        (self.reading, self.stale) = (true, false);
        Action::Read
    }

    fn decide(&self) -> Option<Outcome> {
        let Some(value) = &self.last else {
            return (self.goal.absent != Absent::Ignore).then_some(Outcome::Gone);
        };
        let state = value.state()?;
        if self.goal.done.contains(state) {
            Some(Outcome::Reached(state))
        } else if self.goal.fail.contains(state) {
            Some(Outcome::Failed(state))
        } else {
            None
        }
    }
}

/// Waits until the node at `path` decides the goal, for at most `limit`; `Duration::MAX` is no
/// limit.
///
/// Costs one watch while it lasts, and one read per hint at most. A `cancel` that fires ends it
/// with [`Outcome::Aborted`]; dropping the future removes the watch and has no other effect.
pub async fn wait(
    client: &Client,
    path: &Path,
    goal: Goal,
    limit: Duration,
    cancel: &CancellationToken,
) -> Outcome {
    let deadline = deadline(limit);
    let mut wait = Wait::new(goal);
    let subscribed = tokio::select! {
        biased;
        () = cancel.cancelled() => return Outcome::Aborted,
        watch = client.watch(path) => watch,
        () = reached(deadline) => return Outcome::TimedOut { last: None },
    };
    let mut watch = match subscribed {
        Ok(watch) => watch,
        Err(error) => return Outcome::Io(error),
    };
    // Subscribed first, read after: what happens in between fires the watch.
    let mut action = wait.on(Event::Hint);
    loop {
        let reading = matches!(action, Action::Read);
        if let Action::Finish(outcome) = action {
            return outcome;
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
            () = reached(deadline) => Event::Deadline,
        };
        action = wait.on(event);
    }
}

/// The time at which a wait of at most `limit` ends; `None` if the wait has no deadline.
///
/// A century or more counts as no limit, because Tokio's timers add to the deadline and overflow
/// close to the last `Instant`.
fn deadline(limit: Duration) -> Option<Instant> {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    if limit < CENTURY { Instant::now().checked_add(limit) } else { None }
}

async fn reached(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::XenbusState;

    fn value(text: &str) -> Event {
        Event::Value(Some(text.as_bytes().to_vec()))
    }

    #[test]
    fn hints_during_a_read_cost_one_more_read() {
        let mut wait = Wait::new(Goal::CLOSED);
        assert!(matches!(wait.on(Event::Hint), Action::Read));
        for _ in 0..1000 {
            assert!(matches!(wait.on(Event::Hint), Action::Rest));
        }
        assert!(matches!(wait.on(value("4")), Action::Read));
        assert!(matches!(wait.on(value("5")), Action::Rest));
        assert!(matches!(wait.on(Event::Hint), Action::Read));
        assert!(matches!(wait.on(value("6")), Action::Finish(Outcome::Reached(XenbusState::Closed))));
    }

    #[test]
    fn a_backend_that_is_ahead_or_failed_is_decided_at_once() {
        let first = |text| {
            let mut wait = Wait::new(Goal::BACKEND_READY);
            wait.on(Event::Hint);
            wait.on(value(text))
        };
        for text in ["2", "3", "4"] {
            assert!(matches!(first(text), Action::Finish(Outcome::Reached(_))), "{text}");
        }
        for text in ["5", "6"] {
            assert!(matches!(first(text), Action::Finish(Outcome::Failed(_))), "{text}");
        }
        for text in ["0", "1", "7", "9", "", "junk"] {
            assert!(matches!(first(text), Action::Rest), "{text}");
        }
    }

    #[test]
    fn absence_means_what_the_goal_says() {
        let absent = |absent| {
            let mut wait = Wait::new(Goal { absent, ..Goal::CLOSED });
            wait.on(Event::Hint);
            wait.on(Event::Value(None))
        };
        assert!(matches!(absent(Absent::Done), Action::Finish(Outcome::Gone)));
        assert!(matches!(absent(Absent::Fail), Action::Finish(Outcome::Gone)));
        assert!(matches!(absent(Absent::Ignore), Action::Rest));
    }

    #[test]
    fn a_timeout_tells_what_was_last_seen() {
        let mut wait = Wait::new(Goal::CLOSED);
        wait.on(Event::Hint);
        wait.on(value("garbage"));
        let Action::Finish(Outcome::TimedOut { last: Some(last) }) = wait.on(Event::Deadline) else {
            panic!("a deadline ends the wait");
        };
        assert_eq!(last.to_string(), "\"garbage\", which is no state");
    }
}
