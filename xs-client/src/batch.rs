//! Requests that were handed over together. They leave as there is room, batches in turn, and
//! their outcomes go back together: one hand-over each way, however many requests.

use std::collections::VecDeque;

use slab::Slab;
use tokio::sync::oneshot;
use xs_proto::{Reply, Request};

use crate::handle::Tx;
use crate::typed::{Answered, Outcome, name_node};

#[derive(Debug)]
struct Batch {
    requests: Vec<Request>,
    /// Of what was sent; until it is answered, something else stands there.
    outcomes: Vec<Outcome>,
    tx: Tx,
    sent: usize,
    answered: usize,
    reply: oneshot::Sender<Answered>,
}

/// One request of a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    batch: usize,
    number: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Batches {
    batches: Slab<Batch>,
    /// Those that have requests to send.
    waiting: VecDeque<usize>,
}

impl Batches {
    pub(crate) fn add(&mut self, requests: Vec<Request>, tx: Tx, reply: oneshot::Sender<Answered>) {
        let outcomes = Vec::with_capacity(requests.len());
        let batch = self.batches.insert(Batch { requests, outcomes, tx, sent: 0, answered: 0, reply });
        self.waiting.push_back(batch);
    }

    /// Whether nothing is left to send.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The next request to send. What nobody waits for any more is left unsent.
    pub(crate) fn next(&mut self) -> Option<(&Request, Tx, Part)> {
        let key = loop {
            let key = self.waiting.pop_front()?;
            let batch = &mut self.batches[key];
            if batch.reply.is_closed() {
                batch.requests.truncate(batch.sent);
            }
            if batch.sent < batch.requests.len() {
                break key;
            }
            self.finish(key);
        };
        let batch = &mut self.batches[key];
        let number = batch.sent;
        batch.sent += 1;
        batch.outcomes.push(Ok(Reply::Ok));
        if batch.sent < batch.requests.len() {
            self.waiting.push_back(key);
        }
        Some((&batch.requests[number], batch.tx, Part { batch: key, number }))
    }

    /// Takes the outcome of a request.
    pub(crate) fn answer(&mut self, Part { batch: key, number }: Part, mut outcome: Outcome) {
        let batch = &mut self.batches[key];
        name_node(&mut outcome, batch.requests[number].path());
        batch.outcomes[number] = outcome;
        batch.answered += 1;
        self.finish(key);
    }

    /// Hands back a batch of which everything was answered.
    fn finish(&mut self, key: usize) {
        if self.batches[key].answered < self.batches[key].requests.len() {
            return;
        }
        let Batch { requests, outcomes, reply, .. } = self.batches.remove(key);
        // Who is gone needs no answer.
        _ = reply.send((requests, outcomes));
    }
}

#[cfg(test)]
mod tests {
    use xs_proto::Path;

    use super::*;

    fn reads(paths: &[&str]) -> Vec<Request> {
        paths.iter().map(|path| Request::Read(Path::new(path).unwrap())).collect()
    }

    fn next(batches: &mut Batches) -> Option<(String, Part)> {
        batches.next().map(|(request, _, part)| (request.path().unwrap().to_string(), part))
    }

    #[test]
    fn batches_take_turns_and_outcomes_keep_their_places() {
        let mut batches = Batches::default();
        let (sender, mut first) = oneshot::channel();
        batches.add(reads(&["/a", "/b"]), Tx::NONE, sender);
        let (sender, _second) = oneshot::channel();
        batches.add(reads(&["/c"]), Tx::NONE, sender);
        let parts: Vec<_> = std::iter::from_fn(|| next(&mut batches)).collect();
        assert_eq!(parts.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(), ["/a", "/c", "/b"]);
        assert!(batches.is_idle());
        batches.answer(parts[2].1, Ok(Reply::Value("b".into())));
        assert!(first.try_recv().is_err());
        batches.answer(parts[0].1, Ok(Reply::Value("a".into())));
        let (requests, outcomes) = first.try_recv().unwrap();
        assert_eq!(requests, reads(&["/a", "/b"]));
        assert_eq!(
            outcomes.into_iter().map(Result::unwrap).collect::<Vec<_>>(),
            [Reply::Value("a".into()), Reply::Value("b".into())]
        );
    }

    #[test]
    fn what_nobody_waits_for_is_not_sent() {
        let mut batches = Batches::default();
        let (sender, receiver) = oneshot::channel();
        batches.add(reads(&["/a", "/b", "/c"]), Tx::NONE, sender);
        let (_, part) = next(&mut batches).unwrap();
        drop(receiver);
        assert!(next(&mut batches).is_none());
        batches.answer(part, Ok(Reply::Ok));
        assert!(batches.is_idle() && batches.batches.is_empty());
    }
}
