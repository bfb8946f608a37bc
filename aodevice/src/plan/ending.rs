//! Ending a domain's device model: asked, then killed, and each time the end of its process is the evidence.

use std::fmt;
use std::time::Duration;

use rustix::process::Signal;
use serde::Serialize;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use xs_client::{DomId, Error, ErrorCode, Path};

use crate::operation::{Life, Model};
use crate::{Cause, Toolstack};

/// How long a process that was killed may take to be gone.
const AFTER_KILL: Duration = Duration::from_secs(1);

/// What became of a device model that was to end.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ModelEnd {
    /// The domain has none, or it had ended before.
    NotThere,
    /// Its process has ended, so it holds nothing open any more.
    Ended {
        /// Whether it had to be killed.
        killed: bool,
        /// How long it took, in seconds when serialised.
        #[serde(rename = "seconds", serialize_with = "crate::report::seconds")]
        after: Duration,
        /// Why its node in the store is left, if it is.
        #[serde(skip_serializing_if = "Option::is_none")]
        left: Option<String>,
    },
    /// The domain has one, which cannot be seen from here, so it was not ended.
    Unseen,
    /// It does not end, or it could not be asked to.
    Alive {
        /// Why.
        reason: String,
    },
}

impl ModelEnd {
    /// Whether nothing of it is left.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::NotThere | Self::Ended { .. })
    }
}

impl fmt::Display for ModelEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotThere => f.write_str("there is no device model"),
            Self::Ended { killed, after, left } => {
                match killed {
                    false => write!(f, "the device model ended after {after:.1?}")?,
                    true => {
                        write!(f, "the device model did not end when asked, and was killed after {after:.1?}")?;
                    }
                }
                left.iter().try_for_each(|why| write!(f, "; its node in the store is left: {why}"))
            }
            Self::Unseen => f.write_str(
                "the domain has a device model whose process cannot be seen from here, and which may use its images \
                 still",
            ),
            Self::Alive { reason } => write!(f, "the device model does not end: {reason}"),
        }
    }
}

/// A domain's device model, as it is before its end.
pub(super) struct Seen {
    life: Life,
    is_recorded: bool,
}

/// Looks for a domain's device model.
pub(super) async fn look(toolstack: &Toolstack, fe: DomId) -> Result<Seen, Cause> {
    let (client, home) = (toolstack.client(), Path::new(format!("/local/domain/{fe}"))?);
    let model = Model::look(client, (fe, toolstack.own()));
    let (model, home) = tokio::try_join!(model, client.read_opt(&home))?;
    let life = match home {
        Some(_) => model.life(fe),
        None => model.life_without_home(fe),
    };
    Ok(Seen { life, is_recorded: model.is_recorded() })
}

/// Ends a domain's device model: SIGHUP, which lets QEMU flush and close its images, and SIGKILL after `patience`.
/// Once `cancel` is cancelled, what it was asked for is not waited for, and it is not killed.
pub(super) async fn end(
    toolstack: &Toolstack,
    fe: DomId,
    model: Seen,
    patience: Duration,
    cancel: &CancellationToken,
) -> Result<ModelEnd, Cause> {
    let begun = Instant::now();
    let process = match model.life {
        Life::Alive(process) => process,
        Life::Unseen if model.is_recorded => return Ok(ModelEnd::Unseen),
        Life::Unseen => return Ok(ModelEnd::NotThere),
        Life::Ended => {
            forget(toolstack, fe).await?;
            return Ok(ModelEnd::NotThere);
        }
    };
    for (signal, limit) in [(Signal::HUP, patience), (Signal::KILL, AFTER_KILL)] {
        if let Err(error) = process.signal(signal) {
            return Ok(ModelEnd::Alive { reason: format!("it cannot be sent a signal: {error}") });
        }
        let ended = tokio::select! {
            biased;
            ended = timeout(limit, process.ended()) => ended,
            () = cancel.cancelled(), if signal != Signal::KILL => {
                return Ok(ModelEnd::Alive { reason: "it was asked to, and no longer waited for".to_owned() });
            }
        };
        match ended {
            Ok(Ok(())) => {
                // Only now: as long as it lives, its nodes tell whoever looks that it does.
                let left = forget(toolstack, fe).await.err().map(|cause| cause.to_string());
                return Ok(ModelEnd::Ended { killed: signal == Signal::KILL, after: begun.elapsed(), left });
            }
            Ok(Err(error)) => {
                return Ok(ModelEnd::Alive { reason: format!("its end cannot be waited for: {error}") });
            }
            Err(_) => {}
        }
    }
    Ok(ModelEnd::Alive { reason: "it was killed, and its process is still there".to_owned() })
}

/// Removes what the store has of a device model that has ended.
async fn forget(toolstack: &Toolstack, fe: DomId) -> Result<(), Cause> {
    let node = Path::new(format!("/local/domain/{}/device-model/{fe}", toolstack.own()))?;
    match toolstack.client().rm(&node).await {
        // Not even the nodes above are there.
        Err(Error::Store { code: ErrorCode::ENOENT, .. }) => Ok(()),
        removed => Ok(removed?),
    }
}
