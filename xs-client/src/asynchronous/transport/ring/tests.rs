//! Both ends of a page in one program.

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use xs_proto::Features;
use xs_proto::ring::{RING_SIZE, RingFault, ServerEnd};

use super::*;

type Server = ServerEnd<Arc<Page>>;

/// Both sides of an event channel.
fn channel() -> (EventFds, EventFds) {
    let (one, other) = UnixStream::pair().unwrap();
    let side = |stream: UnixStream| {
        stream.set_nonblocking(true).unwrap();
        EventFds::new(stream.try_clone().unwrap(), stream).unwrap()
    };
    (side(one), side(other))
}

/// A server's end, and a guest's way to it.
fn world(features: Features) -> (Server, EventFds, Ring<Arc<Page>, EventFds>) {
    let page = Arc::new(Page::new());
    let (near, far) = channel();
    (ServerEnd::new(page.clone(), features), far, Ring::new(page, near))
}

async fn event(events: &EventFds) {
    poll_fn(|cx| events.poll_event(cx)).await.unwrap();
}

/// Sends back what it gets, and sleeps when there is nothing to do.
async fn echo(mut server: Server, events: EventFds) {
    let mut bytes = BytesMut::new();
    loop {
        let room = RING_SIZE - bytes.len();
        server.receive(&mut bytes, room).unwrap();
        let sent = server.send(&bytes).unwrap();
        bytes.advance(sent);
        if server.take_notify() {
            events.notify().unwrap();
        }
        let idle = if bytes.is_empty() { !server.has_input().unwrap() } else { !server.has_room().unwrap() };
        if idle {
            event(&events).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn tasks_that_read_and_write_wait_independently() {
    let (server, far, mut ring) = world(Features::NONE);
    let server = tokio::spawn(echo(server, far));
    let bytes: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(1 << 20).collect();
    let (mut reader, mut writer) = tokio::io::split(ring.connect().await.unwrap());
    let sent = bytes.clone();
    let writing = tokio::spawn(async move {
        // Of all sizes, so that each side waits for the other now and then.
        let mut rest = &sent[..];
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(fastrand::usize(1..=3 * RING_SIZE).min(rest.len()));
            writer.write_all(piece).await.unwrap();
            rest = after;
        }
        writer
    });
    let mut received = vec![0; bytes.len()];
    timeout(Duration::from_secs(100), reader.read_exact(&mut received)).await.expect("stuck").unwrap();
    assert!(received == bytes);
    writing.await.unwrap();
    server.abort();
}

#[tokio::test]
async fn a_connect_waits_for_the_server() {
    let page = Arc::new(Page::new());
    page.connection.store(1, Ordering::Relaxed);
    let (near, far) = channel();
    let mut ring = Ring::new(page.clone(), near);
    let mut connect = Box::pin(ring.connect());
    assert!((&mut connect).now_or_never().is_none());
    let mut server = ServerEnd::new(page, Features::NONE);
    assert!(server.take_notify());
    far.notify().unwrap();
    connect.await.unwrap();
}

#[tokio::test]
async fn a_server_that_offers_it_begins_anew() {
    let (mut server, far, mut ring) = world(Features::RECONNECT);
    server.send(b"for somebody before").unwrap();
    let serving = async {
        event(&far).await;
        assert!(server.wants_reconnect());
        server.reconnect();
        far.notify().unwrap();
        server.send(b"for us").unwrap();
        far.notify().unwrap();
    };
    let (stream, ()) = tokio::join!(ring.connect(), serving);
    let mut received = [0; 6];
    stream.unwrap().read_exact(&mut received).await.unwrap();
    assert_eq!(&received, b"for us");
}

#[tokio::test]
async fn a_bad_index_is_an_error_that_names_it() {
    let (server, _far, mut ring) = world(Features::NONE);
    let mut stream = ring.connect().await.unwrap();
    server.page().rsp_prod.store(5000, Ordering::Relaxed);
    let error = stream.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(error.to_string().starts_with("the ring page: rsp_prod is 5000"), "{error}");
    assert!(ring.connect().await.unwrap_err().to_string().contains("rsp_prod is 5000"));
}

#[tokio::test]
async fn what_was_sent_before_the_server_gave_up_is_read_first() {
    let (mut server, far, mut ring) = world(Features::ERROR);
    let mut stream = ring.connect().await.unwrap();
    server.send(b"x").unwrap();
    server.fail(RingFault::PROTO);
    far.notify().unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'x');
    let error = stream.read_u8().await.unwrap_err();
    let expected = "the ring page: the server gave this ring up: a message over the limit (error 3)";
    assert_eq!(error.to_string(), expected);
    assert_eq!(stream.write(b"y").await.unwrap_err().to_string(), expected);
}

#[tokio::test]
async fn a_closed_event_channel_ends_the_stream() {
    let (_server, far, mut ring) = world(Features::NONE);
    let mut stream = ring.connect().await.unwrap();
    drop(far);
    assert_eq!(stream.read_u8().await.unwrap_err().to_string(), "the event channel was closed");
}

/// Events that are there without having woken anybody.
#[derive(Debug, Default)]
struct Pending(AtomicBool);

impl Events for Arc<Pending> {
    fn poll_event(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.0.swap(false, Ordering::Relaxed) { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn notify(&self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn an_event_that_the_writer_takes_wakes_the_reader() {
    let (page, events, reader) = (Arc::new(Page::new()), Arc::<Pending>::default(), Arc::<Woken>::default());
    let mut server = ServerEnd::new(page.clone(), Features::NONE);
    let mut stream = Ring::new(page, events.clone()).connect().await.unwrap();
    stream.write_all(&[0; RING_SIZE]).await.unwrap();

    let waker = Waker::from(reader.clone());
    let mut cx = Context::from_waker(&waker);
    assert!(pin!(stream.read_u8()).poll(&mut cx).is_pending());
    server.send(b"x").unwrap();
    events.0.store(true, Ordering::Relaxed);
    assert!(stream.write(b"y").now_or_never().is_none());
    assert!(!events.0.load(Ordering::Relaxed), "the writer has not taken the event");
    assert!(reader.0.load(Ordering::Relaxed));
    assert_eq!(stream.read_u8().await.unwrap(), b'x');
}

/// A server that is always ready, and a task that always goes on.
#[tokio::test]
async fn others_have_their_turn_while_there_is_input_and_room() {
    let (mut server, _far, mut ring) = world(Features::NONE);
    let mut stream = ring.connect().await.unwrap();
    server.send(&[7; RING_SIZE]).unwrap();
    let (mut reads, mut writes) = (0, 0);
    poll_fn(|cx| {
        let mut byte = [0];
        while Pin::new(&mut stream).poll_read(cx, &mut ReadBuf::new(&mut byte))?.is_ready() {
            reads += 1;
        }
        Poll::Ready(io::Result::Ok(()))
    })
    .await
    .unwrap();
    tokio::task::yield_now().await;
    poll_fn(|cx| {
        while Pin::new(&mut stream).poll_write(cx, b"x")?.is_ready() {
            writes += 1;
        }
        Poll::Ready(io::Result::Ok(()))
    })
    .await
    .unwrap();
    for count in [reads, writes] {
        assert!((1..RING_SIZE).contains(&count), "{reads} reads and {writes} writes in one turn each");
    }
}
