//! The states, sets of them, and what a `state` node may really hold.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// The state of one end of a paravirtual device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum XenbusState {
    /// No state.
    Unknown = 0,
    /// The nodes are there; no driver has taken them up.
    Initialising = 1,
    /// The backend has begun, and waits for its peer or for hotplug scripts.
    InitWait = 2,
    /// This end has published its rings and waits for its peer.
    Initialised = 3,
    /// In use.
    Connected = 4,
    /// Being torn down, or failed.
    Closing = 5,
    /// Torn down.
    Closed = 6,
    /// Functions of a PCI device come or go.
    Reconfiguring = 7,
    /// The frontend has taken the change up.
    Reconfigured = 8,
}

impl XenbusState {
    /// All states, in order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Unknown,
        Self::Initialising,
        Self::InitWait,
        Self::Initialised,
        Self::Connected,
        Self::Closing,
        Self::Closed,
        Self::Reconfiguring,
        Self::Reconfigured,
    ];

    /// Its number.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The state of a number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Its text in a `state` node.
    pub fn digits(self) -> String {
        self.number().to_string()
    }
}

/// Number and name, as in `5 (Closing)`.
impl fmt::Display for XenbusState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({self:?})", self.number())
    }
}

/// By name, in any case, or by number.
impl FromStr for XenbusState {
    type Err = StateError;

    fn from_str(text: &str) -> Result<Self, StateError> {
        let named = Self::ALL.into_iter().find(|state| format!("{state:?}").eq_ignore_ascii_case(text));
        let numbered = || text.parse().ok().and_then(Self::from_number);
        named.or_else(numbered).ok_or_else(|| StateError(text.chars().take(40).collect()))
    }
}

/// A text that names no state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateError(String);

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = XenbusState::ALL.map(|state| format!("{state:?}")).join(", ");
        write!(f, "{:?} is no XenbusState: give a number from 0 to 8, or one of {names}", self.0)
    }
}

impl std::error::Error for StateError {}

/// As its number.
impl Serialize for XenbusState {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u8(self.number())
    }
}

/// What a `state` node holds. Guests write theirs as they like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateValue {
    /// A state.
    State(XenbusState),
    /// Anything else, at most its first 32 bytes.
    Malformed(Vec<u8>),
}

impl StateValue {
    /// Reads a value: decimal digits from 0 to 8, with blanks around them at most.
    pub fn parse(value: &[u8]) -> Self {
        let trimmed = value.trim_ascii();
        let digits = trimmed.iter().all(u8::is_ascii_digit);
        let number = std::str::from_utf8(trimmed).ok().filter(|_| digits).and_then(|text| text.parse().ok());
        match number.and_then(XenbusState::from_number) {
            Some(state) => Self::State(state),
            None => Self::Malformed(value[..value.len().min(32)].to_vec()),
        }
    }

    /// The state, if it is one.
    pub fn state(&self) -> Option<XenbusState> {
        match self {
            Self::State(state) => Some(*state),
            Self::Malformed(_) => None,
        }
    }
}

impl fmt::Display for StateValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::State(state) => state.fmt(f),
            Self::Malformed(bytes) => write!(f, "\"{}\", which is no state", bytes.escape_ascii()),
        }
    }
}

/// A state as its number, anything else as the text that stands there.
impl Serialize for StateValue {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::State(state) => state.serialize(to),
            Self::Malformed(_) => to.collect_str(self),
        }
    }
}

/// A set of states.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct StateSet(u16);

impl StateSet {
    /// No state.
    pub const EMPTY: Self = Self(0);

    /// The set of these states.
    pub const fn of(states: &[XenbusState]) -> Self {
        let mut bits = 0;
        let mut index = 0;
        while index < states.len() {
            bits |= 1 << states[index].number();
            index += 1;
        }
        Self(bits)
    }

    /// Whether the state is one of them.
    pub const fn contains(self, state: XenbusState) -> bool {
        self.0 & (1 << state.number()) != 0
    }

    /// The states, in order of their numbers.
    pub fn iter(self) -> impl Iterator<Item = XenbusState> {
        XenbusState::ALL.into_iter().filter(move |state| self.contains(*state))
    }
}

/// As in `2 (InitWait), 3 (Initialised) or 4 (Connected)`.
impl fmt::Display for StateSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let states: Vec<String> = self.iter().map(|state| state.to_string()).collect();
        match states.split_last() {
            Some((last, [])) => f.write_str(last),
            Some((last, rest)) => write!(f, "{} or {last}", rest.join(", ")),
            None => f.write_str("no state"),
        }
    }
}

impl fmt::Debug for StateSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values() {
        for (text, state) in [("0", 0), ("4", 4), (" 6\n", 6), ("8", 8), ("04", 4)] {
            assert_eq!(StateValue::parse(text.as_bytes()).state(), XenbusState::from_number(state), "{text}");
        }
        for text in ["", "9", "-1", "+4", "4x", "0x4", "4 4", "256", "99999999999999999999", "\u{664}"] {
            assert_eq!(StateValue::parse(text.as_bytes()).state(), None, "{text}");
        }
    }

    #[test]
    fn names() {
        assert_eq!("connected".parse(), Ok(XenbusState::Connected));
        assert_eq!("6".parse(), Ok(XenbusState::Closed));
        assert!("9".parse::<XenbusState>().is_err());
    }

    #[test]
    fn sets_read_as_sentences() {
        use XenbusState::{Closed, Connected, InitWait};
        assert_eq!(StateSet::of(&[Closed]).to_string(), "6 (Closed)");
        assert_eq!(
            StateSet::of(&[Closed, InitWait, Connected]).to_string(),
            "2 (InitWait), 4 (Connected) or 6 (Closed)"
        );
        assert_eq!(StateSet::EMPTY.to_string(), "no state");
    }

    proptest! {
        #[test]
        fn any_value_is_taken_and_kept_short(value: Vec<u8>) {
            if let StateValue::Malformed(kept) = StateValue::parse(&value) {
                prop_assert!(kept.len() <= 32 && value.starts_with(&kept));
            }
        }
    }
}
