//! The store's side of an operation: what each step of a machine does in one transaction.
//!
//! An operation leaves a record, `op`, in the toolstack's directory of its device: who works on
//! it. Every later step first looks whether the record is still its own. So an operation never
//! touches what another one has taken over, nor a new device that took the place of its own; and
//! what a crashed or timed-out operation leaves can be told from a device that is well.

use std::sync::{Mutex, PoisonError};

use devstate::{StateValue, XenbusState};
use tokio_util::sync::CancellationToken;
use xs_client::{Client, DomId, Path, Request, Requests, Transaction};

use crate::cleanup::{self, Anchors};
use crate::config::Scripts;
use crate::device::lx_parent;
use crate::machine::{Closing, Destroyed, Frontend};
use crate::vif::Vif;
use crate::{Cause, Device, DeviceId, Guest, Kind, Operation, Paths};

/// Whose operation it is: the text of its record.
#[derive(Clone, Debug)]
pub(crate) struct Record(String);

impl Record {
    pub(crate) fn new(operation: Operation) -> Self {
        let name = match operation {
            Operation::Attach => "add",
            Operation::Detach => "remove",
        };
        Self(format!("{name}:{:016x}", fastrand::u64(..)))
    }
}

/// A device that an operation works on.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) id: DeviceId,
    pub(crate) paths: Paths,
    pub(crate) scripts: Scripts,
}

fn state(value: Option<&[u8]>) -> Option<XenbusState> {
    StateValue::parse(value?).state()
}

fn text(value: Option<bytes::Bytes>) -> Option<String> {
    value.and_then(|value| String::from_utf8(value.into()).ok())
}

/// Writes the device's tree, if the domain exists and the device does not.
///
/// Once everything is written, `written` holds the device: if the outcome is an error then, it is
/// that of the commit, and if the store gave no answer it may have been carried out.
pub(crate) async fn create(
    client: &Client,
    (fe, own): (DomId, DomId),
    device: &Device,
    guest: &Guest,
    record: &Record,
    written: &Mutex<Option<Subject>>,
    cancel: &CancellationToken,
) -> Result<Subject, Cause> {
    let set = |subject| *written.lock().unwrap_or_else(PoisonError::into_inner) = subject;
    client
        .transaction(|tx| async move {
            set(None);
            // Between attempts is the one place to stop without a trace.
            if cancel.is_cancelled() {
                return Err(Cause::Aborted);
            }
            let kind = device.kind();
            let devid = match device.devid() {
                Some(devid) => devid,
                None => free_devid(&tx, fe, kind).await?,
            };
            let id = DeviceId { fe, kind, devid, be: own, be_kind: kind };
            let paths = id.paths()?;
            make_room(&tx, fe, &paths).await?;
            if let Device::Vif(vif) = device {
                check_mac(&tx, fe, vif).await?;
            }
            let tree = device.tree(&id, guest);
            tx.all(tree.requests(&id, &paths, &record.0)?).await?;
            let value = |key| tree.backend.get(key).map(str::to_owned);
            let scripts =
                Scripts { script: value("script"), gatewaydev: value("gatewaydev").unwrap_or_default() };
            let subject = Subject { id, paths, scripts };
            set(Some(subject.clone()));
            Ok(subject)
        })
        .await
}

/// The smallest id that no device of the kind has. Found inside of the transaction, so that two
/// who find the same one conflict, and the second looks again.
async fn free_devid(tx: &Transaction, fe: DomId, kind: Kind) -> Result<u32, Cause> {
    let taken = tx.directory_or_empty(&lx_parent(fe, kind)?).await?;
    let free = (0..).find(|devid: &u32| !taken.contains(&devid.to_string()));
    free.ok_or_else(|| Cause::Invalid("every device id is taken".to_owned()))
}

