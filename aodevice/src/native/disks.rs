//! What handlers are told of the store, and tell it.

use futures_util::future::try_join_all;
use hotplug::Request;
use hotplug::native::block::{Domain, User};
use xs_client::{Client, Path, PathError, Request as StoreRequest, Transaction};

use super::Fault;
use crate::operation::text;

/// The kinds of backends that have what a disk could share with another.
const KINDS: [&str; 3] = ["vbd", "vbd3", "qdisk"];

/// What is read of a disk.
const KEYS: [&str; 4] = ["physical-device", "params", "mode", "dev"];

/// The guest that a request is for, and all disks that this domain serves but for the request's.
pub(super) async fn look(client: &Client, request: &Request) -> Result<(Domain, Vec<User>), Fault> {
    let kinds: Vec<Path> = KINDS
        .iter()
        .map(|kind| Path::new(format!("/local/domain/{}/backend/{kind}", request.own)))
        .collect::<Result<_, _>>()?;
    let guests = try_join_all(kinds.iter().map(|kind| client.directory_or_empty(kind))).await?;
    let guests = kinds.iter().zip(guests).flat_map(|(kind, guests)| {
        guests.into_iter().filter_map(move |fe| Some((kind.join(&fe).ok()?, fe.parse().ok()?)))
    });
    let guests: Vec<(Path, u32)> = guests.collect();
    let devids = try_join_all(guests.iter().map(|(path, _)| client.directory_or_empty(path)));
    let mut domids: Vec<u32> = guests.iter().map(|(_, fe)| *fe).chain([request.fe]).collect();
    domids.sort_unstable();
    domids.dedup();
    // Whose a disk is matters where there are others.
    if domids.len() == 1 {
        domids.clear();
    }
    let domains = domains(client, &domids);
    let (devids, domains) = tokio::try_join!(async { Ok(devids.await?) }, domains)?;
    let own = request.backend();
    let disks = guests.iter().zip(devids).flat_map(|((guest, fe), devids)| {
        devids.into_iter().filter_map(|devid| Some((guest.join(&devid).ok()?, *fe)))
    });
    let disks: Vec<(Path, u32)> = disks.filter(|(disk, _)| **disk != *own).collect();
    let keys = disks.iter().flat_map(|(disk, _)| KEYS.map(|key| disk.join(key)));
    let values = client.read_many(&keys.collect::<Result<Vec<_>, _>>()?).await?;
    let of = |domid: u32| {
        let found = domains.iter().find(|domain| domain.domid == domid);
        found.cloned().unwrap_or_else(|| Domain { domid, ..Domain::default() })
    };
    let users = disks.iter().zip(values.chunks(KEYS.len())).map(|((disk, fe), values)| {
        let mut values = values.iter().cloned().map(text);
        let mut next = || values.next().flatten();
        let (physical_device, params, mode, vdev) = (next(), next(), next(), next());
        let kind = disk.names().nth(4).unwrap_or_default().to_owned();
        let (mode, vdev) = (mode.unwrap_or_default(), vdev.unwrap_or_default());
        User { domain: of(*fe), kind, vdev, physical_device, params, mode }
    });
    Ok((of(request.fe), users.collect()))
}

/// What the store tells of domains.
async fn domains(client: &Client, domids: &[u32]) -> Result<Vec<Domain>, Fault> {
    let nodes = domids.iter().flat_map(|domid| {
        ["name", "vm", "target"].map(|key| Path::new(format!("/local/domain/{domid}/{key}")))
    });
    let seen = client.read_many(&nodes.collect::<Result<Vec<_>, _>>()?).await?;
    let mut domains = Vec::with_capacity(domids.len());
    for (domid, values) in domids.iter().zip(seen.chunks(3)) {
        let [name, vm, target] = [0, 1, 2].map(|index| text(values[index].clone()));
        // Of a stub domain.
        let target_vm = match target.and_then(|target| target.parse::<u32>().ok()) {
            Some(target) => text(client.read_opt(&Path::new(format!("/local/domain/{target}/vm"))?).await?),
            None => None,
        };
        domains.push(Domain { domid: *domid, name, vm, target_vm });
    }
    Ok(domains)
}

