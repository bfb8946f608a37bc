//! The daemon's log: a line for each event, with the time where nobody else adds it.

use std::env;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use rustix::fs::{OFlags, fstat};
use rustix::stdio;

use super::no_use;
use crate::printer::stderr;
use crate::problem::{Problem, line};

/// Whether standard error is systemd's journal, which says itself which file that is: a program that was started from a
/// service of another kind has the variable too.
pub(super) fn is_journal() -> bool {
    let Ok(told) = env::var("JOURNAL_STREAM") else { return false };
    fstat(stdio::stderr()).is_ok_and(|found| told == format!("{}:{}", found.st_dev, found.st_ino))
}

/// Where lines go.
pub(super) struct Log {
    file: Option<File>,
    /// No line is half of another.
    turn: Mutex<()>,
    quiet: bool,
}

impl Log {
    /// One that adds to a file, or to standard error.
    pub(super) fn open(path: Option<&Path>, quiet: bool) -> Result<Self, Problem> {
        let open = |path: &Path| {
            // A FIFO that nobody reads is refused, and one whose reader is slow is not waited for.
            let flags = OFlags::NONBLOCK.bits() as i32;
            let file = File::options().append(true).create(true).custom_flags(flags).open(path);
            let hint = "name a file that you may write to with --log, or create its folder";
            file.map_err(|error| no_use(path, &error, hint))
        };
        Ok(Self { file: path.map(open).transpose()?, turn: Mutex::default(), quiet })
    }

    /// Its file, if it has one.
    pub(super) fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }

    /// Adds a line. What cannot be written is lost: it must not keep devices waiting.
    pub(super) fn line(&self, text: &str) {
        let text = line(text);
        match &self.file {
            Some(file) => {
                let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
                let now = humantime::format_rfc3339_seconds(SystemTime::now());
                let mut file = file;
                _ = file.write_all(format!("{now} {text}\n").as_bytes());
            }
            None if self.quiet => {}
            None => stderr().put(format!("{text}\n")),
        }
    }
}
