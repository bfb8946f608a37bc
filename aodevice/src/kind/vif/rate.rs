//! The `rate=` parameter: how much an interface may send.
//!
//! Source: `docs/man/xl-network-configuration.5.pod.in`.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A limit of bytes per interval, printed as its store value `BYTES,MICROSECONDS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Bytes that may be sent in an interval.
    pub bytes: u64,
    /// The interval in microseconds.
    pub interval_us: u32,
}

/// A text that is no rate.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is no rate, or out of range: give for example 10Mb/s, 250KB/s or 1GB/s@20ms")]
pub struct RateError(String);

fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    Some((digits.parse().ok()?, unit))
}

fn parse(text: &str) -> Option<Rate> {
    let (amount, interval) = match text.split_once('@') {
        Some((amount, interval)) => (amount, Some(interval)),
        None => (text, None),
    };
    let (number, unit) = number_and_unit(amount)?;
    let unit = unit.strip_suffix("/s")?;
    let (scale, unit) = match unit.as_bytes() {
        [b'G', ..] => (1_000_000_000, &unit[1..]),
        [b'M', ..] => (1_000_000, &unit[1..]),
        [b'K', ..] => (1_000, &unit[1..]),
        _ => (1, unit),
    };
    let per_second = match unit {
        "B" => number.checked_mul(scale)?,
        "b" => number.checked_mul(scale)? / 8,
        _ => return None,
    };
    let interval_us = match interval {
        None => 50_000,
        Some(text) => {
            let (number, unit) = number_and_unit(text)?;
            let scale = match unit {
                "u" | "us" => 1,
                "m" | "ms" => 1_000,
                "" | "s" => 1_000_000,
                _ => return None,
            };
            u32::try_from(number.checked_mul(scale)?).ok()?
        }
    };
    let bytes = per_second.checked_mul(interval_us.into())? / 1_000_000;
    (bytes > 0 && interval_us > 0).then_some(Rate { bytes, interval_us })
}

impl FromStr for Rate {
    type Err = RateError;

    /// `<number>[G|M|K](B|b)/s[@<number>[m|u][s]]`, decimal; `b` are bits. The interval is 50 ms
    /// if none is given.
    ///
    /// It differs from xl in three points: a zero in front does not make a number octal; a rate below one
    /// byte in an interval is refused; the number may have more than 32 bits.
    fn from_str(text: &str) -> Result<Self, RateError> {
        parse(text).ok_or_else(|| RateError(text.chars().take(40).collect()))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.bytes, self.interval_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        for (text, store) in [
            ("10Mb/s", "62500,50000"),
            ("250KB/s", "12500,50000"),
            ("1MB/s@20ms", "20000,20000"),
            ("1GB/s@1s", "1000000000,1000000"),
            ("1MB/s@1", "1000000,1000000"),
            ("1MB/s@20m", "20000,20000"),
            ("1MB/s@5u", "5,5"),
            ("8000b/s@500us", "0"),
            ("010MB/s", "500000,50000"),
        ] {
            match text.parse::<Rate>() {
                Ok(rate) => assert_eq!(rate.to_string(), store, "{text}"),
                Err(_) => assert_eq!(store, "0", "{text}"),
            }
        }
        for text in [
            "",
            "10",
            "10Mb",
            "Mb/s",
            "-1MB/s",
            "10mb/s",
            "0MB/s",
            "1MB/s@",
            "1MB/s@0ms",
            "99999999999999GB/s",
            "1MB/s@5000s",
            "1MB/s@1S",
            "1MB/s@18446744073709551s",
            "18446744073709551617B/s",
        ] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }
}
