//! What is encoded comes back as it was, in whatever pieces a stream delivers it; and what may not
//! be sent leaves the buffer as it was.

use bytes::{Buf, Bytes, BytesMut};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use tokio_util::codec::{Decoder, Encoder};
use xs_proto::{
    Access, DecodeError, DomId, EncodeError, ErrorCode, Features, HEADER_LEN, Header, Message, MessageCodec,
    Names, Op, PAYLOAD_MAX, Path, Permission, Permissions, Reply, Request, StreamError, Token, TxId,
    WatchEvent,
};

/// Every operation that a client may ask for.
const REQUESTS: [Op; 24] = [
    Op::CONTROL,
    Op::DIRECTORY,
    Op::READ,
    Op::GET_PERMS,
    Op::WATCH,
    Op::UNWATCH,
    Op::TRANSACTION_START,
    Op::TRANSACTION_END,
    Op::INTRODUCE,
    Op::RELEASE,
    Op::GET_DOMAIN_PATH,
    Op::WRITE,
    Op::MKDIR,
    Op::RM,
    Op::SET_PERMS,
    Op::IS_DOMAIN_INTRODUCED,
    Op::RESUME,
    Op::SET_TARGET,
    Op::RESET_WATCHES,
    Op::DIRECTORY_PART,
    Op::GET_FEATURE,
    Op::SET_FEATURE,
    Op::GET_QUOTA,
    Op::SET_QUOTA,
];

#[test]
fn no_operation_is_left_out() {
    for op in (0..1000).map(Op) {
        let is_request = op.name().is_some() && op != Op::WATCH_EVENT && op != Op::ERROR;
        assert_eq!(is_request, REQUESTS.contains(&op), "{op}");
    }
}

fn name() -> impl Strategy<Value = String> {
    "[A-Za-z0-9_@-]{1,12}"
}

fn path() -> impl Strategy<Value = Path> {
    let names = vec(name(), 1..6).prop_map(|names| names.join("/"));
    let text = (prop_oneof!["/", "", "@"], names).prop_map(|(start, names)| start + &names);
    prop_oneof![9 => text.prop_map(|text| Path::new(text).unwrap()), 1 => Just(Path::root())]
}

/// Any bytes; now and then more than a message takes.
fn bytes() -> impl Strategy<Value = Bytes> {
    let lengths = prop_oneof![8 => 0..50_usize, 1 => 4000..4200_usize];
    lengths.prop_flat_map(|len| vec(any::<u8>(), len)).prop_map(Bytes::from)
}

/// Any bytes that can be an argument.
fn argument() -> impl Strategy<Value = Bytes> {
    bytes().prop_map(|bytes| bytes.iter().map(|byte| *byte.max(&1)).collect())
}

fn token() -> impl Strategy<Value = Token> {
    argument().prop_map(|bytes| Token::new(bytes).unwrap())
}

fn domid() -> impl Strategy<Value = DomId> {
    prop_oneof![0..10_u16, any::<u16>()].prop_map(DomId::from)
}

fn permissions() -> impl Strategy<Value = Permissions> {
    let access = prop_oneof![Just(Access::None), Just(Access::Read), Just(Access::Write), Just(Access::Both)];
    let entry = (domid(), access).prop_map(|(domid, access)| Permission { domid, access });
    vec(entry, 1..20).prop_map(|entries| Permissions::new(entries).unwrap())
}

