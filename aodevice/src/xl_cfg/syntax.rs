//! The syntax of `xl`'s configuration files, domains' and its own alike.
//!
//! Source: xl.cfg(5), and what libxlutil 4.17 (`xlu_cfg_readdata`) was seen to make of files; `cargo lab grammar`
//! holds both against each other.

use std::collections::BTreeMap;

use nom::branch::alt;
use nom::bytes::complete::{tag, take_till, take_while};
use nom::character::complete::{char, none_of, one_of, satisfy};
use nom::combinator::{all_consuming, cut, eof, fail, map, opt, peek, recognize, value};
use nom::multi::{many0, separated_list0};
use nom::sequence::{delimited, preceded, terminated};
use nom::{IResult, Parser};
use thiserror::Error;

/// How deep lists can be in lists. A card of `vsnd` needs two; each costs stack.
const DEEPEST: usize = 32;

/// How much of the place of an error is shown, in characters.
const NEAR: usize = 40;

/// A value, and the line that it begins in, from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Item {
    /// The line.
    pub line: usize,
    /// The value.
    pub value: Value,
}

/// A value of a setting, or of an element of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A text in quotes, or a number as it is written.
    Text(String),
    /// A list.
    List(Vec<Item>),
}

impl Value {
    /// A text, unless it is a list.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::List(_) => None,
        }
    }
}

/// A file that is no configuration file, and where that shows: `12: this cannot stand here: "off"`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{}", self.words())]
#[non_exhaustive]
pub struct SyntaxError {
    /// The line, from 1.
    pub line: usize,
    /// What stands there, up to the end of the line.
    pub near: String,
    /// What is wrong, if that is known.
    pub problem: Option<&'static str>,
}

impl SyntaxError {
    fn words(&self) -> String {
        let problem = self.problem.unwrap_or("this cannot stand here");
        match self.near.as_str() {
            "" => format!("{}: the line ends too early", self.line),
            near => format!("{}: {problem}: {near:?}", self.line),
        }
    }
}

/// The settings of a file by their names, each as it is at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings(BTreeMap<String, Item>);

impl Settings {
    /// Reads a file.
    ///
    /// What is set twice counts as it was set last, and `+=` appends to a text or to a list.
    ///
    /// # Errors
    ///
    /// The first place that does not follow the grammar, or that appends a text to a list or a list to a text.
    pub fn parse(text: &str) -> Result<Self, SyntaxError> {
        let lines = Lines::of(text);
        let parsed = all_consuming(statements).parse(text);
        let (_, statements) = parsed.map_err(|error| match error {
            nom::Err::Error(error) | nom::Err::Failure(error) => lines.error(error.input.len(), None),
            nom::Err::Incomplete(_) => lines.error(0, None),
        })?;
        let mut settings = BTreeMap::new();
        for Statement { name, appends, parsed } in statements {
            let left = parsed.left;
            let item = parsed.placed(&lines);
            match settings.get_mut(name) {
                Some(before) if appends => {
                    append(before, item).map_err(|problem| lines.error(left, Some(problem)))?;
                }
                _ => _ = settings.insert(name.to_owned(), item),
            }
        }
        Ok(Self(settings))
    }

    /// A setting, if it is there.
    pub fn get(&self, name: &str) -> Option<&Item> {
        self.0.get(name)
    }
}

fn append(before: &mut Item, item: Item) -> Result<(), &'static str> {
    match (&mut before.value, item.value) {
        (Value::Text(before), Value::Text(text)) => before.push_str(&text),
        (Value::List(before), Value::List(items)) => before.extend(items),
        _ => return Err("a list and a text cannot be appended to each other"),
    }
    Ok(())
}

/// Where the lines of a text begin.
struct Lines<'a> {
    text: &'a str,
    ends: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn of(text: &'a str) -> Self {
        Self { text, ends: text.match_indices('\n').map(|(at, _)| at).collect() }
    }

    /// The line of the place that has so many bytes behind it.
    fn number(&self, left: usize) -> usize {
        let at = self.text.len() - left;
        self.ends.partition_point(|end| *end < at) + 1
    }

    fn error(&self, left: usize, problem: Option<&'static str>) -> SyntaxError {
        let rest = &self.text[self.text.len() - left..];
        let near = rest.split('\n').next().unwrap_or_default().trim_end().chars().take(NEAR).collect();
        SyntaxError { line: self.number(left), near, problem }
    }
}

/// A value as it is read: its place is how many bytes are left from it on.
#[derive(Clone, Debug)]
struct Parsed {
    left: usize,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    Text(String),
    List(Vec<Parsed>),
}

