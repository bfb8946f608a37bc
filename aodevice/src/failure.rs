//! Failures and warnings. A failure has three parts: what was tried, what was observed, and what
//! to do about it.

use std::fmt;
use std::time::Duration;

use devstate::{Goal, StateValue, XenbusState};
use hotplug::{Ending, Report, ScriptRun};
use thiserror::Error;

use crate::Kind;

/// One of the two ends of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The driver that serves it.
    Backend,
    /// The guest's driver.
    Frontend,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Backend => "backend",
            Self::Frontend => "frontend",
        })
    }
}

/// Why an operation failed.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum Cause {
    /// The store knows no such domain.
    #[error("the store knows no domain {0}")]
    NoSuchDomain(String),
    /// The guest has no such device.
    #[error("the guest has no such device")]
    NotConnected,
    /// The guest has a device with this id already.
    #[error("the guest has this device already")]
    Exists,
    /// The guest's directory of the device belongs to a live frontend of another backend.
    #[error("the guest's frontend is in use (state {0}) by a device that the toolstack does not know")]
    FrontendInUse(XenbusState),
    /// The device cannot be had as it was described.
    #[error("{0}")]
    Invalid(String),
    /// The device's backend is in another domain, or of a kind that this version does not know.
    #[error("its backend is {0}; only vbd and vif backends of this domain are served")]
    ForeignBackend(String),
    /// An end of the device did not get where it was to get.
    #[error("the {end} did not get to {goal} within {limit:?}")]
    TimedOut {
        /// Which end.
        end: End,
        /// Where it was to get.
        goal: Goal,
        /// How long it had.
        limit: Duration,
    },
    /// An end of the device gave up.
    #[error("the {end} went to {state} instead of {goal}")]
    Refused {
        /// Which end.
        end: End,
        /// Where it was to get.
        goal: Goal,
        /// Where it went.
        state: XenbusState,
    },
    /// The nodes of an end of the device vanished.
    #[error("the {0}'s nodes vanished from the store")]
    Vanished(End),
    /// A hotplug script failed.
    #[error("the hotplug script `{run}` {report}")]
    Script {
        /// What was run.
        run: Box<ScriptRun>,
        /// How it ended.
        report: Box<Report>,
    },
    /// Another operation on the device took over.
    #[error("another operation on the device took over")]
    Superseded,
    /// The store failed.
    #[error("{0}")]
    Store(#[from] xs_client::Error),
    /// The caller cancelled.
    #[error("cancelled")]
    Aborted,
}

impl From<xs_client::PathError> for Cause {
    fn from(error: xs_client::PathError) -> Self {
        Self::Store(error.into())
    }
}

/// What kind of failure it is, for exit codes and decisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FailureKind {
    /// It failed.
    Failed,
    /// The guest, the backend, a script or the store did not answer in time.
    TimedOut,
    /// The caller cancelled.
    Aborted,
}

impl Cause {
    /// What kind of failure it is.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::TimedOut { .. } | Self::Store(xs_client::Error::Timeout { .. }) => FailureKind::TimedOut,
            Self::Script { report, .. } if report.ending == Ending::TimedOut => FailureKind::TimedOut,
            Self::Aborted => FailureKind::Aborted,
            _ => FailureKind::Failed,
        }
    }
}

/// What the two ends of a device say of themselves. What the guest wrote is marked, shortened and
/// escaped before it is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// The backend's state.
    pub backend: Option<StateValue>,
    /// The frontend's state, as the guest wrote it.
    pub frontend: Option<StateValue>,
    /// `hotplug-status`, as the script left it.
    pub hotplug_status: Option<String>,
    /// `hotplug-error`, as the script left it.
    pub hotplug_error: Option<String>,
    /// The backend driver's error text.
    pub backend_error: Option<String>,
    /// The frontend driver's error text, as the guest wrote it.
    pub frontend_error: Option<String>,
}

impl Observation {
    /// Sentences, the most telling first; empty if there is nothing to see.
    pub fn sentences(&self) -> Vec<String> {
        let mut sentences = Vec::new();
        let mut say = |what: &str, text: &Option<String>| {
            if let Some(text) = text {
                sentences.push(format!("{what}: {text}"));
            }
        };
        say("the script says", &self.hotplug_error);
        say("the backend says", &self.backend_error);
        say("the guest says", &self.frontend_error);
        if let Some(status) = &self.hotplug_status {
            sentences.push(format!("hotplug-status is {status}"));
        }
        if self.backend.is_some() || self.frontend.is_some() {
            let state = |end: &Option<StateValue>| match end {
                Some(value) => value.to_string(),
                None => "not there".to_owned(),
            };
            sentences.push(format!(
                "backend state {}, frontend state {}",
                state(&self.backend),
                state(&self.frontend)
            ));
        }
        sentences
    }

    fn backend_is(&self, wanted: XenbusState) -> bool {
        self.backend.as_ref().and_then(StateValue::state) == Some(wanted)
    }
}

/// What was being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A device was to be added.
    Attach,
    /// A device was to be removed.
    Detach,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Attach => "attach",
            Self::Detach => "detach",
        })
    }
}

