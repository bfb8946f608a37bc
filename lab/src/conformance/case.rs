//! The format of the conformance cases, one JSON object a line.
//!
//! A case is a dialogue: steps in order, each naming the connection it happens on. A connection
//! is opened when it is first named, privileged unless the case gives it a domain.
//!
//! Byte strings are JSON strings whose characters U+0000 to U+00FF are one byte each, or arrays
//! of such strings and of two other parts: `{"rep": S, "n": N}` is a string repeated, and
//! `{"hdr": [op, req_id, tx_id, len]}` a message header, which need not fit what follows it.
//!
//! A field that is not known here is an error: an expectation that nobody checks must not look
//! like one that holds.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use bytes::BytesMut;
use serde::{Deserialize, Deserializer, de};
use xs_proto::{DomId, Header, Op, TxId};

/// A case.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Its number, such as `C001`.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What it is about, in a word.
    pub section: String,
    /// Tags of behaviour that a server must have for the case to apply to it.
    pub requires: Vec<String>,
    /// Something to know about it.
    #[serde(default)]
    pub note: String,
    /// The servers on which it was seen to pass.
    pub verified: Vec<String>,
    #[serde(default)]
    pub(super) conns: BTreeMap<String, Guest>,
    #[serde(default)]
    domains: Vec<u32>,
    /// Paths to remove before and after.
    #[serde(default)]
    pub(super) cleanup: Vec<String>,
    pub(super) steps: Vec<Step>,
}

impl Case {
    /// The domains it uses.
    pub fn domains(&self) -> impl Iterator<Item = DomId> {
        self.domains.iter().map(|number| DomId(*number))
    }

    /// Whether it looks into a ring page, which only a guest on a ring has.
    pub fn needs_ring(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::RingField { .. } | Step::RingAdd { .. }))
    }
}

/// Reads cases.
pub(super) fn parse(text: &str) -> Result<Vec<Case>> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(number, line)| serde_json::from_str(line).with_context(|| format!("line {}", number + 1)))
        .collect()
}

/// The domain of a connection.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Guest {
    pub(super) domid: u32,
}

/// One thing that happens.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub(super) enum Step {
    /// A request, whose reply must come. Events in front of it are kept.
    Request {
        conn: String,
        #[serde(deserialize_with = "op")]
        op: Op,
        #[serde(default)]
        payload: Text,
        #[serde(default)]
        tx: Tx,
        #[serde(default)]
        req_id: Option<u32>,
        /// How many times; `{i}` in the payload is the number of the turn, from 0.
        #[serde(default)]
        repeat: Option<u32>,
        expect: Box<Expect>,
    },
    /// Requests in one write. The next messages must be exactly `sequence`, events included.
    Pipeline { conn: String, pipeline: Vec<Ask>, sequence: Vec<Expect> },
    /// The events that were received since the last such step.
    Events {
        conn: String,
        events: Vec<Text>,
        #[serde(default)]
        order: Order,
    },
    /// Bytes, written one by one, and the one message that must come.
    Raw { conn: String, raw: Vec<Text>, req_id: Option<u32>, expect: Box<Expect> },
    /// Bytes that get no answer.
    Send { conn: String, send: Vec<Text> },
    /// The end of a connection. Its name then means a new one.
    Close {
        conn: String,
        #[serde(rename = "close")]
        _close: bool,
    },
    /// A field of the ring page that must have this value before long.
    RingField { conn: String, ring_field: u64, value: u32 },
    /// A field of the ring page that the guest changes.
    RingAdd { conn: String, ring_add: u64, value: u32 },
    /// Something the hypervisor does to a domain.
    Hypervisor { hv: Deed, domid: u32 },
}

/// A request of a pipeline.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ask {
    #[serde(deserialize_with = "op")]
    pub(super) op: Op,
    #[serde(default)]
    pub(super) payload: Text,
    #[serde(default)]
    pub(super) tx: Tx,
}

/// What a message must be; whatever is not named may be anything.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Expect {
    #[serde(deserialize_with = "some_op")]
    pub(super) op: Option<Op>,
    pub(super) payload: Option<Text>,
    pub(super) prefix: Option<Text>,
    pub(super) suffix: Option<Text>,
    pub(super) contains: Option<Text>,
    pub(super) len: Option<usize>,
    pub(super) strings_any_order: Option<Vec<Text>>,
    /// An error reply, of one of these names.
    pub(super) error: Option<OneOrMore>,
    /// The payload is a decimal number, to be known by this name.
    pub(super) bind: Option<String>,
    /// The first string of the payload is to be known by this name.
    pub(super) bind_first: Option<String>,
    pub(super) same_first: Option<String>,
    pub(super) differs_first: Option<String>,
    /// Whether the transaction need not be echoed.
    pub(super) tx: Option<Any>,
    /// The connection is closed, and nothing comes.
    pub(super) closed: bool,
}

