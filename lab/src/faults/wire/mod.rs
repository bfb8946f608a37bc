//! The man in the middle: it passes messages on, breaks the stream and its messages as the
//! schedule says, and looks whether what the client sends may be sent.

mod lane;
mod ledger;
mod strikes;

use std::io;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use fastrand::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::{Instant, sleep_until};
use tokio_util::codec::Decoder;
use xs_client::{ErrorCode, Op, Path, Reply, Request, Transport, TxId};
use xs_proto::{Header, Message, MessageCodec, StreamError};

use super::fault::{STORM, Way, What};
use super::world::World;
use lane::Lane;
use ledger::{Answered, Ledger};

/// A connection of the client.
pub(super) struct Wire {
    world: Arc<World>,
    number: u32,
    ledger: Ledger,
    to_store: Lane,
    to_client: Lane,
    /// What is held back to be reordered; and whether it must keep its place.
    collected: Vec<(Bytes, bool)>,
    /// The reordering that is on.
    reorder: Option<usize>,
    /// The next message this way, while it storms, gets only so many bytes far; the fault's place.
    cut: Option<(Way, usize, usize)>,
    /// Nothing follows what is under way there.
    closing: Option<Way>,
    /// The fault by which this one says nothing.
    mute: Option<usize>,
    /// Messages for the client so far.
    told: u32,
    rng: Rng,
}

impl Wire {
    pub(super) fn new(world: Arc<World>, number: u32) -> Self {
        let settings = &world.schedule.settings;
        let (latency, window) = (settings.latency, settings.window());
        let rng = Rng::with_seed(world.schedule.seed ^ u64::from(number));
        let mut wire = Self {
            number,
            ledger: Ledger::new(number, window),
            to_store: Lane::new(latency),
            to_client: Lane::new(latency),
            collected: Vec::new(),
            reorder: None,
            cut: None,
            closing: None,
            mute: None,
            told: 0,
            rng,
            world,
        };
        wire.mute = wire.mutes();
        if wire.mute.is_some() {
            wire.world.mute();
        }
        wire
    }

    /// Passes everything on until one side or a fault ends the connection, which ends both sides.
    pub(super) async fn run(mut self, client: impl Transport, store: DuplexStream) {
        if let Err(error) = self.pass(client, store).await {
            self.world.violation(format!("the stream cannot be followed any more: {error}"));
        }
        self.world.wire_ended(self.number);
    }

    async fn pass(&mut self, client: impl Transport, store: DuplexStream) -> Result<(), StreamError> {
        let (mut from_client, mut into_client) = tokio::io::split(client);
        let (mut from_store, mut into_store) = tokio::io::split(store);
        let (mut requests, mut replies) = (BytesMut::new(), BytesMut::new());
        let mut codec = MessageCodec::default();
        loop {
            // What becomes due while this looks at the rest is looked at the next time.
            let now = Instant::now();
            if self.is_over() || (self.mute.is_none() && !self.strike()) {
                return Ok(());
            }
            let (store_held, client_held) = (self.is_held(Way::ToStore), self.is_held(Way::ToClient));
            self.reorder();
            let store_piece = self.piece(Way::ToStore, store_held);
            let client_piece = self.piece(Way::ToClient, client_held);
            let open = self.closing.is_none();
            match self.closing {
                Some(Way::ToStore) if self.to_store.is_empty() => return Ok(()),
                Some(Way::ToClient) if self.to_client.is_empty() => return Ok(()),
                _ => {}
            }
            let dues = [self.to_store.due(), self.to_client.due(), self.world.next(now)];
            let next = dues.into_iter().flatten().filter(|due| *due > now).min();
            // In a fixed order, so that a schedule has one course.
            tokio::select! {
                biased;
                written = into_store.write(&self.to_store.ready[..store_piece]), if store_piece > 0 => {
                    let Ok(count) = written else { return self.store_ended() };
                    self.to_store.ready.advance(count);
                    if !self.to_store.ready.is_empty() {
                        tokio::task::yield_now().await;
                    }
                }
                written = into_client.write(&self.to_client.ready[..client_piece]), if client_piece > 0 => {
                    // The client has closed it.
                    let Ok(count) = written else { return Ok(()) };
                    self.to_client.ready.advance(count);
                    self.world.heard(self.number);
                    if !self.to_client.ready.is_empty() {
                        tokio::task::yield_now().await;
                    }
                }
                read = from_client.read_buf(&mut requests), if open && !store_held && self.to_store.has_room() => {
                    if read.unwrap_or(0) == 0 {
                        return self.client_ended(&requests);
                    }
                    while let Some(message) = codec.decode(&mut requests)? {
                        self.request(message)?;
                    }
                }
                read = from_store.read_buf(&mut replies), if open && self.to_client.has_room() => {
                    if read.unwrap_or(0) == 0 {
                        return self.store_ended();
                    }
                    while let Some(message) = codec.decode(&mut replies)? {
                        self.reply(message)?;
                    }
                }
                () = wait(next), if next.is_some() => {}
            }
        }
    }

