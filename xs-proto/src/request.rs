//! Requests: what a client may ask, typed, with the payload grammar of each.

use bytes::{Bytes, BytesMut};

use crate::message::encode_parts;
use crate::{DecodeError, DomId, EncodeError, Op, Path, Permissions, TxId, grammar};

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
        features: u32,
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
    /// The payload's length and the absence of NUL bytes in arguments are checked first: on an
    /// error `out` is as it was.
    pub fn encode(&self, req_id: u32, tx_id: TxId, out: &mut BytesMut) -> Result<(), EncodeError> {
        let op = self.op();
        let strings = |arguments: &[&[u8]], out: &mut BytesMut| {
            if arguments.iter().any(|argument| argument.contains(&0)) {
                return Err(EncodeError::EmbeddedNul { op });
            }
            let parts: Vec<&[u8]> = arguments.iter().flat_map(|argument| [argument, &b"\0"[..]]).collect();
            encode_parts(op, req_id, tx_id, &parts, out)
        };
        match self {
            Self::Control(arguments) => {
                strings(&arguments.iter().map(|argument| &argument[..]).collect::<Vec<_>>(), out)
            }
            Self::Directory(path)
            | Self::Read(path)
            | Self::GetPerms(path)
            | Self::Mkdir(path)
            | Self::Rm(path) => strings(&[path.as_bytes()], out),
            Self::DirectoryPart { path, offset } => {
                strings(&[path.as_bytes(), offset.to_string().as_bytes()], out)
            }
            Self::Watch { path, token, depth: None } | Self::Unwatch { path, token } => {
                strings(&[path.as_bytes(), token.as_bytes()], out)
            }
            Self::Watch { path, token, depth: Some(depth) } => {
                strings(&[path.as_bytes(), token.as_bytes(), depth.to_string().as_bytes()], out)
            }
            Self::TransactionStart | Self::ResetWatches => strings(&[b""], out),
            Self::TransactionEnd { commit } => strings(&[if *commit { b"T" } else { b"F" }], out),
            Self::Introduce { domid, gfn, evtchn } => {
                let numbers = [domid.to_string(), gfn.to_string(), evtchn.to_string()];
                strings(&numbers.each_ref().map(|number| number.as_bytes()), out)
            }
            Self::Release(domid)
            | Self::GetDomainPath(domid)
            | Self::IsDomainIntroduced(domid)
            | Self::Resume(domid)
            | Self::GetFeature(Some(domid)) => strings(&[domid.to_string().as_bytes()], out),
            // The value runs to the end of the payload, so it is neither terminated nor checked.
            Self::Write { path, value } => {
                encode_parts(op, req_id, tx_id, &[path.as_bytes(), b"\0", value], out)
            }
            Self::SetPerms { path, perms } => {
                let entries: Vec<String> = perms.entries().iter().map(ToString::to_string).collect();
                let mut arguments = vec![path.as_bytes()];
                arguments.extend(entries.iter().map(|entry| entry.as_bytes()));
                strings(&arguments, out)
            }
            Self::SetTarget { domid, target } => {
                strings(&[domid.to_string().as_bytes(), target.to_string().as_bytes()], out)
            }
            Self::GetFeature(None) => strings(&[], out),
            Self::SetFeature { domid, features } => {
                strings(&[domid.to_string().as_bytes(), features.to_string().as_bytes()], out)
            }
            Self::GetQuota { domid, name } => {
                // A domain id alone would be taken for the name of a quota.
                let domid = name.as_ref().and(*domid).map(|domid| domid.to_string());
                let arguments: Vec<&[u8]> =
                    domid.iter().map(|text| text.as_bytes()).chain(name.as_deref()).collect();
                strings(&arguments, out)
            }
            Self::SetQuota { domid, name, value } => {
                let (domid, value) = (domid.map(|domid| domid.to_string()), value.to_string());
                let mut arguments: Vec<&[u8]> = domid.iter().map(|text| text.as_bytes()).collect();
                arguments.extend([&name[..], value.as_bytes()]);
                strings(&arguments, out)
            }
        }
    }

    /// Types the payload of a request: the server's side.
    ///
    /// Takes what the C daemon takes, so unterminated tails of WATCH and SET_PERMS are ignored and
    /// permission entries may be hexadecimal; single strings must be exactly one.
    pub fn decode(op: Op, payload: &Bytes) -> Result<Self, DecodeError> {
        let malformed = |expected| DecodeError::Malformed { op, expected };
        let path = || {
            let text = grammar::one_string(op, payload, "a path and a NUL")?;
            grammar::path(op, &text)
        };
        let domid = || {
            let text = grammar::one_string(op, payload, "a domain id and a NUL")?;
            grammar::domid(op, &text)
        };
        Ok(match op {
            Op::CONTROL => Self::Control(grammar::strings(payload)),
            Op::DIRECTORY => Self::Directory(path()?),
            Op::DIRECTORY_PART => {
                let (path, offset) = grammar::two_strings(op, payload, "a path and an offset")?;
                let path = grammar::path(op, &path)?;
                Self::DirectoryPart { path, offset: lenient_offset(&offset) }
            }
            Op::READ => Self::Read(path()?),
            Op::GET_PERMS => Self::GetPerms(path()?),
            Op::WATCH => match &grammar::strings(payload)[..] {
                [path, token] => Self::Watch {
                    path: grammar::path(op, path)?,
                    token: Token::from_wire(token.clone()),
                    depth: None,
                },
                [path, token, depth] => Self::Watch {
                    path: grammar::path(op, path)?,
                    token: Token::from_wire(token.clone()),
                    depth: Some(lenient_depth(depth).ok_or(malformed("a depth of 0 or more"))?),
                },
                _ => return Err(malformed("a path, a token and perhaps a depth")),
            },
            Op::UNWATCH => match &grammar::strings(payload)[..] {
                [path, token] => {
                    Self::Unwatch { path: grammar::path(op, path)?, token: Token::from_wire(token.clone()) }
                }
                _ => return Err(malformed("a path and a token")),
            },
            Op::TRANSACTION_START => Self::TransactionStart,
            Op::TRANSACTION_END => match &payload[..] {
                b"T\0" => Self::TransactionEnd { commit: true },
                b"F\0" => Self::TransactionEnd { commit: false },
                _ => return Err(malformed("T or F")),
            },
            Op::INTRODUCE => match &grammar::strings(payload)[..] {
                [domid, gfn, evtchn, ..] => Self::Introduce {
                    domid: grammar::domid(op, domid)?,
                    gfn: grammar::decimal(op, gfn, "a decimal frame number")?,
                    evtchn: grammar::decimal(op, evtchn, "a decimal event channel")?,
                },
                _ => return Err(malformed("a domain id, a frame number and an event channel")),
            },
            Op::RELEASE => Self::Release(domid()?),
            Op::GET_DOMAIN_PATH => Self::GetDomainPath(domid()?),
            Op::WRITE => {
                let (path, value) = grammar::string_and_rest(op, payload, "a path, a NUL and a value")?;
                Self::Write { path: grammar::path(op, &path)?, value }
            }
            Op::MKDIR => Self::Mkdir(path()?),
            Op::RM => Self::Rm(path()?),
            Op::SET_PERMS => {
                let strings = grammar::strings(payload);
                let (path, entries) = strings.split_first().ok_or(malformed("a path and entries"))?;
                let path = grammar::path(op, path)?;
                let entries = entries.iter().map(|entry| grammar::permission(op, entry));
                let perms = Permissions::new(entries.collect::<Result<_, _>>()?);
                Self::SetPerms { path, perms: perms.map_err(|_| malformed("at least one entry"))? }
            }
            Op::IS_DOMAIN_INTRODUCED => Self::IsDomainIntroduced(domid()?),
            Op::RESUME => Self::Resume(domid()?),
            Op::SET_TARGET => match &grammar::strings(payload)[..] {
                [domid, target, ..] => {
                    Self::SetTarget { domid: grammar::domid(op, domid)?, target: grammar::domid(op, target)? }
                }
                _ => return Err(malformed("two domain ids")),
            },
            Op::RESET_WATCHES => Self::ResetWatches,
            Op::GET_FEATURE => match &grammar::strings(payload)[..] {
                [] => Self::GetFeature(None),
                // A lone NUL is an empty domain id, which servers read as 0.
                [text] if text.is_empty() => Self::GetFeature(Some(DomId::DOM0)),
                [domid] => Self::GetFeature(Some(grammar::domid(op, domid)?)),
                _ => return Err(malformed("at most one domain id")),
            },
            Op::SET_FEATURE => {
                let (domid, bits) = grammar::two_strings(op, payload, "a domain id and feature bits")?;
                Self::SetFeature {
                    domid: grammar::domid(op, &domid)?,
                    features: grammar::decimal(op, &bits, "decimal feature bits")?,
                }
            }
            Op::GET_QUOTA => match &grammar::strings(payload)[..] {
                [] => Self::GetQuota { domid: None, name: None },
                [name] => Self::GetQuota { domid: None, name: Some(name.clone()) },
                [domid, name] => {
                    Self::GetQuota { domid: Some(grammar::domid(op, domid)?), name: Some(name.clone()) }
                }
                _ => return Err(malformed("a domain id and a quota")),
            },
            Op::SET_QUOTA => {
                let (domid, name, value) = match &grammar::strings(payload)[..] {
                    [name, value] => (None, name.clone(), value.clone()),
                    [domid, name, value] => (Some(grammar::domid(op, domid)?), name.clone(), value.clone()),
                    _ => return Err(malformed("a domain id, a quota and a value")),
                };
                Self::SetQuota { domid, name, value: grammar::decimal(op, &value, "a decimal value")? }
            }
            other => return Err(DecodeError::UnknownOp(other)),
        })
    }
}

/// An offset read like C's `atoi`: leading digits count, and what is negative is past every end.
fn lenient_offset(text: &[u8]) -> u32 {
    if text.first() == Some(&b'-') { u32::MAX } else { leading_digits(text) }
}

/// A depth read like C's `atoi`: junk is 0; a negative one is refused.
fn lenient_depth(text: &[u8]) -> Option<u32> {
    if text.first() == Some(&b'-') { None } else { Some(leading_digits(text)) }
}

fn leading_digits(text: &[u8]) -> u32 {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0u32, |number, byte| number.saturating_mul(10).saturating_add(u32::from(byte - b'0')))
}
