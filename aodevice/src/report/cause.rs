//! Why an operation failed.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Serialize, Serializer};
use thiserror::Error;
use xen_devstate::XenbusState;
use xen_hotplug::{Action, Ending, Report, Request, printable};
use xs_client::DomId;

use crate::libxl::ConfigError;
use crate::machine::Node;
use crate::operation::record::Occupant;
use crate::{BackendKind, MonitorError};

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

/// How many characters are shown of a text that names what a caller has passed, such as a file.
const TEXT_SHOWN: usize = 1000;

/// As in `reported a failure (hotplug-status is busy): /dev/sdb is mounted`.
fn in_words(report: &Report) -> String {
    let status = report.hotplug_status.as_deref().unwrap_or("error");
    let words = report.last_words().map(|words| format!(": {words}")).unwrap_or_default();
    format!("reported a failure (hotplug-status is {status}){words}")
}

/// What a driver domain did not do for a device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DriverDomainFault {
    /// It is gone, or will not run again.
    Gone,
    /// Its hotplug script, or its device model, failed.
    Script {
        /// `hotplug-status`, in a form that can be shown.
        status: String,
        /// `hotplug-error`, in a form that can be shown.
        error: Option<String>,
    },
    /// Its hotplug script reported success, but did not write what the backend needs.
    NotReported {
        /// The key that was not written, or not as the backend reads it.
        missing: &'static str,
    },
    /// No hotplug script reported there in time.
    Silent {
        /// How long that had.
        limit: Duration,
    },
    /// The backend's directory was not removed there in time, once the device was closed.
    NotRemoved {
        /// How long that had.
        limit: Duration,
    },
}

/// Said of a driver domain.
impl fmt::Display for DriverDomainFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("is gone, and the backend with it"),
            Self::Script { status, error } => {
                write!(f, "reported that it could not set the device up (hotplug-status is {status})")?;
                error.iter().try_for_each(|error| write!(f, ": {error}"))
            }
            Self::NotReported { missing } => write!(
                f,
                "reported that its hotplug script has run (hotplug-status is connected), but that did not write \
                 {missing}: it found nothing that it could serve"
            ),
            Self::Silent { limit } => {
                write!(
                    f,
                    "did not report within {limit:?} that its hotplug script has run (no hotplug-status)"
                )
            }
            Self::NotRemoved { limit } => {
                write!(f, "closed the device, but did not remove the backend's directory within {limit:?}")
            }
        }
    }
}

