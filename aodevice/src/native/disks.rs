//! What handlers are told of the store, and tell it.

use bytes::Bytes;
use futures_util::future::try_join_all;
use xen_hotplug::Request;
use xen_hotplug::native::block::{Domain, User};
use xs_client::{Client, Error, ErrorCode, Path, PathError, Reply, Request as StoreRequest, Transaction};

use super::Fault;
use crate::operation::text;

/// The kinds of backends that have what a disk could share with another.
const KINDS: [&str; 3] = ["vbd", "vbd3", "qdisk"];

/// What is read of a disk.
const KEYS: [&str; 4] = ["physical-device", "params", "mode", "dev"];

/// The guest that a request is for, and all disks that this domain serves for others: its own it may share.
pub(super) async fn look(client: &Client, request: &Request) -> Result<(Domain, Vec<User>), Fault> {
    let kinds: Vec<Path> = KINDS
        .iter()
        .map(|kind| Path::new(format!("/local/domain/{}/backend/{kind}", request.own)))
        .collect::<Result<_, _>>()?;
    let guests = try_join_all(kinds.iter().map(|kind| client.directory_or_empty(kind))).await?;
    let guests = kinds.iter().zip(guests).flat_map(|(kind, guests)| {
        guests.into_iter().filter_map(move |fe| Some((kind.join(&fe).ok()?, fe.parse().ok()?)))
    });
    let guests: Vec<(Path, u32)> = guests.filter(|(_, fe)| *fe != request.fe).collect();
    let devids = try_join_all(guests.iter().map(|(path, _)| client.directory_or_empty(path)));
    // Who the guest is matters where there are others.
    let own = (!guests.is_empty()).then_some(request.fe);
    let mut domids: Vec<u32> = guests.iter().map(|(_, fe)| *fe).chain(own).collect();
    domids.sort_unstable();
    domids.dedup();
    let domains = domains(client, &domids);
    let (devids, domains) = tokio::try_join!(async { Ok(devids.await?) }, domains)?;
    let disks: Vec<(Path, u32)> = guests
        .iter()
        .zip(devids)
        .flat_map(|((guest, fe), devids)| {
            devids.into_iter().filter_map(|devid| Some((guest.join(&devid).ok()?, *fe)))
        })
        .collect();
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

/// A node that this domain may not read, as a driver domain may not read the homes of guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused;

/// The values of nodes, as far as this domain may read them.
pub(super) async fn read_allowed(
    client: &Client,
    paths: &[Path],
) -> Result<Vec<Result<Option<Bytes>, Refused>>, Error> {
    let read = client.batch(paths.iter().cloned().map(StoreRequest::Read).collect()).await?;
    let value = |reply| match reply {
        Ok(Reply::Value(value)) => Ok(Ok(Some(value))),
        Ok(_) => Ok(Ok(None)),
        Err(error) => match error {
            Error::Store { code: ErrorCode::EACCES, .. } => Ok(Err(Refused)),
            error if error.is_not_found() => Ok(Ok(None)),
            error => Err(error),
        },
    };
    read.into_iter().map(value).collect()
}

/// Which virtual machine a domain is, if this domain may read that.
pub(super) async fn vm_of(client: &Client, domid: u32) -> Result<Option<String>, Fault> {
    let read = read_allowed(client, &[Path::new(format!("/local/domain/{domid}/vm"))?]).await?;
    Ok(text(read.into_iter().next().and_then(Result::ok).flatten()))
}

/// What the store tells of domains.
async fn domains(client: &Client, domids: &[u32]) -> Result<Vec<Domain>, Fault> {
    let nodes = domids.iter().flat_map(|domid| {
        ["name", "vm", "target"].map(|key| Path::new(format!("/local/domain/{domid}/{key}")))
    });
    let seen = read_allowed(client, &nodes.collect::<Result<Vec<_>, _>>()?).await?;
    let mut domains = Vec::with_capacity(domids.len());
    for (domid, values) in domids.iter().zip(seen.chunks(3)) {
        let known = |index: usize| values[index].clone().ok().flatten().and_then(|value| text(Some(value)));
        let (name, target) = (known(0), known(2));
        // Whose virtual machine is not to be seen counts as one of its own: one without any counts as gone, whose image
        // another guest would get.
        let vm = match values[1] {
            Err(Refused) => Some(format!("/local/domain/{domid}")),
            Ok(_) => known(1),
        };
        // Of a stub domain.
        let target_vm = match target.and_then(|target| target.parse::<u32>().ok()) {
            Some(target) => vm_of(client, target).await?,
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
    use xen_hotplug::{Action, Kind};
    use xs_client::{Access, Config, DomId, Permissions};
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
    async fn all_disks_of_other_guests_are_looked_at() {
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

    /// In a driver domain, which serves disks of guests whose homes it may not read: no guest is taken to be gone, or to be
    /// another.
    #[tokio::test]
    async fn guests_that_are_not_to_be_seen_are_not_taken_to_be_gone() {
        let store = Store::new();
        let dom0 = Client::over(store.connect(DomId::DOM0), Config::default());
        for domid in [1, 2, 3] {
            store.introduce(DomId(domid));
        }
        let backends = Path::new("/local/domain/1/backend").unwrap();
        dom0.mkdir(&backends).await.unwrap();
        dom0.set_perms(&backends, Permissions::owned_by(DomId(1), Access::None)).await.unwrap();
        for (node, value) in [
            ("/local/domain/2/vm", "/vm/two"),
            ("/local/domain/3/vm", "/vm/three"),
            ("/local/domain/1/backend/vbd/2/51712/params", "/srv/own.img"),
            ("/local/domain/1/backend/vbd/3/51712/physical-device", "7:1"),
        ] {
            dom0.write(&Path::new(node).unwrap(), value).await.unwrap();
        }
        for home in ["/local/domain/2", "/local/domain/3"] {
            let perms = Permissions::owned_by(DomId::DOM0, Access::None);
            dom0.set_perms(&Path::new(home).unwrap().join("vm").unwrap(), perms).await.unwrap();
        }
        let client = Client::over(store.connect(DomId(1)), Config::default());
        let request = Request::new(Kind::Vbd, Action::Add, 2, 51712, "block").own(1);
        let (guest, users) = look(&client, &request).await.unwrap();
        let [other] = &users[..] else { panic!("{users:?}") };
        assert_eq!((other.domain.domid, other.physical_device.as_deref()), (3, Some("7:1")));
        assert!(
            guest.vm.is_some() && other.domain.vm.is_some() && guest.vm != other.domain.vm,
            "{guest:?} {other:?}"
        );
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
