//! What comes from the other side: tables of what the real servers take and refuse, and the promise
//! that no input panics.

use bytes::{Bytes, BytesMut};
use proptest::collection::vec;
use proptest::prelude::*;
use xs_proto::{
    ABSOLUTE_MAX, DecodeError, DomId, ErrorCode, HEADER_LEN, Header, Op, Path, PathError, RELATIVE_MAX,
    Reply, Request, TxId, WatchEvent,
};

/// A payload, written with `|` for the NUL byte.
fn wire(payload: &str) -> Bytes {
    payload.replace('|', "\0").into()
}

fn request(op: Op, payload: &str) -> Result<Request, DecodeError> {
    Request::decode(op, wire(payload))
}

fn path(text: &str) -> Path {
    Path::new(text).unwrap()
}

/// The entries, written plainly, of the list in a SET_PERMS payload.
fn set_perms(payload: &str) -> Option<String> {
    match request(Op::SET_PERMS, payload) {
        Ok(Request::SetPerms { path, perms }) => {
            assert_eq!(&*path, "/a");
            Some(perms.to_string())
        }
        Ok(other) => panic!("{other:?}"),
        Err(_) => None,
    }
}

#[test]
fn permission_lists() {
    let taken = [
        ("/a|n0|r1|b2|w3|", "n0,r1,b2,w3"),
        ("/a|n0|r4242|", "n0,r4242"),
        ("/a|n65535|", "n65535"),
        // Duplicates are kept, and numbers are read with base 0.
        ("/a|n0|r1|r1|", "n0,r1,r1"),
        ("/a|n0|r0x1|", "n0,r1"),
        ("/a|n0X1F|", "n31"),
        ("/a|n00|", "n0"),
        ("/a|n017|", "n15"),
        ("/a|n +1|r\t2|", "n1,r2"),
        // Numbers that no domain has are kept, and not cut down to one that a domain has.
        ("/a|n0|r-1|r65536|", "n0,r-1,r65536"),
        // An unterminated tail does not count.
        ("/a|b0|r1", "b0"),
    ];
    for (payload, list) in taken {
        assert_eq!(set_perms(payload).as_deref(), Some(list), "{payload:?}");
    }
    let refused = [
        "/a|x0|",
        "/a|R0|",
        "/a|0|",
        "/a|n|",
        "/a|n0x|",
        "/a|nx|",
        "/a|n0 |",
        "/a|n0||",
        "/a|n08|",
        "/a|n0x+1|",
        "/a|n- 1|",
        "/a|ä0|",
        "/a|",
        "/a|n0",
        "/a",
        "",
        "|n0|",
        "/a.b|n0|",
    ];
    for payload in refused {
        assert_eq!(set_perms(payload), None, "{payload:?}");
    }
}

#[test]
fn single_strings_have_exactly_one_nul_at_their_end() {
    let of_path = [Op::READ, Op::DIRECTORY, Op::GET_PERMS, Op::MKDIR, Op::RM];
    let of_domid = [Op::GET_DOMAIN_PATH, Op::RELEASE, Op::RESUME, Op::IS_DOMAIN_INTRODUCED];
    let cases = of_path.map(|op| (op, ["", "/a", "/a||", "/a|b|", "/a|b"]));
    for (op, payloads) in cases.into_iter().chain(of_domid.map(|op| (op, ["", "1", "1||", "1|2|", "|"]))) {
        for payload in payloads {
            let error = request(op, payload).unwrap_err();
            assert!(
                matches!(error, DecodeError::Malformed { op: of, .. } if of == op),
                "{payload:?}: {error}"
            );
        }
    }
    for op in of_path {
        assert_eq!(request(op, "/a|").unwrap().path(), Some(&path("/a")));
        let error = request(op, "/a//b|").unwrap_err();
        assert!(
            matches!(error, DecodeError::Path { source: PathError::EmptyComponent { .. }, .. }),
            "{error}"
        );
    }
    for op in of_domid {
        assert_eq!(request(op, "12|").unwrap().op(), op);
        for payload in ["x|", "+1|", "-1|", " 1|", "65536|"] {
            assert!(request(op, payload).is_err(), "{op} {payload:?}");
        }
    }
}

#[test]
fn writes() {
    let write = |payload| match request(Op::WRITE, payload) {
        Ok(Request::Write { path, value }) => Some((path.to_string(), value)),
        _ => None,
    };
    let value = |value: &'static str| Some(("/a".to_owned(), Bytes::from(value)));
    assert_eq!(write("/a|v"), value("v"));
    assert_eq!(write("/a|"), value(""));
    assert_eq!(write("/a|v|w|"), value("v\0w\0"));
    assert_eq!(write("/a"), None);
    assert_eq!(write(""), None);
}

