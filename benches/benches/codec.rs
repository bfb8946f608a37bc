//! Requests and replies to bytes and back. No I/O.

use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tokio_util::codec::Decoder;
use xs_proto::{Message, MessageCodec, Op, Path, Reply, Request, Token, TxId, WatchEvent};

/// Messages in a stream; a read brings about so many.
const COUNT: u32 = 256;

/// A path as device code uses them.
fn path() -> Path {
    Path::new("/local/domain/0/backend/vbd/12/51712/state").unwrap()
}

/// A stream of `COUNT` messages, encoded one after the other.
fn stream(encode: impl Fn(u32, &mut BytesMut)) -> BytesMut {
    let mut out = BytesMut::new();
    for number in 0..COUNT {
        encode(number, &mut out);
    }
    out
}

/// What a reader does with a full buffer: cuts the messages out, and types each.
fn decode<T>(stream: BytesMut, typed: impl Fn(Message) -> T) {
    let (mut stream, mut codec) = (stream, MessageCodec::default());
    while let Some(message) = codec.decode(&mut stream).unwrap() {
        black_box(typed(message));
    }
}

/// Messages and bytes in a second, both ways, for what makes up most of the traffic.
fn messages(c: &mut Criterion) {
    let read = Request::Read(path());
    let write = Request::Write { path: path(), value: Bytes::from_static(b"4") };
    let event = WatchEvent { path: path(), token: Token::new("17").unwrap() };
    let value = Reply::Value(Bytes::from_static(b"4"));
    measure(
        c,
        "read request",
        |id, out| read.encode(id, TxId::NONE, out).unwrap(),
        |message| Request::decode(message.op, message.payload).unwrap(),
    );
    measure(
        c,
        "write request",
        |id, out| write.encode(id, TxId::NONE, out).unwrap(),
        |message| Request::decode(message.op, message.payload).unwrap(),
    );
    measure(
        c,
        "value reply",
        |id, out| value.encode(Op::READ, id, TxId::NONE, out).unwrap(),
        |message| Reply::decode(Op::READ, message.op, message.payload).unwrap(),
    );
    measure(
        c,
        "ok reply",
        |id, out| Reply::Ok.encode(Op::WRITE, id, TxId::NONE, out).unwrap(),
        |message| Reply::decode(Op::WRITE, message.op, message.payload).unwrap(),
    );
    measure(
        c,
        "watch event",
        |_, out| event.encode(out).unwrap(),
        |message| WatchEvent::decode(message.payload).unwrap(),
    );
}

fn measure<T>(
    c: &mut Criterion,
    name: &str,
    encode: impl Fn(u32, &mut BytesMut),
    typed: impl Fn(Message) -> T,
) {
    let full = stream(&encode);
    for throughput in [Throughput::Elements(COUNT.into()), Throughput::Bytes(full.len() as u64)] {
        let unit = if matches!(throughput, Throughput::Bytes(_)) { "bytes" } else { "messages" };
        let mut group = c.benchmark_group(format!("codec/{name}/{unit}"));
        group.throughput(throughput);
        let mut out = BytesMut::with_capacity(full.len());
        group.bench_function("encode", |b| {
            b.iter(|| {
                out.clear();
                (0..COUNT).for_each(|id| encode(id, &mut out));
            });
        });
        group.bench_function("decode", |b| {
            b.iter_batched(|| full.clone(), |stream| decode(stream, &typed), BatchSize::SmallInput);
        });
    }
}

criterion_group!(benches, messages);
criterion_main!(benches);
