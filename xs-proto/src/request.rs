//! Requests: what a client may ask, typed, with the payload grammar of each.

use alloc::vec::Vec;

use bytes::{Bytes, BytesMut};

use crate::draft::Draft;
use crate::grammar::{atoi, first_strings, malformed, strings};
use crate::{DecodeError, DomId, EncodeError, Features, Op, Path, Permissions, TxId, grammar};

/// The name a client gives to a watch: any bytes but NUL.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Token(Bytes);

impl Token {
    /// A token of these bytes.
    pub fn new(bytes: impl Into<Bytes>) -> Result<Self, EncodeError> {
        let bytes = bytes.into();
        if bytes.contains(&0) { Err(EncodeError::EmbeddedNul { op: Op::WATCH }) } else { Ok(Self(bytes)) }
    }

    pub(crate) fn from_wire(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The same token in a buffer of its own, of just its length.
    #[must_use]
    pub fn detached(&self) -> Self {
        Self(Bytes::copy_from_slice(&self.0))
    }
}

/// A request with its arguments.
///
/// What each does is told at its [`Op`]; the reply it gets at [`crate::Reply`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Request {
    /// A command to the daemon, its arguments after it. No argument may hold a NUL byte.
    Control(Vec<Bytes>),
    /// List children.
    Directory(Path),
    /// List children from this offset (in bytes of the whole list) on.
    DirectoryPart {
        /// The node.
        path: Path,
        /// Bytes of the list to skip.
        offset: u32,
    },
    /// Read a value.
    Read(Path),
    /// Read permissions.
    GetPerms(Path),
    /// Register a watch.
    Watch {
        /// What to watch, with all below it.
        path: Path,
        /// The name of the watch.
        token: Token,
        /// How many levels below the path count; only servers with the feature take it.
        depth: Option<u32>,
    },
    /// Remove a watch.
    Unwatch {
        /// The watched path.
        path: Path,
        /// Its token.
        token: Token,
    },
    /// Open a transaction.
    TransactionStart,
    /// End the transaction that the message names.
    TransactionEnd {
        /// Whether its changes are to be kept.
        commit: bool,
    },
    /// Connect a domain.
    Introduce {
        /// The domain.
        domid: DomId,
        /// The frame of its ring page.
        gfn: u64,
        /// Its event channel.
        evtchn: u32,
    },
    /// Disconnect a domain.
    Release(DomId),
    /// Ask for a home directory.
    GetDomainPath(DomId),
    /// Write a value: any bytes.
    Write {
        /// The node.
        path: Path,
        /// Its value.
        value: Bytes,
    },
    /// Create a node.
    Mkdir(Path),
    /// Remove a subtree.
    Rm(Path),
    /// Replace permissions.
    SetPerms {
        /// The node.
        path: Path,
        /// Its new list.
        perms: Permissions,
    },
    /// Ask whether a domain is connected.
    IsDomainIntroduced(DomId),
    /// Let the next shutdown of the domain be reported again.
    Resume(DomId),
    /// Give `domid` the rights of `target`.
    SetTarget {
        /// The domain that gets rights.
        domid: DomId,
        /// The domain whose rights they are.
        target: DomId,
    },
    /// Drop all watches and transactions of the connection.
    ResetWatches,
    /// Ask for the feature bits of a domain, or for the caller's own.
    GetFeature(Option<DomId>),
    /// Set the feature bits of a domain that is not connected yet.
    SetFeature {
        /// The domain.
        domid: DomId,
        /// The bits.
        features: Features,
    },
    /// Ask for the names of all quotas, or for the value of one, of a domain or the default.
    GetQuota {
        /// The domain; none for the default. It is not sent with a request for the names.
        domid: Option<DomId>,
        /// The quota; none for the list of names.
        name: Option<Bytes>,
    },
    /// Set a quota.
    SetQuota {
        /// The domain; none for the default.
        domid: Option<DomId>,
        /// The quota.
        name: Bytes,
        /// Its new value; 0 is unlimited.
        value: u32,
    },
}

impl Request {
    /// The operation.
    pub fn op(&self) -> Op {
        match self {
            Self::Control(_) => Op::CONTROL,
            Self::Directory(_) => Op::DIRECTORY,
            Self::DirectoryPart { .. } => Op::DIRECTORY_PART,
            Self::Read(_) => Op::READ,
            Self::GetPerms(_) => Op::GET_PERMS,
            Self::Watch { .. } => Op::WATCH,
            Self::Unwatch { .. } => Op::UNWATCH,
            Self::TransactionStart => Op::TRANSACTION_START,
            Self::TransactionEnd { .. } => Op::TRANSACTION_END,
            Self::Introduce { .. } => Op::INTRODUCE,
            Self::Release(_) => Op::RELEASE,
            Self::GetDomainPath(_) => Op::GET_DOMAIN_PATH,
            Self::Write { .. } => Op::WRITE,
            Self::Mkdir(_) => Op::MKDIR,
            Self::Rm(_) => Op::RM,
            Self::SetPerms { .. } => Op::SET_PERMS,
            Self::IsDomainIntroduced(_) => Op::IS_DOMAIN_INTRODUCED,
            Self::Resume(_) => Op::RESUME,
            Self::SetTarget { .. } => Op::SET_TARGET,
            Self::ResetWatches => Op::RESET_WATCHES,
            Self::GetFeature(_) => Op::GET_FEATURE,
            Self::SetFeature { .. } => Op::SET_FEATURE,
            Self::GetQuota { .. } => Op::GET_QUOTA,
            Self::SetQuota { .. } => Op::SET_QUOTA,
        }
    }

