//! Giving a USB device of the host to a guest: putting it into a port of one of the guest's controllers.
//!
//! The device has no directory of its own, so there is no operation record and no machine of the kind in
//! [`machine`](crate::machine). In which order the store and the host are changed is a [`Course`], a plain value; which
//! port a device gets, and that nobody else has it, is decided in [`ports`]; the host's side is a [`UsbHost`].

mod course;
mod host;
mod ports;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use xs_client::DomId;

use self::host::Sysfs;
pub use self::host::{HostUsb, UsbHost, UsbInterface};

use self::course::{Act, Course, Heard, Service};
use self::host::USBBACK;
use self::ports::{Claimed, Drivers, Server, Slot};
use super::Job;
use super::files::blocking;
use super::wait::{Cancel, unless_cancelled};
use crate::libxl::{self, Userdata};
use crate::report::{Failure, Named, Operation, Part, Success};
use crate::usbctrl::UsbCtrl;
use crate::usbdev::{HostAddress, Port, UsbDev};
use crate::{Cause, Device, DeviceId, Force, Kind, Toolstack, WaitFor, Warning, guest};

impl Toolstack {
    /// Gives a USB device of the host to a guest. The success tells the controller and the port ([`Part::Port`]).
    ///
    /// It goes into the port that is said, or the first that is free. A guest that has none gets a controller first, as
    /// [`UsbCtrl`] is by default. Where usbback serves the controller it becomes the driver of each of the device's
    /// interfaces, and the drivers that had them are noted, as libxl does. Where the device model does (`qusb`), it opens
    /// the device as soon as the port names it; whether it can is in its log alone. Where libxl keeps a configuration of
    /// the guest, the device is entered into it.
    ///
    /// # Errors
    ///
    /// On failure, and when `cancel` is cancelled, all is as before, with the drivers that the interfaces had; what could
    /// not be given back is among the failure's warnings. A device that a guest has already is refused
    /// ([`Cause::Assigned`]), and so is a hub.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the port keeps the device, which may be usbback's in part: detach it. Prefer to cancel.
    pub async fn attach_usb(
        &self,
        fe: DomId,
        dev: &UsbDev,
        cancel: &CancellationToken,
    ) -> Result<Success, Box<Failure>> {
        let mut work = Work::attaching(self, fe, *dev);
        let outcome = Box::pin(work.follow(Course::attach(), cancel)).await;
        work.finish(outcome)
    }

    /// Sees that a USB device of the host could be given to a guest. Nothing is changed.
    ///
    /// # Errors
    ///
    /// What [`Self::attach_usb`] would fail with before it changes anything, but for the want of a port: controllers
    /// may come before the device does.
    pub async fn check_usb(&self, fe: DomId, dev: &UsbDev) -> Result<(), Box<Failure>> {
        let mut work = Work::attaching(self, fe, *dev);
        let looked = async {
            work.look(None).await?;
            match &work.device {
                Some(device) => ports::is_free(&self.client, device).await,
                None => Err(Cause::NoSuchDevice),
            }
        };
        match looked.await {
            Ok(()) => Ok(()),
            Err(cause) => work.job.finish((Err(cause), Vec::new())).map(drop),
        }
    }

    /// Takes a USB device of the host from a guest, by its port.
    ///
    /// The guest is not asked, and sees it unplugged. The drivers that its interfaces had get them back. An attach that
    /// died is gone on with so: whatever was done already is done again.
    ///
    /// # Errors
    ///
    /// If usbback keeps an interface the port keeps the device; detach it again then.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, or it is cancelled, the port keeps the device.
    pub async fn detach_usb(
        &self,
        fe: DomId,
        port: Port,
        cancel: &CancellationToken,
    ) -> Result<Success, Box<Failure>> {
        let Port { controller, port } = port;
        let name = format!("{controller}, port {port}");
        let named = Named { fe, kind: Kind::Vusb, devid: Some(controller), name };
        let dev = UsbDev::new(HostAddress { bus: 0, device: 0 });
        let dev = UsbDev { controller: Some(controller), port: Some(port), ..dev };
        let mut work = Work::new(Job::new(self, Operation::Detach, named), fe, dev);
        let outcome = Box::pin(work.follow(Course::detach(), cancel)).await;
        work.finish(outcome)
    }

    /// Takes a USB device that was attached a moment ago from its port, and the controller that was made for it.
    pub(crate) async fn take_back_usb(
        &self,
        id: DeviceId,
        (port, made_controller): (u32, bool),
    ) -> Result<Success, Box<Failure>> {
        let port = Port { controller: id.devid, port };
        let mut detached = self.detach_usb(id.fe, port, &CancellationToken::new()).await?;
        if made_controller {
            detached.warnings.extend(self.take_back_controller(id).await);
        }
        Ok(detached)
    }

