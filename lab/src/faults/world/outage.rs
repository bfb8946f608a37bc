//! How often, and for how long, the client tries to connect while there is no store that stands.

use std::time::Duration;

use tokio::time::Instant;

use super::World;

/// The clock has milliseconds, and what ends a connection takes its turn.
const SLACK: Duration = Duration::from_millis(2);

/// Attempts that may come at once, or nearly: the first pauses are short.
const AT_ONCE: u128 = 12;

/// A time in which no connection has stood for a while.
pub(super) struct Outage {
    begun: Instant,
    attempts: u128,
}

impl World {
    /// For how long a connection has to stand so that the next outage is a new one.
    pub(super) fn standing(&self) -> Duration {
        let policy = self.schedule.settings.config.reconnect.unwrap_or_default();
        (policy.first_pause * 32).max(Duration::from_secs(1)).min(policy.within)
    }

    /// The client tries to connect. Looks whether it takes its time between attempts, and gives up in
    /// the end, whatever the connections have said that were made meanwhile.
    pub(crate) fn attempted(&self) {
        let Some(policy) = self.schedule.settings.config.reconnect else { return };
        // One that it has closed itself is followed to its end only later.
        self.over(self.connections());
        let mut state = self.state();
        let Some(outage) = &mut state.trying else { return };
        outage.attempts += 1;
        let (attempts, elapsed) = (outage.attempts, outage.begun.elapsed());
        drop(state);
        // On the average a pause is half the longest, which is 32 times the first.
        let most = AT_ONCE + elapsed.as_millis() / (policy.first_pause * 8).as_millis();
        if attempts > most {
            self.violation(format!("the client tries {attempts} times in {elapsed:?} to connect"));
        }
        if elapsed > policy.within + SLACK {
            self.violation(format!("the client tries to connect for {elapsed:?} already"));
        }
    }

    /// A connection of the client is over.
    pub(crate) fn wire_ended(&self, number: u32) {
        let mut state = self.state();
        state.wires -= 1;
        state.closed = Some((number, Instant::now()));
        drop(state);
        self.over(number);
    }

    /// The client takes a connection for lost. Begins another outage if it has stood for a while.
    fn over(&self, number: u32) {
        let standing = self.standing();
        let mut state = self.state();
        if number <= state.gone {
            return;
        }
        state.gone = number;
        state.mute = false;
        let stood = state.made.is_some_and(|made| made.elapsed() + SLACK >= standing);
        if stood || state.trying.is_none() {
            state.trying = Some(Outage { begun: Instant::now(), attempts: 0 });
        }
    }

    /// A connection was made that says nothing.
    pub(crate) fn mute(&self) {
        self.state().mute = true;
    }

    /// Whether no store says anything to the client.
    pub(crate) fn is_silent(&self) -> bool {
        let state = self.state();
        state.gone == state.connections || state.mute
    }

    /// The number of the oldest connection that the client may still take for the present one. One that
    /// blocks learns of an end only when it looks.
    pub(crate) fn present(&self) -> u32 {
        let state = self.state();
        let is_only = self.schedule.settings.config.reconnect.is_none();
        match state.closed {
            Some((number, at)) if !is_only && number == state.connections && at < Instant::now() => {
                number + 1
            }
            _ => state.connections,
        }
    }
}