fn request_of(op: Op) -> BoxedStrategy<Request> {
    match op {
        Op::CONTROL => vec(argument(), 0..4).prop_map(Request::Control).boxed(),
        Op::DIRECTORY => path().prop_map(Request::Directory).boxed(),
        Op::READ => path().prop_map(Request::Read).boxed(),
        Op::GET_PERMS => path().prop_map(Request::GetPerms).boxed(),
        Op::WATCH => (path(), token(), option::of(any::<u32>()))
            .prop_map(|(path, token, depth)| Request::Watch { path, token, depth })
            .boxed(),
        Op::UNWATCH => (path(), token()).prop_map(|(path, token)| Request::Unwatch { path, token }).boxed(),
        Op::TRANSACTION_START => Just(Request::TransactionStart).boxed(),
        Op::TRANSACTION_END => any::<bool>().prop_map(|commit| Request::TransactionEnd { commit }).boxed(),
        Op::INTRODUCE => (domid(), any::<u64>(), any::<u32>())
            .prop_map(|(domid, gfn, evtchn)| Request::Introduce { domid, gfn, evtchn })
            .boxed(),
        Op::RELEASE => domid().prop_map(Request::Release).boxed(),
        Op::GET_DOMAIN_PATH => domid().prop_map(Request::GetDomainPath).boxed(),
        Op::WRITE => (path(), bytes()).prop_map(|(path, value)| Request::Write { path, value }).boxed(),
        Op::MKDIR => path().prop_map(Request::Mkdir).boxed(),
        Op::RM => path().prop_map(Request::Rm).boxed(),
        Op::SET_PERMS => {
            (path(), permissions()).prop_map(|(path, perms)| Request::SetPerms { path, perms }).boxed()
        }
        Op::IS_DOMAIN_INTRODUCED => domid().prop_map(Request::IsDomainIntroduced).boxed(),
        Op::RESUME => domid().prop_map(Request::Resume).boxed(),
        Op::SET_TARGET => {
            (domid(), domid()).prop_map(|(domid, target)| Request::SetTarget { domid, target }).boxed()
        }
        Op::RESET_WATCHES => Just(Request::ResetWatches).boxed(),
        Op::DIRECTORY_PART => {
            (path(), any::<u32>()).prop_map(|(path, offset)| Request::DirectoryPart { path, offset }).boxed()
        }
        Op::GET_FEATURE => option::of(domid()).prop_map(Request::GetFeature).boxed(),
        Op::SET_FEATURE => (domid(), any::<u32>())
            .prop_map(|(domid, features)| Request::SetFeature { domid, features: Features(features) })
            .boxed(),
        Op::GET_QUOTA => option::of((option::of(domid()), argument()))
            .prop_map(|quota| match quota {
                Some((domid, name)) => Request::GetQuota { domid, name: Some(name) },
                None => Request::GetQuota { domid: None, name: None },
            })
            .boxed(),
        Op::SET_QUOTA => (option::of(domid()), argument(), any::<u32>())
            .prop_map(|(domid, name, value)| Request::SetQuota { domid, name, value })
            .boxed(),
        other => unreachable!("{other} is no request"),
    }
}

fn request() -> impl Strategy<Value = Request> {
    prop::sample::select(&REQUESTS[..]).prop_flat_map(request_of)
}

fn names() -> impl Strategy<Value = Names> {
    vec(name(), 0..40).prop_map(|names| Names::from_names(names.iter().map(|name| &name[..])))
}

fn error() -> impl Strategy<Value = ErrorCode> {
    let known = prop::sample::select(vec![
        ErrorCode::EINVAL,
        ErrorCode::EACCES,
        ErrorCode::EEXIST,
        ErrorCode::EISDIR,
        ErrorCode::ENOENT,
        ErrorCode::ENOMEM,
        ErrorCode::ENOSPC,
        ErrorCode::EIO,
        ErrorCode::ENOTEMPTY,
        ErrorCode::ENOSYS,
        ErrorCode::EROFS,
        ErrorCode::EBUSY,
        ErrorCode::EAGAIN,
        ErrorCode::EISCONN,
        ErrorCode::E2BIG,
        ErrorCode::EPERM,
    ]);
    let other = "[a-z]{0,10}|EQUOTA".prop_map(|name| ErrorCode::Other(name.into()));
    prop_oneof![4 => known, 1 => other]
}