/// Why an operation failed.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum Cause {
    /// The store knows no such domain.
    #[error("the store knows no domain {}", printable(.0, TEXT_SHOWN))]
    NoSuchDomain(String),
    /// A domain has a home in the store, which has not been introduced to it: it is gone, or was never there.
    #[error("domain {0} does not run: it has a home in the store, but the store does not know it")]
    DomainGone(DomId),
    /// Several domains that run have the name.
    #[error("domains {} all have the name {name}", list(domids))]
    AmbiguousName {
        /// The name.
        name: String,
        /// The domains.
        domids: Vec<DomId>,
    },
    /// The guest has no such device.
    #[error("the guest has no such device")]
    NoSuchDevice,
    /// The guest has a device with this id already.
    #[error("the guest has this device already")]
    Exists,
    /// The guest has the device and uses it, but whoever added it died before that was done.
    #[error("the guest has this device, but the attach of it died before it was done")]
    Unfinished,
    /// A device that no toolstack has recorded is there, and its backend serves it.
    #[error("a device that no toolstack has recorded is in use there: its backend's state is {0}")]
    Unrecorded(XenbusState),
    /// The guest's directory of the device belongs to a backend in another place, which serves it.
    #[error("the guest's frontend is served by another backend, whose state is {0}")]
    FrontendInUse(XenbusState),
    /// The device cannot be had as it was described.
    #[error("{}", printable(.0, TEXT_SHOWN))]
    Invalid(String),
    /// What is to be served is not there, or is nothing that can be served.
    #[error("the target {0}")]
    Target(String),
    /// The device is one that xl knows and this version does not serve yet.
    #[error("{0} is not served yet")]
    Unsupported(String),
    /// The device is one that xl knows and that cannot be had here, for want of something.
    #[error("{what} is not supported: it needs {needs}")]
    NotSupported {
        /// What is asked for.
        what: String,
        /// What that would need.
        needs: &'static str,
    },
    /// The device is for domain 0, which can never use one of its kind.
    #[error("domain 0 cannot use one: {0}")]
    NotInDomain0(&'static str),
    /// The domain has no device model that runs, and that is to serve the device.
    #[error("domain {0} has no device model that runs, and QEMU is to serve the device")]
    NoDeviceModel(DomId),
    /// The device model has not made this interface, which emulates the device.
    #[error("the guest's device model has made no interface {0}")]
    NoEmulatedTwin(String),
    /// The device model says that it cannot serve the device.
    #[error("the device model says: {said}")]
    DeviceModel {
        /// What it says, in a form that can be shown.
        said: String,
        /// Its log.
        log: PathBuf,
    },
    /// The daemon that is to serve the device cannot be started.
    #[error("{name} {problem}")]
    Daemon {
        /// The name of its program.
        name: &'static str,
        /// Why.
        problem: String,
    },
    /// The device is none whose medium can be changed.
    #[error("its medium cannot be changed: {0}")]
    NoDrive(String),
    /// The monitor of the guest's device model cannot be used.
    #[error("the device model's monitor {} {problem}", .socket.display())]
    Monitor {
        /// Its socket.
        socket: PathBuf,
        /// Why.
        problem: MonitorError,
    },
    /// The device model did not do what it was asked to.
    #[error("the device model refused {command}: {said}")]
    ModelRefused {
        /// What it was asked for, as QMP calls it.
        command: &'static str,
        /// What it says, in a form that can be shown.
        said: String,
        /// How long the guest, which has locked the tray, had to open it; `None` if it has not.
        locked: Option<Duration>,
        /// Whether the device model does not know the drive.
        no_drive: bool,
    },
    /// The host has no such device.
    #[error("the host has no {0}")]
    NoHostDevice(String),
    /// A device of the host belongs to a guest already.
    #[error("{device} is given to domain {domid} already, {place}")]
    Assigned {
        /// Which.
        device: String,
        /// The guest.
        domid: DomId,
        /// Where the guest has it.
        place: String,
    },
    /// The host's kernel has no driver of this name, which is to have the device.
    #[error("the kernel has no driver {0}")]
    NoHostDriver(&'static str),
    /// The host's kernel did not do with a device what it was told to.
    #[error("the host's kernel refused: {}", printable(.0, TEXT_SHOWN))]
    Host(String),
    /// The host's kernel did not answer within this time.
    #[error("the host's kernel did not answer within {0:?}")]
    HostSilent(Duration),
    /// There is no such domain to have the device's backend.
    #[error("backend={}: {cause}", printable(name, TEXT_SHOWN))]
    BackendDomain {
        /// The domain as it was named.
        name: String,
        /// Why it cannot be had.
        cause: Box<Self>,
    },
    /// The driver domain that has the device's backend did not do its part.
    #[error("driver domain {be} {fault}")]
    DriverDomain {
        /// The driver domain.
        be: DomId,
        /// What it did not do.
        fault: DriverDomainFault,
    },
    /// The device's backend is where it cannot be served from here, or of a kind that this version does not know.
    #[error(
        "its backend is {0}; only backends of this domain, of kinds that are known here, can be worked on so"
    )]
    ForeignBackend(String),
    /// Another operation works on the device, and did not end in time.
    #[error("{occupant} works on the device{}", waited(*limit))]
    Busy {
        /// Whose.
        occupant: Box<Occupant>,
        /// How long it was waited for; zero if it was not.
        limit: Duration,
    },
    /// A node did not hold in time what was waited for.
    #[error("{node} did not get to {goal} within {limit:?}")]
    TimedOut {
        /// Which node.
        node: Node,
        /// What it was to hold.
        goal: String,
        /// How long it had.
        limit: Duration,
    },
    /// A node says that it will not hold what was waited for.
    #[error("{node} went to {found} instead of {goal}")]
    Refused {
        /// Which node.
        node: Node,
        /// What it was to hold.
        goal: String,
        /// What it holds.
        found: String,
    },
    /// The nodes of the backend, or what else was waited for, vanished.
    #[error("the nodes of {0} vanished from the store")]
    Vanished(Node),
    /// A hotplug script failed.
    #[error("the hotplug script `{run}` {report}")]
    Script {
        /// What was run.
        run: Box<Request>,
        /// How it ended.
        report: Box<Report>,
    },
    /// A hotplug script exited with 0, and reported to its backend that it failed: the report's
    /// `hotplug_status` is `error`, or `busy` if its target is in use.
    #[error("the hotplug script `{run}` {}", in_words(report))]
    Reported {
        /// What was run.
        run: Box<Request>,
        /// How it ended, and what it reported.
        report: Box<Report>,
    },
    /// A script was killed that may have made one of these, and so may a script of another device of the same
    /// file that is running.
    #[error(
        "a hotplug script was killed, and it cannot be told which of {} it made while a script of another \
         device of the same file is running",
        .0.join(", ")
    )]
    Undecided(Vec<String>),
    /// A script was to be run by hand, which would harm the device as it is now.
    #[error("the script's {action} is not run: {why}")]
    InUse {
        /// What the script was to do.
        action: Action,
        /// What it would harm.
        why: String,
    },
    /// No hotplug script is recorded of the device, which has this backend.
    #[error("no hotplug script is recorded of it: its backend is of the kind {0}")]
    NoScript(BackendKind),
    /// The runner started a script without having asked whether it may.
    #[error("the runner ran the hotplug script without asking whether it may")]
    NotPermitted,
    /// The device was removed under the operation: by another toolstack, or with its domain.
    #[error("{}", if *.domain { "the device is gone with its domain" } else { "the device was removed by another toolstack" })]
    Gone {
        /// Whether its domain is gone too.
        domain: bool,
    },
    /// Another toolstack has the device now.
    #[error("another toolstack has taken the device")]
    Taken,
    /// Another operation asked for the device.
    #[error("cancelled, since {0} asked for the device")]
    Asked(String),
    /// libxl's configuration of the domain cannot be changed.
    #[error("libxl's configuration of the domain, {}, cannot be changed: {problem}", .file.display())]
    Config {
        /// The file that holds it.
        file: PathBuf,
        /// Why.
        problem: ConfigError,
    },
    /// The store failed.
    #[error("{0}")]
    Store(#[from] xs_client::Error),
    /// The caller cancelled.
    #[error("cancelled")]
    Aborted,
    /// It is one of several operations, and the deadline of all came first.
    #[error("the deadline of all the operations came before it was done")]
    Deadline,
}

