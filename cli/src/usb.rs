//! `usb-list`.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use aodevice::{UsbController, usb_controllers};
use devstate::StateValue;
use serde_json::json;

use crate::args::{Common, GuestArgs};
use crate::devices;
use crate::output::say;
use crate::problem::{Exit, Problem, unless_cancelled};
use crate::world::World;

/// Where the kernel tells of the host's USB devices.
const HOST: &str = "/sys/bus/usb/devices";

pub(crate) async fn list(common: &Common, args: &GuestArgs) -> Result<Exit, Problem> {
    let world = World::open(&common.store).await?;
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
    use aodevice::{Toolstack, WaitFor, sim};
    use xs_client::{Client, Config, DomId, Path as Node};
    use xs_store::Store;

    use aodevice::{Device, usbctrl};

    use super::*;

    /// What xl 4.17 printed on a real host of free ports; of the others, by its format.
    #[tokio::test]
    async fn as_xl_prints_them() {
        let store = Store::new();
        let client = Client::over(store.connect(DomId::DOM0), Config::default());
        sim::create_domain0(&client).await.unwrap();
        store.introduce(DomId(1));
        sim::create_domain(&client, DomId(1), "g").await.unwrap();
        let runner = std::sync::Arc::new(hotplug::ScriptRunner::new());
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