/// A reply to a request of this operation.
fn reply_to(op: Op) -> BoxedStrategy<Reply> {
    let success = match op {
        Op::READ => bytes().prop_map(Reply::Value).boxed(),
        Op::DIRECTORY => names().prop_map(Reply::Names).boxed(),
        Op::DIRECTORY_PART => (any::<u64>(), names(), any::<bool>())
            .prop_map(|(generation, names, last)| Reply::Part { generation, names, last })
            .boxed(),
        Op::GET_PERMS => permissions().prop_map(Reply::Perms).boxed(),
        Op::TRANSACTION_START => any::<u32>().prop_map(|id| Reply::Transaction(TxId(id))).boxed(),
        Op::GET_DOMAIN_PATH => path().prop_map(Reply::DomainPath).boxed(),
        Op::IS_DOMAIN_INTRODUCED => any::<bool>().prop_map(Reply::Introduced).boxed(),
        Op::GET_FEATURE => any::<u32>().prop_map(|bits| Reply::Features(Features(bits))).boxed(),
        Op::CONTROL | Op::GET_QUOTA => bytes().prop_map(Reply::Text).boxed(),
        _ => Just(Reply::Ok).boxed(),
    };
    prop_oneof![4 => success, 1 => error().prop_map(Reply::Error)].boxed()
}

fn reply() -> impl Strategy<Value = (Op, Reply)> {
    prop::sample::select(&REQUESTS[..]).prop_flat_map(|op| (Just(op), reply_to(op)))
}

/// Encodes behind something that is in the buffer already, and takes the message out again. None if
/// it was refused for its length, with the buffer as it was.
fn there_and_back(
    encode: impl FnOnce(&mut BytesMut) -> Result<(), EncodeError>,
) -> Result<Option<Message>, TestCaseError> {
    const EARLIER: &[u8] = b"earlier messages";
    let mut out = BytesMut::from(EARLIER);
    let result = encode(&mut out);
    prop_assert!(out.starts_with(EARLIER));
    let mut written = out.split_off(EARLIER.len()).freeze();
    match result {
        Ok(()) => {
            let head = Header::decode(written.first_chunk::<HEADER_LEN>().unwrap());
            written.advance(HEADER_LEN);
            prop_assert_eq!(head.len as usize, written.len());
            prop_assert!(written.len() <= PAYLOAD_MAX);
            Ok(Some(Message { op: head.op, req_id: head.req_id, tx_id: head.tx_id, payload: written }))
        }
        Err(error) => {
            prop_assert!(matches!(error, EncodeError::TooLong { len, .. } if len > PAYLOAD_MAX), "{error}");
            prop_assert!(written.is_empty());
            Ok(None)
        }
    }
}

proptest! {
    #[test]
    fn requests(request in request(), req_id: u32, tx_id: u32) {
        if let Some(message) = there_and_back(|out| request.encode(req_id, TxId(tx_id), out))? {
            prop_assert_eq!(message.op, request.op());
            prop_assert_eq!((message.req_id, message.tx_id), (req_id, TxId(tx_id)));
            prop_assert_eq!(Request::decode(message.op, message.payload), Ok(request));
        }
    }

    #[test]
    fn replies((asked, reply) in reply(), req_id: u32, tx_id: u32) {
        if let Some(message) = there_and_back(|out| reply.encode(asked, req_id, TxId(tx_id), out))? {
            let failed = matches!(reply, Reply::Error(_));
            prop_assert_eq!(message.op, if failed { Op::ERROR } else { asked });
            prop_assert_eq!((message.req_id, message.tx_id), (req_id, TxId(tx_id)));
            prop_assert_eq!(Reply::decode(asked, message.op, message.payload), Ok(reply));
        }
    }

    #[test]
    fn watch_events(path in path(), token in token()) {
        let event = WatchEvent { path, token };
        if let Some(message) = there_and_back(|out| event.encode(out))? {
            prop_assert_eq!((message.op, message.req_id, message.tx_id), (Op::WATCH_EVENT, 0, TxId::NONE));
            prop_assert_eq!(WatchEvent::decode(message.payload), Ok(event));
        }
    }

    #[test]
    fn arguments_with_nul_bytes_are_refused(before in argument(), after in argument()) {
        let holed = Bytes::from([&before[..], b"\0", &after[..]].concat());
        prop_assert!(Token::new(holed.clone()).is_err());
        let requests = [
            Request::Control(vec![before, holed.clone()]),
            Request::GetQuota { domid: None, name: Some(holed.clone()) },
            Request::SetQuota { domid: Some(DomId(1)), name: holed, value: 0 },
        ];
        for request in requests {
            let mut out = BytesMut::new();
            let refused = Err(EncodeError::EmbeddedNul { op: request.op() });
            prop_assert_eq!(request.encode(0, TxId::NONE, &mut out), refused);
            prop_assert!(out.is_empty());
        }
    }
}

