//! Writing the tree of a new device.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio_util::sync::CancellationToken;
use xs_client::{Client, DomId, Request};

use super::{Depth, Tries, look_beside, remove_theirs, transact};
use crate::operation::observe::Texts;
use crate::operation::record::{Record, Stage};
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
    let (stands, tries) = (&AtomicBool::new(false), &Tries::default());
    transact(client, |tx| async move {
        set(None);
        // Between attempts is the one place to stop without a trace.
        if cancel.is_some_and(CancellationToken::is_cancelled) {
            return Err(Cause::Aborted);
        }
        let id = place::identify(&tx, fe, device, guest).await?;
        let (paths, remote) = (id.paths()?, guest.is_remote());
        // What a script made in a driver domain is for that to undo.
        let by_record = |seen: Seen| Seen { made: seen.made && !remote, ..seen };
        if stands.load(Ordering::Relaxed) {
            // Others may keep writing to what an earlier device has left.
            let is_to_go = |seen: &Seen| steps::create(&by_record(seen.clone())).is_ok();
            remove_theirs(client, &id, &paths, &paths.theirs(remote), is_to_go).await?;
        }
        let of_backend = tries.of_backend(client, &tx, remote);
        let backend_home = async {
            if remote { tx.read_opt(&paths.backend_home).await.map(|home| home.is_some()) } else { Ok(true) }
        };
        let (seen, unfinished, checked, fe, stood, backend_home) = tokio::join!(
            look_beside((&tx, of_backend), &id, &paths, Depth::Made),
            saved::unfinished(client, &id, &paths),
            place::check(of_backend, &id, &paths, device),
            tx.read_opt(&paths.frontend),
            // Not in the transaction: the guest can write there.
            Texts::of_drivers(client, &id),
            backend_home,
        );
        let no_backend_home = (!backend_home?).then_some(id.be);
        let seen = Seen { unfinished: unfinished?, no_backend_home, ..by_record(seen?) };
        if let Err(obstacle) = steps::create(&seen) {
            return Ok((Written::Blocked(id.which(), obstacle), Vec::new()));
        }
        checked?;
        let fe = fe?.is_some();
        stands.store(fe || (remote && seen.be), Ordering::Relaxed);
        let stale = [(fe, &paths.frontend), (seen.be, &paths.backend)];
        let stale = stale.into_iter().filter(|(there, _)| *there);
        let mut requests: Vec<_> = stale.map(|(_, path)| Request::Rm(path.clone())).collect();
        let tree = device.as_spec().tree(&id, guest);
        let target = Target::new(id, tree.backend.recorded())?.with_scripts_run_by(run_by);
        // That a script has begun is not noted later: it would be a transaction for one word.
        let stage = if target.run_kinds().is_empty() { Stage::Backend } else { Stage::Script };
        requests.extend(tree.requests(&id, &paths, &record.at(stage).to_string())?);
        set(Some((target.clone(), stood?)));
        Ok((Written::Done(target), requests))
    })
    .await
}
