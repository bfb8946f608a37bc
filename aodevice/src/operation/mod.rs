//! The driver of the machines: one loop that carries out what a machine asks for, and nothing else.
//!
//! | what | where |
//! | --- | --- |
//! | who works on a device: the operation record | [`record`], [`owner`] |
//! | what a step does to the store, as a pure decision | [`steps`] |
//! | reading and writing for it, a transaction a step | [`store`], [`cleanup`] |
//! | waiting, and noticing that the device is lost | [`wait`] |
//! | running scripts, what they say, and what they need to undo their work | [`script`], [`said`], [`saved`], [`files`] |
//! | running a script by hand, as an add or a removal would | [`by_hand`] |
//! | the guest's device model: its end, its log, and what it cannot take | [`model`], [`qmp`] |
//! | what a driver domain does for a device, and that it is gone | [`elsewhere`] |
//! | the daemon that serves file systems | [`daemon`] |
//! | reading files of `/proc` | [`proc`] |
//! | libxl's configuration of the domain | [`entry`] |
//! | where a new device goes, and what an add would do | [`place`], [`preview`] |
//! | what both ends say, for reports | [`observe`] |
//! | changing what is in a CD-ROM drive | [`medium`] |
//! | giving a PCI function of the host to a guest | [`pci`] |
//! | putting a USB device of the host into a port of a controller | [`usbdev`] |
//! | telling of every transition of a machine | [`trace`] |

mod by_hand;
pub(crate) mod cleanup;
pub(crate) mod daemon;
mod elsewhere;
mod entry;
#[cfg(test)]
mod explore;
pub(crate) mod files;
pub(crate) mod medium;
pub(crate) mod model;
pub(crate) mod observe;
pub(crate) mod owner;
pub(crate) mod pci;
pub(crate) mod place;
mod preview;
pub(crate) mod proc;
mod qmp;
pub(crate) mod record;
pub(crate) mod said;
pub(crate) mod saved;
pub(crate) mod script;
pub(crate) mod steps;
mod store;
mod target;
mod trace;
mod usbdev;
mod wait;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;
use xs_client::{DomId, Error};

use self::observe::Texts;
use self::owner::{Owner, UnderWay};
use self::record::{Occupant, Record, Token};
use self::said::Said;
use self::steps::Obstacle;
use self::store::{Depth, Written};
use self::wait::{Cancel, Watched};
use crate::kind::Recorded;
use crate::libxl::Userdata;
use crate::machine::{Action, Created, Event, Found, Machine, Purpose, Step};
use crate::report::Named;
use crate::{
    BackendKind, Cause, Device, DeviceId, DriverDomainFault, Failure, Guest, Observation, Operation, Success,
    Toolstack, Warning, Which,
};

pub use self::by_hand::{ByHand, ByHandPreview, PlannedRun, Ran, Rerun};
pub use self::medium::{Medium, MediumChange, MediumPreview};
pub(crate) use self::model::{Life, Model};
pub use self::pci::PciHost;
pub use self::preview::{PlannedScript, PlannedWrite, Preview};
pub use self::qmp::MonitorError;
pub(crate) use self::store::text;
pub use self::target::{RunBy, Target};
pub use self::usbdev::{HostUsb, UsbHost, UsbInterface};
pub(crate) use self::{
    files::sequence,
    saved::{SEQUENCE, file_of},
};

/// How long looking at a device that failed may take, and noting that it was left: the store may be
/// what failed.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// One operation under way.
pub(crate) struct Job<'a> {
    toolstack: &'a Toolstack,
    device: Named,
    record: Record,
    begun: Instant,
    id: Option<DeviceId>,
    /// Where the device was a moment ago: it is looked there before it is looked for.
    found: Option<DeviceId>,
    /// The guest as it was checked a moment ago.
    guest: Option<(Guest, Option<Userdata>)>,
    /// BE's keys after the scripts of the add have run.
    made: Recorded,
    /// The copy of BE's keys that was saved for the scripts of the add, with what was made of the target already before
    /// they ran.
    copy: Recorded,
    /// Whether an operation is on record that did not come to its end.
    resumes: bool,
    /// What is watched from the first wait on.
    watched: Watched,
    /// Since when other owners have been waited for.
    owner_awaited: Option<Instant>,
    /// The operation of an owner who cannot be seen, and who did not answer when he was asked to cancel it.
    given_up: Option<Token>,
    /// What we have said in BE of the failure of a script that did not say it.
    told: Said,
    /// The device's error texts as they stood before the operation began.
    stood: Texts,
    observed: Observation,
    /// What the device model that is to serve the device says from now on.
    model_log: Option<model::Log>,
    /// The guest's device model is ended beside the operation; cancelled if it does not end.
    model_survives: Option<CancellationToken>,
    /// The process of that one.
    ending: Option<model::Process>,
    /// The image that the device model has open, as the operation began.
    image: Option<model::Image>,
    _under_way: UnderWay,
}

