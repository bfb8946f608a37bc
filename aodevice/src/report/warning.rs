//! What went wrong besides.

use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};
use xen_hotplug::{LINE_SHOWN, Report, Request, printable};
use xs_client::DomId;

use crate::Cause;

/// Something that went wrong but did not stop an operation.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Warning {
    /// A script failed on removal; the device is gone all the same.
    ScriptFailed {
        /// What was run.
        run: Box<Request>,
        /// How it ended.
        report: Box<Report>,
    },
    /// A script exited with 0 without reporting what the backend needs.
    NotReported {
        /// What was run.
        run: Box<Request>,
        /// The key that it did not write, or not as the backend reads it.
        missing: &'static str,
        /// What it wrote instead, in a form that can be shown.
        wrote: Option<String>,
        /// Its own words: its error, or else the last line that it printed.
        words: Option<String>,
    },
    /// The removal script could not be run, since it, or what it needs, was not recorded.
    ScriptSkipped,
    /// The backend did not let go; the device was removed without its consent.
    Forced {
        /// How long it had.
        limit: Duration,
    },
    /// The driver domain that had the backend did not remove it; the toolstack did so.
    DriverDomainLeft {
        /// The driver domain.
        be: DomId,
        /// How long it had.
        limit: Duration,
    },
    /// The device model has closed the device, and not its image.
    ImageOpen {
        /// How long it had.
        limit: Duration,
    },
    /// Nothing was to be seen of the device model that served the device, and its domain is gone.
    ServerUnseen {
        /// How long it had.
        limit: Duration,
    },
    /// Another toolstack has the device now; it was left to it.
    Taken,
    /// A script was killed, and these were made of its target since it began and are nobody's: one was given
    /// back, and the others were left.
    Surplus(Vec<String>),
    /// The device was gone already; only its entry in libxl's configuration was there.
    OnlyEntry,
    /// The domain ended while the device was removed, before that could be noted for the next one.
    DomainWent,
    /// The medium of a drive was not changed, and what was there before is not there any more, or may not be.
    Medium {
        /// What is in the drive.
        drive: InDrive,
        /// What the store says is there: the value of `params`.
        recorded: String,
    },
    /// The medium of a drive was changed, but could not be entered into libxl's configuration of its domain.
    NotEntered(Cause),
    /// The device is gone, but could not be struck out of libxl's configuration of its domain.
    NotStruck(Cause),
    /// A step of a roll-back failed, so something may be left.
    LeftBehind {
        /// The step.
        step: &'static str,
        /// Why.
        cause: Cause,
    },
}

/// What is in a drive after its medium was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InDrive {
    /// It is empty.
    Nothing,
    /// The new medium.
    New,
    /// The device model did not say.
    Unknown,
}

impl fmt::Display for InDrive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "the earlier medium was ejected, and the drive is empty",
            Self::New => "the drive has the new medium",
            Self::Unknown => {
                "what is in the drive is not known, since the device model did not say whether it did that"
            }
        })
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ScriptFailed { run, report } => write!(
                f,
                "the hotplug script `{run}` {report}; what it was to undo (loop device, bridge port) may be left"
            ),
            Self::NotReported { run, missing, wrote, words } => {
                write!(f, "the hotplug script `{run}` exited with status 0 but did not write {missing}")?;
                if let Some(wrote) = wrote {
                    write!(f, "; it wrote {wrote}")?;
                }
                words.iter().try_for_each(|words| write!(f, ": {words}"))
            }
            Self::ScriptSkipped => f.write_str(
                "it is not recorded which hotplug script made the device, or what that made, so no script could \
                 be run; what it was to undo (loop device, bridge port) may be left",
            ),
            Self::Forced { limit } => write!(f, "forced: the backend did not close within {limit:?}"),
            Self::DriverDomainLeft { be, limit } => write!(
                f,
                "driver domain {be} did not clean up within {limit:?}; the backend's directory was removed in its place, \
                 and what its hotplug script was to undo there (loop device, bridge port) may be left"
            ),
            Self::ImageOpen { limit } => write!(
                f,
                "the device model still has the image open, {limit:?} after it closed the device; it may write to it"
            ),
            Self::ServerUnseen { limit } => write!(
                f,
                "the device model that served the device cannot be seen; it was taken to be gone after {limit:?}, and \
                 may use the image still"
            ),
            Self::Surplus(devices) => write!(
                f,
                "a hotplug script was killed, and {} was made of the device's target since it began and may be left",
                printable(devices.join(", "), LINE_SHOWN)
            ),
            Self::Taken => f.write_str("another toolstack has taken the device, and it was left to that"),
            Self::OnlyEntry => f.write_str(
                "the device was gone already; only its entry in libxl's configuration of the domain was left",
            ),
            Self::DomainWent => f.write_str(
                "the domain ended meanwhile; if a toolstack makes it anew, as xl does for a reboot, it has the device \
                 again",
            ),
            Self::Medium { drive, recorded } => {
                let recorded = match &**recorded {
                    "" => "no medium".to_owned(),
                    params => printable(params, LINE_SHOWN),
                };
                write!(f, "{drive}; the store says that there is {recorded}")
            }
            Self::NotEntered(cause) => write!(
                f,
                "the medium was changed, but when xl reboots, restores or migrates the guest it has the earlier one again: \
                 {cause}"
            ),
            Self::NotStruck(cause) => write!(
                f,
                "the device is gone, but if libxl's configuration of the domain has an entry of it, that stays until it is detached again: {cause}"
            ),
            Self::LeftBehind { step, cause } => write!(f, "{step} failed: {cause}"),
        }
    }
}

/// As its text.
impl Serialize for Warning {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}
