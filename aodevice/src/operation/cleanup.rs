//! Removing a directory and the parents that it leaves empty.

use xs_client::{Error, Path, PathError, Requests};

use crate::DeviceId;

/// Above which no clean-up ever goes.
pub(crate) struct CleanupRoots {
    pub(crate) frontend: Path,
    pub(crate) backend: Path,
    pub(crate) toolstack: Path,
}

impl CleanupRoots {
    /// Those of a device. `device` directories of a guest that is gone go too.
    pub(crate) fn new(id: &DeviceId, home: bool) -> Result<Self, PathError> {
        let DeviceId { fe, be, .. } = id;
        let of_guest =
            |root: &str| Path::new(if home { format!("{root}/{fe}/device") } else { root.to_owned() });
        Ok(Self {
            frontend: of_guest("/local/domain")?,
            backend: Path::new(format!("/local/domain/{be}/backend"))?,
            toolstack: of_guest("/libxl")?,
        })
    }
}

fn unless_missing<T>(outcome: Result<T, Error>) -> Result<Option<T>, Error> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes `path` with all below it, if it is there: daemons differ in whether removing what is
/// missing is an error.
pub(crate) async fn remove_only(tx: &Requests, path: &Path) -> Result<(), Error> {
    unless_missing(tx.rm(path).await).map(drop)
}

/// Removes `path` with all below it, then each parent that has neither children nor a value, up
/// to the root, which stays.
pub(crate) async fn remove(tx: &Requests, path: &Path, root: &Path) -> Result<(), Error> {
    remove_only(tx, path).await?;
    let mut at = path.parent();
    while let Some(parent) = at.filter(|parent| parent != root && parent.is_within(root)) {
        if let Some(value) = unless_missing(tx.read(&parent).await)? {
            if !value.is_empty() || !tx.directory_or_empty(&parent).await?.is_empty() {
                return Ok(());
            }
            tx.rm(&parent).await?;
        }
        at = parent.parent();
    }
    Ok(())
}
