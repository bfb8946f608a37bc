//! Text of others in a form that can be shown: what a script prints, what stands in the store, file names.

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// How many characters of a line of others are shown: [`Output::last_line`](crate::Output::last_line) and
/// the texts of a [`Report`](crate::Report) are no longer.
pub const LINE_SHOWN: usize = 300;

/// How many characters of a path are shown. The kernel's limit is 4096; who has one that is longer than this
/// knows it by its ends.
const PATH_SHOWN: usize = 1000;

/// Stands for what is left out.
const GAP: &str = " [...] ";

/// A text of others in a form that can be shown on a terminal or in a log, in at most `max` characters.
///
/// Control characters, the marks that turn the direction of writing, line separators, and whatever else is
/// not printable are escaped as in `\x1b` and `\u{202e}`, and so are bytes that are not UTF-8. Of a text
/// that is too long the middle is left out: the beginning mostly says who speaks, and the end why. A text
/// that has been made printable stays as it is.
///
/// # Examples
///
/// ```
/// assert_eq!(xen_hotplug::printable("\x1b[2Jno disk", 300), r"\x1b[2Jno disk");
/// assert_eq!(xen_hotplug::printable("losetup: /srv/a-long-name.img: busy", 30), "losetup: /srv/a- [...] g: busy");
/// ```
pub fn printable(text: impl AsRef<[u8]>, max: usize) -> String {
    let (shown, ends) = escape(text.as_ref());
    if shown.chars().count() <= max {
        return shown;
    }
    let room = max.saturating_sub(GAP.len());
    let (head, tail) = (room - room / 3, room / 3);
    // Whole pieces, so that no escape is cut: each is a character of the text, escaped or not.
    let (mut start, mut rest) = (0, shown.len());
    for &end in ends.iter().take(head) {
        if shown[..end].chars().count() <= head {
            start = end;
        }
    }
    for &begin in ends.iter().rev().skip(1).take(tail) {
        if begin >= start && shown[begin..].chars().count() <= tail {
            rest = begin;
        }
    }
    let mut short = format!("{}{GAP}{}", &shown[..start], &shown[rest..]);
    if short.chars().count() > max {
        // Not even the gap has room.
        short = short.chars().take(max).collect();
    }
    short
}

/// A path in a form that can be shown.
pub(crate) fn printable_path(path: &Path) -> String {
    printable(path.as_os_str().as_bytes(), PATH_SHOWN)
}

/// The text with all that is not printable escaped, and where each of its characters ends in that.
fn escape(text: &[u8]) -> (String, Vec<usize>) {
    let mut shown = String::with_capacity(text.len());
    let mut ends = Vec::with_capacity(text.len());
    for chunk in text.utf8_chunks() {
        for letter in chunk.valid().chars() {
            match letter {
                '"' | '\'' | '\\' => shown.push(letter),
                '\n' | '\r' | '\t' => shown.extend(letter.escape_default()),
                // Writing to a String cannot fail.
                control if control.is_ascii_control() => _ = write!(shown, "\\x{:02x}", u32::from(control)),
                // The standard library knows what Unicode calls printable.
                _ => shown.extend(letter.escape_debug()),
            }
            ends.push(shown.len());
        }
        for byte in chunk.invalid() {
            _ = write!(shown, "\\x{byte:02x}");
            ends.push(shown.len());
        }
    }
    (shown, ends)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_printable_is_escaped() {
        for (text, shown) in [
            ("plain \"quoted\" it's C:\\x", "plain \"quoted\" it's C:\\x"),
            ("\x1b[2J\0\x07\x7f", r"\x1b[2J\x00\x07\x7f"),
            ("a\r\n\tb", r"a\r\n\tb"),
            ("Gerät 磁盘", "Gerät 磁盘"),
            // The one-character form of `ESC [`, marks of direction, separators, a mark of byte order.
            ("\u{9b}2J", r"\u{9b}2J"),
            ("a\u{202e}b\u{2066}c\u{200f}", r"a\u{202e}b\u{2066}c\u{200f}"),
            ("\u{2028}\u{2029}\u{85}\u{feff}", r"\u{2028}\u{2029}\u{85}\u{feff}"),
        ] {
            assert_eq!(printable(text, 100), shown);
            assert_eq!(printable(shown, 100), shown, "twice");
        }
        assert_eq!(printable(b"\xff\xfeok\xc3", 100), r"\xff\xfeok\xc3");
    }

    #[test]
    fn the_middle_of_a_long_text_is_left_out() {
        let long = format!("losetup: {}: no free device", "x".repeat(70_000));
        let shown = printable(&long, LINE_SHOWN);
        assert!(shown.starts_with("losetup: xxx") && shown.ends_with("xxx: no free device"), "{shown}");
        assert_eq!(shown.chars().count(), LINE_SHOWN);
        // No escape is cut, and the bound is one of what is shown.
        let shown = printable(vec![0xff; 5000], 60);
        assert_eq!(shown, format!("{} [...] {}", r"\xff".repeat(9), r"\xff".repeat(4)));
        for max in 0..40 {
            assert!(printable(&long, max).chars().count() <= max);
            assert!(printable("\u{202e}".repeat(40), max).chars().count() <= max);
        }
        assert_eq!(printable("ä".repeat(10), 10), "ä".repeat(10));
    }
}
