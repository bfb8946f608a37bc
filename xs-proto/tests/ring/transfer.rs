//! Bytes come out as they went in, in whatever pieces they are moved and wherever the indexes
//! begin.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::SeqCst};

use bytes::{Bytes, BytesMut};
use proptest::collection::vec;
use proptest::prelude::*;
use tokio_util::codec::{Decoder, Encoder};
use xs_proto::ring::{ClientEnd, Page, RING_SIZE, RingError, ServerEnd};
use xs_proto::{Features, Message, MessageCodec, Op, TxId};

use crate::end::End;

/// An end as the header describes it, one byte at a time and with all it knows in the page: what
/// ours are compared with.
struct Plain<'a> {
    out: (&'a [AtomicU8; RING_SIZE], &'a AtomicU32, &'a AtomicU32),
    input: (&'a [AtomicU8; RING_SIZE], &'a AtomicU32, &'a AtomicU32),
}

impl<'a> Plain<'a> {
    fn client(page: &'a Page) -> Self {
        Self {
            out: (&page.req, &page.req_prod, &page.req_cons),
            input: (&page.rsp, &page.rsp_prod, &page.rsp_cons),
        }
    }

    fn server(page: &'a Page) -> Self {
        let Self { out, input } = Self::client(page);
        Self { out: input, input: out }
    }
}

impl End for Plain<'_> {
    fn send(&mut self, bytes: &[u8]) -> Result<usize, RingError> {
        let (ring, prod, cons) = self.out;
        let mut sent = 0;
        while sent < bytes.len() && prod.load(SeqCst) != cons.load(SeqCst).wrapping_add(1024) {
            ring[prod.load(SeqCst) as usize & 1023].store(bytes[sent], SeqCst);
            prod.fetch_add(1, SeqCst);
            sent += 1;
        }
        Ok(sent)
    }

    fn receive(&mut self, into: &mut BytesMut, max: usize) -> Result<usize, RingError> {
        let (ring, prod, cons) = self.input;
        let mut received = 0;
        while received < max && prod.load(SeqCst) != cons.load(SeqCst) {
            into.extend([ring[cons.load(SeqCst) as usize & 1023].load(SeqCst)]);
            cons.fetch_add(1, SeqCst);
            received += 1;
        }
        Ok(received)
    }

    fn has_input(&mut self) -> Result<bool, RingError> {
        Ok(self.input.1.load(SeqCst) != self.input.2.load(SeqCst))
    }

    fn has_room(&mut self) -> Result<bool, RingError> {
        Ok(self.out.1.load(SeqCst) != self.out.2.load(SeqCst).wrapping_add(1024))
    }

    fn take_notify(&mut self) -> bool {
        true
    }
}

/// One end's turn: it sends and receives up to so many bytes.
#[derive(Clone, Copy, Debug)]
struct Turn {
    first: bool,
    send: usize,
    receive: usize,
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let size = || prop_oneof![0..4_usize, 0..200_usize, 1000..1100_usize, Just(5000)];
    let turn = (any::<bool>(), size(), size());
    vec(turn.prop_map(|(first, send, receive)| Turn { first, send, receive }), 0..60)
}

/// Any index; often one that soon overflows.
fn index() -> impl Strategy<Value = u32> {
    prop_oneof![any::<u32>(), (u32::MAX - 3000)..=u32::MAX, 0..3000_u32]
}

fn stream() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..6000)
}

/// What goes from one end to the other.
struct Way {
    stream: Vec<u8>,
    sent: usize,
    received: BytesMut,
}

impl Way {
    fn new(stream: Vec<u8>) -> Self {
        Self { stream, sent: 0, received: BytesMut::new() }
    }

    fn in_ring(&self) -> usize {
        self.sent - self.received.len()
    }

    fn send(&mut self, end: &mut impl End, most: usize) {
        assert_eq!(end.has_room().unwrap(), self.in_ring() < RING_SIZE);
        let bytes = &self.stream[self.sent..];
        let bytes = &bytes[..bytes.len().min(most)];
        let sent = end.send(bytes).unwrap();
        assert_eq!(sent, bytes.len().min(RING_SIZE - self.in_ring()));
        self.sent += sent;
    }

