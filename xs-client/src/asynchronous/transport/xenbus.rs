//! Linux's `/dev/xen/xenbus`: the kernel's own connection, shared with programs.
//!
//! The device is no byte stream but a kernel interface with rules, which [`XenbusStream`] keeps so
//! that it looks like one:
//!
//! - A message is handed over whole, in a `write` of its own: what follows the first one in a
//!   `write` is lost.
//! - The next one is not written before the reply to it was read. An open file has one buffer for
//!   requests, and a thread of the kernel copies them from there to its ring some time after
//!   `write` has returned: what is written until then goes out in the place of what was meant.
//! - A payload has at most 4080 bytes. A longer one is refused here with `E2BIG`.
//! - `write` blocks for the whole round trip of WATCH and UNWATCH, whatever `O_NONBLOCK` says, and
//!   the device is never polled writable. So a thread writes.
//! - A WATCH that the store refuses has no reply, `write` fails instead. So does any other request
//!   that the kernel itself refuses. That becomes the reply that is missing.
//! - RESET_WATCHES would take the kernel's own watches with it, and is refused here with `ENOSYS`.
//!   A TRANSACTION_END without a transaction has no reply at all, and gets the daemon's, `ENOENT`.
//!   The depth of a WATCH would be ignored, so one with a depth gets what a daemon says that does
//!   not know of depths, `EINVAL`.
//!
//! What a refusal makes is put into the stream between two messages of the kernel.
//!
//! Source: experiment, with Linux 6.1 (`drivers/xen/xenbus/xenbus_dev_frontend.c`) in dom0 and in
//! a guest.

use std::fs::File;
use std::future::Future;
use std::io::{self, Write};
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};
use std::thread;

use bytes::{Buf, BytesMut};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio_util::codec::{Decoder, Encoder};
use xs_proto::{ErrorCode, HEADER_LEN, Header, Message, MessageCodec, Op, TxId};

use super::Connect;

/// The kernel assembles a message, header included, in a buffer of 4096 bytes.
const PAYLOAD_MAX: usize = 4096 - HEADER_LEN;

/// Linux's xenstore device, which lets programs of dom0 and of guests share the connection that
/// their kernel has. It has the rights of that domain.
///
/// The kernel aborts the transactions and removes the watches of a connection at its end.
///
/// One request is under way at one time. So it does not matter that some kernels, older than 4.16,
/// give a reply another number than its request had.
#[derive(Clone, Debug)]
pub struct Xenbus {
    path: PathBuf,
}

impl Xenbus {
    /// The device at a path; see [`crate::default_device`].
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Opens it. Must be called in a Tokio runtime.
    pub(super) fn open(&self) -> io::Result<XenbusStream> {
        // Only reading takes notice of NONBLOCK.
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let device = File::from(rustix::fs::open(&self.path, flags, Mode::empty())?);
        XenbusStream::new(device.try_clone()?, device)
    }
}

impl Connect for Xenbus {
    type Transport = XenbusStream;

    fn at(&self) -> String {
        self.path.display().to_string()
    }

    fn connect(&mut self) -> impl Future<Output = io::Result<XenbusStream>> + Send {
        std::future::ready(self.open())
    }

    /// 1
    fn window(&self) -> usize {
        1
    }

    /// It is not: the kernel's own replies and the first event of a watch come when they come.
    fn is_ordered(&self) -> bool {
        false
    }
}

/// A request on its way to the device.
#[derive(Debug)]
struct Outgoing {
    header: Header,
    /// The whole message; of one that is too long, the beginning.
    bytes: BytesMut,
}

/// The open device as a byte stream. It takes a message when the one before is answered, so who
/// writes must read, too.
///
/// At its end a thread writes the message that was taken last, and then closes the device.
#[derive(Debug)]
pub struct XenbusStream {
    /// Not a pipe, but all that is asked of it is to be polled and read.
    device: pipe::Receiver,
    /// To the thread that writes. One at a time.
    requests: std::sync::mpsc::Sender<Outgoing>,
    /// From there: replies to what cannot be sent, or the error that ended it.
    refusals: mpsc::UnboundedReceiver<io::Result<Message>>,
    /// The number of the request without reply.
    unanswered: Option<u32>,
    /// Who waits for that reply to write the next one.
    writer: Option<Waker>,
    /// The message that is being taken from the writer.
    outgoing: BytesMut,
    /// Bytes still to come of a message that is too long, and thrown away.
    excess: usize,
    /// What was read of the device and is not yet a whole message.
    input: BytesMut,
    /// Whole messages for the reader.
    output: BytesMut,
}

impl XenbusStream {
    /// `reading` must be non-blocking.
    fn new(reading: File, writing: impl Write + Send + 'static) -> io::Result<Self> {
        let device = pipe::Receiver::from_file_unchecked(reading)?;
        let (requests, to_write) = std::sync::mpsc::channel();
        let (refused, refusals) = mpsc::unbounded_channel();
        // Not a blocking task of the runtime: that would keep it from ending while the store stands.
        thread::Builder::new()
            .name("xenbus".into())
            .spawn(move || write_messages(writing, &to_write, &refused))?;
        Ok(Self {
            device,
            requests,
            refusals,
            unanswered: None,
            writer: None,
            outgoing: BytesMut::new(),
            excess: 0,
            input: BytesMut::new(),
            output: BytesMut::new(),
        })
    }

