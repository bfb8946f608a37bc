//! The operation record: who works on a device, since when, and how far he is.
//!
//! It is one node, `op`, in the toolstack's directory of the device:
//!
//! ```text
//! add:93c1f00ddeadbeef stage=script since=1795790123 domid=0 pid=4711 start=123456 boot=3b1c… ns=4026531836
//! ```
//!
//! The record is written in the transaction that creates or claims the device, and removed in the one
//! that ends the operation. While it is there, nobody else runs the device's scripts or moves its
//! states, unless its owner is dead.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};

use super::owner::Owner;
use crate::Operation;

/// How far an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Stage {
    /// The backend is to take the device up.
    Backend,
    /// The same, and then the script that adds runs: the backend's state tells which of the two.
    Script,
    /// The guest is to connect.
    Guest,
    /// Both ends are to close, and then the script that removes runs.
    Closing,
    /// The script that removes runs, by hand.
    Undoing,
    /// Nobody works on it any more: the operation ended here.
    Left,
}

impl Stage {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Backend, "backend"),
        (Self::Script, "script"),
        (Self::Guest, "guest"),
        (Self::Closing, "closing"),
        (Self::Undoing, "undoing"),
        (Self::Left, "left"),
    ];

    fn word(self) -> &'static str {
        Self::ALL.iter().find(|(stage, _)| *stage == self).map_or("", |(_, word)| word)
    }

    fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, name)| *name == word).map(|(stage, _)| *stage)
    }
}

/// What tells one operation from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(pub(crate) u64);

impl Token {
    pub(crate) fn random() -> Self {
        Self(fastrand::u64(..))
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// An operation on a device, as it is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// What is being done.
    pub operation: Operation,
    /// Which operation it is.
    pub token: Token,
    /// How far it is.
    pub stage: Stage,
    /// When it began, in seconds since 1970.
    pub since: u64,
    /// Who does it; `None` if the record does not say, as those of earlier versions.
    pub owner: Option<Owner>,
}

impl Record {
    pub(crate) fn new(operation: Operation, owner: Owner) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Self { operation, token: Token::random(), stage: Stage::Backend, since, owner: Some(owner) }
    }

    pub(crate) fn at(&self, stage: Stage) -> Self {
        Self { stage, ..self.clone() }
    }

    /// How long ago it began, by this machine's clock.
    pub fn age(&self) -> Duration {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        now.saturating_sub(Duration::from_secs(self.since))
    }

    /// Whether an `op` node, if it is there, is the record of this operation.
    pub(crate) fn is_of(text: Option<&str>, token: Token) -> bool {
        text.and_then(Self::parse).is_some_and(|record| record.token == token)
    }

    /// Reads the value of an `op` node. Fields that are not known are passed by.
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let (operation, token) = words.next()?.split_once(':')?;
        let operation = match operation {
            "add" => Operation::Attach,
            "remove" => Operation::Detach,
            _ => return None,
        };
        let token = Token(u64::from_str_radix(token, 16).ok()?);
        let mut record = Self { operation, token, stage: Stage::Backend, since: 0, owner: None };
        for (key, value) in words.clone().filter_map(|word| word.split_once('=')) {
            match key {
                "stage" => record.stage = Stage::from_word(value)?,
                "since" => record.since = value.parse().ok()?,
                _ => {}
            }
        }
        record.owner = Owner::parse(words);
        Some(record)
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operation = match self.operation {
            Operation::Attach => "add",
            Operation::Detach => "remove",
            // These leave no record: the device stays as it is.
            Operation::Insert => "insert",
            Operation::Eject => "eject",
            Operation::Script => "script",
        };
        let Self { token, stage, since, owner, .. } = self;
        write!(f, "{operation}:{token} stage={} since={since}", stage.word())?;
        owner.as_ref().map_or(Ok(()), |owner| write!(f, " {owner}"))
    }
}

/// As its text.
impl Serialize for Record {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Whose operation a device is in the middle of.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Occupant {
    /// The record's text, by which a change is noticed.
    pub(crate) text: String,
    /// What it says; `None` if it cannot be understood.
    pub record: Option<Record>,
    /// Whether its owner still works on it, as far as that can be told.
    pub alive: bool,
    /// Whether its owner is a process that can be seen from here.
    pub seen: bool,
}

impl Occupant {
    /// The operation of a record with this text.
    pub fn new(text: impl Into<String>, alive: bool) -> Self {
        let text = text.into();
        Self { record: Record::parse(&text), text, alive, seen: alive }
    }

    /// Whether it is an add that died.
    pub(crate) fn is_dead_add(&self) -> bool {
        !self.alive && self.record.as_ref().is_some_and(|record| record.operation == Operation::Attach)
    }
}

/// As in `an attach by process 4711 of domain 0`.
impl fmt::Display for Occupant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(record) = &self.record else {
            return f.write_str("an operation whose record cannot be understood");
        };
        write!(f, "{} {}", if record.operation == Operation::Attach { "an" } else { "a" }, record.operation)?;
        match &record.owner {
            Some(owner) => write!(f, " by process {} of domain {}", owner.pid, owner.domid),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let owner = Owner::of_this_process(xs_client::DomId(3));
        for operation in [Operation::Attach, Operation::Detach] {
            for (stage, _) in Stage::ALL {
                let record = Record::new(operation, owner.clone()).at(stage);
                assert_eq!(Record::parse(&record.to_string()), Some(record));
            }
        }
    }

    #[test]
    fn records_of_others_are_read_as_far_as_they_go() {
        let old = Record::parse("remove:07fe").unwrap();
        assert_eq!((old.operation, old.token, old.owner), (Operation::Detach, Token(0x07fe), None));
        let newer = Record::parse("add:1 colour=red stage=script since=5").unwrap();
        assert_eq!((newer.stage, newer.since), (Stage::Script, 5));
        for text in ["", "add", "add:", "add:x", "move:1", "add:1 stage=?", "add:1 since=-1"] {
            assert_eq!(Record::parse(text), None, "{text:?}");
        }
    }
}