    fn client_ended(&self, rest: &[u8]) -> Result<(), StreamError> {
        if !rest.is_empty() && !self.world.has_ended() {
            self.world.violation("the client ends inside of a message");
        }
        Ok(())
    }

    fn store_ended(&self) -> Result<(), StreamError> {
        self.world.violation("the store ends the connection, whatever the client sent it");
        self.world.end();
        Ok(())
    }

    fn lane(&mut self, way: Way) -> &mut Lane {
        match way {
            Way::ToStore => &mut self.to_store,
            Way::ToClient => &mut self.to_client,
        }
    }

    /// Whether nothing is to get through this way now.
    fn is_held(&mut self, way: Way) -> bool {
        let world = self.world.clone();
        let holds = |what: &What| match what {
            What::Stall { way: held } | What::Coalesce { way: held } => *held == way,
            _ => false,
        };
        let held = world.on().find(|(_, fault)| holds(&fault.what));
        let Some((at, _)) = held else { return false };
        if !self.lane(way).is_empty() {
            world.hit(at);
        }
        true
    }

    /// How many bytes are to be written this way now.
    fn piece(&mut self, way: Way, held: bool) -> usize {
        if held {
            return 0;
        }
        let world = self.world.clone();
        let lane = self.lane(way);
        lane.release();
        let length = lane.ready.len();
        let fragment = world.on().find_map(|(at, fault)| match fault.what {
            What::Fragment { way: of, bytes } if of == way => Some((at, bytes)),
            _ => None,
        });
        match fragment {
            Some((at, bytes)) if bytes < length => {
                world.hit(at);
                bytes
            }
            _ => length,
        }
    }

    /// Puts a message on its way, with the delays that are on.
    fn send(&mut self, way: Way, bytes: Bytes) {
        let world = self.world.clone();
        let mut extra = 0;
        for (at, fault) in world.on() {
            match fault.what {
                What::Delay { way: of, up_to } if of == way => {
                    extra += self.rng.u64(0..=up_to);
                    world.hit(at);
                }
                _ => {}
            }
        }
        self.lane(way).push(extra, bytes);
    }

    /// A message for the client. One that is `fixed` keeps its place among those reordered.
    fn tell(&mut self, bytes: Bytes, fixed: bool) {
        if self.closing.is_some() {
            return;
        }
        if self.cut_off(Way::ToClient, &bytes) {
            return;
        }
        let on = self.world.on().find(|(_, fault)| fault.what == What::Reorder).map(|(at, _)| at);
        if on.is_some() {
            self.reorder = on;
            self.collected.push((bytes, fixed));
        } else {
            self.reorder();
            self.send(Way::ToClient, bytes);
        }
        self.told += 1;
        self.flaps(self.told);
    }

    /// Lets go what was held back to be reordered, once that is over.
    fn reorder(&mut self) {
        let Some(at) = self.reorder.filter(|at| !self.world.schedule.faults[*at].is_on(self.world.now()))
        else {
            return;
        };
        self.reorder = None;
        let mut collected = std::mem::take(&mut self.collected);
        let places = collected.iter().enumerate().filter(|(_, (_, fixed))| !fixed).map(|(place, _)| place);
        let places: Vec<usize> = places.collect();
        let mut moved: Vec<Bytes> = places.iter().map(|place| collected[*place].0.clone()).collect();
        Rng::with_seed(self.world.schedule.faults[at].seed).shuffle(&mut moved);
        if moved.len() > 1 {
            self.world.hit(at);
        }
        for (place, bytes) in places.into_iter().zip(moved) {
            collected[place].0 = bytes;
        }
        for (bytes, _) in collected {
            self.send(Way::ToClient, bytes);
        }
    }

    /// Lets go what was held back before the stream is broken, behind which nothing may come.
    fn let_go(&mut self) {
        self.reorder = None;
        for (held, _) in std::mem::take(&mut self.collected) {
            self.send(Way::ToClient, held);
        }
    }

    /// If this is the message that the connection ends in, passes its beginning on, and nothing after.
    fn cut_off(&mut self, way: Way, bytes: &Bytes) -> bool {
        let cut = self.cut.filter(|(of, ..)| *of == way && self.world.now() < STORM);
        let Some((_, count, at)) = cut else { return false };
        self.world.hit(at);
        if way == Way::ToClient {
            self.let_go();
        }
        self.world.end();
        self.closing = Some(way);
        self.send(way, bytes.slice(..count.min(bytes.len() - 1)));
        true
    }

