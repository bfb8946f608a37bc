//! Why a disk was not given: what was tried, what was observed, what to do.

use std::time::Duration;

use thiserror::Error;

use crate::native::ToolError;
use crate::native::block::Failure;
use crate::{LINE_SHOWN, printable};

/// Why a disk could not be attached or detached. Nothing is left of an attach that failed, unless it says so.
///
/// `Display` tells all, with what the tool said.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum DiskError {
    /// A key of the backend that the handler needs is not there, or empty.
    #[error("the backend has no {0}: the device was removed meanwhile, or whoever added it left that out")]
    NoKey(&'static str),
    /// The target is not written as it must be.
    #[error("cannot read the target {}: expected {expected}. Detach the disk, and attach it with another target=",
            printable(.params, LINE_SHOWN))]
    Invalid {
        /// The target.
        params: String,
        /// How it is written.
        expected: &'static str,
    },
    /// Somebody else has it.
    #[error("cannot give {what}: {by}. {fix}")]
    InUse {
        /// The target.
        what: String,
        /// Who has it.
        by: String,
        /// What to do.
        fix: &'static str,
    },
    /// There is no such thing, though there should be by now.
    #[error("cannot give {what}: {seen}. {fix}")]
    Missing {
        /// The target.
        what: String,
        /// What was seen instead.
        seen: String,
        /// What to do.
        fix: &'static str,
    },
    /// A device has not come in time.
    #[error(
        "cannot give {what}: {awaited} has not appeared within the {within:?} that all of the work may take. {fix}"
    )]
    Late {
        /// The target.
        what: String,
        /// What was waited for.
        awaited: String,
        /// How long all of the work may take.
        within: Duration,
        /// What to do.
        fix: &'static str,
    },
    /// A tool has not done its work.
    #[error("cannot {step}: {error}{}", .error.then(.fix))]
    Tool {
        /// What was tried.
        step: String,
        /// How the tool ended.
        error: ToolError,
        /// What to do.
        fix: &'static str,
    },
    /// It failed, and what was done could not be undone.
    #[error("{error}. It is left connected, since {undo}: detach the disk, which tries that again")]
    Left {
        /// Why it failed.
        error: Box<Self>,
        /// Why it was not undone.
        undo: ToolError,
    },
    /// The lock of all disks could not be had.
    #[error(transparent)]
    Lock(#[from] Failure),
    /// The caller cancelled.
    #[error("cancelled")]
    Cancelled,
}

impl DiskError {
    /// The failure of a tool in a step; that of one that was cancelled is the caller's own doing.
    pub(super) fn tool(step: impl Into<String>, error: ToolError, fix: &'static str) -> Self {
        match error {
            ToolError::Cancelled { .. } => Self::Cancelled,
            error => Self::Tool { step: step.into(), error, fix },
        }
    }

    /// The failure, with what came of undoing what was done before.
    pub(super) fn undone(self, undo: Result<(), ToolError>) -> Self {
        match undo {
            Ok(()) => self,
            Err(undo) => Self::Left { error: Box::new(self), undo },
        }
    }

    /// Whether something is left that a detach has to undo.
    #[must_use]
    pub fn is_left(&self) -> bool {
        matches!(self, Self::Left { .. })
    }

    /// Whether the caller has cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Cancelled | Self::Lock(Failure::Cancelled))
    }

    /// Whether the time has passed in which all had to be done.
    #[must_use]
    pub fn is_late(&self) -> bool {
        matches!(
            self,
            Self::Late { .. }
                | Self::Tool { error: ToolError::TimedOut { .. }, .. }
                | Self::Lock(Failure::Locked { .. } | Failure::NoAnswer { .. })
        )
    }

    /// What the script would have written into the backend's directory, in its order: `hotplug-error` and
    /// `hotplug-status`.
    pub fn keys(&self) -> [(&'static str, String); 2] {
        [("hotplug-error", self.to_string()), ("hotplug-status", "error".to_owned())]
    }
}
