//! What went wrong, in three parts, and the exit status it makes.

use std::process::ExitCode;

use aodevice::{Cause, Failure, FailureKind};
use xs_client::Error;

/// The exit status. 2, for usage, is given by the argument parser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Done,
    Failed,
    TimedOut,
    Aborted,
}

impl Exit {
    /// With `compat`, a timeout is a failure like any other, as it is for xl.
    pub(crate) fn code(self, compat: bool) -> ExitCode {
        ExitCode::from(match self {
            Self::Done => 0,
            Self::TimedOut if !compat => 3,
            Self::Failed | Self::TimedOut => 1,
            Self::Aborted => 4,
        })
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
}

impl Problem {
    pub(crate) fn new(tried: impl Into<String>, observed: impl ToString, hint: impl Into<String>) -> Self {
        let (tried, hint) = (tried.into(), hint.into());
        Self { tried, observed: vec![observed.to_string()], hint, exit: Exit::Failed }
    }

    /// A store that failed while something was tried.
    pub(crate) fn store(tried: impl Into<String>, error: &Error) -> Self {
        let exit = if matches!(error, Error::Timeout { .. }) { Exit::TimedOut } else { Exit::Failed };
        Self { exit, ..Self::new(tried, error, error.hint()) }
    }

    /// A domain that cannot be found.
    pub(crate) fn domain(text: &str, cause: Cause) -> Self {
        let tried = format!("cannot find domain {text}");
        match cause {
            Cause::Store(error) => Self::store(tried, &error),
            cause => Self::new(tried, cause, "xl list shows the domains"),
        }
    }

    /// Everything on standard error, each line marked with its part.
    pub(crate) fn print(&self) {
        eprintln!("error: {}", self.tried);
        for observed in &self.observed {
            eprintln!("  observed: {observed}");
        }
        eprintln!("  hint: {}", self.hint);
    }
}

impl From<Box<Failure>> for Problem {
    fn from(failure: Box<Failure>) -> Self {
        Self {
            tried: failure.tried(),
            observed: failure.observations(),
            hint: failure.hint(),
            exit: failure.cause.kind().into(),
        }
    }
}
