//! What the daemon notes of a device, so that what it does after a restart is no guess.
//!
//! A note is the value of one node, `libxl/<fe>/devd/<kind>/<devid>` in the home of the domain that serves: a JSON
//! object. It names the add that it is about by a token, which stands in the backend's directory too
//! ([`MARKER`](super::place::MARKER)). A toolstack that makes a device anew makes that directory anew, without the
//! token: so two devices of one id are told apart, also where nobody has seen the first go.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use xen_hotplug::{LINE_SHOWN, printable};

use crate::kind::Recorded;
use crate::operation::saved::{BEFORE, FILE, SEQUENCE};

/// How far a device has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Stage {
    /// Its script is setting it up, or was when the daemon died.
    Adding,
    /// What it needs is there.
    Attached,
    /// It could not be set up.
    Failed,
    /// Its script is undoing its work, or was when the daemon died.
    Removing,
    /// Its script could not be started to undo its work: the next daemon tries again.
    Postponed,
}

/// The longest note, in bytes: a node of a domain that is not domain 0 may have 2048, with its permissions and the names of
/// its children.
const LONGEST: usize = 1700;

/// The keys that a script needs above all.
const NEEDED: [&str; 8] = ["script", "type", "node", "params", "vifname", BEFORE, FILE, SEQUENCE];

/// The note of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    pub(super) stage: Stage,
    /// The add that it is about.
    pub(super) token: String,
    /// When it came to that, in seconds since 1970.
    pub(super) since: u64,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    /// No script was ever started for it: nothing is to be undone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) untouched: bool,
    /// The backend's keys that the script needs to undo its work, and what was seen before it ran.
    #[serde(default)]
    pub(super) keys: Recorded,
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Note {
    /// The note of an add that begins.
    pub(super) fn new(stage: Stage, keys: Recorded) -> Self {
        let token = format!("{:016x}", fastrand::u64(..));
        Self { stage, token, since: now(), error: None, untouched: false, keys }
    }

    /// The same device at another stage.
    pub(super) fn at(&self, stage: Stage, error: Option<String>) -> Self {
        Self { stage, since: now(), error, ..self.clone() }
    }

    /// What stands in a node; `None` if that is no note.
    pub(super) fn parse(value: &[u8]) -> Option<Self> {
        serde_json::from_slice(value).ok()
    }

    /// Its text. Without the keys that are least needed, or all of them, if it would be too long: a removal has those of the
    /// backend then.
    pub(super) fn text(&self) -> String {
        // A map of texts can always be written.
        let text = |note: &Self| serde_json::to_string(note).unwrap_or_default();
        let error = self.error.as_ref().map(|error| printable(error, LINE_SHOWN));
        let needed = |(key, _): &(&String, &String)| NEEDED.contains(&key.as_str());
        let needed =
            self.keys.iter().filter(needed).map(|(key, value)| (key.clone(), value.clone())).collect();
        let texts = [self.keys.clone(), needed, Recorded::new()]
            .map(|keys| text(&Self { error: error.clone(), keys, ..self.clone() }));
        let last = texts[2].clone();
        texts.into_iter().find(|text| text.len() <= LONGEST).unwrap_or(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_was_written_and_always_fits() {
        let keys = Recorded::from([("params".to_owned(), "/srv/d.img".to_owned())]);
        let note = Note::new(Stage::Adding, keys);
        assert_eq!(Note::parse(note.text().as_bytes()), Some(note.clone()));
        assert_ne!(Note::new(Stage::Adding, Recorded::new()).token, note.token);

        let some = Recorded::from([
            ("ip".to_owned(), "x".repeat(1700)),
            ("node".to_owned(), "/dev/loop0".to_owned()),
        ]);
        let read = Note::parse(Note::new(Stage::Failed, some).text().as_bytes()).unwrap();
        assert_eq!(read.keys, Recorded::from([("node".to_owned(), "/dev/loop0".to_owned())]));

        let long = Recorded::from([("params".to_owned(), "\u{1}".repeat(4000))]);
        let long = Note { error: Some("x".repeat(9000)), ..Note::new(Stage::Failed, long) };
        let read = Note::parse(long.text().as_bytes()).unwrap();
        assert_eq!((read.stage, &read.token, read.keys.len()), (Stage::Failed, &long.token, 0));
        assert!(long.text().len() <= LONGEST);

        for junk in ["", "attached", "{}", r#"{"stage":"lost","token":"1","since":0}"#] {
            assert_eq!(Note::parse(junk.as_bytes()), None, "{junk}");
        }
    }
}
