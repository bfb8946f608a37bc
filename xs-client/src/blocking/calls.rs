//! The calls of a connection that threads wait for, and what has come of them so far.

use std::task::Waker;

use slab::Slab;
use smallvec::SmallVec;
use xs_proto::{Reply, TxId};

use crate::connection::Waiter;
use crate::typed::{Answer, Answered};

/// The answer to each of a call's commands. Most calls have one.
pub(super) type Answers = SmallVec<[Answered; 1]>;

/// Some commands whose answers a thread waits for.
#[derive(Debug)]
struct Call {
    /// Something else stands there for those that are missing.
    answers: Answers,
    missing: usize,
    /// Nobody waits any more.
    left: bool,
    waker: Option<Waker>,
}

/// Those that miss answers, or whose answers were not taken.
#[derive(Debug, Default)]
pub(super) struct Calls(Slab<Call>);

impl Calls {
    /// Adds a call of so many commands.
    pub(super) fn add(&mut self, missing: usize) -> usize {
        let answers = (0..missing).map(|_| Ok(Answer::DONE)).collect();
        self.0.insert(Call { answers, missing, left: false, waker: None })
    }

    /// Whether one call waits for so many answers, and no other is there.
    pub(super) fn is_one_of(&self, missing: usize) -> bool {
        self.0.len() == 1 && self.0.iter().all(|(_, call)| call.missing == missing && !call.left)
    }

    /// The answers to a call, once there are all.
    pub(super) fn take(&mut self, key: usize, waker: Option<&Waker>) -> Option<Answers> {
        let call = self.0.get_mut(key)?;
        if call.missing > 0 {
            call.waker = waker.cloned();
            return None;
        }
        Some(self.0.remove(key).answers)
    }

    /// Nobody waits for a call any more, of which so many commands were not sent and never are.
    /// What was sent keeps its place until it is answered.
    pub(super) fn leave(&mut self, key: usize, unsent: usize) {
        let Some(call) = self.0.get_mut(key) else { return };
        call.missing -= unsent;
        call.left = true;
        if call.missing == 0 {
            self.0.remove(key);
        }
    }

    /// Hands over an answer. If nobody waits for it, and it is an opened transaction, this is
    /// returned, for nobody else will end it.
    // The answer is written where it stays, as in the other face.
    #[inline(always)]
    pub(super) fn finish(&mut self, waiter: Waiter, answer: Answered) -> Option<TxId> {
        let call = self.0.get_mut(waiter.call())?;
        call.missing -= 1;
        if call.left {
            if call.missing == 0 {
                self.0.remove(waiter.call());
            }
            return match answer.and_then(|answer| answer.outcome(None)) {
                Ok(Reply::Transaction(id)) => Some(id),
                _ => None,
            };
        }
        call.answers[waiter.place()] = answer;
        if call.missing == 0
            && let Some(waker) = call.waker.take()
        {
            waker.wake();
        }
        None
    }
}
