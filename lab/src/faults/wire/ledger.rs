//! What the requests of a connection have to do with each other, seen from the wire.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use xs_client::{ErrorCode, Op, Path, Request, TxId};
use xs_proto::{DecodeError, Message, Token};

use crate::faults::world::Watched;

/// The client sees other transaction ids than the store gives: these are of one connection alone,
/// so that one that is carried over to the next is seen.
const STRIDE: u32 = 100_000;

struct Asked {
    op: Op,
    /// Whether it is of a caller, and not the client's own tidying up.
    called: bool,
    /// For a watch.
    token: Option<Bytes>,
    /// What it is to be answered with.
    replaced: Option<ErrorCode>,
}

/// What a reply is the answer to.
#[derive(Default)]
pub(super) struct Answered {
    pub(super) op: Option<Op>,
    /// What is to be answered instead.
    pub(super) replaced: Option<ErrorCode>,
    /// For a watch that is wanted still.
    pub(super) watch: Option<Watched>,
}

pub(super) struct Ledger {
    offset: u32,
    window: usize,
    asked: BTreeMap<u32, Asked>,
    transactions: BTreeSet<TxId>,
    /// Tokens that were used, those of watches that have gone included.
    tokens: BTreeSet<Bytes>,
    /// Watches that the store has, by their token; and whether it has said so.
    watches: BTreeMap<Bytes, (Watched, bool)>,
    /// Paths that the store refused to watch: who wanted to is told so.
    refused: BTreeSet<Path>,
}

impl Ledger {
    pub(super) fn new(connection: u32, window: usize) -> Self {
        Self {
            offset: connection * STRIDE,
            window,
            asked: BTreeMap::new(),
            transactions: BTreeSet::new(),
            tokens: BTreeSet::new(),
            watches: BTreeMap::new(),
            refused: BTreeSet::new(),
        }
    }

    /// Notes a request; an error says why it may not be sent.
    pub(super) fn asked(
        &mut self,
        message: &Message,
        request: Result<Request, DecodeError>,
    ) -> Result<Request, &'static str> {
        let Message { op, req_id, tx_id, .. } = *message;
        let request = request.map_err(|_| "a malformed request")?;
        if req_id == 0 || self.asked.contains_key(&req_id) {
            return Err("a request with an id that is taken");
        }
        if tx_id != TxId::NONE && !self.transactions.contains(&tx_id) {
            return Err("a request of a transaction that was never open on this connection");
        }
        let mut token = None;
        match &request {
            Request::Watch { path, token: name, depth } => {
                if !self.tokens.insert(name.as_bytes().to_vec().into()) {
                    return Err("a token is used again");
                }
                let name: Bytes = name.as_bytes().to_vec().into();
                self.watches.insert(name.clone(), ((path.detached(), *depth), false));
                token = Some(name);
            }
            Request::Unwatch { token, .. } => drop(self.watches.remove(token.as_bytes())),
            _ => {}
        }
        let called = !matches!(request, Request::Unwatch { .. } | Request::TransactionEnd { commit: false });
        if called && self.asked.values().filter(|asked| asked.called).count() >= self.window {
            return Err("more requests under way than the window has");
        }
        self.asked.insert(req_id, Asked { op, called, token, replaced: None });
        Ok(request)
    }

    /// Decides what a request is to be answered with.
    pub(super) fn replace(&mut self, req_id: u32, code: ErrorCode) {
        if let Some(asked) = self.asked.get_mut(&req_id) {
            asked.replaced = Some(code);
        }
    }

    /// Notes a reply.
    pub(super) fn answered(&mut self, req_id: u32, refused: bool) -> Answered {
        let Some(asked) = self.asked.remove(&req_id) else { return Answered::default() };
        let mut watch = None;
        if let Some(token) = asked.token {
            if refused {
                watch = self.watches.remove(&token).map(|(watched, _)| watched);
                self.refused.extend(watch.iter().map(|(path, _)| path.clone()));
            } else if let Some((watched, confirmed)) = self.watches.get_mut(&token) {
                *confirmed = true;
                self.refused.remove(&watched.0);
                watch = Some(watched.clone());
            }
        }
        Answered { op: Some(asked.op), replaced: asked.replaced, watch }
    }

    /// What the watch with a token is of, if the store has said that it has it.
    pub(super) fn confirmed(&self, token: &Token) -> Option<Watched> {
        let (watched, confirmed) = self.watches.get(token.as_bytes())?;
        confirmed.then(|| watched.clone())
    }

    /// Notes a transaction; the store's id in, the client's out.
    pub(super) fn opened(&mut self, payload: &[u8]) -> Bytes {
        let text = String::from_utf8_lossy(payload);
        let id = self.offset + text.trim_end_matches('\0').parse::<u32>().unwrap_or(0);
        self.transactions.insert(TxId(id));
        format!("{id}\0").into()
    }

    pub(super) fn for_store(&self, tx: TxId) -> TxId {
        if tx == TxId::NONE { tx } else { TxId(tx.0 - self.offset) }
    }

    pub(super) fn for_client(&self, tx: TxId) -> TxId {
        if tx == TxId::NONE { tx } else { TxId(tx.0 + self.offset) }
    }

    /// A request that is not answered yet.
    pub(super) fn under_way(&self) -> Option<(Op, u32)> {
        self.asked.iter().next().map(|(id, asked)| (asked.op, *id))
    }

    /// Whether those who watch a path hear of its changes, or that they do not.
    pub(super) fn covers(&self, path: &Path) -> bool {
        let mut confirmed = self.watches.values().filter(|(_, confirmed)| *confirmed);
        confirmed.any(|((above, _), _)| path.is_within(above)) || self.refused.contains(path)
    }

    /// The watches that the client knows it has.
    pub(super) fn watches(&self) -> Vec<(Path, Token)> {
        let confirmed = self.watches.iter().filter(|(_, (_, confirmed))| *confirmed);
        let found = confirmed.filter_map(|(name, ((path, _), _))| {
            Some((path.clone(), Token::new(String::from_utf8(name.to_vec()).ok()?).ok()?))
        });
        found.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::schedule::{crowd, path};

    #[test]
    fn confirmed_watches_at_and_above_a_path_cover_it() {
        let mut ledger = Ledger::new(1, 8);
        let ask = |ledger: &mut Ledger, req_id, request: Request| {
            let message = Message { op: request.op(), req_id, tx_id: TxId::NONE, payload: Bytes::new() };
            ledger.asked(&message, Ok(request)).unwrap();
        };
        let (above, node) = (path("/w/m"), crowd(&path("/w/m"), 1));
        let token = |text: &str| Token::new(text.to_owned()).unwrap();
        let watch =
            |path: &Path, text| Request::Watch { path: path.clone(), token: token(text), depth: None };
        let unwatch = |path: &Path, text| Request::Unwatch { path: path.clone(), token: token(text) };
        ask(&mut ledger, 1, watch(&above, "a"));
        assert!(!ledger.covers(&node));
        ledger.answered(1, false);
        assert!(ledger.covers(&node));
        ask(&mut ledger, 2, watch(&node, "b"));
        ask(&mut ledger, 3, unwatch(&above, "a"));
        assert!(!ledger.covers(&node), "it is not confirmed yet");
        ledger.answered(2, false);
        assert!(ledger.covers(&node));
        ask(&mut ledger, 4, unwatch(&node, "b"));
        ask(&mut ledger, 5, watch(&node, "c"));
        ledger.answered(5, true);
        assert!(ledger.covers(&node), "who watches it is told that it is refused");
    }
}
