//! A connection straight to a store, without the client that is under test.

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_util::codec::Decoder;
use xs_client::{DomId, ErrorCode, Op, Path, Reply, Request, TxId};
use xs_proto::MessageCodec;
use xs_store::Store;

/// It asks one thing after the other, and is told at once: it knows no faults.
pub(super) struct Direct {
    stream: DuplexStream,
    input: BytesMut,
}

impl Direct {
    pub(super) fn to(store: &Store) -> Self {
        Self { stream: store.connect(DomId::DOM0), input: BytesMut::new() }
    }

    /// Asks, and takes the next reply for the answer. What the store does not answer is `EIO`.
    pub(super) async fn ask(&mut self, request: Request) -> Reply {
        self.answer(request).await.unwrap_or(Reply::Error(ErrorCode::EIO))
    }

    async fn answer(&mut self, request: Request) -> Option<Reply> {
        let mut bytes = BytesMut::new();
        request.encode(1, TxId::NONE, &mut bytes).ok()?;
        self.stream.write_all(&bytes).await.ok()?;
        loop {
            if let Some(message) = MessageCodec::default().decode(&mut self.input).ok()? {
                if message.op != Op::WATCH_EVENT {
                    return Reply::decode(request.op(), message.op, message.payload).ok();
                }
            } else if self.stream.read_buf(&mut self.input).await.ok()? == 0 {
                return None;
            }
        }
    }

    pub(super) async fn write(&mut self, path: Path, value: String) -> Reply {
        self.ask(Request::Write { path, value: value.into() }).await
    }

    /// The value of a node, if there is one.
    pub(super) async fn read(&mut self, path: &Path) -> Option<String> {
        match self.ask(Request::Read(path.clone())).await {
            Reply::Value(value) => Some(String::from_utf8_lossy(&value).into_owned()),
            _ => None,
        }
    }

    /// What the store counts for a domain: its watches, transactions and unsent replies, among
    /// others, each with its name.
    pub(super) async fn usage(&mut self, domid: DomId) -> Vec<(String, i64)> {
        let arguments = vec!["quota".into(), domid.to_string().into()];
        let Reply::Text(text) = self.ask(Request::Control(arguments)).await else {
            return Vec::new();
        };
        let text = String::from_utf8_lossy(&text).into_owned();
        let row = |line: &str| {
            let (name, count) = line.split_once(':')?;
            Some((name.trim().to_owned(), count.trim().parse().ok()?))
        };
        text.lines().filter_map(row).collect()
    }
}
