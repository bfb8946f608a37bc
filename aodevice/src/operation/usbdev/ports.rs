//! The ports of USB controllers in the store: which is free, who has a device already, and the writing of both.
//!
//! A port's node is in BE, or in LX where the controller has no backend; it holds the bus id of a device of the host, or
//! nothing. All of these nodes are the toolstack's own, in all guests, so a claim reads them all in its transaction: two
//! who want the same device conflict, and the second sees who has it.

use std::collections::BTreeMap;

use futures_util::future::try_join_all;
use xs_client::{Client, DomId, Error, Path, Request, Requests};

use super::host::{HostUsb, USBBACK};
use crate::operation::store::{text, transact};
use crate::usb::{UsbController, recorded};
use crate::usbdev::UsbDev;
use crate::{Cause, DeviceId, Kind, Which};

/// The drivers that a device's interfaces had before usbback, by the names of the interfaces.
pub(super) type Drivers = BTreeMap<String, String>;

/// Where drivers are, as libxl notes them.
const DRIVERS: &str = "/sys/bus/usb/drivers/";

/// What serves a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Server {
    Usbback,
    DeviceModel,
}

/// A port that has a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) id: DeviceId,
    pub(super) port: u32,
    pub(super) bus_id: String,
    pub(super) server: Server,
    node: Path,
}

impl Slot {
    fn new(controller: &UsbController, port: u32, bus_id: &str, own: DomId) -> Result<Self, Cause> {
        let id = controller.id();
        let server = match controller.usb_type.as_deref() {
            Some("pv") => Server::Usbback,
            Some("qusb") => Server::DeviceModel,
            Some("devicemodel") => {
                let what = "a USB device at a controller of type=devicemodel".to_owned();
                return Err(Cause::NotSupported { what, needs: "the device model's monitor (QMP)" });
            }
            other => return Err(Cause::Unsupported(format!("type={}", other.unwrap_or_default()))),
        };
        let place = controller.backend_path.as_deref().unwrap_or_default();
        let backend = id.backend()?;
        if *place != *backend || id.be != own {
            return Err(Cause::ForeignBackend(format!("at {place}")));
        }
        let node = backend.join(format!("port/{port}"))?;
        Ok(Self { id, port, bus_id: bus_id.to_owned(), server, node })
    }
}

/// Where a device goes.
#[derive(Debug)]
enum Choice<'a> {
    Port(&'a UsbController, u32),
    /// No controller of the guest has a port that is free.
    NoPort,
}

/// A device is in a port of a controller already.
fn assigned(bus_id: &str, controller: &UsbController, port: usize) -> Cause {
    let UsbController { domid, devid, .. } = *controller;
    let (device, place) =
        (format!("the USB device {bus_id}"), format!("in port {port} of its USB controller {devid}"));
    Cause::Assigned { device, domid, place }
}

fn no_guest_has(bus_id: &str, all: &[UsbController]) -> Result<(), Cause> {
    let holder = |controller: &UsbController| {
        let index = controller.ports.iter().position(|port| port.as_deref() == Some(bus_id))?;
        Some(assigned(bus_id, controller, index + 1))
    };
    all.iter().find_map(holder).map_or(Ok(()), Err)
}

/// The controllers of all guests.
async fn controllers(store: &Requests) -> Result<Vec<UsbController>, Error> {
    let domids = store.directory_or_empty(&Path::new("/libxl")?).await?;
    // Side by side, or a host with many guests would take a round trip for each.
    let of_guests = domids.iter().filter_map(|domid| Some(recorded(store, domid.parse().ok()?)));
    Ok(try_join_all(of_guests).await?.concat())
}

/// Sees that no guest has a device.
pub(super) async fn is_free(store: &Requests, host: &HostUsb) -> Result<(), Cause> {
    no_guest_has(&host.bus_id, &controllers(store).await?)
}

