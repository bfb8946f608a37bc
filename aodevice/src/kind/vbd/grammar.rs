//! The syntax of a disk specification: what one parameter is. What it means is in `spec.rs`, and
//! `grammar.md` has all of it as a table.
//!
//! xl's own grammar is a lexer, and of all rules that match, a lexer takes the one that matches most. Hence
//! two things that look odd: a prefix is one wherever a parameter begins, and a word such as `discard` is a
//! positional parameter as soon as anything but a comma follows it.

use nom::branch::alt;
use nom::bytes::complete::{tag, take_till, take_while};
use nom::character::complete::{char, satisfy};
use nom::combinator::{eof, not, recognize, rest, value};
use nom::sequence::{preceded, terminated};
use nom::{IResult, Parser};

/// A parameter as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parameter<'a> {
    /// `raw:`, `iscsi:`, `phy:`: a deprecated prefix, without its colon. The next parameter follows at once.
    Prefix(&'a str),
    /// A prefix that is none.
    UnknownPrefix(&'a str),
    /// `target=`, and the rest of the argument.
    Target(&'a str),
    /// `key=value`. The key is known to the syntax alone.
    Key(&'a str, &'a str),
    /// A word that stands for itself: `cdrom`, `discard`.
    Word(&'a str),
    /// Anything else without an equals sign; perhaps empty.
    Positional(&'a str),
    /// What no parameter can be.
    Nonsense(&'a str),
}

impl Parameter<'_> {
    /// Whether a control character is in it.
    pub(super) fn holds_control(self) -> bool {
        let (Self::Prefix(text)
        | Self::UnknownPrefix(text)
        | Self::Target(text)
        | Self::Key(_, text)
        | Self::Word(text)
        | Self::Positional(text)
        | Self::Nonsense(text)) = self;
        text.contains(char::is_control)
    }
}

/// The words that stand for themselves.
const WORDS: [&str; 8] =
    ["cdrom", "colo", "direct-io-safe", "discard", "no-colo", "no-discard", "trusted", "untrusted"];

/// A comma, which belongs to the parameter before it, or the end.
fn end(input: &str) -> IResult<&str, ()> {
    alt((value((), char(',')), value((), eof))).parse(input)
}

fn name(input: &str) -> IResult<&str, &str> {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    recognize((satisfy(|c| c.is_ascii_lowercase()), take_while(word))).parse(input)
}

/// A known prefix is one whatever follows; an unknown one only if no word does, so that `host:1` is a target.
fn prefix(input: &str) -> IResult<&str, Parameter<'_>> {
    let (after, name) = terminated(name, char(':')).parse(input)?;
    if super::spec::Prefix::from_name(name).is_some() {
        return Ok((after, Parameter::Prefix(name)));
    }
    let (after, ()) = not(satisfy(|c| c.is_ascii_lowercase() || c.is_ascii_digit())).parse(after)?;
    Ok((after, Parameter::UnknownPrefix(name)))
}

fn target(input: &str) -> IResult<&str, Parameter<'_>> {
    let (after, text) = preceded(tag("target="), rest).parse(input)?;
    Ok((after, Parameter::Target(text.strip_suffix(',').unwrap_or(text))))
}

fn key(input: &str) -> IResult<&str, Parameter<'_>> {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
    let key = recognize((satisfy(|c| c.is_ascii_lowercase()), take_while(word)));
    let (after, (key, _, value, ())) = (key, char('='), take_till(|c| c == ','), end).parse(input)?;
    Ok((after, Parameter::Key(key, value)))
}

fn positional(input: &str) -> IResult<&str, Parameter<'_>> {
    let (after, text) = terminated(take_till(|c| matches!(c, '=' | ',')), end).parse(input)?;
    let parameter = if WORDS.contains(&text) { Parameter::Word(text) } else { Parameter::Positional(text) };
    Ok((after, parameter))
}

/// The next parameter of an argument that is not at its end; never fails.
fn parameter(input: &str) -> IResult<&str, Parameter<'_>> {
    let nonsense = rest.map(Parameter::Nonsense);
    alt((prefix, target, key, positional, nonsense)).parse(input)
}

/// All parameters of an argument. Blanks before a parameter are no part of it.
pub(super) fn parameters(argument: &str) -> impl Iterator<Item = Parameter<'_>> {
    let mut left = argument;
    std::iter::from_fn(move || {
        left = left.trim_start_matches([' ', '\t', '\n']);
        let (after, parameter) = parameter(left).ok().filter(|_| !left.is_empty())?;
        left = after;
        Some(parameter)
    })
}
