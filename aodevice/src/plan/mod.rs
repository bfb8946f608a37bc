//! The devices of a domain as one: all that a new domain gets, or all of one that goes.
//!
//! ```no_run
//! # async fn example(toolstack: xen_aodevice::Toolstack) -> Result<(), Box<dyn std::error::Error>> {
//! use xen_aodevice::Plan;
//! use tokio_util::sync::CancellationToken;
//! use xs_client::DomId;
//!
//! let plan = Plan::destroy(&toolstack, DomId(7)).await?;
//! let mut run = plan.run(&toolstack, &CancellationToken::new());
//! while let Some(progress) = run.next().await {
//!     println!("{progress}");
//! }
//! let outcome = run.finish().await;
//! # Ok(())
//! # }
//! ```
//!
//! All its operations are there before the first of them begins, so that it cannot come to its end while it is
//! still being filled, and one without any ends as well. A failure stops none of those that run beside it; what has not
//! begun begins all the same, within its set, unless all is undone then ([`Plan::undo`]).

mod ending;
mod run;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{try_join, try_join_all};
use futures_util::stream;
use serde::Serialize;
use xs_client::{Client, DomId, Error, Path};

pub use ending::ModelEnd;
pub use run::Run;

use crate::id::domid_number;
use crate::list::recorded;
use crate::operation::place;
use crate::pcidev::PciDev;
use crate::report::Named;
use crate::usbdev::UsbDev;
use crate::{
    Addition, Attachment, BackendKind, Device, DeviceId, Failure, Force, Kind, Preview, Removal, Step,
    Success, Toolstack, Which,
};

/// An operation of a plan.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Planned {
    /// A device is added.
    Add(Arc<Device>, Addition),
    /// A USB device of the host is put into a port of a controller.
    AttachUsb(UsbDev),
    /// A PCI function of the host is put into the bus.
    AttachPci(PciDev),
    /// A device is removed.
    Remove(Which, Removal),
}

impl Planned {
    fn new(attachment: Attachment, addition: Addition) -> Self {
        match attachment {
            Attachment::Device(device) => Self::Add(device, addition),
            Attachment::UsbDev(dev) => Self::AttachUsb(dev),
            Attachment::PciDev(dev) => Self::AttachPci(dev),
        }
    }

    /// What it attaches; `None` if it removes.
    pub fn attachment(&self) -> Option<Attachment> {
        match self {
            Self::Add(device, _) => Some(Attachment::Device(device.clone())),
            Self::AttachUsb(dev) => Some(Attachment::UsbDev(*dev)),
            Self::AttachPci(dev) => Some(Attachment::PciDev(*dev)),
            Self::Remove(..) => None,
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Add(device, _) => device.kind(),
            Self::AttachUsb(_) => Kind::Vusb,
            Self::AttachPci(_) => Kind::Pci,
            Self::Remove(which, _) => which.kind,
        }
    }

    /// Whether what is added becomes part of a device that others become part of, too.
    fn shares_its_device(&self) -> bool {
        matches!(self, Self::AttachUsb(_) | Self::AttachPci(_))
    }
}

/// Operations on the devices of one domain, which are carried out as one.
#[derive(Clone, Debug)]
pub struct Plan {
    fe: DomId,
    operations: Vec<Planned>,
    /// Those that add a device to which [`Plan::numbered`] gave the id that it would get: the device without.
    automatic: BTreeMap<usize, Arc<Device>>,
    /// Which of them are carried out side by side; each set begins when the one before has succeeded.
    stages: Vec<Vec<usize>>,
    /// The domain goes: all that it has, and its device model.
    goes: Option<Goes>,
    /// Directories of devices of kinds that are not served yet.
    left: Vec<String>,
    at_once: usize,
    deadline: Duration,
    undo: bool,
}

/// What is known of the devices of a domain that goes.
#[derive(Clone, Debug)]
struct Goes {
    /// Where they were found, in the order of the operations.
    found: Vec<DeviceId>,
    /// Which of them the device model closes by itself; it is ended when they have had their time.
    of_model: Vec<usize>,
}

impl Plan {
    fn new(fe: DomId, operations: Vec<Planned>) -> Self {
        let stages = vec![(0..operations.len()).collect()];
        Self {
            fe,
            operations,
            automatic: BTreeMap::new(),
            stages,
            goes: None,
            left: Vec::new(),
            at_once: 16,
            deadline: Duration::MAX,
            undo: false,
        }
    }

