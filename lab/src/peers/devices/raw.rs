//! The raw loop: the fewest requests with which the same frontend and backend trees come and go, in
//! as few waits as there can be. It knows what no toolstack may assume: that nothing is in its way,
//! that all drivers answer, and which parents are empty at the end.
//!
//! A transaction's START goes out together with the requests of the one before, so that the server
//! has never nothing to do; and all wait for their drivers at the same time, with one watch above all.

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail};
use peer_program::Figures;
use xs_proto::{Message, Op, TxId};

use super::link::Link;
use super::world::{BACKENDS, Disk, PER_DOMAIN};

/// What a reply is about: `number << 2` and one of these.
const PART: u32 = 0;
const STARTED: u32 = 1;
const ENDED: u32 = 2;
const STATE: u32 = 3;

struct Loop<'a> {
    link: Link,
    target: &'a str,
    /// The state of each backend.
    states: Vec<u8>,
    retries: usize,
}

/// The lives of so many disks; microseconds each, the requests of each, and how often one conflicted.
pub(super) fn run(socket: &Path, disks: usize, target: &str) -> Result<Figures> {
    let mut raw = Loop { link: Link::connect(socket)?, target, states: vec![0; disks], retries: 0 };
    let begun = Instant::now();
    raw.link.put(Op::WATCH, PART, TxId::NONE, &[BACKENDS, "\0all\0"]);
    raw.each(disks, Loop::add)?;
    raw.all_reach(4)?;
    let attached = begun.elapsed();
    raw.each(disks, Loop::close)?;
    raw.all_reach(6)?;
    raw.each(disks, Loop::destroy)?;
    let took = begun.elapsed();
    Ok(super::lives::figures(disks, [attached, took - attached], (raw.link.requests, raw.retries)))
}

impl Loop<'_> {
    /// A transaction for each disk.
    fn each(&mut self, disks: usize, body: impl Fn(&mut Self, Disk, TxId)) -> Result<()> {
        let mut todo: Vec<usize> = (0..disks).rev().collect();
        self.start();
        while !todo.is_empty() {
            // Taken from the end: those that conflicted come next.
            let Some(disk) = todo.pop().map(Disk) else { break };
            let tx_id = self.started(&mut todo)?;
            body(self, disk, tx_id);
            self.link.put(Op::TRANSACTION_END, (disk.0 as u32) << 2 | ENDED, tx_id, &["T\0"]);
            if todo.is_empty() {
                self.until(&mut todo, ENDED, disk)?;
            }
            if !todo.is_empty() {
                self.start();
            }
        }
        Ok(())
    }

    fn start(&mut self) {
        self.link.put(Op::TRANSACTION_START, STARTED, TxId::NONE, &["\0"]);
    }

    fn started(&mut self, conflicted: &mut Vec<usize>) -> Result<TxId> {
        loop {
            let message = self.link.next()?;
            if message.op == Op::TRANSACTION_START {
                let text = String::from_utf8_lossy(&message.payload);
                return Ok(TxId(text.trim_end_matches('\0').parse()?));
            }
            self.take(&message, conflicted)?;
        }
    }

    /// Takes what comes until the reply about a disk.
    fn until(&mut self, conflicted: &mut Vec<usize>, about: u32, disk: Disk) -> Result<()> {
        loop {
            let message = self.link.next()?;
            self.take(&message, conflicted)?;
            if message.op != Op::WATCH_EVENT && message.req_id == ((disk.0 as u32) << 2 | about) {
                return Ok(());
            }
        }
    }

    fn all_reach(&mut self, state: u8) -> Result<()> {
        for disk in 0..self.states.len() {
            while self.states[disk] < state {
                let message = self.link.next()?;
                self.take(&message, &mut Vec::new())?;
            }
        }
        Ok(())
    }

    fn take(&mut self, message: &Message, conflicted: &mut Vec<usize>) -> Result<()> {
        let (about, number) = (message.req_id & 3, (message.req_id >> 2) as usize);
        match message.op {
            Op::WATCH_EVENT => {
                let text = String::from_utf8_lossy(&message.payload);
                let path = text.split('\0').next().unwrap_or_default();
                if let Some(Disk(number)) = Disk::of_state(path).filter(|disk| self.states[disk.0] < 6) {
                    self.link.put(Op::READ, (number as u32) << 2 | STATE, TxId::NONE, &[path, "\0"]);
                }
            }
            Op::ERROR if about == ENDED && message.payload.starts_with(b"EAGAIN") => {
                self.retries += 1;
                conflicted.push(number);
            }
            // Of one that is removed.
            Op::ERROR if about == STATE => {}
            Op::ERROR => {
                bail!("{}: the server answered {}", Disk(number).backend(), message.payload.escape_ascii())
            }
            Op::READ if about == STATE => {
                if let [digit] = message.payload[..] {
                    self.states[number] = self.states[number].max(digit.wrapping_sub(b'0'));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn add(&mut self, disk: Disk, tx_id: TxId) {
        let (frontend, backend, recorded) = (disk.frontend(), disk.backend(), disk.recorded());
        self.write(tx_id, (&recorded, "frontend"), &frontend);
        self.write(tx_id, (&recorded, "backend"), &backend);
        let mut directory = |path: &str, owners: &str| {
            self.link.put(Op::MKDIR, PART, tx_id, &[path, "\0"]);
            self.link.put(Op::SET_PERMS, PART, tx_id, &[path, "\0", owners]);
        };
        directory(&frontend, &format!("n{}\0r0\0", disk.domid()));
        directory(&backend, &format!("n0\0r{}\0", disk.domid()));
        self.write(tx_id, (&frontend, "backend"), &backend);
        for (key, value) in disk.frontend_keys() {
            self.write(tx_id, (&frontend, key), &value);
        }
        self.write(tx_id, (&backend, "frontend"), &frontend);
        for (key, value) in disk.backend_keys(self.target) {
            self.write(tx_id, (&backend, key), &value);
        }
    }

    fn close(&mut self, disk: Disk, tx_id: TxId) {
        let backend = disk.backend();
        self.link.put(Op::READ, PART, tx_id, &[&backend, "/state\0"]);
        self.write(tx_id, (&backend, "online"), "0");
        self.write(tx_id, (&backend, "state"), "5");
    }

    /// With the last disk of a domain the parents go, and with the last of all that of all backends.
    fn destroy(&mut self, disk: Disk, tx_id: TxId) {
        let is_last = disk.0 + 1 == self.states.len();
        let ends_domain = is_last || disk.0 % PER_DOMAIN == PER_DOMAIN - 1;
        let levels = usize::from(ends_domain);
        for (path, levels) in [
            (disk.frontend(), levels),
            (disk.recorded(), levels),
            (disk.backend(), levels + usize::from(is_last)),
        ] {
            let mut path = &*path;
            for _ in 0..levels {
                path = path.rsplit_once('/').map_or(path, |(parent, _)| parent);
            }
            self.link.put(Op::RM, PART, tx_id, &[path, "\0"]);
        }
    }

    fn write(&mut self, tx_id: TxId, (directory, key): (&str, &str), value: &str) {
        self.link.put(Op::WRITE, PART, tx_id, &[directory, "/", key, "\0", value]);
    }
}
