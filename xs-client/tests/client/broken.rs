//! Peers that break the protocol, or the connection: every call under way ends at once and says why,
//! and so does every later one. Time is paused: who hangs is found out by the clock.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::task::coop::poll_proceed;
use tokio::time::{Instant, timeout};
use xs_client::{Client, Config, Error, Op, Reply};

use crate::support::{Peer, frame, path, watched_client};

/// How a connection with calls under way ends when the peer does what `harm` does. Returns what the
/// calls were told.
async fn ends(harm: impl AsyncFnOnce(&mut Peer, u32)) -> Vec<Error> {
    let (client, mut peer) = Peer::new(Config::default());
    let begun = Instant::now();
    let (node, client) = (&path("/x"), &client);
    let mut watch = {
        let (watch, ()) = tokio::join!(client.watch(node), async {
            let request = peer.request().await.unwrap();
            peer.answer(&request, &Reply::Ok).await;
        });
        watch.unwrap()
    };
    let (first, second, writing, watching, started, changed, ()) = tokio::join!(
        client.read(node),
        client.read(node),
        client.write(node, "1"),
        async { client.watch(&path("/y")).await.map(drop) },
        client.transaction(|_| async { Ok::<_, Error>(()) }),
        watch.changed(),
        async {
            let requests = peer.requests(5).await;
            harm(&mut peer, requests[0].req_id).await;
            drop(peer);
        },
    );
    let later = client.read(node).await;
    let joined = client.watch(node).await;
    let errors = vec![
        first.unwrap_err(),
        second.unwrap_err(),
        writing.unwrap_err(),
        watching.unwrap_err(),
        started.unwrap_err(),
        changed.unwrap_err(),
        watch.changed().await.unwrap_err(),
        later.unwrap_err(),
        joined.unwrap_err(),
    ];
    assert_eq!(begun.elapsed(), Duration::ZERO, "{errors:?}");
    assert!(errors.iter().all(Error::is_disconnected), "{errors:?}");
    errors
}

/// All of them say the same.
fn assert_all(errors: &[Error], text: &str) {
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(texts, vec![text; texts.len()]);
}

#[tokio::test(start_paused = true)]
async fn it_closes() {
    let errors = ends(async |_, _| {}).await;
    assert_all(&errors, "the connection to the store is gone: the store closed it");
    assert_eq!(errors[0].hint(), "see whether xenstored still runs, then try again");
}

#[tokio::test(start_paused = true)]
async fn it_closes_in_the_middle_of_a_header() {
    let errors = ends(async |peer, id| peer.send(&frame(Op::READ, id, 4, b"")[..7]).await).await;
    assert_all(&errors, "the store broke the protocol: the stream ended inside a message, after 7 bytes");
}

#[tokio::test(start_paused = true)]
async fn it_closes_in_the_middle_of_a_reply() {
    let errors = ends(async |peer, id| peer.send(&frame(Op::READ, id, 100, b"half")).await).await;
    assert_all(&errors, "the store broke the protocol: the stream ended inside a message, after 20 bytes");
}

/// A length that is over the limit is refused as soon as it is read: nothing is waited for.
#[tokio::test(start_paused = true)]
async fn it_announces_too_much() {
    for len in [(1 << 20) + 1, u32::MAX] {
        let errors = ends(async |peer, id| {
            peer.send(&frame(Op::READ, id, len, b"")).await;
            // The connection ends although the peer does not.
            assert!(peer.request().await.is_none());
        })
        .await;
        assert_all(
            &errors,
            &format!(
                "the store broke the protocol: a message with {len} bytes of payload is over the limit of 1048576"
            ),
        );
    }
}

#[tokio::test(start_paused = true)]
async fn it_sends_garbage() {
    let errors = ends(async |peer, _| {
        peer.send(b"HTTP/1.1 400 Bad Request\r\nServer: nginx\r\n\r\n").await;
        assert!(peer.request().await.is_none());
    })
    .await;
    assert!(errors[0].to_string().starts_with("the store broke the protocol: "), "{}", errors[0]);
}

#[tokio::test(start_paused = true)]
async fn it_answers_what_nobody_asked() {
    for id in [0, 4711, u32::MAX] {
        let errors = ends(async |peer, _| {
            peer.send(&frame(Op::READ, id, 1, b"v")).await;
            assert!(peer.request().await.is_none());
        })
        .await;
        let expected = format!("it sent a reply to a READ that nobody waits for, with the id {id}");
        assert_all(&errors, &format!("the store broke the protocol: {expected}"));
    }
}