    /// Adds devices to a new domain, in the order in which a domain is brought up ([`Kind::BRING_UP`]): its disks first.
    /// Those of one kind are added side by side, and the next kind begins when all of the last have
    /// succeeded. USB devices of the host come behind the controllers, and one after the other, as PCI functions do: two at
    /// one time would each make a controller, or wait for the other's change of the bus.
    ///
    /// A device model takes up at its start what is there by then, so it takes two plans to create a domain that has
    /// one: its disks, framebuffers and keyboards with [`WaitFor::Tree`](crate::WaitFor::Tree), and when it runs the
    /// rest: interfaces, whose emulated halves it has made, among them.
    ///
    /// Devices of one kind without ids get whichever is free when it is their turn: see [`Self::numbered`].
    pub fn add(fe: DomId, devices: impl IntoIterator<Item = (impl Into<Attachment>, Addition)>) -> Self {
        let operations = devices.into_iter().map(|(device, addition)| Planned::new(device.into(), addition));
        let operations: Vec<_> = operations.collect();
        let mut stages = Vec::new();
        for kind in Kind::BRING_UP {
            let of_kind = (0..operations.len()).filter(|index| operations[*index].kind() == kind);
            let (shared, alone): (Vec<_>, Vec<_>) =
                of_kind.partition(|index| operations[*index].shares_its_device());
            stages.push(alone);
            stages.extend(shared.into_iter().map(|index| vec![index]));
        }
        stages.retain(|stage| !stage.is_empty());
        Self { stages, ..Self::new(fe, operations) }
    }

    /// Removes all devices of a domain that goes, without its consent, and ends its device model: what that serves
    /// is told to close first, then it is asked to end, and killed if it does not. Devices that have left nothing
    /// but their backend are among them.
    ///
    /// # Errors
    ///
    /// Those of reading which devices there are.
    pub async fn destroy(toolstack: &Toolstack, fe: DomId) -> Result<Self, Error> {
        let (devices, left) = devices_of(toolstack, fe).await?;
        // QEMU's older backends do nothing without their guest: their end is the end of QEMU.
        let own = toolstack.own();
        let closes = |id: &DeviceId| id.be_kind == BackendKind::Qdisk && id.be == own;
        let of_model = devices.iter().enumerate().filter(|(_, device)| closes(device));
        let of_model = of_model.map(|(index, _)| index).collect();
        let removal = Removal::from(Force::AtOnce).adopt(true);
        let removals = devices.iter().map(|id| Planned::Remove(id.which(), removal)).collect();
        let goes = Goes { found: devices, of_model };
        Ok(Self { goes: Some(goes), left, ..Self::new(fe, removals) })
    }

    /// Gives ids to the devices that have none and need one: those that they would get now one after the other, so that
    /// the first interface of a list is the guest's first. Side by side, whichever is first gets the smallest.
    ///
    /// When the plan is carried out, each takes the smallest that is free then, in the same order: one that somebody
    /// else has taken meanwhile is passed over.
    ///
    /// # Errors
    ///
    /// Those of reading which ids are taken.
    pub async fn numbered(mut self, toolstack: &Toolstack) -> Result<Self, Error> {
        let without = self.operations.iter().enumerate().filter_map(|(index, planned)| match planned {
            Planned::Add(device, _) if device.devid().is_none() => Some((index, device.clone())),
            _ => None,
        });
        self.automatic.extend(without);
        let devices = self.operations.iter_mut().filter_map(|planned| match planned {
            Planned::Add(device, _) => Some(Arc::make_mut(device)),
            Planned::AttachUsb(_) | Planned::AttachPci(_) | Planned::Remove(..) => None,
        });
        let mut devices: Vec<_> = devices.collect();
        place::number(toolstack.client(), (self.fe, toolstack.own()), &mut devices).await?;
        Ok(self)
    }

    /// What [`Toolstack::preview`] tells of each of its additions, by its place among the operations. Of a device of the
    /// host it is told whether it could be attached and no more: which port it gets is decided by what comes before it.
    pub async fn previews(
        &self,
        toolstack: &Toolstack,
    ) -> Vec<(usize, Result<Option<Preview>, Box<Failure>>)> {
        let additions = self.operations.iter().enumerate();
        let additions = additions.filter(|(_, planned)| !matches!(planned, Planned::Remove(..)));
        let previews = additions
            .map(|(index, planned)| async move { (index, self.preview(toolstack, index, planned).await) });
        // A few at one time, since each has requests of its own.
        stream::iter(previews).buffered(self.at_once).collect().await
    }

