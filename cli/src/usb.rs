//! `usbdev-attach`, `usbdev-detach` and `usb-list`.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use clap::Args;
use serde_json::json;
use xen_aodevice::usbdev::{self, Port};
use xen_aodevice::{Attachment, Limits, UsbController, usb_controllers};
use xen_devstate::StateValue;

use crate::args::{Common, GuestArgs};
use crate::devices;
use crate::options::Recording;
use crate::output::{self, say};
use crate::problem::{Code, Exit, Problem, unless_cancelled};
use crate::signals::cancel_on_signal;
use crate::world::World;

#[derive(Debug, Args)]
pub(crate) struct AttachArgs {
    /// The guest, by domid or name
    domain: String,
    /// The device: `hostbus=`, `hostaddr=`, the numbers that lsusb shows, and `controller=`, `port=`, as words or with
    /// commas between them
    #[arg(required = true, value_name = "KEY=VALUE")]
    words: Vec<String>,
    #[command(flatten)]
    recording: Recording,
}

#[derive(Debug, Args)]
pub(crate) struct DetachArgs {
    /// The guest, by domid or name
    domain: String,
    /// The controller, by its id
    controller: u32,
    /// The number of the port, from 1
    port: u32,
    #[command(flatten)]
    recording: Recording,
}

pub(crate) async fn attach(common: &Common, args: &AttachArgs) -> Result<Exit, Problem> {
    let dev = usbdev::parse(&args.words).map_err(|error| {
        let tried = format!("cannot understand the device {:?}", args.words.join(" "));
        let hint = "say for example hostbus=1 hostaddr=3; xendev usbdev-attach --help has all of it";
        Problem::new(Code::BadDevice, tried, error, hint)
    })?;
    let cancel = cancel_on_signal();
    let world = World::open(common).await?;
    let fe = devices::domain(&world.client, &args.domain).await?;
    if common.dry_run {
        let toolstack = args.recording.of(world.toolstack(Limits::default()).await?);
        return devices::foresee(common, fe, &Attachment::UsbDev(dev), toolstack.check_usb(fe, &dev)).await;
    }
    let (toolstack, progress) = devices::watched(&world, Limits::default(), common).await?;
    let outcome = args.recording.of(toolstack).attach_usb(fe, &dev, &cancel).await;
    progress.done();
    output::report(common, outcome)
}

pub(crate) async fn detach(common: &Common, args: &DetachArgs) -> Result<Exit, Problem> {
    let cancel = cancel_on_signal();
    let world = World::open(common).await?;
    let fe = devices::domain_or_id(&world.client, &args.domain).await?;
    let (toolstack, progress) = devices::watched(&world, Limits::default(), common).await?;
    let port = Port { controller: args.controller, port: args.port };
    let outcome = args.recording.of(toolstack).detach_usb(fe, port, &cancel).await;
    progress.done();
    output::report(common, outcome)
}

/// Where the kernel tells of the host's USB devices.
const HOST: &str = "/sys/bus/usb/devices";

pub(crate) async fn list(common: &Common, args: &GuestArgs) -> Result<Exit, Problem> {
    let world = World::open(common).await?;
    let fe = devices::domain(&world.client, &args.domain).await?;
    let tried = format!("cannot list the USB controllers of domain {fe}");
    let listed = unless_cancelled(&*tried, usb_controllers(&world.client, fe)).await?;
    let controllers = listed.map_err(|error| Problem::store(tried, &error))?;
    if common.json {
        say(format!("{}\n", json!(controllers)));
    } else {
        say(controllers.iter().map(|controller| shown(controller, Path::new(HOST))).collect::<String>());
    }
    Ok(Exit::Done)
}

