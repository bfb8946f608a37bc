//! The driver: connections as tasks around the pure core.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::UnixListener;
use tokio::sync::Notify;
use tokio::task::{JoinSet, yield_now};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::codec::Decoder;
use tracing::debug;
use xs_proto::{DomId, MessageCodec};

use crate::connection::ConnId;
use crate::pressure::PATIENCE;
use crate::store::Core;

/// Bytes read at once.
const CHUNK: usize = 16 << 10;

/// Requests of a connection that are carried out before others have their turn.
const TURN: usize = 32;

/// Bytes that an in-process pipe takes in each direction.
const PIPE: usize = 64 << 10;

/// A store in this process: a cheap handle, whose clones are the same store.
///
/// Clients are served in-process ([`Store::connect`]) or on a Unix socket ([`Store::serve`]), by
/// tasks of the runtime that called. Its answers do not depend on a clock, so it also works while
/// tokio's time is paused.
///
/// Semantics are those of the C daemon of Xen 4.22, with two differences that come from having no
/// hypervisor: a domain exists from when it first connects or is introduced until it is released,
/// and no ring page is mapped for it, so a guest is whoever [`Store::connect`] was called for. With
/// [`crate::TestDomains`] there is a stand-in for one, and neither differs.
///
/// Who has much outstanding is not read for the moment: a connection with 1 MiB of output unsent,
/// a guest of which as many requests as its quota `outstanding` says have a reply or an event (for
/// whomever) unsent, or 64 KiB of its events are for one watcher, a privileged connection with 1 MiB of
/// events unsent for one other such. Where somebody has waited for a connection for a second, nobody does until
/// it has read everything; and for one that has read late 8 times nobody waits any more. A guest whose writes
/// make transactions of a privileged connection fail again and again is not read until one succeeds, or for a
/// second.
///
/// An event is left out while the same one (path and token) waits. From 4 MiB of unsent output on
/// (a guest 1 MiB, and of what guests change a quarter of that) a connection is told of changes by
/// one event for each watch, which names the path that is watched.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// use bytes::BytesMut;
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// use xs_proto::{DomId, Path, Request, TxId};
/// use xs_store::Store;
///
/// let store = Store::new();
/// let mut stream = store.connect(DomId::DOM0);
/// let mut request = BytesMut::new();
/// Request::Directory(Path::root()).encode(1, TxId::NONE, &mut request)?;
/// stream.write_all(&request).await?;
/// let mut reply = [0; 21];
/// stream.read_exact(&mut reply).await?;
/// assert_eq!(&reply[16..], b"tool\0");
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Store {
    shared: Arc<Mutex<State>>,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) core: Core,
    /// To tell the task of a connection that there is something for it.
    pub(crate) tasks: HashMap<ConnId, Arc<Notify>>,
}

impl State {
    /// Wakes the tasks that have something to do.
    pub(crate) fn wake(&mut self) {
        for id in self.core.take_woken() {
            if let Some(task) = self.tasks.get(&id) {
                task.notify_one();
            }
        }
    }
}

impl Store {
    /// A store that is as empty as a daemon's that has just started: `/` and `/tool/xenstored`.
    #[must_use]
    pub fn new() -> Self {
        let state = State { core: Core::new(), tasks: HashMap::new() };
        Self { shared: Arc::new(Mutex::new(state)) }
    }

    /// A new connection that acts for a domain. For domain 0 it is privileged, as a socket is.
    ///
    /// Dropping the stream ends the connection: its watches and transactions go with it.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with its time enabled, which is to run the connection's task.
    #[must_use = "dropping the stream ends the connection"]
    pub fn connect(&self, domid: DomId) -> DuplexStream {
        let (near, far) = tokio::io::duplex(PIPE);
        tokio::spawn(self.attach(domid, domid == DomId::DOM0).run(far));
        near
    }

    /// Serves a socket until accepting fails for good; that error is returned.
    ///
    /// Each connection is privileged, as on the daemon's socket: who may connect is for the
    /// socket's file mode to say. Dropping the future closes the listener and every connection it
    /// has accepted.
    ///
    /// # Panics
    ///
    /// If the time of the tokio runtime is not enabled.
    pub async fn serve(&self, listener: UnixListener) -> io::Error {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => drop(connections.spawn(self.attach(DomId::DOM0, true).run(stream))),
                    Err(error) if is_of_one_client(&error) => {}
                    // The end of a connection frees a descriptor; until then trying is pointless.
                    Err(error) if is_out_of_descriptors(&error) && !connections.is_empty() => {
                        debug!(%error, "no more connections until one ends");
                        connections.join_next().await;
                    }
                    Err(error) => return error,
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }

