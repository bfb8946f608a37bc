//! The payload grammars, in nom. Each parser takes a whole payload and leaves nothing over; what
//! it returns are slices of the payload's own buffer.

use bytes::Bytes;
use nom::bytes::complete::{tag, take_till};
use nom::character::complete::{digit1, one_of};
use nom::combinator::{all_consuming, map_opt, rest};
use nom::multi::many0;
use nom::sequence::terminated;
use nom::{IResult, Parser};

use crate::{Access, DecodeError, DomId, Op, Path, Permission};

fn string(input: &[u8]) -> IResult<&[u8], &[u8]> {
    terminated(take_till(|byte| byte == 0), tag(&b"\0"[..])).parse(input)
}

fn malformed(op: Op, expected: &'static str) -> DecodeError {
    DecodeError::Malformed { op, expected }
}

/// Exactly one string with its NUL.
pub(crate) fn one_string(op: Op, payload: &Bytes, expected: &'static str) -> Result<Bytes, DecodeError> {
    let (_, text) = all_consuming(string).parse(payload).map_err(|_| malformed(op, expected))?;
    Ok(payload.slice_ref(text))
}

/// Exactly two strings, each with its NUL.
pub(crate) fn two_strings(
    op: Op,
    payload: &Bytes,
    expected: &'static str,
) -> Result<(Bytes, Bytes), DecodeError> {
    let mut parser = all_consuming((string, string));
    let (_, (first, second)) = parser.parse(payload).map_err(|_| malformed(op, expected))?;
    Ok((payload.slice_ref(first), payload.slice_ref(second)))
}

/// A string with its NUL, and whatever follows.
pub(crate) fn string_and_rest(
    op: Op,
    payload: &Bytes,
    expected: &'static str,
) -> Result<(Bytes, Bytes), DecodeError> {
    let (_, (first, after)) = (string, rest).parse(payload).map_err(|_| malformed(op, expected))?;
    Ok((payload.slice_ref(first), payload.slice_ref(after)))
}

/// All terminated strings; an unterminated tail is left out, as the C daemon does.
pub(crate) fn strings(payload: &Bytes) -> Vec<Bytes> {
    match many0(string).parse(payload) {
        Ok((_, found)) => found.into_iter().map(|text| payload.slice_ref(text)).collect(),
        Err(_) => Vec::new(),
    }
}

/// A path, refused with the operation it stands in.
pub(crate) fn path(op: Op, text: &Bytes) -> Result<Path, DecodeError> {
    Path::new(text).map_err(|source| DecodeError::Path { op, source })
}

/// A number of plain decimal digits that fits its type.
pub(crate) fn decimal<N: std::str::FromStr>(
    op: Op,
    text: &[u8],
    expected: &'static str,
) -> Result<N, DecodeError> {
    let digits = |input| all_consuming(digit1::<&[u8], nom::error::Error<&[u8]>>).parse(input);
    let (_, digits) = digits(text).map_err(|_| malformed(op, expected))?;
    // Digits are ASCII; what is left to fail is the range.
    let number = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
    number.ok_or_else(|| malformed(op, expected))
}

/// A domain id.
pub(crate) fn domid(op: Op, text: &[u8]) -> Result<DomId, DecodeError> {
    decimal(op, text, "a decimal domain id").map(DomId)
}

/// The number of a permission entry, read like C's `strtol` with base 0: `0x1f` and `017` too.
fn lenient_number(input: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(input).ok()?;
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => (hex, 16),
        None if text.len() > 1 && text.starts_with('0') => (&text[1..], 8),
        None => (text, 10),
    };
    if digits.starts_with('+') { None } else { u16::from_str_radix(digits, radix).ok() }
}

/// One permission entry, such as `r5`.
pub(crate) fn permission(op: Op, text: &[u8]) -> Result<Permission, DecodeError> {
    let letter = map_opt(one_of::<_, _, nom::error::Error<_>>("nrwb"), |letter| {
        Access::from_letter(u8::try_from(letter).ok()?)
    });
    let (_, (access, number)) = all_consuming((letter, map_opt(rest, lenient_number)))
        .parse(text)
        .map_err(|_| malformed(op, "permission entries such as r5"))?;
    Ok(Permission { access, domid: DomId(number) })
}
