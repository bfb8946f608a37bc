//! The node operations, in or outside of a transaction.

use std::slice::from_ref;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use xs_proto::{Op, Path, Permissions, Reply, Request, TxId};

use super::calls::Answers;
use super::link::{Link, Time};
use crate::Error;
use crate::ask::{Ask, refuse_reserved};
use crate::retry::Attempt;
use crate::tree::{Reading, Tree};
use crate::typed::{self, Listing, Outcome, unexpected};

/// What can be asked of the store, by a [`super::Client`] or inside of a [`super::Transaction`]:
/// both dereference to this.
///
/// Every call ends within [`crate::Config::deadline`], or that of [`Requests::with_deadline`]. The
/// store may carry out a request although its call has timed out; the late reply is thrown away. A
/// transaction with a batch that has timed out is not committed ([`Error::Unfinished`]).
///
/// # Errors
///
/// Errors that every call may have: [`Error::Store`] with `EACCES` or `EINVAL`,
/// [`Error::Timeout`], [`Error::Disconnected`], [`Error::Reply`].
#[derive(Clone, Debug)]
pub struct Requests {
    pub(super) link: Arc<Link>,
    pub(super) deadline: Duration,
    pub(super) tx: TxId,
    /// That of a transaction.
    pub(super) attempt: Option<Arc<Attempt>>,
}

