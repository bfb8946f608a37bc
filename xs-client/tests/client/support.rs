//! What the tests have in common.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use lab_proxy::Proxy;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::codec::Decoder;
use xs_client::{Client, Config, Connect, DomId, Op, Path, Reply};
use xs_proto::{Message, MessageCodec};
use xs_store::Store;

pub(crate) fn path(text: impl AsRef<str>) -> Path {
    Path::new(text.as_ref()).unwrap()
}

/// A connection of domain 0 to a new store.
pub(crate) fn client() -> Client {
    Client::over(Store::new().connect(DomId::DOM0), Config::default())
}

/// The same with a man in the middle.
pub(crate) fn watched_client(config: Config) -> (Client, Proxy, Store) {
    let store = Store::new();
    let (stream, proxy) = Proxy::over(store.connect(DomId::DOM0));
    (Client::over(stream, config), proxy, store)
}

/// The far end of a connection, which answers by hand.
#[derive(Debug)]
pub(crate) struct Peer {
    stream: DuplexStream,
    input: BytesMut,
}

/// Those at the far ends of connections, one after another.
#[derive(Debug)]
pub(crate) struct Peers(mpsc::UnboundedReceiver<DuplexStream>);

impl Peers {
    /// The next one; `None` when the client has given up.
    pub(crate) async fn next(&mut self) -> Option<Peer> {
        Some(Peer { stream: self.0.recv().await?, input: BytesMut::new() })
    }
}

/// A way to peers.
#[derive(Debug)]
pub(crate) struct ToPeers(mpsc::UnboundedSender<DuplexStream>);

impl Connect for ToPeers {
    type Transport = DuplexStream;

    fn at(&self) -> String {
        "a peer".into()
    }

    async fn connect(&mut self) -> io::Result<DuplexStream> {
        let (near, far) = tokio::io::duplex(64 << 10);
        self.0.send(far).map_err(|_| io::ErrorKind::ConnectionRefused)?;
        Ok(near)
    }
}

impl Peer {
    /// A way to connections that are answered by hand.
    pub(crate) fn behind() -> (ToPeers, Peers) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (ToPeers(sender), Peers(receiver))
    }

    pub(crate) fn new(config: Config) -> (Client, Self) {
        let (near, stream) = tokio::io::duplex(64 << 10);
        (Client::over(near, config), Self { stream, input: BytesMut::new() })
    }

    /// The next request; `None` at the end of the connection.
    pub(crate) async fn request(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = MessageCodec::default().decode(&mut self.input).unwrap() {
                return Some(message);
            }
            let read = timeout(Duration::from_secs(100), self.stream.read_buf(&mut self.input));
            if read.await.expect("the client sends nothing").unwrap() == 0 {
                return None;
            }
        }
    }

    /// The next so many requests.
    pub(crate) async fn requests(&mut self, count: usize) -> Vec<Message> {
        let mut requests = Vec::new();
        while requests.len() < count {
            requests.push(self.request().await.unwrap());
        }
        requests
    }

    pub(crate) async fn answer(&mut self, to: &Message, reply: &Reply) {
        let mut bytes = BytesMut::new();
        reply.encode(to.op, to.req_id, to.tx_id, &mut bytes).unwrap();
        self.send(&bytes).await;
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }
}

/// A message with any header.
pub(crate) fn frame(op: Op, req_id: u32, len: u32, payload: &[u8]) -> Vec<u8> {
    let words = [op.0, req_id, 0, len].map(u32::to_le_bytes);
    [words.as_flattened(), payload].concat()
}
