//! The node operations, in or outside of a transaction.

use std::slice::from_ref;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tracing::{Instrument, debug, trace_span};
use xs_proto::{DecodeError, Op, Path, Permissions, Reply, Request};

use super::handle::{Command, Handle, Tx};
use crate::Error;
use crate::ask::{Ask, refuse_reserved};
use crate::messages::Messages;
use crate::retry::Attempt;
use crate::tree::{Reading, Tree};
use crate::typed::{self, Answered, Listing, Outcome};

/// What can be asked of the store, by a [`crate::Client`] or inside of a
/// [`crate::Transaction`]: both dereference to this.
///
/// Every call ends within [`crate::Config::deadline`], or that of [`Requests::with_deadline`].
///
/// # Cancel safety
///
/// Dropping the future of a call does not undo it: a request that was handed over may be carried out
/// by the store, and its reply is thrown away. Of a batch, what was not sent yet is not sent. A
/// transaction with a batch that was dropped is not committed ([`Error::Unfinished`]).
///
/// # Errors
///
/// Errors that every call may have: [`Error::Store`] with `EACCES` or `EINVAL`,
/// [`Error::Timeout`], [`Error::Disconnected`], [`Error::Reply`].
#[derive(Clone, Debug)]
pub struct Requests {
    pub(crate) handle: Handle,
    pub(crate) deadline: Duration,
    pub(crate) tx: Tx,
    /// That of a transaction.
    pub(crate) attempt: Option<Arc<Attempt>>,
}

/// Whether a request of this kind changes nothing, so that it may as well be carried out twice.
fn is_read(op: Op) -> bool {
    matches!(
        op,
        Op::READ
            | Op::DIRECTORY
            | Op::DIRECTORY_PART
            | Op::GET_PERMS
            | Op::GET_DOMAIN_PATH
            | Op::IS_DOMAIN_INTRODUCED
            | Op::GET_FEATURE
            | Op::GET_QUOTA
    )
}

/// Whether the connection went before there was an answer, be it in the middle of a message. Other
/// breaches of the protocol may be in the very answer, and would come again with it.
fn was_lost(answer: &Answered) -> bool {
    answer.as_ref().is_err_and(is_loss)
}

pub(crate) fn is_loss(error: &Error) -> bool {
    matches!(error, Error::Disconnected { .. } | Error::Protocol(DecodeError::Truncated { .. }))
}

/// So long from now on; [`Duration::MAX`] is for ever, which a clock cannot say.
pub(crate) fn later(within: Duration) -> Instant {
    const LONG: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
    let now = Instant::now();
    now.checked_add(within).unwrap_or(now + LONG)
}

impl Requests {
    async fn ask(&self, request: &impl Ask) -> Answered {
        let message = Messages::one(request, self.tx.id)?;
        let (reply, answer) = oneshot::channel();
        self.handle.send(Command::Call { message, tx: self.tx, reply }).await?;
        answer.await.map_err(|_| self.handle.ended())?
    }

