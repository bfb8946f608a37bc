//! The client that measures: one blocking socket, requests prepared beforehand, one write per
//! batch, large reads, replies counted by their headers.
//!
//! It is as little as a client can be, so that what is measured is the server. An error reply
//! ends the measurement: a server that refuses would look fast.

use std::io::{ErrorKind, Read, Write};
use std::ops::{AddAssign, Range};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::BytesMut;
use xs_proto::{HEADER_LEN, Header, Op, TxId};

/// How long a server may be silent.
const PATIENCE: Duration = Duration::from_secs(30);

const BUFFER: usize = 256 << 10;

/// Where a header has its transaction.
const TX_ID: Range<usize> = 8..12;

/// Requests that are sent with one write.
#[derive(Clone, Debug, Default)]
pub(super) struct Batch {
    bytes: BytesMut,
    /// Replies that they get.
    pub(super) replies: usize,
    /// Events that they make for the connection that sends them.
    pub(super) events: usize,
}

impl Batch {
    pub(super) fn read(path: &str) -> Self {
        Self::of(Op::READ, &[path, "\0"])
    }

    pub(super) fn write(path: &str, value: &str) -> Self {
        Self::of(Op::WRITE, &[path, "\0", value])
    }

    pub(super) fn directory(path: &str) -> Self {
        Self::of(Op::DIRECTORY, &[path, "\0"])
    }

    /// A watch, and its first event.
    pub(super) fn watch(path: &str, token: &str) -> Self {
        Self { events: 1, ..Self::of(Op::WATCH, &[path, "\0", token, "\0"]) }
    }

    pub(super) fn start_transaction() -> Self {
        Self::of(Op::TRANSACTION_START, &["\0"])
    }

    pub(super) fn commit() -> Self {
        Self::of(Op::TRANSACTION_END, &["T\0"])
    }

    fn of(op: Op, payload: &[&str]) -> Self {
        let payload = payload.concat();
        let mut bytes = BytesMut::new();
        Header { op, req_id: 1, tx_id: TxId::NONE, len: payload.len() as u32 }.encode(&mut bytes);
        bytes.extend_from_slice(payload.as_bytes());
        Self { bytes, replies: 1, events: 0 }
    }

    /// The same requests, each with one event for the sender.
    pub(super) fn with_event(self) -> Self {
        Self { events: self.replies, ..self }
    }

    /// Puts all of it into a transaction.
    pub(super) fn set_transaction(&mut self, tx_id: TxId) {
        let mut rest = &mut self.bytes[..];
        while let Some(head) = rest.first_chunk() {
            let len = HEADER_LEN + Header::decode(head).len as usize;
            rest[TX_ID].copy_from_slice(&tx_id.0.to_le_bytes());
            rest = &mut rest[len..];
        }
    }

    /// These, so many to a batch.
    pub(super) fn in_groups(all: impl IntoIterator<Item = Self>, of: usize) -> Vec<Self> {
        let mut batches = vec![Self::default()];
        for batch in all {
            match batches.last_mut() {
                Some(last) if last.replies < of => *last += batch,
                _ => batches.push(batch),
            }
        }
        batches
    }
}

impl AddAssign for Batch {
    fn add_assign(&mut self, more: Self) {
        self.bytes.extend_from_slice(&more.bytes);
        self.replies += more.replies;
        self.events += more.events;
    }
}

/// A connection to a server.
#[derive(Debug)]
pub(super) struct Wire {
    stream: UnixStream,
    buffer: Box<[u8]>,
    /// What has been read and not been looked at.
    filled: Range<usize>,
}

impl Wire {
    pub(super) fn connect(socket: &Path) -> Result<Self> {
        Self::over(UnixStream::connect(socket).context("connecting to the server")?)
    }

