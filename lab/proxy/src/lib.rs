//! A man in the middle between a client and a store, in this process, with faults by script.
//!
//! It passes on whole messages, counts them, and does what a test has ordered: conflicts,
//! refusals, silence, cut and garbled streams. Time is tokio's, so it works while that is paused.
//!
//! A client takes its end of the pipe as it takes any other stream. By hand:
//!
//! ```
//! # use tokio::io::{AsyncReadExt, AsyncWriteExt};
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use lab_proxy::Proxy;
//! use xs_proto::{DomId, ErrorCode, HEADER_LEN, Header, Op, Request, TxId};
//!
//! let store = xs_store::Store::new();
//! let (mut stream, proxy) = Proxy::over(store.connect(DomId::DOM0));
//! proxy.refuse(Op::MKDIR, "/a", ErrorCode::EACCES);
//!
//! let mut request = bytes::BytesMut::new();
//! Request::Mkdir("/a".parse()?).encode(1, TxId::NONE, &mut request)?;
//! stream.write_all(&request).await?;
//!
//! let mut head = [0; HEADER_LEN];
//! stream.read_exact(&mut head).await?;
//! assert_eq!(Header::decode(&head).op, Op::ERROR);
//! assert_eq!(proxy.count(Op::MKDIR), 1);
//! # Ok(()) }
//! ```
//!
//! It names no client, although only tests of clients use it: a crate can so have it for its own
//! tests without a circle of dependencies.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::codec::Decoder;
use xs_proto::{ErrorCode, Header, Message, MessageCodec, Op, Reply, Request, StreamError};

/// Bytes in the pipe to the client.
const PIPE: usize = 64 << 10;

/// The longest reply that is passed on.
const REPLY_MAX: usize = 1 << 20;

/// A connection to a store: what a client would take too.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for T {}

/// The test's hand on the wire.
#[derive(Clone, Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    script: Mutex<Script>,
    ordered: Notify,
}

/// What has been seen, and what is ordered.
#[derive(Debug, Default)]
struct Script {
    seen: BTreeMap<Op, usize>,
    commits: Vec<Instant>,
    conflicts: usize,
    refusals: Vec<Refusal>,
    losses: Vec<Op>,
    silent: bool,
    held: bool,
    held_from_commit: bool,
    cut: Option<usize>,
    injected: BytesMut,
}

#[derive(Debug)]
struct Refusal {
    op: Op,
    suffix: String,
    code: ErrorCode,
}

