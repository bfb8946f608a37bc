//! The calls whose answers callers wait for.
//!
//! Requests that were handed over together are one call: they leave as there is room, such calls
//! in turn, and their answers go back together. One hand-over each way, however many requests.
//!
//! What is done for each of them is `inline(always)`, so that it is written where it stays: what is
//! moved right after it was made waits for its stores.

use std::collections::VecDeque;

use slab::Slab;
use tokio::sync::oneshot;
use xs_proto::{Op, Reply};

use super::handle::{Open, Tx, WeakHandle};
use crate::Error;
use crate::connection::Waiter;
use crate::error::{ended, lost_transaction};
use crate::messages::Messages;
use crate::typed::{Answer, Answered, unexpected};

#[derive(Debug)]
enum Call {
    One(Caller),
    Batch(Batch),
}

/// Who waits for a single answer.
#[derive(Debug)]
pub(crate) enum Caller {
    Request(oneshot::Sender<Answered>),
    Start(oneshot::Sender<Result<Open, Error>>),
}

#[derive(Debug)]
struct Batch {
    messages: Messages,
    tx: Tx,
    sent: usize,
    /// Something else stands there for those that are missing.
    answers: Vec<Answered>,
    missing: usize,
    reply: oneshot::Sender<Vec<Answered>>,
}

/// Batches that wait, from which on it is looked for those that were given up.
const LOOK_FROM: usize = 32;

#[derive(Debug, Default)]
pub(crate) struct Calls {
    calls: Slab<Call>,
    /// Those that have messages to send.
    unsent: VecDeque<usize>,
    /// With so many of these, look whether some were given up.
    look_from: usize,
    /// Messages of batches that were sent and not answered.
    under_way: usize,
    /// For the handles inside of opened transactions; weak, so as not to keep the driver alive.
    weak: WeakHandle,
    /// Connections made before this one.
    pub(crate) epoch: u64,
}

impl Calls {
    /// Those of the driver that has this handle.
    pub(crate) fn new(weak: WeakHandle) -> Self {
        Self { weak, ..Self::default() }
    }

    /// Adds one that waits for the answer to a single request.
    pub(crate) fn one(&mut self, caller: Caller) -> Waiter {
        Waiter::new(self.calls.insert(Call::One(caller)), 0)
    }

    /// Adds requests that wait for their turn together. It does not come while the store says nothing:
    /// those that were given up meanwhile leave.
    pub(crate) fn batch(&mut self, messages: Messages, tx: Tx, reply: oneshot::Sender<Vec<Answered>>) {
        if self.unsent.len() >= self.look_from {
            self.leave();
            // Looked at again only when there are many more, so that it costs little for each.
            self.look_from = LOOK_FROM.max(2 * self.unsent.len());
        }
        let missing = messages.len();
        let answers = (0..missing).map(|_| Ok(Answer::DONE)).collect();
        let call = self.calls.insert(Call::Batch(Batch { messages, tx, sent: 0, answers, missing, reply }));
        self.unsent.push_back(call);
    }

    /// Whether nothing is left to send.
    pub(crate) fn is_idle(&self) -> bool {
        self.unsent.is_empty()
    }

    /// The connection is lost: the batches that were begun end whole, also with what was not sent.
    /// Their ends must not be carried out without their beginnings.
    pub(crate) fn lose(&mut self, error: &Error) {
        for key in std::mem::take(&mut self.unsent) {
            let Call::Batch(batch) = &mut self.calls[key] else { continue };
            if batch.sent == 0 {
                self.unsent.push_back(key);
                continue;
            }
            let error = if batch.tx.is_none() { error.clone() } else { lost_transaction() };
            batch.answers[batch.sent..].fill(Err(error));
            batch.missing -= batch.messages.len();
            self.finish(key);
        }
    }

    /// Ends the batches that nobody waits for any more.
    fn leave(&mut self) {
        for key in std::mem::take(&mut self.unsent) {
            let Call::Batch(batch) = &mut self.calls[key] else { continue };
            if batch.reply.is_closed() {
                batch.missing -= batch.messages.len();
                self.finish(key);
            } else {
                self.unsent.push_back(key);
            }
        }
    }

    /// How many messages of batches were sent and not answered.
    pub(crate) fn under_way(&self) -> usize {
        self.under_way
    }

    /// The next message of a batch. What nobody waits for any more is left unsent, and what
    /// belongs to a transaction that was lost.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> Option<(Op, &[u8], Waiter)> {
        let key = loop {
            let key = self.unsent.pop_front()?;
            let Call::Batch(batch) = &mut self.calls[key] else { continue };
            let is_lost = batch.tx.is_lost(self.epoch);
            if batch.messages.len() > 0 && !is_lost && !batch.reply.is_closed() {
                break key;
            }
            if is_lost {
                batch.answers[batch.sent..].fill(Err(lost_transaction()));
            }
            batch.missing -= batch.messages.len();
            self.finish(key);
        };
        let Call::Batch(batch) = &mut self.calls[key] else { return None };
        let waiter = Waiter::new(key, batch.sent);
        batch.sent += 1;
        if batch.messages.len() > 1 {
            self.unsent.push_back(key);
        }
        let (op, message) = batch.messages.next()?;
        self.under_way += 1;
        Some((op, message, waiter))
    }

    /// Takes the answer to a request. A caller that is gone is no reason to stop.
    #[inline(always)]
    pub(crate) fn answer(&mut self, waiter: Waiter, answer: Answered) {
        let key = waiter.call();
        if let Call::Batch(batch) = &mut self.calls[key] {
            batch.answers[waiter.place()] = answer;
            batch.missing -= 1;
            self.under_way -= 1;
            self.finish(key);
        } else if let Call::One(caller) = self.calls.remove(key) {
            self.tell(caller, answer);
        }
    }

    /// Hands back a batch of which everything was answered.
    fn finish(&mut self, key: usize) {
        if matches!(&self.calls[key], Call::Batch(batch) if batch.missing == 0)
            && let Call::Batch(Batch { answers, reply, .. }) = self.calls.remove(key)
        {
            _ = reply.send(answers);
        }
    }

    fn tell(&self, caller: Caller, answer: Answered) {
        match caller {
            Caller::Request(reply) => _ = reply.send(answer),
            // An opened transaction that does not reach its caller aborts as it is dropped.
            Caller::Start(reply) => _ = reply.send(self.opened(answer)),
        }
    }

    fn opened(&self, answer: Answered) -> Result<Open, Error> {
        let handle = self.weak.upgrade().ok_or_else(|| ended("the client was dropped"))?;
        match answer?.outcome(None)? {
            Reply::Transaction(id) => {
                handle.counters.transactions.add(1);
                Ok(Open::new(Tx { id, epoch: self.epoch }, handle))
            }
            _ => Err(unexpected(Op::TRANSACTION_START)),
        }
    }
}