/// Sees that the device may be written, and removes what an earlier one left without a record.
async fn make_room(tx: &Transaction, fe: DomId, paths: &Paths) -> Result<(), Cause> {
    let home = Path::new(format!("/local/domain/{fe}"))?;
    let Paths { frontend, backend, toolstack } = paths;
    let looked_at = [
        home,
        toolstack.clone(),
        frontend.clone(),
        frontend.join("state")?,
        frontend.join("backend")?,
        backend.clone(),
    ];
    let seen = tx.read_many(&looked_at).await?;
    let [home, lx, fe_node, fe_state, fe_backend, be_node] = &seen[..] else {
        unreachable!("as many values as paths");
    };
    if home.is_none() {
        return Err(Cause::NoSuchDomain(fe.to_string()));
    }
    if lx.is_some() {
        return Err(Cause::Exists);
    }
    if let Some(live @ (XenbusState::Initialised | XenbusState::Connected)) = state(fe_state.as_deref())
        && fe_backend.as_deref() != Some(backend.as_bytes())
    {
        return Err(Cause::FrontendInUse(live));
    }
    let stale = [(fe_node, frontend), (be_node, backend)];
    let stale = stale.into_iter().filter(|(node, _)| node.is_some());
    tx.all(stale.map(|(_, path)| Request::Rm(path.clone())).collect()).await?;
    Ok(())
}

/// Refuses an address that another interface of the guest has.
async fn check_mac(tx: &Transaction, fe: DomId, vif: &Vif) -> Result<(), Cause> {
    let parent = lx_parent(fe, Kind::Vif)?;
    let devids = tx.directory_or_empty(&parent).await?;
    let macs: Vec<Path> =
        devids.iter().map(|devid| parent.join(format!("{devid}/mac"))).collect::<Result<_, _>>()?;
    let wanted = vif.mac.map(|mac| mac.to_string());
    for (devid, mac) in devids.iter().zip(tx.read_many(&macs).await?) {
        if wanted.is_some() && text(mac) == wanted {
            let mac = wanted.unwrap_or_default();
            return Err(Cause::Invalid(format!("vif {devid} of the guest has the address {mac} already")));
        }
    }
    Ok(())
}

/// Reads what the toolstack recorded of a device. Neither the guest nor the backend is trusted
/// with where its directories are and which script is run.
pub(crate) async fn probe(
    client: &Client,
    own: DomId,
    (fe, kind, devid): (DomId, Kind, u32),
) -> Result<Subject, Cause> {
    let id = DeviceId { fe, kind, devid, be: own, be_kind: kind };
    let paths = id.paths()?;
    let lx = &paths.toolstack;
    let keys = [lx.clone(), lx.join("backend")?, lx.join("script")?, lx.join("gatewaydev")?];
    let mut seen = client.read_many(&keys).await?.into_iter().map(text);
    let mut next = || seen.next().flatten();
    let (exists, backend, script, gatewaydev) = (next().is_some(), next(), next(), next());
    if !exists {
        return Err(Cause::NotConnected);
    }
    match backend {
        Some(backend) if backend == *paths.backend => {
            let scripts = Scripts { script, gatewaydev: gatewaydev.unwrap_or_default() };
            Ok(Subject { id, paths, scripts })
        }
        Some(other) => Err(Cause::ForeignBackend(format!("at {other}"))),
        None => Err(Cause::ForeignBackend("not recorded".to_owned())),
    }
}

impl Subject {
    /// Whether the operation of this record still has the device.
    pub(crate) async fn is_ours(&self, store: &Requests, record: &Record) -> Result<bool, Cause> {
        let op = store.read_opt(&self.paths.toolstack.join("op")?).await?;
        Ok(op.as_deref() == Some(record.0.as_bytes()))
    }