fn writes(directory: &Path, keys: &[(&'static str, String)]) -> Result<Vec<StoreRequest>, PathError> {
    let write = |(key, value): &(&'static str, String)| {
        Ok(StoreRequest::Write { path: directory.join(key)?, value: value.clone().into() })
    };
    keys.iter().map(write).collect()
}

/// Writes keys into a directory, all or none, unless it is gone.
pub(super) async fn write(
    client: &Client,
    directory: &Path,
    keys: &[(&'static str, String)],
) -> Result<(), Fault> {
    if keys.is_empty() {
        return Ok(());
    }
    let write = |tx: Transaction| async move {
        // What is written into one that is gone goes with the transaction.
        let written = async { Ok::<_, Fault>(tx.all(writes(directory, keys)?).await?) };
        let (there, _) = tokio::try_join!(async { Ok(tx.read_opt(directory).await?) }, written)?;
        there.map(drop).ok_or(Fault::Gone)
    };
    client.transaction(write).await
}

/// The same without a transaction, for a directory of the guest's, who could make any conflict.
pub(super) async fn write_beside(
    client: &Client,
    directory: &Path,
    keys: &[(&'static str, String)],
) -> Result<(), Fault> {
    if !keys.is_empty() && client.read_opt(directory).await?.is_some() {
        client.all(writes(directory, keys)?).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use hotplug::{Action, Kind};
    use xs_client::{Config, DomId};
    use xs_store::Store;

    use super::*;

    async fn store(nodes: &[(&str, &str)]) -> Client {
        let client = Client::over(Store::new().connect(DomId::DOM0), Config::default());
        for (node, value) in nodes {
            client.write(&Path::new(*node).unwrap(), (*value).to_owned()).await.unwrap();
        }
        client
    }

    #[tokio::test]
    async fn all_disks_are_looked_at_but_the_one_to_be_attached() {
        let client = store(&[
            ("/local/domain/0/backend/vbd/1/51712/params", "/srv/own.img"),
            ("/local/domain/0/backend/vbd/2/51728/physical-device", "7:1f"),
            ("/local/domain/0/backend/vbd/2/51728/mode", "r"),
            ("/local/domain/0/backend/vbd/2/51728/dev", "xvdb"),
            ("/local/domain/0/backend/qdisk/3/768/params", "aio:/srv/d.img"),
            ("/local/domain/0/backend/vif/4/0/mac", "00:16:3e:00:00:01"),
            ("/local/domain/1/vm", "/vm/one"),
            ("/local/domain/2/vm", "/vm/two"),
            ("/local/domain/2/name", "second"),
            ("/local/domain/3/target", "1"),
        ])
        .await;
        let request = Request::new(Kind::Vbd, Action::Add, 1, 51712, "block");
        let (guest, users) = look(&client, &request).await.unwrap();
        assert_eq!((guest.domid, guest.vm.as_deref()), (1, Some("/vm/one")));
        let [second, stub] = &users[..] else { panic!("{users:?}") };
        assert_eq!((&*second.kind, &*second.vdev, &*second.mode), ("vbd", "xvdb", "r"));
        assert_eq!(second.physical_device.as_deref(), Some("7:1f"));
        assert_eq!(
            (second.domain.name.as_deref(), second.domain.vm.as_deref()),
            (Some("second"), Some("/vm/two"))
        );
        assert_eq!((&*stub.kind, stub.params.as_deref()), ("qdisk", Some("aio:/srv/d.img")));
        assert_eq!(stub.domain.target_vm.as_deref(), Some("/vm/one"));
    }

    #[tokio::test]
    async fn a_directory_that_is_gone_is_not_brought_back() {
        let client = store(&[("/a/b", "")]).await;
        let keys = &[("node", "/dev/loop0".to_owned())];
        let (there, gone) = (Path::new("/a/b").unwrap(), Path::new("/a/c").unwrap());
        assert!(matches!(write(&client, &gone, keys).await, Err(Fault::Gone)));
        write_beside(&client, &gone, keys).await.unwrap();
        write(&client, &there, keys).await.unwrap();
        assert_eq!(client.directory(&Path::new("/a").unwrap()).await.unwrap(), ["b"]);
        assert_eq!(client.read(&Path::new("/a/b/node").unwrap()).await.unwrap(), "/dev/loop0");
    }
}
