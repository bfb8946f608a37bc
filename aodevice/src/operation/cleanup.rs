//! Removing a directory and the parents that it leaves empty.

use futures_util::future::try_join_all;
use xs_client::{Error, Path, PathError, Requests};

use crate::DeviceId;

/// Above which no clean-up ever goes.
pub(crate) struct CleanupRoots {
    pub(crate) frontend: Path,
    pub(crate) backend: Path,
    pub(crate) toolstack: Path,
}

impl CleanupRoots {
    /// Those of a device. `device` directories of a guest that is gone go too. A driver domain's `backend` goes with the
    /// last device, as by libxl, since that domain may not remove it; and so does a home that has nothing else: the
    /// store keeps the parents of nodes that were made for a domain which is gone.
    pub(crate) fn new(id: &DeviceId, (home, remote): (bool, bool)) -> Result<Self, PathError> {
        let DeviceId { fe, be, .. } = id;
        let of_guest =
            |root: &str| Path::new(if home { format!("{root}/{fe}/device") } else { root.to_owned() });
        Ok(Self {
            frontend: of_guest("/local/domain")?,
            backend: Path::new(if remote {
                "/local/domain".to_owned()
            } else {
                format!("/local/domain/{be}/backend")
            })?,
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

/// What is to be removed of `path` and of the parents up to the root, which stays, that have no children besides: the
/// directory itself if it is there, and the topmost of the parents.
///
/// Removing that alone would do, but whoever watches from above is told what was asked to be removed, and Linux's
/// xenbus takes notice of devices' own directories alone.
pub(crate) async fn extent(tx: &Requests, path: &Path, root: &Path) -> Result<Vec<Path>, Error> {
    let parents = std::iter::successors(path.parent(), Path::parent);
    let parents: Vec<Path> = parents.take_while(|parent| parent != root && parent.is_within(root)).collect();
    let listed = parents.iter().map(|parent| async move { unless_missing(tx.directory(parent).await) });
    let (mut itself, mut topmost, mut below) = (None, None, path.clone());
    for (parent, children) in parents.iter().zip(try_join_all(listed).await?) {
        if let Some(children) = children {
            let name = below.names().last();
            let is_below = |child: &String| Some(child.as_str()) == name;
            if below == *path && children.iter().any(is_below) {
                itself = Some(below.clone());
            }
            if !children.iter().all(is_below) {
                break;
            }
            topmost = Some(parent.clone());
        }
        below = parent.clone();
    }
    Ok(itself.into_iter().chain(topmost).collect())
}
