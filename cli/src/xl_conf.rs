//! `xl.conf`: what `xl` takes for interfaces where their specification says nothing.
//!
//! Source: xl.conf(5), and xl.cfg(5) for the syntax. Settings of other subjects are passed over.

use std::path::Path;
use std::{fs, io};

use aodevice::vif::Defaults;
use nom::branch::alt;
use nom::bytes::complete::{tag, take_till, take_while};
use nom::character::complete::{char, none_of, one_of, satisfy};
use nom::combinator::{eof, map, opt, recognize, value};
use nom::multi::{many0, separated_list0};
use nom::sequence::{delimited, preceded, terminated};
use nom::{IResult, Parser};

use crate::problem::{Code, Problem};

/// The largest file that is read, in bytes.
const LARGEST: u64 = 1 << 20;

/// What `xl.conf` says, as far as it matters here.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct XlConf {
    pub(crate) vif: Defaults,
    /// Whether it has `run_hotplug_scripts=0`, which has had no effect since Xen 4.5 or so.
    pub(crate) forbids_scripts: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Setting {
    /// In quotes, or a number.
    Text(String),
    List,
}

/// A line such as `vif.default.bridge = "xenbr0"`.
#[derive(Debug)]
struct Statement<'a> {
    name: &'a str,
    /// Whether it appends (`+=`).
    appends: bool,
    setting: Setting,
}

/// Blanks and comments, within a line or over several.
fn blanks(input: &str) -> IResult<&str, ()> {
    value((), take_while(|c| matches!(c, ' ' | '\t' | '\r'))).parse(input)
}

fn comment(input: &str) -> IResult<&str, ()> {
    value((), (char('#'), take_till(|c| c == '\n'))).parse(input)
}

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
        let piece = alt((none_of(stop), preceded(char('\\'), escape)));
        delimited(char(quote), map(many0(piece), |text| text.into_iter().collect()), char(quote)).parse(input)
    }
}

fn atom(input: &str) -> IResult<&str, Setting> {
    let number =
        recognize((satisfy(|c| c.is_ascii_digit()), take_while(|c: char| c.is_ascii_alphanumeric())));
    alt((
        map(quoted('"'), Setting::Text),
        map(quoted('\''), Setting::Text),
        map(number, |number: &str| Setting::Text(number.to_owned())),
    ))
    .parse(input)
}

fn setting(input: &str) -> IResult<&str, Setting> {
    let items = separated_list0((gap, char(','), gap), setting);
    let list = delimited((char('['), gap), terminated(items, (gap, opt((char(','), gap)))), char(']'));
    alt((atom, value(Setting::List, list))).parse(input)
}

fn statement(input: &str) -> IResult<&str, Statement<'_>> {
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
    let name = recognize((satisfy(|c| c.is_ascii_alphabetic()), take_while(word)));
    let equals = alt((value(true, tag("+=")), value(false, char('='))));
    let end = (blanks, opt(comment), alt((value((), one_of(";\n")), value((), eof))));
    let (left, (name, _, appends, _, setting, _)) =
        (name, blanks, equals, blanks, setting, end).parse(input)?;
    Ok((left, Statement { name, appends, setting }))
}

/// What stands between statements.
fn between(input: &str) -> IResult<&str, ()> {
    value((), many0(alt((value((), one_of(" \t\r\n;")), comment)))).parse(input)
}

fn statements(input: &str) -> IResult<&str, Vec<Statement<'_>>> {
    preceded(between, many0(terminated(statement, between))).parse(input)
}

impl XlConf {
    fn parse(text: &str) -> Result<Self, String> {
        let (left, settings) = statements(text).map_err(|error| error.to_string())?;
        if !left.is_empty() {
            let number = text[..text.len() - left.len()].matches('\n').count() + 1;
            let line: String = left.lines().next().unwrap_or_default().chars().take(80).collect();
            return Err(format!("line {number}: {line:?}"));
        }
        let mut conf = Self::default();
        // The deprecated names count where the others are not there.
        let mut old = Defaults::default();
        for Statement { name, appends, setting } in settings {
            let slot = match name {
                "vif.default.bridge" => &mut conf.vif.bridge,
                "vif.default.script" => &mut conf.vif.script,
                "defaultbridge" => &mut old.bridge,
                "vifscript" => &mut old.script,
                "vif.default.gatewaydev" => &mut conf.vif.gatewaydev,
                "vif.default.backend" => &mut conf.vif.backend,
                "run_hotplug_scripts" => {
                    let Setting::Text(text) = setting else { continue };
                    // As C reads numbers: all zeros are 0, whatever the base.
                    conf.forbids_scripts = !text.is_empty() && text.trim_matches(['0', 'x', 'X']).is_empty();
                    continue;
                }
                _ => continue,
            };
            let Setting::Text(text) = setting else { return Err(format!("{name} is a list")) };
            if text.contains(char::is_control) {
                return Err(format!("{name} holds a control character"));
            }
            let before = slot.take().filter(|_| appends).unwrap_or_default();
            *slot = Some(before + &text);
        }
        conf.vif.bridge = conf.vif.bridge.or(old.bridge);
        conf.vif.script = conf.vif.script.or(old.script);
        Ok(conf)
    }

