//! Writing the tree of a new device.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio_util::sync::CancellationToken;
use xs_client::{Client, DomId, Request};

use super::{Depth, look, remove_frontend, transact};
use crate::operation::observe::Texts;
use crate::operation::record::Record;
use crate::operation::steps::{self, Obstacle, Seen};
use crate::operation::wait::Cancel;
use crate::operation::{Target, place, saved};
use crate::{Cause, Device, Guest, RunBy, Which};

/// What came of an attempt to write a device's tree.
pub(crate) enum Written {
    Done(Target),
    Blocked(Which, Obstacle),
}

/// Writes the device's tree, if nothing stands in the way.
///
/// Once all is decided, `written` holds the device, and the error texts that stood there before: if the store gave no
/// answer then, the commit may have been carried out.
pub(crate) async fn create(
    client: &Client,
    fe: DomId,
    (device, guest, run_by): (&Device, &Guest, RunBy),
    record: &Record,
    written: &Mutex<Option<(Target, Texts)>>,
    cancel: Cancel<'_>,
) -> Result<Written, Cause> {
    let set = |target| *written.lock().unwrap_or_else(PoisonError::into_inner) = target;
    let stands = &AtomicBool::new(false);
    transact(client, |tx| async move {
        set(None);
        // Between attempts is the one place to stop without a trace.
        if cancel.is_some_and(CancellationToken::is_cancelled) {
            return Err(Cause::Aborted);
        }
        let id = place::identify(&tx, fe, device, guest).await?;
        let paths = id.paths()?;
        if stands.load(Ordering::Relaxed) {
            // Its guest may keep writing to what an earlier device has left.
            remove_frontend(client, &id, &paths, |seen| steps::create(seen).is_ok()).await?;
        }
        let remote = guest.is_remote();
        let backend_home = async {
            if remote { tx.read_opt(&paths.backend_home).await.map(|home| home.is_some()) } else { Ok(true) }
        };
        let (seen, unfinished, checked, fe, stood, backend_home) = tokio::join!(
            look(&tx, &id, &paths, Depth::Made),
            saved::unfinished(client, &id, &paths),
            place::check(&tx, &id, &paths, device),
            tx.read_opt(&paths.frontend),
            // Not in the transaction: the guest can write there.
            Texts::of_drivers(client, &id),
            backend_home,
        );
        let no_backend_home = (!backend_home?).then_some(id.be);
        let mut seen = Seen { unfinished: unfinished?, no_backend_home, ..seen? };
        // What a script made in a driver domain is for that to undo.
        seen.made &= !remote;
        if let Err(obstacle) = steps::create(&seen) {
            return Ok((Written::Blocked(id.which(), obstacle), Vec::new()));
        }
        checked?;
        let fe = fe?.is_some();
        stands.store(fe, Ordering::Relaxed);
        let stale = [(fe, &paths.frontend), (seen.be, &paths.backend)];
        let stale = stale.into_iter().filter(|(there, _)| *there);
        let mut requests: Vec<_> = stale.map(|(_, path)| Request::Rm(path.clone())).collect();
        let tree = device.as_spec().tree(&id, guest);
        requests.extend(tree.requests(&id, &paths, &record.to_string())?);
        let target = Target::new(id, tree.backend.recorded())?.with_scripts_run_by(run_by);
        set(Some((target.clone(), stood?)));
        Ok((Written::Done(target), requests))
    })
    .await
}
