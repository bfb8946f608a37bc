//! What the store keeps for one connection.

use std::collections::BTreeMap;

use xs_proto::{DomId, TxId};

use crate::outbox::Outbox;
use crate::pressure::Source;
use crate::transaction::Transaction;

/// Bytes of unsent output from which on a connection's requests are left unread.
pub(crate) const REPLIES_MAX: usize = 1 << 20;

/// Bytes of unsent output from which on a guest is told of changes by one event for each watch. Of
/// changes that guests make, it is from a quarter of that on, so that they leave room for others'.
const GUEST_OUTPUT_MAX: usize = 1 << 20;

/// The same of a privileged connection.
const OUTPUT_MAX: usize = 4 << 20;

/// A connection. Numbers grow and are not used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ConnId(pub(crate) u64);

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) domid: DomId,
    pub(crate) privileged: bool,
    pub(crate) transactions: BTreeMap<TxId, Transaction>,
    last_transaction: u32,
    /// Bytes of its watches that are counted for the domain.
    pub(crate) watched: i64,
    pub(crate) output: Outbox,
    /// The store is done with the connection: its domain ended.
    pub(crate) closed: bool,
}

impl Connection {
    pub(crate) fn new(domid: DomId, privileged: bool) -> Self {
        Self {
            domid,
            privileged,
            transactions: BTreeMap::new(),
            last_transaction: 0,
            watched: 0,
            output: Outbox::default(),
            closed: false,
        }
    }

    /// Who causes the events of its requests.
    pub(crate) fn source(&self, id: ConnId) -> Source {
        if self.privileged { Source::Privileged(id) } else { Source::Guest(self.domid) }
    }

    /// Bytes of unsent output from which on it is told in short of the changes that somebody makes.
    pub(crate) fn output_max(&self, source: Option<Source>) -> usize {
        let most = if self.privileged { OUTPUT_MAX } else { GUEST_OUTPUT_MAX };
        if matches!(source, Some(Source::Guest(_))) { most / 4 } else { most }
    }

    /// Opens a transaction, under the next number that is free.
    pub(crate) fn start_transaction(&mut self) -> TxId {
        loop {
            self.last_transaction = self.last_transaction.wrapping_add(1);
            let id = TxId(self.last_transaction);
            if id != TxId::NONE && !self.transactions.contains_key(&id) {
                self.transactions.insert(id, Transaction::default());
                return id;
            }
        }
    }
}