impl Parsed {
    fn placed(self, lines: &Lines<'_>) -> Item {
        let value = match self.content {
            Content::Text(text) => Value::Text(text),
            Content::List(items) => Value::List(items.into_iter().map(|item| item.placed(lines)).collect()),
        };
        Item { line: lines.number(self.left), value }
    }
}

/// A line such as `vif.default.bridge = "xenbr0"`.
#[derive(Debug)]
struct Statement<'a> {
    name: &'a str,
    /// Whether it appends (`+=`).
    appends: bool,
    parsed: Parsed,
}

/// Blanks within a line.
fn blanks(input: &str) -> IResult<&str, ()> {
    value((), take_while(|c| matches!(c, ' ' | '\t' | '\r'))).parse(input)
}

fn comment(input: &str) -> IResult<&str, ()> {
    value((), (char('#'), take_till(|c| c == '\n'))).parse(input)
}

/// What may stand between the elements of a list.
fn gap(input: &str) -> IResult<&str, ()> {
    value((), many0(alt((value((), one_of(" \t\r\n")), comment)))).parse(input)
}

/// A character after a backslash. One by its number is refused: xl loses those in octal, and knows none in
/// hexadecimal.
fn escape(input: &str) -> IResult<&str, char> {
    let named = |name, meaning| value(meaning, char(name));
    alt((
        one_of("\\\"'"),
        named('a', '\u{7}'),
        named('b', '\u{8}'),
        named('f', '\u{c}'),
        named('n', '\n'),
        named('r', '\r'),
        named('t', '\t'),
        named('v', '\u{b}'),
    ))
    .parse(input)
}

fn quoted(quote: char) -> impl Fn(&str) -> IResult<&str, String> {
    move |input| {
        let stop = if quote == '"' { "\"\\\n" } else { "'\\\n" };
        let piece = alt((none_of(stop), preceded(char('\\'), cut(escape))));
        let pieces = map(many0(piece), |text| text.into_iter().collect());
        delimited(char(quote), pieces, cut(char(quote))).parse(input)
    }
}

fn atom(input: &str) -> IResult<&str, String> {
    let digit = |c: char| c.is_ascii_digit() || matches!(c, 'a'..='f' | 'x');
    let number = recognize((satisfy(|c| c.is_ascii_digit()), take_while(digit)));
    alt((quoted('"'), quoted('\''), map(number, str::to_owned))).parse(input)
}

fn item(depth: usize) -> impl Fn(&str) -> IResult<&str, Parsed> {
    move |input| {
        let content = alt((map(atom, Content::Text), map(list(depth), Content::List)));
        map(content, |content| Parsed { left: input.len(), content }).parse(input)
    }
}

fn list(depth: usize) -> impl Fn(&str) -> IResult<&str, Vec<Parsed>> {
    move |input| {
        let (after, _) = char('[').parse(input)?;
        if depth == DEEPEST {
            return cut(fail()).parse(input);
        }
        let items = separated_list0((gap, char(','), gap), item(depth + 1));
        // A comma may stand behind the last element, and not in place of one.
        let first = preceded(gap, peek(cut(none_of(","))));
        let end = (gap, opt((char(','), gap)), cut(char(']')));
        preceded(first, terminated(items, end)).parse(after)
    }
}

fn statement(input: &str) -> IResult<&str, Statement<'_>> {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '.');
    let name = recognize((satisfy(|c| c.is_ascii_lowercase()), take_while(word)));
    let equals = alt((value(true, tag("+=")), value(false, char('='))));
    let rest = (blanks, equals, blanks, item(0), blanks, end);
    let (left, (name, (_, appends, _, parsed, _, ()))) = (name, cut(rest)).parse(input)?;
    Ok((left, Statement { name, appends, parsed }))
}

/// The end of a statement, which is not taken.
fn end(input: &str) -> IResult<&str, ()> {
    alt((value((), peek(one_of(";\n#"))), value((), eof))).parse(input)
}

/// What stands between statements.
fn between(input: &str) -> IResult<&str, ()> {
    value((), many0(alt((value((), one_of(" \t\r\n;")), comment)))).parse(input)
}