    /// Tells the device to close. Who has not left its record yet takes the device over, whoever
    /// had it; who has does so only as long as the record is its own.
    pub(crate) async fn close(
        &self,
        client: &Client,
        (record, left): (&Record, bool),
        frontend: Frontend,
        cancel: &CancellationToken,
    ) -> Result<Closing, Cause> {
        let Paths { frontend: fe, backend: be, toolstack: lx } = &self.paths;
        let anchors = &Anchors::new(self.id.fe, self.id.be)?;
        let keys = &[lx.clone(), be.join("state")?, fe.join("state")?];
        client
            .transaction(|tx| async move {
                if cancel.is_cancelled() {
                    return Err(Cause::Aborted);
                }
                let seen = tx.read_many(keys).await?;
                let gone = seen[0].is_none();
                if gone || (left && !self.is_ours(&tx, record).await?) {
                    return Ok(Closing::NotOurs);
                }
                let be_state = seen[1].as_deref();
                let live = matches!(
                    state(seen[2].as_deref()),
                    Some(XenbusState::Initialised | XenbusState::Connected)
                );
                if frontend == Frontend::DeleteIfIdle
                    && state(be_state) == Some(XenbusState::Initialising)
                    && !live
                {
                    self.remove_tree(&tx, anchors).await?;
                    return Ok(Closing::Destroyed);
                }
                tx.write(&lx.join("op")?, record.0.clone()).await?;
                let Some(value) = be_state else {
                    return Ok(Closing::Missing);
                };
                if frontend == Frontend::Delete || (frontend == Frontend::DeleteIfIdle && !live) {
                    cleanup::remove(&tx, fe, &anchors.frontend).await?;
                }
                tx.write(&be.join("online")?, "0").await?;
                if state(Some(value)) == Some(XenbusState::Closed) {
                    return Ok(Closing::Closed);
                }
                tx.write(&be.join("state")?, XenbusState::Closing.digits()).await?;
                Ok(Closing::Told)
            })
            .await
    }

    /// Removes the device's tree, if its record is ours.
    pub(crate) async fn destroy(&self, client: &Client, record: &Record) -> Result<Destroyed, Cause> {
        let anchors = &Anchors::new(self.id.fe, self.id.be)?;
        client
            .transaction(|tx| async move {
                if !self.is_ours(&tx, record).await? {
                    let gone = tx.read_opt(&self.paths.toolstack).await?.is_none();
                    return Ok(if gone { Destroyed::Gone } else { Destroyed::NotOurs });
                }
                self.remove_tree(&tx, anchors).await?;
                Ok(Destroyed::Gone)
            })
            .await
    }

    async fn remove_tree(&self, tx: &Transaction, anchors: &Anchors) -> Result<(), Cause> {
        cleanup::remove(tx, &self.paths.frontend, &anchors.frontend).await?;
        cleanup::remove(tx, &self.paths.toolstack, &anchors.toolstack).await?;
        cleanup::remove(tx, &self.paths.backend, &anchors.backend).await?;
        Ok(())
    }

    /// Removes the record, if it is ours: nobody works on the device any more.
    pub(crate) async fn settle(&self, client: &Client, record: &Record) -> Result<(), Cause> {
        client
            .transaction(|tx| async move {
                if !self.is_ours(&tx, record).await? {
                    return Err(Cause::Superseded);
                }
                Ok(tx.rm(&self.paths.toolstack.join("op")?).await?)
            })
            .await
    }

    /// Which key a script that succeeded should have written and did not.
    pub(crate) async fn not_reported(&self, client: &Client) -> Result<Option<&'static str>, Cause> {
        let be = &self.paths.backend;
        let keys =
            [be.join("physical-device")?, be.join("physical-device-path")?, be.join("hotplug-status")?];
        let seen = client.read_many(&keys).await?;
        Ok(match self.id.kind {
            Kind::Vbd => (seen[0].is_none() && seen[1].is_none()).then_some("physical-device"),
            Kind::Vif => (seen[2].as_deref() != Some(b"connected")).then_some("hotplug-status=connected"),
        })
    }
}
