//! Which part of each batch of changes was sent.

use xs_client::Request;

use super::World;
use crate::faults::fault::Event;

/// The changes of a batch, in their order. No two changes of a schedule are the same.
pub(super) struct Batch {
    changes: Vec<Request>,
    /// How many were sent, and by which connection.
    sent: usize,
    connection: u32,
}

impl World {
    /// A caller asks for changes together: what is sent of them is to be their beginning.
    pub(crate) fn note_batch(&self, changes: Vec<Request>) {
        self.state().batches.push(Batch { changes, sent: 0, connection: 0 });
    }

    /// Looks whether a change that is sent is the next of its batch, and goes where the others went.
    pub(crate) fn check_batch(&self, change: &Request, connection: u32) {
        let mut state = self.state();
        let found = state.batches.iter_mut().find_map(|batch| {
            let at = batch.changes.iter().position(|of| of == change)?;
            Some((batch, at))
        });
        let Some((batch, at)) = found else { return };
        let is_next = at == batch.sent;
        let is_here = batch.sent == 0 || batch.connection == connection;
        (batch.sent, batch.connection) = (at + 1, connection);
        drop(state);
        if !is_next {
            self.violation(format!("of a batch, {change:?} is sent without what is before it"));
        }
        if !is_here {
            self.violation(format!("of a batch, {change:?} is sent on another connection than the others"));
        }
    }

    /// A connection ends.
    pub(super) fn cut_batches(&self) {
        let state = self.state();
        let is_cut = |batch: &Batch| {
            batch.connection == state.connections && (1..batch.changes.len()).contains(&batch.sent)
        };
        let any = state.batches.iter().any(is_cut);
        drop(state);
        if any {
            self.happened(Event::CutBatch);
        }
    }
}
