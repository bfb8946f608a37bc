//! What other devices have of the same target, for a script's work that nothing names: whose a loop device may be.

use std::collections::BTreeSet;

use xs_client::{Client, Path};

use super::text;
use crate::Cause;
use crate::kind::Recorded;
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
            paths.extend([backend.join("node")?, saved]);
        }
    }
    let seen = client.read_many(&paths).await?;
    let other =
        if is_ours { None } else { text(client.read_opt(&target.paths().backend.join("node")?).await?) };
    let names = seen.chunks(2).filter_map(|device| {
        let node = text(device[0].clone());
        let copy = saved::parse(device[1].as_deref()).unwrap_or_default();
        match (node, copy.get("node"), copy.get(saved::SEQUENCE)) {
            (Some(node), Some(saved), Some(counted)) if node == *saved => {
                files::sequence(&node).is_none_or(|now| now == *counted).then_some(node)
            }
            (Some(node), ..) => Some(node),
            // Its backend is gone, and what its script made is not.
            (None, Some(saved), Some(counted)) => {
                (files::sequence(saved)? == *counted).then(|| saved.clone())
            }
            _ => None,
        }
    });
    Ok(names.chain(other).collect())
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
        let (copy, op) = tokio::try_join!(saved::read(client, &saved), client.read_opt(&op))?;
        let is_of = |copy: Recorded| {
            copy.contains_key(saved::BEFORE) && copy.get(saved::FILE).is_some_and(|of| of == origin)
        };
        if copy.is_some_and(is_of) {
            records.push((saved, text(op)));
        }
    }
    Ok(records)
}