    /// Removes a controller that was made for a device. Whoever has a device there by now has found the controller, and
    /// did not ask for one of his own.
    async fn take_back_controller(&self, id: DeviceId) -> Option<Warning> {
        let failure = self.take_back(id, Force::AfterTimeout).await.err()?;
        let step = "removing the controller that was made for it";
        let is_kept = matches!(failure.cause, Cause::Assigned { .. });
        (!is_kept).then_some(Warning::LeftBehind { step, cause: failure.cause })
    }

    /// Removes what was added a moment ago, but for a USB controller into which somebody has put a device meanwhile.
    pub(crate) async fn take_back(&self, id: DeviceId, force: Force) -> Result<Success, Box<Failure>> {
        if id.kind == Kind::Vusb
            && let Err(cause) = ports::close(&self.client, (id.fe, self.own), id.devid).await
        {
            let job = Job::new(self, Operation::Detach, Named::of_id(id.which()));
            return job.finish((Err(cause), Vec::new()));
        }
        self.remove(id.fe, (id.kind, id.devid), force, &CancellationToken::new()).await
    }

    /// Takes all USB devices from a controller that is to be removed: what usbback had of them would be nobody's.
    pub(crate) async fn empty_usb_controller(
        &self,
        fe: DomId,
        controller: u32,
        cancel: &CancellationToken,
    ) -> Result<(), Box<Failure>> {
        // A store that cannot be read fails the removal, which tells of it.
        let occupied = ports::occupied(&self.client, (fe, self.own), controller).await.unwrap_or_default();
        for port in occupied {
            match self.detach_usb(fe, Port { controller, port }, cancel).await {
                Ok(_) => {}
                Err(failure) if matches!(failure.cause, Cause::NoSuchDevice) => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }
}

/// A change of a port under way.
struct Work<'a> {
    job: Job<'a>,
    fe: DomId,
    dev: UsbDev,
    /// The device, as the host has it.
    device: Option<HostUsb>,
    slot: Option<Slot>,
    drivers: Drivers,
    /// The controller that was made for it.
    made: Option<u32>,
    config: Option<Userdata>,
}

impl<'a> Work<'a> {
    fn new(job: Job<'a>, fe: DomId, dev: UsbDev) -> Self {
        Self { job, fe, dev, device: None, slot: None, drivers: Drivers::new(), made: None, config: None }
    }

    fn attaching(toolstack: &'a Toolstack, fe: DomId, dev: UsbDev) -> Self {
        let named = Named::of_usb(fe, &dev);
        Self::new(Job::new(toolstack, Operation::Attach, named), fe, dev)
    }

    fn finish(self, outcome: (Result<(), Cause>, Vec<Warning>)) -> Result<Success, Box<Failure>> {
        let part = self.slot.map(|slot| Part::Port { port: slot.port, made_controller: self.made.is_some() });
        Ok(Success { part, ..self.job.finish(outcome)? })
    }

    /// Does what a course asks for.
    async fn follow(
        &mut self,
        mut course: Course,
        cancel: &CancellationToken,
    ) -> (Result<(), Cause>, Vec<Warning>) {
        let mut act = course.on(Heard::Begin);
        while act != Act::Finish {
            let cancel = course.is_cancellable().then_some(cancel);
            let heard = if cancel.is_some_and(CancellationToken::is_cancelled) {
                Heard::Cancelled
            } else {
                self.carry_out(act, cancel).await
            };
            act = course.on(heard);
        }
        let (outcome, mut warnings) = course.outcome();
        if let (Err(_), Some(devid)) = (&outcome, self.made) {
            let id = DeviceId::new(ports::which(self.fe, devid), self.job.toolstack.own);
            warnings.extend(self.job.toolstack.take_back_controller(id).await);
        }
        (outcome, warnings)
    }

    async fn carry_out(&mut self, act: Act, cancel: Cancel<'_>) -> Heard {
        match act {
            Act::Look if self.job.record.operation == Operation::Detach => {
                Heard::Served(self.find(cancel).await)
            }
            Act::Look => Heard::Done(self.look(cancel).await),
            Act::Claim => Heard::Served(self.claim(cancel).await),
            Act::Take(index) => {
                self.job.tell(&"giving the device to usbback", false);
                Heard::Done(self.take(index).await)
            }
            Act::Enter => Heard::Done(self.enter(cancel).await),
            Act::Release(index) => {
                self.job.tell(&"taking the device from usbback", false);
                Heard::Done(self.release(index).await)
            }
            Act::GiveBack(index) => Heard::Done(self.give_back(index).await),
            Act::Free => {
                self.job.tell(&"emptying the port", false);
                let freed = match &self.slot {
                    Some(slot) => ports::free(&self.job.toolstack.client, slot).await,
                    None => Ok(()),
                };
                Heard::Done(freed)
            }
            Act::Strike => Heard::Done(self.strike().await),
            Act::Finish => Heard::Done(Ok(())),
        }
    }

