//! A connection as a plain value: no socket, no clock, no runtime.
//!
//! It is told what callers want ([`Connection::call`], [`Connection::watch`],
//! [`Connection::unwatch`]) and what the store sent ([`Connection::receive`]). It says what to
//! send ([`Connection::output`]) and what to tell whom ([`Connection::effect`]). Ask for both
//! after every call. `W` is whatever the driver needs to reach a caller.

use std::collections::{HashMap, VecDeque};

use bytes::BytesMut;
use xs_proto::{DecodeError, EncodeError, Message, Op, Path, Reply, Request, TxId, WatchEvent};

use crate::Error;
use crate::watches::{Added, WatcherId, Watches, token};

/// What the driver is to do.
#[derive(Debug)]
pub(crate) enum Effect<W> {
    /// Tell a caller how its call ended.
    Complete(W, Result<Reply, Error>),
    /// Tell a watcher that something changed at or below this path.
    Changed(WatcherId, Path),
}

#[derive(Debug)]
enum Slot<W> {
    Call {
        op: Op,
        path: Option<Path>,
        waiter: W,
    },
    Watch {
        token: u32,
        path: Path,
        waiters: Vec<W>,
    },
    /// Housekeeping (UNWATCH, abort) whose outcome changes nothing.
    Ignored {
        op: Op,
    },
}

#[derive(Debug)]
pub(crate) struct Connection<W> {
    slots: HashMap<u32, Slot<W>>,
    /// The WATCH requests that are under way, by token.
    registering: HashMap<u32, u32>,
    last_id: u32,
    sent: usize,
    watches: Watches,
    effects: VecDeque<Effect<W>>,
    output: BytesMut,
}

impl<W> Connection<W> {
    pub(crate) fn new() -> Self {
        Self {
            slots: HashMap::new(),
            registering: HashMap::new(),
            last_id: 0,
            sent: 0,
            watches: Watches::default(),
            effects: VecDeque::new(),
            output: BytesMut::new(),
        }
    }

    /// Requests that wait for their reply.
    pub(crate) fn in_flight(&self) -> usize {
        self.slots.len()
    }

    /// Requests sent so far.
    pub(crate) fn sent(&self) -> usize {
        self.sent
    }

    /// Watches on the server, or on the way there.
    pub(crate) fn watches(&self) -> usize {
        self.watches.len()
    }

    /// Whether nothing is under way and nobody watches.
    pub(crate) fn is_idle(&self) -> bool {
        self.slots.is_empty() && self.watches.len() == 0 && self.output.is_empty()
    }

    /// Bytes to send; the driver takes from the front what it has sent.
    pub(crate) fn output(&mut self) -> &mut BytesMut {
        &mut self.output
    }

    pub(crate) fn effect(&mut self) -> Option<Effect<W>> {
        self.effects.pop_front()
    }

    /// Ids are not used again before 2^32 requests, and never while their slot is taken: so a
    /// late reply cannot reach a new caller. 0 is left to watch events.
    fn send(&mut self, request: &Request, tx: TxId, slot: Slot<W>) -> Result<u32, (EncodeError, Slot<W>)> {
        let mut id = self.last_id.wrapping_add(1);
        while id == 0 || self.slots.contains_key(&id) {
            id = id.wrapping_add(1);
        }
        if let Err(error) = request.encode(id, tx, &mut self.output) {
            return Err((error, slot));
        }
        self.last_id = id;
        self.sent += 1;
        self.slots.insert(id, slot);
        Ok(id)
    }

    /// Sends a request; its reply, or the reason why it cannot be sent, goes to `waiter`.
    pub(crate) fn call(&mut self, request: &Request, tx: TxId, waiter: W) {
        let slot = Slot::Call { op: request.op(), path: request.path().cloned(), waiter };
        if let Err((error, Slot::Call { waiter, .. })) = self.send(request, tx, slot) {
            self.effects.push_back(Effect::Complete(waiter, Err(error.into())));
        }
    }

    /// Sends a request whose outcome nobody waits for.
    pub(crate) fn tell(&mut self, request: &Request, tx: TxId) {
        // What is told so is built from requests that went through before, so it encodes.
        let sent = self.send(request, tx, Slot::Ignored { op: request.op() });
        debug_assert!(sent.is_ok(), "{request:?}");
    }

