//! The one task of a connection. It owns the transport, always reads, and never waits for a
//! caller or a watcher; whatever the protocol demands is decided in [`Connection`].
//!
//! Bounds: callers queue in a channel of the window's size and wait there; no more than the
//! window of requests is unanswered; what a watcher has not looked at is bounded in its queue;
//! chores (removing dropped watches, aborting dropped transactions) are bounded by the watches
//! and transactions that exist.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, trace, warn};
use xs_proto::{Request, TxId};

use super::calls::{Caller, Calls};
use super::handle::{Chore, Command, Handle, Link, is_abandoned};
use super::requests::later;
use super::wire::Wire;
use crate::connection::Connection;
use crate::error::{ended, lost_transaction};
use crate::inbox::Inbox;
use crate::retry::Pauses;
use crate::{Config, Connect, Error, Lifecycle, Reconnect, Transport};

/// Starts the driver on the current runtime, on a first connection; `connect` makes the others.
pub(crate) fn spawn<C: Connect>(transport: C::Transport, connect: C, config: Config) -> Handle {
    let (handle, link, receiver) = Handle::new(config);
    let driver = Driver {
        connection: Connection::new(link.config.watch_backlog),
        calls: Calls::new(handle.downgrade()),
        window: 0,
        others_turn: false,
        is_restoring: false,
        link,
    };
    tokio::spawn(driver.run(transport, connect, receiver));
    handle
}

struct Driver {
    connection: Connection,
    calls: Calls,
    link: Arc<Link>,
    window: usize,
    /// Whether batches were the last to send.
    others_turn: bool,
    /// Whether there is a connection again, and nobody was told so.
    is_restoring: bool,
}

impl Driver {
    async fn run<C: Connect>(
        mut self,
        mut transport: C::Transport,
        mut connect: C,
        mut commands: mpsc::Receiver<Command>,
    ) {
        let mut outage = Outage::default();
        let error = loop {
            self.window = self.link.config.window.min(connect.window()).max(1);
            self.connection.restore(connect.is_ordered());
            let begun = Instant::now();
            let error = match self.pump(transport, &mut commands).await {
                Ok(()) => break ended("the client was dropped"),
                Err(error) => error,
            };
            let Some(policy) = self.link.config.reconnect else { break error };
            warn!(at = connect.at(), %error, "lost the connection to the store");
            if begun.elapsed() >= policy.standing() {
                outage = Outage::default();
            }
            self.calls.epoch += 1;
            // Before anybody is told, for who is wants to know whether his transaction is lost.
            self.link.epoch.store(self.calls.epoch, Ordering::Relaxed);
            self.connection.lose(&error);
            self.deliver();
            self.calls.lose(&error);
            self.link.counters.count(&self.connection);
            self.link.lifecycle.send_replace(Lifecycle::Lost(error.clone()));
            let mended = tokio::select! {
                biased;
                // What it was asked for meanwhile has nobody who waits for it.
                () = self.link.abandoned(&commands) => break error,
                mended = outage.mend(&mut connect, policy) => mended,
            };
            match mended {
                Ok(again) => transport = again,
                Err(reason) => break gone(&error, &reason),
            }
            debug!(at = connect.at(), "connected to the store again");
            self.link.counters.reconnects.add(1);
            self.is_restoring = true;
        };
        debug!(%error, "connection to the store ended");
        // Before anything that a caller could notice, so that whoever does learns why.
        self.link.chores.close(error.clone());
        commands.close();
        self.connection.close(&error);
        while let Ok(command) = commands.try_recv() {
            // Who waits for a dropped reply learns that the driver has ended.
            drop(command);
        }
        self.deliver();
        self.link.counters.count(&self.connection);
        self.link.lifecycle.send_replace(Lifecycle::Ended(error));
    }

    async fn pump(
        &mut self,
        transport: impl Transport,
        commands: &mut mpsc::Receiver<Command>,
    ) -> Result<(), Error> {
        let link = self.link.clone();
        let mut wire = Wire::new(transport, &link);
        let mut chores = pin!(link.chores.notify.notified());
        // Whether all commands were taken, and none will come.
        let mut drained = false;
        // Nobody waits for the last answers, so a store that never gives them is left in the end.
        let mut end = None;
        let mut batch = Vec::new();
        // What was dropped while there was no connection is not to be watched on this one.
        self.do_chores();
        loop {
            self.connection.fill(self.window);
            self.send_batches(!commands.is_empty());
            self.deliver();
            self.tell_restored();
            link.counters.count(&self.connection);
            if drained && self.connection.is_idle() && self.calls.is_idle() {
                return Ok(());
            }
            let in_flight = self.connection.in_flight();
            let room = self.window.saturating_sub(self.connection.taken());
            if drained || (room == 0 && is_abandoned(commands)) {
                end.get_or_insert_with(|| later(link.config.deadline));
            }
            // What makes for more to send comes before reading, so that a store with many events
            // cannot keep from it; it cannot keep from reading, for only replies make room for more.
            // Every branch may be dropped without losing bytes or commands.
            tokio::select! {
                biased;
                count = commands.recv_many(&mut batch, room), if room > 0 && !drained => {
                    drained = count == 0;
                    self.others_turn = false;
                    // What a caller dropped before it called goes first: it may have made room.
                    self.do_chores();
                    batch.drain(..).for_each(|command| self.accept(command));
                }
                () = &mut chores => {
                    chores.set(link.chores.notify.notified());
                    self.do_chores();
                }
                received = wire.exchange(self.connection.output(), in_flight) => {
                    received?;
                    self.receive(wire.inbox())?;
                }
                // Only then is there to be a timer at all.
                () = async { sleep_until(end.unwrap_or_else(Instant::now)).await }, if end.is_some() => {
                    return Ok(());
                }
            }
        }
    }

