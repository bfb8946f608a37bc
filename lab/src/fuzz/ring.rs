//! The shared page: what goes in at one end comes out at the other, whatever the pieces, and
//! whatever is written over the page, an end fails and does not fall.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use xs_proto::Features;
use xs_proto::ring::{ClientEnd, Page, RING_SIZE, RingError, RingFault, ServerEnd};

/// Where the indexes begin with a server of our own, so that they soon wrap.
const NEARLY_WRAPPED: u32 = u32::MAX - 1500;

/// Two ends of a page at work, beside two queues that show what they have to do.
///
/// Three bytes of the input are a step: what is done, and two for how much of it. The first three
/// choose the server.
pub fn ring(data: &[u8]) {
    let Some(([kind, ..], steps)) = data.split_first_chunk::<3>() else { return };
    let page = Page::new();
    let mut ends = Ends::new(&page, *kind);
    for step in steps.chunks_exact(3) {
        ends.step(step[0], step[1], step[2]);
    }
}

/// The bytes on their way in one direction.
#[derive(Default)]
struct Way {
    bytes: VecDeque<u8>,
    /// How many were sent so far, which decides what the next one is.
    count: u32,
}

impl Way {
    fn room(&self) -> usize {
        RING_SIZE - self.bytes.len()
    }

    /// The next bytes to be sent.
    fn next(&self, amount: usize) -> Vec<u8> {
        (self.count..).map(|count| (count ^ (count >> 8)) as u8).take(amount).collect()
    }

    fn sent(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        self.count += bytes.len() as u32;
    }
}

struct Ends<'a> {
    page: &'a Page,
    client: ClientEnd<&'a Page>,
    /// None if the server is the naive one below.
    server: Option<ServerEnd<&'a Page>>,
    features: Features,
    /// What each end has sent: requests and replies.
    ways: [Way; 2],
    /// The client has asked to begin anew, and the server has not done it yet.
    waiting: bool,
    /// The server has given up.
    fault: Option<RingFault>,
    /// Whether the client and the server have to notify each other.
    owed: [bool; 2],
    /// Errors that an end cannot recover from.
    dead: [Option<RingError>; 2],
    /// Somebody has written over the page: whether an end fails, and what it moves, is not said.
    spoiled: bool,
}

const CLIENT: usize = 0;
const SERVER: usize = 1;

impl<'a> Ends<'a> {
    fn new(page: &'a Page, kind: u8) -> Self {
        let features = if kind & 1 == 0 { Features::ERROR } else { Features::RECONNECT };
        let server = (kind & 2 == 0).then(|| ServerEnd::new(page, features));
        if server.is_none() {
            for index in [&page.req_cons, &page.req_prod, &page.rsp_cons, &page.rsp_prod] {
                index.store(NEARLY_WRAPPED, Ordering::Relaxed);
            }
        }
        Self {
            page,
            client: ClientEnd::attach(page).expect("a page in order"),
            server,
            features,
            ways: Default::default(),
            waiting: false,
            fault: None,
            owed: [false; 2],
            dead: [None; 2],
            spoiled: false,
        }
    }

    fn step(&mut self, deed: u8, low: u8, high: u8) {
        let amount = usize::from(u16::from_le_bytes([low, high])) % 2100;
        match deed % 16 {
            0 | 1 => self.send(CLIENT, amount),
            2 | 3 => self.receive(CLIENT, amount),
            4 | 5 => self.send(SERVER, amount),
            6 | 7 => self.receive(SERVER, amount),
            8 => self.look(),
            9 => self.notify(),
            10 => self.client_asks_to_begin_anew(),
            11 => self.server_begins_anew(),
            12 => self.client_attaches(),
            13 => self.domain_is_introduced_again(),
            14 => self.server_gives_up(RingFault(u32::from(low) + 1)),
            _ => self.spoil(low, high),
        }
    }

