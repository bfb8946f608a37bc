//! Requests that were handed over together, in the form in which they are sent.
//!
//! Who asks makes them: the driver, for which everybody waits, only numbers them.

use bytes::BytesMut;
use xs_proto::{EncodeError, HEADER_LEN, Header, Op, TxId};

use crate::ask::Ask;
use crate::typed::Answered;

/// About as long as a message that reads a device's node.
const TYPICAL_LEN: usize = 64;

/// Messages that lack their numbers, to be taken one after another.
#[derive(Debug)]
pub(crate) struct Messages {
    bytes: BytesMut,
    /// Where the next one begins.
    next: usize,
    left: usize,
}

/// Requests that cannot be messages: the places where they were, and why.
#[derive(Debug, Default)]
pub(crate) struct Refused(Vec<(usize, EncodeError)>);

impl Messages {
    pub(crate) fn new(requests: &[impl Ask], tx: TxId) -> (Self, Refused) {
        let mut bytes = BytesMut::with_capacity(requests.len() * TYPICAL_LEN);
        let mut refused = Refused::default();
        for (place, request) in requests.iter().enumerate() {
            if let Err(error) = request.encode(0, tx, &mut bytes) {
                refused.0.push((place, error));
            }
        }
        (Self { bytes, next: 0, left: requests.len() - refused.0.len() }, refused)
    }

    /// That of a single request.
    pub(crate) fn one(request: &impl Ask, tx: TxId) -> Result<Self, EncodeError> {
        let mut bytes = BytesMut::with_capacity(TYPICAL_LEN);
        request.encode(0, tx, &mut bytes)?;
        Ok(Self { bytes, next: 0, left: 1 })
    }

    /// How many are left.
    pub(crate) fn len(&self) -> usize {
        self.left
    }

    /// Takes the next one, and the operation that it asks for.
    // Not to be handed on by way of memory, right before it is copied.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> Option<(Op, &[u8])> {
        let start = self.next;
        let header = Header::decode(self.bytes[start..].first_chunk::<HEADER_LEN>()?);
        self.next += HEADER_LEN + header.len as usize;
        self.left -= 1;
        Some((header.op, &self.bytes[start..self.next]))
    }
}

impl Refused {
    /// Puts these among the answers to the others.
    pub(crate) fn join(self, answers: &mut Vec<Answered>) {
        for (place, error) in self.0 {
            answers.insert(place, Err(error.into()));
        }
    }
}

#[cfg(test)]
mod tests {
    use xs_proto::{Path, Request};

    use super::*;
    use crate::typed::Answer;

    #[test]
    fn what_cannot_be_a_message_keeps_its_place() {
        let write =
            |len: usize| Request::Write { path: "/a".parse().unwrap(), value: vec![b'x'; len].into() };
        let (mut messages, refused) = Messages::new(&[1, 5000, 2, 5000].map(write), TxId::NONE);
        assert_eq!(messages.len(), 2);
        for value in ["x", "xx"] {
            let (op, message) = messages.next().unwrap();
            assert_eq!((op, &message[HEADER_LEN..]), (Op::WRITE, format!("/a\0{value}").as_bytes()));
        }
        assert!(messages.next().is_none() && messages.len() == 0);
        let mut answers = vec![Ok(Answer::DONE), Ok(Answer::DONE)];
        refused.join(&mut answers);
        assert_eq!(answers.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true, false]);
    }

    #[test]
    fn nodes_are_read() {
        let nodes = ["/a", "/b"].map(|path| path.parse::<Path>().unwrap());
        let reads = nodes.clone().map(Request::Read);
        assert_eq!(Messages::new(&nodes, TxId::NONE).0.bytes, Messages::new(&reads, TxId::NONE).0.bytes);
    }
}