impl<'a> Job<'a> {
    pub(crate) fn new(toolstack: &'a Toolstack, operation: Operation, device: Named) -> Self {
        let record = Record::new(operation, Owner::of_this_process(toolstack.own));
        Self {
            toolstack,
            device,
            begun: Instant::now(),
            id: None,
            found: None,
            guest: None,
            made: Recorded::new(),
            copy: Recorded::new(),
            resumes: false,
            watched: Watched::default(),
            owner_awaited: None,
            given_up: None,
            told: Said::default(),
            stood: Texts::default(),
            observed: Observation::default(),
            model_log: None,
            model_survives: None,
            ending: None,
            image: None,
            _under_way: UnderWay::new(record.token),
            record,
        }
    }

    /// The same of a device that was `found` a moment ago, beside which the guest's device model is ended: that is the
    /// evidence that it has let go of the device. `survives`: cancelled if it does not end.
    pub(crate) fn of_domain(self, found: Option<DeviceId>, survives: CancellationToken) -> Self {
        Self { found, model_survives: Some(survives), ..self }
    }

    /// Drives a machine from its begin to its end.
    pub(crate) async fn drive(
        mut self,
        mut machine: impl Machine,
        cancel: &CancellationToken,
    ) -> Result<Success, Box<Failure>> {
        let mut entered = self.begun;
        let mut action = self.give(&mut machine, Event::Begin, &mut entered);
        while action != Action::Finish {
            self.tell(&machine, machine.has_told());
            let cancel = machine.is_cancellable().then_some(cancel);
            let event = self.carry_out(action, cancel).await;
            action = self.give(&mut machine, event, &mut entered);
        }
        self.tell(&machine, machine.has_told());
        self.finish(machine.outcome())
    }

    /// Tells what is being done, and whether the backend has been told to close.
    fn tell(&self, doing: &dyn std::fmt::Display, told: bool) {
        if let Some(observer) = &self.toolstack.observer {
            observer(&crate::Step {
                device: self.device.clone(),
                operation: self.record.operation,
                elapsed: self.begun.elapsed(),
                doing: doing.to_string(),
                told,
                placed: self.id.is_some(),
            });
        }
    }

    async fn carry_out(&mut self, action: Action, cancel: Cancel<'_>) -> Event {
        let client = &self.toolstack.client;
        match action {
            Action::Check(fe, device, wait_for) => {
                let checked = self.toolstack.check(fe, &device, wait_for);
                let mut checked = wait::unless_cancelled(checked, cancel).await;
                if let Ok((guest, _)) = &checked
                    && device.as_spec().backend(guest) == BackendKind::Xen9pfs
                    && !guest.is_remote()
                    && let Err(cause) = self.run_9pfsd(cancel).await
                {
                    checked = Err(cause);
                }
                Event::Checked(checked.map(|guest| self.guest = Some(guest)))
            }
            Action::Create(fe, device) => Event::Created(self.create(fe, &device, cancel).await),
            Action::Probe { which, adopt } => {
                let probed = async {
                    let look = async |id: DeviceId| {
                        let run_by = self.toolstack.run_by(id.be);
                        let model = async {
                            // Of a device model in another domain nothing can be seen.
                            if run_by == RunBy::Toolstack { Model::of(client, &id).await } else { Ok(None) }
                        };
                        tokio::join!(
                            store::probe(client, id, run_by, adopt),
                            self.toolstack.config_of(which.fe),
                            model,
                            Texts::read(client, &id),
                        )
                    };
                    let seen = match self.found.take() {
                        Some(id) => Some(look(id).await).filter(|(probed, ..)| probed.is_ok()),
                        None => None,
                    };
                    let (probed, config, model, stood) = match seen {
                        Some(seen) => seen,
                        None => look(store::identify(client, self.toolstack.own, which).await?).await,
                    };
                    let probed = match probed {
                        Err(cause @ Cause::NoSuchDevice) => {
                            let target = self.toolstack.entry_alone(which).await?.ok_or(cause)?;
                            return Ok(Found { target, occupant: None });
                        }
                        probed => probed?,
                    };
                    let target = probed.target.with_config(config?);
                    self.look_at_model(model?, &target).await;
                    self.resumes = probed.op.is_some();
                    self.stood = stood?;
                    let occupant = match probed.op {
                        Some(op) => Some(self.occupant(op).await?),
                        None => None,
                    };
                    Ok(Found { target, occupant })
                };
                let probed = wait::unless_cancelled(probed, cancel).await;
                Event::Probed(probed.inspect(|found| self.know(&found.target)))
            }
            Action::AwaitOwner { which, occupant, take_over } => {
                Event::Released(self.await_owner(which, occupant, take_over, cancel).await)
            }
            Action::On(target, step) => self.take(&target, step, cancel).await,
            Action::Finish => Event::Begin,
        }
    }

