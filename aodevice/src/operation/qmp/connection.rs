//! A connection to a monitor: one command at a time, and its answer.

use std::io::{self, ErrorKind, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::Value;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::sleep;

use super::message::{Lines, Message};
use super::{Command, MonitorError, Refusal};

/// How often a socket is tried whose queue is full.
const TRY: Duration = Duration::from_millis(50);

/// A connection to the monitor of a device model. Its calls wait without limit: whoever calls has a deadline.
#[derive(Debug)]
pub(in crate::operation) struct Connection {
    stream: UnixStream,
    lines: Lines,
    id: u64,
    major: Option<u64>,
}

impl Connection {
    /// Connects, and waits to be greeted: QEMU serves one program at a time.
    pub(in crate::operation) async fn open(socket: &Path) -> Result<Self, MonitorError> {
        let stream = loop {
            match UnixStream::connect(socket).await {
                Err(error) if error.kind() == ErrorKind::WouldBlock => sleep(TRY).await,
                connected => break connected?,
            }
        };
        let mut connection = Self { stream, lines: Lines::default(), id: 0, major: None };
        match connection.next("its greeting").await? {
            Message::Greeting { major } => Ok(Self { major, ..connection }),
            _ => Err(MonitorError::Strange("it did not greet".to_owned())),
        }
    }

    /// The number before the first dot of QEMU's version, if it has told that.
    pub(in crate::operation) fn major(&self) -> Option<u64> {
        self.major
    }

    /// Asks for something, and waits for the answer.
    pub(in crate::operation) async fn ask(
        &mut self,
        command: &Command,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Result<Value, Refusal>, MonitorError> {
        self.id += 1;
        self.send(&command.encode(self.id), fd).await?;
        loop {
            match self.next(command.name()).await? {
                Message::Answer { id, answer } if id.as_ref().is_none_or(|id| *id == self.id) => {
                    return Ok(answer);
                }
                // Of an event, or of a command that was given up.
                _ => {}
            }
        }
    }

    /// A descriptor goes with the first byte.
    async fn send(&self, mut bytes: &[u8], mut fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        while !bytes.is_empty() {
            let sent = self.stream.async_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                if let Some(fd) = &fd {
                    control.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(fd)));
                }
                let flags = SendFlags::NOSIGNAL;
                Ok(sendmsg(self.stream.as_fd(), &[IoSlice::new(bytes)], &mut control, flags)?)
            });
            bytes = &bytes[sent.await?..];
            fd = None;
        }
        Ok(())
    }

    /// The next message. Descriptors that come with it are closed by the kernel, since no room is given for them.
    async fn next(&mut self, awaited: &'static str) -> Result<Message, MonitorError> {
        loop {
            if let Some(line) = self.lines.next()? {
                return Message::parse(&line);
            }
            self.stream.readable().await?;
            let mut bytes = [0; 4096];
            match self.stream.try_read(&mut bytes) {
                Ok(0) => return Err(MonitorError::Closed(awaited)),
                Ok(count) => self.lines.feed(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