#[tokio::test(start_paused = true)]
async fn it_answers_in_another_form() {
    for (op, payload) in [(Op::DIRECTORY, &b"a\0"[..]), (Op::WRITE, b"OK\0"), (Op(999), b"")] {
        let errors = ends(async |peer, id| {
            peer.send(&frame(op, id, payload.len() as u32, payload)).await;
            assert!(peer.request().await.is_none());
        })
        .await;
        assert_all(&errors, &format!("the store broke the protocol: it answered READ with {op}"));
    }
}

/// What the payload says is a matter of the call alone.
#[tokio::test(start_paused = true)]
async fn it_answers_what_cannot_be_read() {
    let (client, mut peer) = Peer::new(Config::default());
    let node = path("/x");
    let calls = async { (client.get_perms(&node).await, client.read(&node).await) };
    let ((perms, value), ()) = tokio::join!(calls, async {
        let request = peer.request().await.unwrap();
        peer.send(&frame(Op::GET_PERMS, request.req_id, 3, b"z0\0")).await;
        let request = peer.request().await.unwrap();
        peer.answer(&request, &Reply::Value("v".into())).await;
    });
    let error = perms.unwrap_err();
    assert!(matches!(error, Error::Reply(_)) && !error.is_disconnected(), "{error}");
    assert_eq!(value.unwrap(), "v");
}

/// Nobody could end it, so it must not be left open.
#[tokio::test(start_paused = true)]
async fn it_opens_a_transaction_without_a_number() {
    let (client, mut peer) = Peer::new(Config::default());
    let (started, ()) = tokio::join!(client.transaction(|_| async { Ok::<_, Error>(()) }), async {
        let request = peer.request().await.unwrap();
        peer.send(&frame(Op::TRANSACTION_START, request.req_id, 2, b"x\0")).await;
        assert!(peer.request().await.is_none());
    });
    assert!(matches!(started.unwrap_err(), Error::Protocol(_)));
}

#[tokio::test(start_paused = true)]
async fn it_sends_events_that_are_none() {
    for payload in
        [&b""[..], b"/x", b"/x\0", b"/x//y\0\x31\0", b"\0\0", b"\xff\xfe\0\x31\0", b"/x\0\x31\0more"]
    {
        let errors = ends(async |peer, _| {
            peer.send(&frame(Op::WATCH_EVENT, 0, payload.len() as u32, payload)).await;
            assert!(peer.request().await.is_none(), "{payload:?}");
        })
        .await;
        assert!(
            errors[0]
                .to_string()
                .starts_with("the store broke the protocol: malformed payload of WATCH_EVENT"),
            "{}",
            errors[0]
        );
    }
}

/// Events for watches that nobody has, or had, are the protocol's own race and disturb nobody.
#[tokio::test(start_paused = true)]
async fn stray_events_are_no_harm() {
    let (client, mut peer) = Peer::new(Config::default());
    let node = path("/x");
    let (value, ()) = tokio::join!(client.read(&node), async {
        let request = peer.request().await.unwrap();
        for payload in [&b"/x\0\0"[..], b"/x\0ff\0", b"/x\0not a number\0", b"/x\0-1\0"] {
            peer.send(&frame(Op::WATCH_EVENT, 0, payload.len() as u32, payload)).await;
        }
        peer.answer(&request, &Reply::Value("v".into())).await;
    });
    assert_eq!(value.unwrap(), "v");
}

/// What came before the break still counts.
#[tokio::test(start_paused = true)]
async fn replies_before_the_break_count() {
    let (client, mut peer) = Peer::new(Config::default());
    let node = path("/x");
    let (first, second, ()) = tokio::join!(client.read(&node), client.read(&node), async {
        let requests = peer.requests(2).await;
        let mut bytes = frame(Op::READ, requests[0].req_id, 1, b"v");
        bytes.extend(frame(Op::READ, 4711, 0, b""));
        peer.send(&bytes).await;
    });
    assert_eq!(first.unwrap(), "v");
    assert!(second.unwrap_err().is_disconnected());
}

/// So do those that are still unread when a request cannot be sent any more.
#[tokio::test(start_paused = true)]
async fn replies_count_although_it_takes_no_more() {
    let (near, mut far) = tokio::io::duplex(64);
    let client = Client::over(near, Config::default());
    let (node, value) = (path("/x"), vec![b'x'; 4000]);
    let (first, second, ()) = tokio::join!(client.read(&node), client.write(&node, value), async {
        let mut head = [0; 16];
        far.read_exact(&mut head).await.unwrap();
        let id = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        // It does not take the rest of what is being written, answers, and is gone.
        far.write_all(&frame(Op::READ, id, 1, b"v")).await.unwrap();
        drop(far);
    });
    assert_eq!(first.unwrap(), "v");
    let error = second.unwrap_err();
    assert_eq!(error.to_string(), "the connection to the store is gone: the store closed it");
}

