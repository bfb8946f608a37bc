//! What the store has said to the watches of the client, and who relies on it.

use xs_client::{Error, Path};

use super::World;
use crate::faults::fault::Event;

/// A path, and how deep it is watched.
pub(crate) type Watched = (Path, Option<u32>);

/// The store's answers to watches, by the connection.
#[derive(Default)]
pub(super) struct Answers {
    taken: Vec<(u32, Watched)>,
    refused: Vec<(u32, Watched)>,
    held: Vec<Held>,
    /// Counts those held.
    last: u64,
}

/// A watch that somebody has.
struct Held {
    id: u64,
    watched: Watched,
    /// The present connections when it was asked for, and when it was there.
    asked: u32,
    there: u32,
}

/// Whether there is an answer to this on a connection from this one on.
fn has(answers: &[(u32, Watched)], from: u32, watched: &Watched, is_shared: bool) -> bool {
    answers.iter().rev().any(|(number, (path, depth))| {
        let is_it = (path, depth) == (&watched.0, &watched.1);
        *number >= from && (is_it || (is_shared && depth.is_none() && watched.0.is_within(path)))
    })
}

impl World {
    /// The store has answered a watch.
    pub(crate) fn watch_answered(&self, connection: u32, watched: Watched, is_refused: bool) {
        let mut state = self.state();
        let answers = &mut state.answers;
        if !is_refused {
            answers.taken.push((connection, watched));
            return;
        }
        let again = answers.held.iter().any(|held| held.watched == watched && held.there < connection);
        answers.refused.push((connection, watched));
        drop(state);
        if again {
            self.happened(Event::RefusedAgain);
        }
    }

    /// The client removes a watch that the store has taken.
    pub(crate) fn unwatched(&self, connection: u32, watched: &Watched) {
        let taken = &mut self.state().answers.taken;
        if let Some(at) = taken.iter().position(|(number, of)| *number == connection && of == watched) {
            taken.swap_remove(at);
        }
    }

    /// Somebody has a watch, which he has asked for on this connection or while there was none. Looks
    /// whether the store has taken it.
    pub(crate) fn hold(&self, watched: Watched, asked: u32) -> u64 {
        let is_shared = self.schedule.has_crowd();
        let mut state = self.state();
        let there = state.connections;
        let answers = &mut state.answers;
        let is_taken = has(&answers.taken, asked, &watched, is_shared);
        answers.last += 1;
        let id = answers.last;
        answers.held.push(Held { id, watched: watched.clone(), asked, there });
        drop(state);
        if !is_taken {
            self.violation(format!("a watch of {} is there that the store has not taken", watched.0));
        }
        id
    }

    /// Nobody has it any more.
    pub(crate) fn let_go(&self, id: u64) {
        self.state().answers.held.retain(|held| held.id != id);
    }

    /// A watch has ended. Looks whether it was refused on another connection than it was there on.
    pub(crate) fn check_refused(&self, id: u64, error: &Error) {
        let state = self.state();
        let held = state.answers.held.iter().find(|held| held.id == id);
        let same = held.filter(|held| held.asked == state.connections).map(|held| held.watched.0.clone());
        drop(state);
        if let (Some(path), Error::Store { .. }) = (same, error) {
            self.violation(format!("the watch of {path} was there, and is refused then: {error}"));
        }
    }

    /// The client says that there is another connection, and everything watched again. Looks whether
    /// the store has answered all of these watches.
    pub(crate) fn check_restored(&self) {
        let is_shared = self.schedule.has_crowd();
        let state = self.state();
        let (number, answers) = (state.connections, &state.answers);
        if state.lost == number {
            return;
        }
        let missing = answers.held.iter().find(|held| {
            held.there < number
                && !has(&answers.taken, number, &held.watched, is_shared)
                // It may have ended before already.
                && !has(&answers.refused, held.asked + 1, &held.watched, is_shared)
        });
        let missing = missing.map(|held| held.watched.0.clone());
        drop(state);
        if let Some(path) = missing {
            self.violation(format!("the client is restored, and the watch of {path} is not answered yet"));
        }
    }
}
