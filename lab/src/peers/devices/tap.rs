//! A transport that lists what goes through it: every request of a client in order, in bursts.
//!
//! A burst is all that is sent until something is received: what a client sends without having to
//! wait for the server. Their number is that of the round trips.

use std::fmt::Write as _;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio_util::codec::Decoder;
use xs_proto::{Message, MessageCodec, Op};

/// Something that went through.
#[derive(Clone, Debug)]
pub(super) enum Line {
    /// A request, and whether it is the first of a burst.
    Request {
        op: Op,
        transaction: u32,
        text: String,
        first: bool,
    },
    Event(String),
}

#[derive(Debug, Default)]
struct Log {
    lines: Vec<Line>,
    sent: BytesMut,
    received: BytesMut,
    /// Whether something was received since the last request.
    answered: bool,
}

impl Log {
    fn messages(codec: &mut MessageCodec, bytes: &mut BytesMut) -> Vec<Message> {
        // A stream that is no xenstore protocol ends the client.
        std::iter::from_fn(|| codec.decode(bytes).ok().flatten()).collect()
    }
}

/// What has gone through a [`Tap`].
#[derive(Clone, Debug, Default)]
pub(super) struct Listing(Arc<Mutex<Log>>);

impl Listing {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what has gone through since the last call.
    pub(super) fn take(&self) -> Vec<Line> {
        let mut log = self.log();
        log.answered = true;
        std::mem::take(&mut log.lines)
    }
}

pub(super) struct Tap {
    stream: UnixStream,
    codec: MessageCodec,
    listing: Listing,
}

impl Tap {
    pub(super) fn new(stream: UnixStream) -> (Self, Listing) {
        let listing = Listing::default();
        (Self { stream, codec: MessageCodec::default(), listing: listing.clone() }, listing)
    }
}

impl AsyncRead for Tap {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        let got = &buf.filled()[before..];
        if !got.is_empty() {
            let Self { codec, listing, .. } = &mut *self;
            let log = &mut *listing.log();
            log.answered = true;
            log.received.extend_from_slice(got);
            let messages = Log::messages(codec, &mut log.received);
            let events = messages.into_iter().filter(|message| message.op == Op::WATCH_EVENT);
            log.lines.extend(events.map(|event| Line::Event(shown(&event.payload))));
        }
        read
    }
}

impl AsyncWrite for Tap {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        if let Poll::Ready(Ok(count)) = &written {
            let Self { codec, listing, .. } = &mut *self;
            let log = &mut *listing.log();
            log.sent.extend_from_slice(&buf[..*count]);
            for Message { op, tx_id, payload, .. } in Log::messages(codec, &mut log.sent) {
                let first = std::mem::take(&mut log.answered) || log.lines.is_empty();
                log.lines.push(Line::Request { op, transaction: tx_id.0, text: shown(&payload), first });
            }
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A payload's parts, separated by blanks.
fn shown(payload: &[u8]) -> String {
    let parts = payload.split(|byte| *byte == 0).filter(|part| !part.is_empty());
    parts.map(|part| part.escape_ascii().to_string()).collect::<Vec<_>>().join(" ")
}

/// How often something was asked, and in how many bursts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) requests: usize,
    pub(super) bursts: usize,
}

impl Count {
    pub(super) fn of(lines: &[Line]) -> Self {
        let firsts = lines.iter().filter_map(|line| match line {
            Line::Request { first, .. } => Some(*first),
            Line::Event(_) => None,
        });
        let (requests, bursts) = (firsts.clone().count(), firsts.filter(|first| *first).count());
        Self { requests, bursts }
    }
}

/// Every line, numbered, the bursts apart.
pub(super) fn told(lines: &[Line]) -> String {
    let (mut text, mut number, mut burst) = (String::new(), 0, 0);
    for line in lines {
        _ = match line {
            Line::Event(event) => writeln!(text, "          <- event {event}"),
            Line::Request { op, transaction, text: what, first } => {
                number += 1;
                if *first {
                    burst += 1;
                    _ = writeln!(text, "  burst {burst}");
                }
                let transaction = if *transaction == 0 { String::new() } else { format!("t{transaction}") };
                writeln!(text, "    {number:3}  {transaction:5} {:17} {what}", format!("{op:?}"))
            }
        };
    }
    text
}