    /// Looks what a device's model has of it.
    async fn look_at_model(&mut self, model: Option<Model>, target: &Target) {
        let Some(Life::Alive(process)) = model.map(|model| model.life(target.id().fe)) else { return };
        if self.model_survives.is_some() {
            self.ending = Some(process);
        } else {
            self.image = model::Image::of(process, target, self.toolstack.limits.file).await;
        }
    }

    /// Takes a step on a device that is known.
    async fn take(&mut self, target: &Target, step: Step, cancel: Cancel<'_>) -> Event {
        let (client, record) = (&self.toolstack.client, &self.record);
        let token = record.token;
        match step {
            Step::Await { node, until, limit, by_guest } => {
                Event::Waited(self.wait(target, node, until, (limit, by_guest), cancel).await)
            }
            Step::Run { purpose: Purpose::Add, index } => self.run_unless_lost(target, index, cancel).await,
            Step::Run { purpose, index } => self.run_remove(target, purpose, index, cancel).await,
            Step::Close(claim, frontend) => {
                let held = self.image.is_some();
                let closing = store::close(client, target, record, (&claim, frontend, held), cancel);
                Event::Told(wait::unless_hung(closing, cancel).await)
            }
            Step::CloseForServer => {
                let closed = store::close_for_server(client, target, record, cancel);
                Event::ClosedForServer(wait::unless_hung(closed, cancel).await)
            }
            Step::Destroy => {
                let _turn = self.toolstack.turn().await;
                // A device model that ends removes what it serves, so that is asked for with all else.
                let depth = if self.ending.is_some() { Depth::Made } else { Depth::Standing };
                Event::Destroyed(store::destroy(client, target, record, depth).await)
            }
            Step::Enter(device) => Event::Entered(self.enter(target, &device, cancel).await),
            Step::Strike => Event::Struck(self.strike(target, cancel).await),
            Step::Settle { served } => Event::Settled(self.settle(target, served).await),
            Step::Observe => {
                // A store that cannot be read now has failed before, and that is the report.
                let client = client.with_deadline(LAST_WORDS);
                self.observed = observe::observe(&client, &*self.toolstack.facts, target, &self.stood)
                    .await
                    .unwrap_or_default();
                // What we have said is nothing that was observed.
                let is_own = |text: &String, own: &Option<String>| own.as_ref() == Some(text);
                let Self { observed, told, .. } = self;
                observed.hotplug_error.take_if(|error| is_own(error, &told.error));
                observed.hotplug_status.take_if(|status| is_own(status, &told.status));
                Event::Observed
            }
            Step::Leave => {
                let client = client.with_deadline(LAST_WORDS);
                let left = store::step(&client, target, record, (None, Depth::Standing), |seen| {
                    Ok(((), steps::leave(seen, token)))
                });
                if !matches!(timeout(LAST_WORDS, left).await, Ok(Ok(()))) {
                    debug!("it cannot be noted that the operation ended");
                }
                Event::Left
            }
        }
    }

    async fn create(&mut self, fe: DomId, device: &Arc<Device>, cancel: Cancel<'_>) -> Created {
        let client = &self.toolstack.client;
        let seen = self.guest.take();
        self.made.clear();
        self.copy.clear();
        let ready = async {
            let (guest, config) = match seen {
                Some(seen) => seen,
                None => self.toolstack.guest(fe, device).await?,
            };
            let by_model = guest.is_served_by_model(device);
            let log = if by_model { self.toolstack.model_log(fe).await? } else { None };
            if let Some(config) = &config {
                self.strike_stale(config, (fe, &guest), device, cancel).await?;
            }
            Ok((guest, log, config.filter(|_| self.toolstack.enters)))
        };
        let (guest, log, config) = match wait::unless_cancelled(ready, cancel).await {
            Ok(ready) => ready,
            Err(cause) => return Created::Failed(cause, None),
        };
        self.model_log = log;
        let written = Mutex::new(None);
        let created = async {
            let _turn = self.toolstack.turn().await;
            let run_by = self.toolstack.run_by(guest.be);
            store::create(client, fe, (device, &guest, run_by), &self.record, &written, cancel).await
        };
        let created = wait::unless_hung(created, cancel).await;
        let mut written = written.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.stood = written.as_mut().map(|(_, stood)| std::mem::take(stood)).unwrap_or_default();
        match (created, written) {
            (Ok(Written::Done(target)), _) => {
                self.know(&target);
                Created::Done(target.with_config(config))
            }
            (Ok(Written::Blocked(which, obstacle)), _) => self.blocked(which, obstacle).await,
            (
                Err(
                    cause @ (Cause::Store(Error::Timeout { .. } | Error::Disconnected { .. })
                    | Cause::Aborted),
                ),
                Some((target, _)),
            ) => {
                self.know(&target);
                Created::Unsure(target.with_config(config), cause)
            }
            (Err(cause), _) => Created::Failed(cause, None),
        }
    }

