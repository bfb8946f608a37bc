//! Disks that a tool connects: their script is `block-iscsi`, `block-nbd` or `block-tap`.

use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use xen_hotplug::native::Tools;
use xen_hotplug::native::disk::{Attempt, Detached, DiskError, Made, Script, begin, detach};
use xen_hotplug::{Action, Ending, Limits, Request};
use xs_client::{Client, Path};

use super::{Fault, disks};
use crate::operation::saved;

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
        // Both before the tool is called: where BE is lost, the copy tells a removal what to undo.
        note(client, request, &chosen.keys()).await?;
        match disks::write(client, &directory, &chosen.keys()).await {
            Err(Fault::Gone) => {
                forget(client, request, &directory).await;
                return Err(Fault::Gone);
            }
            written => written?,
        }
        match chosen.make().await {
            Ok(Attempt::Made(made)) => break made,
            Ok(Attempt::Taken(other)) => chosen = other,
            Err(error) => {
                if !error.is_left() {
                    forget(client, request, &directory).await;
                }
                return Err(error.into());
            }
        }
    };
    match disks::write(client, &directory, made.keys()).await {
        Ok(()) => Ok(()),
        Err(fault) => undo(client, request, &directory, made, fault).await,
    }
}

async fn undo(
    client: &Client,
    request: &Request,
    directory: &Path,
    made: Made,
    fault: Fault,
) -> Result<(), Fault> {
    match made.undo().await {
        Ok(()) => forget(client, request, directory).await,
        Err(error) => warn!(%error, "what serves the disk is left connected"),
    }
    Err(fault)
}

/// What was to be made is not there, and may be made by somebody else.
async fn forget(client: &Client, request: &Request, directory: &Path) {
    let Ok(node) = directory.join("node") else { return };
    if let Err(error) = client.rm(&node).await {
        debug!(?error, "the backend names a node that is not there");
    }
    if let Err(error) = note(client, request, &[]).await {
        debug!(?error, "the copy names a node that is not there");
    }
}

/// Notes in the saved copy of the device which node is about to be connected, or that none is.
async fn note(client: &Client, request: &Request, keys: &[(&'static str, String)]) -> Result<(), Fault> {
    let node = keys.iter().find(|(key, _)| *key == "node").map(|(_, node)| &**node);
    Ok(saved::note(client, (request.kind.backend(), request.fe, request.devid), ("node", node)).await?)
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

#[cfg(test)]
mod tests {
    use xen_hotplug::Kind;
    use xs_client::{Config, DomId};
    use xs_store::Store;

    use super::*;

    /// Where BE is lost, nothing else tells a removal what the tool was about to connect.
    #[tokio::test]
    async fn the_copy_tells_what_a_tool_is_about_to_connect() {
        let client = Client::over(Store::new().connect(DomId::DOM0), Config::default());
        let request = Request::new(Kind::Vbd, Action::Add, 1, 51712, "block-nbd");
        let copy = Path::new("/tool/xendev/backend/vbd/1/51712").unwrap();
        let node = [("node", "/dev/nbd0".to_owned())];
        note(&client, &request, &node).await.unwrap();
        assert_eq!(client.read_opt(&copy).await.unwrap(), None, "what was not saved is not begun");
        client.write(&copy, r#"{"params":"server:10809"}"#.to_owned()).await.unwrap();
        note(&client, &request, &node).await.unwrap();
        let noted = r#"{"node":"/dev/nbd0","params":"server:10809"}"#;
        assert_eq!(client.read(&copy).await.unwrap(), noted);
        note(&client, &request, &[]).await.unwrap();
        assert_eq!(client.read(&copy).await.unwrap(), r#"{"params":"server:10809"}"#);
    }
}
