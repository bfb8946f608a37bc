//! Messages on a byte stream: cut by hand, or by `tokio_util::codec`.

#[cfg(feature = "codec")]
mod stream;

use bytes::{Buf, Bytes, BytesMut};

use crate::{DecodeError, HEADER_LEN, Header, Message, PAYLOAD_MAX};

#[cfg(feature = "codec")]
pub use stream::StreamError;

/// Cuts a stream into [`Message`]s ([`Self::cut`]). With the feature `codec` it is a `Decoder` and an `Encoder` for
/// `tokio_util::codec::Framed` as well.
///
/// A length beyond the limit is an error as soon as its header is there, and nothing is
/// allocated for it. After an error the stream is out of step: close it.
///
/// Memory: at most one header and one payload of the limit are buffered beyond what a read
/// happens to bring.
#[derive(Clone, Copy, Debug)]
pub struct MessageCodec {
    limit: usize,
}

impl MessageCodec {
    /// A codec that receives payloads of up to `limit` bytes; it never sends more than
    /// [`PAYLOAD_MAX`].
    ///
    /// Servers and rings keep to [`PAYLOAD_MAX`], as [`Default`] does; a client on a socket takes
    /// more, for oxenstored's long listings.
    pub fn with_limit(limit: usize) -> Self {
        Self { limit }
    }

    /// Takes the next message from the front of what was received; `None` if it is not whole yet.
    ///
    /// # Errors
    ///
    /// If its payload is longer than the limit.
    // For the same reason as in the grammars: it makes decoding a quarter faster.
    #[inline(always)]
    pub fn cut(&self, src: &mut BytesMut) -> Result<Option<Message>, DecodeError> {
        let Some(head) = src.first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let Header { op, req_id, tx_id, len } = Header::decode(head);
        let too_long = DecodeError::TooLong { len, max: self.limit };
        let length = usize::try_from(len).ok().filter(|len| *len <= self.limit).ok_or(too_long)?;
        if src.len() < HEADER_LEN + length {
            return Ok(None);
        }
        src.advance(HEADER_LEN);
        let payload = if let Some(common) = common(&src[..length]) {
            src.advance(length);
            common
        } else {
            src.split_to(length).freeze()
        };
        Ok(Some(Message { op, req_id, tx_id, payload }))
    }

    /// The same when nothing more comes.
    ///
    /// # Errors
    ///
    /// Also if only a part of a message is left.
    pub fn cut_last(&self, src: &mut BytesMut) -> Result<Option<Message>, DecodeError> {
        match self.cut(src)? {
            None if !src.is_empty() => Err(DecodeError::Truncated { got: src.len() }),
            message => Ok(message),
        }
    }
}

impl Default for MessageCodec {
    fn default() -> Self {
        Self::with_limit(PAYLOAD_MAX)
    }
}

/// Every payload of one byte.
static SINGLE: [u8; 256] = {
    let mut bytes = [0; 256];
    let mut at = 0;
    while at < bytes.len() {
        bytes[at] = at as u8;
        at += 1;
    }
    bytes
};

/// A payload that there are many of: that something was done, or the digit that is the state of a
/// device. They share nothing with the buffer, so they need not be counted, and do not keep it.
#[inline(always)]
fn common(payload: &[u8]) -> Option<Bytes> {
    match payload {
        [] => Some(Bytes::new()),
        [byte] => Some(Bytes::from_static(core::slice::from_ref(&SINGLE[usize::from(*byte)]))),
        b"OK\0" => Some(Bytes::from_static(b"OK\0")),
        _ => None,
    }
}