fn statements(input: &str) -> IResult<&str, Vec<Statement<'_>>> {
    preceded(between, many0(terminated(statement, between))).parse(input)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A value in one line: texts in quotes, and each list in brackets.
    fn shown(value: &Value) -> String {
        match value {
            Value::Text(text) => format!("{text:?}"),
            Value::List(items) => {
                format!("[{}]", items.iter().map(|item| shown(&item.value)).collect::<Vec<_>>().join(","))
            }
        }
    }

    /// What a file makes of `a`, or the error.
    fn of(text: &str) -> String {
        match Settings::parse(text) {
            Ok(settings) => settings.get("a").map_or_else(|| "none".to_owned(), |item| shown(&item.value)),
            Err(error) => error.to_string(),
        }
    }

    /// Each was asked of libxlutil 4.17, but where it says so.
    #[test]
    fn what_is_accepted() {
        for (text, a) in [
            ("", "none"),
            ("a=1", "\"1\""),
            (";;\n# a=2\n a\t=\t'1' ; b=2", "\"1\""),
            ("b=1;a=2;b=3", "\"2\""),
            ("a=0x1f", "\"0x1f\""),
            ("a=007", "\"007\""),
            ("a=\"it's\"", "\"it's\""),
            ("a='\"'", "\"\\\"\""),
            ("a=\"x\\ty\\\\\" # c\n", "\"x\\ty\\\\\""),
            ("a=\"#x\"#y\n", "\"#x\""),
            ("a=[]", "[]"),
            ("a=[\n]", "[]"),
            ("a=[1,\"2\",'3']", "[\"1\",\"2\",\"3\"]"),
            ("a=[ # c\n\n 1 # d\n,\n2,\n # e\n]", "[\"1\",\"2\"]"),
            ("a=[[1],[2,],[[]]]", "[[\"1\"],[\"2\"],[[]]]"),
            ("a=1\na=2", "\"2\""),
            ("a='x'\nb=1\na+='y'", "\"xy\""),
            ("a+=1", "\"1\""),
            ("a=[1]\na+=[2,[3]]", "[\"1\",\"2\",[\"3\"]]"),
            ("a=[1]\na=2\na+=3", "\"23\""),
            ("#\u{e9}\na=1", "\"1\""),
            // Refused by libxlutil: line ends of DOS, and a comment at the end of a file without a line feed.
            ("a=1\r\nb=[\r\n]\r\n", "\"1\""),
            ("a=1 # end", "\"1\""),
        ] {
            assert_eq!(of(text), a, "{text:?}");
        }
    }

    #[test]
    fn what_is_refused_is_named_by_its_place() {
        for (text, error) in [
            ("a=1 b=2", "1: this cannot stand here: \"b=2\""),
            ("b=1\nc==2\n", "2: this cannot stand here: \"=2\""),
            ("b=1\n\na", "3: the line ends too early"),
            ("a=\n1", "1: the line ends too early"),
            ("a=off", "1: this cannot stand here: \"off\""),
            ("a=-1", "1: this cannot stand here: \"-1\""),
            ("a=1F", "1: this cannot stand here: \"F\""),
            ("A=1", "1: this cannot stand here: \"A=1\""),
            ("_a=1", "1: this cannot stand here: \"_a=1\""),
            ("a=\"open\nb=1", "1: the line ends too early"),
            ("a=\"\\x41\"", "1: this cannot stand here: \"x41\\\"\""),
            ("a='\\101'", "1: this cannot stand here: \"101'\""),
            ("a='x\\", "1: the line ends too early"),
            ("a=[1,\n", "2: the line ends too early"),
            ("a=[1,\n2\n3]", "3: this cannot stand here: \"3]\""),
            ("a=[,]", "1: this cannot stand here: \",]\""),
            ("a=[1,,2]", "1: this cannot stand here: \",2]\""),
            ("a=[1;2]", "1: this cannot stand here: \";2]\""),
            ("a=[b]", "1: this cannot stand here: \"b]\""),
            ("a=[1]b=2", "1: this cannot stand here: \"b=2\""),
            ("a=1\n\na+=[2]", "3: a list and a text cannot be appended to each other: \"[2]\""),
        ] {
            assert_eq!(of(text), error, "{text:?}");
        }
    }

    #[test]
    fn a_file_of_brackets_is_refused() {
        let deep = |depth: usize| format!("a={}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(of(&deep(DEEPEST)).starts_with("[[["));
        assert!(of(&deep(100_000)).starts_with("1: "));
    }

    #[test]
    fn elements_have_their_lines() {
        let settings = Settings::parse("x=1\na=['1',\n  '2', '3',\n\n[\n'4']]").unwrap();
        let Value::List(items) = &settings.get("a").unwrap().value else { panic!("a list") };
        assert_eq!(items.iter().map(|item| item.line).collect::<Vec<_>>(), [2, 3, 3, 5]);
        assert_eq!((settings.get("a").unwrap().line, settings.get("b")), (2, None));
    }
}