    /// Reads the file. One that was not asked for by name need not be there, and says nothing then.
    pub(crate) fn read(file: &Path, asked_for: bool) -> Result<Self, Problem> {
        let bad = |observed: String| {
            let hint = "mend it, name another file with --xl-conf, or do without with --no-xl-conf";
            Problem::new(Code::BadXlConf, format!("cannot understand {}", file.display()), observed, hint)
        };
        let text = match read_bounded(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !asked_for => return Ok(Self::default()),
            text => text.map_err(|error| bad(error.to_string()))?,
        };
        Self::parse(&text).map_err(bad)
    }
}

fn read_bounded(file: &Path) -> io::Result<String> {
    use std::io::Read;

    let mut text = Vec::new();
    fs::File::open(file)?.take(LARGEST + 1).read_to_end(&mut text)?;
    if text.len() as u64 > LARGEST {
        return Err(io::Error::other(format!("it has more than {LARGEST} bytes")));
    }
    // A comment may be in any encoding.
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings() {
        let text = "\
## Global XL config file ##\n\
#vif.default.bridge=\"no\"\n\
autoballoon=\"off\" # a comment\n\
vm.cpumask = [ \"0-1\", '2',\n  3 ]\n\
vif.default.bridge = 'br\\'1'; vif.default.script=\"vif\"\n\
\r\n  vif.default.script += '-route'\n\
vif.default.gatewaydev=\"old\"\nvif.default.gatewaydev =\t7\n\
vif.default.backend=\"\"\n\
run_hotplug_scripts=0";
        let conf = XlConf::parse(text).unwrap();
        assert_eq!(conf.vif.bridge.as_deref(), Some("br'1"));
        assert_eq!(conf.vif.script.as_deref(), Some("vif-route"));
        assert_eq!(conf.vif.gatewaydev.as_deref(), Some("7"));
        assert_eq!(conf.vif.backend.as_deref(), Some(""));
        assert!(conf.forbids_scripts);
        let both = "vif.default.script='new'\nvifscript='old'\ndefaultbridge='br0'\nx=[['a'], ['b',]]";
        let both = XlConf::parse(both).unwrap().vif;
        assert_eq!((both.script.as_deref(), both.bridge.as_deref()), (Some("new"), Some("br0")));
        assert_eq!(XlConf::parse(""), Ok(XlConf::default()));
        let old = XlConf::parse("defaultbridge=\"a\\'b\"\nrun_hotplug_scripts=1").unwrap();
        assert_eq!((old.vif.bridge.as_deref(), old.forbids_scripts), (Some("a'b"), false));
    }

    #[test]
    fn what_is_wrong_is_named_by_its_line() {
        for (text, wrong) in [
            ("a=1\nb==2\n", "line 2: \"b==2\""),
            ("a=1 b=2", "line 1: \"a=1 b=2\""),
            ("a=\"open\nb=1", "line 1: \"a=\\\"open\""),
            ("a=1\n\nvif.default.bridge", "line 3: \"vif.default.bridge\""),
            ("a=\n1", "line 1: \"a=\""),
            ("a=off", "line 1: \"a=off\""),
            ("a=-1", "line 1: \"a=-1\""),
            ("_a=1", "line 1: \"_a=1\""),
            ("a=\"\\x41\"", "line 1: \"a=\\\"\\\\x41\\\"\""),
            ("a='\\101'", "line 1: \"a='\\\\101'\""),
            ("x=[1,\n", "line 1: \"x=[1,\""),
            ("vif.default.bridge=['a']", "vif.default.bridge is a list"),
            ("vif.default.bridge='a\\t'", "vif.default.bridge holds a control character"),
        ] {
            assert_eq!(XlConf::parse(text), Err(wrong.to_owned()), "{text}");
        }
    }
}
