//! The differences from libxlutil that are intended, each as narrow as it can be said.

use xen_aodevice::vbd::Vdev;

use super::file;
use super::oracle::Question;

/// Why they differ, if that is intended.
pub(super) fn intended(
    question: &Question,
    ours: &Result<String, String>,
    theirs: Option<&str>,
) -> Option<&'static str> {
    match question {
        Question::Disk(arguments) => disk(arguments, ours, theirs),
        Question::Rate(rate) => of_rate(rate, ours, theirs),
        Question::File(text) => file::intended(text, ours, theirs),
    }
}

fn disk(arguments: &[String], ours: &Result<String, String>, theirs: Option<&str>) -> Option<&'static str> {
    if let (Err(error), Some(_)) = (ours, theirs) {
        if error.starts_with("this holds a control character") {
            let holds = |argument: &String| argument.contains(char::is_control);
            return arguments.iter().any(holds).then_some("a control character");
        }
        if arguments.iter().any(|argument| argument.ends_with('=')) {
            return Some("an equals sign at the end, which xl does not notice");
        }
        if error.starts_with("colo-port is no port") {
            return Some("a port that is no decimal number from 1 to 65535");
        }
        let vdev = theirs.and_then(|theirs| serde_json::from_str::<serde_json::Value>(theirs).ok());
        let vdev = vdev.and_then(|disk| disk["vdev"].as_str().map(str::to_owned));
        if vdev.is_some_and(|vdev| Vdev::new(&vdev).is_err()) && error.contains("names no virtual disk") {
            return Some("a vdev that names no disk");
        }
    }
    // It ends where xl's lexer takes a prefix to end, and in some places nothing takes it, which ends xl.
    if arguments.iter().any(|argument| argument.contains('\n')) {
        return Some("a line feed");
    }
    let later = |argument: &String| {
        argument.split([',', ':']).any(|word| {
            matches!(word.trim_start(), "trusted" | "untrusted")
                || word.trim_start().starts_with("grant_usage=")
        })
    };
    arguments.iter().any(later).then_some("a word of later versions of xl")
}

fn of_rate(rate: &str, ours: &Result<String, String>, theirs: Option<&str>) -> Option<&'static str> {
    let octal =
        |number: &str| number.starts_with('0') && number.as_bytes().get(1).is_some_and(u8::is_ascii_digit);
    if rate.split('@').any(octal) {
        return Some("a number with a zero in front, octal for xl");
    }
    if let (Ok(_), None) = (ours, theirs) {
        let digits = rate.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rate[..digits].parse().ok()?;
        return (number > u32::MAX.into()).then_some("a number above 32 bits");
    }
    let is_none = ours.is_err() && theirs.is_some_and(|rate| rate.starts_with("0,"));
    is_none.then_some("a rate below one byte in an interval")
}
