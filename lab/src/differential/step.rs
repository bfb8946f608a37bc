//! What is done to both worlds, and what they answer.

use std::fmt;

use bytes::Bytes;
use xs_proto::{DomId, Message, Op, TxId};

/// Privileged connections.
pub(super) const SOCKETS: usize = 2;

/// The guests, each with one connection while it is introduced. The first two are there when a
/// sequence begins.
pub(super) const GUESTS: [DomId; 3] = [DomId(7), DomId(8), DomId(9)];

pub(super) const CONNS: usize = SOCKETS + GUESTS.len();

/// The number of a guest among the connections, if it is one of ours.
pub(super) fn conn_of(domid: DomId) -> Option<usize> {
    GUESTS.iter().position(|guest| *guest == domid).map(|at| SOCKETS + at)
}

/// A request, on whatever connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) op: Op,
    pub(super) tx: TxId,
    pub(super) payload: Bytes,
}

impl Ask {
    pub(super) fn new(op: Op, payload: impl Into<Bytes>) -> Self {
        Self { op, tx: TxId::NONE, payload: payload.into() }
    }

    /// The strings of the payload; the last may have no NUL.
    pub(super) fn strings(&self) -> impl Iterator<Item = &[u8]> {
        self.payload.split(|byte| *byte == 0)
    }

    /// The domain that the payload begins with.
    pub(super) fn domid(&self) -> Option<DomId> {
        std::str::from_utf8(self.strings().next()?).ok()?.parse().ok()
    }
}

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.tx != TxId::NONE {
            write!(f, "in transaction {}: ", self.tx.0)?;
        }
        write!(f, "{} {}", self.op, show(&self.payload))
    }
}

/// What is done to a domain behind the back of the servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    Create,
    ShutDown,
    Crash,
    Destroy,
}

/// One step of a sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Requests of one connection, in one write.
    Send { conn: usize, asks: Vec<Ask> },
    /// A deed of the hypervisor.
    Domain(Deed, DomId),
    /// A privileged connection is closed, and another takes its place.
    Reconnect(usize),
    /// Everything there is, is read.
    ReadAll,
}

impl Step {
    pub(super) fn requests(&self) -> usize {
        if let Self::Send { asks, .. } = self { asks.len() } else { 0 }
    }
}

/// The name of a connection, for people.
pub(super) fn conn_name(conn: usize) -> String {
    match conn.checked_sub(SOCKETS) {
        Some(guest) => format!("d{}", GUESTS[guest]),
        None => ["a", "b"][conn].to_owned(),
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Send { conn, asks } => {
                let separator = if asks.len() > 1 { "\n      in one write: " } else { " " };
                write!(f, "{}:", conn_name(*conn))?;
                asks.iter().try_for_each(|ask| write!(f, "{separator}{ask}"))
            }
            Self::Domain(deed, domid) => write!(f, "hypervisor: {deed:?} {domid}"),
            Self::Reconnect(conn) => write!(f, "{}: closed, and opened anew", conn_name(*conn)),
            Self::ReadAll => write!(f, "a: reads everything there is"),
        }
    }
}

/// What a step made each connection receive, up to the answer of a request behind it. An answer
/// to [`Step::ReadAll`] names what was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) received: Vec<(usize, Message)>,
    /// Why there is no more, if the server did not answer.
    pub(super) broken: Option<String>,
}

impl Answer {
    /// The same but for the first messages, if these are too many to be told.
    pub(super) fn without(&self, first: usize) -> Self {
        const FEW: usize = 10;
        let received = self.received.get(if first > FEW { first } else { 0 }..).unwrap_or_default();
        Self { received: received.to_vec(), broken: self.broken.clone() }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (conn, Message { op, tx_id, payload, .. }) in &self.received {
            let tx = if *tx_id == TxId::NONE { String::new() } else { format!("in {} ", tx_id.0) };
            writeln!(f, "    {}: {tx}{op} {}", conn_name(*conn), show(payload))?;
        }
        match &self.broken {
            Some(reason) => writeln!(f, "    and then: {reason}"),
            None if self.received.is_empty() => writeln!(f, "    nothing"),
            None => Ok(()),
        }
    }
}

/// Bytes for people; what repeats many times is counted.
pub(super) fn show(bytes: &[u8]) -> String {
    const RUN: usize = 16;
    let mut text = String::from("\"");
    let mut rest = bytes;
    while let Some(first) = rest.first() {
        let run = rest.iter().take_while(|byte| *byte == first).count();
        // Of a pair, as in the path /a/a/a, too.
        let pairs = rest.chunks_exact(2).take_while(|pair| *pair == &rest[..2]).count();
        let (part, times) = match (run, pairs) {
            (RUN.., _) => (&rest[..1], run),
            (_, RUN..) => (&rest[..2], pairs),
            _ => (&rest[..1], 1),
        };
        let shown = part.escape_ascii();
        text += &if times > 1 { format!("{{{times} times {shown}}}") } else { shown.to_string() };
        rest = &rest[part.len() * times..];
    }
    text + "\""
}