/// A controller as `xl usb-list` prints it.
fn shown(controller: &UsbController, host: &Path) -> String {
    let number = |number: Option<u32>| number.map_or(-1, i64::from);
    let state = match &controller.backend_path {
        Some(_) => number(
            controller.frontend_state.as_ref().and_then(StateValue::state).map(|state| state.number().into()),
        ),
        None => 0,
    };
    let mut text = format!(
        "{:<6} {:<12} {:<3} {:<5} {:<7} {:<5}\n{:<6} {:<12} {:<3} {state:<5} {:<7} {:<5}\n",
        "Devid",
        "Type",
        "BE",
        "state",
        "usb-ver",
        "ports",
        controller.devid,
        controller.usb_type.as_deref().unwrap_or("-"),
        controller.backend_domid.0,
        number(controller.version),
        controller.ports.len(),
    );
    for (index, port) in controller.ports.iter().enumerate() {
        let port = port.as_deref().map(|bus_id| bus_and_device(host, bus_id)).unwrap_or_default();
        // Writing to a String cannot fail.
        _ = writeln!(text, "  Port {}:{port}", index + 1);
    }
    text
}

/// Where a device of the host is now. What the store says of it may be anything.
fn bus_and_device(host: &Path, bus_id: &str) -> String {
    let is_plain = |letter: char| letter.is_ascii_digit() || "-.".contains(letter);
    let read = |name: &str| -> Option<u32> {
        fs::read_to_string(host.join(bus_id).join(name)).ok()?.trim().parse().ok()
    };
    let place = bus_id.chars().all(is_plain).then(|| read("busnum").zip(read("devnum"))).flatten();
    place.map_or_else(|| format!(" {bus_id}"), |(bus, device)| format!(" Bus {bus:03x} Device {device:03x}"))
}

#[cfg(test)]
mod tests {
    use xen_aodevice::{Toolstack, WaitFor, sim};
    use xs_client::{Client, Config, DomId, Path as Node};
    use xs_store::Store;

    use xen_aodevice::{Device, usbctrl};

    use super::*;

    /// What xl 4.17 printed on a real host of free ports; of the others, by its format.
    #[tokio::test]
    async fn as_xl_prints_them() {
        let store = Store::new();
        let client = Client::over(store.connect(DomId::DOM0), Config::default());
        sim::create_domain0(&client).await.unwrap();
        store.introduce(DomId(1));
        sim::create_domain(&client, DomId(1), "g").await.unwrap();
        let runner = std::sync::Arc::new(xen_hotplug::ScriptRunner::new());
        let toolstack = Toolstack::new(client.clone(), runner).await.unwrap();
        let ctrl = Device::UsbCtrl(usbctrl::parse(&["type=qusb,ports=3"]).unwrap());
        let never = tokio_util::sync::CancellationToken::new();
        toolstack.add(DomId(1), &ctrl, WaitFor::Tree, &never).await.unwrap();
        let be = "/local/domain/0/backend/qusb/1/0";
        for (port, bus_id) in [(2, "1-2.3"), (3, "../x")] {
            client.write(&Node::new(format!("{be}/port/{port}")).unwrap(), bus_id).await.unwrap();
        }
        // One that the device model emulates.
        for (key, value) in [("type", "devicemodel"), ("usb-ver", "3"), ("num-ports", "1"), ("port/1", "")] {
            client.write(&Node::new(format!("/libxl/1/device/vusb/2/{key}")).unwrap(), value).await.unwrap();
        }
        let host = tempfile::tempdir().unwrap();
        fs::create_dir(host.path().join("1-2.3")).unwrap();
        fs::write(host.path().join("1-2.3/busnum"), "1\n").unwrap();
        fs::write(host.path().join("1-2.3/devnum"), "26\n").unwrap();
        let controllers = usb_controllers(&client, DomId(1)).await.unwrap();
        let text: String = controllers.iter().map(|controller| shown(controller, host.path())).collect();
        assert_eq!(
            text,
            "Devid  Type         BE  state usb-ver ports\n\
             0      qusb         0   1     2       3    \n  \
               Port 1:\n  \
               Port 2: Bus 001 Device 01a\n  \
               Port 3: ../x\n\
             Devid  Type         BE  state usb-ver ports\n\
             2      devicemodel  0   0     3       1    \n  \
               Port 1:\n"
        );
    }
}