    /// What sending does, the page being in order.
    fn to_send(&self, end: usize, amount: usize) -> Result<usize, RingError> {
        let way = &self.ways[end];
        match self.fault {
            _ if end == CLIENT && self.waiting => Ok(0),
            Some(fault) => Err(RingError::Fault(fault)),
            None => Ok(amount.min(way.room())),
        }
    }

    /// What receiving does, the page being in order.
    fn to_receive(&self, end: usize, amount: usize) -> Result<usize, RingError> {
        let way = &self.ways[1 - end];
        match self.fault {
            _ if end == CLIENT && self.waiting => Ok(0),
            // What the server sent before it gave up can still be received.
            Some(fault) if end == SERVER || way.bytes.is_empty() => Err(RingError::Fault(fault)),
            _ => Ok(amount.min(way.bytes.len())),
        }
    }

    /// Compares what an end did with what it had to do.
    fn done<T: Copy + Eq + Debug>(
        &mut self,
        end: usize,
        got: Result<T, RingError>,
        expected: Result<T, RingError>,
    ) {
        if !self.spoiled {
            assert_eq!(got, expected);
        }
        if let Some(error) = self.dead[end] {
            assert_eq!(got, Err(error), "after it was dead");
        }
        // A client looks anew whether the server has given up.
        let stays = |error: &RingError| end == SERVER || !matches!(error, RingError::Fault(_));
        self.dead[end] = got.err().filter(stays);
    }

    fn send(&mut self, end: usize, amount: usize) {
        let expected = self.to_send(end, amount);
        let bytes = self.ways[end].next(amount);
        let got = match &mut self.server {
            _ if end == CLIENT => self.client.send(&bytes),
            Some(server) => server.send(&bytes),
            None => Ok(naive::send(&self.page.rsp, &self.page.rsp_prod, &self.page.rsp_cons, &bytes)),
        };
        let count = got.unwrap_or(0);
        assert!(count <= amount && count <= RING_SIZE, "{count} of {amount} bytes sent");
        self.owed[end] |= count > 0;
        self.done(end, got, expected);
        if !self.spoiled {
            self.ways[end].sent(&bytes[..count]);
        }
    }

    fn receive(&mut self, end: usize, amount: usize) {
        let expected = self.to_receive(end, amount);
        let mut bytes = Vec::new();
        let got = match &mut self.server {
            _ if end == CLIENT => self.client.receive(&mut bytes, amount),
            Some(server) => server.receive(&mut bytes, amount),
            None => {
                bytes = naive::receive(&self.page.req, &self.page.req_prod, &self.page.req_cons, amount);
                Ok(bytes.len())
            }
        };
        let count = got.unwrap_or(0);
        assert!(count <= amount && count <= RING_SIZE, "{count} of {amount} bytes received");
        assert_eq!(bytes.len(), count);
        self.owed[end] |= count > 0;
        self.done(end, got, expected);
        if !self.spoiled {
            assert!(self.ways[1 - end].bytes.drain(..count).eq(bytes), "other bytes than were sent");
        }
    }

    /// What both ends say before they go to sleep.
    fn look(&mut self) {
        let some = |count| count > 0;
        for end in [CLIENT, SERVER] {
            let expected = (self.to_receive(end, 1).map(some), self.to_send(end, 1).map(some));
            let got = match &mut self.server {
                _ if end == CLIENT => (self.client.has_input(), self.client.has_room()),
                Some(server) => (server.has_input(), server.has_room()),
                None => continue,
            };
            self.done(end, got.0, expected.0);
            self.done(end, got.1, expected.1);
        }
        let connected = self.client.is_connected();
        self.done(CLIENT, connected, Ok(!self.waiting));
    }

    /// Whether each end has to notify, and only once.
    fn notify(&mut self) {
        let server = self.server.as_mut().map_or(self.owed[SERVER], ServerEnd::take_notify);
        let got = [self.client.take_notify(), server];
        assert!(self.spoiled || got == self.owed, "{got:?} have to notify");
        assert!(!self.client.take_notify());
        self.owed = [false; 2];
    }

