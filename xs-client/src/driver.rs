//! The one task of a connection. It owns the transport, always reads, and never waits for a
//! caller or a watcher; whatever the protocol demands is decided in [`Connection`].
//!
//! Bounds: callers queue in a channel of the window's size and wait there; no more than the
//! window of requests is unanswered; what a watcher has not looked at is bounded in its queue;
//! chores (removing dropped watches, aborting dropped transactions) are bounded by the watches
//! and transactions that exist.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use futures_util::FutureExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_util::codec::Decoder;
use tracing::{debug, trace};
use xs_proto::{MessageCodec, Reply, Request, StreamError, TxId};

use crate::connection::{Connection, Effect};
use crate::handle::{Chore, Chores, Command, Handle, Open, ended};
use crate::queue::{Kept, Queue};
use crate::stats::Counters;
use crate::watches::WatcherId;
use crate::{Config, Error, Transport};

#[derive(Debug)]
enum Waiter {
    Call(oneshot::Sender<Result<Reply, Error>>),
    Start(oneshot::Sender<Result<Open, Error>>),
}

/// Starts the driver on the current runtime.
pub(crate) fn spawn(transport: impl Transport, config: &Config) -> Handle {
    let (handle, receiver) = Handle::new(config.window.max(1));
    let driver = Driver {
        connection: Connection::new(),
        queues: HashMap::new(),
        weak: handle.commands.downgrade(),
        chores: handle.chores.clone(),
        counters: handle.counters.clone(),
        window: config.window.max(1),
        deadline: config.deadline,
        codec: MessageCodec::with_limit(config.reply_limit),
    };
    tokio::spawn(driver.run(transport, receiver));
    handle
}

struct Driver {
    connection: Connection<Waiter>,
    queues: HashMap<WatcherId, Arc<Queue>>,
    /// For the handles inside of opened transactions; weak, so as not to keep ourselves alive.
    weak: mpsc::WeakSender<Command>,
    chores: Arc<Chores>,
    counters: Arc<Counters>,
    window: usize,
    deadline: Duration,
    codec: MessageCodec,
}

impl Driver {
    async fn run(mut self, transport: impl Transport, mut commands: mpsc::Receiver<Command>) {
        let error = match self.pump(transport, &mut commands).await {
            Ok(()) => ended("the client was dropped"),
            Err(error) => error,
        };
        debug!(%error, "connection to the store ended");
        // Before anything that a caller could notice, so that whoever does learns why.
        self.chores.close(error.clone());
        commands.close();
        self.connection.close(&error);
        while let Ok(command) = commands.try_recv() {
            // Who waits for a dropped reply learns that the driver has ended.
            drop(command);
        }
        self.deliver();
        for queue in self.queues.values() {
            queue.close(error.clone());
        }
    }

    async fn pump(
        &mut self,
        transport: impl Transport,
        commands: &mut mpsc::Receiver<Command>,
    ) -> Result<(), Error> {
        let (mut reader, mut writer) = tokio::io::split(transport);
        let mut input = BytesMut::with_capacity(16 << 10);
        let mut clients_gone = false;
        // Nobody waits for the last answers, so a store that never gives them is left in the end.
        let mut end = Instant::now();
        let mut batch = Vec::new();
        loop {
            self.do_chores();
            self.deliver();
            self.count();
            if clients_gone && self.connection.is_idle() {
                return Ok(());
            }
            let room = self.window.saturating_sub(self.connection.in_flight());
            // Sending comes first, and cannot keep from reading: only replies make room for more of
            // it. The other way round, a store with many events could keep from sending. Every
            // branch may be dropped without losing bytes or commands.
            tokio::select! {
                biased;
                written = writer.write(self.connection.output()), if !self.connection.output().is_empty() => match written {
                    Ok(count @ 1..) => {
                        self.counters.bytes_sent.add(count);
                        self.connection.output().advance(count);
                    }
                    Ok(0) => return Err(self.last_words(&mut reader, &mut input, io::ErrorKind::WriteZero.into())),
                    Err(error) => return Err(self.last_words(&mut reader, &mut input, error)),
                },
                count = commands.recv_many(&mut batch, room), if room > 0 && !clients_gone => {
                    clients_gone = count == 0;
                    end = Instant::now() + self.deadline;
                    // What a caller dropped before it called goes first: it may have made room.
                    self.do_chores();
                    batch.drain(..).for_each(|command| self.accept(command));
                }
                read = reader.read_buf(&mut input) => match read {
                    Ok(0) => return Err(self.end_of_stream(&mut input)),
                    Ok(count) => {
                        self.counters.bytes_received.add(count);
                        self.receive(&mut input)?;
                    }
                    Err(error) => return Err(lost(&error.into())),
                },
                () = self.chores.notify.notified() => {}
                () = sleep_until(end), if clients_gone => return Ok(()),
            }
        }
    }

