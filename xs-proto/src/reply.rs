//! Replies: what a server answers, typed by the operation that was asked.

use bytes::{Bytes, BytesMut};

use crate::draft::Draft;
use crate::grammar::malformed;
use crate::{DecodeError, EncodeError, ErrorCode, Features, Op, Path, Permissions, TxId, grammar};

/// The names of a node's children, in the order the server gave them: never rely on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names(Bytes);

impl Names {
    /// A list of these names. A name with a NUL byte would read as two.
    pub fn from_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut bytes = BytesMut::new();
        for name in names {
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(b"\0");
        }
        Self(bytes.freeze())
    }

    /// A list as it stands on the wire: names, each with its NUL. What is not one is refused by who
    /// receives it.
    pub fn from_list(list: Bytes) -> Self {
        Self(list)
    }

    /// Every name must be terminated and valid as a path component.
    fn decode(op: Op, payload: Bytes) -> Result<Self, DecodeError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() | matches!(byte, b'-' | b'_' | b'@' | 0);
        let begins_well = payload.first() != Some(&0) && payload.last().is_none_or(|last| *last == 0);
        let no_empty_name = !payload.windows(2).fold(false, |found, pair| found | (pair == b"\0\0"));
        if begins_well && no_empty_name && payload.iter().fold(true, |good, byte| good & allowed(*byte)) {
            Ok(Self(payload))
        } else {
            Err(malformed(op, "node names, each with a NUL"))
        }
    }

    fn slices(&self) -> impl Iterator<Item = &[u8]> {
        let without_last_nul = self.0.strip_suffix(b"\0");
        without_last_nul.into_iter().flat_map(|list| list.split(|byte| *byte == 0))
    }

    /// The names.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.slices().filter_map(|name| core::str::from_utf8(name).ok())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The list as it stands on the wire.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reply {
    /// Done; nothing to tell.
    Ok,
    /// The value of a node (READ).
    Value(Bytes),
    /// Names of children (DIRECTORY).
    Names(Names),
    /// Some names of children (DIRECTORY_PART).
    Part {
        /// Changes whenever the list, the value or the permissions of the node change.
        generation: u64,
        /// The names of this part. Its first may be the tail of a name, if the offset was in one.
        names: Names,
        /// Whether the list ends here.
        last: bool,
    },
    /// A permission list (GET_PERMS).
    Perms(Permissions),
    /// A new transaction (TRANSACTION_START).
    Transaction(TxId),
    /// A home directory (GET_DOMAIN_PATH).
    DomainPath(Path),
    /// Yes or no (IS_DOMAIN_INTRODUCED).
    Introduced(bool),
    /// Feature bits (GET_FEATURE).
    Features(Features),
    /// Text without its NUL (CONTROL, GET_QUOTA).
    Text(Bytes),
    /// The request failed.
    Error(ErrorCode),
}

impl Reply {
    /// Types the payload of a reply.
    ///
    /// `asked` is the operation of the request, `answered` that of the reply, which is either
    /// the same or [`Op::ERROR`]. A missing NUL at the end of an error name or a text is taken.
    pub fn decode(asked: Op, answered: Op, payload: Bytes) -> Result<Self, DecodeError> {
        let op = asked;
        let text = || match payload.strip_suffix(b"\0") {
            Some(text) => payload.slice_ref(text),
            None => payload.clone(),
        };
        if answered == Op::ERROR {
            return Ok(Self::Error(ErrorCode::from_wire(text())));
        }
        if answered != asked {
            return Err(malformed(op, "a reply of the operation that was asked, or an error"));
        }
        Ok(match op {
            Op::READ => Self::Value(payload),
            Op::DIRECTORY => Self::Names(Names::decode(op, payload)?),
            Op::DIRECTORY_PART => {
                let expected = "a generation and names, each with a NUL";
                let (generation, list) = grammar::string_and_rest(op, payload, expected)?;
                // The end of the list is a second NUL behind the last name, or a lone one.
                let last = &list[..] == b"\0" || list.ends_with(b"\0\0");
                let list = if last { list.slice(..list.len() - 1) } else { list };
                let generation = grammar::decimal(op, &generation, "a decimal generation")?;
                Self::Part { generation, names: Names::decode(op, list)?, last }
            }
            Op::GET_PERMS => {
                let entries = grammar::strings(&payload).map(|entry| grammar::permission(op, entry));
                let perms = Permissions::new(entries.collect::<Result<_, _>>()?);
                Self::Perms(perms.map_err(|_| malformed(op, "at least one entry"))?)
            }
            Op::TRANSACTION_START => Self::Transaction(TxId(grammar::decimal(op, &text(), "a decimal id")?)),
            Op::GET_DOMAIN_PATH => Self::DomainPath(grammar::path(op, text())?),
            Op::IS_DOMAIN_INTRODUCED => match &text()[..] {
                b"T" => Self::Introduced(true),
                b"F" => Self::Introduced(false),
                _ => return Err(malformed(op, "T or F")),
            },
            Op::GET_FEATURE => {
                Self::Features(Features(grammar::decimal(op, &text(), "decimal feature bits")?))
            }
            Op::CONTROL | Op::GET_QUOTA => Self::Text(text()),
            // Acknowledgements; their text is always OK and carries nothing.
            _ => Self::Ok,
        })
    }

    /// Appends the reply to a request of `op` as a message: the server's side.
    pub fn encode(&self, op: Op, req_id: u32, tx_id: TxId, out: &mut BytesMut) -> Result<(), EncodeError> {
        let op = if let Self::Error(_) = self { Op::ERROR } else { op };
        let draft = Draft::new(op, req_id, tx_id, out);
        match self {
            Self::Ok => draft.string(b"OK"),
            Self::Value(value) => draft.bytes(value),
            Self::Names(names) => draft.bytes(names.as_bytes()),
            Self::Part { generation, names, last } => {
                draft.text(generation).bytes(names.as_bytes()).bytes(if *last { b"\0" } else { b"" })
            }
            Self::Perms(perms) => perms.entries().iter().fold(draft, |draft, entry| draft.text(entry)),
            Self::Transaction(id) => draft.text(id.0),
            Self::DomainPath(path) => draft.path(path),
            Self::Introduced(yes) => draft.string(if *yes { b"T" } else { b"F" }),
            Self::Features(features) => draft.text(features),
            Self::Text(text) => draft.bytes(text).bytes(b"\0"),
            Self::Error(code) => draft.string(code.as_bytes()),
        }
        .finish()
    }
}
