//! From replies to what they say: the part of the node operations that needs no connection, for
//! both faces of the client.
//!
//! Who asked does that. The connection, for which everybody waits, only sees whose an answer is.

use std::any::type_name;
use std::str::FromStr;

use bytes::Bytes;
use xs_proto::{DecodeError, ErrorCode, Names, Op, Path, Permissions, Reply, Request};

use crate::Error;
use crate::error::is_lost_transaction;
use crate::retry::Tried;

pub(crate) type Outcome = Result<Reply, Error>;

/// What the store sent in reply to a request, or why nothing came.
pub(crate) type Answered = Result<Answer, Error>;

/// A reply whose payload nobody has looked at.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) asked: Op,
    /// The same, or an error.
    pub(crate) answered: Op,
    pub(crate) payload: Bytes,
}

impl Answer {
    /// That of an operation that has nothing to tell.
    pub(crate) const DONE: Self = Self { asked: Op::WATCH, answered: Op::WATCH, payload: Bytes::new() };

    /// What it says to a request that was of this node.
    pub(crate) fn outcome(self, node: Option<&Path>) -> Outcome {
        match Reply::decode(self.asked, self.answered, self.payload) {
            Ok(Reply::Error(code)) => Err(Error::Store { op: self.asked, path: node.cloned(), code }),
            Ok(reply) => Ok(reply),
            Err(error) => Err(Error::Reply(error)),
        }
    }
}

/// What the answers to requests say.
pub(crate) fn outcomes(answers: impl IntoIterator<Item = Answered>, requests: &[Request]) -> Vec<Outcome> {
    answers.into_iter().zip(requests).map(|(answer, request)| answer?.outcome(request.path())).collect()
}

/// What the answers to reads of these nodes say. The payload of one is the value itself, so it is
/// taken from its place: there may be thousands.
pub(crate) fn values(answers: &mut [Answered], nodes: &[Path]) -> Result<Vec<Option<Bytes>>, Error> {
    let mut values = Vec::with_capacity(answers.len());
    for (answer, node) in answers.iter_mut().zip(nodes) {
        values.push(match answer {
            Ok(Answer { answered: Op::READ, payload, .. }) => Some(std::mem::take(payload)),
            Ok(answer) => found(value(std::mem::replace(answer, Answer::DONE).outcome(Some(node))))?,
            Err(error) => return Err(error.clone()),
        });
    }
    Ok(values)
}

/// A reply of a form that its operation does not have. The decoder lets none through.
pub(crate) fn unexpected(op: Op) -> Error {
    Error::Reply(DecodeError::Malformed { op, expected: "a reply of its own form" })
}

/// Nothing, where there is no such node.
pub(crate) fn found<T>(outcome: Result<T, Error>) -> Result<Option<T>, Error> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// How much of a value that is not what was asked for an error shows, in bytes.
const SHOWN: usize = 64;

/// The value of a node as text.
pub(crate) fn text(path: &Path, value: Bytes) -> Result<String, Error> {
    String::from_utf8(value.into()).map_err(|error| not_a("UTF-8 text", path, error.as_bytes()))
}

/// The value of a node as a number or whatever else can be read from text. White space around it does not count.
pub(crate) fn parsed<T: FromStr>(path: &Path, value: &[u8]) -> Result<T, Error> {
    let parsed = std::str::from_utf8(value).ok().and_then(|text| text.trim().parse().ok());
    parsed.ok_or_else(|| not_a(type_name::<T>(), path, value))
}

fn not_a(expected: &'static str, path: &Path, found: &[u8]) -> Error {
    let found = found[..found.len().min(SHOWN)].escape_ascii().to_string();
    Error::Value { path: path.clone(), expected, found }
}

pub(crate) fn value(outcome: Outcome) -> Result<Bytes, Error> {
    match outcome? {
        Reply::Value(value) => Ok(value),
        _ => Err(unexpected(Op::READ)),
    }
}

