//! What callers hold of a connection: a way to hand commands to its driver, and what must be
//! undone on the server when they drop something.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};
use xs_proto::TxId;

use crate::error::ended;
use crate::messages::Messages;
use crate::stats::Counters;
use crate::typed::Answered;
use crate::watcher::Watcher;
use crate::{Config, Error, Lifecycle};

/// So many at one time, as Tokio can count them.
pub(crate) fn at_once(count: usize) -> usize {
    count.clamp(1, Semaphore::MAX_PERMITS)
}

/// A transaction, or none; its number means something only on the connection that opened it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tx {
    pub(crate) id: TxId,
    /// Which of the connections, one after another, that was.
    pub(crate) epoch: u64,
}

impl Tx {
    pub(crate) const NONE: Self = Self { id: TxId::NONE, epoch: 0 };

    pub(crate) fn is_none(self) -> bool {
        self.id == TxId::NONE
    }

    /// Whether it was opened on an earlier connection than this one. Its number may be that of
    /// somebody else's by now.
    pub(crate) fn is_lost(self, epoch: u64) -> bool {
        !self.is_none() && self.epoch != epoch
    }
}

/// What a caller asks of the driver.
#[derive(Debug)]
pub(crate) enum Command {
    Call { message: Messages, tx: Tx, reply: oneshot::Sender<Answered> },
    Batch { messages: Messages, tx: Tx, reply: oneshot::Sender<Vec<Answered>> },
    Start { reply: oneshot::Sender<Result<Open, Error>> },
    Watch { watcher: Arc<Watcher>, reply: oneshot::Sender<Answered> },
}

/// What is left to do for something that was dropped.
#[derive(Debug)]
pub(crate) enum Chore {
    Unwatch(Arc<Watcher>),
    Abort(Tx),
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
pub(crate) struct Handle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    commands: mpsc::Sender<Command>,
    /// Dropped after the sender, so that who is told of it finds that gone.
    link: Last,
}

/// Tells the driver, which does not always listen for commands, that nobody has a handle any more.
#[derive(Debug)]
struct Last(Arc<Link>);

impl Drop for Last {
    fn drop(&mut self) {
        self.0.chores.notify.notify_one();
    }
}

/// What callers and the driver share.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) config: Config,
    pub(crate) chores: Chores,
    pub(crate) counters: Counters,
    pub(crate) lifecycle: watch::Sender<Lifecycle>,
    /// How many connections were lost so far.
    pub(crate) epoch: AtomicU64,
}

/// The handle of a driver, which does not keep it alive.
#[derive(Debug, Default)]
pub(crate) struct WeakHandle(Weak<Shared>);

impl WeakHandle {
    pub(crate) fn upgrade(&self) -> Option<Handle> {
        self.0.upgrade().map(Handle)
    }
}

impl Deref for Handle {
    type Target = Link;

    fn deref(&self) -> &Link {
        &self.0.link.0
    }
}

impl Link {
    /// Waits until nobody has a handle any more. What is in the channel then is of callers who have
    /// given up.
    pub(crate) async fn abandoned(&self, commands: &mpsc::Receiver<Command>) {
        while !is_abandoned(commands) {
            self.chores.notify.notified().await;
        }
    }
}

/// Whether nobody has a handle any more. Whether the channel is closed is known only of its end.
pub(crate) fn is_abandoned(commands: &mpsc::Receiver<Command>) -> bool {
    commands.sender_strong_count() == 0
}

impl Handle {
    /// A way to a driver, which gets its end, for so many waiting commands.
    pub(crate) fn new(config: Config) -> (Self, Arc<Link>, mpsc::Receiver<Command>) {
        let (commands, receiver) = mpsc::channel(at_once(config.window));
        let chores = Chores { list: Mutex::new(Ok(Vec::new())), notify: Notify::new() };
        let lifecycle = watch::Sender::new(Lifecycle::Connected);
        let counters = Counters::default();
        let link = Arc::new(Link { config, chores, counters, lifecycle, epoch: AtomicU64::new(0) });
        (Self(Arc::new(Shared { commands, link: Last(link.clone()) })), link, receiver)
    }

    pub(crate) fn downgrade(&self) -> WeakHandle {
        WeakHandle(Arc::downgrade(&self.0))
    }

    /// Hands over a command, waiting while the window is full. An error means that the
    /// connection is gone.
    pub(crate) async fn send(&self, command: Command) -> Result<(), Error> {
        self.0.commands.send(command).await.map_err(|_| self.ended())
    }

    /// Leaves a chore; never waits, so it can be called from `drop`.
    pub(crate) fn chore(&self, chore: Chore) {
        if let Ok(list) = &mut *self.chores.list() {
            list.push(chore);
        }
        self.chores.notify.notify_one();
    }

    /// Whether a transaction went with its connection, and another connection is there or is being
    /// made. Nothing of it was committed then, unless its commit was sent.
    pub(crate) fn has_lost(&self, tx: Tx) -> bool {
        tx.is_lost(self.epoch()) && !self.is_closed()
    }

    /// How many connections were lost so far.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// Whether the connection is gone for good.
    pub(crate) fn is_closed(&self) -> bool {
        self.chores.list().is_err()
    }

    /// What a caller is told whose command or reply went down with the driver.
    pub(crate) fn ended(&self) -> Error {
        match &*self.chores.list() {
            Err(error) => error.clone(),
            Ok(_) => ended("its driver has ended"),
        }
    }
}

/// A transaction that is open on the server. Dropped without being ended, it is aborted there.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) tx: Tx,
    handle: Option<Handle>,
}

impl Open {
    pub(crate) fn new(tx: Tx, handle: Handle) -> Self {
        Self { tx, handle: Some(handle) }
    }

    /// The server has ended it, or is about to: nothing is left to abort.
    pub(crate) fn defuse(&mut self) {
        self.handle = None;
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(handle) = &self.handle {
            handle.chore(Chore::Abort(self.tx));
        }
    }
}