    pub(super) fn over(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream, buffer: vec![0; BUFFER].into(), filled: 0..0 })
    }

    /// Sends a batch and takes what it gets.
    pub(super) fn ask(&mut self, batch: &Batch) -> Result<()> {
        self.stream.write_all(&batch.bytes).context("sending to the server")?;
        let (mut replies, mut events) = (batch.replies, batch.events);
        while replies > 0 || events > 0 {
            let count = if self.next()?.0 == Op::WATCH_EVENT { &mut events } else { &mut replies };
            *count = count.checked_sub(1).context("the server sent more than was expected")?;
        }
        Ok(())
    }

    /// Asks all batches, one after the other.
    pub(super) fn ask_all(&mut self, batches: &[Batch]) -> Result<()> {
        batches.iter().try_for_each(|batch| self.ask(batch))
    }

    pub(super) fn start_transaction(&mut self, start: &Batch) -> Result<TxId> {
        self.stream.write_all(&start.bytes).context("sending to the server")?;
        let (_, payload) = self.next()?;
        let text = payload.strip_suffix(b"\0").and_then(|text| str::from_utf8(text).ok());
        let id = text.and_then(|text| text.parse().ok()).context("a transaction without a number")?;
        Ok(TxId(id))
    }

    /// Sends so many requests, as many as `window` has in flight for as long as there are any left:
    /// one of its requests, which are all the same, for each reply.
    pub(super) fn keep_asking(&mut self, window: &Batch, requests: usize) -> Result<()> {
        let len = window.bytes.len() / window.replies;
        let (mut unsent, mut in_flight) = (requests, 0);
        while unsent + in_flight > 0 {
            let room = unsent.min(window.replies - in_flight);
            self.stream.write_all(&window.bytes[..room * len]).context("sending to the server")?;
            unsent -= room;
            in_flight += room;
            self.next()?;
            in_flight -= 1;
            while in_flight > 0 && self.received()?.is_some() {
                self.next()?;
                in_flight -= 1;
            }
        }
        Ok(())
    }

    /// The next message.
    pub(super) fn next(&mut self) -> Result<(Op, &[u8])> {
        let (op, payload) = loop {
            match self.received()? {
                Some(message) => break message,
                None => self.fill()?,
            }
        };
        self.filled.start = payload.end;
        let payload = &self.buffer[payload];
        if op == Op::ERROR {
            bail!("the server answered {}", payload.escape_ascii());
        }
        Ok((op, payload))
    }

    /// Where the payload of the next message is, if all of it is here.
    fn received(&self) -> Result<Option<(Op, Range<usize>)>> {
        let unread = &self.buffer[self.filled.clone()];
        let Some(head) = unread.first_chunk() else { return Ok(None) };
        let Header { op, len, .. } = Header::decode(head);
        let len = HEADER_LEN + len as usize;
        ensure!(len <= BUFFER, "a message of {len} bytes");
        let payload = self.filled.start + HEADER_LEN..self.filled.start + len;
        Ok((unread.len() >= len).then_some((op, payload)))
    }

    fn fill(&mut self) -> Result<()> {
        self.buffer.copy_within(self.filled.clone(), 0);
        self.filled = 0..self.filled.len();
        // A process that ends elsewhere in the lab interrupts it.
        let got = loop {
            match self.stream.read(&mut self.buffer[self.filled.end..]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                got => break got.context("waiting for the server")?,
            }
        };
        ensure!(got > 0, "the server closed the connection");
        self.filled.end += got;
        Ok(())
    }
}

/// A transaction: its START waits for the number, the rest goes out together.
pub(super) struct Transaction {
    start: Batch,
    rest: Batch,
}

impl Transaction {
    /// Eight writes below a path.
    pub(super) fn new(below: &str) -> Self {
        let mut rest = Batch::default();
        for key in 0..8 {
            rest += Batch::write(&format!("{below}/key{key}"), "0123456789abcdef");
        }
        rest += Batch::commit();
        Self { start: Batch::start_transaction(), rest }
    }

    pub(super) fn run(&mut self, wire: &mut Wire) -> Result<()> {
        let id = wire.start_transaction(&self.start)?;
        self.rest.set_transaction(id);
        wire.ask(&self.rest)
    }
}
