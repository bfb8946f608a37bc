//! A client that speaks bytes, so that the tests depend on no other code of ours.
//!
//! In texts `|` stands for a NUL byte, as in the protocol's documentation.

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use xs_proto::{DomId, Op};
use xs_store::Store;

pub(crate) struct Peer<S = DuplexStream> {
    pub(crate) stream: S,
    input: BytesMut,
    events: Vec<String>,
}

/// A store with a privileged client.
pub(crate) fn store() -> (Store, Peer) {
    let store = Store::new();
    let peer = Peer::of(&store, 0);
    (store, peer)
}

pub(crate) fn request(tx: u32, op: Op, text: &str) -> BytesMut {
    let mut bytes = BytesMut::new();
    for word in [op.0, 1, tx, text.len() as u32] {
        bytes.put_u32_le(word);
    }
    bytes.extend(text.bytes().map(|byte| if byte == b'|' { 0 } else { byte }));
    bytes
}

impl Peer {
    pub(crate) fn of(store: &Store, domid: u32) -> Self {
        Self::over(store.connect(DomId(domid)))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
    pub(crate) fn over(stream: S) -> Self {
        Self { stream, input: BytesMut::new(), events: Vec::new() }
    }

    /// The next message: its operation and payload. `None` if the connection ended.
    pub(crate) async fn receive(&mut self) -> Option<(Op, String)> {
        loop {
            if let Some(head) = self.input.first_chunk::<16>() {
                let length = u32::from_le_bytes([head[12], head[13], head[14], head[15]]) as usize;
                if self.input.len() >= 16 + length {
                    let op = Op(self.input.get_u32_le());
                    self.input.advance(12);
                    let payload = self.input.split_to(length);
                    let text = payload.iter().map(|byte| if *byte == 0 { '|' } else { char::from(*byte) });
                    return Some((op, text.collect()));
                }
            }
            if self.stream.read_buf(&mut self.input).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// Asks in a transaction. The answer is the payload, after `!` if it is an error; events in
    /// front of it are kept.
    pub(crate) async fn ask_in(&mut self, tx: u32, op: Op, text: &str) -> String {
        self.stream.write_all(&request(tx, op, text)).await.unwrap();
        loop {
            match self.receive().await.expect("the store closed the connection") {
                (Op::WATCH_EVENT, event) => self.events.push(event),
                (Op::ERROR, error) => return format!("!{}", error.trim_end_matches('|')),
                (answered, payload) => {
                    assert_eq!(answered, op);
                    return payload;
                }
            }
        }
    }

    /// Asks what may be answered in any way.
    pub(crate) async fn ask_any(&mut self, tx: u32, op: Op, text: &str) {
        self.stream.write_all(&request(tx, op, text)).await.unwrap();
        while self.receive().await.expect("the store closed the connection").0 == Op::WATCH_EVENT {}
    }

    pub(crate) async fn ask(&mut self, op: Op, text: &str) -> String {
        self.ask_in(0, op, text).await
    }

    /// Asks what must succeed with an acknowledgement.
    pub(crate) async fn ok(&mut self, op: Op, text: &str) {
        assert_eq!(self.ask(op, text).await, "OK|", "{op} {text}");
    }

    /// The same in a transaction.
    pub(crate) async fn ok_in(&mut self, tx: u32, op: Op, text: &str) {
        assert_eq!(self.ask_in(tx, op, text).await, "OK|", "{op} {text}");
    }

    pub(crate) async fn start(&mut self) -> u32 {
        self.ask(Op::TRANSACTION_START, "|").await.trim_end_matches('|').parse().unwrap()
    }

    pub(crate) async fn commit(&mut self, tx: u32) -> String {
        self.ask_in(tx, Op::TRANSACTION_END, "T|").await
    }

    /// The events that are there by now.
    pub(crate) async fn events(&mut self) -> Vec<String> {
        self.ask(Op::GET_DOMAIN_PATH, "0|").await;
        std::mem::take(&mut self.events)
    }
}
