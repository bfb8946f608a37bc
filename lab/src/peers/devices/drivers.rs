//! The drivers of all disks: the backends on one connection, the frontends on another, each in a
//! thread that answers all events that have arrived with one write.
//!
//! A backend goes from 1 to 2, and to 4 when its frontend has connected; it closes when its frontend
//! has. It waits for no hotplug script.

use std::path::Path;
use std::thread;

use anyhow::Result;
use xs_proto::{Message, Op, TxId};

use super::link::Link;
use super::world::{BACKENDS, Disk};

/// What a reply is about: `number << 2` and one of these.
const NOTHING: u32 = 0;
const BACKEND_STATE: u32 = 1;
const FRONTEND_STATE: u32 = 2;

const RING: [(&str, &str); 2] = [("ring-ref", "8"), ("event-channel", "17")];

/// Starts the drivers of so many disks, and returns when all their watches are set. They end with
/// their server.
pub(super) fn start(socket: &Path, disks: usize) -> Result<()> {
    let mut backends = Side::new(socket, disks)?;
    backends.link.ask(Op::WATCH, &[BACKENDS, "\0", "backends\0"])?;
    let mut frontends = Side::new(socket, disks)?;
    for disk in (0..disks).map(Disk) {
        frontends.link.ask(Op::WATCH, &[&disk.backend(), "/state\0", "backend\0"])?;
    }
    // An error is the end of the server.
    thread::spawn(move || backends.drive(Side::backend));
    thread::spawn(move || frontends.drive(Side::frontend));
    Ok(())
}

/// The program: starts the drivers, says so, and ends with its standard input.
pub(super) fn run(socket: &Path, disks: usize) -> Result<()> {
    start(socket, disks)?;
    peer_program::ready();
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}

struct Side {
    link: Link,
    /// The state of each of its devices, 0 as long as it has not been seen.
    states: Vec<u8>,
}

impl Side {
    fn new(socket: &Path, disks: usize) -> Result<Self> {
        Ok(Self { link: Link::patient(socket)?, states: vec![0; disks] })
    }

    fn drive(&mut self, react: fn(&mut Self, Disk, u32, u8)) -> Result<()> {
        loop {
            let Message { op, req_id, payload, .. } = self.link.next()?;
            if op == Op::WATCH_EVENT {
                let text = String::from_utf8_lossy(&payload);
                let Some((path, token)) = text.trim_end_matches('\0').split_once('\0') else { continue };
                let about = match token.parse() {
                    Ok(number) => (number, FRONTEND_STATE),
                    Err(_) => match Disk::of_state(path) {
                        Some(Disk(number)) => (number as u32, BACKEND_STATE),
                        None => continue,
                    },
                };
                self.link.put(Op::READ, about.0 << 2 | about.1, TxId::NONE, &[path, "\0"]);
            } else if let (Op::READ, [digit]) = (op, &payload[..]) {
                react(self, Disk((req_id >> 2) as usize), req_id & 3, digit.wrapping_sub(b'0'));
            }
        }
    }

    fn backend(&mut self, disk: Disk, about: u32, state: u8) {
        let frontend = disk.frontend();
        let Disk(number) = disk;
        match (about, state, self.states[number]) {
            (BACKEND_STATE, 1, 0) => {
                self.put(Op::WATCH, &[&frontend, "/state\0", &number.to_string(), "\0"]);
                self.advance(&disk.backend(), number, 2);
            }
            (FRONTEND_STATE, 4, 2) => {
                for (key, _) in RING {
                    self.put(Op::READ, &[&frontend, "/", key, "\0"]);
                }
                self.advance(&disk.backend(), number, 4);
            }
            (FRONTEND_STATE, 6, 4) => {
                self.put(Op::UNWATCH, &[&frontend, "/state\0", &number.to_string(), "\0"]);
                self.advance(&disk.backend(), number, 6);
            }
            _ => {}
        }
    }

    fn frontend(&mut self, disk: Disk, about: u32, backend: u8) {
        let frontend = disk.frontend();
        match (about, backend, self.states[disk.0]) {
            (BACKEND_STATE, 2, 0) => {
                for (key, value) in RING {
                    self.put(Op::WRITE, &[&frontend, "/", key, "\0", value]);
                }
                self.advance(&frontend, disk.0, 4);
            }
            (BACKEND_STATE, 5, 4) => self.advance(&frontend, disk.0, 6),
            _ => {}
        }
    }

    fn advance(&mut self, directory: &str, number: usize, state: u8) {
        self.states[number] = state;
        self.put(Op::WRITE, &[directory, "/state\0", &state.to_string()]);
    }

    fn put(&mut self, op: Op, payload: &[&str]) {
        self.link.put(op, NOTHING, TxId::NONE, payload);
    }
}
