//! What watchers are told, in numbers.

use xs_proto::Path;

use crate::log::debug;
use crate::queue::Kept;
use crate::watcher::Watcher;

/// What became of the changes that watchers were told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) changes: usize,
    pub(crate) coalesced: usize,
    pub(crate) overflows: usize,
}

impl Told {
    pub(super) fn tell(&mut self, watcher: &Watcher, path: &Path, backlog: usize) {
        let Some(kept) = watcher.changed(path, backlog) else { return };
        self.changes += 1;
        match kept {
            Kept::New => {}
            Kept::Coalesced => self.coalesced += 1,
            Kept::Overflowed => {
                debug!(path = %watcher.path, backlog, "a watcher has not looked for long");
                self.overflows += 1;
            }
        }
    }
}
