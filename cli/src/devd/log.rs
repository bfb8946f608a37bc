//! The daemon's log: a line for each event, with the time where nobody else adds it.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rustix::fs::OFlags;

use super::no_use;
use crate::journal::{Priority, marked};
use crate::printer::stderr;
use crate::problem::{Problem, line};

/// Where lines go.
pub(super) struct Log {
    path: Option<PathBuf>,
    /// Locked for each line: none is half of another.
    file: Mutex<Option<File>>,
    quiet: bool,
}

fn open(path: &Path) -> io::Result<File> {
    // A FIFO that nobody reads is refused, and one whose reader is slow is not waited for.
    File::options().append(true).create(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)
}

impl Log {
    /// One that adds to a file, or to standard error.
    pub(super) fn open(path: Option<PathBuf>, quiet: bool) -> Result<Self, Problem> {
        let hint = "name a file that you may write to with --log, or create its folder";
        let open = |path: &PathBuf| open(path).map_err(|error| no_use(path, &error, hint));
        let file = path.as_ref().map(open).transpose()?;
        Ok(Self { path, file: Mutex::new(file), quiet })
    }

    fn lock(&self) -> MutexGuard<'_, Option<File>> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its file, if it has one.
    pub(super) fn file(&self) -> Option<File> {
        self.lock().as_ref().and_then(|file| file.try_clone().ok())
    }

    /// Goes on in a new file of the same name, if somebody has moved the one that it had. One that cannot be opened leaves
    /// it there.
    pub(super) fn reopen(&self) {
        let Some(path) = &self.path else { return };
        match open(path) {
            Ok(file) => *self.lock() = Some(file),
            Err(error) => {
                self.line(Priority::Warning, &format!("{} cannot be opened again: {error}", path.display()));
            }
        }
    }

    /// Adds a line. What cannot be written is lost: it must not keep devices waiting.
    pub(super) fn line(&self, priority: Priority, text: &str) {
        let text = line(text);
        match &mut *self.lock() {
            Some(file) => {
                let now = humantime::format_rfc3339_seconds(SystemTime::now());
                _ = file.write_all(format!("{now} {text}\n").as_bytes());
            }
            None if self.quiet => {}
            None => stderr().put(marked(priority, &format!("{text}\n"))),
        }
    }
}
