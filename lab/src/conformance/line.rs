//! Connections to the server under test: whole messages over a socket, an in-process pipe or a
//! ring.

use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixDatagram, UnixStream};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::codec::Decoder;
use xs_proto::{DomId, Header, Message, MessageCodec, Op, TxId};

use crate::fakexen::{FakeXen, Ring};

/// How long a message may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// oxenstored answers on sockets with more than a message may carry.
const REPLY_MAX: usize = 1 << 20;

/// How a dialogue departs from its case.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Deviation {
    #[error("the server closed the connection")]
    Closed,
    #[error("no answer within {} s", PATIENCE.as_secs())]
    Silent,
    #[error("{0}")]
    Unexpected(String),
    #[error(transparent)]
    Io(io::Error),
}

impl From<io::Error> for Deviation {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

/// Both directions of a byte stream.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// What bytes go over.
pub(crate) enum Line {
    Stream(Box<dyn Stream>),
    /// A ring and its event channel.
    Ring(Ring, UnixDatagram),
}

impl Line {
    pub(crate) async fn to_socket(path: &Path) -> io::Result<Self> {
        let end = Instant::now() + PATIENCE;
        loop {
            match UnixStream::connect(path).await {
                Ok(stream) => return Ok(Self::Stream(Box::new(stream))),
                // The daemons' backlog is one connection; a connect that finds it full fails.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < end => {
                    sleep(Duration::from_millis(2)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The ring of a guest, which nobody else may be using.
    pub(crate) fn to_ring(xen: &FakeXen, domid: DomId) -> io::Result<Self> {
        let events = xen.events(domid)?;
        events.set_nonblocking(true)?;
        Ok(Self::Ring(xen.ring(domid)?, UnixDatagram::from_std(events)?))
    }

    async fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Stream(stream) => stream.write_all(bytes).await,
            Self::Ring(ring, events) => {
                while !bytes.is_empty() {
                    let sent = ring.send(bytes)?;
                    bytes = &bytes[sent..];
                    if sent == 0 {
                        events.recv(&mut [0]).await?;
                    }
                }
                Ok(())
            }
        }
    }

    /// Appends what arrives next; nothing but the end of a stream appends nothing.
    async fn read(&mut self, input: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Stream(stream) => stream.read_buf(input).await,
            Self::Ring(ring, events) => loop {
                let received = ring.receive(input)?;
                if received > 0 {
                    return Ok(received);
                }
                events.recv(&mut [0]).await?;
            },
        }
    }
}

/// A connection.
pub(crate) struct Conn {
    line: Line,
    input: BytesMut,
    last_id: u32,
    /// The payloads of the events that came in front of replies.
    pub(crate) events: Vec<Bytes>,
}

impl Conn {
    pub(crate) fn new(line: Line) -> Self {
        Self { line, input: BytesMut::new(), last_id: 0, events: Vec::new() }
    }

    /// The ring page, if this is a ring.
    pub(crate) fn ring(&self) -> Result<&Ring, Deviation> {
        match &self.line {
            Line::Ring(ring, _) => Ok(ring),
            Line::Stream(_) => Err(Deviation::Unexpected("this connection has no ring page".into())),
        }
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<(), Deviation> {
        Ok(timeout(PATIENCE, self.line.write(bytes)).await.map_err(|_| Deviation::Silent)??)
    }

    /// The next message.
    pub(crate) async fn receive(&mut self) -> Result<Message, Deviation> {
        let mut codec = MessageCodec::with_limit(REPLY_MAX);
        let end = Instant::now() + PATIENCE;
        loop {
            let message = codec.decode(&mut self.input);
            if let Some(message) = message.map_err(|error| Deviation::Unexpected(error.to_string()))? {
                return Ok(message);
            }
            let read = timeout_at(end, self.line.read(&mut self.input));
            if read.await.map_err(|_| Deviation::Silent)?? == 0 {
                return Err(Deviation::Closed);
            }
        }
    }

    /// Appends a request, with its id if it has one or the next; returns the id.
    pub(crate) fn encode(
        &mut self,
        op: Op,
        payload: &[u8],
        tx_id: TxId,
        req_id: Option<u32>,
        out: &mut BytesMut,
    ) -> u32 {
        let req_id = req_id.unwrap_or_else(|| {
            self.last_id += 1;
            self.last_id
        });
        Header { op, req_id, tx_id, len: payload.len() as u32 }.encode(out);
        out.extend_from_slice(payload);
        req_id
    }

    /// Asks, and waits for the answer. Events in front of it are kept.
    pub(crate) async fn call(
        &mut self,
        op: Op,
        payload: &[u8],
        tx_id: TxId,
        req_id: Option<u32>,
    ) -> Result<Message, Deviation> {
        let mut request = BytesMut::new();
        let req_id = self.encode(op, payload, tx_id, req_id, &mut request);
        self.write(&request).await?;
        loop {
            let message = self.receive().await?;
            if message.op == Op::WATCH_EVENT {
                check_event(&message)?;
                self.events.push(message.payload);
            } else if message.req_id != req_id {
                let text = format!("a reply to request {} while waiting for {req_id}", message.req_id);
                return Err(Deviation::Unexpected(text));
            } else {
                return Ok(message);
            }
        }
    }

    /// Waits until every event that is queued by now is here.
    pub(crate) async fn barrier(&mut self) -> Result<(), Deviation> {
        self.call(Op::GET_DOMAIN_PATH, b"0\0", TxId::NONE, None).await.map(|_| ())
    }
}

/// Events belong to no request and no transaction.
pub(crate) fn check_event(message: &Message) -> Result<(), Deviation> {
    if message.req_id == 0 && message.tx_id == TxId::NONE {
        return Ok(());
    }
    let text = format!("an event with request {} and transaction {}", message.req_id, message.tx_id.0);
    Err(Deviation::Unexpected(text))
}