#[test]
fn a_domain_without_a_quota_is_not_sent() {
    let mut out = BytesMut::new();
    Request::GetQuota { domid: Some(DomId(5)), name: None }.encode(1, TxId::NONE, &mut out).unwrap();
    assert_eq!(out.len(), HEADER_LEN);
}

/// The limit is met exactly by what `encode` writes for the first length, and missed by one with the
/// next.
fn limit(len: usize, encode: impl Fn(Vec<u8>, &mut BytesMut) -> Result<(), EncodeError>) {
    let mut out = BytesMut::new();
    assert_eq!(encode(vec![b'x'; len], &mut out), Ok(()));
    assert_eq!(out.len(), HEADER_LEN + PAYLOAD_MAX);
    let mut out = BytesMut::new();
    let error = encode(vec![b'x'; len + 1], &mut out).unwrap_err();
    assert!(
        matches!(error, EncodeError::TooLong { len, max: PAYLOAD_MAX, .. } if len == PAYLOAD_MAX + 1),
        "{error}"
    );
    assert!(out.is_empty());
}

#[test]
fn a_payload_of_4096_bytes_passes_and_one_of_4097_does_not() {
    let path = Path::new("/a").unwrap();
    limit(PAYLOAD_MAX - "/a\0".len(), |value, out| {
        Request::Write { path: path.clone(), value: value.into() }.encode(1, TxId::NONE, out)
    });
    limit(PAYLOAD_MAX - "/a\0\0".len(), |token, out| {
        let token = Token::new(token).unwrap();
        Request::Watch { path: path.clone(), token, depth: None }.encode(1, TxId::NONE, out)
    });
    limit(PAYLOAD_MAX - "/a\0\0".len(), |token, out| {
        WatchEvent { path: path.clone(), token: Token::new(token).unwrap() }.encode(out)
    });
    limit(PAYLOAD_MAX - "\0".len(), |text, out| {
        Request::Control(vec![text.into()]).encode(1, TxId::NONE, out)
    });
    limit(PAYLOAD_MAX, |value, out| Reply::Value(value.into()).encode(Op::READ, 1, TxId::NONE, out));
    limit(PAYLOAD_MAX - "\0".len(), |text, out| {
        Reply::Text(text.into()).encode(Op::CONTROL, 1, TxId::NONE, out)
    });
    limit(PAYLOAD_MAX, |payload, out| {
        let message = Message { op: Op::READ, req_id: 1, tx_id: TxId::NONE, payload: payload.into() };
        match MessageCodec::default().encode(message, out) {
            Ok(()) => Ok(()),
            Err(StreamError::Encode(error)) => Err(error),
            Err(other) => panic!("{other}"),
        }
    });
}

fn message() -> impl Strategy<Value = Message> {
    let payload = vec(any::<u8>(), 0..60).prop_map(Bytes::from);
    (any::<u32>(), any::<u32>(), any::<u32>(), payload).prop_map(|(op, req_id, tx_id, payload)| Message {
        op: Op(op),
        req_id,
        tx_id: TxId(tx_id),
        payload,
    })
}

fn stream_of(messages: &[Message]) -> BytesMut {
    let mut stream = BytesMut::new();
    for message in messages {
        MessageCodec::default().encode(message.clone(), &mut stream).unwrap();
    }
    stream
}

