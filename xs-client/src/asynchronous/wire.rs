//! The bytes of a connection: what is to be sent leaves while the next message is waited for.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::{Buf, BytesMut};
use tokio::io::AsyncReadExt;
use tokio::task::yield_now;

use super::handle::Link;
use crate::inbox::{Inbox, lost};
use crate::spin::Spin;
use crate::stats::Counters;
use crate::{Error, Transport};

/// So often it is looked for a message before others of this runtime have their turn: a few µs.
const LOOKS: usize = 16;

pub(crate) struct Wire<'a, T> {
    transport: T,
    inbox: Inbox,
    /// Why nothing more can be sent. What the store sent before that still counts.
    broken: Option<io::Error>,
    spin: Spin,
    counters: &'a Counters,
}

impl<'a, T: Transport> Wire<'a, T> {
    pub(crate) fn new(transport: T, link: &'a Link) -> Self {
        Self {
            transport,
            inbox: Inbox::new(link.config.reply_limit),
            broken: None,
            spin: Spin::new(link.config.spin),
            counters: &link.counters,
        }
    }

    /// Sends, and takes off `output` what was sent, until the store has sent a message; so many
    /// replies are under way. An error is the end. Dropped, it has lost nothing.
    ///
    /// A message that has come in part does not end it: to wait for the rest is all there is to do.
    pub(crate) async fn exchange(&mut self, output: &mut BytesMut, replies: usize) -> Result<(), Error> {
        poll_fn(|context| {
            self.poll_send(output, context);
            for _ in 0..LOOKS {
                let received = self.poll_receive(context);
                if received.is_ready() || !self.spin.goes_on(replies, Instant::now) {
                    return received;
                }
            }
            // Has this looked at again once the others have had their turn.
            _ = pin!(yield_now()).poll(context);
            Poll::Pending
        })
        .await
    }

    fn poll_send(&mut self, output: &mut BytesMut, context: &mut Context<'_>) {
        while !output.is_empty() && self.broken.is_none() {
            match Pin::new(&mut self.transport).poll_write(context, output) {
                Poll::Ready(Ok(count @ 1..)) => {
                    self.spin.sent(Instant::now);
                    self.counters.bytes_sent.add(count);
                    // Where it began, so that the buffer does not wander through its memory.
                    if count == output.len() { output.clear() } else { output.advance(count) }
                }
                Poll::Ready(Ok(0)) => self.broken = Some(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Err(error)) => self.broken = Some(error),
                Poll::Pending => return,
            }
        }
    }

    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        loop {
            match pin!(self.transport.read_buf(self.inbox.bytes())).poll(context) {
                Poll::Ready(Ok(count @ 1..)) => {
                    self.spin.received(Instant::now);
                    self.counters.bytes_received.add(count);
                    if self.inbox.has_message() {
                        return Poll::Ready(Ok(()));
                    }
                }
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(self.inbox.end())),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(lost(&error))),
                Poll::Pending => {
                    let Some(error) = self.broken.take() else { return Poll::Pending };
                    return Poll::Ready(Err(lost(&error)));
                }
            }
        }
    }

    /// What was received.
    pub(crate) fn inbox(&mut self) -> &mut Inbox {
        &mut self.inbox
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::io::{AsyncWriteExt, duplex};
    use xs_proto::{Path, Reply, Request, TxId};

    use super::*;
    use crate::Config;
    use crate::asynchronous::handle::Handle;

    fn request() -> BytesMut {
        let mut bytes = BytesMut::new();
        Request::Read(Path::new("/a").unwrap()).encode(1, TxId::NONE, &mut bytes).unwrap();
        bytes
    }

    fn reply() -> BytesMut {
        let mut bytes = BytesMut::new();
        Reply::Value("value".into()).encode(xs_proto::Op::READ, 1, TxId::NONE, &mut bytes).unwrap();
        bytes
    }

    #[tokio::test]
    async fn it_sends_while_it_waits_for_a_whole_message() {
        let (_handle, link, _commands) = Handle::new(Config::default());
        let (ours, mut theirs) = duplex(64);
        let mut wire = Wire::new(ours, &link);
        let (mut output, reply) = (request(), reply());
        for part in [&reply[..3], &reply[3..16], &reply[16..18]] {
            theirs.write_all(part).await.unwrap();
            assert!(wire.exchange(&mut output, 1).now_or_never().is_none());
        }
        assert!(output.is_empty());
        let mut sent = BytesMut::new();
        theirs.read_buf(&mut sent).await.unwrap();
        assert_eq!(sent, request());
        theirs.write_all(&reply[18..]).await.unwrap();
        wire.exchange(&mut output, 1).await.unwrap();
        assert_eq!(wire.inbox().next().unwrap().unwrap().payload, "value");
        let stats = link.counters.stats();
        assert_eq!((stats.bytes_sent, stats.bytes_received), (sent.len() as u64, reply.len() as u64));
    }

    #[tokio::test]
    async fn what_was_received_counts_when_nothing_can_be_sent() {
        let (_handle, link, _commands) = Handle::new(Config::default());
        let (ours, mut theirs) = duplex(64);
        theirs.write_all(&reply()).await.unwrap();
        drop(theirs);
        let mut wire = Wire::new(ours, &link);
        wire.exchange(&mut request(), 1).await.unwrap();
        assert_eq!(wire.inbox().next().unwrap().unwrap().payload, "value");
        wire.exchange(&mut request(), 1).await.unwrap_err();
    }
}
