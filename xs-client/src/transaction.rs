//! Transactions.

use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};
use tracing::{Instrument, debug, debug_span};
use xs_proto::{ErrorCode, Op, Reply, Request};

use crate::handle::{Command, Open};
use crate::typed::unexpected;
use crate::{Client, Error, Requests, Retry};

/// The view that a transaction's closure gets: the operations of [`Requests`], inside of it.
///
/// Clones speak of the same transaction. One that is kept beyond its closure gets `ENOENT` from
/// the server.
#[derive(Clone, Debug)]
pub struct Transaction {
    requests: Requests,
    open: Arc<Mutex<Open>>,
}

impl Deref for Transaction {
    type Target = Requests;

    fn deref(&self) -> &Requests {
        &self.requests
    }
}

impl Transaction {
    async fn start(client: &Client) -> Result<Self, Error> {
        let (reply, answer) = oneshot::channel();
        let call = async {
            client.handle.send(Command::Start { reply }).await?;
            answer.await.map_err(|_| client.handle.ended())?
        };
        let open = client.within(client.until(), Op::TRANSACTION_START, None, call).await?;
        let requests = Requests { tx: open.tx, ..(**client).clone() };
        Ok(Self { requests, open: Arc::new(Mutex::new(open)) })
    }

    /// The server has ended it, or is about to.
    fn is_over(&self) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).defuse();
    }

    async fn end(self, commit: bool) -> Result<(), Error> {
        // Dropped before the request is handed over, it is aborted; afterwards it is the
        // server's to end. A commit that nobody waits for is still a commit.
        let (reply, answer) = oneshot::channel();
        let request = Request::TransactionEnd { commit };
        let call = async {
            self.handle.send(Command::Call { request, tx: self.tx, reply }).await?;
            self.is_over();
            answer.await.map_err(|_| self.handle.ended())?
        };
        self.within(self.until(), Op::TRANSACTION_END, None, call).await.map(drop)
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
    /// turn, within the deadline of a call.
    ///
    /// Attempts and pauses are bounded by [`crate::Config::retry`]; when they are used up, the
    /// outcome is [`Error::Contended`]. Dropping the future aborts the transaction, unless its
    /// commit was under way.
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
        let begun = Instant::now();
        let Retry { attempts, .. } = self.handle.config.retry;
        for attempt in 1..=attempts {
            // Given back before the pause, so that others have their turn meanwhile.
            let turn = async { Ok(self.turns.acquire().await) };
            let turn = self.within(self.until(), Op::TRANSACTION_START, None, turn).await?;
            let span = debug_span!("transaction", attempt);
            let tried = async {
                let transaction = Transaction::start(self).await?;
                let outcome = body(transaction.clone()).await?;
                Ok::<_, E>((outcome, transaction.end(true).await))
            };
            let (outcome, ended) = tried.instrument(span).await?;
            drop(turn);
            match ended {
                Ok(()) => return Ok(outcome),
                Err(Error::Store { code: ErrorCode::EAGAIN, .. }) => {
                    self.pause_after_conflict(attempt).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::Contended { attempts, elapsed: begun.elapsed() }.into())
    }

    /// Carries out requests in a transaction of their own, and sends the commit along with them:
    /// two round trips where [`Client::transaction`] needs three. Tried again while it conflicts.
    ///
    /// It is for requests that do not fail one by one, such as the writes of a privileged caller:
    /// the commit does not wait to see them done, so **if the store refuses one, the others are
    /// committed all the same**; the outcome is the first refusal then. Dropping the future aborts
    /// the transaction, unless its commit was under way.
    pub async fn commit_all(&self, requests: Vec<Request>) -> Result<Vec<Reply>, Error> {
        let begun = Instant::now();
        let retry = self.handle.config.retry;
        for attempt in 1..=retry.attempts {
            let turn = async { Ok(self.turns.acquire().await) };
            let turn = self.within(self.until(), Op::TRANSACTION_START, None, turn).await?;
            let transaction = Transaction::start(self).await?;
            let mut all = requests.clone();
            all.push(Request::TransactionEnd { commit: true });
            let mut outcomes = transaction.batch(all).await?;
            let ended = outcomes.pop().unwrap_or_else(|| Err(unexpected(Op::TRANSACTION_END)));
            transaction.is_over();
            drop(turn);
            match ended {
                Err(Error::Store { code: ErrorCode::EAGAIN, .. }) => {
                    self.pause_after_conflict(attempt).await;
                }
                ended => {
                    let replies: Vec<Reply> = outcomes.into_iter().collect::<Result<_, _>>()?;
                    return ended.map(|_| replies);
                }
            }
        }
        Err(Error::Contended { attempts: retry.attempts, elapsed: begun.elapsed() })
    }

    async fn pause_after_conflict(&self, attempt: u32) {
        let retry = self.handle.config.retry;
        self.handle.counters.conflicts.add(1);
        debug!(attempt, "transaction conflicted");
        if attempt < retry.attempts {
            sleep(retry.pause(attempt)).await;
        }
    }
}
