//! Failures. A failure has three parts: what was tried, what was observed, and what to do about it.

use std::fmt;
use std::time::Duration;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use thiserror::Error;
use xen_devstate::XenbusState;
use xen_hotplug::{Action, Ending, Report, Request, SpawnFault, printable};

use super::{Cause, DriverDomainFault, Hint, Named, Observation, Warning};
use crate::{Condition, Kind, MonitorError, Server};

/// What was being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// A device was to be added.
    Attach,
    /// A device was to be removed.
    Detach,
    /// A medium was to be put into a drive.
    Insert,
    /// The medium of a drive was to be taken out.
    Eject,
    /// The script of a device was to be run by hand.
    Script,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Attach => "attach",
            Self::Detach => "detach",
            Self::Insert => "insert",
            Self::Eject => "eject",
            Self::Script => "script",
        })
    }
}

/// An operation that failed.
#[derive(Clone, Debug, Error)]
#[error("{}: {cause}", self.tried())]
#[non_exhaustive]
pub struct Failure {
    /// What was tried.
    pub operation: Operation,
    /// With which device.
    pub device: Named,
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
        let (what, preposition) = match self.operation {
            Operation::Attach => ("attach", "to"),
            Operation::Detach => ("detach", "from"),
            Operation::Insert => ("insert a medium into", "of"),
            Operation::Eject => ("eject the medium of", "of"),
            Operation::Script => ("run the hotplug script of", "of"),
        };
        format!("cannot {what} {} {preposition} domain {}", self.device, self.device.fe)
    }

    /// What was observed, in sentences: the cause first; never empty.
    pub fn observations(&self) -> Vec<String> {
        let mut sentences = vec![self.cause.to_string()];
        let mut observed = self.observed.clone();
        // What the cause says already.
        match &self.cause {
            Cause::Script { report, .. } if report.hotplug_error.is_some() => observed.hotplug_error = None,
            Cause::Gone { domain: true } => observed.guest = Condition::Unknown,
            Cause::DriverDomain {
                fault: DriverDomainFault::Script { .. } | DriverDomainFault::NotReported { .. },
                ..
            }
            | Cause::Reported { .. } => (observed.hotplug_status, observed.hotplug_error) = (None, None),
            _ => {}
        }
        sentences.extend(observed.sentences());
        if self.observed.backend_is(XenbusState::Initialising) {
            let who = if self.observed.is_of_model() {
                "the device model has not"
            } else {
                "no backend driver has"
            };
            sentences.push(format!("{who} taken the device up"));
        }
        if self.elapsed >= Duration::from_secs(1) {
            sentences.push(format!("after {:.1} s in all", self.elapsed.as_secs_f64()));
        }
        sentences
    }

    /// What to do.
    pub fn hint(&self) -> Hint {
        if let Some(hint) = self.hint_on_driver_domain() {
            return hint;
        }
        let kind = self.device.kind;
        match &self.cause {
            Cause::NoSuchDomain(_) | Cause::AmbiguousName { .. } => Hint::ListDomains,
            Cause::DomainGone(domid) => Hint::CleanUpById(*domid),
            Cause::NoSuchDevice | Cause::Exists => Hint::ListDevices(kind),
            Cause::Unfinished => Hint::AddAnew(kind),
            Cause::InUse { action: Action::Remove, .. } => Hint::RemoveOrInsist(kind),
            Cause::InUse { action: Action::Add, .. } => Hint::UndoOrInsist(kind),
            Cause::NoScript(_) => Hint::ListDevices(kind),
            Cause::Unrecorded(_) => Hint::RemoveOrAdopt(kind),
            Cause::FrontendInUse(_) => Hint::FreeFrontend,
            Cause::Invalid(_) => Hint::CorrectDevice,
            Cause::Target(_) => Hint::NameTarget,
            Cause::NotInDomain0(_) => Hint::NameGuest,
            Cause::NoDeviceModel(_) if self.is_of_medium() => Hint::CheckModel,
            Cause::NoDeviceModel(_) => Hint::UseKernelBackend,
            Cause::NoDrive(_) | Cause::ModelRefused { no_drive: true, .. } => Hint::ReplaceDevice(kind),
            Cause::ModelRefused { locked: Some(_), .. } => Hint::FreeMedium,
            Cause::ModelRefused { command: "blockdev-change-medium", .. } => Hint::CorrectMedium,
            Cause::Monitor { problem: MonitorError::Busy(_), .. } => Hint::SeeWhoElse,
            Cause::ModelRefused { .. } | Cause::Monitor { .. } => Hint::CheckModel,
            Cause::NoEmulatedTwin(_) => Hint::AddAtCreation,
            Cause::DeviceModel { log, .. } => Hint::ReadModelLog(log.clone()),
            Cause::Daemon { name, .. } => Hint::CheckDaemon(name),
            Cause::NotSupported { .. } if kind == Kind::Pci => Hint::UseOtherToolstack,
            Cause::NotSupported { .. } => Hint::MakeWithDomain,
            Cause::NoHostDevice(_) => Hint::ListHostDevices,
            Cause::Assigned { domid, .. } => Hint::DetachElsewhere(*domid),
            Cause::NoHostDriver(_) => Hint::LoadBackend(kind.info().backend_module),
            Cause::Host(_) | Cause::HostSilent(_) => Hint::ReadKernelLog,
            Cause::BackendDomain { .. } => Hint::NameBackendDomain,
            Cause::DriverDomain { be, fault } => match fault {
                DriverDomainFault::Gone => Hint::StartDriverDomain(*be),
                DriverDomainFault::Script { .. } => Hint::ReadDriverDomainLog(*be),
                DriverDomainFault::NotReported { .. } => Hint::NameTargetThere(*be),
                DriverDomainFault::Silent { .. } => Hint::CheckDriverDomain(*be),
                DriverDomainFault::NotRemoved { .. } => Hint::RemoveAgainOrLeave(*be),
            },
            Cause::ForeignBackend(_) | Cause::Unsupported(_) => Hint::UseOtherToolstack,
            Cause::Busy { .. } if self.operation == Operation::Script => Hint::SeeWhoElse,
            Cause::Busy { occupant, .. } => Hint::WaitOrTakeOver {
                pid: occupant
                    .record
                    .as_ref()
                    .and_then(|record| record.owner.as_ref())
                    .filter(|_| occupant.seen)
                    .map(|owner| owner.pid),
            },
            Cause::TimedOut { .. }
                if self.observed.backend_is(XenbusState::Initialising) && self.observed.is_of_model() =>
            {
                Hint::CheckModel
            }
            Cause::TimedOut { .. } if self.observed.backend_is(XenbusState::Initialising) => {
                match self.observed.served_by.filter(|backend| backend.server() == Server::Daemon) {
                    Some(backend) => backend.daemon().map_or(Hint::StartBackend(backend), Hint::CheckDaemon),
                    None => Hint::LoadBackend(kind.info().backend_module),
                }
            }
            Cause::TimedOut { .. }
                if self.warnings.iter().any(|warning| matches!(warning, Warning::NotReported { .. })) =>
            {
                Hint::ReadScriptLog
            }
            Cause::TimedOut { .. } if self.observed.guest == Condition::Paused => {
                Hint::Unpause(self.device.fe)
            }
            Cause::TimedOut { .. } if self.operation == Operation::Attach => {
                Hint::CheckGuest(kind.info().frontend_module)
            }
            Cause::TimedOut { .. } => Hint::RemoveAgainOrForce,
            Cause::Refused { .. } | Cause::Vanished(_) => self.log_of_backend(),
            Cause::Script { run, report } => self.hint_on_script(run, report),
            Cause::Reported { report, .. } => on_reported(report),
            Cause::Undecided(_) => Hint::RemoveAgain,
            Cause::NotPermitted => Hint::MendRunner,
            Cause::Gone { domain: true } => Hint::ListDomains,
            Cause::Taken | Cause::Gone { .. } | Cause::Asked(_) => Hint::SeeWhoElse,
            Cause::Config { .. } => Hint::AddWithoutConfig,
            Cause::Store(error) => Hint::Store(error.hint()),
            Cause::Aborted => self.again(),
            Cause::Deadline => Hint::AllowMoreTime,
        }
    }

    /// What to do in the driver domain that has the backend, where it is for that to move the backend's state.
    fn hint_on_driver_domain(&self) -> Option<Hint> {
        let (be, observed) = (self.observed.driver_domain?, &self.observed);
        let (is_attach, module) =
            (self.operation == Operation::Attach, self.device.kind.info().backend_module);
        // QEMU is started there by the daemon.
        let is_kernel = observed.served_by.is_none_or(|backend| backend.server() == Server::Kernel);
        match &self.cause {
            Cause::TimedOut { .. } if observed.awaits_guest(self.operation) => None,
            Cause::TimedOut { .. } if !is_attach => Some(Hint::RemoveAgainOrLeave(be)),
            Cause::TimedOut { .. } | Cause::Refused { .. } | Cause::Vanished(_) if !is_kernel => {
                Some(Hint::CheckDriverDomain(be))
            }
            Cause::TimedOut { .. } if observed.backend_is(XenbusState::Initialising) => {
                Some(Hint::LoadBackendIn(module, be))
            }
            Cause::TimedOut { .. } | Cause::Refused { .. } | Cause::Vanished(_) => {
                Some(Hint::ReadKernelLogOf(be))
            }
            _ => None,
        }
    }

    /// Where whoever moves the backend's state tells why it did not do so.
    fn log_of_backend(&self) -> Hint {
        let backend = self.observed.served_by.unwrap_or(self.device.kind.info().backends[0]);
        match backend.server() {
            Server::Kernel => Hint::ReadKernelLog,
            Server::DeviceModel => Hint::CheckModel,
            Server::Daemon => Hint::ReadBackendLog(backend),
        }
    }

    fn again(&self) -> Hint {
        match self.operation {
            Operation::Attach => Hint::AddAgain,
            Operation::Detach => Hint::RemoveAgain,
            Operation::Insert | Operation::Eject => Hint::ChangeAgain,
            Operation::Script => Hint::RunAgain,
        }
    }

    fn is_of_medium(&self) -> bool {
        matches!(self.operation, Operation::Insert | Operation::Eject)
    }

    /// What to do about a script that did not end well, or did not begin.
    fn hint_on_script(&self, run: &Request, report: &Report) -> Hint {
        match &report.ending {
            Ending::SpawnFailed(error) => {
                let script = printable(run.script.as_os_str().as_encoded_bytes(), usize::MAX);
                match error.fault() {
                    // Which script removes a device was settled when that was added.
                    SpawnFault::NotFound | SpawnFault::NotAFile
                        if matches!(self.operation, Operation::Detach | Operation::Script) =>
                    {
                        Hint::RestoreScript(script)
                    }
                    SpawnFault::NotFound | SpawnFault::NotAFile => Hint::NameScript,
                    SpawnFault::Lock => Hint::MendLocks,
                    fault => Hint::MendScript { script, fault },
                }
            }
            Ending::TimedOut => Hint::GiveScriptTime(report.duration),
            Ending::Failed | Ending::Late if report.hotplug_status.as_deref() != Some("busy") => {
                Hint::DoAsTold
            }
            Ending::Failed => Hint::FreeTarget,
            Ending::Exited(126 | 127) => Hint::InstallProgram,
            Ending::Exited(_) => on_reported(report),
            // By a fault of its own, or for want of memory: the kernel logs both.
            Ending::Signalled(_) => Hint::ReadKernelLog,
            Ending::NotStarted => Hint::SeeWhoElse,
            _ => self.again(),
        }
    }
}

/// What to do about what a script reported.
fn on_reported(report: &Report) -> Hint {
    let is_busy = report.hotplug_status.as_deref() == Some("busy");
    if is_busy { Hint::FreeTarget } else { Hint::ReadScriptLog }
}

/// Its parts, as far as they are data: the cause as a text.
impl Serialize for Failure {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut fields = to.serialize_struct("Failure", 9)?;
        fields.serialize_field("operation", &self.operation)?;
        fields.serialize_field("device", &self.device)?;
        fields.serialize_field("code", self.cause.code())?;
        fields.serialize_field("kind", &self.cause.kind())?;
        fields.serialize_field("cause", &self.cause)?;
        fields.serialize_field("observed", &self.observed)?;
        fields.serialize_field("hint", &self.hint())?;
        fields.serialize_field("warnings", &self.warnings)?;
        fields.serialize_field("seconds", &self.elapsed.as_secs_f64())?;
        fields.end()
    }
}