/// What comes out of a stream that arrives in these pieces.
fn decode_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Message> {
    let mut codec = MessageCodec::default();
    let mut buffer = BytesMut::new();
    let mut messages = Vec::new();
    for piece in pieces {
        buffer.extend_from_slice(piece);
        while let Some(message) = codec.decode(&mut buffer).unwrap() {
            messages.push(message);
        }
    }
    assert!(codec.decode_eof(&mut buffer).unwrap().is_none());
    assert!(buffer.is_empty());
    messages
}

proptest! {
    #[test]
    fn streams_may_come_in_any_pieces(messages in vec(message(), 0..5), cuts in vec(1..40_usize, 1..10)) {
        let stream = stream_of(&messages);
        prop_assert_eq!(&decode_pieces(stream.chunks(1)), &messages);
        for at in 0..stream.len() {
            prop_assert_eq!(&decode_pieces([&stream[..at], &stream[at..]]), &messages);
        }
        let mut rest = &stream[..];
        let random = cuts.iter().cycle().map_while(|cut| {
            let (piece, after) = rest.split_at((*cut).min(rest.len()));
            rest = after;
            (!piece.is_empty()).then_some(piece)
        });
        prop_assert_eq!(&decode_pieces(random), &messages);
    }

    #[test]
    fn a_stream_that_ends_inside_a_message_is_truncated(message in message(), at: prop::sample::Index) {
        let mut stream = stream_of(&[message.clone(), message.clone()]);
        let second = stream.len() / 2;
        let got = 1 + at.index(second - 1);
        stream.truncate(second + got);
        let mut codec = MessageCodec::default();
        prop_assert_eq!(codec.decode_eof(&mut stream).unwrap(), Some(message));
        let error = codec.decode_eof(&mut stream).unwrap_err();
        let truncated = DecodeError::Truncated { got };
        prop_assert!(matches!(&error, StreamError::Decode(error) if *error == truncated), "{error}");
    }

    #[test]
    fn a_length_over_the_limit_fails_as_soon_as_it_is_known(limit in 0..10_000_usize, over in 1..u32::MAX) {
        let len = (limit as u32).saturating_add(over);
        let mut head = BytesMut::new();
        Header { op: Op::READ, req_id: 1, tx_id: TxId::NONE, len }.encode(&mut head);
        let mut codec = MessageCodec::with_limit(limit);
        let mut incomplete = BytesMut::from(&head[..HEADER_LEN - 1]);
        prop_assert!(codec.decode(&mut incomplete).unwrap().is_none());
        let error = codec.decode(&mut head).unwrap_err();
        let too_long = DecodeError::TooLong { len, max: limit };
        prop_assert!(matches!(&error, StreamError::Decode(error) if *error == too_long), "{error}");
    }
}

#[test]
fn a_client_may_receive_more_than_it_may_send() {
    let mut stream = BytesMut::new();
    Header { op: Op::DIRECTORY, req_id: 1, tx_id: TxId::NONE, len: 5000 }.encode(&mut stream);
    stream.extend_from_slice(&[b'x'; 5000]);
    let mut codec = MessageCodec::with_limit(5000);
    let message = codec.decode(&mut stream).unwrap().unwrap();
    assert_eq!(message.payload.len(), 5000);
    assert!(codec.encode(message, &mut stream).is_err());
    assert!(stream.is_empty());
}

/// Who keeps the state of a device does not keep the buffer that its message came in.
#[test]
fn common_payloads_share_nothing_with_the_stream() {
    let single = (0..=u8::MAX).map(|byte| Bytes::from(vec![byte]));
    for payload in single.chain([Bytes::new(), Bytes::from("OK\0")]) {
        let message = Message { op: Op::READ, req_id: 7, tx_id: TxId::NONE, payload };
        let mut stream = stream_of(std::slice::from_ref(&message));
        let room = stream.capacity();
        let decoded = MessageCodec::default().decode(&mut stream).unwrap().unwrap();
        assert_eq!(decoded, message);
        assert!(stream.try_reclaim(room), "{decoded:?}");
    }
}
