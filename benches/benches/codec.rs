//! Requests and replies to bytes and back. No I/O.

use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tokio_util::codec::{Decoder, Encoder};
use xs_proto::{HEADER_LEN, Message, MessageCodec, Op, Path, Reply, Request, Token, TxId, WatchEvent};

/// A path as device code uses them.
fn path() -> Path {
    Path::new("/local/domain/0/backend/vbd/12/51712/state").unwrap()
}

fn requests(c: &mut Criterion) {
    let mut group = c.benchmark_group("codec/request");
    let read = Request::Read(path());
    let write = Request::Write { path: path(), value: Bytes::from_static(b"4") };
    for (name, request) in [("read", read), ("write", write)] {
        let mut out = BytesMut::with_capacity(4096);
        group.bench_function(format!("encode {name}"), |b| {
            b.iter(|| {
                out.clear();
                request.encode(7, TxId::NONE, &mut out)
            });
        });
        let payload = Bytes::copy_from_slice(&out[HEADER_LEN..]);
        group
            .bench_function(format!("decode {name}"), |b| b.iter(|| Request::decode(request.op(), &payload)));
    }
}

fn events(c: &mut Criterion) {
    let event = WatchEvent { path: path(), token: Token::new("17").unwrap() };
    let mut out = BytesMut::new();
    event.encode(&mut out).unwrap();
    let payload = out.split_off(HEADER_LEN).freeze();
    c.bench_function("codec/decode watch event", |b| b.iter(|| WatchEvent::decode(&payload)));
}

/// What a client does with a full read buffer: 64 replies to READ, cut out and typed.
fn stream(c: &mut Criterion) {
    const REPLIES: u32 = 64;
    let mut stream = BytesMut::new();
    for req_id in 0..REPLIES {
        let payload = Bytes::from_static(b"4");
        let message = Message { op: Op::READ, req_id, tx_id: TxId::NONE, payload };
        MessageCodec::default().encode(message, &mut stream).unwrap();
    }
    let mut group = c.benchmark_group("codec/stream");
    group.throughput(Throughput::Elements(REPLIES.into()));
    group.bench_function("decode replies", |b| {
        b.iter_batched(
            || stream.clone(),
            |mut stream| {
                let mut codec = MessageCodec::default();
                while let Some(message) = codec.decode(&mut stream).unwrap() {
                    black_box(Reply::decode(Op::READ, message.op, &message.payload).unwrap());
                }
            },
            BatchSize::SmallInput,
        );
    });
}

criterion_group!(benches, requests, events, stream);
criterion_main!(benches);
