//! How runs end, and how that reads in an error message.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use crate::Output;

/// How a run ended.
///
/// `Display` completes a sentence that begins with the script: "exited with status 1", "was killed by
/// SIGSEGV".
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ending {
    /// The script ended by itself with this status; 0 is success.
    Exited(i32),
    /// The script was killed by this signal, which this crate did not send.
    Signalled(i32),
    /// The deadline passed, and the script's process group was killed.
    TimedOut,
    /// The caller cancelled, and the script's process group, if it had been started, was killed.
    Aborted,
    /// It waited in the queue for as long as [`Limits::queue`](crate::Limits::queue) allows, and was
    /// never started.
    NotStarted,
    /// The script could not be started.
    SpawnFailed(SpawnError),
    /// Other code in this program took the status of the script's process (`waitpid(-1)` does that),
    /// so it is not known how the script ended.
    Lost,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "exited with status {status}"),
            Self::Signalled(signal) => match signal_name(*signal) {
                Some(name) => write!(f, "was killed by {name}"),
                None => write!(f, "was killed by signal {signal}"),
            },
            Self::TimedOut => f.write_str("did not finish in time and was killed with its process group"),
            Self::Aborted => f.write_str("was cancelled"),
            Self::NotStarted => f.write_str("was not started: other scripts ran for too long"),
            Self::SpawnFailed(error) => write!(f, "could not be started: {error}"),
            Self::Lost => f.write_str("ended, but other code in this program took its exit status"),
        }
    }
}

fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGILL => "SIGILL",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGKILL => "SIGKILL",
        libc::SIGUSR1 => "SIGUSR1",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGUSR2 => "SIGUSR2",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGALRM => "SIGALRM",
        libc::SIGTERM => "SIGTERM",
        libc::SIGXCPU => "SIGXCPU",
        libc::SIGXFSZ => "SIGXFSZ",
        libc::SIGSYS => "SIGSYS",
        _ => return None,
    })
}

/// Why a script could not be started.
///
/// Holds what an [`io::Error`] holds, in a form that can be cloned and compared.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct SpawnError {
    kind: io::ErrorKind,
    message: String,
}

impl SpawnError {
    /// What kind of error it is: `NotFound` and `PermissionDenied` are the likely ones.
    pub fn kind(&self) -> io::ErrorKind {
        self.kind
    }

    /// The kernel's answer to the attempt to execute `script`, in words that name the remedy. It says
    /// "no such file" for a script that is there but whose interpreter is not.
    pub(crate) fn explain(script: &Path, error: &io::Error) -> Self {
        let plain_file = script.components().count() > 1 && script.is_file();
        let message = match error.kind() {
            io::ErrorKind::NotFound if plain_file => match interpreter(script) {
                Some(interpreter) => format!("its interpreter {} does not exist", interpreter.display()),
                None => "its interpreter or loader does not exist".to_owned(),
            },
            io::ErrorKind::NotFound => "there is no such file".to_owned(),
            io::ErrorKind::PermissionDenied if plain_file => "the file is not executable".to_owned(),
            _ => error.to_string(),
        };
        Self { kind: error.kind(), message }
    }
}

impl From<io::Error> for SpawnError {
    fn from(error: io::Error) -> Self {
        Self { kind: error.kind(), message: error.to_string() }
    }
}

/// The program in a script's `#!` line, read like the kernel does: from the first 256 bytes.
fn interpreter(script: &Path) -> Option<PathBuf> {
    use std::io::Read as _;

    let mut head = Vec::new();
    std::fs::File::open(script).ok()?.take(256).read_to_end(&mut head).ok()?;
    let line = head.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let line = String::from_utf8_lossy(line);
    line.split_whitespace().next().map(PathBuf::from)
}

/// How a run went.
///
/// `Display` completes a sentence that begins with the script, with the deadline and the script's last
/// words: "exited with status 1: losetup: no free device".
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Report {
    /// How it ended.
    pub ending: Ending,
    /// What the script printed.
    pub output: Output,
    /// From the start of the script until it ended or was told to end. Time in the queue is not in it;
    /// zero if the script was never started.
    pub duration: Duration,
}

impl Report {
    /// Whether the script exited with status 0.
    ///
    /// That it also did its work, the store must tell: a script that failed to report to its backend
    /// may have exited with 0 all the same.
    pub fn success(&self) -> bool {
        self.ending == Ending::Exited(0)
    }

    /// The report on a script that never ran.
    pub(crate) fn unstarted(ending: Ending) -> Self {
        Self { ending, output: Output::default(), duration: Duration::ZERO }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ending {
            Ending::TimedOut => {
                // Tenths suffice for a duration that is a deadline.
                let seconds = (self.duration.as_secs_f64() * 10.0).round() / 10.0;
                write!(f, "did not finish within {seconds} s and was killed with its process group")?;
            }
            ref ending => write!(f, "{ending}")?,
        }
        match self.output.last_line() {
            Some(words) => write!(f, ": {words}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_read_well() {
        assert_eq!(Ending::Exited(1).to_string(), "exited with status 1");
        assert_eq!(Ending::Signalled(libc::SIGSEGV).to_string(), "was killed by SIGSEGV");
        assert_eq!(Ending::Signalled(63).to_string(), "was killed by signal 63");
        let failed = Ending::SpawnFailed(io::Error::from_raw_os_error(libc::EAGAIN).into());
        assert!(failed.to_string().starts_with("could not be started: Resource temporarily"), "{failed}");
    }

    #[test]
    fn reports_name_the_deadline_and_the_last_words() {
        let report = Report {
            ending: Ending::TimedOut,
            output: Output::from("waiting for lock\n\n"),
            duration: Duration::from_millis(40_003),
        };
        assert_eq!(
            report.to_string(),
            "did not finish within 40 s and was killed with its process group: waiting for lock"
        );
        assert_eq!(Report::unstarted(Ending::Aborted).to_string(), "was cancelled");
    }
}