/// Chooses the port for a device, from the controllers of all guests.
fn choose<'a>(
    (fe, own): (DomId, DomId),
    dev: &UsbDev,
    bus_id: &str,
    all: &'a [UsbController],
) -> Result<Choice<'a>, Cause> {
    no_guest_has(bus_id, all)?;
    let free = |controller: &UsbController| {
        let index = controller.ports.iter().position(Option::is_none)?;
        u32::try_from(index + 1).ok()
    };
    let mut own_ones = all.iter().filter(|controller| controller.domid == fe);
    let Some(devid) = dev.controller else {
        let served = |controller: &&UsbController| Slot::new(controller, 1, bus_id, own).is_ok();
        let found =
            own_ones.filter(served).find_map(|controller| Some(Choice::Port(controller, free(controller)?)));
        return Ok(found.unwrap_or(Choice::NoPort));
    };
    let invalid = |what: String| Err(Cause::Invalid(what));
    let Some(controller) = own_ones.find(|controller| controller.devid == devid) else {
        return invalid(format!("the guest has no USB controller {devid}"));
    };
    let Some(port) = dev.port else {
        return match free(controller) {
            Some(port) => Ok(Choice::Port(controller, port)),
            None => invalid(format!("no port of USB controller {devid} is free")),
        };
    };
    let index = port.checked_sub(1).and_then(|index| usize::try_from(index).ok());
    match index.and_then(|index| controller.ports.get(index)) {
        None => invalid(format!("USB controller {devid} has ports from 1 to {}", controller.ports.len())),
        Some(Some(other)) => invalid(format!("port {port} of USB controller {devid} has {other} already")),
        Some(None) => Ok(Choice::Port(controller, port)),
    }
}

/// What came of a claim.
#[derive(Debug)]
pub(super) enum Claimed {
    Port(Slot),
    /// A controller must be made first.
    NoPort,
    /// An operation works on the controller, by this record.
    Occupied(Which, String),
}

/// Claims a device and a port for it, and notes the drivers of the device's interfaces if usbback is to have them.
pub(super) async fn claim(
    client: &Client,
    (fe, own): (DomId, DomId),
    dev: &UsbDev,
    host: &HostUsb,
    has_usbback: bool,
) -> Result<Claimed, Cause> {
    transact(client, |tx| async move {
        let all = controllers(&tx).await?;
        let (controller, port) = match choose((fe, own), dev, &host.bus_id, &all)? {
            Choice::Port(controller, port) => (controller, port),
            Choice::NoPort => return Ok((Claimed::NoPort, Vec::new())),
        };
        let slot = Slot::new(controller, port, &host.bus_id, own)?;
        let (lx, backend) = (slot.id.toolstack()?, slot.id.backend()?);
        let mut seen = tx.read_many(&[lx.join("op")?, backend.join("num-ports")?]).await?.into_iter();
        if let Some(op) = text(seen.next().flatten()) {
            return Ok((Claimed::Occupied(slot.id.which(), op), Vec::new()));
        }
        // A write would bring a directory back that is gone.
        if seen.next().flatten().is_none() {
            return Err(Cause::Gone { domain: false });
        }
        let mut requests = Vec::new();
        if slot.server == Server::Usbback {
            if !has_usbback {
                return Err(Cause::NoHostDriver(USBBACK));
            }
            let notes = notes(&slot.bus_id)?;
            if tx.read_opt(&notes).await?.is_some() {
                requests.push(Request::Rm(notes.clone()));
            }
            for (interface, driver) in drivers_of(host) {
                let path = notes.join(escaped(&interface))?.join("driver_path")?;
                requests.push(Request::Write { path, value: format!("{DRIVERS}{driver}").into() });
            }
        }
        requests.push(Request::Write { path: slot.node.clone(), value: slot.bus_id.clone().into() });
        Ok((Claimed::Port(slot), requests))
    })
    .await
}

/// The drivers that have a device's interfaces now, and are to get them back.
pub(super) fn drivers_of(host: &HostUsb) -> Drivers {
    let interfaces = host.interfaces.iter();
    let driver = interfaces.filter_map(|interface| Some((interface.name.clone(), interface.driver.clone()?)));
    driver.filter(|(_, driver)| driver != USBBACK).collect()
}

/// Where libxl notes the drivers that interfaces had.
const NOTES: &str = "/libxl/usbback";

/// Those of a device.
fn notes(bus_id: &str) -> Result<Path, Cause> {
    Ok(Path::new(NOTES)?.join(escaped(bus_id))?)
}

/// A bus id or the name of an interface as libxl makes a name of a node of it.
fn escaped(name: &str) -> String {
    name.replace('.', "_").replace(':', "@")
}

fn unescaped(name: &str) -> String {
    name.replace('_', ".").replace('@', ":")
}

