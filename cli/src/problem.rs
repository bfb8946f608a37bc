//! What went wrong, in three parts, and the exit status it makes.

use std::fmt::Write;
use std::future::Future;
use std::time::Duration;

use serde_json::{Map, Value, json};
use xen_aodevice::{Cause, Failure, FailureKind};
use xs_client::Error;

use crate::hint;
use crate::journal::{Priority, marked};
use crate::printer::stderr;
use crate::signals::cancel_on_signal;

/// How many characters of a line are shown. The texts of others in it have lower bounds of their own; this one
/// is for what a caller has passed.
const LINE_MAX: usize = 2000;

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Done,
    Failed,
    Usage,
    TimedOut,
    Aborted,
    /// As a process in the background has ended, which has told why.
    Background(u8),
}

impl Exit {
    /// The exit status. With `compat`, a timeout is a failure like any other, as it is for xl.
    pub(crate) fn status(self, compat: bool) -> u8 {
        match self {
            Self::Done => 0,
            Self::Background(status) => status,
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

/// What kind of problem it is, beside those of aodevice: its text stands in the JSON and does not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// The command line cannot be understood, or asks for what there is not.
    Usage,
    /// A disk or an interface that cannot be understood.
    BadDevice,
    /// `xl.conf` cannot be read or understood.
    BadXlConf,
    /// A domain's configuration file cannot be read or understood.
    BadXlCfg,
    /// The program could not be set up.
    Start,
    /// A store could not be served.
    Serve,
    /// A wait for a state that ended otherwise.
    Wait,
    /// Standard output could not be written.
    Output,
    /// The demo found something left.
    Demo,
    /// A signal came.
    Cancelled,
    /// The code of a cause.
    Of(&'static str),
}

impl Code {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::BadDevice => "bad_device",
            Self::BadXlConf => "bad_xl_conf",
            Self::BadXlCfg => "bad_xl_cfg",
            Self::Start => "start",
            Self::Serve => "serve",
            Self::Wait => "wait",
            Self::Output => "output",
            Self::Demo => "demo",
            Self::Cancelled => "cancelled",
            Self::Of(text) => text,
        }
    }
}

/// An error as a person is told it: what was tried, what was observed, what to do.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) code: Code,
    pub(crate) tried: String,
    pub(crate) observed: Vec<String>,
    pub(crate) hint: String,
    pub(crate) exit: Exit,
    /// Whether standard output holds its one value of JSON already.
    pub(crate) told: bool,
    /// What its JSON object holds besides these.
    details: Box<Map<String, Value>>,
}

impl Problem {
    pub(crate) fn new(
        code: Code,
        tried: impl Into<String>,
        observed: impl ToString,
        hint: impl Into<String>,
    ) -> Self {
        let (tried, hint) = (tried.into(), hint.into());
        let observed = vec![observed.to_string()];
        let exit = match code {
            Code::Usage | Code::BadDevice => Exit::Usage,
            Code::Cancelled => Exit::Aborted,
            _ => Exit::Failed,
        };
        Self { code, tried, observed, hint, exit, told: false, details: Box::default() }
    }

    /// A store that failed while something was tried.
    pub(crate) fn store(tried: impl Into<String>, error: &Error) -> Self {
        let exit = if matches!(error, Error::Timeout { .. }) { Exit::TimedOut } else { Exit::Failed };
        Self::new(Code::Of("store"), tried, error, error.hint()).with_exit(exit)
    }

    /// Something that failed before an operation began.
    pub(crate) fn of_cause(tried: impl Into<String>, cause: Cause) -> Self {
        let hint = match &cause {
            Cause::Store(error) => return Self::store(tried, error),
            Cause::DomainGone(domid) => hint::clean_up(*domid),
            Cause::AmbiguousName { .. } => "name it by its domid".to_owned(),
            _ => "xl list shows the domains".to_owned(),
        };
        Self::new(Code::Of(cause.code()), tried, cause, hint)
    }

    /// Whether whatever is tried next will have it too.
    pub(crate) fn is_about_all(&self) -> bool {
        matches!(self.code, Code::Cancelled | Code::Of("store"))
    }

    /// The same problem with another exit status.
    #[must_use]
    pub(crate) fn with_exit(self, exit: Exit) -> Self {
        Self { exit, ..self }
    }

    /// The same problem with one more entry in its JSON object.
    #[must_use]
    pub(crate) fn with_detail(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.details.insert(name.to_owned(), value.into());
        self
    }

    /// Everything on standard error, each line marked with its part.
    pub(crate) fn print(&self) {
        let Self { tried, observed, hint, .. } = self;
        let mut text = format!("error: {}\n", line(tried));
        for observed in observed {
            // Writing to a String cannot fail.
            _ = writeln!(text, "  observed: {}", line(observed));
        }
        _ = writeln!(text, "  hint: {}", line(hint));
        stderr().put(marked(Priority::Error, &text));
    }

    pub(crate) fn json(&self) -> Value {
        let Self { tried, observed, hint, details, .. } = self;
        let observed: Vec<String> = observed.iter().map(|observed| line(observed)).collect();
        let mut value = json!({
            "ok": false,
            "code": self.code.text(),
            "error": line(tried),
            "observed": observed,
            "hint": line(hint),
        });
        for (name, detail) in details.iter() {
            if value.get(name).is_none() {
                value[name] = detail.clone();
            }
        }
        value
    }
}

/// A text as a line of a terminal: it may name what others have called files, domains and devices.
pub(crate) fn line(text: &str) -> String {
    xen_hotplug::printable(text, LINE_MAX)
}

impl From<Box<Failure>> for Problem {
    fn from(failure: Box<Failure>) -> Self {
        let details = match json!(*failure) {
            Value::Object(details) => Box::new(details),
            _ => Box::default(),
        };
        Self {
            code: Code::Of(failure.cause.code()),
            tried: failure.tried(),
            observed: failure.observations(),
            hint: hint::words(&failure),
            exit: failure.cause.kind().into(),
            told: false,
            details,
        }
    }
}

/// What `call` yields, or a problem if the deadline of all that is to be done comes before it has begun.
pub(crate) async fn within<T>(
    deadline: Duration,
    tried: &str,
    call: impl Future<Output = Result<T, Problem>>,
) -> Result<T, Problem> {
    tokio::select! {
        biased;
        done = call => done,
        () = xen_devstate::deadline(deadline) => {
            let observed = format!("the deadline of {deadline:?} came before anything was begun");
            let hint = "nothing was changed; give it longer with --deadline";
            Err(Problem::new(Code::Of("deadline"), tried, observed, hint).with_exit(Exit::TimedOut))
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
            Err(Problem::new(Code::Cancelled, tried, "cancelled by a signal", hint))
        }
        value = call => Ok(value),
    }
}