#[cfg(test)]
mod tests {
    use xs_proto::{HEADER_LEN, Path, TxId};

    use super::*;

    fn reads(paths: &[&str]) -> Messages {
        let nodes: Vec<Path> = paths.iter().map(|path| path.parse().unwrap()).collect();
        Messages::new(&nodes, TxId::NONE).0
    }

    fn next(calls: &mut Calls) -> Option<(String, Waiter)> {
        let (op, message, waiter) = calls.next()?;
        assert_eq!(op, Op::READ);
        Some((String::from_utf8(message[HEADER_LEN..].to_vec()).unwrap(), waiter))
    }

    fn value(value: &'static str) -> Answered {
        Ok(Answer { asked: Op::READ, answered: Op::READ, payload: value.into() })
    }

    #[test]
    fn batches_take_turns_and_answers_keep_their_places() {
        let mut calls = Calls::default();
        let (sender, mut first) = oneshot::channel();
        calls.batch(reads(&["/a", "/b"]), Tx::NONE, sender);
        let (sender, _second) = oneshot::channel();
        calls.batch(reads(&["/c"]), Tx::NONE, sender);
        let sent: Vec<_> = std::iter::from_fn(|| next(&mut calls)).collect();
        assert_eq!(sent.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(), ["/a\0", "/c\0", "/b\0"]);
        assert!(calls.is_idle());
        calls.answer(sent[2].1, value("b"));
        assert!(first.try_recv().is_err());
        calls.answer(sent[0].1, value("a"));
        let answers = first.try_recv().unwrap().into_iter().map(|answer| answer.unwrap().payload);
        assert_eq!(answers.collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn what_nobody_waits_for_is_not_sent() {
        let mut calls = Calls::default();
        let (sender, receiver) = oneshot::channel();
        calls.batch(reads(&["/a", "/b", "/c"]), Tx::NONE, sender);
        let (_, waiter) = next(&mut calls).unwrap();
        drop(receiver);
        assert!(next(&mut calls).is_none());
        calls.answer(waiter, value("a"));
        assert!(calls.is_idle() && calls.calls.is_empty());
    }

    /// Those behind one that was begun keep their order.
    #[test]
    fn a_loss_ends_what_was_begun_and_leaves_the_rest() {
        let mut calls = Calls::default();
        let mut batch = |paths: &[&str]| {
            let (sender, receiver) = oneshot::channel();
            calls.batch(reads(paths), Tx::NONE, sender);
            receiver
        };
        let (mut begun, mut second, mut third) =
            (batch(&["/a", "/b", "/c"]), batch(&["/d", "/e"]), batch(&["/f"]));
        let (_, waiter) = next(&mut calls).unwrap();
        calls.answer(waiter, Err(ended("gone")));
        calls.lose(&ended("gone"));
        let answers = begun.try_recv().unwrap();
        assert!(answers.len() == 3 && answers.iter().all(|answer| answer.is_err()));
        assert!(second.try_recv().is_err() && third.try_recv().is_err());
        let sent: Vec<_> = std::iter::from_fn(|| next(&mut calls)).map(|(path, _)| path).collect();
        assert_eq!(sent, ["/d\0", "/f\0", "/e\0"]);
    }

    /// As long as the store says nothing, they have no turn.
    #[test]
    fn batches_that_were_given_up_do_not_come_together() {
        let mut calls = Calls::default();
        let (sender, _waits) = oneshot::channel();
        calls.batch(reads(&["/a", "/b"]), Tx::NONE, sender);
        next(&mut calls).unwrap();
        for _ in 0..1000 {
            let (sender, _) = oneshot::channel();
            calls.batch(reads(&["/c"]), Tx::NONE, sender);
            assert!(calls.calls.len() <= 1 + LOOK_FROM, "{} wait", calls.calls.len());
        }
        assert_eq!(next(&mut calls).unwrap().0, "/b\0");
        assert!(next(&mut calls).is_none());
    }

    #[test]
    fn a_batch_without_messages_is_answered_at_once() {
        let mut calls = Calls::default();
        let (sender, mut receiver) = oneshot::channel();
        calls.batch(reads(&[]), Tx::NONE, sender);
        assert!(next(&mut calls).is_none());
        assert!(receiver.try_recv().unwrap().is_empty() && calls.calls.is_empty());
    }
}
