//! Disks whose script is `block`.

use tokio_util::sync::CancellationToken;
use tracing::debug;
use xen_hotplug::native::block::{Block, Detached, Disk, Failure, FileId, Saved, detach};
use xen_hotplug::{Action, Ending, Limits, Request};
use xs_client::{Client, Path};

use super::{Fault, Keys, disks};
use crate::operation::{SEQUENCE, file_of, sequence};

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        let ending = match failure {
            Failure::Cancelled => return Self::Cancelled,
            Failure::Locked { .. } | Failure::NoAnswer { .. } => Ending::Late,
            _ => Ending::Failed,
        };
        Self::Handler(ending, failure.to_string(), failure.keys().into())
    }
}

/// Does the work of the script for a request.
pub(super) async fn run(
    client: &Client,
    block: &Block,
    request: &Request,
    limits: &Limits,
    cancel: &CancellationToken,
) -> Result<Keys, Fault> {
    match request.action {
        Action::Add => add(client, block, request, limits, cancel).await,
        Action::Remove => remove(request, limits, cancel).await.map(|()| Keys::new()),
    }
}

async fn add(
    client: &Client,
    block: &Block,
    request: &Request,
    limits: &Limits,
    cancel: &CancellationToken,
) -> Result<Keys, Fault> {
    let disk = Disk::of(&request.recorded)?;
    let begun = block.begin(&disk, limits.deadline, cancel).await?;
    let (guest, users) = disks::look(client, request).await?;
    let attached = begun.attach(guest, users).await?;
    let keys = attached.keys();
    disks::write(client, &Path::new(request.directory())?, &keys).await?;
    attached.keep();
    Ok(keys)
}

async fn remove(request: &Request, limits: &Limits, cancel: &CancellationToken) -> Result<(), Fault> {
    let Some(saved) = saved(request) else { return Ok(()) };
    let node = saved.node.clone();
    match detach(saved, limits.deadline, cancel).await? {
        Detached::NotOurs { serves } => debug!(node, serves, "the loop device is another's by now"),
        detached => debug!(node, ?detached),
    }
    Ok(())
}

/// What is known of the loop device.
fn saved(request: &Request) -> Option<Saved> {
    let keys = &request.recorded;
    let saved = Saved::of(keys)?;
    let counted = keys.get(SEQUENCE).cloned();
    // Whoever asks has seen that the device is his; the script is given itself as a target where that is gone.
    let is_seen = || keys.get("params").is_some_and(|params| *params == *request.script.to_string_lossy());
    let counted = counted.or_else(|| sequence(&saved.node).filter(|_| is_seen()));
    let file = file_of(keys).map(|(dev, ino)| FileId { dev, ino });
    Some(Saved { file, sequence: counted.and_then(|counted| counted.parse().ok()), ..saved })
}