#[test]
fn watches() {
    let watch = |payload| match request(Op::WATCH, payload) {
        Ok(Request::Watch { path, token, depth }) => {
            Some((path.to_string(), String::from_utf8(token.as_bytes().to_vec()).unwrap(), depth))
        }
        _ => None,
    };
    let with = |token: &str, depth| Some(("a".to_owned(), token.to_owned(), depth));
    assert_eq!(watch("a|t|"), with("t", None));
    assert_eq!(watch("a||"), with("", None));
    assert_eq!(watch("a|t|tail"), with("t", None));
    assert_eq!(watch("a|t|3|"), with("t", Some(3)));
    assert_eq!(watch("a|t|junk|"), with("t", Some(0)));
    assert_eq!(watch("a|t|-1|"), None);
    assert_eq!(watch("a|t|1|2|"), None);
    assert_eq!(watch("a|t"), None);
    assert_eq!(watch("a b|t|"), None);

    assert!(request(Op::UNWATCH, "a|t|").is_ok());
    for payload in ["a|t", "a|t|x|", "a|", ""] {
        assert!(request(Op::UNWATCH, payload).is_err(), "{payload:?}");
    }
}

#[test]
fn transactions() {
    for payload in ["|", "", "anything"] {
        assert_eq!(request(Op::TRANSACTION_START, payload), Ok(Request::TransactionStart));
    }
    assert_eq!(request(Op::TRANSACTION_END, "T|"), Ok(Request::TransactionEnd { commit: true }));
    assert_eq!(request(Op::TRANSACTION_END, "F|"), Ok(Request::TransactionEnd { commit: false }));
    for payload in ["", "|", "T", "t|", "TF|", "T||", "T|F|"] {
        assert!(request(Op::TRANSACTION_END, payload).is_err(), "{payload:?}");
    }
}

#[test]
fn offsets_of_directory_part_are_read_like_atoi() {
    let offset = |payload| match request(Op::DIRECTORY_PART, payload) {
        Ok(Request::DirectoryPart { offset, .. }) => Some(offset),
        _ => None,
    };
    assert_eq!(offset("/a|17|"), Some(17));
    assert_eq!(offset("/a|17x|"), Some(17));
    assert_eq!(offset("/a|junk|"), Some(0));
    assert_eq!(offset("/a||"), Some(0));
    assert_eq!(offset("/a|-5|"), Some(u32::MAX));
    assert_eq!(offset("/a|99999999999|"), Some(u32::MAX));
    for payload in ["/a|", "/a|0", "/a|0|x|", ""] {
        assert_eq!(offset(payload), None, "{payload:?}");
    }
}

#[test]
fn privileged_requests() {
    let introduce = Request::Introduce { domid: DomId(1), gfn: 0xffff_ffff_ffff, evtchn: 2 };
    assert_eq!(request(Op::INTRODUCE, "1|281474976710655|2|"), Ok(introduce));
    for payload in ["1|2|", "1|2|3", "x|2|3|", "1|2|-3|", "1|184467440737095516160|3|"] {
        assert!(request(Op::INTRODUCE, payload).is_err(), "{payload:?}");
    }
    assert_eq!(request(Op::SET_TARGET, "1|2|"), Ok(Request::SetTarget { domid: DomId(1), target: DomId(2) }));
    assert!(request(Op::SET_TARGET, "1|").is_err());
    assert_eq!(request(Op::GET_FEATURE, ""), Ok(Request::GetFeature(None)));
    assert_eq!(request(Op::GET_FEATURE, "|"), Ok(Request::GetFeature(Some(DomId::DOM0))));
    assert_eq!(request(Op::GET_FEATURE, "5|"), Ok(Request::GetFeature(Some(DomId(5)))));
    for payload in ["x|", "1|2|"] {
        assert!(request(Op::GET_FEATURE, payload).is_err(), "{payload:?}");
    }
    let quota =
        |domid, name: Option<&'static str>| Ok(Request::GetQuota { domid, name: name.map(Bytes::from) });
    assert_eq!(request(Op::GET_QUOTA, ""), quota(None, None));
    assert_eq!(request(Op::GET_QUOTA, "nodes|"), quota(None, Some("nodes")));
    assert_eq!(request(Op::GET_QUOTA, "5|nodes|"), quota(Some(DomId(5)), Some("nodes")));
    assert!(request(Op::GET_QUOTA, "x|nodes|").is_err());
    assert!(request(Op::SET_QUOTA, "nodes|").is_err());
    assert!(request(Op::SET_QUOTA, "nodes|-1|").is_err());
    let junk = Request::SetQuota { domid: None, name: "nodes".into(), value: 0 };
    assert_eq!(request(Op::SET_QUOTA, "nodes|junk|"), Ok(junk));
}