    fn accept(&mut self, command: Command) {
        match command {
            Command::Call { request, tx, reply } => {
                trace!(op = %request.op(), path = request.path().map(tracing::field::display), tx = tx.0, "request");
                self.connection.call(&request, tx, Waiter::Call(reply));
            }
            Command::Start { reply } => {
                self.connection.call(&Request::TransactionStart, TxId::NONE, Waiter::Start(reply));
            }
            // A watcher that is gone already has left its chore already.
            Command::Watch { reply, .. } if reply.is_closed() => {}
            Command::Watch { path, id, queue, reply } => {
                self.queues.insert(id, queue);
                self.connection.watch(path, id, Waiter::Call(reply));
            }
        }
    }

    fn count(&self) {
        self.counters.requests.set(self.connection.sent());
        self.counters.in_flight.set(self.connection.in_flight());
        self.counters.watches.set(self.connection.watches());
    }

    fn do_chores(&mut self) {
        for chore in self.chores.take() {
            match chore {
                Chore::Unwatch(id) => {
                    self.queues.remove(&id);
                    self.connection.unwatch(id);
                }
                Chore::Abort(tx) => self.connection.tell(&Request::TransactionEnd { commit: false }, tx),
            }
        }
    }

    /// Tells callers and watchers. A caller that is gone is no reason to stop.
    fn deliver(&mut self) {
        while let Some(effect) = self.connection.effect() {
            match effect {
                Effect::Complete(Waiter::Call(reply), result) => _ = reply.send(result),
                Effect::Complete(Waiter::Start(reply), result) => {
                    // An opened transaction that does not reach its caller aborts as it is dropped.
                    _ = reply.send(result.and_then(|reply| self.opened(&reply)));
                }
                Effect::Changed(watcher, path) => {
                    if let Some(queue) = self.queues.get(&watcher) {
                        self.counters.changes.add(1);
                        match queue.changed(path) {
                            Kept::New => {}
                            Kept::Coalesced => self.counters.coalesced.add(1),
                            Kept::Overflowed => self.counters.overflows.add(1),
                        }
                    }
                }
            }
        }
    }

    fn opened(&self, reply: &Reply) -> Result<Open, Error> {
        let commands = self.weak.upgrade().ok_or_else(|| ended("the client was dropped"))?;
        match reply {
            Reply::Transaction(id) => {
                self.counters.transactions.add(1);
                let (chores, counters) = (self.chores.clone(), self.counters.clone());
                Ok(Open::new(*id, Handle { commands, chores, counters }))
            }
            _ => Err(ended("the store opened no transaction")),
        }
    }

    fn receive(&mut self, input: &mut BytesMut) -> Result<(), Error> {
        while let Some(message) = self.codec.decode(input).map_err(|error| lost(&error))? {
            self.connection.receive(message)?;
        }
        Ok(())
    }

    /// The store takes no more; what it sent before that still counts.
    fn last_words(
        &mut self,
        reader: &mut (impl AsyncRead + Unpin),
        input: &mut BytesMut,
        error: io::Error,
    ) -> Error {
        while let Some(read) = reader.read_buf(input).now_or_never() {
            let received = match read {
                Ok(0) => Err(self.end_of_stream(input)),
                Ok(_) => self.receive(input),
                Err(error) => Err(lost(&error.into())),
            };
            if let Err(error) = received {
                return error;
            }
        }
        lost(&error.into())
    }

    fn end_of_stream(&mut self, input: &mut BytesMut) -> Error {
        match self.codec.decode_eof(input) {
            Err(error) => lost(&error),
            Ok(_) => ended("the store closed it"),
        }
    }
}

fn lost(error: &StreamError) -> Error {
    match error {
        StreamError::Decode(error) => Error::Protocol(error.clone()),
        other => Error::Disconnected { reason: other.to_string().into() },
    }
}