    /// Adds a watcher; `waiter` learns when the store has the watch.
    pub(crate) fn watch(&mut self, path: Path, watcher: WatcherId, waiter: W) {
        match self.watches.add(&path, watcher) {
            Added::Fire => {
                self.effects.push_back(Effect::Complete(waiter, Ok(Reply::Ok)));
                self.effects.push_back(Effect::Changed(watcher, path));
            }
            Added::Wait(number) => {
                let slot = self.registering.get(&number).and_then(|id| self.slots.get_mut(id));
                match slot {
                    Some(Slot::Watch { waiters, .. }) => waiters.push(waiter),
                    _ => unreachable!("a watch that is not confirmed has its request under way"),
                }
            }
            Added::Register(number) => {
                let request = Request::Watch { path: path.clone(), token: token(number), depth: None };
                let slot = Slot::Watch { token: number, path, waiters: vec![waiter] };
                match self.send(&request, TxId::NONE, slot) {
                    Ok(id) => {
                        self.registering.insert(number, id);
                    }
                    Err((error, slot)) => {
                        self.watches.refuse(number);
                        self.complete(slot, Err(error.into()));
                    }
                }
            }
        }
    }

    /// Removes a watcher, and the watch on the server with the last one of its path.
    pub(crate) fn unwatch(&mut self, watcher: WatcherId) {
        if let Some((path, token)) = self.watches.remove(watcher) {
            self.tell(&Request::Unwatch { path, token }, TxId::NONE);
        }
    }

    fn complete(&mut self, slot: Slot<W>, result: Result<Reply, Error>) {
        let waiters = match slot {
            Slot::Call { waiter, .. } => vec![waiter],
            Slot::Watch { waiters, .. } => waiters,
            Slot::Ignored { .. } => Vec::new(),
        };
        let completed = waiters.into_iter().map(|waiter| Effect::Complete(waiter, result.clone()));
        self.effects.extend(completed);
    }

    /// Takes a message of the store. After an error the stream means nothing any more.
    pub(crate) fn receive(&mut self, message: Message) -> Result<(), DecodeError> {
        if message.op == Op::WATCH_EVENT {
            let event = WatchEvent::decode(message.payload)?;
            let watchers = self.watches.watchers(&event.token);
            self.effects.extend(watchers.iter().map(|id| Effect::Changed(*id, event.path.clone())));
            return Ok(());
        }
        let unasked = DecodeError::Malformed { op: message.op, expected: "the id of a request under way" };
        let slot = self.slots.remove(&message.req_id).ok_or(unasked)?;
        let (op, path) = match &slot {
            Slot::Call { op, path, .. } => (*op, path.clone()),
            Slot::Watch { path, .. } => (Op::WATCH, Some(path.clone())),
            Slot::Ignored { op } => (*op, None),
        };
        let reply = match Reply::decode(op, message.op, message.payload) {
            Ok(reply) => reply,
            Err(error) => {
                self.complete(slot, Err(error.clone().into()));
                return Err(error);
            }
        };
        let result = match reply {
            Reply::Error(code) => Err(Error::Store { op, path, code }),
            reply => Ok(reply),
        };
        if let Slot::Watch { token, .. } = slot {
            self.registering.remove(&token);
            if result.is_ok() { self.watches.confirm(token) } else { self.watches.refuse(token) }
        }
        self.complete(slot, result);
        Ok(())
    }

