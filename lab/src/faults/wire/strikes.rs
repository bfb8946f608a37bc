//! What a fault does when it begins, and connections that are not worth much from the beginning.

use bytes::BytesMut;
use fastrand::Rng;
use xs_client::{Op, Path, TxId};
use xs_proto::{Token, WatchEvent};

use super::{Wire, message};
use crate::faults::fault::{Garbage, Way, What};
use crate::faults::schedule::path;

/// Paths that the events of a flood are about, at most.
const FLOOD_PATHS: usize = 2000;

impl Wire {
    /// What makes this connection one that says nothing.
    pub(super) fn mutes(&self) -> Option<usize> {
        self.world.on().find(|(_, fault)| fault.what == What::Mute).map(|(at, _)| at)
    }

    /// Whether the connection says nothing, or is over because that is over.
    pub(super) fn is_over(&self) -> bool {
        let over = self.mute.is_some_and(|at| !self.world.schedule.faults[at].is_on(self.world.now()));
        if over {
            self.world.end();
        }
        over
    }

    /// If the daemon does not stand, and so many messages are enough for it, this is the end.
    pub(super) fn flaps(&mut self, told: u32) -> bool {
        let world = self.world.clone();
        let flap = world.on().find_map(|(at, fault)| match fault.what {
            What::Flap { messages } if told >= messages => Some(at),
            _ => None,
        });
        let Some(at) = flap.filter(|_| self.closing.is_none()) else { return false };
        world.hit(at);
        self.let_go();
        world.end();
        self.closing = Some(Way::ToClient);
        true
    }

    /// Does what happens once and is due; `false` if that is the end of the connection.
    pub(super) fn strike(&mut self) -> bool {
        let world = self.world.clone();
        while let Some((at, fault)) = world.begin(self.number).filter(|_| self.closing.is_none()) {
            if let What::CutInside { way, bytes } = fault.what {
                self.cut = Some((way, bytes, at));
                continue;
            }
            world.hit(at);
            match &fault.what {
                What::Cut => {
                    world.end();
                    return false;
                }
                What::Garbage(garbage) => self.garbage(*garbage, fault.seed),
                What::Flood { events, known } => self.flood(*events, *known, fault.seed),
                What::Restart { keep } => {
                    world.end();
                    world.restart(fault.lasts, *keep, fault.seed.is_multiple_of(2));
                    return false;
                }
                What::Mute => {
                    world.end();
                    return false;
                }
                _ => {}
            }
        }
        true
    }

    fn garbage(&mut self, garbage: Garbage, seed: u64) {
        let mut rng = Rng::with_seed(seed);
        let known = self.ledger.under_way();
        let (op, req_id) = known.unwrap_or((Op::READ, 0xdead));
        let other = if op == Op::READ { Op::WRITE } else { Op::READ };
        let bytes = match garbage {
            Garbage::Text => b"HTTP/1.1 400 Bad Request\r\nServer: nginx\r\n\r\n"[..].into(),
            Garbage::TooLong => message(Op::READ, req_id, TxId::NONE, u32::MAX, b""),
            Garbage::Unasked => message(Op::READ, 0xdead_beef, TxId::NONE, 1, b"v"),
            Garbage::OtherOp => message(other, req_id, TxId::NONE, 1, b"v"),
            Garbage::NoEvent => message(Op::WATCH_EVENT, 0, TxId::NONE, 3, b"/w\0"),
            Garbage::Random => (0..rng.usize(1..100)).map(|_| rng.u8(..)).collect(),
        };
        self.let_go();
        self.world.end();
        self.send(Way::ToClient, bytes);
        // It is for the client to end the connection, but for the one who may be taken for an
        // unfinished message.
        self.closing = (garbage == Garbage::Random).then_some(Way::ToClient);
    }

    fn flood(&mut self, events: usize, known: bool, seed: u64) {
        let mut rng = Rng::with_seed(seed);
        let watches: Vec<(Path, Token)> = if known { self.ledger.watches() } else { Vec::new() };
        for number in 0..events {
            let (path, token) = match &watches[..] {
                [] => {
                    let unknown = ["", "ffffff", "-1", "no number"];
                    (path("/w/unknown"), Token::new(unknown[rng.usize(0..unknown.len())].to_owned()))
                }
                some => {
                    let (path, token) = some[rng.usize(0..some.len())].clone();
                    let below = path.join(format!("x{}", number % FLOOD_PATHS));
                    let path = if rng.u8(0..4) == 0 { path } else { below.unwrap_or(path) };
                    (path, Ok(token))
                }
            };
            let mut bytes = BytesMut::new();
            // All of them fit into a message.
            if token.is_ok_and(|token| WatchEvent { path, token }.encode(&mut bytes).is_ok()) {
                self.tell(bytes.freeze(), true);
            }
        }
    }
}
