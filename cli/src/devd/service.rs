//! What systemd is told, where it has started the daemon.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// How often it is told that the daemon still ends, and how much longer that may take each time.
const ENDING: Duration = Duration::from_secs(5);

fn tell(states: &[NotifyState]) {
    // Where nobody waits for it, nobody is told.
    _ = sd_notify::notify(states);
}

/// The daemon serves.
pub(super) fn ready(told: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(told)]);
}

/// How the daemon fares, for `systemctl status`.
pub(super) fn status(told: &str) {
    tell(&[NotifyState::Status(told)]);
}

/// Feeds the watchdog; and from `stop` on asks for the time that scripts take to come to their ends, each of which has a
/// limit of its own. Never ends.
pub(super) async fn keep_alive(stop: CancellationToken) {
    let watchdog = sd_notify::watchdog_enabled().map(|within| (within / 2).max(Duration::from_millis(1)));
    if let Some(every) = watchdog {
        tokio::select! {
            () = stop.cancelled() => {}
            () = tick(every, &[NotifyState::Watchdog]) => {}
        }
    }
    stop.cancelled().await;
    tell(&[NotifyState::Stopping]);
    let longer = NotifyState::ExtendTimeoutUsec(3 * ENDING.as_micros() as u32);
    tick(watchdog.unwrap_or(ENDING).min(ENDING), &[NotifyState::Watchdog, longer]).await;
}

/// Tells this at once, and then again and again.
async fn tick(every: Duration, states: &[NotifyState<'_>]) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        tell(states);
    }
}
