//! The client's end of a ring page, as a byte stream.
//!
//! The page is all there is: a ring has no beginning and no end of its own, and the server knows
//! one connection for each domain.

use std::fmt;
use std::fs::File;
use std::future::poll_fn;
use std::io::{self, Write};
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, ready};

use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;
use tokio::task::consume_budget;
use xs_proto::ring::{ClientEnd, Page, RingError};

use super::Connect;

/// C servers do not read requests while 20 replies are not in the ring yet.
const WINDOW: usize = 16;

/// The event channel beside a ring page: "look again", and nothing more. Events may be merged, late,
/// or for nothing.
pub trait Events: Send + Sync + 'static {
    /// Waits for an event and takes it. The context is the same for all who wait, so one place for
    /// it is enough.
    ///
    /// For `/dev/xen/evtchn`: reads the port and writes it back.
    fn poll_event(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Raises an event at the server. Must not block; one that is still pending there need not be
    /// raised again.
    ///
    /// For `/dev/xen/evtchn`: the `ioctl` of that name.
    fn notify(&self) -> io::Result<()>;
}

/// Events that come and go as 8 bytes, as those of `eventfd(2)` do: whatever can be read is an
/// event, and one is raised by writing the number 1. Two pipes or a socket do as well.
#[derive(Debug)]
pub struct EventFds {
    /// Not a pipe, but all that is asked of it is to be polled and read.
    wait: pipe::Receiver,
    notify: File,
}

impl EventFds {
    /// What is waited on, and what is written to; of a socket, both are the same. They must be
    /// non-blocking. Must be called in a Tokio runtime.
    pub fn new(wait: impl Into<OwnedFd>, notify: impl Into<OwnedFd>) -> io::Result<Self> {
        let wait = pipe::Receiver::from_owned_fd_unchecked(wait.into())?;
        Ok(Self { wait, notify: notify.into().into() })
    }
}

impl Events for EventFds {
    fn poll_event(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.wait.poll_read_ready(cx))?;
            match self.wait.try_read(&mut [0; 512]) {
                Ok(0) => {
                    let kind = io::ErrorKind::UnexpectedEof;
                    return Poll::Ready(Err(io::Error::new(kind, "the event channel was closed")));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                taken => return Poll::Ready(taken.map(drop)),
            }
        }
    }

    fn notify(&self) -> io::Result<()> {
        match (&self.notify).write(&1u64.to_ne_bytes()) {
            // So many events are pending there that one more makes no difference.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            written => written.map(drop),
        }
    }
}

/// A domain's ring page, as its owner sees it, with its event channel.
///
/// A connect takes the page up as it is, and waits until it says that the server is there. A
/// server that offers to begin anew ([`xs_proto::Features::RECONNECT`]) is asked to, so that what
/// was left by somebody before is gone. Others do so only when the domain is introduced again:
/// watches and transactions that were left stay, and so does a message that was left half sent.
/// One connection at a time: the ends of two would tear each other's messages apart.
pub struct Ring<P, E> {
    page: Shared<P>,
    events: Arc<E>,
}

impl<P: Deref<Target = Page> + Send + Sync + 'static, E: Events> Ring<P, E> {
    /// A page, such as a `Mapping` of `xs_proto::ring` (its feature `map`), and its event channel.
    pub fn new(page: P, events: E) -> Self {
        Self { page: Shared(Arc::new(page)), events: Arc::new(events) }
    }
}

impl<P, E> fmt::Debug for Ring<P, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").finish_non_exhaustive()
    }
}

impl<P: Deref<Target = Page> + Send + Sync + 'static, E: Events> Connect for Ring<P, E> {
    type Transport = RingStream<P, E>;

    fn at(&self) -> String {
        "a ring page".into()
    }

    async fn connect(&mut self) -> io::Result<RingStream<P, E>> {
        let mut end = ClientEnd::attach(self.page.clone()).map_err(broken)?;
        let anew = end.reconnect();
        let mut stream = RingStream { end, events: self.events.clone(), waiting: Arc::default() };
        if anew {
            stream.notify_if_owed()?;
        }
        poll_fn(|cx| stream.poll_connected(cx)).await?;
        Ok(stream)
    }

    /// 16
    fn window(&self) -> usize {
        WINDOW
    }
}

/// A page that several ends are attached to, one after the other.
struct Shared<P>(Arc<P>);

impl<P> Clone for Shared<P> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<P: Deref<Target = Page>> Deref for Shared<P> {
    type Target = Page;

    fn deref(&self) -> &Page {
        &self.0
    }
}

/// The client's end of a ring as a byte stream. It has no end of file: what ends it is an error,
/// which says what is wrong with the page.
///
/// A server that gives the ring up need not raise an event, and C servers do not: it is noticed
/// when something is sent or received the next time.
///
/// A page that is always ready does not keep other tasks from their turn.
pub struct RingStream<P, E> {
    end: ClientEnd<Shared<P>>,
    events: Arc<E>,
    waiting: Arc<Waiting>,
}

/// Who waits for an event: the reader and the writer, which may be tasks of their own. An event may
/// be for either.
#[derive(Debug, Default)]
struct Waiting([AtomicWaker; 2]);

const READER: usize = 0;
const WRITER: usize = 1;

impl Wake for Waiting {
    fn wake(self: Arc<Self>) {
        self.0.iter().for_each(AtomicWaker::wake);
    }
}

impl<P: Deref<Target = Page>, E: Events> RingStream<P, E> {
    fn notify_if_owed(&mut self) -> io::Result<()> {
        if self.end.take_notify() { self.events.notify() } else { Ok(()) }
    }

    fn poll_connected(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.end.is_connected().map_err(broken)? {
            ready!(self.poll_event(READER, cx))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Waits for an event and takes it.
    fn poll_event(&self, direction: usize, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.waiting.0[direction].register(cx.waker());
        let both = self.waiting.clone().into();
        ready!(self.events.poll_event(&mut Context::from_waker(&both)))?;
        // Who has not been woken by it must not miss it.
        self.waiting.0[1 - direction].wake();
        Poll::Ready(Ok(()))
    }
}

impl<P, E> fmt::Debug for RingStream<P, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingStream").finish_non_exhaustive()
    }
}

fn broken(error: RingError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the ring page: {error}"))
}

impl<P: Deref<Target = Page>, E: Events> AsyncRead for RingStream<P, E> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(pin!(consume_budget()).poll(cx));
        loop {
            let room = buf.remaining();
            let received = this.end.receive(buf, room).map_err(broken)?;
            this.notify_if_owed()?;
            if received > 0 || room == 0 {
                return Poll::Ready(Ok(()));
            }
            if !this.end.has_input().map_err(broken)? {
                ready!(this.poll_event(READER, cx))?;
            }
        }
    }
}

impl<P: Deref<Target = Page>, E: Events> AsyncWrite for RingStream<P, E> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(pin!(consume_budget()).poll(cx));
        loop {
            let sent = this.end.send(buf).map_err(broken)?;
            this.notify_if_owed()?;
            if sent > 0 || buf.is_empty() {
                return Poll::Ready(Ok(sent));
            }
            if !this.end.has_room().map_err(broken)? {
                ready!(this.poll_event(WRITER, cx))?;
            }
        }
    }

    /// Does nothing: what was taken is in the page.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Does nothing: a ring has no half that could be closed.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests;