#[test]
fn numbers_that_are_no_request() {
    for op in [Op::WATCH_EVENT, Op::ERROR, Op(20), Op(27), Op(9999), Op(65535), Op(u32::MAX)] {
        assert_eq!(request(op, "/a|"), Err(DecodeError::UnknownOp(op)));
    }
}

/// Generation, names and whether they are the last, of a DIRECTORY_PART reply.
fn part(payload: &str) -> Option<(u64, Vec<String>, bool)> {
    match Reply::decode(Op::DIRECTORY_PART, Op::DIRECTORY_PART, wire(payload)) {
        Ok(Reply::Part { generation, names, last }) => {
            Some((generation, names.iter().map(str::to_owned).collect(), last))
        }
        Ok(other) => panic!("{other:?}"),
        Err(_) => None,
    }
}

#[test]
fn the_end_of_a_list_in_parts() {
    let of = |names: &[&str], last| Some((7, names.iter().map(|name| (*name).to_owned()).collect(), last));
    assert_eq!(part("7|a|b||"), of(&["a", "b"], true));
    assert_eq!(part("7|a|b|"), of(&["a", "b"], false));
    assert_eq!(part("7|bc||"), of(&["bc"], true));
    // No children, or an offset past the end.
    assert_eq!(part("7||"), of(&[], true));
    // Not a name fits: no server sends that, and it is not the end.
    assert_eq!(part("7|"), of(&[], false));
    assert_eq!(part("18446744073709551615||"), Some((u64::MAX, vec![], true)));
    for payload in ["", "7", "x|a||", "|a||", "-7||", "7|a", "7|a|||", "7||a|", "7|a.b||"] {
        assert_eq!(part(payload), None, "{payload:?}");
    }
}

#[test]
fn replies() {
    let reply = |op, payload: &str| Reply::decode(op, op, wire(payload));
    let names = |payload| match reply(Op::DIRECTORY, payload) {
        Ok(Reply::Names(names)) => Some(names.iter().map(str::to_owned).collect::<Vec<_>>()),
        _ => None,
    };
    assert_eq!(names(""), Some(vec![]));
    // Special nodes are children of the root in oxenstored.
    assert_eq!(names("@releaseDomain|a|").unwrap(), ["@releaseDomain", "a"]);
    for payload in ["a", "|", "a||", "a|b", "a/b|"] {
        assert_eq!(names(payload), None, "{payload:?}");
    }
    assert_eq!(reply(Op::READ, "v|"), Ok(Reply::Value("v\0".into())));
    assert_eq!(reply(Op::TRANSACTION_START, "4294967295|"), Ok(Reply::Transaction(TxId(u32::MAX))));
    assert!(reply(Op::TRANSACTION_START, "4294967296|").is_err());
    assert!(reply(Op::TRANSACTION_START, "|").is_err());
    assert_eq!(reply(Op::IS_DOMAIN_INTRODUCED, "F|"), Ok(Reply::Introduced(false)));
    assert!(reply(Op::IS_DOMAIN_INTRODUCED, "OK|").is_err());
    assert_eq!(
        reply(Op::GET_DOMAIN_PATH, "/local/domain/5|"),
        Ok(Reply::DomainPath(path("/local/domain/5")))
    );
    assert!(reply(Op::GET_PERMS, "").is_err());
    assert_eq!(reply(Op::WRITE, "OK|"), Ok(Reply::Ok));
    // oxenstored leaves the NUL out.
    assert_eq!(reply(Op::CONTROL, "text"), reply(Op::CONTROL, "text|"));
}

#[test]
fn errors() {
    let error = |payload: &str| match Reply::decode(Op::READ, Op::ERROR, wire(payload)) {
        Ok(Reply::Error(code)) => code,
        other => panic!("{other:?}"),
    };
    assert_eq!(error("ENOENT|"), ErrorCode::ENOENT);
    assert_eq!(error("ENOENT"), ErrorCode::ENOENT);
    assert_eq!(error("EQUOTA|"), ErrorCode::Other("EQUOTA".into()));
    assert!(error("EQUOTA|").is_quota() && error("ENOSPC|").is_quota() && !error("EPERM|").is_quota());
    assert_eq!(error("|"), ErrorCode::Other("".into()));
    assert!(Reply::decode(Op::READ, Op::WRITE, wire("OK|")).is_err());
}

#[test]
fn watch_events_are_exactly_two_strings() {
    let event = |payload: &str| WatchEvent::decode(wire(payload)).ok();
    assert_eq!(event("@releaseDomain|t|").unwrap().token.as_bytes(), b"t");
    assert_eq!(event("a/b||").unwrap().path, path("a/b"));
    for payload in ["", "a|", "a|t", "a|t|x|", "a|t|x", "|t|", "a b|t|"] {
        assert_eq!(event(payload), None, "{payload:?}");
    }
}

