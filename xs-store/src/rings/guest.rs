//! The server's end of one guest's ring: bytes on one side, the store's core on the other.

use bytes::{Buf, BytesMut};
use tokio::time::Instant;
use tokio_util::codec::Decoder;
use tracing::debug;
use xs_proto::MessageCodec;
use xs_proto::ring::{RING_SIZE, RingError, RingFault};

use super::folder::End;
use crate::connection::ConnId;
use crate::store::Core;

/// How a guest's turn went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// There is more to do, now.
    More,
    /// Nothing until an event, or until the store has something to send.
    Idle,
    /// The domain has ended, or was released.
    Gone,
}

/// A guest that is served.
#[derive(Debug)]
pub(super) struct Guest {
    conn: ConnId,
    end: End,
    input: BytesMut,
    /// Taken from the store and not in the ring yet.
    output: BytesMut,
    /// Since when its requests are not read.
    waiting: Option<Instant>,
    /// It broke the rules of the ring: it stays introduced, and is not looked at any more.
    ignored: bool,
}

impl Guest {
    pub(super) fn new(conn: ConnId, end: End) -> Self {
        let (input, output) = (BytesMut::new(), BytesMut::new());
        Self { conn, end, input, output, waiting: None, ignored: false }
    }

    pub(super) fn conn(&self) -> ConnId {
        self.conn
    }

    /// Whether its connection is still the store's.
    pub(super) fn is_served(&self, core: &mut Core) -> bool {
        core.connection(self.conn).is_some()
    }

    /// The domain was introduced again: what was under way is dropped. As in the C daemon that
    /// does not bring back one that broke the rules.
    pub(super) fn begin_anew(&mut self, end: End, core: &mut Core) {
        self.end = end;
        self.drop_all(core);
    }

    fn drop_all(&mut self, core: &mut Core) {
        core.reset(self.conn);
        core.drop_output(self.conn);
        self.input.clear();
        self.output.clear();
        self.waiting = None;
    }

    /// Since when its requests are not read, if they are not.
    pub(super) fn waiting(&self) -> Option<Instant> {
        self.waiting
    }

    /// It has waited for long enough.
    pub(super) fn stop_waiting(&mut self, core: &mut Core) {
        self.waiting = None;
        core.stop_waiting(self.conn);
    }

    /// Whether the guest must be told to look.
    pub(super) fn take_notify(&mut self) -> bool {
        self.end.take_notify()
    }

    /// Sends what there is room for, and carries out one request at most.
    pub(super) fn turn(&mut self, core: &mut Core) -> Turn {
        if !self.is_served(core) {
            return Turn::Gone;
        }
        if self.ignored {
            return Turn::Idle;
        }
        self.try_turn(core).unwrap_or_else(|error| {
            debug!(%error, "a guest broke the rules of its ring and is ignored from now on");
            self.ignored = true;
            self.drop_all(core);
            Turn::Idle
        })
    }

    fn try_turn(&mut self, core: &mut Core) -> Result<Turn, RingError> {
        if self.end.wants_reconnect() {
            self.drop_all(core);
            self.end.reconnect();
        }
        self.send(core)?;
        let asked = self.may_ask(core) && self.receive(core)?;
        self.send(core)?;
        let more = if self.may_ask(core) { asked || self.end.has_input()? } else { false };
        let sending = !self.output.is_empty() && self.end.has_room()?;
        Ok(if more || sending { Turn::More } else { Turn::Idle })
    }

    /// Puts output into the ring until one of them is full, or the other empty.
    fn send(&mut self, core: &mut Core) -> Result<(), RingError> {
        loop {
            if self.output.is_empty() {
                core.take_output(self.conn, &mut self.output);
            }
            if self.output.is_empty() {
                return Ok(());
            }
            match self.end.send(&self.output)? {
                0 => return Ok(()),
                sent => self.output.advance(sent),
            }
        }
    }

    /// Whether its requests are read: not while too much is outstanding.
    fn may_ask(&mut self, core: &mut Core) -> bool {
        let may_ask = core.may_ask(self.conn);
        self.waiting = if may_ask { None } else { self.waiting.or_else(|| Some(Instant::now())) };
        may_ask
    }

    /// Carries out one request, if a whole one is there.
    fn receive(&mut self, core: &mut Core) -> Result<bool, RingError> {
        loop {
            match MessageCodec::default().decode(&mut self.input) {
                Ok(Some(message)) => {
                    core.request(self.conn, message);
                    return Ok(true);
                }
                Ok(None) => {}
                // Its header announces more than a message may have; the next call says so.
                Err(_) => self.end.fail(RingFault::PROTO),
            }
            if self.end.receive(&mut self.input, RING_SIZE)? == 0 {
                return Ok(false);
            }
        }
    }
}
