//! The hypervisor's side of the folder: which domains exist, and their pages.

use std::fs::{self, File};
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use tracing::debug;
use xs_proto::ring::{Mapping, ServerEnd};
use xs_proto::{DomId, ErrorCode, Features};

use crate::hypervisor::{DomainState, Hypervisor};

/// The server's end of a ring.
pub(super) type End = ServerEnd<Mapping>;

/// The folder. Clones share what is fresh.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// The rings of domains that were introduced and that nobody serves yet.
    fresh: Arc<Mutex<Vec<(DomId, End)>>>,
    /// To say that there are some.
    wake: Arc<Notify>,
}

impl Folder {
    pub(super) fn new(path: &Path, wake: Arc<Notify>) -> Self {
        Self { path: path.to_owned(), fresh: Arc::default(), wake }
    }

    /// Where a guest may listen for events.
    pub(super) fn guest_socket(&self, domid: DomId) -> PathBuf {
        self.path.join(format!("guest.{domid}"))
    }

    pub(super) fn take_fresh(&self) -> Vec<(DomId, End)> {
        mem::take(&mut *self.fresh.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Hypervisor for Folder {
    fn state(&self, domid: DomId) -> Option<DomainState> {
        let flags = fs::read(self.path.join(format!("dom{domid}"))).ok()?;
        if flags.contains(&b'd') {
            return None;
        }
        let down = flags.contains(&b's') || flags.contains(&b'c');
        Some(if down { DomainState::Down } else { DomainState::Alive })
    }

    fn connect(&mut self, domid: DomId, features: Features) -> Result<(), ErrorCode> {
        let page = self.path.join(format!("ring{domid}"));
        let mapped = File::options().read(true).write(true).open(page).and_then(Mapping::new);
        match mapped {
            Ok(page) => {
                let mut fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
                fresh.push((domid, ServerEnd::new(page, features)));
                self.wake.notify_one();
                Ok(())
            }
            Err(error) => {
                debug!(%domid, %error, "the ring page cannot be mapped");
                let missing = error.kind() == std::io::ErrorKind::NotFound;
                Err(if missing { ErrorCode::ENOENT } else { ErrorCode::EINVAL })
            }
        }
    }

    fn disconnect(&mut self, domid: DomId) {
        self.fresh.lock().unwrap_or_else(PoisonError::into_inner).retain(|(fresh, _)| *fresh != domid);
    }
}
