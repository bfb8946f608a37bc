//! Two processes, a `memfd` as the page and two `eventfd`s as the event channel: the drivers do
//! what the head of the module says, and sleep.
//!
//! The test starts itself once more as the guest and hands it the three descriptors over a
//! socket, its standard input.

use std::env;
use std::io::{IoSlice, IoSliceMut, stdin};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};

use bytes::{Buf, Bytes, BytesMut};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tokio_util::codec::{Decoder, Encoder};
use xs_proto::ring::{ClientEnd, Mapping, PAGE_SIZE, ServerEnd};
use xs_proto::{Features, Message, MessageCodec, Op, PAYLOAD_MAX, TxId};

use crate::end::End;

const NAME: &str = "processes::two_processes_exchange_thousands_of_messages";
/// Set for the process that is to be the guest.
const GUEST: &str = "XS_PROTO_TEST_GUEST";

const MESSAGES: u32 = 5000;
/// Requests that the guest has in flight.
const WINDOW: u32 = 20;
/// Bytes that the server wants to get rid of before it takes in more. The guest always takes in:
/// two that do not would wait for each other.
const OUTPUT_MAX: usize = 2 * PAYLOAD_MAX;
/// Who sleeps for so long has missed a notification, or the other process is gone.
const PATIENCE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

#[test]
fn two_processes_exchange_thousands_of_messages() {
    if env::var_os(GUEST).is_some() {
        return guest();
    }
    let page = memfd_create("ring", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&page, PAGE_SIZE as u64).unwrap();
    fcntl_add_seals(&page, SealFlags::SHRINK).unwrap();
    let [event, guests_event] = [(); 2].map(|()| eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK));
    let (event, guests_event) = (event.unwrap(), guests_event.unwrap());
    let end = ServerEnd::new(Mapping::new(&page).unwrap(), Features::NONE);

    let (socket, guests_socket) = UnixStream::pair().unwrap();
    // All in one statement: the command, with its end of the socket, is gone after it.
    let guest = Command::new(env::current_exe().unwrap())
        .args([NAME, "--exact", "--nocapture"])
        .env(GUEST, "")
        .stdin(OwnedFd::from(guests_socket))
        .spawn();
    let mut guest = Guest(guest.unwrap());
    let rights = [page.as_fd(), guests_event.as_fd(), event.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&rights)));
    sendmsg(&socket, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();

    let mut line = Line::new(end, event, guests_event, OUTPUT_MAX);
    for _ in 0..MESSAGES {
        let message = line.next();
        line.push(answer(message));
    }
    while !line.output.is_empty() {
        line.turn();
    }
    // Its end of the socket closes when it is gone.
    wait_for(&socket);
    assert!(guest.0.wait().unwrap().success());
}

/// The other process.
fn guest() {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(stdin(), &mut [IoSliceMut::new(&mut [0])], &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let received = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors.collect::<Vec<_>>()),
        _ => None,
    });
    let [page, event, peer]: [OwnedFd; 3] = received.unwrap().try_into().unwrap();
    let end = ClientEnd::attach(Mapping::new(&page).unwrap()).unwrap();
    let mut line = Line::new(end, event, peer, usize::MAX);
    for req_id in 0..MESSAGES + WINDOW {
        if req_id < MESSAGES {
            line.push(request(req_id));
        }
        if let Some(oldest) = req_id.checked_sub(WINDOW) {
            assert_eq!(line.next(), answer(request(oldest)));
        }
    }
}

struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The request of this number: short or long, and unlike the others.
fn request(req_id: u32) -> Message {
    let mut random = fastrand::Rng::with_seed(req_id.into());
    let most = [0, 20, 300, PAYLOAD_MAX][random.usize(0..4)];
    let mut payload = vec![0; random.usize(0..=most)];
    random.fill(&mut payload);
    Message { op: Op::WRITE, req_id, tx_id: TxId::NONE, payload: payload.into() }
}

fn answer(request: Message) -> Message {
    Message { payload: request.payload.iter().rev().copied().collect::<Bytes>(), ..request }
}

/// An end and its event channel.
struct Line<E> {
    end: E,
    event: OwnedFd,
    peer: OwnedFd,
    input: BytesMut,
    output: BytesMut,
    output_max: usize,
}

impl<E: End> Line<E> {
    fn new(end: E, event: OwnedFd, peer: OwnedFd, output_max: usize) -> Self {
        Self { end, event, peer, input: BytesMut::new(), output: BytesMut::new(), output_max }
    }

    fn push(&mut self, message: Message) {
        MessageCodec::default().encode(message, &mut self.output).unwrap();
    }

    fn next(&mut self) -> Message {
        loop {
            if let Some(message) = MessageCodec::default().decode(&mut self.input).unwrap() {
                return message;
            }
            self.turn();
        }
    }

    /// Moves what can be moved, and sleeps if nothing came in and nothing else can be done.
    fn turn(&mut self) {
        // Cleared before looking: what comes after it counts anew.
        let cleared = rustix::io::read(&self.event, &mut [0; 8]);
        assert!(matches!(cleared, Ok(8) | Err(Errno::AGAIN)));
        let before = self.input.len();
        loop {
            let sent = self.end.send(&self.output).unwrap();
            self.output.advance(sent);
            let received =
                if self.takes_input() { self.end.receive(&mut self.input, 1024).unwrap() } else { 0 };
            if sent + received == 0 {
                break;
            }
        }
        if self.end.take_notify() {
            rustix::io::write(&self.peer, &1_u64.to_ne_bytes()).unwrap();
        }
        let can_receive = self.takes_input() && self.end.has_input().unwrap();
        let can_send = !self.output.is_empty() && self.end.has_room().unwrap();
        if self.input.len() == before && !can_receive && !can_send {
            wait_for(&self.event);
        }
    }

    fn takes_input(&self) -> bool {
        self.output.len() <= self.output_max
    }
}

fn wait_for(descriptor: impl AsFd) {
    let ready = poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], Some(&PATIENCE)).unwrap();
    assert_eq!(ready, 1, "nothing happened within {} s", PATIENCE.tv_sec);
}
