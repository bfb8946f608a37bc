//! The words `key=value` by which xl's commands and configurations describe most kinds of device.

use thiserror::Error;

/// Why a description of a device is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SpecError {
    /// The parameter is not known.
    #[error("{0:?} is no parameter")]
    Unknown(String),
    /// The value cannot be had.
    #[error("{near:?}: {problem}")]
    Value {
        /// The parameter.
        near: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The parameter must be said, and was not.
    #[error("{0}= is missing")]
    Missing(&'static str),
}

/// Reads the parameters of arguments, each of which is `key=value`, with commas between them or as an argument of
/// its own. Blanks around one do not count. What is said twice counts as it was said last.
///
/// `take` is given each, and says whether it knows the key, or what is wrong with the value.
pub(super) fn read(
    arguments: &[impl AsRef<str>],
    mut take: impl FnMut(&str, &str) -> Result<bool, &'static str>,
) -> Result<(), SpecError> {
    let words = arguments.iter().flat_map(|argument| argument.as_ref().split(',')).map(str::trim);
    for word in words.filter(|word| !word.is_empty()) {
        let near = || word.chars().take(80).collect();
        let value_error = |problem| SpecError::Value { near: near(), problem };
        if word.contains(char::is_control) {
            return Err(value_error("it holds a control character"));
        }
        let (key, value) = word.split_once('=').ok_or_else(|| SpecError::Unknown(near()))?;
        if !take(key.trim_end(), value.trim_start()).map_err(value_error)? {
            return Err(SpecError::Unknown(near()));
        }
    }
    Ok(())
}

/// A decimal number of at most `most`, in digits alone.
pub(super) fn number(value: &str, most: u32) -> Option<u32> {
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    value.parse().ok().filter(|number| digits && *number <= most)
}

/// The device id that `devid=` names.
pub(super) fn devid(value: &str) -> Result<Option<u32>, &'static str> {
    let devid = number(value, i32::MAX.unsigned_abs());
    devid.map(Some).ok_or("a devid is a decimal number of at most 31 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(arguments: &[&str]) -> Result<Vec<String>, SpecError> {
        let mut seen = Vec::new();
        read(arguments, |key, value| {
            seen.push(format!("{key}:{value}"));
            if value == "bad" { Err("it is bad") } else { Ok(key != "colour") }
        })?;
        Ok(seen)
    }

    #[test]
    fn words_as_arguments_and_with_commas() {
        for arguments in [&["a=1", "b=2"][..], &["a=1,b=2"], &[" a = 1 , b=2,", ""]] {
            assert_eq!(words(arguments).unwrap(), ["a:1", "b:2"], "{arguments:?}");
        }
        assert_eq!(words(&["a=b=c"]).unwrap(), ["a:b=c"]);
        assert_eq!(words(&["colour=red"]).unwrap_err().to_string(), "\"colour=red\" is no parameter");
        assert_eq!(words(&["word"]).unwrap_err().to_string(), "\"word\" is no parameter");
        assert_eq!(words(&["a=bad"]).unwrap_err().to_string(), "\"a=bad\": it is bad");
        assert!(words(&["a=\u{1b}[2J"]).unwrap_err().to_string().contains("control character"));
    }

    #[test]
    fn numbers_have_digits_alone() {
        assert_eq!((number("0", 9), number("9", 9), number("10", 9)), (Some(0), Some(9), None));
        for bad in ["", "+1", "-1", " 1", "0x1", "99999999999"] {
            assert_eq!(number(bad, u32::MAX), None, "{bad:?}");
        }
        assert_eq!(devid("2147483647"), Ok(Some(2_147_483_647)));
        assert!(devid("2147483648").is_err());
    }
}
