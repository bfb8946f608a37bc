//! The stream over a stand-in for the device, which keeps the device's rules.

use std::io::{PipeWriter, pipe};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use rustix::fs::fcntl_setfl;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::timeout;
use tokio_util::codec::FramedRead;

use super::*;

const PATIENCE: Duration = Duration::from_secs(100);

/// The one buffer that an open file has for requests.
type Buffer = Arc<Mutex<BytesMut>>;

/// What the kernel does with a `write`.
struct Device {
    buffer: Buffer,
    /// To the thread that passes them on.
    requests: Sender<Header>,
    /// What is read from the device.
    replies: PipeWriter,
    /// Each whole message that reached it.
    seen: Sender<u32>,
    /// WATCH blocks until something comes here; the error is that of `write`.
    store: Receiver<Result<(), Errno>>,
}

impl Write for Device {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut buffer = self.buffer.lock().unwrap();
        buffer.clear();
        buffer.extend_from_slice(bytes);
        let header = Header::decode(buffer.first_chunk().expect("a whole message"));
        let length = HEADER_LEN + header.len as usize;
        if length > 4096 {
            return Err(Errno::TOOBIG.into());
        }
        assert!(length <= bytes.len(), "a whole message");
        // The rest of the write is lost without a word.
        buffer.truncate(length);
        self.seen.send(header.req_id).unwrap();
        if header.op == Op::WATCH {
            self.store.recv().map_err(|_| Errno::PIPE)??;
            reply(&mut self.replies, Op::WATCH_EVENT, 0xdead_beef, &buffer[HEADER_LEN..]);
            reply(&mut self.replies, Op::WATCH, header.req_id, b"OK\0");
        } else {
            self.requests.send(header).unwrap();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn reply(replies: &mut PipeWriter, op: Op, req_id: u32, payload: &[u8]) {
    let mut bytes = BytesMut::new();
    let len = u32::try_from(payload.len()).unwrap();
    Header { op, req_id, tx_id: TxId(0x5555_5555), len }.encode(&mut bytes);
    bytes.extend_from_slice(payload);
    // Nobody may read any more.
    let _ = replies.write_all(&bytes);
}

/// Takes what is in the buffer when it gets to it, and answers with it.
fn kernel_thread(requests: &Receiver<Header>, buffer: &Buffer, mut replies: PipeWriter) {
    for header in requests {
        // Whoever writes again before the reply has time for it here.
        std::thread::sleep(Duration::from_millis(1));
        let payload = buffer.lock().unwrap()[HEADER_LEN..].to_vec();
        // As Linux 4.11 does.
        let req_id = if header.op == Op::GET_DOMAIN_PATH { 77 } else { header.req_id };
        reply(&mut replies, header.op, req_id, &payload);
    }
}

struct World {
    reader: FramedRead<ReadHalf<XenbusStream>, MessageCodec>,
    writer: WriteHalf<XenbusStream>,
    seen: Receiver<u32>,
    store: Sender<Result<(), Errno>>,
}

fn world() -> World {
    let (reading, replies) = pipe().unwrap();
    fcntl_setfl(&reading, OFlags::NONBLOCK).unwrap();
    let ((to_test, seen), (store, decisions), (requests, to_kernel)) = (channel(), channel(), channel());
    let buffer = Buffer::default();
    let (same, kernel_replies) = (buffer.clone(), replies.try_clone().unwrap());
    std::thread::spawn(move || kernel_thread(&to_kernel, &same, kernel_replies));
    let device = Device { buffer, requests, replies, seen: to_test, store: decisions };
    let stream = XenbusStream::new(File::from(OwnedFd::from(reading)), device).unwrap();
    let (reader, writer) = tokio::io::split(stream);
    World { reader: FramedRead::new(reader, MessageCodec::default()), writer, seen, store }
}

fn message(op: Op, req_id: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    let len = u32::try_from(payload.len()).unwrap();
    Header { op, req_id, tx_id: TxId::NONE, len }.encode(&mut bytes);
    [&bytes[..], payload].concat()
}

impl World {
    async fn receive(&mut self) -> (Op, u32, Bytes) {
        let message = timeout(PATIENCE, self.reader.next()).await.expect("no reply").unwrap().unwrap();
        (message.op, message.req_id, message.payload)
    }

    /// Sends, and returns what comes back at the same time.
    async fn exchange<const N: usize>(&mut self, bytes: &[u8]) -> [(Op, u32, Bytes); N] {
        let Self { reader, writer, .. } = self;
        let receiving = async {
            let replies: Vec<_> = reader.take(N).map(Result::unwrap).collect().await;
            replies.into_iter().map(|reply| (reply.op, reply.req_id, reply.payload)).collect::<Vec<_>>()
        };
        let both = async { tokio::join!(writer.write_all(bytes), receiving) };
        let (sent, replies) = timeout(PATIENCE, both).await.expect("no reply");
        sent.unwrap();
        replies.try_into().unwrap()
    }
}

fn text(payload: &'static str) -> Bytes {
    payload.into()
}

#[tokio::test]
async fn each_message_is_answered_before_the_next_is_written() {
    let mut world = world();
    let path = |id: u32| format!("/{id}\0");
    let bytes: Vec<u8> = (0..100).flat_map(|id| message(Op::READ, id, path(id).as_bytes())).collect();
    let replies: [_; 100] = world.exchange(&bytes).await;
    assert_eq!(replies, std::array::from_fn(|id| (Op::READ, id as u32, path(id as u32).into())));
}

#[tokio::test]
async fn a_request_that_is_too_long_fails_alone() {
    let mut world = world();
    let longest = vec![b'x'; 4080];
    let bytes = [
        message(Op::WRITE, 1, &longest),
        message(Op::WRITE, 2, &[b'y'; 4081]),
        message(Op::READ, 3, b"/z\0"),
    ];
    let replies: [_; 3] = world.exchange(&bytes.concat()).await;
    let expected =
        [(Op::WRITE, 1, longest.into()), (Op::ERROR, 2, text("E2BIG\0")), (Op::READ, 3, text("/z\0"))];
    assert_eq!(replies, expected);
    assert_eq!(world.seen.try_iter().collect::<Vec<_>>(), [1, 3]);
}

#[tokio::test]
async fn a_length_that_nobody_sends_costs_nothing() {
    let mut world = world();
    let mut bytes = BytesMut::new();
    Header { op: Op::WRITE, req_id: 9, tx_id: TxId::NONE, len: u32::MAX }.encode(&mut bytes);
    assert_eq!(world.exchange(&bytes).await, [(Op::ERROR, 9, text("E2BIG\0"))]);
}

/// On the one thread of this runtime, which `write` must not block.
#[tokio::test]
async fn a_watch_that_the_store_refuses_gets_the_error_of_the_write() {
    let mut world = world();
    world.writer.write_all(&message(Op::WATCH, 1, b"/w\0token\0")).await.unwrap();
    world.store.send(Err(Errno::TOOBIG)).unwrap();
    assert_eq!(world.receive().await, (Op::ERROR, 1, text("E2BIG\0")));
    world.writer.write_all(&message(Op::WATCH, 2, b"/w\0token\0")).await.unwrap();
    world.store.send(Ok(())).unwrap();
    assert_eq!(world.receive().await, (Op::WATCH_EVENT, 0xdead_beef, text("/w\0token\0")));
    assert_eq!(world.receive().await, (Op::WATCH, 2, text("OK\0")));
}

#[tokio::test]
async fn what_the_kernel_gets_wrong_is_refused_and_not_sent() {
    let mut world = world();
    let bytes = [
        message(Op::RESET_WATCHES, 1, b"\0"),
        message(Op::TRANSACTION_END, 2, b"T\0"),
        message(Op::WATCH, 3, b"/w\0token\x001\0"),
    ];
    let refused = [(1, "ENOSYS\0"), (2, "ENOENT\0"), (3, "EINVAL\0")];
    let refused = refused.map(|(id, code)| (Op::ERROR, id, text(code)));
    assert_eq!(world.exchange(&bytes.concat()).await, refused);
    assert_eq!(world.seen.try_iter().count(), 0);
}

#[tokio::test]
async fn a_reply_with_another_number_is_that_of_the_request() {
    let bytes = message(Op::GET_DOMAIN_PATH, 5, b"0\0");
    assert_eq!(world().exchange(&bytes).await, [(Op::GET_DOMAIN_PATH, 5, text("0\0"))]);
}

#[tokio::test]
async fn a_device_that_fails_ends_the_stream() {
    let mut world = world();
    let watch = message(Op::WATCH, 1, b"/w\0token\0");
    world.writer.write_all(&watch).await.unwrap();
    world.store.send(Err(Errno::NODEV)).unwrap();
    let error = timeout(PATIENCE, world.reader.next()).await.unwrap().unwrap().unwrap_err();
    assert!(error.to_string().contains("No such device"), "{error}");
}

#[tokio::test]
async fn a_stream_that_is_dropped_ends_its_thread() {
    let World { reader, writer, seen, store } = world();
    drop((reader, writer, store));
    // The thread has the other end.
    let ended = tokio::task::spawn_blocking(move || seen.recv()).await.unwrap();
    assert!(ended.is_err());
}