    /// The connection is gone: everything under way ends with `error`.
    pub(crate) fn close(&mut self, error: &Error) {
        for slot in std::mem::take(&mut self.slots).into_values() {
            self.complete(slot, Err(error.clone()));
        }
        self.registering.clear();
        self.output.clear();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio_util::codec::Decoder;
    use xs_proto::{ErrorCode, MessageCodec};

    use super::*;

    fn path(text: &str) -> Path {
        Path::new(text).unwrap()
    }

    fn sent(connection: &mut Connection<u8>) -> Vec<Message> {
        let mut codec = MessageCodec::default();
        std::iter::from_fn(|| codec.decode(connection.output()).unwrap()).collect()
    }

    fn answer(to: &Message, op: Op, payload: &'static str) -> Message {
        Message { op, req_id: to.req_id, tx_id: to.tx_id, payload: Bytes::from_static(payload.as_bytes()) }
    }

    fn event(payload: &'static str) -> Message {
        Message { op: Op::WATCH_EVENT, req_id: 0, tx_id: TxId::NONE, payload: payload.into() }
    }

    /// The effects so far, in words.
    fn effects(connection: &mut Connection<u8>) -> Vec<String> {
        let words = |effect| match effect {
            Effect::Complete(waiter, Ok(reply)) => format!("{waiter}: {reply:?}"),
            Effect::Complete(waiter, Err(error)) => format!("{waiter}: {error}"),
            Effect::Changed(watcher, path) => format!("watcher {}: {path}", watcher.0),
        };
        std::iter::from_fn(|| connection.effect()).map(words).collect()
    }

    #[test]
    fn replies_find_their_callers_in_any_order() {
        let mut connection = Connection::new();
        for waiter in 1..=3 {
            connection.call(&Request::Read(path("/x")), TxId::NONE, waiter);
        }
        let requests = sent(&mut connection);
        assert_eq!(connection.in_flight(), 3);
        connection.receive(answer(&requests[2], Op::READ, "c")).unwrap();
        connection.receive(answer(&requests[0], Op::READ, "a")).unwrap();
        connection.receive(answer(&requests[1], Op::ERROR, "ENOENT\0")).unwrap();
        assert_eq!(
            effects(&mut connection),
            [
                "3: Value(b\"c\")",
                "1: Value(b\"a\")",
                "2: READ of /x was refused: ENOENT, there is no such node, transaction or domain"
            ]
        );
        assert!(connection.is_idle());
    }

    #[test]
    fn an_oversized_call_fails_alone() {
        let mut connection = Connection::new();
        connection.call(&Request::Read(path("/x")), TxId::NONE, 1);
        let value = Bytes::from(vec![0; 4096]);
        connection.call(&Request::Write { path: path("/x"), value }, TxId::NONE, 2);
        connection.call(&Request::Read(path("/y")), TxId::NONE, 3);
        assert_eq!(sent(&mut connection).len(), 2);
        assert_eq!(effects(&mut connection), ["2: WRITE: a payload of 4099 bytes is over the limit of 4096"]);
    }

    #[test]
    fn a_reply_nobody_asked_for_breaks_the_connection() {
        let mut connection = Connection::<u8>::new();
        let stray = Message { op: Op::READ, req_id: 9, tx_id: TxId::NONE, payload: Bytes::new() };
        assert!(connection.receive(stray).is_err());
    }

    #[test]
    fn a_reply_of_another_operation_breaks_the_connection_and_tells_the_caller() {
        let mut connection = Connection::new();
        connection.call(&Request::Read(path("/x")), TxId::NONE, 1);
        let request = sent(&mut connection).remove(0);
        assert!(connection.receive(answer(&request, Op::DIRECTORY, "a\0")).is_err());
        assert_eq!(effects(&mut connection).len(), 1);
    }

    #[test]
    fn ids_skip_zero_and_those_in_use() {
        let mut connection = Connection::new();
        connection.call(&Request::Read(path("/x")), TxId::NONE, 1);
        connection.last_id = u32::MAX;
        connection.call(&Request::Read(path("/x")), TxId::NONE, 2);
        let ids: Vec<u32> = sent(&mut connection).iter().map(|message| message.req_id).collect();
        assert_eq!(ids, [1, 2]);
    }

    #[test]
    fn two_watchers_one_watch() {
        let mut connection = Connection::new();
        connection.watch(path("/w"), WatcherId(1), 1);
        connection.watch(path("/w"), WatcherId(2), 2);
        let requests = sent(&mut connection);
        assert_eq!(requests.len(), 1);
        connection.receive(answer(&requests[0], Op::WATCH, "OK\0")).unwrap();
        connection.receive(event("/w\x001\0")).unwrap();
        assert_eq!(effects(&mut connection), ["1: Ok", "2: Ok", "watcher 1: /w", "watcher 2: /w"]);
        connection.watch(path("/w"), WatcherId(3), 3);
        assert_eq!(effects(&mut connection), ["3: Ok", "watcher 3: /w"]);
        for watcher in 1..=3 {
            connection.unwatch(WatcherId(watcher));
        }
        let requests = sent(&mut connection);
        assert_eq!(requests.len(), 1);
        assert_eq!(requests[0].op, Op::UNWATCH);
        connection.receive(event("/w/late\x001\0")).unwrap();
        connection.receive(answer(&requests[0], Op::UNWATCH, "OK\0")).unwrap();
        assert!(effects(&mut connection).is_empty());
        assert!(connection.is_idle());
    }

    #[test]
    fn a_refused_watch_tells_all_who_wait() {
        let mut connection = Connection::new();
        connection.watch(path("/w"), WatcherId(1), 1);
        connection.watch(path("/w"), WatcherId(2), 2);
        let request = sent(&mut connection).remove(0);
        connection.receive(answer(&request, Op::ERROR, "E2BIG\0")).unwrap();
        assert_eq!(effects(&mut connection).len(), 2);
        assert!(connection.is_idle());
    }

    #[test]
    fn closing_ends_every_call() {
        let mut connection = Connection::new();
        connection.call(&Request::Read(path("/x")), TxId::NONE, 1);
        connection.watch(path("/w"), WatcherId(1), 2);
        connection.close(&Error::Store { op: Op::READ, path: None, code: ErrorCode::EIO });
        assert_eq!(effects(&mut connection).len(), 2);
        assert_eq!(connection.in_flight(), 0);
    }
}
