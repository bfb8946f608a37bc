//! What a script prints: its tail kept for the error report, every line mirrored to the log.
//!
//! A script may print without end (`set -x` in a loop), so memory is bounded twice: the tail that is
//! kept, and the line that is being put together for the log.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, PipeReader};
use std::os::fd::OwnedFd;

use serde::{Serialize, Serializer};
use tokio::net::unix::pipe;

use crate::{LINE_SHOWN, printable};

/// How much of a script's output is kept, in bytes.
pub const OUTPUT_MAX: usize = 64 * 1024;

/// Longer lines are cut in pieces for the log.
const LINE_MAX: usize = 4096;

/// The last [`OUTPUT_MAX`] bytes that a script wrote to its standard output and standard error, in the
/// order in which it wrote them.
///
/// They are data, as the script wrote them. What can be shown of them is [`Output::last_line`]; `Debug`
/// shows no more.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Output {
    tail: Vec<u8>,
    truncated: bool,
}

impl Output {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.tail
    }

    /// The bytes as text. What is not UTF-8 is replaced.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.tail)
    }

    /// Whether the script printed more than is kept here, so that the beginning is missing.
    pub fn truncated(&self) -> bool {
        self.truncated
    }

    /// The last line that is not blank, without surrounding blanks: mostly the reason of a failure. It can
    /// be shown as it is: what is not printable is escaped, and it is no longer than [`LINE_SHOWN`].
    pub fn last_line(&self) -> Option<String> {
        let mut lines = self.tail.rsplit(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        lines.find(|line| !line.is_empty()).map(|line| printable(line, LINE_SHOWN))
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tail, truncated } = self;
        f.debug_struct("Output")
            .field("len", &tail.len())
            .field("truncated", truncated)
            .field("last_line", &self.last_line())
            .finish()
    }
}

/// As text: see [`Output::text`].
impl Serialize for Output {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text())
    }
}

/// As if a script had printed this: for runners that play scripts.
impl From<&str> for Output {
    fn from(text: &str) -> Self {
        let mut tail = Tail::default();
        tail.push(text.as_bytes());
        tail.finish()
    }
}

/// Reads the pipe that a script prints into.
#[derive(Debug)]
pub(crate) struct Capture {
    pipe: pipe::Receiver,
    tail: Tail,
    line: Vec<u8>,
}

impl Capture {
    /// Takes the reading end. Needs a tokio runtime with I/O around it.
    pub(crate) fn new(reader: PipeReader) -> io::Result<Self> {
        let pipe = pipe::Receiver::from_owned_fd(OwnedFd::from(reader))?;
        Ok(Self { pipe, tail: Tail::default(), line: Vec::new() })
    }

    /// Reads until all writing ends are closed. Dropping the future loses nothing that was read.
    pub(crate) async fn read_to_end(&mut self) {
        let mut chunk = [0; 8192];
        loop {
            // An error of a pipe means that nothing can be read from it any more.
            if self.pipe.readable().await.is_err() {
                return;
            }
            match self.pipe.try_read(&mut chunk) {
                Ok(0) => return,
                Ok(len) => self.take(&chunk[..len]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }

    fn take(&mut self, chunk: &[u8]) {
        self.tail.push(chunk);
        if !tracing::enabled!(tracing::Level::DEBUG) {
            return;
        }
        for piece in chunk.split_inclusive(|byte| *byte == b'\n').flat_map(|line| line.chunks(LINE_MAX)) {
            self.line.extend_from_slice(piece);
            if self.line.ends_with(b"\n") || self.line.len() >= LINE_MAX {
                self.log_line();
            }
        }
    }

    fn log_line(&mut self) {
        tracing::debug!("{}", printable(self.line.trim_ascii_end(), usize::MAX));
        self.line.clear();
    }

    /// What has been read.
    pub(crate) fn finish(mut self) -> Output {
        if !self.line.is_empty() {
            self.log_line();
        }
        self.tail.finish()
    }
}

/// A byte string of which only the last [`OUTPUT_MAX`] bytes are kept.
#[derive(Debug, Default)]
struct Tail {
    kept: VecDeque<u8>,
    truncated: bool,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        let surplus = (self.kept.len() + bytes.len()).saturating_sub(OUTPUT_MAX);
        self.truncated |= surplus > 0;
        self.kept.drain(..surplus.min(self.kept.len()));
        self.kept.extend(&bytes[bytes.len().saturating_sub(OUTPUT_MAX)..]);
    }

    fn finish(self) -> Output {
        Output { tail: self.kept.into(), truncated: self.truncated }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_what_was_pushed_last() {
        let all: Vec<u8> = (0..3 * OUTPUT_MAX).map(|n| (n % 251) as u8).collect();
        for step in [1000, 8192, OUTPUT_MAX, OUTPUT_MAX + 1, all.len()] {
            let mut tail = Tail::default();
            all.chunks(step).for_each(|chunk| tail.push(chunk));
            let output = tail.finish();
            assert!(output.truncated());
            assert_eq!(output.as_bytes(), &all[all.len() - OUTPUT_MAX..], "in steps of {step}");
        }
        let exact = "x".repeat(OUTPUT_MAX);
        assert!(!Output::from(&*exact).truncated());
        assert!(Output::from(&*(exact + "x")).truncated());
    }

    #[test]
    fn the_last_line_is_the_last_that_says_something() {
        assert_eq!(Output::from("a\n b\r\n \n\n").last_line().as_deref(), Some("b"));
        assert_eq!(Output::from("a").last_line().as_deref(), Some("a"));
        assert_eq!(Output::from("\n\n").last_line(), None);
        assert_eq!(Output::from("\u{1b}[2Jgone\n").last_line().as_deref(), Some(r"\x1b[2Jgone"));
    }
}
