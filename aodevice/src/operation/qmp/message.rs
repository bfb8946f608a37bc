//! What QEMU says: bytes to lines, lines to messages.

use serde_json::{Map, Value};

use super::{LINE_MAX, MonitorError};
use crate::operation::observe::shown;

/// The lines of a stream, as its bytes come in.
#[derive(Debug, Default)]
pub(super) struct Lines {
    bytes: Vec<u8>,
    /// How many of the bytes are known to hold no end of a line.
    searched: usize,
}

impl Lines {
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next line that is whole; an error once one is too long.
    pub(super) fn next(&mut self) -> Result<Option<Vec<u8>>, MonitorError> {
        let end = self.bytes[self.searched..].iter().position(|byte| *byte == b'\n');
        let Some(end) = end.map(|end| self.searched + end) else {
            self.searched = self.bytes.len();
            let too_long = self.bytes.len() > LINE_MAX;
            return if too_long { Err(MonitorError::TooLong(LINE_MAX)) } else { Ok(None) };
        };
        self.searched = 0;
        let line = self.bytes.drain(..=end).collect();
        if end > LINE_MAX { Err(MonitorError::TooLong(LINE_MAX)) } else { Ok(Some(line)) }
    }
}

/// Why QEMU did not do what it was asked to: its own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Its kind: `GenericError`, `DeviceNotFound`.
    pub(in crate::operation) class: String,
    pub(in crate::operation) said: String,
}

impl Refusal {
    /// Whether the guest has locked the tray. QEMU has asked it to open that then.
    pub(crate) fn is_locked(&self) -> bool {
        self.said.contains("is locked")
    }

    /// Whether QEMU has no such drive.
    pub(crate) fn is_not_found(&self) -> bool {
        self.class == "DeviceNotFound"
    }

    /// In a form that can be shown.
    pub(crate) fn shown(&self) -> String {
        shown(self.said.as_bytes())
    }
}

/// A message of QEMU's.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Message {
    /// The first, with the number before the first dot of QEMU's version.
    Greeting { major: Option<u64> },
    /// Something that nobody asked for.
    Event,
    /// An answer. Its id is that of the command, or missing where QEMU could not read that.
    Answer { id: Option<Value>, answer: Result<Value, Refusal> },
}

impl Message {
    pub(super) fn parse(line: &[u8]) -> Result<Self, MonitorError> {
        let strange = || MonitorError::Strange(shown(line.trim_ascii()));
        let mut message: Map<String, Value> = serde_json::from_slice(line).map_err(|_| strange())?;
        let id = message.get("id").cloned();
        if let Some(value) = message.remove("return") {
            return Ok(Self::Answer { id, answer: Ok(value) });
        }
        if let Some(error) = message.get("error") {
            let text = |name| Some(error.get(name)?.as_str()?.to_owned());
            let refusal = text("class").zip(text("desc")).map(|(class, said)| Refusal { class, said });
            return Ok(Self::Answer { id, answer: Err(refusal.ok_or_else(strange)?) });
        }
        if message.contains_key("event") {
            return Ok(Self::Event);
        }
        let greeting = message.get("QMP").ok_or_else(strange)?;
        Ok(Self::Greeting { major: greeting["version"]["qemu"]["major"].as_u64() })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_come_in_pieces_and_in_heaps() {
        let mut lines = Lines::default();
        let mut all = Vec::new();
        for piece in ["a", "b\r", "\nc\n\nd", "", "\n", "e"] {
            lines.feed(piece.as_bytes());
            while let Some(line) = lines.next().unwrap() {
                all.push(String::from_utf8(line).unwrap());
            }
        }
        assert_eq!(all, ["ab\r\n", "c\n", "\n", "d\n"]);
    }

    #[test]
    fn a_line_has_a_bound_with_and_without_its_end() {
        let mut endless = Lines::default();
        endless.feed(&[b'x'; LINE_MAX]);
        assert!(matches!(endless.next(), Ok(None)));
        endless.feed(b"x");
        assert!(matches!(endless.next(), Err(MonitorError::TooLong(LINE_MAX))));
        let mut long = Lines::default();
        long.feed(&[b'x'; LINE_MAX + 1]);
        long.feed(b"\n");
        assert!(matches!(long.next(), Err(MonitorError::TooLong(LINE_MAX))));
    }

    #[test]
    fn what_qemu_says() {
        let parse = |text: &str| Message::parse(text.as_bytes());
        let answer = |id, answer| Message::Answer { id, answer };
        let greeting = r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}"#;
        assert_eq!(parse(greeting).unwrap(), Message::Greeting { major: Some(7) });
        assert_eq!(parse(r#"{"QMP": []}"#).unwrap(), Message::Greeting { major: None });
        let event =
            r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "DEVICE_TRAY_MOVED", "data": {}}"#;
        assert_eq!(parse(event).unwrap(), Message::Event);
        let done = r#"{"return": {"fdset-id": 0, "fd": 19}, "id": 3}"#;
        assert_eq!(parse(done).unwrap(), answer(Some(json!(3)), Ok(json!({"fdset-id": 0, "fd": 19}))));
        let locked = r#"{"id": 4, "error": {"class": "GenericError", "desc": "Device 'ide-5632' is locked and force was not specified, wait for tray to open and try again"}}"#;
        let Message::Answer { id, answer: Err(refusal) } = parse(locked).unwrap() else { panic!() };
        assert_eq!((id, refusal.is_locked(), refusal.is_not_found()), (Some(json!(4)), true, false));
        let absent = r#"{"error": {"class": "DeviceNotFound", "desc": "Device '\u001b[2J' not found"}}"#;
        let Message::Answer { id: None, answer: Err(refusal) } = parse(absent).unwrap() else { panic!() };
        assert_eq!((refusal.is_locked(), refusal.is_not_found()), (false, true));
        assert!(!refusal.shown().contains('\u{1b}'), "{}", refusal.shown());
    }

    #[test]
    fn what_is_no_message_is_told_escaped_and_short() {
        let deep = "[".repeat(60_000);
        for text in
            ["", "x", "{}", "[]", r#"{"error": 1}"#, r#"{"error": {"class": "x"}}"#, "\u{1b}[2J", &deep]
        {
            let error = Message::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(!error.contains('\u{1b}') && error.len() < 400, "{error}");
        }
    }
}
