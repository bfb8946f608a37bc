//! What can be asked of the store: a request, or in the place of one its node, to be read. A
//! request owns what it is of, and reads of many nodes need no request each.

use bytes::BytesMut;
use xs_proto::{EncodeError, Op, Path, Request, TxId};

use crate::Error;

/// Refuses the requests that are not a caller's to send: the client keeps account of watches and
/// transactions, and would not know of these.
pub(crate) fn refuse_reserved(requests: &[Request]) -> Result<(), Error> {
    let is_reserved = |op: &Op| {
        matches!(
            *op,
            Op::WATCH | Op::UNWATCH | Op::RESET_WATCHES | Op::TRANSACTION_START | Op::TRANSACTION_END
        )
    };
    match requests.iter().map(Request::op).find(is_reserved) {
        Some(op) => Err(Error::Reserved { op }),
        None => Ok(()),
    }
}

pub(crate) trait Ask {
    fn op(&self) -> Op;

    /// The node that it is of, if it is of one.
    fn path(&self) -> Option<&Path>;

    /// Appends it as a message.
    fn encode(&self, req_id: u32, tx: TxId, out: &mut BytesMut) -> Result<(), EncodeError>;
}

impl Ask for Request {
    fn op(&self) -> Op {
        self.op()
    }

    fn path(&self) -> Option<&Path> {
        self.path()
    }

    fn encode(&self, req_id: u32, tx: TxId, out: &mut BytesMut) -> Result<(), EncodeError> {
        self.encode(req_id, tx, out)
    }
}

impl<T: Ask> Ask for &T {
    fn op(&self) -> Op {
        (*self).op()
    }

    fn path(&self) -> Option<&Path> {
        (*self).path()
    }

    fn encode(&self, req_id: u32, tx: TxId, out: &mut BytesMut) -> Result<(), EncodeError> {
        (*self).encode(req_id, tx, out)
    }
}

impl Ask for Path {
    fn op(&self) -> Op {
        Op::READ
    }

    fn path(&self) -> Option<&Path> {
        Some(self)
    }

    fn encode(&self, req_id: u32, tx: TxId, out: &mut BytesMut) -> Result<(), EncodeError> {
        Request::encode_read(self, req_id, tx, out)
    }
}
