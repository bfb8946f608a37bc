//! The guest's end.

use core::mem;
use core::ops::Deref;

use bytes::BufMut;

use super::flow::{Flow, Rings};
use super::page::{CONNECTED, Ordering, Page, RECONNECT, fence};
use super::{RingError, RingFault};
use crate::Features;

/// A guest's end of its page.
///
/// ```text
///                 the page says "connected"
///     [waiting] -----------------------------> [connected] --- a bad index ---> [dead]
///         ^                                         |                             |
///         '-------------- reconnect ----------------+-----------------------------'
/// ```
///
/// While it waits, nothing is sent or received, and nothing but the field `connection` of the
/// page is looked at.
///
/// Dropping it changes nothing in the page: another end can be attached and goes on from there.
#[derive(Debug)]
pub struct ClientEnd<P> {
    page: P,
    state: State,
    owes_notify: bool,
}

#[derive(Debug)]
enum State {
    Waiting,
    Connected(Flow),
    Dead(RingError),
}

impl State {
    fn found_in(page: &Page) -> Self {
        // Acquire: what the server did to the page before it said so can be seen.
        if page.connection.load(Ordering::Acquire) != CONNECTED {
            return Self::Waiting;
        }
        Flow::found_in(page.rings_of_client()).map_or_else(Self::Dead, Self::Connected)
    }
}

impl<P: Deref<Target = Page>> ClientEnd<P> {
    /// Takes up the page as it is found: the indexes go on from wherever they are, and if the
    /// server is not there yet this end waits for it.
    ///
    /// Replies that lie in the ring are for somebody before (a kernel before this one), and may
    /// begin in the middle of a message. [`Self::reconnect`] gets rid of them; so does receiving
    /// them unread, as long as no request of that time is still being served.
    ///
    /// # Errors
    ///
    /// [`RingError::BadIndex`] if the indexes cannot be those of two rings.
    pub fn attach(page: P) -> Result<Self, RingError> {
        match State::found_in(&page) {
            State::Dead(error) => Err(error),
            state => Ok(Self { page, state, owes_notify: false }),
        }
    }

    /// Whether the server is there. If not, there is nothing to do but to wait for the event.
    ///
    /// # Errors
    ///
    /// [`RingError`] if this end is dead.
    pub fn is_connected(&mut self) -> Result<bool, RingError> {
        self.act(|_, _| Ok(())).map(|connected| connected.is_some())
    }

    /// Sends as many bytes as there is room for, which may be none; returns how many these were.
    ///
    /// # Errors
    ///
    /// [`RingError::Fault`] if the server has given up. What it sent before can still be
    /// received. Any other error stays, until [`Self::reconnect`].
    pub fn send(&mut self, bytes: &[u8]) -> Result<usize, RingError> {
        let sent = self.output(|flow, rings| flow.send(rings, bytes))?;
        self.owes_notify |= sent > 0;
        Ok(sent)
    }

    /// Appends what there is, but no more than `max` bytes; returns how many these were.
    ///
    /// # Errors
    ///
    /// [`RingError::Fault`] if the server has given up and all that it sent before is received.
    /// Any other error stays, until [`Self::reconnect`].
    pub fn receive(&mut self, into: &mut impl BufMut, max: usize) -> Result<usize, RingError> {
        let received = self.input(|flow, rings| flow.receive(rings, into, max))?;
        self.owes_notify |= received > 0;
        Ok(received)
    }

    /// Whether there is something to receive. To be asked before going to sleep, see the head of
    /// the [module](super).
    ///
    /// # Errors
    ///
    /// As [`Self::receive`].
    pub fn has_input(&mut self) -> Result<bool, RingError> {
        fence(Ordering::SeqCst);
        self.input(|flow, rings| flow.available(rings)).map(|count| count > 0)
    }

    /// Whether there is room for a byte or more. To be asked before going to sleep.
    ///
    /// # Errors
    ///
    /// As [`Self::send`].
    pub fn has_room(&mut self) -> Result<bool, RingError> {
        fence(Ordering::SeqCst);
        self.output(|flow, rings| flow.room(rings)).map(|count| count > 0)
    }

    /// Whether the server has to be notified: something was published since the last time this
    /// was asked.
    pub fn take_notify(&mut self) -> bool {
        mem::take(&mut self.owes_notify)
    }

    /// Asks the server to begin anew, with empty rings and without the watches and transactions
    /// of this connection. False, and nothing is done, if it does not offer that: oxenstored
    /// does, C servers do not.
    ///
    /// Until the server has done it, nothing is sent or received. Drop with this call what was
    /// received of an unfinished message, and what is still to be sent.
    #[must_use = "a server that does not offer it goes on as before"]
    pub fn reconnect(&mut self) -> bool {
        let offered = self.server_features().contains(Features::RECONNECT);
        if offered {
            // Release: what this end did to the page is over when the server sees it.
            self.page.connection.store(RECONNECT, Ordering::Release);
            self.state = State::Waiting;
            self.owes_notify = true;
        }
        offered
    }

    /// What the server offers, as the page says now. C servers before 4.21 say nothing.
    pub fn server_features(&self) -> Features {
        Features(self.page.server_features.load(Ordering::Relaxed))
    }

    /// The page.
    pub fn page(&self) -> &Page {
        &self.page
    }

    fn output(
        &mut self,
        work: impl FnOnce(&mut Flow, Rings<'_>) -> Result<usize, RingError>,
    ) -> Result<usize, RingError> {
        let done = self.act(|flow, page| match RingFault::told_by(page) {
            Some(fault) => Err(RingError::Fault(fault)),
            None => work(flow, page.rings_of_client()),
        })?;
        Ok(done.unwrap_or(0))
    }

    fn input(
        &mut self,
        work: impl FnOnce(&mut Flow, Rings<'_>) -> Result<usize, RingError>,
    ) -> Result<usize, RingError> {
        let done = self.act(|flow, page| {
            // Looked at first: what was sent before the server gave up is then seen below.
            let fault = RingFault::told_by(page);
            match (work(flow, page.rings_of_client())?, fault) {
                (0, Some(fault)) if flow.is_drained() => Err(RingError::Fault(fault)),
                (count, _) => Ok(count),
            }
        })?;
        Ok(done.unwrap_or(0))
    }

    /// Does something on a connected page; `None` if it is not connected.
    fn act<T>(
        &mut self,
        work: impl FnOnce(&mut Flow, &Page) -> Result<T, RingError>,
    ) -> Result<Option<T>, RingError> {
        if let State::Waiting = self.state {
            self.state = State::found_in(&self.page);
        }
        match &mut self.state {
            State::Waiting => Ok(None),
            State::Dead(error) => Err(*error),
            State::Connected(flow) => work(flow, &self.page).map(Some).inspect_err(|error| {
                // A fault stays in the page by itself, and there may be replies from before it.
                if !matches!(error, RingError::Fault(_)) {
                    self.state = State::Dead(*error);
                }
            }),
        }
    }
}