    /// Introduces a domain, as the toolstack does when it has built one: it exists from now on,
    /// and `@introduceDomain` fires. One that is introduced already loses its watches and
    /// transactions instead, as when its ring is set up anew.
    pub fn introduce(&self, domid: DomId) {
        self.change(|core| core.introduce(domid));
    }

    /// Ends a domain, as when the hypervisor has destroyed it: its connections are closed, every
    /// node it owns is removed with all below, and `@releaseDomain` fires.
    pub fn release(&self, domid: DomId) {
        self.change(|core| core.release(domid));
    }

    /// Tells the store that a domain has shut down or crashed: `@releaseDomain` fires, once until
    /// the domain is resumed.
    pub fn shut_down(&self, domid: DomId) {
        self.change(|core| core.shut_down(&[domid]));
    }

    fn change(&self, change: impl FnOnce(&mut Core)) {
        let mut state = self.lock();
        change(&mut state.core);
        state.wake();
    }

    fn attach(&self, domid: DomId, privileged: bool) -> Attached {
        let mut state = self.lock();
        let id = state.core.connect(domid, privileged);
        let wake = Arc::new(Notify::new());
        state.tasks.insert(id, wake.clone());
        drop(state);
        Attached { store: self.clone(), id, wake, patience: Box::pin(sleep(PATIENCE)) }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // The core leaves nothing half done, and no panic of one client may stop the others.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

fn is_of_one_client(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted)
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    matches!(error.raw_os_error(), Some(ENFILE | EMFILE))
}

/// A connection of the core; when it is dropped, however its task ends, the connection ends too.
struct Attached {
    store: Store,
    id: ConnId,
    wake: Arc<Notify>,
    /// Ends when the connection has waited for others for long enough.
    patience: Pin<Box<Sleep>>,
}

/// How a connection's turn went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// There are more requests.
    More,
    /// All that has arrived is carried out.
    Done,
    /// Too much is outstanding for the next request.
    Wait,
}

impl Drop for Attached {
    fn drop(&mut self) {
        let mut state = self.store.lock();
        state.core.disconnect(self.id);
        state.tasks.remove(&self.id);
        // Others may have waited for it.
        state.wake();
    }
}

impl Attached {
    /// Moves bytes between the stream and the core until one of them is done.
    async fn run(mut self, stream: impl AsyncRead + AsyncWrite) {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
        let (mut reading, mut waiting) = (true, false);
        while let Some(turn) = self.turn(&mut input, &mut output) {
            if turn == Turn::More {
                yield_now().await;
                continue;
            }
            // A client that closes one direction still gets its answers.
            if !reading && turn == Turn::Done && output.is_empty() {
                return;
            }
            if turn == Turn::Wait && !waiting {
                self.patience.as_mut().reset(Instant::now() + PATIENCE);
            }
            waiting = turn == Turn::Wait;
            input.reserve(CHUNK);
            tokio::select! {
                got = reader.read_buf(&mut input), if reading && !waiting => match got {
                    Ok(got) => reading = got > 0,
                    Err(error) => return debug!(%error, "a connection failed"),
                },
                sent = writer.write_buf(&mut output), if !output.is_empty() => {
                    if let Err(error) = sent {
                        return debug!(%error, "a connection failed");
                    }
                }
                () = self.wake.notified() => {}
                () = &mut self.patience, if waiting => {
                    waiting = false;
                    self.store.change(|core| core.stop_waiting(self.id));
                }
            }
        }
    }

    /// Carries out some of the requests that have arrived, and takes the output if the last is
    /// sent. `None` if the connection must be closed.
    fn turn(&self, input: &mut BytesMut, output: &mut BytesMut) -> Option<Turn> {
        let mut state = self.store.lock();
        let core = &mut state.core;
        if output.is_empty() {
            core.output_sent(self.id);
        }
        let mut turn = Turn::More;
        for _ in 0..TURN {
            core.connection(self.id)?;
            if !core.may_ask(self.id) {
                turn = Turn::Wait;
                break;
            }
            match MessageCodec::default().decode(input) {
                Ok(Some(message)) => core.request(self.id, message),
                Ok(None) => {
                    turn = Turn::Done;
                    break;
                }
                Err(error) => {
                    debug!(%error, "a client broke the protocol");
                    return None;
                }
            }
        }
        core.connection(self.id)?;
        if output.is_empty() && turn != Turn::More {
            core.take_output(self.id, output);
        }
        state.wake();
        Some(turn)
    }
}