    fn request(&mut self, mut request: Message) -> io::Result<()> {
        if self.closing.is_some() {
            return Ok(());
        }
        // In which order many watches are removed is nobody's promise.
        let payload = Some(&request.payload).filter(|_| request.op != Op::UNWATCH);
        self.world.note((Way::ToStore as u8, request.op.0, request.req_id, request.tx_id, payload));
        let decoded = Request::decode(request.op, request.payload.clone());
        if let Ok(Request::Unwatch { token, .. }) = &decoded
            && let Some(watched) = self.ledger.confirmed(token)
        {
            self.world.unwatched(self.number, &watched);
        }
        let asked = match self.ledger.asked(&request, decoded) {
            Ok(asked) => asked,
            Err(text) => {
                self.world.violation(format!("{text}: {} {:?}", request.op, request.payload));
                return Ok(());
            }
        };
        self.world.check_sent(&asked);
        if request.tx_id == TxId::NONE {
            self.world.check_batch(&asked, self.number);
        }
        if let Request::Unwatch { path, .. } = &asked {
            self.check_unwatched(path);
        }
        if let Some(at) = self.mute {
            self.world.hit(at);
            return Ok(());
        }
        if self.flaps(0) {
            return Ok(());
        }
        if self.cut_off(Way::ToStore, &message_of(&request)) {
            return Ok(());
        }
        let commit = matches!(asked, Request::TransactionEnd { commit: true });
        let op = if let Request::TransactionEnd { commit: false } = asked { None } else { Some(request.op) };
        let world = self.world.clone();
        let refused = world.use_up(|what| match what {
            What::Again { .. } => commit,
            What::Refuse { op: of, .. } => Some(*of) == op,
            _ => false,
        });
        let code = match refused {
            Some(What::Refuse { code, .. }) => Some(code.clone()),
            Some(_) => Some(ErrorCode::EAGAIN),
            None => None,
        };
        match code {
            // The store has to end it all the same.
            Some(code) if commit => {
                self.ledger.replace(request.req_id, code);
                request.payload = b"F\0"[..].into();
            }
            Some(code) => {
                if code == ErrorCode::EIO && request.tx_id != TxId::NONE {
                    self.world.conflicted();
                }
                let mut bytes = BytesMut::new();
                let error = Reply::Error(code);
                self.answered(request.req_id, true);
                if error.encode(request.op, request.req_id, request.tx_id, &mut bytes).is_ok() {
                    self.tell(bytes.freeze(), request.op == Op::WATCH);
                }
                return Ok(());
            }
            None => {}
        }
        request.tx_id = self.ledger.for_store(request.tx_id);
        self.send(Way::ToStore, message_of(&request));
        Ok(())
    }

    /// Looks whether those who watch something at or below a path have another watch.
    fn check_unwatched(&self, path: &Path) {
        if let Some(left) = self.world.watched(path).iter().find(|below| !self.ledger.covers(below)) {
            self.world
                .violation(format!("{path} is watched no more, and for {left} there is no other watch"));
        }
    }

    /// Notes that a request is answered; what was asked, and what is to be answered instead.
    fn answered(&mut self, req_id: u32, is_refused: bool) -> (Option<Op>, Option<ErrorCode>) {
        let Answered { op, replaced, watch } = self.ledger.answered(req_id, is_refused);
        if let Some(watched) = watch {
            self.world.watch_answered(self.number, watched, is_refused);
        }
        (op, replaced)
    }

    fn reply(&mut self, mut reply: Message) -> io::Result<()> {
        self.world.note((Way::ToClient as u8, reply.op.0, reply.req_id, reply.tx_id, &reply.payload));
        if reply.op == Op::WATCH_EVENT {
            self.tell(message_of(&reply), true);
            return Ok(());
        }
        reply.tx_id = self.ledger.for_client(reply.tx_id);
        let (op, replaced) = self.answered(reply.req_id, reply.op == Op::ERROR);
        if let Some(code) = replaced {
            reply = Message { op: Op::ERROR, payload: [code.as_bytes(), b"\0"].concat().into(), ..reply };
        } else if reply.op == Op::TRANSACTION_START {
            reply.payload = self.ledger.opened(&reply.payload);
        }
        if op == Some(Op::TRANSACTION_END) && *reply.payload == *b"EAGAIN\0" {
            self.world.conflicted();
        }
        self.tell(message_of(&reply), op == Some(Op::WATCH));
        Ok(())
    }
}

async fn wait(until: Option<Instant>) {
    if let Some(until) = until {
        sleep_until(until).await;
    }
}

fn message(op: Op, req_id: u32, tx_id: TxId, len: u32, payload: &[u8]) -> Bytes {
    let mut bytes = BytesMut::new();
    Header { op, req_id, tx_id, len }.encode(&mut bytes);
    bytes.extend_from_slice(payload);
    bytes.freeze()
}

fn message_of(whole: &Message) -> Bytes {
    let Message { op, req_id, tx_id, payload } = whole;
    message(*op, *req_id, *tx_id, payload.len() as u32, payload)
}