    /// Takes bytes for the message that is being assembled, and hands it over when it is complete.
    fn assemble(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.excess > 0 {
            let skipped = bytes.len().min(self.excess);
            self.excess -= skipped;
            return Ok(skipped);
        }
        let header = |bytes: &[u8]| bytes.first_chunk().map(Header::decode);
        let length = header(&self.outgoing).map_or(0, |header| header.len as usize);
        let taken = bytes.len().min(HEADER_LEN + length - self.outgoing.len());
        self.outgoing.extend_from_slice(&bytes[..taken]);
        if let Some(header) = header(&self.outgoing) {
            let length = header.len as usize;
            let missing = length - (self.outgoing.len() - HEADER_LEN);
            if missing == 0 || length > PAYLOAD_MAX {
                self.excess = missing;
                self.unanswered = Some(header.req_id);
                let outgoing = Outgoing { header, bytes: self.outgoing.split() };
                self.requests.send(outgoing).map_err(|_| thread_ended())?;
            }
        }
        Ok(taken)
    }

    fn deliver(&mut self, mut message: Message) -> io::Result<()> {
        // Of an event, the number in its head is whatever lay in the kernel's memory.
        if message.op != Op::WATCH_EVENT {
            message.req_id = self.unanswered.take().unwrap_or(message.req_id);
            if let Some(writer) = self.writer.take() {
                writer.wake();
            }
        }
        MessageCodec::default().encode(message, &mut self.output).map_err(invalid)
    }

    /// Reads what there is; `false` at the end.
    fn poll_device(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        self.input.reserve(HEADER_LEN + xs_proto::PAYLOAD_MAX);
        let reading = pin!(self.device.read_buf(&mut self.input));
        let count = ready!(reading.poll(cx))?;
        if count == 0 && !self.input.is_empty() {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        while let Some(message) = MessageCodec::default().decode(&mut self.input).map_err(invalid)? {
            self.deliver(message)?;
        }
        Poll::Ready(Ok(count > 0))
    }
}

impl AsyncRead for XenbusStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.output.is_empty() {
            match self.refusals.poll_recv(cx) {
                Poll::Ready(Some(refusal)) => self.deliver(refusal?)?,
                Poll::Ready(None) => return Poll::Ready(Err(thread_ended())),
                Poll::Pending => {
                    if !ready!(self.poll_device(cx))? {
                        break;
                    }
                }
            }
        }
        let count = self.output.len().min(buf.remaining());
        buf.put_slice(&self.output[..count]);
        self.output.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for XenbusStream {
    /// Takes no more than one message, and none while one is unanswered.
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        // Of a message that is too long, the reply may come before its end.
        if self.unanswered.is_some() && self.excess == 0 {
            self.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(self.assemble(buf))
    }

    /// Does nothing: a whole message is on its way, and a part of one cannot be.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Does nothing: the device has no half that could be closed.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn invalid(error: xs_proto::StreamError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn thread_ended() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the thread that writes to the device has ended")
}

/// The thread: one `write` for each message, which takes as long as it takes.
fn write_messages(
    mut device: impl Write,
    requests: &std::sync::mpsc::Receiver<Outgoing>,
    refused: &mpsc::UnboundedSender<io::Result<Message>>,
) {
    for Outgoing { header, bytes } in requests {
        let code = match forbidden(&header, &bytes[HEADER_LEN..]) {
            Some(code) => Ok(code),
            None => match device.write_all(&bytes) {
                Ok(()) => continue,
                Err(error) => reply_for(&error).ok_or(error),
            },
        };
        let is_over = code.is_err();
        let Header { req_id, tx_id, .. } = header;
        let reply = code.map(|code| {
            let payload = [code.as_bytes(), b"\0"].concat().into();
            Message { op: Op::ERROR, req_id, tx_id, payload }
        });
        // Nobody may be there for it any more.
        if refused.send(reply).is_err() || is_over {
            return;
        }
    }
}

/// What must not reach the device, and what it is answered with.
fn forbidden(header: &Header, payload: &[u8]) -> Option<ErrorCode> {
    let strings = || payload.iter().filter(|byte| **byte == 0).count();
    match header {
        Header { len, .. } if *len as usize > PAYLOAD_MAX => Some(ErrorCode::E2BIG),
        Header { op: Op::RESET_WATCHES, .. } => Some(ErrorCode::ENOSYS),
        Header { op: Op::TRANSACTION_END, tx_id: TxId::NONE, .. } => Some(ErrorCode::ENOENT),
        Header { op: Op::WATCH, .. } if strings() > 2 => Some(ErrorCode::EINVAL),
        _ => None,
    }
}

/// The reply that a failed `write` stands for; `None` if it says that the device is of no use.
fn reply_for(error: &io::Error) -> Option<ErrorCode> {
    Some(match Errno::from_io_error(error)? {
        Errno::INVAL => ErrorCode::EINVAL,
        Errno::ACCESS => ErrorCode::EACCES,
        Errno::EXIST => ErrorCode::EEXIST,
        Errno::NOENT => ErrorCode::ENOENT,
        Errno::NOMEM => ErrorCode::ENOMEM,
        Errno::NOSPC => ErrorCode::ENOSPC,
        Errno::IO => ErrorCode::EIO,
        Errno::NOSYS => ErrorCode::ENOSYS,
        Errno::BUSY => ErrorCode::EBUSY,
        Errno::TOOBIG => ErrorCode::E2BIG,
        Errno::PERM => ErrorCode::EPERM,
        // Before 4.11: a transaction that was not begun here, and a string without its NUL.
        Errno::SRCH => ErrorCode::ENOENT,
        Errno::ILSEQ => ErrorCode::EINVAL,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
