//! How runs end, and how that reads in an error message.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::{Output, SpawnError};

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
    /// A native handler has done the script's work.
    Done,
    /// A native handler was to do the script's work, and failed.
    Failed,
    /// A native handler did not do the script's work within its limit.
    Late,
    /// The process that guards the script was killed, and the script's own process with it.
    Lost,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // What shells, and env, say by these.
            Self::Exited(126) => f.write_str("exited with status 126: a program could not be executed"),
            Self::Exited(127) => f.write_str("exited with status 127: a program was not found"),
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
            Self::Done => f.write_str("was not needed: its native handler has done its work"),
            Self::Late => f.write_str("was replaced by its native handler, which did not finish in time"),
            Self::Failed => f.write_str("was replaced by its native handler, which failed"),
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

/// How a run went.
///
/// `Display` completes a sentence that begins with the script, with the deadline and the script's words:
/// "exited with status 1: losetup: no free device". These are its `hotplug-error` if it wrote one, and else
/// the last line that it printed.
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
    /// What the script wrote to `hotplug-status` in this run, in a form that can be shown. It is in the
    /// store, so it is `None` until who has a connection there has looked: see [`Report::reported`].
    pub hotplug_status: Option<String>,
    /// What the script wrote to `hotplug-error` in this run, likewise.
    pub hotplug_error: Option<String>,
    /// What a native handler wrote into the backend's directory. `None` where that is not known, as of a script: then the
    /// store must be asked.
    #[serde(skip)]
    pub wrote: Option<BTreeMap<String, String>>,
}

impl Report {
    /// A report, for an implementation of [`Runner`](crate::Runner).
    pub fn new(ending: Ending, output: Output, duration: Duration) -> Self {
        Self { ending, output, duration, hotplug_status: None, hotplug_error: None, wrote: None }
    }

    /// Adds what a native handler wrote into the backend's directory, all of it.
    pub fn wrote(self, keys: BTreeMap<String, String>) -> Self {
        Self { wrote: Some(keys), ..self }
    }

    /// Adds what the script wrote to `hotplug-status` and `hotplug-error` in this run, in a form that can be
    /// shown ([`printable`](crate::printable)).
    pub fn reported(self, hotplug_status: Option<String>, hotplug_error: Option<String>) -> Self {
        Self { hotplug_status, hotplug_error, ..self }
    }

    /// What the script said last: its `hotplug-error`, or else the last line that it printed.
    pub fn last_words(&self) -> Option<String> {
        self.hotplug_error.clone().or_else(|| self.output.last_line())
    }

    /// Whether the script exited with status 0, or a native handler has done its work.
    ///
    /// That it also did its work, the store must tell: a script that failed to report to its backend
    /// may have exited with 0 all the same.
    pub fn success(&self) -> bool {
        matches!(self.ending, Ending::Exited(0) | Ending::Done)
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
        match self.last_words() {
            Some(words) => write!(f, ": {words}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

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
    fn what_the_script_reported_comes_before_what_it_printed() {
        let failed = || Report::new(Ending::Exited(1), Output::from("+ exit 1\n"), Duration::ZERO);
        assert_eq!(failed().to_string(), "exited with status 1: + exit 1");
        let reported = failed().reported(Some("error".to_owned()), Some("no such LUN".to_owned()));
        assert_eq!(reported.to_string(), "exited with status 1: no such LUN");
    }

    #[test]
    fn nothing_that_a_script_printed_is_shown_raw_or_at_length() {
        let output = Output::from(&*format!("\u{1b}[2J{}\u{202e}why", "x".repeat(60_000)));
        let report = Report::new(Ending::Exited(1), output, Duration::ZERO);
        for shown in [report.to_string(), format!("{report:?}")] {
            assert!(shown.len() < 700, "{} bytes", shown.len());
            assert!(shown.contains(r"\x1b[2J") || shown.contains(r"\\x1b[2J"), "{shown}");
            assert!(
                shown.contains("why") && shown.bytes().all(|byte| (b' '..=b'~').contains(&byte)),
                "{shown}"
            );
        }
    }

    #[test]
    fn reports_as_json() {
        let json = |ending| {
            let report = Report::new(ending, Output::from("\u{1b}[2J\n"), Duration::from_millis(1500));
            serde_json::to_value(report).unwrap()
        };
        let expected = serde_json::json!({
            "ending": "timed_out",
            "output": "\u{1b}[2J\n",
            "duration": 1.5,
            "hotplug_status": null,
            "hotplug_error": null,
        });
        assert_eq!(json(Ending::TimedOut), expected);
        assert_eq!(json(Ending::Exited(3))["ending"], serde_json::json!({ "exited": 3 }));
        let failed = Ending::SpawnFailed(io::Error::other("no").into());
        assert_eq!(json(failed)["ending"], serde_json::json!({ "spawn_failed": "no" }));
    }
}
