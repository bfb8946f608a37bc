//! Removing a directory and the parents that it leaves empty.

use xs_client::{DomId, Error, Path, PathError, Requests};

/// Above which no clean-up ever goes.
pub(crate) struct Anchors {
    pub(crate) frontend: Path,
    pub(crate) backend: Path,
    pub(crate) toolstack: Path,
}

impl Anchors {
    pub(crate) fn new(fe: DomId, be: DomId) -> Result<Self, PathError> {
        Ok(Self {
            frontend: Path::new(format!("/local/domain/{fe}/device"))?,
            backend: Path::new(format!("/local/domain/{be}/backend"))?,
            toolstack: Path::new(format!("/libxl/{fe}/device"))?,
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

/// Removes `path` with all below it, then each parent that has neither children nor a value, up
/// to the anchor, which stays. What is missing already is passed by: daemons differ in whether
/// removing it is an error.
pub(crate) async fn remove(tx: &Requests, path: &Path, anchor: &Path) -> Result<(), Error> {
    unless_missing(tx.rm(path).await)?;
    let mut at = path.parent();
    while let Some(parent) = at.filter(|parent| parent != anchor && parent.is_within(anchor)) {
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