/// A store that always has more events to read. Like a socket, it lets other tasks have their turns.
struct Flood {
    taken: Arc<AtomicUsize>,
    sent: usize,
}

impl AsyncRead for Flood {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let turn = ready!(poll_proceed(context));
        let event = frame(Op::WATCH_EVENT, 0, 5, b"/x\0z\0");
        let count = buffer.remaining();
        let bytes = event.iter().copied().cycle().skip(self.sent % event.len()).take(count);
        buffer.put_slice(&bytes.collect::<Vec<u8>>());
        self.sent += count;
        turn.made_progress();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Flood {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let turn = ready!(poll_proceed(context));
        self.taken.fetch_add(bytes.len(), Ordering::Relaxed);
        turn.made_progress();
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Events without end do not keep requests from being sent.
#[tokio::test]
async fn it_sends_events_without_end() {
    let taken = Arc::new(AtomicUsize::new(0));
    let client = Client::over(Flood { taken: taken.clone(), sent: 0 }, Config::default());
    let node = path("/x");
    let request_len = 16 + "/x\0".len();
    let mut under_way = Vec::new();
    for calls in 1..=10 {
        let mut call = Box::pin(client.read(&node));
        assert!((&mut call).now_or_never().is_none());
        under_way.push(call);
        for turns in 0.. {
            if taken.load(Ordering::Relaxed) == calls * request_len {
                break;
            }
            assert!(turns < 100, "call {calls} is not sent");
            tokio::task::yield_now().await;
        }
    }
}

/// A reply that arrives byte by byte is a reply.
#[tokio::test(start_paused = true)]
async fn replies_may_come_in_pieces() {
    let (client, mut peer) = Peer::new(Config::default());
    let node = path("/x");
    let (value, ()) = tokio::join!(client.read(&node), async {
        let request = peer.request().await.unwrap();
        for byte in frame(Op::READ, request.req_id, 5, b"value") {
            peer.send(&[byte]).await;
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(value.unwrap(), "value");
}

/// Any bytes at all, and any bytes behind a true reply: calls end, at once or at their deadline, and
/// nothing panics.
#[tokio::test(start_paused = true)]
async fn it_sends_anything() {
    for seed in 0..2000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (client, mut peer) = Peer::new(Config::default());
        let node = path("/x");
        let reading = timeout(Duration::from_secs(60), client.read(&node));
        let (value, ()) = tokio::join!(reading, async {
            let request = peer.request().await.unwrap();
            // Small numbers in the header are the ones that get past it.
            let mut bytes: Vec<u8> = (0..random.usize(..64)).map(|_| random.u8(..)).collect();
            if random.bool() {
                let op = Op(random.u32(..30));
                let id = if random.bool() { request.req_id } else { random.u32(..3) };
                bytes = frame(op, id, random.u32(..40), &bytes);
            }
            peer.send(&bytes).await;
            drop(peer);
        });
        let value = value.expect("ends");
        assert!(
            value.is_ok()
                || value.as_ref().unwrap_err().is_disconnected()
                || value.unwrap_err().code().is_some(),
            "seed {seed}"
        );
    }
}

/// The connection to a real store, cut at every byte of a reply.
#[tokio::test(start_paused = true)]
async fn it_is_cut_at_every_byte() {
    for bytes in 0.."READ of a value".len() + 16 {
        let (client, proxy, _store) = watched_client(Config::default());
        let node = path("/x");
        client.write(&node, "READ of a value").await.unwrap();
        proxy.cut_after(bytes);
        let error = client.read(&node).await.unwrap_err();
        assert!(error.is_disconnected(), "{bytes}: {error}");
    }
}

/// Injected between two replies.
#[tokio::test(start_paused = true)]
async fn garbage_between_replies() {
    let (client, proxy, _store) = watched_client(Config::default());
    let node = path("/x");
    client.write(&node, "1").await.unwrap();
    let mut watch = client.watch(&node).await.unwrap();
    watch.changed().await.unwrap();
    proxy.inject(&[0xff; 16]);
    let error = watch.changed().await.unwrap_err();
    assert!(matches!(error, Error::Protocol(_)), "{error}");
    assert!(matches!(client.read(&node).await.unwrap_err(), Error::Protocol(_)));
}

/// There is no store at all.
#[tokio::test]
async fn there_is_no_socket() {
    let folder = std::env::temp_dir();
    let missing = folder.join("xs-client-test-no-such-socket");
    let error = Client::connect_unix(&missing, Config::default()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "cannot connect to the store at {}: No such file or directory (os error 2)",
            missing.display()
        )
    );
    assert!(error.is_disconnected());
    assert!(error.hint().starts_with("see that xenstored runs"));
}
