//! The payload grammars, in nom. Each parser takes a whole payload; what it returns are slices
//! of it.
//!
//! Numbers are read in two ways. Where a server answers us they are plain decimals and anything
//! else is damage. Where a client asks, the C daemon reads many of them with `atoi` and `strtol`,
//! and clients rely on what these let pass.
//!
//! What hands a string on is `inline(always)`. A [`Bytes`] is written field by field when it is
//! cut, and a move of it right after loads it in halves: the CPU waits until the stores have
//! retired. Inlined there is no move. It makes READ a third faster and watch events two thirds.

use bytes::Bytes;
use nom::bytes::complete::tag;
use nom::character::complete::one_of;
use nom::combinator::{all_consuming, map_opt, rest};
use nom::error::{Error, ErrorKind};
use nom::sequence::terminated;
use nom::{Err, IResult, Parser};

use crate::{Access, DecodeError, DomId, Op, Path, PathError, Permission};

/// The bytes before the first NUL; memchr is several times as fast as going by bytes.
fn until_nul(input: &[u8]) -> IResult<&[u8], &[u8]> {
    let at = memchr::memchr(0, input).ok_or(Err::Error(Error::new(input, ErrorKind::TakeUntil)))?;
    Ok((&input[at..], &input[..at]))
}

fn string(input: &[u8]) -> IResult<&[u8], &[u8]> {
    terminated(until_nul, tag(&b"\0"[..])).parse(input)
}

pub(crate) fn malformed(op: Op, expected: &'static str) -> DecodeError {
    DecodeError::Malformed { op, expected }
}

/// Exactly one string with its NUL.
#[inline(always)]
pub(crate) fn one_string(op: Op, payload: Bytes, expected: &'static str) -> Result<Bytes, DecodeError> {
    let (_, text) = all_consuming(string).parse(&payload).map_err(|_| malformed(op, expected))?;
    let length = text.len();
    Ok(cut(payload, length).0)
}

/// Exactly two strings, each with its NUL.
#[inline(always)]
pub(crate) fn two_strings(
    op: Op,
    payload: Bytes,
    expected: &'static str,
) -> Result<(Bytes, Bytes), DecodeError> {
    let (first, after) = string_and_rest(op, payload, expected)?;
    Ok((first, one_string(op, after, expected)?))
}

/// A string with its NUL, and whatever follows.
#[inline(always)]
pub(crate) fn string_and_rest(
    op: Op,
    payload: Bytes,
    expected: &'static str,
) -> Result<(Bytes, Bytes), DecodeError> {
    let (_, text) = string(&payload).map_err(|_| malformed(op, expected))?;
    let length = text.len();
    Ok(cut(payload, length))
}

/// What is before the NUL at an offset and what is behind it. Cheaper than two slices, which
/// would count references that are given back at once.
#[inline(always)]
fn cut(mut payload: Bytes, at: usize) -> (Bytes, Bytes) {
    let after = if at + 1 == payload.len() { Bytes::new() } else { payload.slice(at + 1..) };
    payload.truncate(at);
    (payload, after)
}

/// All terminated strings; an unterminated tail is left out, as the C daemon does.
pub(crate) fn strings(payload: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut left = payload;
    core::iter::from_fn(move || {
        let (after, text) = string(left).ok()?;
        left = after;
        Some(text)
    })
}

/// The same into an array of `N`: its filled part; all of it if there are that many or more.
pub(crate) fn first_strings<'a, 'b, const N: usize>(
    payload: &'a [u8],
    room: &'b mut [&'a [u8]; N],
) -> &'b [&'a [u8]] {
    let count = room.iter_mut().zip(strings(payload)).map(|(place, text)| *place = text).count();
    &room[..count]
}

/// A path, refused with the operation it stands in. Its limit is the payload's: how long a path
/// may be is the server's decision.
#[inline(always)]
pub(crate) fn path(op: Op, text: Bytes) -> Result<Path, DecodeError> {
    Path::from_wire(text).map_err(|source| DecodeError::Path { op, source })
}

/// A path and its NUL, as the whole payload. Nobody looks for the NUL: the path's check would
/// refuse one in its midst.
#[inline(always)]
pub(crate) fn one_path(op: Op, mut payload: Bytes) -> Result<Path, DecodeError> {
    let expected = "a path and a NUL";
    let [text @ .., 0] = &payload[..] else { return Err(malformed(op, expected)) };
    payload.truncate(text.len());
    path(op, payload).map_err(|error| match error {
        DecodeError::Path { source: PathError::BadByte { byte: 0, .. }, .. } => malformed(op, expected),
        other => other,
    })
}