/// Something that went wrong but did not stop an operation.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Warning {
    /// A script failed on removal; the device is gone all the same.
    ScriptFailed {
        /// What was run.
        run: Box<ScriptRun>,
        /// How it ended.
        report: Box<Report>,
    },
    /// A script exited with 0 without reporting what the backend needs.
    NotReported {
        /// What was run.
        run: Box<ScriptRun>,
        /// The key that it did not write.
        missing: &'static str,
    },
    /// The removal script could not be run, since the nodes that it needs were gone.
    ScriptSkipped,
    /// The backend did not let go; the device was removed without its consent.
    Forced {
        /// How long it had.
        limit: Duration,
    },
    /// Another operation took the device over before this one ended; it was left to it.
    Superseded,
    /// A step of a roll-back failed, so something may be left.
    LeftBehind {
        /// The step.
        step: &'static str,
        /// Why.
        cause: Cause,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ScriptFailed { run, report } => write!(
                f,
                "the hotplug script `{run}` {report}; what it was to undo (loop device, bridge port) may be left"
            ),
            Self::NotReported { run, missing } => {
                write!(f, "the hotplug script `{run}` exited with status 0 but did not write {missing}")
            }
            Self::ScriptSkipped => f.write_str(
                "the backend's nodes were gone, so the hotplug script could not be run; \
                 what it was to undo (loop device, bridge port) may be left",
            ),
            Self::Forced { limit } => write!(f, "forced: the backend did not close within {limit:?}"),
            Self::Superseded => {
                f.write_str("another operation took the device over, and it was left to that")
            }
            Self::LeftBehind { step, cause } => write!(f, "rolling back, {step} failed: {cause}"),
        }
    }
}

/// An operation that failed.
#[derive(Clone, Debug, Error)]
#[error("{}: {cause}", self.tried())]
pub struct Failure {
    /// What was tried.
    pub operation: Operation,
    /// The device and its domain, in words.
    pub device: String,
    /// Its kind.
    pub device_kind: Kind,
    /// Why it failed.
    pub cause: Cause,
    /// What both ends said when it did.
    pub observed: Observation,
    /// What did not go well besides.
    pub warnings: Vec<Warning>,
    /// How long it took, roll-back included.
    pub elapsed: Duration,
}

impl Failure {
    /// What was tried.
    pub fn tried(&self) -> String {
        format!("cannot {} {}", self.operation, self.device)
    }

    /// What was observed, in sentences: the cause first; never empty.
    pub fn observations(&self) -> Vec<String> {
        let mut sentences = vec![self.cause.to_string()];
        sentences.extend(self.observed.sentences());
        if self.observed.backend_is(XenbusState::Initialising) {
            sentences.push("no backend driver has taken the device up".to_owned());
        }
        if self.elapsed >= Duration::from_secs(1) {
            sentences.push(format!("after {:.1} s in all", self.elapsed.as_secs_f64()));
        }
        sentences
    }

    /// What to do.
    pub fn hint(&self) -> String {
        let kind = self.device_kind;
        match &self.cause {
            Cause::NoSuchDomain(_) => "xl list shows the domains".to_owned(),
            Cause::NotConnected | Cause::Exists => {
                let list = if kind == Kind::Vbd { "block-list" } else { "network-list" };
                format!("xendev {list} shows the guest's devices")
            }
            Cause::FrontendInUse(_) => {
                "let the guest close it, or remove its directory under device/ if nothing serves it"
                    .to_owned()
            }
            Cause::Invalid(_) => "correct the description of the device".to_owned(),
            Cause::ForeignBackend(_) => "use xl for it".to_owned(),
            Cause::TimedOut { .. } if self.observed.backend_is(XenbusState::Initialising) => {
                format!("load the backend driver (modprobe {}) and try again", kind.backend_module())
            }
            Cause::TimedOut { .. } if self.operation == Operation::Attach => format!(
                "see that the guest runs and has its driver ({}), then try again",
                kind.frontend_module()
            ),
            Cause::TimedOut { .. } => {
                "the device is left closing: unpause the guest or free the device in it and \
                                       detach again, or detach with --force"
                    .to_owned()
            }
            Cause::Refused { .. } | Cause::Vanished(_) => {
                "the kernel log of the backend's domain (dmesg) tells why".to_owned()
            }
            Cause::Script { report, .. } => match &report.ending {
                Ending::SpawnFailed(_) => "name a script that exists and is executable".to_owned(),
                Ending::TimedOut => "run the script by hand, or give it longer with --script-timeout; \
                                     its log is /var/log/xen/xen-hotplug.log"
                    .to_owned(),
                _ => "the log of the stock scripts is /var/log/xen/xen-hotplug.log".to_owned(),
            },
            Cause::Superseded => "see what else works on the guest's devices, then try again".to_owned(),
            Cause::Store(error) => error.hint().to_owned(),
            Cause::Aborted if self.operation == Operation::Detach => {
                "detach it again to go on; if it had begun to close, it is left closing".to_owned()
            }
            Cause::Aborted => "nothing is left of it; attach it again".to_owned(),
        }
    }
}
