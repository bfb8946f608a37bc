//! The stream over a stand-in for the device, which keeps the device's rules.

use std::io::{PipeWriter, pipe};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use rustix::fs::fcntl_setfl;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use tokio_util::codec::Framed;
use xs_proto::{Path, Request};

use super::*;

const PATIENCE: Duration = Duration::from_secs(100);

/// What the kernel does with a `write`.
struct Device {
    /// The unfinished message.
    buffer: BytesMut,
    /// What is read from the device.
    replies: PipeWriter,
    /// Each whole message that reached it.
    seen: Sender<Message>,
    /// WATCH blocks until something comes here; the error is that of `write`.
    store: Receiver<Result<(), Errno>>,
}

impl Device {
    fn reply(&mut self, op: Op, req_id: u32, payload: impl Into<Bytes>) {
        let mut bytes = BytesMut::new();
        let reply = Message { op, req_id, tx_id: TxId(0x5555_5555), payload: payload.into() };
        MessageCodec::default().encode(reply, &mut bytes).unwrap();
        // Nobody may read any more.
        let _ = self.replies.write_all(&bytes);
    }
}

impl Write for Device {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() + bytes.len() > 4096 {
            self.buffer.clear();
            return Err(Errno::INVAL.into());
        }
        self.buffer.extend_from_slice(bytes);
        let Some(message) = MessageCodec::with_limit(4080).decode(&mut self.buffer).map_err(|_| Errno::TOOBIG)? else {
            return Ok(bytes.len());
        };
        // The rest of the write is lost without a word.
        self.buffer.clear();
        self.seen.send(message.clone()).unwrap();
        match message.op {
            Op::WATCH => {
                self.store.recv().map_err(|_| Errno::PIPE)??;
                self.reply(Op::WATCH_EVENT, 0xdead_beef, "/w\0token\0");
                self.reply(Op::WATCH, message.req_id, "OK\0");
            }
            // As Linux 4.11 does.
            Op::GET_DOMAIN_PATH => self.reply(Op::GET_DOMAIN_PATH, 77, "/local/domain/0\0"),
            op => self.reply(op, message.req_id, message.payload),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct World {
    stream: Framed<XenbusStream, MessageCodec>,
    seen: Receiver<Message>,
    store: Sender<Result<(), Errno>>,
    last_id: u32,
}

fn world() -> World {
    let (reading, replies) = pipe().unwrap();
    fcntl_setfl(&reading, OFlags::NONBLOCK).unwrap();
    let ((to_test, seen), (store, decisions)) = (channel(), channel());
    let device = Device { buffer: BytesMut::new(), replies, seen: to_test, store: decisions };
    let reading = File::from(std::os::fd::OwnedFd::from(reading));
    let stream = XenbusStream::new(reading, device).unwrap();
    World { stream: Framed::new(stream, MessageCodec::default()), seen, store, last_id: 0 }
}

impl World {
    async fn send(&mut self, op: Op, payload: impl Into<Bytes>) -> u32 {
        self.last_id += 1;
        let message = Message { op, req_id: self.last_id, tx_id: TxId::NONE, payload: payload.into() };
        self.stream.send(message).await.unwrap();
        self.last_id
    }

    async fn receive(&mut self) -> (Op, u32, Bytes) {
        let message = timeout(PATIENCE, self.stream.next()).await.expect("no reply").unwrap().unwrap();
        (message.op, message.req_id, message.payload)
    }
}

fn text(payload: &'static str) -> Bytes {
    payload.into()
}

#[tokio::test]
async fn messages_that_come_together_are_written_one_by_one() {
    let mut world = world();
    let mut bytes = BytesMut::new();
    for id in 1..=100 {
        Request::Read(Path::new(format!("/{id}")).unwrap()).encode(id, TxId::NONE, &mut bytes).unwrap();
    }
    // In pieces that know nothing of messages, too.
    let cut = bytes.len() / 2 + 7;
    for piece in [&bytes[..5], &bytes[5..cut], &bytes[cut..]] {
        world.stream.get_mut().write_all(piece).await.unwrap();
    }
    for id in 1..=100 {
        assert_eq!(world.receive().await, (Op::READ, id, format!("/{id}\0").into()));
    }
    assert_eq!(world.seen.iter().take(100).count(), 100);
}

#[tokio::test]
async fn a_request_that_is_too_long_fails_alone() {
    let mut world = world();
    let longest = Bytes::from(vec![b'x'; 4080]);
    let first = world.send(Op::WRITE, longest.clone()).await;
    let second = world.send(Op::WRITE, vec![b'y'; 4081]).await;
    let third = world.send(Op::READ, text("/z\0")).await;
    let mut replies = [world.receive().await, world.receive().await, world.receive().await];
    replies.sort_by_key(|(_, id, _)| *id);
    assert_eq!(
        replies,
        [
            (Op::WRITE, first, longest),
            (Op::ERROR, second, text("E2BIG\0")),
            (Op::READ, third, text("/z\0"))
        ]
    );
    let seen: Vec<u32> = world.seen.try_iter().map(|message| message.req_id).collect();
    assert_eq!(seen, [first, third]);
}

#[tokio::test]
async fn a_length_that_nobody_sends_costs_nothing() {
    let mut world = world();
    let mut bytes = BytesMut::new();
    Header { op: Op::WRITE, req_id: 9, tx_id: TxId::NONE, len: u32::MAX }.encode(&mut bytes);
    world.stream.get_mut().write_all(&bytes).await.unwrap();
    assert_eq!(world.receive().await, (Op::ERROR, 9, text("E2BIG\0")));
}

/// On the one thread of this runtime, which `write` must not block.
#[tokio::test]
async fn a_watch_that_the_store_refuses_gets_the_error_of_the_write() {
    let mut world = world();
    let refused = world.send(Op::WATCH, text("/w\0token\0")).await;
    world.store.send(Err(Errno::TOOBIG)).unwrap();
    assert_eq!(world.receive().await, (Op::ERROR, refused, text("E2BIG\0")));
    let taken = world.send(Op::WATCH, text("/w\0token\0")).await;
    world.store.send(Ok(())).unwrap();
    assert_eq!(world.receive().await, (Op::WATCH_EVENT, 0xdead_beef, text("/w\0token\0")));
    assert_eq!(world.receive().await, (Op::WATCH, taken, text("OK\0")));
}

#[tokio::test]
async fn what_would_harm_others_is_refused_and_not_sent() {
    let mut world = world();
    let reset = world.send(Op::RESET_WATCHES, text("\0")).await;
    assert_eq!(world.receive().await, (Op::ERROR, reset, text("ENOSYS\0")));
    let end = world.send(Op::TRANSACTION_END, text("T\0")).await;
    assert_eq!(world.receive().await, (Op::ERROR, end, text("ENOENT\0")));
    assert_eq!(world.seen.try_iter().count(), 0);
}

#[tokio::test]
async fn a_reply_with_another_number_is_that_of_the_only_request() {
    let mut world = world();
    let id = world.send(Op::GET_DOMAIN_PATH, text("0\0")).await;
    assert_eq!(world.receive().await, (Op::GET_DOMAIN_PATH, id, text("/local/domain/0\0")));
}

#[tokio::test]
async fn a_device_that_fails_ends_the_stream() {
    let mut world = world();
    world.send(Op::WATCH, text("/w\0token\0")).await;
    world.store.send(Err(Errno::NODEV)).unwrap();
    let error = timeout(PATIENCE, world.stream.next()).await.unwrap().unwrap().unwrap_err();
    assert!(error.to_string().contains("No such device"), "{error}");
    let message = Message { op: Op::READ, req_id: 2, tx_id: TxId::NONE, payload: text("/\0") };
    assert!(world.stream.send(message).await.is_err());
}

#[tokio::test]
async fn a_stream_that_is_dropped_ends_its_thread() {
    let World { stream, seen, store, .. } = world();
    drop((stream, store));
    // The thread has the other end.
    let ended = tokio::task::spawn_blocking(move || seen.recv()).await.unwrap();
    assert!(ended.is_err());
}