impl Shared {
    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Proxy {
    /// Starts to pass messages on, as a task of the current runtime. Returns the client's end, and
    /// the handle for faults. The end of either side ends both.
    pub fn over(upstream: impl Stream) -> (DuplexStream, Self) {
        let (near, far) = tokio::io::duplex(PIPE);
        let shared = Arc::new(Shared::default());
        let wire = Wire { shared: shared.clone(), ..Wire::default() };
        // A stream that fails ends the connection, which both sides see.
        tokio::spawn(async move { _ = wire.run(far, upstream).await });
        (near, Self { shared })
    }

    /// Makes the next commits conflict: the store is told to abort them, and the client `EAGAIN`.
    pub fn conflict(&self, commits: usize) {
        self.shared.script().conflicts = commits;
    }

    /// When each commit was asked for, those that conflicted included.
    pub fn commits(&self) -> Vec<Instant> {
        self.shared.script().commits.clone()
    }

    /// Answers the next request of this operation, on a path that ends like this, with an error.
    /// The store does not hear of it.
    pub fn refuse(&self, op: Op, suffix: &str, code: ErrorCode) {
        self.shared.script().refusals.push(Refusal { op, suffix: suffix.to_owned(), code });
    }

    /// Loses the reply to the next request of this operation; the store carries it out.
    pub fn lose_reply(&self, op: Op) {
        self.shared.script().losses.push(op);
    }

    /// Passes nothing more on to the client, or all again from now on. What the store sent
    /// meanwhile is lost.
    pub fn silence(&self, silent: bool) {
        self.shared.script().silent = silent;
    }

    /// Holds back what is for the client, or lets all of it go: a client that is slow.
    pub fn hold(&self, held: bool) {
        self.shared.script().held = held;
        self.shared.ordered.notify_one();
    }

    /// Holds back what is for the client from the reply to the next commit on that is not made to conflict, until [`Self::hold`] lets it go.
    pub fn hold_from_commit(&self) {
        self.shared.script().held_from_commit = true;
    }

    /// Ends the connection after so many bytes of the next message to the client.
    pub fn cut_after(&self, bytes: usize) {
        self.shared.script().cut = Some(bytes);
    }

    /// Sends these bytes to the client, between two messages of the store.
    pub fn inject(&self, bytes: &[u8]) {
        self.shared.script().injected.extend_from_slice(bytes);
        self.shared.ordered.notify_one();
    }

    /// How many requests of this operation the client has sent.
    pub fn count(&self, op: Op) -> usize {
        self.shared.script().seen.get(&op).copied().unwrap_or_default()
    }

    /// How many requests the client has sent that change nodes, those in transactions included.
    pub fn writes(&self) -> usize {
        [Op::WRITE, Op::MKDIR, Op::RM, Op::SET_PERMS].map(|op| self.count(op)).iter().sum()
    }
}

/// The bytes under way in both directions.
#[derive(Default)]
struct Wire {
    shared: Arc<Shared>,
    to_store: BytesMut,
    to_client: BytesMut,
    /// Requests, by their id, whose reply is to be this error.
    replaced: HashMap<u32, ErrorCode>,
    /// Requests, by their id, whose reply is to be lost.
    lost: HashSet<u32>,
    /// Nothing follows what is on its way to the client.
    closing: bool,
}

impl Wire {
    async fn run(mut self, client: DuplexStream, store: impl Stream) -> Result<(), StreamError> {
        let (mut from_client, mut into_client) = tokio::io::split(client);
        let (mut from_store, mut into_store) = tokio::io::split(store);
        let mut codec = MessageCodec::with_limit(REPLY_MAX);
        let (mut requests, mut replies) = (BytesMut::new(), BytesMut::new());
        let shared = self.shared.clone();
        loop {
            let held = {
                let mut script = shared.script();
                self.to_client.unsplit(script.injected.split());
                script.held
            };
            if self.closing && self.to_client.is_empty() {
                return Ok(());
            }
            let (to_store, to_client) = (&mut self.to_store, &mut self.to_client);
            // In a fixed order, so that a test has one course.
            tokio::select! {
                biased;
                read = from_client.read_buf(&mut requests) => {
                    goes_on(read?)?;
                    while let Some(message) = codec.decode(&mut requests)? {
                        self.request(message)?;
                    }
                }
                read = from_store.read_buf(&mut replies), if !self.closing => {
                    goes_on(read?)?;
                    while let Some(message) = codec.decode(&mut replies)? {
                        self.reply(message)?;
                    }
                }
                written = into_store.write_buf(to_store), if !to_store.is_empty() => drop(written?),
                written = into_client.write_buf(to_client), if !held && !to_client.is_empty() => drop(written?),
                () = shared.ordered.notified() => {}
            }
        }
    }

    fn request(&mut self, mut message: Message) -> Result<(), StreamError> {
        let shared = self.shared.clone();
        let mut script = shared.script();
        *script.seen.entry(message.op).or_default() += 1;
        let request = Request::decode(message.op, message.payload.clone());
        if let Ok(Request::TransactionEnd { commit: true }) = request {
            script.commits.push(Instant::now());
            if script.conflicts > 0 {
                script.conflicts -= 1;
                self.replaced.insert(message.req_id, ErrorCode::EAGAIN);
                message.payload = b"F\0"[..].into();
            } else {
                script.held |= std::mem::take(&mut script.held_from_commit);
            }
        }
        let path = request.as_ref().ok().and_then(Request::path);
        let refused = |refusal: &Refusal| {
            refusal.op == message.op && path.is_some_and(|path| path.ends_with(&refusal.suffix))
        };
        if let Some(index) = script.refusals.iter().position(refused) {
            let error = Reply::Error(script.refusals.remove(index).code);
            error.encode(message.op, message.req_id, message.tx_id, &mut self.to_client)?;
            return Ok(());
        }
        if let Some(index) = script.losses.iter().position(|op| *op == message.op) {
            script.losses.remove(index);
            self.lost.insert(message.req_id);
        }
        append(&message, &mut self.to_store);
        Ok(())
    }

    fn reply(&mut self, message: Message) -> Result<(), StreamError> {
        let mut script = self.shared.script();
        if script.silent || self.closing || self.lost.remove(&message.req_id) {
            return Ok(());
        }
        let start = self.to_client.len();
        match self.replaced.remove(&message.req_id) {
            Some(code) => {
                let error = Reply::Error(code);
                error.encode(message.op, message.req_id, message.tx_id, &mut self.to_client)?;
            }
            None => append(&message, &mut self.to_client),
        }
        if let Some(bytes) = script.cut.take() {
            self.to_client.truncate(start + bytes);
            self.closing = true;
        }
        Ok(())
    }
}

/// The end of a stream as an error.
fn goes_on(read: usize) -> io::Result<()> {
    if read == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

/// Appends a message as it came, of any length.
fn append(message: &Message, out: &mut BytesMut) {
    let Message { op, req_id, tx_id, payload } = message;
    Header { op: *op, req_id: *req_id, tx_id: *tx_id, len: payload.len() as u32 }.encode(out);
    out.extend_from_slice(payload);
}
