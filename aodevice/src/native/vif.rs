//! Interfaces whose script is `vif-bridge`, `vif-route` or `vif-nat`.

use hotplug::native::vif::{self, Script, VifError};
use hotplug::{Ending, Limits, Request};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use xs_client::{Client, Path};

use super::{Fault, disks};

impl From<VifError> for Fault {
    fn from(error: VifError) -> Self {
        let ending = match error {
            VifError::Cancelled { .. } => return Self::Cancelled,
            VifError::TimedOut { .. } => Ending::Late,
            _ => Ending::Failed,
        };
        Self::Handler(ending, error.to_string(), error.backend_keys().into())
    }
}

/// Does the work of the script for a request. If the future is dropped, it ends at its next step.
pub(super) async fn run(
    client: &Client,
    script: Script,
    request: &Request,
    limits: &Limits,
    cancel: &CancellationToken,
) -> Result<(), Fault> {
    let ends = cancel.child_token();
    let (asked, limits, token) = (request.clone(), *limits, ends.clone());
    let _guard = ends.drop_guard();
    let ran = spawn_blocking(move || vif::run(script, &asked, &limits, &token)).await;
    let outcome = match ran {
        Ok(outcome) => outcome?,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime shuts down.
        Err(_) => return Err(Fault::Cancelled),
    };
    for tolerated in &outcome.tolerated {
        debug!(%tolerated, interface = outcome.interface);
    }
    let frontend = Path::new(format!("/local/domain/{}/device/vif/{}", request.fe, request.devid))?;
    // What the guest can remove must not keep the backend from what it waits for.
    if let Err(fault) = disks::write_beside(client, &frontend, &outcome.frontend).await {
        debug!(?fault, interface = outcome.interface, "the frontend is not told");
    }
    disks::write(client, &Path::new(request.directory())?, &outcome.backend).await.map(drop)
}
