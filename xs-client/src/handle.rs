//! What callers hold of a connection: a way to hand commands to its driver, and what must be
//! undone on the server when they drop something.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, mpsc, oneshot};
use xs_proto::{Path, Reply, Request, TxId};

use crate::Error;
use crate::queue::Queue;
use crate::stats::Counters;
use crate::watches::WatcherId;

/// What a caller asks of the driver.
#[derive(Debug)]
pub(crate) enum Command {
    Call { request: Request, tx: TxId, reply: oneshot::Sender<Result<Reply, Error>> },
    Start { reply: oneshot::Sender<Result<Open, Error>> },
    Watch { path: Path, id: WatcherId, queue: Arc<Queue>, reply: oneshot::Sender<Result<Reply, Error>> },
}

/// What is left to do for something that was dropped.
#[derive(Debug)]
pub(crate) enum Chore {
    Unwatch(WatcherId),
    Abort(TxId),
}

#[derive(Debug)]
pub(crate) struct Chores {
    /// Once the connection is gone there are none, but the reason why it is.
    list: Mutex<Result<Vec<Chore>, Error>>,
    pub(crate) notify: Notify,
}

impl Chores {
    fn list(&self) -> MutexGuard<'_, Result<Vec<Chore>, Error>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what has come together.
    pub(crate) fn take(&self) -> Vec<Chore> {
        self.list().as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// The connection is gone: nothing is left to clean.
    pub(crate) fn close(&self, error: Error) {
        *self.list() = Err(error);
    }
}

/// A caller's way to the driver. The driver ends when all of them are gone.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) chores: Arc<Chores>,
    pub(crate) counters: Arc<Counters>,
}

impl Handle {
    /// A way to a driver, which gets its end, for so many waiting commands.
    pub(crate) fn new(capacity: usize) -> (Self, mpsc::Receiver<Command>) {
        let (commands, receiver) = mpsc::channel(capacity);
        let chores = Arc::new(Chores { list: Mutex::new(Ok(Vec::new())), notify: Notify::new() });
        (Self { commands, chores, counters: Arc::default() }, receiver)
    }

    /// Hands over a command, waiting while the window is full. An error means that the
    /// connection is gone.
    pub(crate) async fn send(&self, command: Command) -> Result<(), Error> {
        self.commands.send(command).await.map_err(|_| self.ended())
    }

    /// Leaves a chore; never waits, so it can be called from `drop`.
    pub(crate) fn chore(&self, chore: Chore) {
        if let Ok(list) = &mut *self.chores.list() {
            list.push(chore);
        }
        self.chores.notify.notify_one();
    }

    /// What a caller is told whose command or reply went down with the driver.
    pub(crate) fn ended(&self) -> Error {
        match &*self.chores.list() {
            Err(error) => error.clone(),
            Ok(_) => ended("its driver has ended"),
        }
    }
}

pub(crate) fn ended(reason: &str) -> Error {
    Error::Disconnected { reason: reason.into() }
}

/// A transaction that is open on the server. Dropped without being ended, it is aborted there.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) id: TxId,
    handle: Option<Handle>,
}

impl Open {
    pub(crate) fn new(id: TxId, handle: Handle) -> Self {
        Self { id, handle: Some(handle) }
    }

    /// The server has ended it, or is about to: nothing is left to abort.
    pub(crate) fn defuse(&mut self) {
        self.handle = None;
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(handle) = &self.handle {
            handle.chore(Chore::Abort(self.id));
        }
    }
}
