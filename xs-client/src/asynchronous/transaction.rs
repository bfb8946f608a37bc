//! Transactions.

use std::ops::Deref;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{Instrument, debug, debug_span};
use xs_proto::{Op, Reply, Request};

use super::handle::{Command, Open};
use super::requests::is_loss;
use crate::ask::refuse_reserved;
use crate::error::is_lost_transaction;
use crate::messages::Messages;
use crate::retry::Tried;
use crate::typed;
use crate::{Client, Error, Requests};

/// The view that a transaction's closure gets: the operations of [`Requests`], inside of it.
///
/// Clones speak of the same transaction, and do not keep it open: it ends with its closure. One that
/// is kept beyond that gets `ENOENT` from the server.
#[derive(Clone, Debug)]
pub struct Transaction {
    requests: Requests,
}

impl Deref for Transaction {
    type Target = Requests;

    fn deref(&self) -> &Requests {
        &self.requests
    }
}

impl Transaction {
    /// Opens one; it is aborted when what is returned with it is dropped.
    async fn start(client: &Client) -> Result<(Self, Open), Error> {
        let (reply, answer) = oneshot::channel();
        let call = async {
            client.handle.send(Command::Start { reply }).await?;
            answer.await.map_err(|_| client.handle.ended())?
        };
        let open = client.within(client.until(), Op::TRANSACTION_START, None, call).await?;
        let requests = Requests { tx: open.tx, attempt: Some(Arc::default()), ..(**client).clone() };
        Ok((Self { requests }, open))
    }

    /// What it means that its closure failed. That may be for the connection, or for what others did.
    fn failed<T, E>(&self, error: E) -> Result<Tried<T, E>, E> {
        if self.handle.has_lost(self.tx) {
            Ok(Tried::Lost(error))
        } else if self.attempt.as_ref().is_some_and(|attempt| attempt.is_stale()) {
            Ok(Tried::Conflicted(Some(error)))
        } else {
            Err(error)
        }
    }

    async fn commit(&self, mut open: Open) -> Result<(), Error> {
        self.attempt.as_ref().map_or(Ok(()), |attempt| attempt.check_whole())?;
        // Dropped before the request is handed over, it is aborted; afterwards it is the
        // server's to end. A commit that nobody waits for is still a commit.
        let (reply, answer) = oneshot::channel();
        let message = Messages::one(&Request::TransactionEnd { commit: true }, self.tx.id)?;
        let call = async {
            self.handle.send(Command::Call { message, tx: self.tx, reply }).await?;
            open.defuse();
            answer.await.map_err(|_| self.handle.ended())??.outcome(None)
        };
        self.within(self.until(), Op::TRANSACTION_END, None, call).await.map(drop)
    }

    /// Sends the last requests and the commit together.
    async fn commit_with(
        &self,
        mut open: Open,
        requests: &[Request],
    ) -> Result<Tried<Vec<Reply>, Error>, Error> {
        self.attempt.as_ref().map_or(Ok(()), |attempt| attempt.check_whole())?;
        let all = typed::with_commit(requests);
        let answers = self.ask_all(&all).await?;
        open.defuse();
        typed::committed(typed::outcomes(answers, &all))
    }
}

impl Client {
    /// Runs a closure in a transaction and commits, both again and again while it conflicts.
    ///
    /// The closure may run many times, so it must have no effect but through the transaction, and
    /// must take nothing from an earlier run. If it fails, the transaction is aborted and its
    /// error is the outcome. Keep it short, and never wait in it for anything but the store: what
    /// others change meanwhile is what makes it conflict.
    ///
    /// No more than [`crate::Config::transactions`] are open at one time; the others wait for their
    /// turn, within the deadline of a call, and then fail with [`Error::NoTurn`].
    ///
    /// Attempts and pauses are bounded by [`crate::Config::retry`]; when they are used up, the
    /// outcome is [`Error::Contended`].
    ///
    /// A conflict may show before the commit: xenstored fails requests with `EIO`, and removals also
    /// with `EINVAL`, when others have changed what the transaction sees. A closure that fails after
    /// such an answer is tried again as well; its last error is the outcome.
    ///
    /// A transaction that is lost with its connection is tried again on the next one, if
    /// [`Retry::across_losses`](crate::Retry::across_losses) says so, and unless its commit was sent:
    /// whether that was carried out is not known, and the outcome is [`Error::Disconnected`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future aborts the transaction, unless its commit was under way.
    ///
    /// ```no_run
    /// # async fn example(client: xs_client::Client) -> Result<(), xs_client::Error> {
    /// let (from, to) = (&"/a".parse()?, &"/b".parse()?);
    /// client
    ///     .transaction(|tx| async move {
    ///         let value = tx.read(from).await?;
    ///         tx.write(to, value).await
    ///     })
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn transaction<T, E: From<Error>, F: Future<Output = Result<T, E>>>(
        &self,
        mut body: impl FnMut(Transaction) -> F,
    ) -> Result<T, E> {
        self.attempts(|transaction, open| {
            let body = body(transaction.clone());
            async move {
                let outcome = match body.await {
                    Ok(outcome) => outcome,
                    Err(error) => return transaction.failed(error),
                };
                match transaction.commit(open).await {
                    Ok(()) => Ok(Tried::Done(outcome)),
                    Err(error) if error.is_conflict() => Ok(Tried::Conflicted(None)),
                    Err(error) if is_lost_transaction(&error) => Ok(Tried::Lost(error.into())),
                    Err(error) => Err(error.into()),
                }
            }
        })
        .await
    }