/// Whether a text is a bus id, as in `1-2.3`: it stands in paths.
pub(super) fn is_bus_id(text: &str) -> bool {
    text.contains('-') && text.bytes().all(|byte| byte.is_ascii_digit() || b"-.".contains(&byte))
}

/// What a port has, and which drivers are to get its interfaces back.
pub(super) async fn find(
    client: &Client,
    (which, own): (Which, DomId),
    port: u32,
) -> Result<(Slot, Drivers), Cause> {
    let controllers = recorded(client, which.fe).await?;
    let controller = controllers.iter().find(|controller| controller.devid == which.devid);
    let controller = controller.ok_or(Cause::NoSuchDevice)?;
    let index = port.checked_sub(1).and_then(|index| usize::try_from(index).ok());
    let held = index.and_then(|index| controller.ports.get(index)?.as_ref());
    held.ok_or(Cause::NoSuchDevice)?;
    let slot = Slot::new(controller, port, "", own)?;
    // As it is, and not as it is shown.
    let bus_id = text(client.read_opt(&slot.node).await?).ok_or(Cause::NoSuchDevice)?;
    let mut drivers = Drivers::new();
    if is_bus_id(&bus_id) {
        let notes = notes(&bus_id)?;
        let names = client.directory_or_empty(&notes).await?;
        let nodes = names.iter().map(|name| notes.join(name)?.join("driver_path"));
        let nodes: Vec<Path> = nodes.collect::<Result<_, _>>()?;
        for (name, path) in names.iter().zip(client.read_many(&nodes).await?) {
            let driver = text(path).and_then(|path| Some(path.rsplit_once('/')?.1.to_owned()));
            drivers.extend(driver.map(|driver| (unescaped(name), driver)));
        }
    }
    Ok((Slot { bus_id, ..slot }, drivers))
}

/// Empties a port, if it has this device still, and forgets the drivers that the device's interfaces had.
pub(super) async fn free(client: &Client, slot: &Slot) -> Result<(), Cause> {
    transact(client, |tx| async move {
        if !holds(&tx, slot).await? {
            return Ok(((), Vec::new()));
        }
        let mut requests = vec![Request::Write { path: slot.node.clone(), value: "".into() }];
        if is_bus_id(&slot.bus_id) {
            let (all, notes) = (Path::new(NOTES)?, notes(&slot.bus_id)?);
            if tx.read_opt(&notes).await?.is_some() {
                let is_last = tx.directory_or_empty(&all).await?.len() == 1;
                requests.push(Request::Rm(if is_last { all } else { notes }));
            }
        }
        Ok(((), requests))
    })
    .await
}

/// Whether a port has this device.
pub(super) async fn holds(store: &Requests, slot: &Slot) -> Result<bool, Cause> {
    Ok(text(store.read_opt(&slot.node).await?).as_ref() == Some(&slot.bus_id))
}

/// The ports of a guest's controller that have a device which could be detached.
pub(super) async fn occupied(
    client: &Client,
    (fe, own): (DomId, DomId),
    devid: u32,
) -> Result<Vec<u32>, Cause> {
    let controllers = recorded(client, fe).await?;
    let Some(controller) = controllers.iter().find(|controller| controller.devid == devid) else {
        return Ok(Vec::new());
    };
    let occupied = (1..).zip(&controller.ports).filter(|(_, held)| held.is_some()).map(|(port, _)| port);
    Ok(occupied.filter(|port| Slot::new(controller, *port, "", own).is_ok()).collect())
}

/// Takes its ports from a controller that was made for nothing, so that nobody puts a device there any more before it is
/// removed.
///
/// Fails if somebody has done so already: it is his by now, and stays.
pub(super) async fn close(client: &Client, (fe, own): (DomId, DomId), devid: u32) -> Result<(), Cause> {
    transact(client, |tx| async move {
        let controllers = recorded(&tx, fe).await?;
        let Some(controller) = controllers.iter().find(|controller| controller.devid == devid) else {
            return Ok(((), Vec::new()));
        };
        if let Some((port, Some(held))) = (1..).zip(&controller.ports).find(|(_, held)| held.is_some()) {
            return Err(assigned(held, controller, port));
        }
        let id = Slot::new(controller, 1, "", own)?.id;
        let counts = [id.toolstack()?.join("num-ports")?, id.backend()?.join("num-ports")?];
        let seen = tx.read_many(&counts).await?;
        let there = counts.into_iter().zip(seen).filter(|(_, seen)| seen.is_some());
        Ok(((), there.map(|(path, _)| Request::Rm(path)).collect()))
    })
    .await
}

