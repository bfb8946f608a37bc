//! Ending a domain's device model: asked, then killed, and each time the end of its process is the evidence.

use std::fmt;
use std::time::Duration;

use rustix::process::Signal;
use serde::Serialize;
use tokio::time::{Instant, timeout};
use xs_client::{DomId, Path};

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
            Self::Ended { killed: false, after } => write!(f, "the device model ended after {after:.1?}"),
            Self::Ended { killed: true, after } => {
                write!(f, "the device model did not end when asked, and was killed after {after:.1?}")
            }
            Self::Unseen => f.write_str(
                "the domain has a device model whose process cannot be seen from here, and which may use its images \
                 still",
            ),
            Self::Alive { reason } => write!(f, "the device model does not end: {reason}"),
        }
    }
}

/// Ends a domain's device model: SIGHUP, which lets QEMU flush and close its images, and SIGKILL after `patience`.
pub(super) async fn end(toolstack: &Toolstack, fe: DomId, patience: Duration) -> Result<ModelEnd, Cause> {
    let begun = Instant::now();
    let (client, own) = (toolstack.client(), toolstack.own());
    let model = Model::look(client, (fe, own)).await?;
    let process = match model.life(fe) {
        Life::Alive(process) => process,
        Life::Unseen if model.is_recorded() => return Ok(ModelEnd::Unseen),
        Life::Unseen | Life::Ended => return Ok(ModelEnd::NotThere),
    };
    for (signal, limit) in [(Signal::HUP, patience), (Signal::KILL, AFTER_KILL)] {
        if let Err(error) = process.signal(signal) {
            return Ok(ModelEnd::Alive { reason: format!("it cannot be sent a signal: {error}") });
        }
        match timeout(limit, process.ended()).await {
            Ok(Ok(())) => {
                // Only now: as long as it lives, its nodes tell whoever looks that it does.
                let node = Path::new(format!("/local/domain/{own}/device-model/{fe}"))?;
                client.rm(&node).await?;
                return Ok(ModelEnd::Ended { killed: signal == Signal::KILL, after: begun.elapsed() });
            }
            Ok(Err(error)) => {
                return Ok(ModelEnd::Alive { reason: format!("its end cannot be waited for: {error}") });
            }
            Err(_) => {}
        }
    }
    Ok(ModelEnd::Alive { reason: "it was killed, and its process is still there".to_owned() })
}
