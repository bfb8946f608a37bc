//! Messages as they stand on the wire: a 16-byte header and its payload.

use bytes::{BufMut, Bytes, BytesMut};

use crate::draft::Draft;
use crate::{DecodeError, EncodeError, Op, Path, Token, grammar};

/// Bytes in a header.
pub const HEADER_LEN: usize = 16;

/// The most payload that a message may carry (`XENSTORE_PAYLOAD_MAX`).
///
/// Servers close a connection that announces more. oxenstored sends longer replies on sockets,
/// so a client may choose to receive more; see [`crate::MessageCodec::with_limit`].
pub const PAYLOAD_MAX: usize = 4096;

/// The number of a transaction on its connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TxId(pub u32);

impl TxId {
    /// Outside any transaction.
    pub const NONE: Self = Self(0);
}

/// The head of every message, in both directions.
///
/// Four 32-bit integers in the byte order of the machine, which is little-endian on every target
/// of Xen. Source: `struct xsd_sockmsg`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The operation, echoed in its reply; [`Op::ERROR`] in the reply to one that failed.
    pub op: Op,
    /// Chosen by the client and echoed; 0 in watch events.
    pub req_id: u32,
    /// The transaction.
    pub tx_id: TxId,
    /// Bytes of payload that follow.
    pub len: u32,
}

impl Header {
    /// Reads a header. The length is as the peer announced it, unchecked.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Self {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Self { op: Op(word(0)), req_id: word(4), tx_id: TxId(word(8)), len: word(12) }
    }

    /// Appends the header.
    pub fn encode(&self, out: &mut BytesMut) {
        let mut bytes = [0; HEADER_LEN];
        for (at, word) in [self.op.0, self.req_id, self.tx_id.0, self.len].into_iter().enumerate() {
            bytes[at * 4..at * 4 + 4].copy_from_slice(&word.to_le_bytes());
        }
        // At once, for each append looks whether there is room.
        out.put_slice(&bytes);
    }
}

/// A message with its payload still untyped.
///
/// [`crate::Request::decode`], [`crate::Reply::decode`] and [`WatchEvent::decode`] type it; all
/// of them share the payload's buffer instead of copying it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The operation.
    pub op: Op,
    /// The request id.
    pub req_id: u32,
    /// The transaction.
    pub tx_id: TxId,
    /// What follows the header.
    pub payload: Bytes,
}

/// A watch that fired: something changed at or below a watched path. Never what changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchEvent {
    /// Where; relative if the watch was registered with a relative path.
    pub path: Path,
    /// The token the watch was registered with.
    pub token: Token,
}

impl WatchEvent {
    /// Types the payload of a [`Op::WATCH_EVENT`] message.
    pub fn decode(payload: Bytes) -> Result<Self, DecodeError> {
        let (path, token) =
            grammar::two_strings(Op::WATCH_EVENT, payload, "a path and a token, each with a NUL")?;
        Ok(Self { path: grammar::path(Op::WATCH_EVENT, path)?, token: Token::from_wire(token) })
    }

    /// Appends the event as a message.
    pub fn encode(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        let draft = Draft::new(Op::WATCH_EVENT, 0, TxId::NONE, out);
        draft.path(&self.path).string(self.token.as_bytes()).finish()
    }
}
