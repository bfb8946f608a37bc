//! What was received and not yet looked at.

use std::io;

use bytes::BytesMut;
use xs_proto::{HEADER_LEN, Header, Message, MessageCodec};

use crate::Error;
use crate::error::ended;

/// Bytes received at once.
pub(crate) const CHUNK: usize = 16 << 10;

/// Messages, the last one perhaps in part.
#[derive(Debug)]
pub(crate) struct Inbox {
    bytes: BytesMut,
    codec: MessageCodec,
    limit: usize,
}

impl Inbox {
    /// For messages whose payload has so many bytes, at most.
    pub(crate) fn new(limit: usize) -> Self {
        Self { bytes: BytesMut::with_capacity(CHUNK), codec: MessageCodec::with_limit(limit), limit }
    }

    /// Where what comes is added.
    pub(crate) fn bytes(&mut self) -> &mut BytesMut {
        &mut self.bytes
    }

    /// Whether there is a whole message, or what cannot become one.
    pub(crate) fn has_message(&self) -> bool {
        let Some(head) = self.bytes.first_chunk() else { return false };
        let len = Header::decode(head).len as usize;
        len > self.limit || self.bytes.len() >= HEADER_LEN + len
    }

    /// The next whole message.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> Result<Option<Message>, Error> {
        Ok(self.codec.cut(&mut self.bytes)?)
    }

    /// What it means that nothing more comes.
    pub(crate) fn end(&mut self) -> Error {
        match self.codec.cut_last(&mut self.bytes) {
            Err(error) => error.into(),
            Ok(_) => ended("the store closed it"),
        }
    }
}

/// What it means that a stream fails.
pub(crate) fn lost(error: &io::Error) -> Error {
    ended(&error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_there_when_it_is_whole_or_cannot_be_one() {
        let mut inbox = Inbox::new(4);
        let header = |len: u8| [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, len, 0, 0, 0];
        for part in [&header(2)[..15], &header(2)[15..], b"4"] {
            inbox.bytes().extend_from_slice(part);
            assert!(!inbox.has_message() && inbox.next().unwrap().is_none());
        }
        assert!(matches!(inbox.end(), Error::Protocol(_)));
        inbox.bytes().extend_from_slice(b"2");
        assert!(inbox.has_message());
        assert_eq!(inbox.next().unwrap().unwrap().payload, "42");
        assert!(!inbox.has_message());
        assert!(matches!(inbox.end(), Error::Disconnected { .. }));
        inbox.bytes().extend_from_slice(&header(5));
        assert!(inbox.has_message());
        assert!(matches!(inbox.next(), Err(Error::Protocol(_))));
    }
}
