//! What can go wrong between a client and its store.

use std::fmt;

use fastrand::Rng;
use xs_proto::{ErrorCode, Op};

/// Faults happen in this time, in milliseconds since the beginning; then it is calm.
pub(super) const STORM: u64 = 1000;

/// One of a slice that is not empty.
pub(super) fn pick<'a, T>(rng: &mut Rng, from: &'a [T]) -> &'a T {
    &from[rng.usize(0..from.len())]
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    ToStore,
    ToClient,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ToStore => "to the store",
            Self::ToClient => "to the client",
        })
    }
}

/// Bytes that are no message, or not one that may come. Each of them must end the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Garbage {
    /// What some other server would say.
    Text,
    /// A header that announces more than any reply has.
    TooLong,
    /// The reply to a request that nobody has made.
    Unasked,
    /// A reply of another operation than was asked.
    OtherOp,
    /// A watch event without a token.
    NoEvent,
    /// Anything, and then the end.
    Random,
}

const GARBAGE: [Garbage; 6] =
    [Garbage::Text, Garbage::TooLong, Garbage::Unasked, Garbage::OtherOp, Garbage::NoEvent, Garbage::Random];

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// Each message takes up to so many milliseconds longer.
    Delay { way: Way, up_to: u64 },
    /// No write has more than so many bytes.
    Fragment { way: Way, bytes: usize },
    /// What comes meanwhile is written at once in the end.
    Coalesce { way: Way },
    /// Nothing gets through, and nothing is taken: longer than a deadline, as a rule.
    Stall { way: Way },
    /// Replies come in another order.
    Reorder,
    /// The connection ends between two messages.
    Cut,
    /// The connection ends after so many bytes of the next message.
    CutInside { way: Way, bytes: usize },
    /// The store says what it may not.
    Garbage(Garbage),
    /// So many commits are aborted, and answered with EAGAIN.
    Again { commits: u32 },
    /// So many requests of an operation are refused; the store does not hear of them.
    Refuse { op: Op, code: ErrorCode, requests: u32 },
    /// So many watch events that nothing has caused, of watches that are there or of none.
    Flood { events: usize, known: bool },
    /// The daemon ends, and another one starts: with the nodes that were there, or without.
    Restart { keep: bool },
    /// A daemon that does not stand: each connection ends after so many messages to the client; with
    /// none, at the first request.
    Flap { messages: u32 },
    /// The connection ends, and those made meanwhile say nothing, and end when it is over.
    Mute,
}

/// Something that happens in the storm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// Milliseconds since the beginning.
    pub(super) at: u64,
    /// For so many milliseconds, but never beyond the storm; none for what happens once.
    pub(super) lasts: u64,
    /// For what is chosen while it happens, so that each fault does the same without the others.
    pub(super) seed: u64,
    pub(super) what: What,
}

/// All kinds of faults, and what else has to happen in the schedules.
pub(super) const KINDS: [&str; 20] = [
    "delay",
    "fragment",
    "coalesce",
    "stall",
    "reorder",
    "cut",
    "cut inside",
    "garbage",
    "EAGAIN",
    "refuse",
    "flood",
    "restart",
    "restart, empty",
    "kept clone",
    "cut batch",
    "flap",
    "mute",
    "way closed",
    "refused again",
    "knocks",
];

/// Those from here on happen only to a client that makes a lost connection again.
pub(super) const FIRST_AGAIN: usize = 15;

/// What is no fault, but has to happen.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    /// Who has a clone of a transaction goes on after its end.
    KeptClone = 13,
    /// A connection ends when a part of a batch was sent.
    CutBatch = 14,
    /// The way that was found is closed, and another one is open.
    WayClosed = 17,
    /// A watch is refused that an earlier connection had.
    RefusedAgain = 18,
    /// Many calls are given up while no store says anything.
    Knocks = 19,
}

impl What {
    /// The place of its kind in [`KINDS`].
    pub(super) fn kind(&self) -> usize {
        match self {
            Self::Delay { .. } => 0,
            Self::Fragment { .. } => 1,
            Self::Coalesce { .. } => 2,
            Self::Stall { .. } => 3,
            Self::Reorder => 4,
            Self::Cut => 5,
            Self::CutInside { .. } => 6,
            Self::Garbage(_) => 7,
            Self::Again { .. } => 8,
            Self::Refuse { .. } => 9,
            Self::Flood { .. } => 10,
            Self::Restart { keep: true } => 11,
            Self::Restart { keep: false } => 12,
            Self::Flap { .. } => 15,
            Self::Mute => 16,
        }
    }

    /// Whether something is done when it begins, and only then.
    pub(super) fn happens_once(&self) -> bool {
        matches!(
            self,
            Self::Cut
                | Self::CutInside { .. }
                | Self::Garbage(_)
                | Self::Flood { .. }
                | Self::Restart { .. }
                | Self::Mute
        )
    }

    /// Whether it ends the connection.
    pub(super) fn ends(&self) -> bool {
        matches!(self, Self::Cut | Self::CutInside { .. } | Self::Garbage(_) | Self::Flap { .. })
            || self.silences()
    }

    /// Whether the client is without a store that says anything, for as long as it lasts.
    pub(super) fn silences(&self) -> bool {
        matches!(self, Self::Restart { .. } | Self::Mute)
    }
}

