//! A netlink socket for requests to the kernel's network configuration, one after the other.
//!
//! It is not asynchronous on purpose: the kernel does the work of a request while it is being sent, under a lock of
//! its own, and has the answer ready when the call returns. So a runtime's readiness would not keep a thread from
//! waiting; it would only add its costs.

use std::io;

use netlink_packet_core::{
    DecodeError, ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer,
    NetlinkMessage, NetlinkPayload, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::constants::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use rustix::io::Errno;
use tracing::debug;

use super::error::Refusal;

/// Room for whatever the kernel puts into one datagram.
const DATAGRAM: usize = 32 << 10;

/// The header of the request that an answer repeats before the kernel's words.
const REPEATED: usize = 16;

/// The attribute of an answer with the kernel's words.
const WORDS: u16 = 1;

/// How often to ask for a list again that changed while it was being read.
const DUMPS: usize = 5;

/// A socket for requests.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: Socket,
    buffer: Vec<u8>,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket in the network namespace of this thread.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // What a list is to be restricted to is heeded, where the kernel can (since Linux 4.20), and refusals are
        // explained (since 4.12).
        _ = socket.set_netlink_get_strict_chk(true);
        _ = socket.set_ext_ack(true).and_then(|()| socket.set_cap_ack(true));
        Ok(Self { socket, buffer: Vec::with_capacity(DATAGRAM), sequence: 0 })
    }

    /// Makes a request; yields what the kernel answered beside that it did it.
    pub(super) fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, Refusal> {
        self.exchange(message, NLM_F_ACK | flags).map(|(messages, _)| messages)
    }

    /// Asks for a list.
    pub(super) fn dump(
        &mut self,
        message: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, Refusal> {
        for _ in 0..DUMPS {
            if let (messages, true) = self.exchange(message.clone(), NLM_F_DUMP)? {
                return Ok(messages);
            }
        }
        Err(Refusal::bare(Errno::AGAIN))
    }

    /// Makes a request; yields the answers, and whether they are one whole.
    fn exchange(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(Vec<RouteNetlinkMessage>, bool), Refusal> {
        self.sequence += 1;
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        self.buffer.clear();
        self.buffer.resize(message.buffer_len(), 0);
        message.serialize(&mut self.buffer);
        retried(|| self.socket.send(&self.buffer, 0))?;
        let (mut answers, mut whole) = (Vec::new(), true);
        loop {
            self.buffer.clear();
            retried(|| self.socket.recv(&mut self.buffer, 0))?;
            let mut rest = &self.buffer[..];
            while !rest.is_empty() {
                let length = NetlinkBuffer::new_checked(rest).map_err(unreadable)?.length();
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest);
                // Messages are aligned to 4 bytes.
                let length = usize::try_from(length).unwrap_or(usize::MAX).next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
                let answer = match answer {
                    Ok(answer) => answer,
                    // One strange interface of a host is nothing to fail for.
                    Err(error) if flags & NLM_F_DUMP == NLM_F_DUMP => {
                        debug!(%error, "an entry of a list cannot be read");
                        continue;
                    }
                    Err(error) => return Err(unreadable(error)),
                };
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                whole &= answer.header.flags & NLM_F_DUMP_INTR == 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => answers.push(message),
                    NetlinkPayload::Error(ErrorMessage { code: None, .. }) => return Ok((answers, whole)),
                    NetlinkPayload::Error(error) => return Err(refusal(&error)),
                    NetlinkPayload::Done(done) if done.code == 0 => return Ok((answers, whole)),
                    NetlinkPayload::Done(done) => {
                        return Err(Refusal::bare(Errno::from_raw_os_error(done.code.abs())));
                    }
                    _ => {}
                }
            }
        }
    }
}

/// Repeats a call that a signal interrupted.
fn retried<T>(mut call: impl FnMut() -> io::Result<T>) -> Result<T, Refusal> {
    loop {
        match call() {
            Ok(result) => return Ok(result),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Refusal::from_io(&error)),
        }
    }
}

fn refusal(error: &ErrorMessage) -> Refusal {
    let attributes = error.header.get(REPEATED..).unwrap_or_default();
    let words =
        NlasIterator::new(attributes).map_while(Result::ok).find(|attribute| attribute.kind() == WORDS);
    let words = words.map(|words| {
        let text = words.value();
        String::from_utf8_lossy(text.strip_suffix(b"\0").unwrap_or(text)).into_owned()
    });
    Refusal { errno: Errno::from_raw_os_error(error.raw_code().abs()), words }
}

fn unreadable(error: DecodeError) -> Refusal {
    Refusal { errno: Errno::BADMSG, words: Some(format!("the kernel's answer cannot be read: {error}")) }
}
