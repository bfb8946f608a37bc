//! Configuration files: what they are made of, what we make of them, and where that differs from libxlutil on purpose.

use std::fmt::Write;

use fastrand::Rng;
use xen_aodevice::xl_cfg::{Settings, Value};

use super::oracle::{NAMES, Question};

/// What texts are made of: characters that mean something outside of them, and escapes, good ones and others.
const PIECES: [&str; 26] = [
    "/srv/d.img",
    ",",
    "raw",
    "xvda",
    "=",
    "w",
    " ",
    "#",
    ";",
    "[",
    "]",
    "\t",
    "é",
    "\\\\",
    "\\\"",
    "\\'",
    "\\t",
    "\\n",
    "\\a",
    "\\v",
    "'",
    "\"",
    "\\101",
    "\\x41",
    "\\q",
    "\\",
];
const NUMBERS: [&str; 10] = ["0", "1", "42", "007", "0x1f", "0abc", "1x2", "0xAF", "12.5", "-1"];
const GAPS: [&str; 8] = ["", "", " ", "\t", "\n", "\n\n", " # c, ]\n", "  "];
const ENDS: [&str; 9] = ["\n", "\n", "\n", ";", " ; ", " # comment = 1\n", "\n\n", "\n# c\n", "\n;\n"];
/// What stands where it must not, or only just may.
const NONSENSE: [&str; 18] =
    [",", "]", "[", "=", "+=", "#", "\r", "\r\n", "b", "off", "\\", "A", "_", "@", "\u{c}", "1 2", "'", "-"];

fn one<'a>(rng: &mut Rng, of: &[&'a str]) -> &'a str {
    of[rng.usize(..of.len())]
}

/// A text in quotes, mostly without what would end it.
fn text(rng: &mut Rng) -> String {
    let quote = if rng.bool() { '\'' } else { '"' };
    let mut text = String::from(quote);
    for _ in 0..rng.usize(..6) {
        // Those at the end are refused, most of them.
        let pieces: &[&str] = if rng.u8(..60) == 0 { &PIECES } else { &PIECES[..20] };
        text += one(rng, pieces);
    }
    text.push(quote);
    text
}

fn value(rng: &mut Rng, depth: u8) -> String {
    match rng.u8(..10) {
        0..5 => text(rng),
        5..7 => {
            let numbers: &[&str] = if rng.u8(..8) == 0 { &NUMBERS } else { &NUMBERS[..7] };
            one(rng, numbers).to_owned()
        }
        _ if depth == 3 => text(rng),
        _ => {
            let mut list = String::from("[");
            let elements = rng.usize(..4);
            for index in 0..elements {
                let comma = if index == 0 { "" } else { "," };
                let (before, after) = (one(rng, &GAPS), one(rng, &GAPS));
                _ = write!(list, "{comma}{before}{}{after}", value(rng, depth + 1));
            }
            if rng.u8(..4) == 0 {
                list.push(',');
            }
            list + one(rng, &GAPS) + "]"
        }
    }
}

/// A file of some settings, nearly right.
pub(super) fn generate(rng: &mut Rng) -> Question {
    const BLANKS: [&str; 4] = ["", "", " ", "\t "];
    let mut file = String::new();
    for _ in 0..rng.usize(1..5) {
        let appends = if rng.u8(..4) == 0 { "+=" } else { "=" };
        let (name, before, after) = (one(rng, &NAMES), one(rng, &BLANKS), one(rng, &BLANKS));
        _ = write!(file, "{name}{before}{appends}{after}{}{}", value(rng, 0), one(rng, &ENDS));
    }
    if rng.u8(..4) == 0 {
        file.truncate(file.trim_end().len());
    }
    if rng.u8(..4) == 0 {
        let places: Vec<usize> = file.char_indices().map(|(at, _)| at).collect();
        let at = places[rng.usize(..places.len())];
        match rng.bool() {
            true => file.insert_str(at, one(rng, &NONSENSE)),
            false => _ = file.remove(at),
        }
    }
    Question::File(file)
}

fn shown(value: &Value) -> String {
    match value {
        Value::Text(text) => text.bytes().fold("'".to_owned(), |hex, byte| format!("{hex}{byte:02x}")),
        Value::List(items) => {
            let items: String = items.iter().map(|item| shown(&item.value) + ",").collect();
            format!("[{items}]")
        }
    }
}

/// The settings of a file, as the oracle prints them.
pub(super) fn ours(text: &str) -> Result<String, String> {
    let settings = Settings::parse(text).map_err(|error| error.to_string())?;
    let there = NAMES.iter().filter_map(|name| Some((name, settings.get(name)?)));
    Ok(there.map(|(name, item)| format!("{name}={};", shown(&item.value))).collect())
}

/// Why they differ, if that is intended.
pub(super) fn intended(
    text: &str,
    ours: &Result<String, String>,
    theirs: Option<&str>,
) -> Option<&'static str> {
    let last = text.rsplit('\n').next().unwrap_or_default();
    match (ours, theirs) {
        (Ok(_), None) if text.contains('\r') => Some("a carriage return, for which xl has no rule"),
        (Ok(_), None) if last.contains('#') => Some("a comment in the last line, without a line feed"),
        (Err(_), Some(_)) if text.contains("\\1") => Some("a character by its octal number, which xl loses"),
        // Its lexer's last error is not asked for.
        (Err(error), Some(_)) if is_about_last_word(error, text) => {
            Some("an error in the last word of a file")
        }
        _ => None,
    }
}

/// Whether what cannot stand there is the last word of the last line.
fn is_about_last_word(error: &str, text: &str) -> bool {
    let last_line = format!("{}: ", text.matches('\n').count() + 1);
    error.starts_with(&last_line)
}
