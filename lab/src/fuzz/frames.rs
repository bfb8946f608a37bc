//! Cutting a byte stream into messages.

use bytes::BytesMut;
use tokio_util::codec::{Decoder, Encoder};
use xs_proto::{
    DecodeError, EncodeError, HEADER_LEN, Message, MessageCodec, Op, PAYLOAD_MAX, StreamError, TxId,
};

/// The codec gives the messages that the headers speak of, however the stream is cut, and these
/// make up the stream again.
///
/// The first byte of the input is for the codec's limit, the next seven are the lengths of the
/// pieces, used over and over, and the rest is the stream.
pub fn frames(data: &[u8]) {
    let Some((settings, stream)) = data.split_first_chunk::<8>() else { return };
    let limit = if settings[0] == 0 { PAYLOAD_MAX } else { usize::from(settings[0]) << 5 };
    let expected = reference(stream, limit);
    assert_eq!(decode(limit, [stream].into_iter()), expected, "in one piece, limit {limit}");

    let mut rest = stream;
    let lengths = settings[1..].iter().cycle().map(|length| usize::from(*length) + 1);
    let pieces = lengths.map_while(|length| {
        let (piece, after) = rest.split_at(length.min(rest.len()));
        rest = after;
        (!piece.is_empty()).then_some(piece)
    });
    assert_eq!(decode(limit, pieces), expected, "in pieces, limit {limit}");

    let mut rest = stream;
    for message in expected.messages {
        let (bytes, after) = rest.split_at(HEADER_LEN + message.payload.len());
        let mut out = BytesMut::from("before");
        match MessageCodec::with_limit(limit).encode(message, &mut out) {
            Ok(()) => assert_eq!(out[6..], *bytes),
            Err(StreamError::Encode(EncodeError::TooLong { .. })) => {
                assert!(bytes.len() > HEADER_LEN + PAYLOAD_MAX && out == "before", "{} refused", bytes.len());
            }
            Err(error) => panic!("{error}"),
        }
        rest = after;
    }
}

/// What a stream holds, up to its end or to what breaks the protocol.
#[derive(Debug, PartialEq, Eq)]
struct Content {
    messages: Vec<Message>,
    error: Option<DecodeError>,
}

/// The content as the lengths in the headers tell it.
fn reference(mut stream: &[u8], limit: usize) -> Content {
    let mut messages = Vec::new();
    let error = loop {
        let truncated = (!stream.is_empty()).then_some(DecodeError::Truncated { got: stream.len() });
        let Some((header, rest)) = stream.split_at_checked(16) else { break truncated };
        let word =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let len = word(12);
        if len as usize > limit {
            break Some(DecodeError::TooLong { len, max: limit });
        }
        let Some((payload, rest)) = rest.split_at_checked(len as usize) else { break truncated };
        let payload = payload.to_vec().into();
        messages.push(Message { op: Op(word(0)), req_id: word(4), tx_id: TxId(word(8)), payload });
        stream = rest;
    };
    Content { messages, error }
}

/// The content as the codec tells it.
fn decode<'a>(limit: usize, pieces: impl Iterator<Item = &'a [u8]>) -> Content {
    let mut codec = MessageCodec::with_limit(limit);
    let (mut buffer, mut messages) = (BytesMut::new(), Vec::new());
    let mut error = None;
    let mut take = |result| match result {
        Ok(message) => message,
        Err(StreamError::Decode(found)) => {
            error = Some(found);
            None
        }
        Err(other) => panic!("{other}"),
    };
    for piece in pieces {
        buffer.extend_from_slice(piece);
        let before = buffer.capacity();
        while let Some(message) = take(codec.decode(&mut buffer)) {
            messages.push(message);
        }
        let allocated = buffer.capacity().saturating_sub(before);
        assert!(allocated <= HEADER_LEN + limit, "{allocated} bytes for one message");
    }
    assert_eq!(take(codec.decode_eof(&mut buffer)), None);
    Content { messages, error }
}
