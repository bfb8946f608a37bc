//! What callers ask for, and what the client may make of it.

use xs_client::{Error, ErrorCode, Op, Path, Request};

use super::World;
use crate::faults::face::Asks;
use crate::faults::fault::What;
use crate::faults::schedule::counter;

impl World {
    /// Asks for a change.
    pub(crate) async fn ask(&self, of: &impl Asks, change: Request) -> Result<(), Error> {
        self.note_asked(&change);
        of.request(change).await.map(drop)
    }

    /// A caller asks for a change: the client is to send it once, on whatever connection.
    pub(crate) fn note_asked(&self, change: &Request) {
        self.state().asked.push(change.clone());
    }

    /// Looks whether a caller has asked for what the client sends, and not only for an earlier one.
    pub(crate) fn check_sent(&self, request: &Request) {
        if !matches!(request.op(), Op::WRITE | Op::MKDIR | Op::RM | Op::SET_PERMS) {
            return;
        }
        let mut state = self.state();
        if let Some(at) = state.asked.iter().position(|asked| asked == request) {
            state.asked.swap_remove(at);
        } else {
            drop(state);
            self.violation(format!("the client makes a change more often than it was asked to: {request:?}"));
        }
    }

    /// Notes that somebody has a watch of one of the crowd, or lets it go.
    pub(crate) fn set_watched(&self, node: &Path, is_watched: bool) {
        let mut state = self.state();
        if is_watched {
            state.watched.insert(node.clone());
        } else {
            state.watched.remove(node);
        }
    }

    /// The nodes of the crowd at or below a path that have somebody's watch.
    pub(crate) fn watched(&self, at: &Path) -> Vec<Path> {
        self.state().watched.iter().filter(|node| node.is_within(at)).cloned().collect()
    }

    /// A commit is answered with EAGAIN, or a request of a transaction with EIO.
    pub(crate) fn conflicted(&self) {
        self.state().conflicts += 1;
    }

    /// Looks whether a transaction that is tried again has conflicted, or was lost with a connection,
    /// behind that of this number. Whether its commit was sent shows in the counter.
    pub(crate) fn tried_again(&self, lost: u32) {
        let mut state = self.state();
        if state.lost > lost {
            return;
        }
        if let Some(left) = state.conflicts.checked_sub(1) {
            state.conflicts = left;
        } else {
            drop(state);
            self.violation("a transaction that has not conflicted, and was not lost, is tried again");
        }
    }

    /// A transaction that counts is begun.
    pub(crate) fn counting(&self) {
        self.state().counted.0 += 1;
    }

    /// It has not counted.
    pub(crate) fn not_counted(&self) {
        self.state().counted.0 -= 1;
    }

    /// It has, if the store is still that of this epoch.
    pub(crate) fn counted(&self, epoch: u32) {
        let mut state = self.state();
        state.counted.1 += u64::from(state.epoch == epoch);
    }

    /// Looks whether the counter is as high as it may be, and no update was lost.
    pub(crate) async fn check_counter(&self) {
        let value = self.direct().read(&counter()).await;
        let (most, least) = self.state().counted;
        if !(least..=most).any(|count| value == Some(count_value(count))) {
            self.violation(format!("the counter is {value:?} after {least} to {most} transactions"));
        }
    }

    /// Looks whether an error is one that may be: of a kind that something has caused, and about
    /// what was asked.
    pub(crate) fn judge(&self, what: &str, error: &Error, about: &[Path]) {
        let Self { schedule, .. } = self;
        let config = &schedule.settings.config;
        let fair = match error {
            Error::Store { path, code, .. } => {
                let injected = schedule.faults.iter().any(
                    |fault| matches!(&fault.what, What::Refuse { code: refused, .. } if refused == code),
                );
                let natural = *code == ErrorCode::ENOENT || (schedule.settings.guest && code.is_quota());
                let asked = path.as_ref().is_none_or(|path| about.iter().any(|of| path.is_within(of)));
                asked && (injected || natural)
            }
            Error::Timeout { path, after, .. } => {
                let asked = path.as_ref().is_none_or(|path| about.iter().any(|of| path.is_within(of)));
                asked && *after == config.deadline
            }
            Error::Disconnected { .. } | Error::Protocol(_) | Error::Stray { .. } => self.has_ended(),
            Error::NoTurn { after, .. } => *after == config.deadline,
            Error::Contended { attempts, elapsed } => {
                *attempts == config.retry.attempts || *elapsed + config.retry.max_pause > config.retry.within
            }
            _ => false,
        };
        if !fair {
            self.violation(format!("{what} fails without a reason: {error} ({error:?})"));
        }
    }
}

/// The value of the counter.
pub(crate) fn count_value(count: u64) -> String {
    format!("{}#{count}", counter())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::schedule::{Schedule, own_node};

    #[tokio::test]
    async fn what_was_asked_once_is_sent_once() {
        let world = World::new(&Schedule::new(1)).await;
        let [write, other] = ["1", "2"].map(|value| {
            let value = value.into();
            Request::Write { path: own_node(0, 0), value }
        });
        world.note_asked(&write);
        world.note_asked(&other);
        world.check_sent(&other);
        world.check_sent(&write);
        world.check_sent(&Request::Read(own_node(0, 0)));
        assert!(world.outcome().violations.is_empty());
        world.check_sent(&write);
        assert_eq!(world.outcome().violations.len(), 1);
        world.conflicted();
        world.tried_again(0);
        assert_eq!(world.outcome().violations.len(), 1);
        world.tried_again(0);
        assert_eq!(world.outcome().violations.len(), 2);
        world.wire_begun().unwrap();
        world.end();
        world.tried_again(0);
        assert_eq!(world.outcome().violations.len(), 2);
    }
}