    fn client_asks_to_begin_anew(&mut self) {
        let done = self.client.reconnect();
        assert_eq!(done, self.client.server_features().contains(Features::RECONNECT));
        if done {
            self.waiting = true;
            self.owed[CLIENT] = true;
            self.dead[CLIENT] = None;
        }
    }

    fn server_begins_anew(&mut self) {
        let Some(server) = &mut self.server else { return };
        let wants = server.wants_reconnect();
        assert!(self.spoiled || wants == (self.waiting && self.fault.is_none()));
        if wants {
            server.reconnect();
            self.empty();
            self.owed[SERVER] = true;
        }
    }

    /// Another client takes up the page as it is.
    fn client_attaches(&mut self) {
        match ClientEnd::attach(self.page) {
            Ok(client) => {
                self.client = client;
                self.owed[CLIENT] = false;
                self.dead[CLIENT] = None;
            }
            Err(error) => assert!(self.spoiled, "{error}"),
        }
    }

    /// Both begin at the beginning, whatever is in the page.
    fn domain_is_introduced_again(&mut self) {
        if self.server.is_none() {
            return;
        }
        let mut server = ServerEnd::new(self.page, self.features);
        let was_waiting = server.take_notify();
        assert!(self.spoiled || was_waiting == self.waiting);
        self.server = Some(server);
        (self.spoiled, self.fault, self.dead, self.owed) = (false, None, [None; 2], [false; 2]);
        self.empty();
        self.client_attaches();
    }

    fn empty(&mut self) {
        self.ways.iter_mut().for_each(|way| way.bytes.clear());
        self.waiting = false;
    }

    fn server_gives_up(&mut self, fault: RingFault) {
        let Some(server) = &mut self.server else { return };
        server.fail(fault);
        if self.fault.is_none() {
            (self.fault, self.owed[SERVER]) = (Some(fault), true);
        }
    }

    /// Writes over a field of the page: something near what was there, or something special.
    fn spoil(&mut self, field: u8, value: u8) {
        let page = self.page;
        let fields = [
            &page.req_cons,
            &page.req_prod,
            &page.rsp_cons,
            &page.rsp_prod,
            &page.server_features,
            &page.connection,
            &page.error,
        ];
        let field = fields[usize::from(field) % fields.len()];
        let before = field.load(Ordering::Relaxed);
        let after = match value {
            0..128 => before.wrapping_add(value.into()).wrapping_sub(64),
            128..192 => u32::from(value - 128),
            _ => (RING_SIZE as u32).wrapping_shl(value.into()).wrapping_add(value.into()),
        };
        field.store(after, Ordering::Relaxed);
        self.spoiled |= after != before;
    }
}

/// The rings as the header of the protocol has them, for a server that believes its guest.
mod naive {
    use super::{AtomicU8, AtomicU32, Ordering, RING_SIZE};

    pub(super) fn send(
        ring: &[AtomicU8; RING_SIZE],
        prod: &AtomicU32,
        cons: &AtomicU32,
        bytes: &[u8],
    ) -> usize {
        for (sent, byte) in bytes.iter().enumerate() {
            let at = prod.load(Ordering::Relaxed);
            if at.wrapping_sub(cons.load(Ordering::Relaxed)) >= 1024 {
                return sent;
            }
            ring[at as usize % 1024].store(*byte, Ordering::Relaxed);
            prod.store(at.wrapping_add(1), Ordering::Relaxed);
        }
        bytes.len()
    }

    pub(super) fn receive(
        ring: &[AtomicU8; RING_SIZE],
        prod: &AtomicU32,
        cons: &AtomicU32,
        max: usize,
    ) -> Vec<u8> {
        let mut bytes = Vec::new();
        loop {
            let at = cons.load(Ordering::Relaxed);
            if at == prod.load(Ordering::Relaxed) || bytes.len() == max.min(1024) {
                return bytes;
            }
            bytes.push(ring[at as usize % 1024].load(Ordering::Relaxed));
            cons.store(at.wrapping_add(1), Ordering::Relaxed);
        }
    }
}
