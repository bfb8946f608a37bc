//! What the tests have in common.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bytes::BytesMut;
use lab_proxy::Proxy;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use xs_client::blocking::Client;
use xs_client::{Config, DomId, Error, Op, Path, Reply, TxId};
use xs_proto::{Header, Message, MessageCodec};
use xs_store::Store;

/// Longer than any test takes.
pub(crate) const LONG: Duration = Duration::from_secs(600);

/// Long enough to be waited for.
pub(crate) const SHORT: Duration = Duration::from_millis(20);

pub(crate) fn path(text: impl AsRef<str>) -> Path {
    Path::new(text.as_ref()).unwrap()
}

/// Nothing ends by its deadline.
pub(crate) fn patient() -> Config {
    Config { deadline: LONG, ..Config::default() }
}

/// A store that is served on a socket by a runtime in the background.
pub(crate) struct Served {
    pub(crate) store: Store,
    runtime: Runtime,
    folder: TempDir,
}

impl Served {
    pub(crate) fn new() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new();
        let listener = {
            let _guard = runtime.enter();
            UnixListener::bind(folder.path().join("socket")).unwrap()
        };
        let serving = store.clone();
        runtime.spawn(async move { serving.serve(listener).await });
        Self { store, runtime, folder }
    }

    /// A connection by the socket.
    pub(crate) fn connect(&self) -> Client {
        self.try_connect(patient()).unwrap()
    }

    pub(crate) fn try_connect(&self, config: Config) -> Result<Client, Error> {
        Client::connect_unix(self.folder.path().join("socket"), config)
    }

    /// A connection for a domain, with a man in the middle.
    pub(crate) fn watched(&self, domid: DomId, config: Config) -> (Client, Proxy) {
        let (near, far) = UnixStream::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        let _guard = self.runtime.enter();
        let (mut stream, proxy) = Proxy::over(self.store.connect(domid));
        let mut far = tokio::net::UnixStream::from_std(far).unwrap();
        self.runtime.spawn(async move { tokio::io::copy_bidirectional(&mut far, &mut stream).await });
        (Client::over(near, config).unwrap(), proxy)
    }
}

/// The far end of a connection, which answers by hand.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) stream: UnixStream,
    input: BytesMut,
}

impl Peer {
    pub(crate) fn new(config: Config) -> (Client, Self) {
        let (near, stream) = UnixStream::pair().unwrap();
        (Client::over(near, config).unwrap(), Self { stream, input: BytesMut::new() })
    }

    /// The next request; `None` at the end of the connection.
    pub(crate) fn next(&mut self) -> Option<Message> {
        let mut chunk = [0; 4096];
        loop {
            if let Some(message) = MessageCodec::default().cut(&mut self.input).unwrap() {
                return Some(message);
            }
            match self.stream.read(&mut chunk).unwrap() {
                0 => return None,
                count => self.input.extend_from_slice(&chunk[..count]),
            }
        }
    }

    /// The next so many requests.
    pub(crate) fn requests(&mut self, count: usize) -> Vec<Message> {
        (0..count).map(|_| self.next().expect("the client has closed it")).collect()
    }

    pub(crate) fn answer(&mut self, to: &Message, reply: &Reply) {
        let mut bytes = BytesMut::new();
        reply.encode(to.op, to.req_id, to.tx_id, &mut bytes).unwrap();
        self.stream.write_all(&bytes).unwrap();
    }

    /// Sends an event; its payload is that of the WATCH that it is of.
    pub(crate) fn event(&mut self, watch: &[u8]) {
        self.send(Op::WATCH_EVENT, 0, watch);
    }

    /// Sends any message.
    pub(crate) fn send(&mut self, op: Op, req_id: u32, payload: &[u8]) {
        let mut bytes = BytesMut::new();
        Header { op, req_id, tx_id: TxId::NONE, len: payload.len() as u32 }.encode(&mut bytes);
        self.stream.write_all(&[&bytes[..], payload].concat()).unwrap();
    }

    /// Whether there is no request now.
    pub(crate) fn is_silent(&mut self) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        let read = self.stream.read(&mut [0]);
        self.stream.set_nonblocking(false).unwrap();
        self.input.is_empty() && read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    }
}

/// Checks that a call has timed out.
pub(crate) fn timed_out<T: std::fmt::Debug>(outcome: Result<T, Error>) {
    let error = outcome.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
}