    fn receive(&mut self, end: &mut impl End, most: usize) {
        assert_eq!(end.has_input().unwrap(), self.in_ring() > 0);
        let there = self.in_ring();
        assert_eq!(end.receive(&mut self.received, most).unwrap(), there.min(most));
    }
}

fn exchange(mut first: impl End, mut second: impl End, streams: (Vec<u8>, Vec<u8>), turns: Vec<Turn>) {
    let (mut forth, mut back) = (Way::new(streams.0), Way::new(streams.1));
    // What the turns leave undone is done in large steps; a ring empties in each of them.
    let steps = forth.stream.len().max(back.stream.len()) / RING_SIZE + 2;
    let rest = [true, false].map(|first| Turn { first, send: RING_SIZE, receive: RING_SIZE });
    for Turn { first: firsts, send, receive } in turns.into_iter().chain(rest.repeat(steps)) {
        if firsts {
            forth.send(&mut first, send);
            back.receive(&mut first, receive);
        } else {
            back.send(&mut second, send);
            forth.receive(&mut second, receive);
        }
    }
    assert_eq!(forth.received, forth.stream);
    assert_eq!(back.received, back.stream);
}

proptest! {
    #[test]
    fn a_client_moves_bytes_from_any_indexes_on(
        req in index(), rsp in index(), forth in stream(), back in stream(), turns in turns()
    ) {
        let page = Page::new();
        page.req_prod.store(req, SeqCst);
        page.req_cons.store(req, SeqCst);
        page.rsp_prod.store(rsp, SeqCst);
        page.rsp_cons.store(rsp, SeqCst);
        exchange(ClientEnd::attach(&page).unwrap(), Plain::server(&page), (forth, back), turns);
    }

    #[test]
    fn a_server_moves_bytes(forth in stream(), back in stream(), turns in turns()) {
        let page = Page::new();
        exchange(ServerEnd::new(&page, Features::NONE), Plain::client(&page), (forth, back), turns);
    }

    /// Also if others were attached before, in the middle of something.
    #[test]
    fn both_ends_move_bytes(
        left in vec(any::<u8>(), 0..2000), forth in stream(), back in stream(), turns in turns()
    ) {
        let page = Page::new();
        let _ = ServerEnd::new(&page, Features::NONE);
        Plain::client(&page).send(&left).unwrap();
        Plain::server(&page).receive(&mut BytesMut::new(), 700).unwrap();
        // A server begins at 0 each time, a client where it finds the page.
        let server = ServerEnd::new(&page, Features::NONE);
        exchange(ClientEnd::attach(&page).unwrap(), server, (forth, back), turns);
    }

    /// As they are used: messages of up to four rings, cut by the codec on the other side.
    #[test]
    fn messages_longer_than_the_ring_arrive(
        payloads in vec(prop_oneof![0..30_usize, 4000..4097_usize], 1..8), piece in 1..1500_usize
    ) {
        let messages: Vec<_> = (1..).zip(payloads).map(|(req_id, len)| Message {
            op: Op::WRITE,
            req_id,
            tx_id: TxId::NONE,
            payload: Bytes::from(vec![req_id as u8; len]),
        }).collect();
        let mut out = BytesMut::new();
        for message in &messages {
            MessageCodec::default().encode(message.clone(), &mut out).unwrap();
        }
        let page = Page::new();
        let mut server = ServerEnd::new(&page, Features::NONE);
        let mut client = ClientEnd::attach(&page).unwrap();
        let (mut input, mut arrived) = (BytesMut::new(), Vec::new());
        while !out.is_empty() {
            let sent = client.send(&out[..out.len().min(piece)]).unwrap();
            let _ = out.split_to(sent);
            prop_assert!(server.receive(&mut input, piece).unwrap() > 0);
            while let Some(message) = MessageCodec::default().decode(&mut input).unwrap() {
                arrived.push(message);
            }
        }
        prop_assert_eq!(arrived, messages);
    }
}