/// The order in which events must come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Order {
    #[default]
    Given,
    Any,
}

/// What the hypervisor does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Deed {
    Create,
    Shutdown,
    Destroy,
}

/// Literally `any`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Any {
    Any,
}

/// A transaction: a number, or the name of one that a reply gave.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Tx {
    Number(u32),
    Name(String),
}

impl Default for Tx {
    fn default() -> Self {
        Self::Number(TxId::NONE.0)
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl OneOrMore {
    pub(super) fn names(&self) -> &[String] {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::More(names) => names,
        }
    }
}

/// A byte string.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Text(pub(super) Vec<u8>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Plain(String),
            Parts(Vec<Part>),
        }
        #[derive(Deserialize)]
        #[serde(untagged, deny_unknown_fields)]
        enum Part {
            Plain(String),
            Repeated { rep: String, n: usize },
            Header { hdr: (OpName, u32, u32, u32) },
        }
        let bytes = match Form::deserialize(deserializer)? {
            Form::Plain(text) => latin1(&text)?,
            Form::Parts(parts) => {
                let parts = parts.into_iter().map(|part| match part {
                    Part::Plain(text) => latin1(&text),
                    Part::Repeated { rep, n } => Ok(latin1(&rep)?.repeat(n)),
                    Part::Header { hdr: (op, req_id, tx_id, len) } => {
                        let mut bytes = BytesMut::new();
                        Header { op: op.op()?, req_id, tx_id: TxId(tx_id), len }.encode(&mut bytes);
                        Ok(bytes.to_vec())
                    }
                });
                parts.collect::<Result<Vec<_>, D::Error>>()?.concat()
            }
        };
        Ok(Self(bytes))
    }
}

fn latin1<E: de::Error>(text: &str) -> Result<Vec<u8>, E> {
    let byte = |c: char| u8::try_from(c).map_err(|_| E::custom(format!("{c:?} is not one byte")));
    text.chars().map(byte).collect()
}

/// An operation, by name or by number.
#[derive(Deserialize)]
#[serde(untagged)]
enum OpName {
    Number(u32),
    Name(String),
}

impl OpName {
    fn op<E: de::Error>(self) -> Result<Op, E> {
        match self {
            Self::Number(number) => Ok(Op(number)),
            // It went out of the protocol, and its number was not given to another.
            Self::Name(name) if name == "RESTRICT" => Ok(Op(20)),
            Self::Name(name) => (0..=Op::SET_QUOTA.0)
                .map(Op)
                .find(|op| op.name() == Some(&*name))
                .ok_or_else(|| E::custom(format!("{name} is no operation"))),
        }
    }
}

fn op<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Op, D::Error> {
    OpName::deserialize(deserializer)?.op()
}

fn some_op<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Op>, D::Error> {
    op(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(json: &str) -> serde_json::Result<Step> {
        serde_json::from_str(json)
    }

    #[test]
    fn unknown_fields_are_refused() {
        let expect = r#"{"conn":"a","op":"READ","payload":"/","expect":{"op":"READ"}}"#;
        assert!(step(expect).is_ok());
        assert!(step(&expect.replace(r#""payload""#, r#""paylaod""#)).is_err());
        assert!(step(&expect.replace(r#"{"op":"READ"}"#, r#"{"opp":"READ"}"#)).is_err());
        assert!(step(&expect.replace("READ", "READS")).is_err());
    }

    #[test]
    fn byte_strings() {
        let text = |json: &str| serde_json::from_str::<Text>(json).map(|text| text.0);
        assert_eq!(text(r#""aÿ\u0000""#).unwrap(), b"a\xff\0");
        assert_eq!(text(r#"["x", {"rep":"ab","n":2}]"#).unwrap(), b"xabab");
        let header = text(r#"[{"hdr":["READ",1,2,4097]}]"#).unwrap();
        assert_eq!(header, [2, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 1, 16, 0, 0]);
        assert!(text(r#""€""#).is_err());
    }
}