impl Fault {
    /// One that the connection outlives.
    pub(super) fn survived(rng: &mut Rng) -> Self {
        let way = *pick(rng, &[Way::ToStore, Way::ToClient]);
        let (lasts, what) = match rng.u8(0..9) {
            0 => (rng.u64(50..400), What::Delay { way, up_to: rng.u64(1..40) }),
            1 => (rng.u64(1..60), What::Fragment { way, bytes: *pick(rng, &[1, 1, 3, 16, 17]) }),
            2 => (rng.u64(5..40), What::Coalesce { way }),
            3 => (rng.u64(100..600), What::Stall { way }),
            4 => (rng.u64(10..150), What::Reorder),
            5 => (0, What::Again { commits: *pick(rng, &[1, 3, 10, 200]) }),
            6 | 7 => {
                let (op, codes): (_, &[ErrorCode]) = match rng.u8(0..8) {
                    0 => (Op::DIRECTORY, &[ErrorCode::E2BIG]),
                    1 => (Op::MKDIR, &[ErrorCode::ENOSPC]),
                    2 => (Op::TRANSACTION_START, &[ErrorCode::ENOSPC]),
                    3 => (Op::TRANSACTION_END, &[ErrorCode::ENOSPC, ErrorCode::ENOMEM]),
                    // In a transaction, a view that others have changed.
                    4 => (Op::WRITE, &[ErrorCode::EIO]),
                    5 | 6 => (Op::WATCH, &[ErrorCode::E2BIG, ErrorCode::ENOSPC]),
                    _ => (Op::WRITE, &[ErrorCode::ENOSPC, ErrorCode::E2BIG, ErrorCode::ENOMEM]),
                };
                // What oxenstored says to all of these.
                let equota = op != Op::DIRECTORY && rng.u8(0..3) == 0;
                let code =
                    if equota { ErrorCode::Other(b"EQUOTA"[..].into()) } else { pick(rng, codes).clone() };
                (0, What::Refuse { op, code, requests: *pick(rng, &[1, 2, 20]) })
            }
            _ => (0, What::Flood { events: *pick(rng, &[10, 300, 3000]), known: rng.u8(0..4) > 0 }),
        };
        Self { at: rng.u64(0..STORM), lasts, seed: rng.u64(..), what }
    }

    /// One that ends the connection, which is made again or not.
    pub(super) fn ending(rng: &mut Rng, again: bool) -> Self {
        let way = *pick(rng, &[Way::ToStore, Way::ToClient]);
        let (lasts, what) = match rng.u8(0..if again { 9 } else { 5 }) {
            0 => (0, What::Cut),
            1 => (0, What::CutInside { way, bytes: *pick(rng, &[1, 8, 15, 16, 17, 20]) }),
            2 => (0, What::Garbage(*pick(rng, &GARBAGE))),
            3 | 4 => (rng.u64(1..300), What::Restart { keep: rng.bool() }),
            5 | 6 => (rng.u64(100..600), What::Flap { messages: *pick(rng, &[0, 1, 1, 2]) }),
            _ => (rng.u64(50..400), What::Mute),
        };
        Self { at: rng.u64(0..STORM), lasts, seed: rng.u64(..), what }
    }

    /// The daemon ends, refuses connections, and is back.
    pub(super) fn refusing(rng: &mut Rng) -> Self {
        let what = What::Restart { keep: rng.bool() };
        // An odd seed refuses.
        Self { at: rng.u64(0..STORM), lasts: rng.u64(20..300), seed: rng.u64(..) | 1, what }
    }

    /// The store is full, and takes no watches.
    pub(super) fn full(rng: &mut Rng, at: u64) -> Self {
        let what = What::Refuse { op: Op::WATCH, code: ErrorCode::ENOSPC, requests: *pick(rng, &[1, 2, 20]) };
        Self { at, lasts: 0, seed: rng.u64(..), what }
    }

    /// Whether it is happening, `now` in milliseconds since the beginning.
    pub(super) fn is_on(&self, now: u64) -> bool {
        (self.at..self.until()).contains(&now)
    }

    /// When it is over.
    pub(super) fn until(&self) -> u64 {
        (self.at + self.lasts).min(STORM)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {} ms", self.at)?;
        if self.lasts > 0 {
            write!(f, ", for {} ms", self.lasts)?;
        }
        f.write_str(": ")?;
        match &self.what {
            What::Delay { way, up_to } => write!(f, "messages {way} take up to {up_to} ms longer"),
            What::Fragment { way, bytes } => write!(f, "at most {bytes} bytes at once {way}"),
            What::Coalesce { way } => write!(f, "messages {way} are held back, then written at once"),
            What::Stall { way } => write!(f, "nothing gets {way}"),
            What::Reorder => f.write_str("replies are held back, then given in another order"),
            What::Cut => f.write_str("the connection ends"),
            What::CutInside { way, bytes } => {
                write!(f, "the connection ends {bytes} bytes into a message {way}")
            }
            What::Garbage(garbage) => write!(f, "the client gets garbage ({garbage:?})"),
            What::Again { commits } => write!(f, "the next {commits} commits conflict"),
            What::Refuse { op, code, requests } => {
                write!(f, "the next {requests} of {op} are refused with {code}")
            }
            What::Flood { events, known } => {
                let of = if *known { "watches that are there" } else { "unknown watches" };
                write!(f, "{events} events of {of}")
            }
            What::Restart { keep } => {
                let with = if *keep { "all nodes" } else { "no nodes" };
                write!(f, "the daemon is gone, and then back with {with}")
            }
            What::Flap { messages } => {
                write!(f, "each connection ends after {messages} messages to the client")
            }
            What::Mute => f.write_str("the connection ends, and the next ones say nothing"),
        }
    }
}