#[test]
fn domain_ids() {
    for (text, domid) in [("0", 0), ("5", 5), ("005", 5), ("65535", 65535)] {
        assert_eq!(text.parse(), Ok(DomId(domid)));
    }
    for text in ["", "+1", "-1", " 1", "1 ", "0x1", "1e1", "65536", "1\0"] {
        assert!(text.parse::<DomId>().is_err(), "{text:?}");
    }
    assert!(DomId(32751).is_regular() && !DomId::SELF.is_regular() && !DomId::ANY.is_regular());
}

/// Payloads that are nearly right.
fn payload() -> impl Strategy<Value = Bytes> {
    let piece = prop_oneof![
        prop::sample::select(vec![
            "/",
            "/a",
            "a",
            "@",
            "@x",
            "\0",
            "\0",
            "\0",
            "0",
            "1",
            "-1",
            "+",
            "T",
            "r",
            "n0",
            "b65536",
            "0x",
            "18446744073709551616",
            "ä",
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
        vec(any::<u8>(), 0..5),
    ];
    vec(piece, 0..8).prop_map(|pieces| pieces.concat().into())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_payload_panics(payload in payload()) {
        for op in (0..30).chain([65535, u32::MAX]).map(Op) {
            let _ = Reply::decode(op, op, payload.clone());
            let _ = Reply::decode(op, Op::ERROR, payload.clone());
            // What was taken leniently is one thing, and goes out in its plain form.
            if let Ok(request) = Request::decode(op, payload.clone()) {
                let mut out = BytesMut::new();
                prop_assert_eq!(request.encode(1, TxId::NONE, &mut out), Ok(()));
                let plain = out.split_off(HEADER_LEN).freeze();
                prop_assert_eq!(Request::decode(op, plain), Ok(request));
            }
        }
        let _ = WatchEvent::decode(payload.clone());
    }

    #[test]
    fn headers_are_four_little_endian_words(bytes: [u8; HEADER_LEN]) {
        let header = Header::decode(&bytes);
        let words = [header.op.0, header.req_id, header.tx_id.0, header.len];
        prop_assert_eq!(words.map(u32::to_le_bytes).concat(), bytes);
        let mut out = BytesMut::new();
        header.encode(&mut out);
        prop_assert_eq!(&out[..], bytes);
    }

    #[test]
    fn paths_are_what_the_grammar_says(text in "[/a-cZ9_@. -]{0,8}|\\PC{0,4}") {
        let name = |name: &str| {
            let byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-_@".contains(&byte);
            !name.is_empty() && name.bytes().all(byte)
        };
        let names = text.strip_prefix('/').unwrap_or(&text);
        let expected = text == "/" || names.split('/').all(name);
        prop_assert_eq!(Path::new(&text).is_ok(), expected);
    }

    #[test]
    fn paths_and_their_parents(
        parent in "/|(/?[a-c@]{1,2}(/[a-c]{1,2}){0,3})",
        name in "[a-c_-]{1,2}",
        other in "/|(/?[a-c@]{1,2}(/[a-c]{1,2}){0,3})",
    ) {
        let (parent, other) = (path(&parent), path(&other));
        let child = parent.join(&name).unwrap();
        prop_assert_eq!(child.parent(), Some(parent.clone()));
        prop_assert_eq!(child.name(), &name);
        prop_assert!(child.is_within(&parent) && child.is_within(&child) && !parent.is_within(&child));
        prop_assert_eq!((child.is_absolute(), child.is_special()), (parent.is_absolute(), parent.is_special()));
        prop_assert!(child.names().eq(parent.names().chain([&name[..]])));
        // To be within is to be it, or to have a parent that is within.
        let by_parents = child == other || parent.is_within(&other);
        prop_assert_eq!(child.is_within(&other), by_parents);
        // Names decide, not text.
        let longer = path(&format!("{child}x"));
        prop_assert!(!longer.is_within(&child));
        for not_below in ["", "/", "/x", "x/", "x//y", "x.y"] {
            prop_assert!(parent.join(not_below).is_err());
        }
    }
}

#[test]
fn joining_keeps_to_the_limits() {
    let long = |len: usize| "x".repeat(len);
    assert!(path("/a").join(long(ABSOLUTE_MAX - "/a/".len())).is_ok());
    assert!(path("/a").join(long(ABSOLUTE_MAX - "/a/".len() + 1)).is_err());
    assert!(path("a").join(long(RELATIVE_MAX - "a/".len())).is_ok());
    assert!(path("a").join(long(RELATIVE_MAX - "a/".len() + 1)).is_err());
}
