//! The server's end.

use core::mem;
use core::ops::Deref;

use bytes::BufMut;

use super::flow::{Flow, Rings};
use super::page::{CONNECTED, Ordering, Page, RECONNECT, fence};
use super::{RingError, RingFault};
use crate::Features;

/// A server's end of the page of one guest.
///
/// It is meant to be served beside many others, by a peer that may do its worst: a call moves at
/// most 1024 bytes, and no more than the caller asks for. A guest that breaks the rules finds the
/// reason in the field `error`, and the end is dead from then on: every call fails with what was
/// found, and nothing in the page is looked at any more.
///
/// Dropping it changes nothing in the page.
#[derive(Debug)]
pub struct ServerEnd<P> {
    page: P,
    /// What is offered. The copy in the page is the guest's to read, and to spoil.
    features: Features,
    flow: Flow,
    dead: Option<RingError>,
    owes_notify: bool,
}

impl<P: Deref<Target = Page>> ServerEnd<P> {
    /// Begins to serve the page of a domain that is introduced: sets all indexes to 0, whatever
    /// they were, tells the features, clears `error`, and says that the server is there.
    ///
    /// The bytes in the rings are left alone. A notification is owed if the guest was waiting.
    pub fn new(page: P, features: Features) -> Self {
        page.server_features.store(features.0, Ordering::Relaxed);
        page.error.store(0, Ordering::Relaxed);
        reset_indexes(&page);
        let owes_notify = page.connection.load(Ordering::Relaxed) != CONNECTED;
        page.connection.store(CONNECTED, Ordering::Release);
        Self { page, features, flow: Flow::default(), dead: None, owes_notify }
    }

    /// Sends as many bytes as there is room for, which may be none; returns how many these were.
    ///
    /// # Errors
    ///
    /// If the guest broke the rules, now or before, or was given up by [`Self::fail`].
    pub fn send(&mut self, bytes: &[u8]) -> Result<usize, RingError> {
        let sent = self.act(|flow, rings| flow.send(rings, bytes))?;
        self.owes_notify |= sent > 0;
        Ok(sent)
    }

    /// Appends what there is, but no more than `max` bytes; returns how many these were.
    ///
    /// # Errors
    ///
    /// As [`Self::send`].
    pub fn receive(&mut self, into: &mut impl BufMut, max: usize) -> Result<usize, RingError> {
        let received = self.act(|flow, rings| flow.receive(rings, into, max))?;
        self.owes_notify |= received > 0;
        Ok(received)
    }

    /// Whether there is something to receive. To be asked before going to sleep, see the head of
    /// the [module](super).
    ///
    /// # Errors
    ///
    /// As [`Self::send`].
    pub fn has_input(&mut self) -> Result<bool, RingError> {
        fence(Ordering::SeqCst);
        self.act(|flow, rings| flow.available(rings)).map(|count| count > 0)
    }

    /// Whether there is room for a byte or more. To be asked before going to sleep.
    ///
    /// # Errors
    ///
    /// As [`Self::send`].
    pub fn has_room(&mut self) -> Result<bool, RingError> {
        fence(Ordering::SeqCst);
        self.act(|flow, rings| flow.room(rings)).map(|count| count > 0)
    }

    /// Whether the guest has to be notified: something was published since the last time this
    /// was asked.
    pub fn take_notify(&mut self) -> bool {
        mem::take(&mut self.owes_notify)
    }

    /// Gives the guest up: tells it why, and is dead from now on. For what the bytes reveal, as
    /// [`RingFault::PROTO`] for a header that announces more than [`crate::PAYLOAD_MAX`]. An end
    /// that is dead already stays as it is.
    pub fn fail(&mut self, fault: RingFault) {
        if self.dead.is_none() {
            self.give_up(fault, RingError::Fault(fault));
        }
    }

    /// Whether the guest asks to begin anew, and may. Then drop its unfinished request, all
    /// that is still to be sent to it, its watches and its transactions, and call
    /// [`Self::reconnect`]; until then the guest looks at nothing.
    ///
    /// To be asked on every wake-up. It may only if [`Features::RECONNECT`] is offered.
    pub fn wants_reconnect(&self) -> bool {
        // Acquire: what the guest did to the page before is over.
        self.dead.is_none()
            && self.features.contains(Features::RECONNECT)
            && self.page.connection.load(Ordering::Acquire) == RECONNECT
    }

    /// Begins anew with a guest that asked for it: empties the rings, and tells the guest to go
    /// on. What still lies in the request ring is dropped.
    pub fn reconnect(&mut self) {
        reset_indexes(&self.page);
        for place in self.page.req.iter().chain(&self.page.rsp) {
            // As oxenstored leaves them: a guest that reads too much is seen to.
            place.store(0xff, Ordering::Relaxed);
        }
        self.flow = Flow::default();
        self.page.connection.store(CONNECTED, Ordering::Release);
        self.owes_notify = true;
    }

    /// What is offered to this guest, whatever its page says by now.
    pub fn features(&self) -> Features {
        self.features
    }

    /// The page.
    pub fn page(&self) -> &Page {
        &self.page
    }

    fn act(
        &mut self,
        work: impl FnOnce(&mut Flow, Rings<'_>) -> Result<usize, RingError>,
    ) -> Result<usize, RingError> {
        if let Some(error) = self.dead {
            return Err(error);
        }
        work(&mut self.flow, self.page.rings_of_server())
            .inspect_err(|error| self.give_up(RingFault::RINGIDX, *error))
    }

    fn give_up(&mut self, fault: RingFault, error: RingError) {
        // Release: what was sent before can be seen by then.
        self.page.error.store(fault.0, Ordering::Release);
        self.dead = Some(error);
        self.owes_notify = true;
    }
}

fn reset_indexes(page: &Page) {
    for index in [&page.req_cons, &page.req_prod, &page.rsp_cons, &page.rsp_prod] {
        index.store(0, Ordering::Relaxed);
    }
}
