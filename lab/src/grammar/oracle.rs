//! libxlutil itself, behind a small program in C that reads specifications and files and prints what it makes of them.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, ensure};

use crate::cc::compiled;

const SOURCE: &str = include_str!("oracle.c");
/// What compiles it.
pub(super) const PACKAGES: [&str; 4] = ["gcc", "libc6-dev", "libxen-dev", "libyajl-dev"];

/// What is asked.
#[derive(Clone, Debug)]
pub(super) enum Question {
    /// What disk these arguments are.
    Disk(Vec<String>),
    /// What rate this is.
    Rate(String),
    /// What settings this configuration file has.
    File(String),
}

/// The settings that files have, and that are asked for.
pub(super) const NAMES: [&str; 6] = ["disk", "vif", "name", "a", "b_2", "vif.x"];

/// What is asked about.
pub(super) const SUBJECTS: [&str; 3] = ["disks", "rates", "files"];

impl Question {
    /// Which of [`SUBJECTS`] it is about.
    pub(super) fn subject(&self) -> &'static str {
        match self {
            Self::Disk(_) => SUBJECTS[0],
            Self::Rate(_) => SUBJECTS[1],
            Self::File(_) => SUBJECTS[2],
        }
    }

    fn holds_line_feed(&self) -> bool {
        matches!(self, Self::Disk(arguments) if arguments.iter().any(|argument| argument.contains('\n')))
    }

    fn bytes(&self) -> Vec<u8> {
        let (kind, arguments): (u8, Vec<&str>) = match self {
            Self::Disk(arguments) => (b'd', arguments.iter().map(String::as_str).collect()),
            Self::Rate(rate) => (b'r', vec![rate]),
            Self::File(text) => (b'c', [&[text.as_str()][..], &NAMES].concat()),
        };
        let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX).to_ne_bytes();
        let mut bytes = vec![kind];
        bytes.extend(number(arguments.len()));
        for argument in arguments {
            bytes.extend(number(argument.len()));
            bytes.extend(argument.as_bytes());
        }
        bytes
    }
}

/// What libxlutil makes of each: its fields as a text, or `None` for an error.
///
/// Its lexer has no rule for a line feed in some places and ends the process there, xl included. That is an
/// error too, and the next questions are for another process.
pub(super) fn ask(questions: &[Question]) -> Result<Vec<Option<String>>> {
    let libraries = ["-lxlutil", "-lxenlight", "-lyajl"];
    let program = compiled("libxlutil-oracle", SOURCE, &libraries, &PACKAGES.join(" "))?;
    let mut answers = Vec::with_capacity(questions.len());
    while answers.len() < questions.len() {
        let before = answers.len();
        let ended_well = ask_on(&program, &questions[before..], &mut answers)?;
        if !ended_well {
            ensure!(
                questions[answers.len()].holds_line_feed(),
                "the oracle died of {:?}",
                questions[answers.len()]
            );
            answers.push(None);
        }
    }
    Ok(answers)
}

/// Asks one process for as long as it lives; whether it lived to the end.
fn ask_on(program: &Path, questions: &[Question], answers: &mut Vec<Option<String>>) -> Result<bool> {
    let mut child =
        Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut stdin = child.stdin.take().context("no pipe to the oracle")?;
    let stdout = BufReader::new(child.stdout.take().context("no pipe from the oracle")?);
    thread::scope(|scope| -> Result<()> {
        // It fails when the process ends, and that is noticed below.
        scope.spawn(move || questions.iter().try_for_each(|one| stdin.write_all(&one.bytes())));
        for line in stdout.lines() {
            answers.push(line?.strip_prefix('+').map(str::to_owned));
        }
        Ok(())
    })?;
    Ok(child.wait()?.success())
}