    /// What the host does, in a thread.
    async fn host<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn UsbHost) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, Cause> {
        let limit = self.job.toolstack.limits.file;
        let host = self.job.toolstack.usb_host();
        match blocking(limit, move || work(&*host)).await {
            Some(done) => done.map_err(|error| Cause::Host(error.to_string())),
            None => Err(Cause::HostSilent(limit)),
        }
    }

    /// The device that is asked for, which the host must have.
    async fn look(&mut self, cancel: Cancel<'_>) -> Result<(), Cause> {
        let (toolstack, address) = (self.job.toolstack, self.dev.host);
        self.job.tell(&"looking at the device", false);
        let looked = async {
            guest::must_run(&toolstack.client, self.fe).await?;
            toolstack.check_config(self.fe, Kind::Vusb).await?;
            let config = toolstack.config_of(self.fe).await?;
            let devices = self.host(|host| host.devices()).await?;
            Ok((config, devices))
        };
        let (config, devices) = unless_cancelled(looked, cancel).await?;
        let found = devices.into_iter().find(|device| device.address == address);
        let found = found.ok_or_else(|| Cause::NoHostDevice(format!("USB device {address}")))?;
        if found.is_hub || !ports::is_bus_id(&found.bus_id) {
            return Err(Cause::Invalid(format!(
                "the USB device {address} is a hub, which no guest can have"
            )));
        }
        (self.config, self.device) = (config, Some(found));
        Ok(())
    }

    async fn claim(&mut self, cancel: Cancel<'_>) -> Result<Service, Cause> {
        let Some(device) = self.device.clone() else { return Err(Cause::NoSuchDevice) };
        let toolstack = self.job.toolstack;
        let (client, own) = (&toolstack.client, toolstack.own);
        let has_usbback = self.host(|host| Ok(host.has_driver(USBBACK))).await?;
        loop {
            self.job.tell(&"looking for a port", false);
            match ports::claim(client, (self.fe, own), &self.dev, &device, has_usbback).await? {
                Claimed::Port(slot) => {
                    (self.job.id, self.job.device.devid) = (Some(slot.id), Some(slot.id.devid));
                    let service = match slot.server {
                        Server::Usbback => Service::Usbback { interfaces: device.interfaces.len() },
                        Server::DeviceModel => Service::DeviceModel,
                    };
                    (self.slot, self.drivers) = (Some(slot), ports::drivers_of(&device));
                    return Ok(service);
                }
                Claimed::NoPort => self.make_controller(cancel).await?,
                Claimed::Occupied(which, op) => {
                    let occupant = self.job.occupant(op).await?;
                    if !occupant.alive {
                        return Err(Cause::Unfinished);
                    }
                    self.job.tell(&"waiting for another operation on the controller", false);
                    self.job.await_owner(which, occupant, false, cancel).await?;
                }
            }
        }
    }

    /// Makes a controller, for a guest that has no port.
    async fn make_controller(&mut self, cancel: Cancel<'_>) -> Result<(), Cause> {
        if self.made.is_some() {
            // Others took all of its ports.
            return Err(Cause::Taken);
        }
        self.job.tell(&"making a controller", false);
        let (toolstack, never) = (self.job.toolstack, CancellationToken::new());
        let controller = Device::UsbCtrl(UsbCtrl::default());
        match toolstack.add(self.fe, &controller, WaitFor::Script, cancel.unwrap_or(&never)).await {
            Ok(success) => {
                self.made = Some(success.id.devid);
                Ok(())
            }
            Err(failure) => {
                self.job.observed = failure.observed;
                Err(failure.cause)
            }
        }
    }