    async fn preview(
        &self,
        toolstack: &Toolstack,
        index: usize,
        planned: &Planned,
    ) -> Result<Option<Preview>, Box<Failure>> {
        let (device, addition) = match planned {
            Planned::Add(device, addition) => (device, *addition),
            Planned::AttachUsb(dev) => return toolstack.check_usb(self.fe, dev).await.map(|()| None),
            Planned::AttachPci(dev) => return toolstack.check_pci(self.fe, dev).await.map(|()| None),
            Planned::Remove(..) => return Ok(None),
        };
        let preview = toolstack.preview(self.fe, device, addition).await;
        match self.automatic.get(&index) {
            // Its id may have been taken meanwhile, which is no hindrance.
            Some(device) if preview.is_err() => toolstack.preview(self.fe, device, addition).await.map(Some),
            _ => preview.map(Some),
        }
    }

    /// So many operations at one time, and no more; 16 if not said.
    #[must_use]
    pub fn at_once(mut self, at_once: usize) -> Self {
        self.at_once = at_once.max(1);
        self
    }

    /// All of it must be done in this time; what is not is cancelled then, and fails with [`Cause::Deadline`](crate::Cause).
    /// `Duration::MAX`, as if not said, means
    /// that only the limits of each operation count.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Asks the owners of operations that are under way on the devices to cancel them.
    #[must_use]
    pub fn take_over(mut self, take_over: bool) -> Self {
        for planned in &mut self.operations {
            match planned {
                Planned::Add(_, addition) => addition.take_over = take_over,
                Planned::Remove(_, removal) => removal.take_over = take_over,
                // There are no records of these.
                Planned::AttachUsb(_) | Planned::AttachPci(_) => {}
            }
        }
        self
    }

    /// If something cannot be added, nothing more is begun, and what was added goes again.
    #[must_use]
    pub fn undo(mut self, undo: bool) -> Self {
        self.undo = undo;
        self
    }

    /// The domain.
    pub fn domain(&self) -> DomId {
        self.fe
    }

    /// The operations. [`Plan::previews`] tells what each addition would do.
    pub fn operations(&self) -> &[Planned] {
        &self.operations
    }

    /// Directories of devices of kinds that are not served yet, which are left alone, and what a domain that has gone has
    /// left of its own, as its console.
    pub fn left(&self) -> &[String] {
        &self.left
    }
}

/// All devices of a domain, by the toolstack's record or by what is left of their backends in this domain; and what
/// is of other kinds.
async fn devices_of(toolstack: &Toolstack, fe: DomId) -> Result<(Vec<DeviceId>, Vec<String>), Error> {
    let (client, own) = (toolstack.client(), toolstack.own());
    let root = Path::new(format!("/libxl/{fe}/device"))?;
    let backends = Path::new(format!("/local/domain/{own}/backend"))?;
    let kinds = client.directory_or_empty(&root);
    let (kinds, backends) = try_join(kinds, client.directory_or_empty(&backends)).await?;
    // Side by side, since a store answers many requests in hardly more time than one.
    let of_kinds = Kind::ALL.map(|kind| {
        let recorded = kinds.iter().any(|name| name == kind.name());
        devices_of_kind(toolstack, fe, (kind, recorded), &backends)
    });
    let left = left_of_domain(client, fe, &kinds);
    let (of_kinds, mut left) = try_join(try_join_all(of_kinds), left).await?;
    for kind in kinds.iter().filter(|kind| Kind::ALL.iter().all(|known| known.name() != **kind)) {
        let of_kind = root.join(kind)?;
        for devid in client.directory_or_empty(&of_kind).await? {
            left.push(format!("{of_kind}/{devid}"));
        }
    }
    Ok((of_kinds.concat(), left))
}