    /// Runs a closure in a transaction that looks and says what is to be requested then, and sends those requests and
    /// the commit together: a round trip less than [`Client::transaction`] needs. Tried again while it conflicts, as
    /// that is.
    ///
    /// As with [`Client::commit_all`], **if the store refuses one of the requests, the others are committed all the
    /// same**; the outcome is the first refusal then.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future aborts the transaction, unless its commit was under way.
    ///
    /// ```no_run
    /// # async fn example(client: xs_client::Client) -> Result<(), xs_client::Error> {
    /// use xs_client::{Path, Request};
    ///
    /// let (from, to): (&Path, &Path) = (&"/a".parse()?, &"/b".parse()?);
    /// client
    ///     .decide(|tx| async move {
    ///         let value = tx.read(from).await?;
    ///         Ok::<_, xs_client::Error>(((), vec![Request::Write { path: to.clone(), value }]))
    ///     })
    ///     .await
    /// # }
    /// ```
    pub async fn decide<T, E: From<Error>, F: Future<Output = Result<(T, Vec<Request>), E>>>(
        &self,
        mut body: impl FnMut(Transaction) -> F,
    ) -> Result<T, E> {
        self.attempts(|transaction, open| {
            let body = body(transaction.clone());
            async move {
                let (outcome, requests) = match body.await {
                    Ok(decided) => decided,
                    Err(error) => return transaction.failed(error),
                };
                refuse_reserved(&requests)?;
                Ok(match transaction.commit_with(open, &requests).await? {
                    Tried::Done(_) => Tried::Done(outcome),
                    Tried::Conflicted(_) => Tried::Conflicted(None),
                    Tried::Lost(error) => Tried::Lost(error.into()),
                })
            }
        })
        .await
    }

    /// Carries out requests in a transaction of their own, and sends the commit along with them:
    /// two round trips where [`Client::transaction`] needs three. Tried again while it conflicts.
    ///
    /// It is for requests that do not fail one by one, such as the writes of a privileged caller:
    /// the commit does not wait to see them done, so **if the store refuses one, the others are
    /// committed all the same**; the outcome is the first refusal then. Dropping the future aborts
    /// the transaction, unless its commit was under way.
    pub async fn commit_all(&self, requests: Vec<Request>) -> Result<Vec<Reply>, Error> {
        refuse_reserved(&requests)?;
        let requests = &requests;
        self.attempts(|transaction, open| async move { transaction.commit_with(open, requests).await }).await
    }

    /// Opens a transaction for each attempt, until one gives an outcome and no conflict.
    async fn attempts<T, E: From<Error>, F: Future<Output = Result<Tried<T, E>, E>>>(
        &self,
        mut attempt: impl FnMut(Transaction, Open) -> F,
    ) -> Result<T, E> {
        let begun = Instant::now();
        let mut pauses = self.handle.config.retry.pauses();
        loop {
            // Given back before the pause, so that others have their turn meanwhile.
            let turn = timeout_at(self.until(), self.turns.acquire()).await.map_err(|_| Error::NoTurn {
                limit: self.handle.config.transactions.max(1),
                after: self.deadline,
            })?;
            let tried = async {
                match Transaction::start(self).await {
                    Ok((transaction, open)) => attempt(transaction, open).await,
                    Err(error) if is_loss(&error) && !self.handle.is_closed() => {
                        Ok(Tried::Lost(error.into()))
                    }
                    Err(error) => Err(error.into()),
                }
            };
            let tried = tried.instrument(debug_span!("transaction", attempt = pauses.attempt())).await?;
            drop(turn);
            let reason = match tried {
                Tried::Done(outcome) => return Ok(outcome),
                Tried::Conflicted(reason) => {
                    self.handle.counters.conflicts.add(1);
                    reason
                }
                Tried::Lost(reason) if !self.handle.config.retry.across_losses => return Err(reason),
                Tried::Lost(reason) => Some(reason),
            };
            debug!(attempt = pauses.attempt(), "transaction conflicted, or was lost");
            let pause = pauses.again(begun.elapsed());
            sleep(pause.map_err(|contended| reason.unwrap_or_else(|| contended.into()))?).await;
        }
    }
}
