//! What the requests of a connection have to do with each other, seen from the wire.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use xs_client::{ErrorCode, Op, Path, Request, TxId};
use xs_proto::{DecodeError, Message, Token};

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

pub(super) struct Ledger {
    offset: u32,
    window: usize,
    asked: BTreeMap<u32, Asked>,
    transactions: BTreeSet<TxId>,
    /// Tokens that were used, those of watches that have gone included.
    tokens: BTreeSet<Bytes>,
    /// Watches that the store has, by their token.
    watches: BTreeMap<Bytes, (Path, bool)>,
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
            Request::Watch { path, token: name, .. } => {
                if !self.tokens.insert(name.as_bytes().to_vec().into()) {
                    return Err("a token is used again");
                }
                let name: Bytes = name.as_bytes().to_vec().into();
                self.watches.insert(name.clone(), (path.detached(), false));
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

    /// Notes a reply; what was asked, and what is to be answered instead.
    pub(super) fn answered(&mut self, req_id: u32, refused: bool) -> (Option<Op>, Option<ErrorCode>) {
        let Some(asked) = self.asked.remove(&req_id) else { return (None, None) };
        if let Some(token) = asked.token {
            if refused {
                self.watches.remove(&token);
            } else if let Some((_, confirmed)) = self.watches.get_mut(&token) {
                *confirmed = true;
            }
        }
        (Some(asked.op), asked.replaced)
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

    /// The watches that the client knows it has.
    pub(super) fn watches(&self) -> Vec<(Path, Token)> {
        let confirmed = self.watches.iter().filter(|(_, (_, confirmed))| *confirmed);
        let found = confirmed.filter_map(|(name, (path, _))| {
            Some((path.clone(), Token::new(String::from_utf8(name.to_vec()).ok()?).ok()?))
        });
        found.collect()
    }
}