/// What is a domain's own, as its console: it goes with the domain, so it is only left where that has gone without it.
async fn left_of_domain(client: &Client, fe: DomId, kinds: &[String]) -> Result<Vec<String>, Error> {
    let recorded = Kind::ALL.into_iter().filter(|kind| kinds.iter().any(|name| name == kind.name()));
    let own = recorded.flat_map(|kind| (0..kind.info().first_devid).map(move |devid| (kind, devid)));
    let nodes = own.map(|(kind, devid)| Path::new(format!("/libxl/{fe}/device/{kind}/{devid}")));
    let mut nodes = nodes.collect::<Result<Vec<_>, _>>()?;
    if nodes.is_empty() {
        return Ok(Vec::new());
    }
    nodes.push(Path::new(format!("/local/domain/{fe}"))?);
    let mut seen = client.read_many(&nodes).await?;
    let has_home = seen.pop().flatten().is_some();
    let left = nodes.iter().zip(seen).filter(|(_, seen)| !has_home && seen.is_some());
    Ok(left.map(|(node, _)| node.to_string()).collect())
}

/// Those of a kind, which the toolstack has `recorded` or not; `there`: the kinds of backends that are in this domain.
async fn devices_of_kind(
    toolstack: &Toolstack,
    fe: DomId,
    (kind, is_recorded): (Kind, bool),
    there: &[String],
) -> Result<Vec<DeviceId>, Error> {
    let (client, own) = (toolstack.client(), toolstack.own());
    let backends =
        kind.info().backends.iter().filter(|backend| there.iter().any(|name| name == backend.name()));
    let parents = backends.map(|backend| {
        let parent = Path::new(format!("/local/domain/{own}/backend/{backend}/{fe}"));
        async move { Ok::<_, Error>((*backend, client.directory_or_empty(&parent?).await?)) }
    });
    let recorded = async { if is_recorded { recorded(client, fe, kind).await } else { Ok(Vec::new()) } };
    let (mut devices, backends) = try_join(recorded, try_join_all(parents)).await?;
    for (backend, names) in backends {
        let devids = names.iter().filter_map(|name| name.parse().ok());
        for devid in devids.filter(|devid| *devid >= kind.info().first_devid) {
            let which = Which { fe, kind, devid };
            if devices.iter().all(|there| there.which() != which) {
                devices.push(DeviceId::with_backend(which, own, backend));
            }
        }
    }
    Ok(devices)
}

/// What is told while a plan is carried out.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Progress {
    /// An operation takes a step.
    Step(usize, Step),
    /// An operation has ended.
    Ended(usize, Result<Success, Box<Failure>>),
    /// The device model has ended, or not.
    Model(ModelEnd),
    /// What was added is removed again.
    Undone(usize, Result<Success, Box<Failure>>),
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Step(_, step) => step.fmt(f),
            Self::Ended(_, Ok(success)) => write!(f, "{success}: done"),
            Self::Undone(_, Ok(success)) => write!(f, "{success}: removed again"),
            Self::Ended(_, Err(failure)) | Self::Undone(_, Err(failure)) => failure.fmt(f),
            Self::Model(end) => end.fmt(f),
        }
    }
}

/// How an operation of a plan ended.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Ended {
    /// It succeeded.
    Done(Success),
    /// It failed.
    Failed(Box<Failure>),
    /// It was not begun, since another one had failed, or it was cancelled before.
    NotBegun {
        /// The device.
        device: Named,
    },
}

/// How what was added is removed again.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Undone {
    /// Which operation of the plan is undone.
    pub operation: usize,
    /// How its removal ended.
    #[serde(flatten)]
    pub ended: Ended,
}

/// How a plan ended: every outcome.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Outcome {
    /// The domain.
    #[serde(serialize_with = "domid_number")]
    pub domid: DomId,
    /// How each operation ended, in the order of the plan.
    pub devices: Vec<Ended>,
    /// Which of them failed first in time.
    pub first_failure: Option<usize>,
    /// Whether its deadline ended it.
    pub timed_out: bool,
    /// How the removals of what was added ended.
    pub undone: Vec<Undone>,
    /// What became of the device model, if it was to end.
    pub model: Option<ModelEnd>,
    /// Directories of devices of kinds that are not served yet.
    pub left: Vec<String>,
}

impl Outcome {
    /// Whether all that was planned is done.
    pub fn is_done(&self) -> bool {
        let model_is_gone = self.model.as_ref().is_none_or(ModelEnd::is_gone);
        model_is_gone && self.devices.iter().all(|ended| matches!(ended, Ended::Done(_)))
    }

    /// The failure that came first in time.
    pub fn first_failure(&self) -> Option<&Failure> {
        match self.devices.get(self.first_failure?)? {
            Ended::Failed(failure) => Some(failure),
            _ => None,
        }
    }
}