    /// What the port has.
    async fn find(&mut self, cancel: Cancel<'_>) -> Result<Service, Cause> {
        let toolstack = self.job.toolstack;
        let (controller, port) = (self.dev.controller.unwrap_or_default(), self.dev.port.unwrap_or_default());
        let which = ports::which(self.fe, controller);
        self.job.tell(&"looking at the port", false);
        let found = async {
            let found = ports::find(&toolstack.client, (which, toolstack.own), port).await?;
            Ok((found, toolstack.config_of(self.fe).await?))
        };
        let ((slot, drivers), config) = unless_cancelled(found, cancel).await?;
        self.job.id = Some(slot.id);
        if slot.server == Server::Usbback {
            let bus_id = slot.bus_id.clone();
            let devices = unless_cancelled(self.host(|host| host.devices()), cancel).await?;
            self.device = devices.into_iter().find(|device| device.bus_id == bus_id);
        }
        (self.slot, self.drivers, self.config) = (Some(slot), drivers, config);
        // One that was unplugged has no interfaces.
        let interfaces = self.device.as_ref().map_or(0, |device| device.interfaces.len());
        Ok(Service::Usbback { interfaces })
    }

    fn interface(&self, index: usize) -> Option<String> {
        Some(self.device.as_ref()?.interfaces.get(index)?.name.clone())
    }

    /// Gives an interface to usbback.
    async fn take(&self, index: usize) -> Result<(), Cause> {
        let Some(name) = self.interface(index) else { return Ok(()) };
        self.host(move |host| {
            match driver(host, &name)?.as_deref() {
                Some(USBBACK) => return Ok(()),
                Some(other) => host.unbind(&name, other)?,
                None => {}
            }
            host.bind(&name, USBBACK)
        })
        .await
    }

    /// Takes an interface from usbback, if that has it.
    async fn release(&self, index: usize) -> Result<(), Cause> {
        let Some(name) = self.interface(index) else { return Ok(()) };
        self.host(move |host| {
            if driver(host, &name)?.as_deref() == Some(USBBACK) {
                host.unbind(&name, USBBACK)
            } else {
                Ok(())
            }
        })
        .await
    }

    /// Gives an interface that has no driver back to the one that it had.
    async fn give_back(&self, index: usize) -> Result<(), Cause> {
        let name = self.interface(index).and_then(|name| Some((self.drivers.get(&name)?.clone(), name)));
        let Some((old, name)) = name else { return Ok(()) };
        self.host(move |host| if driver(host, &name)?.is_none() { host.bind(&name, &old) } else { Ok(()) })
            .await
    }

    async fn enter(&self, cancel: Cancel<'_>) -> Result<(), Cause> {
        let Some((config, slot)) = self.config.as_ref().zip(self.slot.as_ref()) else { return Ok(()) };
        let port = Port { controller: slot.id.devid, port: slot.port };
        let entry = self.dev.in_port(port).libxl();
        let wanted = async {
            if self.is_of(config).await? && ports::holds(&self.job.toolstack.client, slot).await? {
                Ok(true)
            } else {
                Err(Cause::Taken)
            }
        };
        self.job
            .change(config, wanted, move |config: &mut _| libxl::enter_usb(config, port, entry), cancel)
            .await
    }

    async fn strike(&self) -> Result<(), Cause> {
        let Some((config, slot)) = self.config.as_ref().zip(self.slot.as_ref()) else { return Ok(()) };
        let port = Port { controller: slot.id.devid, port: slot.port };
        let wanted = async {
            // Somebody may have put another device there meanwhile, or this one again.
            let (which, own) = (slot.id.which(), self.job.toolstack.own);
            let found = ports::find(&self.job.toolstack.client, (which, own), slot.port).await;
            Ok(found.is_err() && self.is_of(config).await?)
        };
        self.job.change(config, wanted, move |config: &mut _| libxl::strike_usb(config, port), None).await
    }

    /// Whether the guest has this configuration still.
    async fn is_of(&self, config: &Userdata) -> Result<bool, Cause> {
        Ok(self.job.toolstack.named_config(self.fe).await?.as_ref() == Some(config))
    }
}

/// The driver that has an interface now. One that is gone has none, and no driver takes it.
fn driver(host: &dyn UsbHost, name: &str) -> std::io::Result<Option<String>> {
    let devices = host.devices()?;
    let mut interfaces = devices.into_iter().flat_map(|device| device.interfaces);
    Ok(interfaces.find(|interface| interface.name == name).and_then(|interface| interface.driver))
}

impl Toolstack {
    /// With someone else to tell of the host's USB devices: Linux by sysfs if not said.
    #[must_use]
    pub fn with_usb_host(mut self, host: Arc<dyn UsbHost>) -> Self {
        self.usb_host = Some(host);
        self
    }

    fn usb_host(&self) -> Arc<dyn UsbHost> {
        self.usb_host.clone().unwrap_or_else(|| Arc::new(Sysfs::new(&self.sys_dir)))
    }
}
