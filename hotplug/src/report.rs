//! How runs end, and how that reads in an error message.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Serialize, Serializer};
use thiserror::Error;

use crate::Output;

/// How a run ended.
///
/// `Display` completes a sentence that begins with the script: "exited with status 1", "was killed by
/// SIGSEGV".
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
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
    /// It waited for its turn for as long as [`Limits::queue`](crate::Limits::queue) allows, and was
    /// never started: other scripts, or one of the same device, ran all the time.
    NotStarted,
    /// It was not started, since it was not permitted any more when its turn had come: see
    /// [`Runner::run_if`](crate::Runner::run_if).
    Withdrawn,
    /// The script could not be started.
    SpawnFailed(SpawnError),
    /// The process that guards the script was killed, and the script's own process with it.
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
            Self::Withdrawn => f.write_str("was not started: it was not wanted any more"),
            Self::NotStarted => {
                f.write_str("was not started: other scripts, or one of the same device, ran for too long")
            }
            Self::SpawnFailed(error) => write!(f, "could not be started: {error}"),
            Self::Lost => f.write_str("was killed because the process that guards it was killed"),
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

    /// The lock of a device could not be taken, and without it no script is run.
    pub(crate) fn lock(lock: &Path, error: &io::Error) -> Self {
        Self { kind: error.kind(), message: format!("the device's lock {}: {error}", lock.display()) }
    }
}

/// As its message.
impl Serialize for SpawnError {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.message)
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[must_use]
#[non_exhaustive]
pub struct Report {
    /// How it ended.
    pub ending: Ending,
    /// What the script printed.
    pub output: Output,
    /// From the start of the script until it ended or was told to end. Time in the queue is not in it;
    /// zero if the script was never started. As a number of seconds when it is serialised.
    #[serde(serialize_with = "seconds")]
    pub duration: Duration,
}

impl Report {
    /// A report, for an implementation of [`Runner`](crate::Runner).
    pub fn new(ending: Ending, output: Output, duration: Duration) -> Self {
        Self { ending, output, duration }
    }

    /// Whether the script exited with status 0.
    ///
    /// That it also did its work, the store must tell: a script that failed to report to its backend
    /// may have exited with 0 all the same.
    pub fn success(&self) -> bool {
        self.ending == Ending::Exited(0)
    }

    /// The report on a script that never ran.
    pub(crate) fn unstarted(ending: Ending) -> Self {
        Self::new(ending, Output::default(), Duration::ZERO)
    }
}

fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
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
        let output = Output::from("waiting for lock\n\n");
        let report = Report::new(Ending::TimedOut, output, Duration::from_millis(40_003));
        assert_eq!(
            report.to_string(),
            "did not finish within 40 s and was killed with its process group: waiting for lock"
        );
        assert_eq!(Report::unstarted(Ending::Aborted).to_string(), "was cancelled");
    }

    #[test]
    fn reports_as_json() {
        let json = |ending| {
            let report = Report::new(ending, Output::from("\u{1b}[2J\n"), Duration::from_millis(1500));
            serde_json::to_value(report).unwrap()
        };
        let expected = serde_json::json!({ "ending": "timed_out", "output": "\u{1b}[2J\n", "duration": 1.5 });
        assert_eq!(json(Ending::TimedOut), expected);
        assert_eq!(json(Ending::Exited(3))["ending"], serde_json::json!({ "exited": 3 }));
        let failed = Ending::SpawnFailed(io::Error::other("no").into());
        assert_eq!(json(failed)["ending"], serde_json::json!({ "spawn_failed": "no" }));
    }
}
