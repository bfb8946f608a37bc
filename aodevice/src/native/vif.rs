//! Interfaces whose script is `vif-bridge`, `vif-route`, `vif-nat` or `vif-openvswitch`.

use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use xen_hotplug::native::vif::{self, Script, VifError};
use xen_hotplug::native::{ToolError, Tools};
use xen_hotplug::{Action, Ending, Limits, Request};
use xs_client::{Client, Path};

use super::{Fault, Keys, disks};
use crate::operation::text;

impl From<VifError> for Fault {
    fn from(error: VifError) -> Self {
        let ending = match error {
            VifError::Cancelled { .. } => return Self::Cancelled,
            VifError::Tool { error: ToolError::Cancelled { .. }, .. } => return Self::Cancelled,
            VifError::TimedOut { .. } | VifError::Tool { error: ToolError::TimedOut { .. }, .. } => {
                Ending::Late
            }
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
    tools: Tools,
    limits: &Limits,
    cancel: &CancellationToken,
) -> Result<Keys, Fault> {
    let ends = cancel.child_token();
    let (mut asked, limits, token) = (request.clone(), *limits, ends.clone());
    if script == Script::OpenVswitch && request.action == Action::Add {
        asked.recorded.extend(machine(client, request).await?);
    }
    let _guard = ends.drop_guard();
    let ran = spawn_blocking(move || vif::run(script, &asked, &tools, &limits, &token)).await;
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
    match disks::write(client, &Path::new(request.directory())?, &outcome.backend).await {
        Err(Fault::Gone) => Ok(Keys::new()),
        written => written.map(|()| outcome.backend),
    }
}

/// What the store tells of the virtual machine that has the interface.
async fn machine(client: &Client, request: &Request) -> Result<Vec<(String, String)>, Fault> {
    let vm = disks::vm_of(client, request.fe).await?;
    // What is no path leads to nothing.
    let Some(vm) = vm.and_then(|vm| Path::new(vm).ok()) else { return Ok(Vec::new()) };
    let values = disks::read_allowed(client, &[vm.join("name")?, vm.join("uuid")?]).await?;
    let found = [vif::VM_NAME, vif::VM_UUID].into_iter().zip(values);
    Ok(found.filter_map(|(key, value)| Some((key.to_owned(), text(value.ok()?)?))).collect())
}