fn waited(limit: Duration) -> String {
    if limit.is_zero() { String::new() } else { format!(", and did not end within {limit:?}") }
}

/// As in `3, 5 and 7`.
fn list(domids: &[DomId]) -> String {
    match domids {
        [first @ .., last] if !first.is_empty() => {
            let first: Vec<String> = first.iter().map(ToString::to_string).collect();
            format!("{} and {last}", first.join(", "))
        }
        _ => domids.iter().map(ToString::to_string).collect(),
    }
}

impl From<xs_client::PathError> for Cause {
    fn from(error: xs_client::PathError) -> Self {
        Self::Store(error.into())
    }
}

/// As its text.
impl Serialize for Cause {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// What kind of failure it is, for exit codes and decisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FailureKind {
    /// It failed.
    Failed,
    /// The guest, the backend, a script, the store or another operation did not answer in time.
    TimedOut,
    /// The caller cancelled, or another operation asked for it.
    Aborted,
}

impl Cause {
    /// A word for it that programs can rely on: it stays the same from version to version, whatever becomes of
    /// the text.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoSuchDomain(_) => "no_such_domain",
            Self::DomainGone(_) => "domain_gone",
            Self::AmbiguousName { .. } => "ambiguous_name",
            Self::NoSuchDevice => "no_such_device",
            Self::Exists => "exists",
            Self::Unfinished => "unfinished",
            Self::Unrecorded(_) => "unrecorded",
            Self::FrontendInUse(_) => "frontend_in_use",
            Self::Invalid(_) => "invalid",
            Self::Target(_) => "target",
            Self::Unsupported(_) => "unsupported",
            Self::NotSupported { .. } => "not_supported",
            Self::NotInDomain0(_) => "not_in_domain0",
            Self::NoDeviceModel(_) => "no_device_model",
            Self::NoEmulatedTwin(_) => "no_emulated_twin",
            Self::DeviceModel { .. } => "device_model",
            Self::Daemon { .. } => "daemon",
            Self::NoDrive(_) => "no_drive",
            Self::Monitor { .. } => "monitor",
            Self::ModelRefused { .. } => "model_refused",
            Self::NoHostDevice(_) => "no_host_device",
            Self::Assigned { .. } => "assigned",
            Self::NoHostDriver(_) => "no_host_driver",
            Self::Host(_) | Self::HostSilent(_) => "host",
            Self::BackendDomain { .. } => "no_backend_domain",
            Self::DriverDomain { fault, .. } => match fault {
                DriverDomainFault::Gone => "driver_domain_gone",
                DriverDomainFault::Script { .. } => "driver_domain_script",
                DriverDomainFault::NotReported { .. } => "driver_domain_not_reported",
                DriverDomainFault::Silent { .. } => "driver_domain_silent",
                DriverDomainFault::NotRemoved { .. } => "driver_domain_not_removed",
            },
            Self::ForeignBackend(_) => "foreign_backend",
            Self::Busy { .. } => "busy",
            Self::TimedOut { .. } => "timed_out",
            Self::Refused { .. } => "refused",
            Self::Vanished(_) => "vanished",
            Self::Script { .. } => "script",
            Self::Reported { .. } => "reported",
            Self::Undecided(_) => "undecided",
            Self::NotPermitted => "not_permitted",
            Self::InUse { .. } => "in_use",
            Self::NoScript(_) => "no_script",
            Self::Gone { .. } => "gone",
            Self::Taken => "taken",
            Self::Asked(_) => "asked",
            Self::Config { .. } => "libxl_config",
            Self::Store(_) => "store",
            Self::Aborted => "cancelled",
            Self::Deadline => "deadline",
        }
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::DriverDomain {
                fault: DriverDomainFault::Silent { .. } | DriverDomainFault::NotRemoved { .. },
                ..
            }
            | Self::TimedOut { .. }
            | Self::Deadline
            | Self::HostSilent(_)
            | Self::ModelRefused { locked: Some(_), .. }
            | Self::Monitor { problem: MonitorError::NoAnswer { .. } | MonitorError::Busy(_), .. }
            | Self::Store(xs_client::Error::Timeout { .. })
            | Self::Config { problem: ConfigError::Busy(_) | ConfigError::NoAnswer(_), .. } => {
                FailureKind::TimedOut
            }
            Self::Script { report, .. } if matches!(report.ending, Ending::TimedOut | Ending::Late) => {
                FailureKind::TimedOut
            }
            Self::Busy { limit, .. } if !limit.is_zero() => FailureKind::TimedOut,
            Self::Aborted | Self::Asked(_) => FailureKind::Aborted,
            _ => FailureKind::Failed,
        }
    }
}
