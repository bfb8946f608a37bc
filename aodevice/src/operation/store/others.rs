//! What other devices have of the same target, for a script's work that nothing names: whose a loop device may be.

use std::collections::BTreeSet;

use xs_client::{Client, Path};

use super::text;
use crate::Cause;
use crate::operation::{Target, files, saved};

/// The devices that have directories below this one of their kind, as `<fe>/<devid>`.
async fn devices_below(client: &Client, parent: &Path) -> Result<Vec<String>, Cause> {
    let mut devices = Vec::new();
    for fe in client.directory_or_empty(parent).await? {
        let devids = client.directory_or_empty(&parent.join(&fe)?).await?;
        devices.extend(devids.into_iter().map(|devid| format!("{fe}/{devid}")));
    }
    Ok(devices)
}

/// The `node`s of the devices of the target's kind in this backend's domain; of the target itself only if
/// its directory is another's by now. One that was saved with the kernel's count names that use alone.
pub(crate) async fn nodes_of_others(
    client: &Client,
    target: &Target,
    is_ours: bool,
) -> Result<Vec<String>, Cause> {
    let id = target.id();
    let kind = id.be_kind;
    let backends = Path::new(format!("/local/domain/{}/backend/{kind}", id.be))?;
    let copies = saved::of_kind(kind)?;
    let mut devices = BTreeSet::from_iter(devices_below(client, &backends).await?);
    devices.extend(devices_below(client, &copies).await?);
    let mut paths = Vec::new();
    for device in devices {
        let (backend, saved) = (backends.join(&device)?, copies.join(&device)?);
        if backend != target.paths().backend {
            paths.extend([backend.join("node")?, saved.join("node")?, saved.join(saved::SEQUENCE)?]);
        }
    }
    let seen: Vec<Option<String>> = client.read_many(&paths).await?.into_iter().map(text).collect();
    let other =
        if is_ours { None } else { text(client.read_opt(&target.paths().backend.join("node")?).await?) };
    let names = seen.chunks(3).filter_map(|device| match device {
        [Some(node), Some(saved), Some(counted)] if node == saved => {
            files::sequence(node).is_none_or(|now| now == *counted).then_some(node)
        }
        [Some(node), ..] => Some(node),
        // Its backend is gone, and what its script made is not.
        [None, Some(saved), Some(counted)] => (files::sequence(saved)? == *counted).then_some(saved),
        _ => None,
    });
    Ok(names.cloned().chain(other).collect())
}

/// The copies, and the operation records, of other devices whose scripts run, or died, that may have made
/// something of the same file and not have told of it yet.
pub(crate) async fn unfinished_others(
    client: &Client,
    target: &Target,
    origin: &str,
) -> Result<Vec<(Path, Option<String>)>, Cause> {
    let id = target.id();
    let copies = saved::of_kind(id.be_kind)?;
    let mut records = Vec::new();
    for device in devices_below(client, &copies).await? {
        let saved = copies.join(&device)?;
        let Some((fe, devid)) = device.split_once('/').filter(|_| saved != target.paths().saved) else {
            continue;
        };
        let op = Path::new(format!("/libxl/{fe}/device/{}/{devid}/op", id.kind))?;
        let keys = [saved.join(saved::BEFORE)?, saved.join(saved::FILE)?, op];
        let mut seen = client.read_many(&keys).await?.into_iter().map(text);
        if let (Some(Some(_)), Some(Some(of)), Some(op)) = (seen.next(), seen.next(), seen.next())
            && of == origin
        {
            records.push((saved, op));
        }
    }
    Ok(records)
}