    /// Bounds a step of a call by the deadline.
    pub(crate) async fn within<T>(
        &self,
        until: Instant,
        op: Op,
        path: Option<&Path>,
        step: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        match timeout_at(until, step).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Error::Timeout { op, path: path.cloned(), after: self.deadline }),
        }
    }

    /// When a call that begins now has to have ended.
    pub(crate) fn until(&self) -> Instant {
        later(self.deadline)
    }

    /// The same, whose calls may take so long.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { deadline, ..self.clone() }
    }

    /// Sends any request and returns its reply; an error reply is an [`Error::Store`].
    ///
    /// Any but those of watches and transactions, of which the client keeps account: they are an
    /// [`Error::Reserved`], here and in a batch.
    pub async fn request(&self, request: Request) -> Result<Reply, Error> {
        refuse_reserved(from_ref(&request))?;
        self.call(&request).await
    }

    async fn call(&self, request: &impl Ask) -> Outcome {
        let (op, path) = (request.op(), request.path());
        let span = trace_span!("request", %op, path = path.map(|path| path.as_str()), tx = self.tx.id.0);
        let call = async {
            let answer = self.ask(request).await;
            self.repeated(request, answer).await?.outcome(path)
        };
        self.noted(self.within(self.until(), op, path, call).instrument(span).await)
    }

    /// Takes note of an error in a transaction.
    fn noted<T>(&self, outcome: Result<T, Error>) -> Result<T, Error> {
        if let (Some(attempt), Err(error)) = (&self.attempt, &outcome) {
            attempt.note(error);
        }
        outcome
    }

    /// The answer to a request; or if the connection was lost, and the request is to be sent again
    /// then, that of another one.
    async fn repeated(&self, request: &impl Ask, mut answer: Answered) -> Answered {
        while was_lost(&answer) && self.repeats(request) && !self.handle.is_closed() {
            self.handle.counters.retries.add(1);
            debug!(op = %request.op(), path = request.path().map(|path| path.as_str()), "asking again");
            answer = self.ask(request).await;
        }
        answer
    }

    fn repeats(&self, request: &impl Ask) -> bool {
        let wanted = self.handle.config.reconnect.is_some_and(|reconnect| reconnect.retry_reads);
        wanted && self.tx.is_none() && is_read(request.op())
    }

    /// Sends several requests without waiting in between, and returns their replies in the same
    /// order.
    ///
    /// The deadline is for all of them together. An error of the store is the outcome of its own
    /// request alone; the others are carried out all the same.
    pub async fn batch(&self, requests: Vec<Request>) -> Result<Vec<Result<Reply, Error>>, Error> {
        refuse_reserved(&requests)?;
        let outcomes = typed::outcomes(self.ask_all(&requests).await?, &requests);
        if let Some(attempt) = &self.attempt {
            outcomes
                .iter()
                .filter_map(|outcome| outcome.as_ref().err())
                .for_each(|error| attempt.note(error));
        }
        Ok(outcomes)
    }

    async fn ask_together(&self, requests: &[impl Ask]) -> Result<Vec<Answered>, Error> {
        if let Some(attempt) = &self.attempt {
            attempt.begin_batch();
        }
        let (messages, refused) = Messages::new(requests, self.tx.id);
        let (reply, answer) = oneshot::channel();
        self.handle.send(Command::Batch { messages, tx: self.tx, reply }).await?;
        let mut answers = answer.await.map_err(|_| self.handle.ended())?;
        refused.join(&mut answers);
        if let Some(attempt) = &self.attempt {
            attempt.end_batch();
        }
        Ok(answers)
    }

    pub(crate) async fn ask_all(&self, requests: &[impl Ask]) -> Result<Vec<Answered>, Error> {
        let Some(first) = requests.first() else {
            return Ok(Vec::new());
        };
        let span = trace_span!("batch", requests = requests.len(), tx = self.tx.id.0);
        let calls = async {
            let mut answers = self.ask_together(requests).await?;
            loop {
                let lost: Vec<usize> = (0..requests.len())
                    .filter(|place| was_lost(&answers[*place]) && self.repeats(&requests[*place]))
                    .collect();
                if lost.is_empty() || self.handle.is_closed() {
                    return Ok(answers);
                }
                self.handle.counters.retries.add(lost.len());
                debug!(requests = lost.len(), "asking again");
                let again: Vec<_> = lost.iter().map(|place| &requests[*place]).collect();
                for (place, answer) in lost.into_iter().zip(self.ask_together(&again).await?) {
                    answers[place] = answer;
                }
            }
        };
        self.within(self.until(), first.op(), first.path(), calls).instrument(span).await
    }

    /// Sends several requests without waiting in between; the first error of the store is the
    /// outcome, once all have been answered.
    pub async fn all(&self, requests: Vec<Request>) -> Result<Vec<Reply>, Error> {
        self.batch(requests).await?.into_iter().collect()
    }

    /// The value of a node. `ENOENT` if there is none.
    ///
    /// The value is a part of the buffer that it was received in, up to 16 KiB that other values
    /// share. To keep a few of many values for long, copy them (`Bytes::copy_from_slice`).
    pub async fn read(&self, path: &Path) -> Result<Bytes, Error> {
        typed::value(self.call(path).await)
    }

    /// The value of a node, or `None` if there is no such node.
    pub async fn read_opt(&self, path: &Path) -> Result<Option<Bytes>, Error> {
        typed::found(self.read(path).await)
    }

    /// The value of a node as text.
    ///
    /// # Errors
    ///
    /// `ENOENT` if there is no such node, [`Error::Value`] if it holds something else than UTF-8.
    pub async fn read_string(&self, path: &Path) -> Result<String, Error> {
        typed::text(path, self.read(path).await?)
    }

    /// The value of a node as a number, or as what else can be read from text. White space around it does not count.
    ///
    /// # Errors
    ///
    /// `ENOENT` if there is no such node, [`Error::Value`] if it holds something else.
    pub async fn read_parsed<T: FromStr>(&self, path: &Path) -> Result<T, Error> {
        typed::parsed(path, &self.read(path).await?)
    }

    /// The values of several nodes, asked for together; `None` for those that are not there.
    pub async fn read_many(&self, paths: &[Path]) -> Result<Vec<Option<Bytes>>, Error> {
        self.noted(typed::values(&mut self.ask_all(paths).await?, paths))
    }

    /// Sets the value of a node, and creates it and its parents where missing.
    pub async fn write(&self, path: &Path, value: impl Into<Bytes>) -> Result<(), Error> {
        let request = Request::Write { path: path.clone(), value: value.into() };
        self.request(request).await.map(drop)
    }

    /// Creates a node if there is none.
    pub async fn mkdir(&self, path: &Path) -> Result<(), Error> {
        self.request(Request::Mkdir(path.clone())).await.map(drop)
    }

    /// Removes a node and all below it. A node that is not there is no error as long as its
    /// parent is.
    pub async fn rm(&self, path: &Path) -> Result<(), Error> {
        self.request(Request::Rm(path.clone())).await.map(drop)
    }

    /// The names of a node's children, in no order that may be relied on. `ENOENT` if there is
    /// no such node.
    ///
    /// A list too long for one reply is fetched in parts, from the start again whenever the node
    /// changes in between.
    /// One that does not end within 64 MiB is an [`Error::Endless`].
    pub async fn directory(&self, path: &Path) -> Result<Vec<String>, Error> {
        let mut parts = match typed::listing(path, self.request(Request::Directory(path.clone())).await)? {
            Listing::Whole(names) => return Ok(names),
            Listing::Long(parts) => parts,
        };
        let fetching = async {
            loop {
                let epoch = self.handle.epoch();
                let part = self.request(parts.request()).await;
                if part.is_ok() && self.handle.epoch() != epoch {
                    // Another store may count its generations alike.
                    parts.begin_anew();
                } else if let Some(names) = parts.take(part)? {
                    return Ok(names);
                }
            }
        };
        self.within(self.until(), Op::DIRECTORY_PART, Some(path), fetching).await
    }

    /// The names of a node's children, empty if there is no such node.
    pub async fn directory_or_empty(&self, path: &Path) -> Result<Vec<String>, Error> {
        Ok(typed::found(self.directory(path).await)?.unwrap_or_default())
    }

    /// The permission list of a node.
    pub async fn get_perms(&self, path: &Path) -> Result<Permissions, Error> {
        typed::perms(self.request(Request::GetPerms(path.clone())).await)
    }

    /// Replaces the permission list of a node.
    pub async fn set_perms(&self, path: &Path, perms: Permissions) -> Result<(), Error> {
        self.request(Request::SetPerms { path: path.clone(), perms }).await.map(drop)
    }

    /// Reads a node and all below it, a level at a time, each with its requests under way together,
    /// those of up to 256 nodes; `None` if there is no such node.
    ///
    /// Outside of a transaction others may change the nodes meanwhile: what is removed before it
    /// is read is left out. In a transaction the tree is that of one moment, or the commit
    /// conflicts. The deadline is for each of these.
    ///
    /// Fails with [`Error::TooLarge`] if there are more nodes than [`crate::Config::tree_limit`], with
    /// [`Error::Endless`] if they have more bytes than so many can, and with `EACCES` if one of them may not be read. Dropping the future is safe.
    pub async fn read_tree(&self, path: &Path) -> Result<Option<Tree>, Error> {
        let mut reading = Reading::new(path, self.handle.config.tree_limit);
        loop {
            let requests = reading.requests()?;
            if requests.is_empty() {
                return Ok(reading.tree());
            }
            let outcomes = self.batch(requests).await?;
            for (path, place) in reading.take(outcomes)? {
                let names = self.directory_or_empty(&path).await?;
                reading.take_names(&path, place, names)?;
            }
        }
    }
}
