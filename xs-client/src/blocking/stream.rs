//! The system calls: the socket, and how long they may take.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path as FsPath;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, connect, recv,
    send, shutdown, socket_with, sockopt,
};

use crate::Config;
use crate::inbox::{CHUNK, Inbox};
use crate::spin::Spin;

/// How long a receive waits at most.
const TICK: Duration = Duration::from_secs(1);

/// A connected stream socket.
///
/// Its own timeout is a tick, so that as a rule waiting for a reply and reading it are one system
/// call. Who may wait less than a tick polls first.
#[derive(Debug)]
pub(super) struct Stream {
    socket: OwnedFd,
    tick: Duration,
}

/// What receiving has brought.
#[derive(Debug)]
pub(super) enum Came {
    Bytes(usize),
    /// The time was up, a signal came, or there is room to send.
    Nothing,
    End,
}

/// Where what is received goes. Who holds it is the one that reads.
#[derive(Debug)]
pub(super) struct Reader {
    chunk: Vec<u8>,
    pub(super) inbox: Inbox,
    pub(super) spin: Spin,
}

impl Reader {
    pub(super) fn new(config: &Config) -> Self {
        let (inbox, spin) = (Inbox::new(config.reply_limit), Spin::new(config.spin));
        Self { chunk: vec![0; CHUNK], inbox, spin }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Stream {
    /// For calls that as a rule have so much time.
    pub(super) fn new(socket: OwnedFd, deadline: Duration) -> io::Result<Self> {
        let tick = TICK.min(deadline / 2).max(Duration::from_millis(1));
        rustix::io::ioctl_fionbio(&socket, false)?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(tick))?;
        Ok(Self { socket, tick })
    }

    /// Connects to a Unix socket. A daemon's backlog is one, and connecting waits while it is full.
    pub(super) fn connect(path: &FsPath, deadline: Duration) -> io::Result<Self> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // 0 would be no timeout.
        let timeout = deadline.clamp(Duration::from_millis(1), Duration::from_secs(24 * 3600));
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(timeout))?;
        match connect(&socket, &SocketAddrUnix::new(path)?) {
            Ok(()) => Self::new(socket, deadline),
            Err(Errno::AGAIN) => {
                Err(io::Error::new(io::ErrorKind::WouldBlock, format!("no connection within {deadline:?}")))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Sends what can be sent without waiting for the store to receive, and takes it from `output`.
    pub(super) fn send(&self, output: &mut BytesMut) -> io::Result<()> {
        while !output.is_empty() {
            match send(&self.socket, output, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                // Where it began, so that the buffer does not wander through its memory.
                Ok(count) if count == output.len() => output.clear(),
                Ok(count) => output.advance(count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Receives what there is, or waits for it as long as there is time `left`, though no more than
    /// a tick. With `or_room`, room to send ends the waiting as well. If so many bytes are `sure` to
    /// come, it waits for all of them: each time that it returned before costs a system call.
    pub(super) fn receive(
        &self,
        reader: &mut Reader,
        left: Duration,
        or_room: bool,
        sure: usize,
    ) -> io::Result<Came> {
        let mut chunk = &mut reader.chunk[..];
        let mut flags = RecvFlags::empty();
        if left < self.tick || or_room {
            if !left.is_zero() {
                self.poll(left.min(self.tick), or_room)?;
            }
            flags = RecvFlags::DONTWAIT;
        } else if (1..chunk.len()).contains(&sure) {
            chunk = &mut chunk[..sure];
            flags = RecvFlags::WAITALL;
        }
        match recv(&self.socket, chunk, flags) {
            Ok((_, 0)) => Ok(Came::End),
            Ok((_, count)) => {
                reader.inbox.bytes().extend_from_slice(&reader.chunk[..count]);
                Ok(Came::Bytes(count))
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(Came::Nothing),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until something can be read, or sent, or the time is up, or a signal comes.
    fn poll(&self, time: Duration, or_room: bool) -> io::Result<()> {
        let room = if or_room { PollFlags::OUT } else { PollFlags::empty() };
        let time = Timespec::try_from(time).ok();
        match poll(&mut [PollFd::new(&self.socket, PollFlags::IN | room)], time.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends it for both sides, although it stays open.
    pub(super) fn close(&self) {
        // Fails if the other side has ended it.
        let _ = shutdown(&self.socket, Shutdown::Both);
    }
}