/// A domain id and its NUL, as the whole payload.
pub(crate) fn one_domid(op: Op, payload: Bytes) -> Result<DomId, DecodeError> {
    domid(op, &one_string(op, payload, "a domain id and a NUL")?)
}

/// A number of plain decimal digits that fits its type.
pub(crate) fn decimal<N: core::str::FromStr>(
    op: Op,
    text: &[u8],
    expected: &'static str,
) -> Result<N, DecodeError> {
    let digits = text.iter().all(u8::is_ascii_digit).then_some(text);
    let number = digits.and_then(|text| core::str::from_utf8(text).ok()?.parse().ok());
    number.ok_or(malformed(op, expected))
}

/// A domain id: 16 bits.
pub(crate) fn domid(op: Op, text: &[u8]) -> Result<DomId, DecodeError> {
    decimal::<u16>(op, text, "a decimal domain id").map(DomId::from)
}

/// Blanks, a sign, and what is behind them.
fn sign(text: &[u8]) -> (bool, &[u8]) {
    let blank = |byte: &u8| byte.is_ascii_whitespace() || *byte == 0x0b;
    let start = text.iter().position(|byte| !blank(byte)).unwrap_or(text.len());
    match &text[start..] {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] => (false, digits),
        digits => (false, digits),
    }
}

/// The value of the digits at the start of a text, and how many these are. What does not fit is
/// the largest or the least number that does.
fn digits(text: &[u8], radix: u32, negative: bool) -> (i64, usize) {
    let values = text.iter().map_while(|byte| char::from(*byte).to_digit(radix));
    values.fold((0, 0), |(number, count), digit| {
        let digit = if negative { -i64::from(digit) } else { digit.into() };
        (i64::saturating_mul(number, radix.into()).saturating_add(digit), count + 1)
    })
}

/// A number read like C's `atoi`: blanks, a sign, and as many digits as there are; junk is 0.
/// `None` if it is negative; one that is too large is the largest.
pub(crate) fn atoi(text: &[u8]) -> Option<u32> {
    let (negative, text) = sign(text);
    let (number, _) = digits(text, 10, negative);
    (number >= 0).then_some(number.try_into().unwrap_or(u32::MAX))
}

/// A number read like C's `strtol` with base 0, of which nothing may be left over: `017` and
/// `0x1f` too.
fn strtol(text: &[u8]) -> Option<u32> {
    let (negative, text) = sign(text);
    let (text, radix) = match text {
        [b'0', b'x' | b'X', hex @ ..] => (hex, 16),
        [b'0', ..] => (text, 8),
        _ => (text, 10),
    };
    let (number, count) = digits(text, radix, negative);
    (count > 0 && count == text.len()).then_some(number as u32)
}

/// One permission entry, such as `r5`.
pub(crate) fn permission(op: Op, text: &[u8]) -> Result<Permission, DecodeError> {
    let letter =
        map_opt(one_of::<_, _, Error<_>>("nrwb"), |letter| Access::from_letter(u8::try_from(letter).ok()?));
    let (_, (access, number)) = all_consuming((letter, map_opt(rest, strtol)))
        .parse(text)
        .map_err(|_| malformed(op, "permission entries such as r5"))?;
    Ok(Permission { access, domid: DomId(number) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn atoi_is_that_of_c() {
        for (text, number) in [("", 0), ("x", 0), ("7", 7), ("7x", 7), (" \t+7", 7), ("-0", 0), ("- 7", 0)] {
            assert_eq!(atoi(text.as_bytes()), Some(number), "{text:?}");
        }
        assert_eq!(atoi(b"-7"), None);
        assert_eq!(atoi(b"4294967296"), Some(u32::MAX));
    }

    #[test]
    fn strtol_is_that_of_c_and_takes_all() {
        for (text, number) in [
            ("3", Some(3)),
            (" 3", Some(3)),
            ("\x0b+3", Some(3)),
            ("-1", Some(u32::MAX)),
            ("0x1F", Some(31)),
            ("017", Some(15)),
            ("0", Some(0)),
            ("4294967296", Some(0)),
            ("99999999999999999999", Some(u32::MAX)),
            ("-99999999999999999999", Some(0)),
            ("", None),
            ("08", None),
            ("0x", None),
            ("3 ", None),
            ("- 3", None),
        ] {
            assert_eq!(strtol(text.as_bytes()), number, "{text:?}");
        }
    }
}
