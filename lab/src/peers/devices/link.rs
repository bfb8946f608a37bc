//! A blocking connection of the simulated drivers and of the raw loop: what is put is sent with one
//! write, right before the connection waits for more.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::BytesMut;
use tokio_util::codec::Decoder;
use xs_proto::{Header, Message, MessageCodec, Op, TxId};

/// How long a server may be silent.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Link {
    stream: UnixStream,
    codec: MessageCodec,
    received: BytesMut,
    unsent: BytesMut,
    /// Requests so far.
    pub(super) requests: usize,
    buffer: Box<[u8]>,
}

impl Link {
    pub(super) fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).context("connecting to the server")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let (received, unsent) = Default::default();
        let buffer = vec![0; 64 << 10].into();
        Ok(Self { stream, codec: MessageCodec::default(), received, unsent, requests: 0, buffer })
    }

    /// Waits for ever, as drivers do.
    pub(super) fn patient(socket: &Path) -> Result<Self> {
        let link = Self::connect(socket)?;
        link.stream.set_read_timeout(None)?;
        Ok(link)
    }

    /// Puts a request, whose reply will have this number.
    pub(super) fn put(&mut self, op: Op, number: u32, tx_id: TxId, payload: &[&str]) {
        let len = payload.iter().map(|part| part.len()).sum::<usize>() as u32;
        Header { op, req_id: number, tx_id, len }.encode(&mut self.unsent);
        payload.iter().for_each(|part| self.unsent.extend_from_slice(part.as_bytes()));
        self.requests += 1;
    }

    /// The next message: a reply, an event, or an error.
    pub(super) fn next(&mut self) -> Result<Message> {
        loop {
            if let Some(message) = self.codec.decode(&mut self.received)? {
                return Ok(message);
            }
            if !self.unsent.is_empty() {
                self.stream.write_all(&self.unsent).context("sending to the server")?;
                self.unsent.clear();
            }
            let got = match self.stream.read(&mut self.buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                got => got.context("waiting for the server")?,
            };
            ensure!(got > 0, "the server closed the connection");
            self.received.extend_from_slice(&self.buffer[..got]);
        }
    }

    /// Asks one thing that must succeed, and waits for the reply.
    pub(super) fn ask(&mut self, op: Op, payload: &[&str]) -> Result<Message> {
        self.put(op, 0, TxId::NONE, payload);
        loop {
            let reply = self.next()?;
            match reply.op {
                Op::WATCH_EVENT => {}
                Op::ERROR => {
                    bail!("{op:?} {payload:?}: the server answered {}", reply.payload.escape_ascii())
                }
                _ => return Ok(reply),
            }
        }
    }
}