    async fn blocked(&mut self, which: Which, obstacle: Obstacle) -> Created {
        let Toolstack { client, own, .. } = self.toolstack;
        let cause = match obstacle {
            Obstacle::NoHome => return Created::Failed(Cause::NoSuchDomain(which.fe.to_string()), None),
            Obstacle::NoBackendHome(be) => {
                let fault = DriverDomainFault::Gone;
                return Created::Failed(Cause::DriverDomain { be, fault }, None);
            }
            Obstacle::Stale => return Created::Stale(which),
            Obstacle::Occupied(text) => {
                return match self.occupant(text).await {
                    Ok(occupant) => Created::Occupied(which, occupant),
                    Err(cause) => Created::Failed(cause, None),
                };
            }
            Obstacle::Exists => Cause::Exists,
            Obstacle::Unfinished(text) => match self.occupant(text.clone()).await {
                Ok(occupant) if occupant.alive => return Created::Occupied(which, occupant),
                Ok(_) => Cause::Unfinished,
                Err(cause) => return Created::Failed(cause, None),
            },
            Obstacle::Alive(state) => Cause::Unrecorded(state),
        };
        // The device that is there is what the report is about.
        let probed = async {
            let id = store::identify(client, *own, which).await?;
            store::probe(client, id, self.toolstack.run_by(id.be), true).await
        };
        let there = probed.await.ok().map(|probed| probed.target);
        if let Some(there) = &there {
            // Nothing was done to it, so no error there is of this operation.
            self.stood = Texts::read(client, &there.id()).await.unwrap_or_default();
        }
        Created::Failed(cause, there)
    }

    /// Whose record this is, and whether he is alive.
    async fn occupant(&self, text: String) -> Result<Occupant, Cause> {
        let record = Record::parse(&text);
        let me = self.record.owner.as_ref();
        let life = record.as_ref().zip(me).map(|(record, me)| owner::life(record, me));
        let alive = match life {
            None | Some(owner::Life::Dead) => false,
            Some(owner::Life::Alive) => true,
            Some(_) if record.as_ref().map(|record| record.token) == self.given_up => false,
            Some(owner::Life::Unseen) => true,
            Some(owner::Life::WithDomain(domid)) => {
                let home = xs_client::Path::new(format!("/local/domain/{domid}"))?;
                self.toolstack.client.read_opt(&home).await?.is_some()
            }
        };
        let seen = life == Some(owner::Life::Alive);
        Ok(Occupant { text, record, alive, seen })
    }

    async fn settle(&self, target: &Target, served: bool) -> Result<(), Cause> {
        let (client, record) = (&self.toolstack.client, &self.record);
        let finished = saved::finished(target.paths(), &self.copy);
        let settled = store::step_and(client, target, record, (None, Depth::Standing), finished, |seen| {
            Ok(((), steps::settle(seen, record.token, served)?))
        });
        let id = target.id();
        let (settled, swept) = tokio::join!(settled, saved::sweep(client, &id));
        if let Err(cause) = swept {
            debug!(%cause, "copies of devices that are gone cannot be removed");
        }
        settled
    }

    fn know(&mut self, target: &Target) {
        if self.id != Some(target.id()) {
            self.watched = Watched::default();
        }
        self.id = Some(target.id());
        self.device.devid = Some(target.id().devid);
    }

    fn finish(self, (outcome, warnings): (Result<(), Cause>, Vec<Warning>)) -> Result<Success, Box<Failure>> {
        let elapsed = self.begun.elapsed();
        let cause = match (outcome, self.id) {
            (Ok(()), Some(id)) => return Ok(Success { id, part: None, warnings, elapsed }),
            (Ok(()), None) => Cause::NoSuchDevice,
            (Err(cause), _) => cause,
        };
        Err(Box::new(Failure {
            operation: self.record.operation,
            device: self.device,
            cause,
            observed: self.observed,
            warnings,
            elapsed,
        }))
    }
}