    /// A store that was connected to may be one that ends, and says nothing any more. So it is there
    /// again when everything is watched again.
    fn tell_restored(&mut self) {
        if self.is_restoring && self.connection.is_restored() {
            self.is_restoring = false;
            self.link.lifecycle.send_replace(Lifecycle::Restored(self.calls.epoch));
        }
    }

    /// Sends what batches have: when half of what others leave them is free, so that much is sent at
    /// a time; while others wait, in turn with them.
    fn send_batches(&mut self, others_wait: bool) {
        let free = self.window.saturating_sub(self.connection.in_flight());
        let room = match others_wait {
            true if self.others_turn => 0,
            true => free.div_ceil(2),
            false if free < self.calls.under_way() => 0,
            false => free,
        };
        for _ in 0..room {
            let Some((op, message, waiter)) = self.calls.next() else { return };
            self.others_turn = true;
            self.connection.forward(op, message, waiter);
        }
    }

    fn accept(&mut self, command: Command) {
        match command {
            Command::Call { tx, reply, .. } if tx.is_lost(self.calls.epoch) => {
                _ = reply.send(Err(lost_transaction()));
            }
            // Nobody waits for it any more, and it has changed nothing yet.
            Command::Call { tx, reply, .. } if tx.is_none() && reply.is_closed() => {}
            Command::Call { mut message, tx, reply } => {
                if let Some((op, message)) = message.next() {
                    trace!(%op, tx = tx.id.0, "request");
                    self.connection.forward(op, message, self.calls.one(Caller::Request(reply)));
                }
            }
            Command::Batch { messages, tx, reply } => {
                trace!(requests = messages.len(), tx = tx.id.0, "batch");
                self.calls.batch(messages, tx, reply);
            }
            Command::Start { reply } if reply.is_closed() => {}
            Command::Start { reply } => {
                let waiter = self.calls.one(Caller::Start(reply));
                self.connection.call(&Request::TransactionStart, TxId::NONE, waiter);
            }
            // A watcher that is gone already has left its chore already.
            Command::Watch { reply, .. } if reply.is_closed() => {}
            Command::Watch { watcher, reply } => {
                trace!(path = %watcher.path, depth = watcher.depth(), "watch");
                self.connection.watch(&watcher, self.calls.one(Caller::Request(reply)));
            }
        }
    }

    fn do_chores(&mut self) {
        for chore in self.link.chores.take() {
            match chore {
                Chore::Unwatch(watcher) => self.connection.unwatch(&watcher),
                Chore::Abort(tx) if tx.epoch == self.calls.epoch => {
                    self.connection.tell(&Request::TransactionEnd { commit: false }, tx.id);
                }
                Chore::Abort(_) => {}
            }
        }
    }

    /// Tells callers how their calls ended.
    fn deliver(&mut self) {
        while let Some((waiter, answer)) = self.connection.completed() {
            self.calls.answer(waiter, answer);
        }
    }

    fn receive(&mut self, inbox: &mut Inbox) -> Result<(), Error> {
        while let Some(message) = inbox.next()? {
            self.connection.receive(message, |waiter, answer| self.calls.answer(waiter, answer))?;
        }
        Ok(())
    }
}

/// A time without connection, or several with none in between that stood for a while.
#[derive(Debug, Default)]
struct Outage {
    begun: Option<Instant>,
    /// Those between attempts, once there was one.
    pauses: Option<Pauses>,
}

impl Outage {
    /// Makes another connection. Fails when it has taken too long, with what was observed last.
    async fn mend<C: Connect>(&mut self, connect: &mut C, policy: Reconnect) -> Result<C::Transport, String> {
        let begun = *self.begun.get_or_insert_with(Instant::now);
        let mut reason = "every new one was lost at once".to_owned();
        loop {
            if let Some(pauses) = &mut self.pauses {
                sleep(pauses.next()).await;
            }
            let pauses = self.pauses.get_or_insert_with(|| policy.pauses());
            let left = policy.within.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Err(format!("and not back within {:?}: {reason}", policy.within));
            }
            match timeout(left, connect.connect()).await {
                Ok(Ok(transport)) => return Ok(transport),
                Ok(Err(error)) => reason = error.to_string(),
                Err(_) => "connecting takes too long".clone_into(&mut reason),
            }
            debug!(at = connect.at(), reason, attempt = pauses.attempt(), "cannot connect to the store");
        }
    }
}

/// The end of a connection that did not come back.
fn gone(error: &Error, reason: &str) -> Error {
    ended(&format!("{error}, {reason}"))
}