/// The controller of this number.
pub(super) fn which(fe: DomId, devid: u32) -> Which {
    Which { fe, kind: Kind::Vusb, devid }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usbdev::HostAddress;

    const FE: DomId = DomId(1);

    fn controller(domid: u32, devid: u32, usb_type: &str, ports: &[&str]) -> UsbController {
        let backend = if usb_type == "pv" { "vusb" } else { "qusb" };
        let held = |port: &&str| Some((*port).to_owned()).filter(|port| !port.is_empty());
        UsbController {
            domid: DomId(domid),
            devid,
            usb_type: Some(usb_type.to_owned()),
            backend_domid: DomId::DOM0,
            backend_path: (usb_type != "devicemodel")
                .then(|| format!("/local/domain/0/backend/{backend}/{domid}/{devid}")),
            frontend_state: None,
            version: Some(2),
            ports: ports.iter().map(held).collect(),
        }
    }

    fn chosen(controller: Option<u32>, port: Option<u32>, all: &[UsbController]) -> String {
        let dev = UsbDev { controller, port, ..UsbDev::new(HostAddress { bus: 1, device: 3 }) };
        match choose((FE, DomId::DOM0), &dev, "1-2", all) {
            Ok(Choice::Port(controller, port)) => format!("{} {port}", controller.devid),
            Ok(Choice::NoPort) => "none".to_owned(),
            Err(cause) => cause.to_string(),
        }
    }

    #[test]
    fn the_first_port_that_is_free() {
        let all = [
            controller(2, 0, "qusb", &[""]),
            controller(1, 0, "devicemodel", &["", ""]),
            controller(1, 1, "qusb", &["1-1"]),
            controller(1, 3, "pv", &["1-3", "", ""]),
        ];
        assert_eq!(chosen(None, None, &all), "3 2");
        assert_eq!(chosen(Some(3), None, &all), "3 2");
        assert_eq!(chosen(Some(3), Some(3), &all), "3 3");
        assert_eq!(chosen(None, None, &all[..3]), "none");
        assert_eq!(chosen(None, None, &[]), "none");
    }

    #[test]
    fn what_cannot_be_had_is_told_with_who_has_it() {
        let all = [controller(1, 0, "qusb", &["1-1"]), controller(1, 1, "pv", &["", "1-1.4"])];
        for (wanted, why) in [
            ((Some(5), None), "the guest has no USB controller 5"),
            ((Some(0), None), "no port of USB controller 0 is free"),
            ((Some(1), Some(2)), "port 2 of USB controller 1 has 1-1.4 already"),
            ((Some(1), Some(3)), "USB controller 1 has ports from 1 to 2"),
            ((Some(1), Some(0)), "USB controller 1 has ports from 1 to 2"),
        ] {
            assert_eq!(chosen(wanted.0, wanted.1, &all), why);
        }
        // Also a controller that cannot be served here: its guest has the device.
        for usb_type in ["pv", "qusb", "devicemodel"] {
            let told = chosen(None, None, &[controller(7, 2, usb_type, &["", "1-2"])]);
            assert_eq!(
                told,
                "the USB device 1-2 is given to domain 7 already, in port 2 of its USB controller 2"
            );
        }
    }

    #[test]
    fn which_controllers_are_served() {
        let refused = |controller| Slot::new(&controller, 1, "1-2", DomId::DOM0).unwrap_err().code();
        assert_eq!(refused(controller(1, 0, "devicemodel", &[""])), "not_supported");
        assert_eq!(refused(controller(1, 0, "new", &[""])), "unsupported");
        let foreign = Some("/local/domain/3/backend/qusb/1/0".to_owned());
        let foreign = UsbController { backend_path: foreign, ..controller(1, 0, "qusb", &[""]) };
        assert_eq!(refused(foreign), "foreign_backend");
    }

    #[test]
    fn names_of_nodes_are_libxls() {
        assert_eq!(escaped("1-2.3:1.0"), "1-2_3@1_0");
        assert_eq!(unescaped("1-2_3@1_0"), "1-2.3:1.0");
        assert!(is_bus_id("1-2.3"));
        for bad in ["", "12", "../x", "1-2/x", "usb1", "1-2:1.0"] {
            assert!(!is_bus_id(bad), "{bad}");
        }
    }
}