pub(crate) fn perms(outcome: Outcome) -> Result<Permissions, Error> {
    match outcome? {
        Reply::Perms(perms) => Ok(perms),
        _ => Err(unexpected(Op::GET_PERMS)),
    }
}

/// Requests, and the commit of their transaction behind them.
pub(crate) fn with_commit(requests: &[Request]) -> Vec<Request> {
    let commit = Request::TransactionEnd { commit: true };
    requests.iter().cloned().chain([commit]).collect()
}

/// What came of these.
pub(crate) fn committed<E: From<Error>>(mut outcomes: Vec<Outcome>) -> Result<Tried<Vec<Reply>, E>, E> {
    let ended = match outcomes.pop().unwrap_or_else(|| Err(unexpected(Op::TRANSACTION_END))) {
        Err(error) if error.is_conflict() => return Ok(Tried::Conflicted(None)),
        Err(error) if is_lost_transaction(&error) => return Ok(Tried::Lost(error.into())),
        ended => ended,
    };
    let replies = outcomes.into_iter().collect::<Result<_, _>>()?;
    ended?;
    Ok(Tried::Done(replies))
}

fn owned(names: &Names) -> Vec<String> {
    names.iter().map(str::to_owned).collect()
}

/// Names, or a list that is too long for one reply.
#[derive(Debug)]
pub(crate) enum Listing {
    Whole(Vec<String>),
    /// To be fetched in parts.
    Long(Parts),
}

pub(crate) fn listing(path: &Path, outcome: Outcome) -> Result<Listing, Error> {
    match outcome {
        Ok(Reply::Names(names)) => Ok(Listing::Whole(owned(&names))),
        Ok(_) => Err(unexpected(Op::DIRECTORY)),
        Err(error) if error.code() == Some(&ErrorCode::E2BIG) => Ok(Listing::Long(Parts {
            path: path.clone(),
            too_big: error,
            generation: None,
            list: Vec::new(),
        })),
        Err(error) => Err(error),
    }
}

/// The longest list that is put together from parts, in bytes. A million children with names of 60
/// have less; a store that never comes to an end is left here.
const LIST_MAX: usize = 64 << 20;

/// A list that comes in parts, from the start again whenever its node changes in between.
#[derive(Debug)]
pub(crate) struct Parts {
    path: Path,
    /// What stands if the server has no parts.
    too_big: Error,
    generation: Option<u64>,
    list: Vec<u8>,
}

impl Parts {
    /// Asks for the next part.
    pub(crate) fn request(&self) -> Request {
        let offset = u32::try_from(self.list.len()).unwrap_or(u32::MAX);
        Request::DirectoryPart { path: self.path.clone(), offset }
    }

    /// Forgets the parts that were taken.
    pub(crate) fn begin_anew(&mut self) {
        self.generation = None;
        self.list.clear();
    }

    /// Takes a part; the names once they are complete.
    pub(crate) fn take(&mut self, outcome: Outcome) -> Result<Option<Vec<String>>, Error> {
        let (generation, names, last) = match outcome {
            Ok(Reply::Part { generation, names, last }) => (generation, names, last),
            Ok(_) => return Err(unexpected(Op::DIRECTORY_PART)),
            // A server without the operation leaves the first answer to stand.
            Err(error) if error.code() == Some(&ErrorCode::ENOSYS) => return Err(self.too_big.clone()),
            Err(error) => return Err(error),
        };
        if *self.generation.get_or_insert(generation) != generation {
            self.begin_anew();
            return Ok(None);
        }
        if names.as_bytes().len() > LIST_MAX - self.list.len() {
            return Err(Error::Endless { path: self.path.clone(), limit: LIST_MAX });
        }
        self.list.extend_from_slice(names.as_bytes());
        if !last && !names.is_empty() {
            return Ok(None);
        }
        let names = self.list.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        Ok(Some(names.map(|name| String::from_utf8_lossy(name).into_owned()).collect()))
    }
}
