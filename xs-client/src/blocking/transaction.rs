//! Transactions.

use std::ops::Deref;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Instant;

use xs_proto::{Op, Reply, Request};

use super::{Client, Requests};
use crate::Error;
use crate::ask::refuse_reserved;
use crate::log::debug;
use crate::retry::Tried;
use crate::typed::{self, unexpected};

/// The view that a transaction's closure gets: the operations of [`Requests`], inside of it.
#[derive(Debug)]
pub struct Transaction {
    requests: Requests,
    /// The server has it. Dropped so, it is aborted there.
    open: bool,
}

impl Deref for Transaction {
    type Target = Requests;

    fn deref(&self) -> &Requests {
        &self.requests
    }
}

impl Transaction {
    fn start(client: &Client) -> Result<Self, Error> {
        let Reply::Transaction(tx) = client.ask(&Request::TransactionStart)? else {
            return Err(unexpected(Op::TRANSACTION_START));
        };
        client.link.counters.transactions.add(1);
        Ok(Self {
            requests: Requests { tx, attempt: Some(Arc::default()), ..(**client).clone() },
            open: true,
        })
    }

    /// Whether the store has said in the middle that there is a conflict.
    fn is_stale(&self) -> bool {
        self.attempt.as_ref().is_some_and(|attempt| attempt.is_stale())
    }

    fn commit(mut self) -> Result<(), Error> {
        self.attempt.as_ref().map_or(Ok(()), |attempt| attempt.check_whole())?;
        let ended = self.ask(&Request::TransactionEnd { commit: true });
        // One that took too long may not even have been sent. If it was, there is nothing to abort
        // when the abort comes behind it.
        self.open = matches!(ended, Err(Error::Timeout { .. }));
        ended.map(drop)
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if self.open {
            self.link.tell(&Request::TransactionEnd { commit: false }, self.tx);
        }
    }
}

impl Client {
    /// Runs a closure in a transaction and commits, both again and again while it conflicts.
    ///
    /// The closure may run many times, so it must have no effect but through the transaction, and
    /// must take nothing from an earlier run. If it fails or panics, the transaction is aborted.
    /// Keep it short, and never wait in it for anything but the store: what others change meanwhile
    /// is what makes it conflict.
    ///
    /// No more than [`crate::Config::transactions`] are open at one time; the others wait for their
    /// turn, within the deadline of a call, and then fail with [`Error::NoTurn`].
    ///
    /// Attempts and pauses are bounded by [`crate::Config::retry`]; when they are used up, the
    /// outcome is [`Error::Contended`]. As for [`crate::Client::transaction`], a conflict may show
    /// before the commit.
    ///
    /// ```no_run
    /// # fn example(client: xs_client::blocking::Client) -> Result<(), xs_client::Error> {
    /// let (from, to) = ("/a".parse()?, "/b".parse()?);
    /// client.transaction(|tx| tx.write(&to, tx.read(&from)?))?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn transaction<T, E: From<Error>>(
        &self,
        mut body: impl FnMut(&Transaction) -> Result<T, E>,
    ) -> Result<T, E> {
        self.attempts(|transaction| {
            let outcome = match body(&transaction) {
                Ok(outcome) => outcome,
                Err(error) if transaction.is_stale() => return Ok(Tried::Conflicted(Some(error))),
                Err(error) => return Err(error),
            };
            match transaction.commit() {
                Ok(()) => Ok(Tried::Done(outcome)),
                Err(error) if error.is_conflict() => Ok(Tried::Conflicted(None)),
                Err(error) => Err(error.into()),
            }
        })
    }

    /// Carries out requests in a transaction of their own, and sends the commit along with them: see
    /// [`crate::Client::commit_all`]. **If the store refuses one, the others are committed all the
    /// same.**
    pub fn commit_all(&self, requests: Vec<Request>) -> Result<Vec<Reply>, Error> {
        refuse_reserved(&requests)?;
        self.attempts(|mut transaction| {
            let all = typed::with_commit(&requests);
            let answers = transaction.ask_all(&all)?;
            transaction.open = false;
            typed::committed(typed::outcomes(answers, &all))
        })
    }

    /// Opens a transaction for each attempt, until one gives an outcome and no conflict.
    fn attempts<T, E: From<Error>>(
        &self,
        mut attempt: impl FnMut(Transaction) -> Result<Tried<T, E>, E>,
    ) -> Result<T, E> {
        let begun = Instant::now();
        let mut pauses = self.link.config.retry.pauses();
        loop {
            // Given back before the pause, so that others have their turn meanwhile.
            let turn = self.link.turns.take(self.deadline);
            let turn = turn.ok_or_else(|| Error::NoTurn {
                limit: self.link.config.transactions.max(1),
                after: self.deadline,
            })?;
            let tried = attempt(Transaction::start(self)?)?;
            drop(turn);
            let reason = match tried {
                Tried::Done(outcome) => return Ok(outcome),
                Tried::Conflicted(reason) => {
                    self.link.counters.conflicts.add(1);
                    reason
                }
                Tried::Lost(reason) => Some(reason),
            };
            debug!(attempt = pauses.attempt(), "transaction conflicted");
            let pause = pauses.again(begun.elapsed());
            sleep(pause.map_err(|contended| reason.unwrap_or_else(|| contended.into()))?);
        }
    }
}
