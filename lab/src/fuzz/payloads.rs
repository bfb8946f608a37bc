//! Typing what messages carry, as a server does with requests and a client with the rest.

use std::fmt::Debug;

use bytes::{Bytes, BytesMut};
use xs_proto::{
    DecodeError, EncodeError, HEADER_LEN, Header, Message, Op, PAYLOAD_MAX, Reply, Request, TxId, WatchEvent,
};

use super::names::is_path;

/// Every request that decodes is encoded to one that decodes to the same.
///
/// The first byte of the input is the operation, the rest the payload.
pub fn requests(data: &[u8]) {
    let Some((op, payload)) = operation(data) else { return };
    let payload = Bytes::copy_from_slice(payload);
    let request = match Request::decode(op, payload.clone()) {
        Ok(request) => request,
        Err(DecodeError::UnknownOp(other)) => {
            let is_request = op.name().is_some() && op != Op::WATCH_EVENT && op != Op::ERROR;
            return assert!(other == op && !is_request, "{op} is unknown");
        }
        Err(_) => return,
    };
    assert_eq!(request.op(), op);
    if let Some(path) = request.path() {
        assert!(is_path(path.as_bytes()), "{path:?}");
        assert_eq!(payload.split(|byte| *byte == 0).next(), Some(path.as_bytes()));
    }
    let again = encoded(&payload, |out| request.encode(7, TxId(8), out));
    if let Some(message) = again {
        assert_eq!((message.op, message.req_id, message.tx_id), (op, 7, TxId(8)));
        assert_eq!(Request::decode(op, message.payload.clone()).as_ref(), Ok(&request), "{message:?}");
    }
}

/// Every reply and event that decodes is encoded to one that decodes to the same.
///
/// The first byte of the input is the operation that was asked, the second the one that is
/// answered, and the rest the payload.
pub fn replies(data: &[u8]) {
    let Some((asked, rest)) = operation(data) else { return };
    let Some((answered, payload)) = operation(rest) else { return };
    let payload = Bytes::copy_from_slice(payload);
    if asked == Op::WATCH_EVENT {
        return same_again(&payload, WatchEvent::decode, |event, out| event.encode(out));
    }
    same_again(
        &payload,
        |payload| {
            let reply = Reply::decode(asked, answered, payload)?;
            assert_eq!(matches!(reply, Reply::Error(_)), answered == Op::ERROR);
            assert!(answered == asked || answered == Op::ERROR, "{asked} answered by {answered}");
            Ok(reply)
        },
        |reply, out| reply.encode(asked, 7, TxId(8), out),
    );
}

/// The operation that a byte stands for: some beyond the known ones, and the one that never is.
fn operation(data: &[u8]) -> Option<(Op, &[u8])> {
    let (byte, rest) = data.split_first()?;
    Some((Op(if *byte == 255 { 65535 } else { (*byte).into() }), rest))
}

fn same_again<T: PartialEq + Debug>(
    payload: &Bytes,
    decode: impl Fn(Bytes) -> Result<T, DecodeError>,
    encode: impl Fn(&T, &mut BytesMut) -> Result<(), EncodeError>,
) {
    let Ok(value) = decode(payload.clone()) else { return };
    if let Some(message) = encoded(payload, |out| encode(&value, out)) {
        assert_eq!(decode(message.payload.clone()).as_ref(), Ok(&value), "{message:?}");
    }
}

/// What was decoded from a payload, as a message again, if it may be one.
fn encoded(payload: &[u8], encode: impl FnOnce(&mut BytesMut) -> Result<(), EncodeError>) -> Option<Message> {
    let mut out = BytesMut::from("before");
    match encode(&mut out) {
        Ok(()) => {}
        Err(error) => {
            // A server may say in a text what an argument cannot hold; and a number or a NUL that
            // was left out when the payload was as long as it may be does not find room.
            let excused = match error {
                EncodeError::EmbeddedNul { .. } => payload[..payload.len() - 1].contains(&0),
                _ => payload.len() >= PAYLOAD_MAX,
            };
            assert!(excused && out == "before", "{error}");
            return None;
        }
    }
    let mut out = out.split_off("before".len());
    let header = out.split_to(HEADER_LEN);
    let Header { op, req_id, tx_id, len } = Header::decode(header.first_chunk()?);
    assert!(out.len() == len as usize && out.len() <= PAYLOAD_MAX, "{len} announced, {} sent", out.len());
    Some(Message { op, req_id, tx_id, payload: out.freeze() })
}
