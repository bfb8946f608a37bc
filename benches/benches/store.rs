//! The embedded store, asked in raw messages over its in-process pipe.

use bytes::{Bytes, BytesMut};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Mutex;
use tokio_util::codec::Decoder;
use xs_proto::{DomId, Message, MessageCodec, Op, Path, Reply, Request, Token, TxId};
use xs_store::Store;

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// The least that can be called a client: writes messages, reads messages.
struct Wire {
    stream: DuplexStream,
    codec: MessageCodec,
    received: BytesMut,
}

impl Wire {
    fn new(store: &Store) -> Self {
        let stream = store.connect(DomId::DOM0);
        Self { stream, codec: MessageCodec::default(), received: BytesMut::new() }
    }

    async fn send(&mut self, requests: &[Request], tx: TxId) {
        let mut out = BytesMut::new();
        for request in requests {
            request.encode(1, tx, &mut out).unwrap();
        }
        self.stream.write_all(&out).await.unwrap();
    }

    /// The next message that is not an error.
    async fn receive(&mut self) -> Message {
        loop {
            if let Some(message) = self.codec.decode(&mut self.received).unwrap() {
                assert_ne!(message.op, Op::ERROR, "{message:?}");
                return message;
            }
            assert_ne!(self.stream.read_buf(&mut self.received).await.unwrap(), 0);
        }
    }

    /// Sends requests together and takes as many replies.
    async fn ask(&mut self, requests: &[Request], tx: TxId) {
        self.send(requests, tx).await;
        for _ in requests {
            self.receive().await;
        }
    }
}

fn path(text: &str) -> Path {
    Path::new(text).unwrap()
}

fn write(path: Path) -> Request {
    Request::Write { path, value: Bytes::from_static(b"4") }
}

/// READ, one at a time and 64 together.
fn reads(c: &mut Criterion) {
    let runtime = runtime();
    let wire = runtime.block_on(async {
        let mut wire = Wire::new(&Store::new());
        wire.ask(&[write(path("/local/domain/0/name"))], TxId::NONE).await;
        Mutex::new(wire)
    });
    let mut group = c.benchmark_group("store/reads");
    for together in [1, 64] {
        let requests = vec![Request::Read(path("/local/domain/0/name")); together];
        group.throughput(Throughput::Elements(together as u64));
        group.bench_function(format!("{together} together"), |b| {
            b.to_async(&runtime).iter(async || {
                wire.lock().await.ask(&requests, TxId::NONE).await;
            });
        });
    }
}

/// A transaction of eight writes, in a store of a few and of many nodes: it must not matter.
fn transactions(c: &mut Criterion) {
    let mut group = c.benchmark_group("store/transaction of 8 writes");
    for nodes in [100, 10_000] {
        let runtime = runtime();
        let wire = runtime.block_on(async {
            let mut wire = Wire::new(&Store::new());
            for node in 0..nodes {
                wire.ask(&[write(path(&format!("/n/{}/{node}", node % 100)))], TxId::NONE).await;
            }
            Mutex::new(wire)
        });
        let writes: Vec<_> = (0..8).map(|key| write(path(&format!("/n/0/dev/{key}")))).collect();
        group.bench_function(format!("{nodes} nodes"), |b| {
            b.to_async(&runtime).iter(async || {
                let wire = &mut *wire.lock().await;
                wire.send(&[Request::TransactionStart], TxId::NONE).await;
                let reply = wire.receive().await;
                let reply = Reply::decode(Op::TRANSACTION_START, reply.op, reply.payload);
                let Ok(Reply::Transaction(tx)) = reply else { panic!("{reply:?}") };
                wire.ask(&writes, tx).await;
                wire.ask(&[Request::TransactionEnd { commit: true }], tx).await;
            });
        });
    }
}

/// A write that fires one watch, of a few and of many on other nodes: it must not matter either.
fn events(c: &mut Criterion) {
    let mut group = c.benchmark_group("store/event");
    for watches in [1, 1000] {
        let runtime = runtime();
        let wire = runtime.block_on(async {
            let mut wire = Wire::new(&Store::new());
            for watch in 0..watches {
                let (path, token) = (path(&format!("/w/{watch}/state")), Token::new("t").unwrap());
                wire.ask(&[Request::Watch { path, token, depth: None }], TxId::NONE).await;
                wire.receive().await;
            }
            Mutex::new(wire)
        });
        let writes = [write(path("/w/0/state"))];
        group.bench_function(format!("{watches} watches"), |b| {
            b.to_async(&runtime).iter(async || {
                let wire = &mut *wire.lock().await;
                wire.send(&writes, TxId::NONE).await;
                // The reply and the event.
                (wire.receive().await, wire.receive().await)
            });
        });
    }
}

criterion_group!(benches, reads, transactions, events);
criterion_main!(benches);
