//! Transactions of a caller, which write its own nodes and count; and what speaks of them after their end.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::sleep;
use xs_client::{Error, Path, Request};

use super::{Caller, drop_after, text};
use crate::faults::face::{Asks, Face};
use crate::faults::fault::Event;
use crate::faults::schedule::{Body, counter};
use crate::faults::world::count_value;

impl<F: Face> Caller<F> {
    /// Writes nodes of its own, and counts on.
    pub(super) async fn transaction(&mut self, nodes: &[usize], body: Body) {
        // A call that takes its thread cannot be given up.
        let body = if F::BLOCKS && body == Body::GiveUp { Body::Fail } else { body };
        let before: Vec<_> = nodes.iter().map(|node| self.own.possible(*node)).collect();
        let mut writes = Vec::new();
        for &node in nodes {
            let value = self.value(node);
            if !body.fails() {
                self.own.may_be(node, Some(value.clone()));
            }
            writes.push((self.own.path(node), value));
        }
        let given_up = [0; 3].map(|node| {
            let (path, value) = (self.own.path(node), self.value(node).into());
            Request::Write { path, value }
        });
        let epoch = self.world.epoch();
        if !body.fails() {
            self.world.counting();
        }
        let (writes, world, given_up) = (&writes, &self.world, &given_up);
        // The connections that were lost when the last two attempts began: the client may hear of it
        // only when it has begun the next one.
        let mut lost = [world.lost(); 2];
        let mut attempts = 0;
        let kept = Mutex::new(None);
        let kept_by = &kept;
        let outcome = self.client.transaction(|tx| {
            attempts += 1;
            if attempts > 1 {
                world.tried_again(lost[0]);
            }
            lost = [lost[1], world.lost()];
            async move {
                if let Body::Keep { .. } = body {
                    *kept_by.lock().unwrap_or_else(PoisonError::into_inner) = Some(tx.clone());
                }
                let path = counter();
                let count = text(&tx.read(&path).await?);
                let count =
                    count.rsplit_once('#').and_then(|(of, count)| (of == path.as_str()).then_some(count));
                let Some(count) = count.and_then(|count| count.parse::<u64>().ok()) else {
                    return Err(Aborted::Wrong(format!("the counter is read as {count:?}")));
                };
                for (path, value) in writes {
                    let write = Request::Write { path: path.clone(), value: value.clone().into() };
                    world.ask(&tx, write).await?;
                    let read = text(&tx.read(path).await?);
                    if read != *value && !writes.iter().any(|(of, later)| of == path && *later == read) {
                        return Err(Aborted::Wrong(format!(
                            "{path} is {read:?} where {value:?} was written"
                        )));
                    }
                }
                world.ask(&tx, Request::Write { path, value: count_value(count + 1).into() }).await?;
                match body {
                    Body::GiveUp => {
                        given_up.iter().for_each(|write| world.note_asked(write));
                        drop_after(1, async { drop(tx.batch(given_up.to_vec()).await) }).await;
                        Ok(())
                    }
                    Body::Commit | Body::Keep { fails: false } => Ok(()),
                    Body::Slow(ms) => {
                        sleep(Duration::from_millis(ms)).await;
                        Ok(())
                    }
                    Body::Fail | Body::Keep { fails: true } => Err(Aborted::Meant),
                }
            }
        });
        let outcome = outcome.await;
        let undone = match &outcome {
            Ok(()) => false,
            Err(Aborted::Meant | Aborted::Wrong(_)) => !body.fails(),
            Err(Aborted::By(Error::Contended { .. } | Error::Store { .. } | Error::NoTurn { .. })) => {
                !body.fails()
            }
            Err(Aborted::By(_)) => false,
        };
        if undone {
            self.world.not_counted();
        }
        match outcome {
            Ok(()) => {
                self.world.counted(epoch);
                for (&node, (_, value)) in nodes.iter().zip(writes) {
                    self.own.is(node, Some(value.clone()));
                }
                if body.fails() {
                    self.world.violation("a transaction is kept whose body has failed");
                }
            }
            Err(Aborted::Meant) => {}
            Err(Aborted::By(Error::Unfinished)) if body == Body::GiveUp => {}
            Err(Aborted::Wrong(text)) => self.check(Err(text)),
            Err(Aborted::By(error)) => {
                let mut about: Vec<Path> = nodes.iter().map(|node| self.own.path(*node)).collect();
                about.push(counter());
                self.judge("a transaction", Err::<(), _>(error), &about);
            }
        }
        if undone {
            // The last first, for a node may be there twice.
            for (&node, possible) in nodes.iter().zip(before).rev() {
                self.own.is_still(node, possible);
            }
        }
        let kept = kept.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = kept {
            self.go_on(&kept).await;
            self.kept.push(kept);
        }
    }

    /// Goes on with a transaction that has ended.
    async fn go_on(&mut self, ended: &F::Requests) {
        self.world.happened(Event::KeptClone);
        let path = self.own.path(0);
        let write = Request::Write { path: path.clone(), value: self.value(0).into() };
        let outcomes = [
            ("a write", self.world.ask(ended, write).await),
            ("a read", ended.read(&counter()).await.map(drop)),
        ];
        for (what, outcome) in outcomes {
            match outcome {
                Ok(()) => {
                    self.world.violation(format!("{what} of a transaction that has ended goes through"));
                }
                Err(error) => self.world.judge(what, &error, &[path.clone(), counter()]),
            }
        }
    }
}

/// Why a transaction was not kept.
#[derive(Debug)]
enum Aborted {
    By(Error),
    Meant,
    Wrong(String),
}

impl From<Error> for Aborted {
    fn from(error: Error) -> Self {
        Self::By(error)
    }
}
