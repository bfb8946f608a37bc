//! What the whole life of a disk costs: added, connected, closed, destroyed.
mod account;
mod drivers;
mod link;
mod ours;
mod tap;
mod world;

use std::path::Path;

use account::Account;
use anyhow::Result;
use world::{Running, ServerKind};

pub(super) fn requests(xendev: &Path) -> Result<()> {
    for kind in [ServerKind::Xenstored, ServerKind::Xendev] {
        let server = Running::start(kind, xendev, 1)?;
        let before = server.dump()?;
        let account = Account::take(&server)?;
        anyhow::ensure!(before == server.dump()?, "something is left in the store");
        print!("{kind:?}\n{}{}", account.table(), account.listing());
    }
    Ok(())
}
