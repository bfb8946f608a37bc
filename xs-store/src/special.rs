//! The special paths: who may know what happens to domains, and telling them.

use std::sync::Arc;

use xs_proto::{Access, DomId, ErrorCode, Permissions, Reply};

use crate::change::{Above, Change, Scope};
use crate::outbox::Merge;
use crate::rights::{Caller, Need, Rights};
use crate::store::Core;
use crate::watch::Watch;

/// The special paths, which stand for what happens to domains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    Introduce,
    Release,
}

impl Special {
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Introduce => "@introduceDomain",
            Self::Release => "@releaseDomain",
        }
    }

    pub(crate) fn from_path(path: &str) -> Result<Self, ErrorCode> {
        let found = [Self::Introduce, Self::Release].into_iter().find(|special| special.path() == path);
        found.ok_or(ErrorCode::ENOENT)
    }

    /// Only dom0 hears of new domains, and everybody of ended ones.
    pub(crate) fn default_rights(self) -> Arc<Rights> {
        let dom0 = Permissions::owned_by(DomId::DOM0, Access::None);
        let list = match self {
            Self::Introduce => dom0,
            Self::Release => dom0.grant(DomId::ANY, Access::Read),
        };
        Rights::new(list, 0)
    }
}

impl Core {
    pub(crate) fn set_special(
        &mut self,
        caller: &Caller,
        special: Special,
        list: Permissions,
    ) -> Result<Reply, ErrorCode> {
        if !self.domains.exists(list.owner()) {
            return Err(ErrorCode::ENOENT);
        }
        let before = self.special[special as usize].clone();
        if !before.allow(caller, Need::OWN) {
            return Err(ErrorCode::EACCES);
        }
        self.domains.notice(&list);
        let after = Rights::new(list, self.domains.next_generation());
        self.special[special as usize] = after.clone();
        let (path, readers) = (special.path().into(), [Some(before), Some(after)]);
        self.publish(&[Change { path, scope: Scope::Exact, readers, above: Above::Were(None) }]);
        Ok(Reply::Ok)
    }

    /// Tells those who watch a special path without a depth that something happened.
    pub(crate) fn publish_special(&mut self, special: Special) {
        let watches = self.watches.on(special.path()).iter();
        let watches = watches.filter(|watch| watch.depth().is_none()).cloned().collect();
        self.tell(special, watches, special.path());
    }

    /// Tells those who want to know to which domain: who watches with a depth, unless that is 0,
    /// and who watches the special path of that domain alone.
    pub(crate) fn publish_domain(&mut self, special: Special, domid: DomId) {
        let path = format!("{}/{domid}", special.path());
        let general = self.watches.on(special.path()).iter();
        let general = general.filter(|watch| watch.depth().is_some_and(|depth| depth > 0));
        let mut watches: Vec<_> = general.chain(self.watches.on(&path)).cloned().collect();
        watches.sort_unstable_by_key(Watch::order);
        self.tell(special, watches, &path);
    }

    fn tell(&mut self, special: Special, watches: Vec<Watch>, path: &str) {
        let rights = self.special[special as usize].clone();
        for watch in watches {
            if self.may_hear(watch.conn(), [&rights]) {
                self.send(watch.conn(), &watch.event(path, Merge::No));
            }
        }
    }
}
