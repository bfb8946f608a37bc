//! Xenstore's Unix socket.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;
use tokio::task::consume_budget;

use super::Connect;
use crate::inbox::CHUNK;

/// A store's Unix socket. Who can connect to it is privileged.
///
/// A connect fails with [`io::ErrorKind::WouldBlock`] while the backlog of the daemon, which is
/// one, is full: it accepts one connection per turn. Try again a few milliseconds later.
#[derive(Clone, Debug)]
pub struct UnixSocket {
    path: PathBuf,
}

impl UnixSocket {
    /// The socket at a path, which need not be there yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }
}

impl Connect for UnixSocket {
    type Transport = SocketStream;

    fn at(&self) -> String {
        self.path.display().to_string()
    }

    async fn connect(&mut self) -> io::Result<SocketStream> {
        SocketStream::new(UnixStream::connect(&self.path).await?)
    }
}

/// A connected Unix socket.
///
/// Other than a `UnixStream` of Tokio it asks to be told when there is something to read, and when
/// there is room to write only once there was none. Being told of both at all times wakes a thread
/// twice for each request, first when the daemon has taken it: 5 % of a transaction's time.
#[derive(Debug)]
pub struct SocketStream {
    readable: AsyncFd<OwnedFd>,
    /// While there is no room.
    writable: Option<AsyncFd<OwnedFd>>,
    /// Whether the last look has taken all that there was, and nothing was sent since: there is nothing yet.
    drained: bool,
    chunk: Box<[u8]>,
}

impl SocketStream {
    fn new(stream: UnixStream) -> io::Result<Self> {
        let socket = OwnedFd::from(stream.into_std()?);
        Ok(Self {
            readable: told(socket, Interest::READABLE)?,
            writable: None,
            drained: false,
            chunk: vec![0; CHUNK].into(),
        })
    }
}

/// A socket of which one is told this.
// What takes its place in newer versions is unsafe, for descriptors that are not owned.
#[allow(deprecated)]
fn told(socket: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(socket, interest)
}

impl AsyncRead for SocketStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { readable, drained, chunk, .. } = &mut *self;
        let room = out.remaining().min(CHUNK);
        loop {
            let told = readable.poll_read_ready(context)?;
            // Something may have come since the runtime has looked. To have it look is slower, but
            // what it has not told of must not keep others from their turn either.
            if told.is_pending() {
                if std::mem::take(drained) {
                    return Poll::Pending;
                }
                ready!(pin!(consume_budget()).poll(context));
            }
            let received = recv(readable.get_ref(), &mut chunk[..room], RecvFlags::DONTWAIT);
            match (received, told) {
                (Ok((_, count)), told) => {
                    // All that there was: to look again would be one more system call.
                    *drained = (1..room).contains(&count);
                    if let Poll::Ready(mut told) = told
                        && *drained
                    {
                        told.clear_ready();
                    }
                    out.put_slice(&chunk[..count]);
                    return Poll::Ready(Ok(()));
                }
                (Err(Errno::AGAIN), Poll::Ready(mut told)) => told.clear_ready(),
                (Err(Errno::AGAIN), Poll::Pending) => return Poll::Pending,
                (Err(Errno::INTR), _) => {}
                (Err(error), _) => return Poll::Ready(Err(error.into())),
            }
        }
    }
}

impl AsyncWrite for SocketStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            match send(self.readable.get_ref(), bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => {
                    self.writable = None;
                    self.drained = false;
                    return Poll::Ready(Ok(count));
                }
                Err(Errno::AGAIN) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Poll::Ready(Err(error.into())),
            }
            if self.writable.is_none() {
                let socket = self.readable.get_ref().try_clone()?;
                self.writable = Some(told(socket, Interest::WRITABLE)?);
            }
            if let Some(writable) = &self.writable {
                ready!(writable.poll_write_ready(context))?.clear_ready();
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(shutdown(self.readable.get_ref(), Shutdown::Write).map_err(io::Error::from))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn pair() -> (SocketStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (SocketStream::new(ours).unwrap(), theirs)
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_and_so_does_the_end() {
        let (mut ours, mut theirs) = pair();
        for number in 0..3 {
            theirs.write_all(&[number; 40]).await.unwrap();
            let (mut first, mut rest) = ([0; 30], [0; 10]);
            ours.read_exact(&mut first).await.unwrap();
            ours.read_exact(&mut rest).await.unwrap();
            assert_eq!((first, rest), ([number; 30], [number; 10]));
            ours.write_all(b"taken").await.unwrap();
            theirs.read_exact(&mut first[..5]).await.unwrap();
            assert_eq!(&first[..5], b"taken");
        }
        ours.shutdown().await.unwrap();
        assert_eq!(theirs.read(&mut [0]).await.unwrap(), 0);
        drop(theirs);
        assert_eq!(ours.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(ours.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    /// Whether or not the runtime has told of it.
    #[tokio::test]
    async fn what_is_there_is_read_but_others_have_their_turn() {
        let (mut ours, mut theirs) = pair();
        theirs.write_all(&[7; 10_000]).await.unwrap();
        let mut reads = 0;
        poll_fn(|context| {
            let mut byte = [0];
            while Pin::new(&mut ours).poll_read(context, &mut ReadBuf::new(&mut byte))?.is_ready() {
                assert_eq!(std::mem::take(&mut byte), [7]);
                reads += 1;
            }
            Poll::Ready(io::Result::Ok(()))
        })
        .await
        .unwrap();
        assert!((1..10_000).contains(&reads), "{reads} bytes were read in one turn");
    }

    /// More than a socket holds, each way, while the other side takes nothing.
    #[tokio::test]
    async fn a_full_socket_is_waited_for() {
        const MUCH: usize = 4 << 20;
        let (ours, theirs) = pair();
        let (mut our_input, mut our_output) = tokio::io::split(ours);
        let (mut their_input, mut their_output) = tokio::io::split(theirs);
        let bytes: Vec<u8> = (0..MUCH).map(|at| (at / 7) as u8).collect();
        let (mut here, mut there) = (vec![0; MUCH], vec![0; MUCH]);
        let (sent, received, other_sent, other_received) = tokio::join!(
            our_output.write_all(&bytes),
            our_input.read_exact(&mut here),
            their_output.write_all(&bytes),
            their_input.read_exact(&mut there),
        );
        sent.and(other_sent).unwrap();
        assert_eq!((received.unwrap(), other_received.unwrap()), (MUCH, MUCH));
        assert!(here == bytes && there == bytes);
        let ours = our_input.unsplit(our_output);
        assert!(ours.writable.is_none(), "it is told of room although it needs none");
    }
}
