//! What went wrong, in three parts, and the exit status it makes.

use std::fmt::Write;
use std::future::Future;

use aodevice::{Cause, Failure, FailureKind};
use serde_json::{Value, json};
use xs_client::Error;

use crate::hint;
use crate::printer::stderr;
use crate::signals::cancel_on_signal;

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Done,
    Failed,
    Usage,
    TimedOut,
    Aborted,
}

impl Exit {
    /// The exit status. With `compat`, a timeout is a failure like any other, as it is for xl.
    pub(crate) fn status(self, compat: bool) -> u8 {
        match self {
            Self::Done => 0,
            Self::Usage => 2,
            Self::TimedOut if !compat => 3,
            Self::Failed | Self::TimedOut => 1,
            Self::Aborted => 4,
        }
    }
}

impl From<FailureKind> for Exit {
    fn from(kind: FailureKind) -> Self {
        match kind {
            FailureKind::TimedOut => Self::TimedOut,
            FailureKind::Aborted => Self::Aborted,
            _ => Self::Failed,
        }
    }
}

/// An error as a person is told it: what was tried, what was observed, what to do.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) tried: String,
    pub(crate) observed: Vec<String>,
    pub(crate) hint: String,
    pub(crate) exit: Exit,
    /// What its JSON object holds besides these, by name.
    details: Vec<(String, Value)>,
}

impl Problem {
    pub(crate) fn new(tried: impl Into<String>, observed: impl ToString, hint: impl Into<String>) -> Self {
        let (tried, hint) = (tried.into(), hint.into());
        Self { tried, observed: vec![observed.to_string()], hint, exit: Exit::Failed, details: Vec::new() }
    }

    /// An argument that is malformed.
    pub(crate) fn usage(tried: impl Into<String>, observed: impl ToString, hint: impl Into<String>) -> Self {
        Self::new(tried, observed, hint).with_exit(Exit::Usage)
    }

    /// A store that failed while something was tried.
    pub(crate) fn store(tried: impl Into<String>, error: &Error) -> Self {
        let exit = if matches!(error, Error::Timeout { .. }) { Exit::TimedOut } else { Exit::Failed };
        Self::new(tried, error, error.hint()).with_exit(exit)
    }

    /// A domain that cannot be found.
    pub(crate) fn domain(text: &str, cause: Cause) -> Self {
        let tried = format!("cannot find domain {text}");
        match cause {
            Cause::Store(error) => Self::store(tried, &error),
            cause => Self::new(tried, cause, "xl list shows the domains"),
        }
    }

    /// The same problem with another exit status.
    #[must_use]
    pub(crate) fn with_exit(self, exit: Exit) -> Self {
        Self { exit, ..self }
    }

    /// The same problem with one more entry in its JSON object.
    #[must_use]
    pub(crate) fn with_detail(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.details.push((name.to_owned(), value.into()));
        self
    }

    /// Everything on standard error, each line marked with its part.
    pub(crate) fn print(&self) {
        let Self { tried, observed, hint, .. } = self;
        let mut text = format!("error: {tried}\n");
        for observed in observed {
            // Writing to a String cannot fail.
            _ = writeln!(text, "  observed: {observed}");
        }
        stderr().put(text + &format!("  hint: {hint}\n"));
    }

    pub(crate) fn json(&self) -> Value {
        let Self { tried, observed, hint, details, .. } = self;
        let mut object = json!({"ok": false, "error": tried, "observed": observed, "hint": hint});
        for (name, value) in details {
            object[name] = value.clone();
        }
        object
    }
}

impl From<Box<Failure>> for Problem {
    fn from(failure: Box<Failure>) -> Self {
        let details = match json!(*failure) {
            // What it observed and its hint are told in words.
            Value::Object(details) => {
                details.into_iter().filter(|(name, _)| !matches!(&**name, "observed" | "hint")).collect()
            }
            _ => Vec::new(),
        };
        Self {
            tried: failure.tried(),
            observed: failure.observations(),
            hint: hint::words(&failure),
            exit: failure.cause.kind().into(),
            details,
        }
    }
}

/// What `call` yields, or a problem if a signal comes first: a store that does not answer must
/// not hold up a person who wants to stop.
pub(crate) async fn unless_cancelled<T>(
    tried: impl Into<String>,
    call: impl Future<Output = T>,
) -> Result<T, Problem> {
    let cancel = cancel_on_signal();
    tokio::select! {
        biased;
        () = cancel.cancelled() => {
            let hint = "nothing was changed; if the store did not answer, see whether xenstored is stopped";
            Err(Problem::new(tried, "cancelled by a signal", hint).with_exit(Exit::Aborted))
        }
        value = call => Ok(value),
    }
}