    /// The node that the request is about, if it is about one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Directory(path) | Self::Read(path) | Self::GetPerms(path) => Some(path),
            Self::Mkdir(path) | Self::Rm(path) => Some(path),
            Self::DirectoryPart { path, .. } | Self::Write { path, .. } => Some(path),
            Self::SetPerms { path, .. } | Self::Watch { path, .. } | Self::Unwatch { path, .. } => Some(path),
            _ => None,
        }
    }

    /// Appends the request as a message.
    ///
    /// The payload may be no longer than [`crate::PAYLOAD_MAX`], and no argument but a value may
    /// hold a NUL byte: on an error `out` is as it was.
    pub fn encode(&self, req_id: u32, tx_id: TxId, out: &mut BytesMut) -> Result<(), EncodeError> {
        let draft = Draft::new(self.op(), req_id, tx_id, out);
        match self {
            Self::Control(arguments) => {
                arguments.iter().fold(draft, |draft, argument| draft.string(argument))
            }
            Self::Directory(path)
            | Self::Read(path)
            | Self::GetPerms(path)
            | Self::Mkdir(path)
            | Self::Rm(path) => draft.path(path),
            Self::DirectoryPart { path, offset } => draft.path(path).text(offset),
            Self::Watch { path, token, depth: Some(depth) } => {
                draft.path(path).string(token.as_bytes()).text(depth)
            }
            Self::Watch { path, token, depth: None } | Self::Unwatch { path, token } => {
                draft.path(path).string(token.as_bytes())
            }
            Self::TransactionStart | Self::ResetWatches => draft.string(b""),
            Self::TransactionEnd { commit } => draft.string(if *commit { b"T" } else { b"F" }),
            Self::Introduce { domid, gfn, evtchn } => draft.text(domid).text(gfn).text(evtchn),
            Self::Release(domid)
            | Self::GetDomainPath(domid)
            | Self::IsDomainIntroduced(domid)
            | Self::Resume(domid)
            | Self::GetFeature(Some(domid)) => draft.text(domid),
            // The value runs to the end of the payload, so it is not terminated.
            Self::Write { path, value } => draft.path(path).bytes(value),
            Self::SetPerms { path, perms } => {
                let draft = draft.path(path);
                perms.entries().iter().fold(draft, |draft, entry| draft.text(entry))
            }
            Self::SetTarget { domid, target } => draft.text(domid).text(target),
            // Really empty: a lone NUL would be an argument.
            Self::GetFeature(None) | Self::GetQuota { name: None, .. } => draft,
            Self::SetFeature { domid, features } => draft.text(domid).text(features),
            Self::GetQuota { domid: None, name: Some(name) } => draft.string(name),
            Self::GetQuota { domid: Some(domid), name: Some(name) } => draft.text(domid).string(name),
            Self::SetQuota { domid: None, name, value } => draft.string(name).text(value),
            Self::SetQuota { domid: Some(domid), name, value } => draft.text(domid).string(name).text(value),
        }
        .finish()
    }

    /// Appends a READ of a node as a message, as [`Self::encode`] does with [`Self::Read`], for who
    /// has no request that owns the path.
    pub fn encode_read(path: &Path, req_id: u32, tx_id: TxId, out: &mut BytesMut) -> Result<(), EncodeError> {
        Draft::new(Op::READ, req_id, tx_id, out).path(path).finish()
    }

    /// Types the payload of a request: the server's side.
    ///
    /// Takes what the C daemon takes: unterminated tails of WATCH and SET_PERMS are ignored, offsets,
    /// depths and quotas are read like `atoi`, permission entries like `strtol` with base 0. Single
    /// strings must be exactly one. A path may be longer than [`Path::new`] lets one be.
    pub fn decode(op: Op, payload: Bytes) -> Result<Self, DecodeError> {
        let path = |text: &[u8]| grammar::path(op, payload.slice_ref(text));
        let token = |text: &[u8]| Token::from_wire(payload.slice_ref(text));
        let domid = |text: &[u8]| grammar::domid(op, text);
        // One more place than an operation has arguments tells too many.
        let mut room = [&[][..]; 4];
        Ok(match op {
            Op::CONTROL => Self::Control(strings(&payload).map(|text| payload.slice_ref(text)).collect()),
            Op::DIRECTORY => Self::Directory(grammar::one_path(op, payload)?),
            Op::DIRECTORY_PART => {
                let (text, offset) = grammar::two_strings(op, payload, "a path and an offset")?;
                // A negative offset is past every end.
                Self::DirectoryPart {
                    path: grammar::path(op, text)?,
                    offset: atoi(&offset).unwrap_or(u32::MAX),
                }
            }
            Op::READ => Self::Read(grammar::one_path(op, payload)?),
            Op::GET_PERMS => Self::GetPerms(grammar::one_path(op, payload)?),
            Op::WATCH => match first_strings(&payload, &mut room) {
                [text, name] => Self::Watch { path: path(text)?, token: token(name), depth: None },
                [text, name, depth] => {
                    let depth = atoi(depth).ok_or(malformed(op, "a depth of 0 or more"))?;
                    Self::Watch { path: path(text)?, token: token(name), depth: Some(depth) }
                }
                _ => return Err(malformed(op, "a path, a token and perhaps a depth")),
            },
            Op::UNWATCH => match first_strings(&payload, &mut room) {
                [text, name] => Self::Unwatch { path: path(text)?, token: token(name) },
                _ => return Err(malformed(op, "a path and a token")),
            },
            Op::TRANSACTION_START => Self::TransactionStart,
            Op::TRANSACTION_END => match &payload[..] {
                b"T\0" => Self::TransactionEnd { commit: true },
                b"F\0" => Self::TransactionEnd { commit: false },
                _ => return Err(malformed(op, "T or F")),
            },
            Op::INTRODUCE => match first_strings(&payload, &mut room) {
                [number, gfn, evtchn, ..] => Self::Introduce {
                    domid: domid(number)?,
                    gfn: grammar::decimal(op, gfn, "a decimal frame number")?,
                    evtchn: grammar::decimal(op, evtchn, "a decimal event channel")?,
                },
                _ => return Err(malformed(op, "a domain id, a frame number and an event channel")),
            },
            Op::RELEASE => Self::Release(grammar::one_domid(op, payload)?),
            Op::GET_DOMAIN_PATH => Self::GetDomainPath(grammar::one_domid(op, payload)?),
            Op::WRITE => {
                let (text, value) = grammar::string_and_rest(op, payload, "a path, a NUL and a value")?;
                Self::Write { path: grammar::path(op, text)?, value }
            }
            Op::MKDIR => Self::Mkdir(grammar::one_path(op, payload)?),
            Op::RM => Self::Rm(grammar::one_path(op, payload)?),
            Op::SET_PERMS => {
                let mut strings = strings(&payload);
                let text = strings.next().ok_or(malformed(op, "a path and entries"))?;
                let entries = strings.map(|entry| grammar::permission(op, entry));
                let perms = Permissions::new(entries.collect::<Result<_, _>>()?);
                Self::SetPerms {
                    path: path(text)?,
                    perms: perms.map_err(|_| malformed(op, "at least one entry"))?,
                }
            }
            Op::IS_DOMAIN_INTRODUCED => Self::IsDomainIntroduced(grammar::one_domid(op, payload)?),
            Op::RESUME => Self::Resume(grammar::one_domid(op, payload)?),
            Op::SET_TARGET => match first_strings(&payload, &mut room) {
                [number, target, ..] => Self::SetTarget { domid: domid(number)?, target: domid(target)? },
                _ => return Err(malformed(op, "two domain ids")),
            },
            Op::RESET_WATCHES => Self::ResetWatches,
            Op::GET_FEATURE => match first_strings(&payload, &mut room) {
                [] => Self::GetFeature(None),
                // A lone NUL is an empty domain id, which servers read as 0.
                [b""] => Self::GetFeature(Some(DomId::DOM0)),
                [number] => Self::GetFeature(Some(domid(number)?)),
                _ => return Err(malformed(op, "at most one domain id")),
            },
            Op::SET_FEATURE => {
                let (number, bits) = grammar::two_strings(op, payload, "a domain id and feature bits")?;
                let bits = grammar::decimal(op, &bits, "decimal feature bits")?;
                Self::SetFeature { domid: domid(&number)?, features: Features(bits) }
            }
            Op::GET_QUOTA => match first_strings(&payload, &mut room) {
                [] => Self::GetQuota { domid: None, name: None },
                [name] => Self::GetQuota { domid: None, name: Some(payload.slice_ref(name)) },
                [number, name] => {
                    Self::GetQuota { domid: Some(domid(number)?), name: Some(payload.slice_ref(name)) }
                }
                _ => return Err(malformed(op, "a domain id and a quota")),
            },
            Op::SET_QUOTA => {
                let (number, name, value) = match first_strings(&payload, &mut room) {
                    [name, value] => (None, name, value),
                    [number, name, value] => (Some(domid(number)?), name, value),
                    _ => return Err(malformed(op, "a domain id, a quota and a value")),
                };
                let value = atoi(value).ok_or(malformed(op, "a value of 0 or more"))?;
                Self::SetQuota { domid: number, name: payload.slice_ref(name), value }
            }
            other => return Err(DecodeError::UnknownOp(other)),
        })
    }
}
