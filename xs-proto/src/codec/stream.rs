//! The codec under `tokio_util::codec`, whose errors are those of the stream, too.

use bytes::BytesMut;
use tokio_util::codec::{Decoder, Encoder};

use super::MessageCodec;
use crate::draft::Draft;
use crate::{DecodeError, EncodeError, Message};

impl Decoder for MessageCodec {
    type Item = Message;
    type Error = StreamError;

    #[inline(always)]
    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Message>, StreamError> {
        Ok(self.cut(src)?)
    }

    fn decode_eof(&mut self, src: &mut BytesMut) -> Result<Option<Message>, StreamError> {
        Ok(self.cut_last(src)?)
    }
}

impl Encoder<Message> for MessageCodec {
    type Error = StreamError;

    fn encode(&mut self, message: Message, out: &mut BytesMut) -> Result<(), StreamError> {
        let Message { op, req_id, tx_id, payload } = message;
        Ok(Draft::new(op, req_id, tx_id, out).bytes(&payload).finish()?)
    }
}

/// What can go wrong on a stream of messages.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The stream itself failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The other side broke the protocol.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// This side tried to send what may not be sent.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}
