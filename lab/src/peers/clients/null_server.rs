//! The least that a server can do for the same bytes, so that what is measured is the client.
//!
//! A thread per connection reads as many requests at once as there are, and sends all that comes
//! of them with one write. Where there is a CPU for it, it does not sleep between requests: to wake
//! a CPU takes longer than most clients do. A READ gets `4` and everything else OK; a WRITE fires
//! the watches of its path and of those above it, as far as there are any. Writes to a client
//! block, so one that takes its events slowly slows down who causes them, and nothing piles up.

use std::hint;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::{Buf, BufMut, BytesMut};
use rustc_hash::FxHashMap;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use xs_proto::{HEADER_LEN, Header, Op, PAYLOAD_MAX, TxId};

const BUFFER: usize = 256 << 10;

/// For how long it looks for a request before it sleeps, with several CPUs.
const AWAKE: Duration = Duration::from_millis(1);

#[derive(Default)]
struct Server {
    /// Each connection, and what is to be sent to it.
    connections: Vec<(UnixStream, BytesMut)>,
    /// Those of a path.
    watches: FxHashMap<Box<[u8]>, Vec<Watch>>,
}

struct Watch {
    /// The number of its connection.
    owner: usize,
    /// Its token, with the NUL.
    token: Box<[u8]>,
}

/// Serves a socket until the process is ended. Prints a line when it takes connections.
pub(super) fn serve(socket: &Path) -> Result<()> {
    let listener = UnixListener::bind(socket).with_context(|| format!("binding {}", socket.display()))?;
    println!("ready");
    let server = Arc::new(Mutex::new(Server::default()));
    for number in 0.. {
        let (stream, _) = listener.accept().context("taking a connection")?;
        let sender = stream.try_clone().context("sharing a connection")?;
        lock(&server).connections.push((sender, BytesMut::new()));
        let server = server.clone();
        thread::spawn(move || {
            talk(&server, number, &stream);
            // The other handle to it stays.
            let _ = stream.shutdown(Shutdown::Both);
            for watches in lock(&server).watches.values_mut() {
                watches.retain(|watch| watch.owner != number);
            }
        });
    }
    Ok(())
}

fn lock(server: &Mutex<Server>) -> impl std::ops::DerefMut<Target = Server> {
    server.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves a connection until it ends, or sends what is no message.
fn talk(server: &Mutex<Server>, number: usize, stream: &UnixStream) {
    let (mut buffer, mut input) = (vec![0; BUFFER], BytesMut::new());
    let several_cpus = thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1);
    let awake = if several_cpus { AWAKE } else { Duration::ZERO };
    while let Some(got @ 1..) = receive(stream, &mut buffer, awake) {
        input.extend_from_slice(&buffer[..got]);
        let mut server = lock(server);
        while let Some(head) = input.first_chunk() {
            let header = Header::decode(head);
            let len = header.len as usize;
            if len > PAYLOAD_MAX {
                return;
            }
            let Some(payload) = input.get(HEADER_LEN..HEADER_LEN + len) else { break };
            server.answer(number, header, payload);
            input.advance(HEADER_LEN + len);
        }
        for (stream, output) in &mut server.connections {
            // Who is gone needs nothing any more.
            let _ = stream.write_all(output);
            output.clear();
        }
    }
}

/// Receives what there is, and looks for it so long before it sleeps. `None` if that fails.
fn receive(stream: &UnixStream, buffer: &mut [u8], awake: Duration) -> Option<usize> {
    let begun = Instant::now();
    loop {
        let looks = begun.elapsed() < awake;
        let flags = if looks { RecvFlags::DONTWAIT } else { RecvFlags::empty() };
        match recv(stream, &mut *buffer, flags) {
            Err(Errno::AGAIN) if looks => hint::spin_loop(),
            received => return received.ok().map(|(_, got)| got),
        }
    }
}

impl Server {
    fn answer(&mut self, number: usize, request: Header, payload: &[u8]) {
        let reply: &[u8] = match request.op {
            Op::READ => b"4",
            Op::TRANSACTION_START => b"1\0",
            _ => b"OK\0",
        };
        let output = &mut self.connections[number].1;
        Header { len: reply.len() as u32, ..request }.encode(output);
        output.put_slice(reply);
        if request.op == Op::READ {
            return;
        }

        let path = payload.split(|byte| *byte == 0).next().unwrap_or_default();
        let token = &payload[payload.len().min(path.len() + 1)..];
        match request.op {
            Op::WATCH => {
                event(output, path, token);
                let watch = Watch { owner: number, token: token.into() };
                self.watches.entry(path.into()).or_default().push(watch);
            }
            Op::UNWATCH => {
                if let Some(watches) = self.watches.get_mut(path) {
                    watches.retain(|watch| watch.owner != number || *watch.token != *token);
                    if watches.is_empty() {
                        self.watches.remove(path);
                    }
                }
            }
            Op::WRITE if request.tx_id == TxId::NONE => {
                let mut above = Some(path);
                while let Some(at) = above {
                    for watch in self.watches.get(at).into_iter().flatten() {
                        event(&mut self.connections[watch.owner].1, path, &watch.token);
                    }
                    above = at.iter().rposition(|byte| *byte == b'/').map(|end| &at[..end]);
                }
            }
            _ => {}
        }
    }
}

fn event(output: &mut BytesMut, path: &[u8], token: &[u8]) {
    let len = (path.len() + 1 + token.len()) as u32;
    Header { op: Op::WATCH_EVENT, req_id: 0, tx_id: TxId::NONE, len }.encode(output);
    output.extend_from_slice(path);
    output.extend_from_slice(b"\0");
    output.extend_from_slice(token);
}