impl Requests {
    /// The same, whose calls may take so long.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { deadline, ..self.clone() }
    }

    pub(super) fn timeout(&self, op: Op, path: Option<&Path>) -> Error {
        Error::Timeout { op, path: path.cloned(), after: self.deadline }
    }

    pub(super) fn ask(&self, request: &impl Ask) -> Outcome {
        self.ask_within(self.deadline, request)
    }

    fn ask_within(&self, time: Duration, request: &impl Ask) -> Outcome {
        let answers = self.link.call(from_ref(request), self.tx, Time::of(time))?;
        let answer = answers.ok_or_else(|| self.timeout(request.op(), request.path()))?.pop();
        self.noted(answer.unwrap_or_else(|| Err(unexpected(request.op())))?.outcome(request.path()))
    }

    /// Takes note of an error in a transaction.
    fn noted<T>(&self, outcome: Result<T, Error>) -> Result<T, Error> {
        if let (Some(attempt), Err(error)) = (&self.attempt, &outcome) {
            attempt.note(error);
        }
        outcome
    }

    /// Sends any request and returns its reply; an error reply is an [`Error::Store`].
    ///
    /// Any but those of watches and transactions, of which the client keeps account: they are an
    /// [`Error::Reserved`], here and in a batch.
    pub fn request(&self, request: Request) -> Result<Reply, Error> {
        refuse_reserved(from_ref(&request))?;
        self.ask(&request)
    }

    /// Sends several requests without waiting in between, and returns their replies in the same
    /// order.
    ///
    /// The deadline is for all of them together; those that were not sent until then are not sent
    /// at all. An error of the store is the outcome of its own request alone; the others are
    /// carried out all the same.
    pub fn batch(&self, requests: Vec<Request>) -> Result<Vec<Result<Reply, Error>>, Error> {
        refuse_reserved(&requests)?;
        let outcomes = typed::outcomes(self.ask_all(&requests)?, &requests);
        if let Some(attempt) = &self.attempt {
            outcomes
                .iter()
                .filter_map(|outcome| outcome.as_ref().err())
                .for_each(|error| attempt.note(error));
        }
        Ok(outcomes)
    }

    pub(super) fn ask_all(&self, requests: &[impl Ask]) -> Result<Answers, Error> {
        let Some(first) = requests.first() else {
            return Ok(Answers::new());
        };
        if let Some(attempt) = &self.attempt {
            attempt.begin_batch();
        }
        let answers = self.link.call(requests, self.tx, Time::of(self.deadline))?;
        let answers = answers.ok_or_else(|| self.timeout(first.op(), first.path()))?;
        if let Some(attempt) = &self.attempt {
            attempt.end_batch();
        }
        Ok(answers)
    }

    /// Sends several requests without waiting in between; the first error of the store is the
    /// outcome, once all have been answered.
    pub fn all(&self, requests: Vec<Request>) -> Result<Vec<Reply>, Error> {
        self.batch(requests)?.into_iter().collect()
    }

    /// The value of a node. `ENOENT` if there is none.
    ///
    /// The value is a part of the buffer that it was received in, up to 16 KiB that other values
    /// share. To keep a few of many values for long, copy them (`Bytes::copy_from_slice`).
    pub fn read(&self, path: &Path) -> Result<Bytes, Error> {
        typed::value(self.ask(path))
    }

    /// The value of a node, or `None` if there is no such node.
    pub fn read_opt(&self, path: &Path) -> Result<Option<Bytes>, Error> {
        typed::found(self.read(path))
    }

    /// The value of a node as text.
    ///
    /// # Errors
    ///
    /// `ENOENT` if there is no such node, [`Error::Value`] if it holds something else than UTF-8.
    pub fn read_string(&self, path: &Path) -> Result<String, Error> {
        typed::text(path, self.read(path)?)
    }

    /// The value of a node as a number, or as what else can be read from text. White space around it does not count.
    ///
    /// # Errors
    ///
    /// `ENOENT` if there is no such node, [`Error::Value`] if it holds something else.
    pub fn read_parsed<T: FromStr>(&self, path: &Path) -> Result<T, Error> {
        typed::parsed(path, &self.read(path)?)
    }

    /// The values of several nodes, asked for together; `None` for those that are not there.
    pub fn read_many(&self, paths: &[Path]) -> Result<Vec<Option<Bytes>>, Error> {
        self.noted(typed::values(&mut self.ask_all(paths)?, paths))
    }

    /// Sets the value of a node, and creates it and its parents where missing.
    pub fn write(&self, path: &Path, value: impl Into<Bytes>) -> Result<(), Error> {
        self.ask(&Request::Write { path: path.clone(), value: value.into() }).map(drop)
    }

    /// Creates a node if there is none.
    pub fn mkdir(&self, path: &Path) -> Result<(), Error> {
        self.ask(&Request::Mkdir(path.clone())).map(drop)
    }

    /// Removes a node and all below it. A node that is not there is no error as long as its
    /// parent is.
    pub fn rm(&self, path: &Path) -> Result<(), Error> {
        self.ask(&Request::Rm(path.clone())).map(drop)
    }

    /// The names of a node's children, in no order that may be relied on. `ENOENT` if there is
    /// no such node.
    ///
    /// A list too long for one reply is fetched in parts, from the start again whenever the node
    /// changes in between.
    /// One that does not end within 64 MiB is an [`Error::Endless`].
    pub fn directory(&self, path: &Path) -> Result<Vec<String>, Error> {
        let mut parts = match typed::listing(path, self.ask(&Request::Directory(path.clone())))? {
            Listing::Whole(names) => return Ok(names),
            Listing::Long(parts) => parts,
        };
        let time = Time::of(self.deadline);
        loop {
            let part = self.ask_within(time.left().unwrap_or_default(), &parts.request());
            if let Some(names) = parts.take(part)? {
                return Ok(names);
            }
        }
    }

    /// The names of a node's children, empty if there is no such node.
    pub fn directory_or_empty(&self, path: &Path) -> Result<Vec<String>, Error> {
        Ok(typed::found(self.directory(path))?.unwrap_or_default())
    }

    /// The permission list of a node.
    pub fn get_perms(&self, path: &Path) -> Result<Permissions, Error> {
        typed::perms(self.ask(&Request::GetPerms(path.clone())))
    }

    /// Replaces the permission list of a node.
    pub fn set_perms(&self, path: &Path, perms: Permissions) -> Result<(), Error> {
        self.ask(&Request::SetPerms { path: path.clone(), perms }).map(drop)
    }

    /// Reads a node and all below it, a level at a time, as [`crate::Requests::read_tree`] does.
    pub fn read_tree(&self, path: &Path) -> Result<Option<Tree>, Error> {
        let mut reading = Reading::new(path, self.link.config.tree_limit);
        loop {
            let requests = reading.requests()?;
            if requests.is_empty() {
                return Ok(reading.tree());
            }
            for (path, place) in reading.take(self.batch(requests)?)? {
                reading.take_names(&path, place, self.directory_or_empty(&path)?)?;
            }
        }
    }
}
