//! Disks that a tool connects: their script is `block-iscsi`, `block-nbd` or `block-tap`.

use hotplug::native::Tools;
use hotplug::native::disk::{Attempt, Detached, DiskError, Made, Script, begin, detach};
use hotplug::{Action, Ending, Limits, Request};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use xs_client::{Client, Path};

use super::{Fault, disks};

impl From<DiskError> for Fault {
    fn from(error: DiskError) -> Self {
        let ending = match &error {
            error if error.is_cancelled() => return Self::Cancelled,
            error if error.is_late() => Ending::Late,
            _ => Ending::Failed,
        };
        Self::Handler(ending, error.to_string(), error.keys().into())
    }
}

/// Does the work of the script for a request, in a task of its own: if the future is dropped, that is cancelled, and undoes
/// what it has done.
pub(super) async fn run(
    client: &Client,
    script: Script,
    request: &Request,
    tools: Tools,
    limits: &Limits,
    cancel: &CancellationToken,
) -> Result<(), Fault> {
    let ends = cancel.child_token();
    let (client, request, limits, token) = (client.clone(), request.clone(), *limits, ends.clone());
    let _guard = ends.drop_guard();
    let work = async move {
        match request.action {
            Action::Add => add(&client, script, &request, &tools, &limits, &token).await,
            Action::Remove => remove(&client, script, &request, &tools, &limits, &token).await,
        }
    };
    match tokio::spawn(work).await {
        Ok(done) => done,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime shuts down.
        Err(_) => Err(Fault::Cancelled),
    }
}

async fn add(
    client: &Client,
    script: Script,
    request: &Request,
    tools: &Tools,
    limits: &Limits,
    cancel: &CancellationToken,
) -> Result<(), Fault> {
    let begun = begin(script, request, tools, limits, cancel).await?;
    let (guest, users) = disks::look(client, request).await?;
    let mut chosen = begun.choose(&guest, &users).await?;
    let directory = Path::new(request.directory())?;
    let made = loop {
        if !disks::write(client, &directory, &chosen.keys()).await? {
            return Err(gone());
        }
        match chosen.make().await {
            Ok(Attempt::Made(made)) => break made,
            Ok(Attempt::Taken(other)) => chosen = other,
            Err(error) => {
                if !error.is_left() {
                    forget(client, &directory).await;
                }
                return Err(error.into());
            }
        }
    };
    match disks::write(client, &directory, made.keys()).await {
        Ok(true) => Ok(()),
        Ok(false) => undo(client, &directory, made, gone()).await,
        Err(fault) => undo(client, &directory, made, fault).await,
    }
}

fn gone() -> Fault {
    Fault::Store("the backend's directory is gone".to_owned())
}

async fn undo(client: &Client, directory: &Path, made: Made, fault: Fault) -> Result<(), Fault> {
    match made.undo().await {
        Ok(()) => forget(client, directory).await,
        Err(error) => warn!(%error, "what serves the disk is left connected"),
    }
    Err(fault)
}

/// What was to be made is not there, and may be made by somebody else.
async fn forget(client: &Client, directory: &Path) {
    let Ok(node) = directory.join("node") else { return };
    if let Err(error) = client.rm(&node).await {
        debug!(?error, "the backend names a node that is not there");
    }
}

async fn remove(
    client: &Client,
    script: Script,
    request: &Request,
    tools: &Tools,
    limits: &Limits,
    cancel: &CancellationToken,
) -> Result<(), Fault> {
    let (_, users) = disks::look(client, request).await?;
    match detach(script, request, &users, tools, limits, cancel).await? {
        Detached::Used { by } => debug!(by, "what serves the disk stays, for another guest"),
        detached => debug!(?detached),
    }
    Ok(())
}
