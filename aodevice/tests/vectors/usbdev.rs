//! USB devices of the host in ports of controllers, beside a stand-in for the host's kernel.

use std::fs;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio_util::sync::CancellationToken;
use xen_aodevice::libxl::Userdata;
use xen_aodevice::usbdev::{self, HostAddress, Port};
use xen_aodevice::{
    Cause, Device, Ended, Failure, Force, Hint, HostUsb, Kind, Limits, Part, Plan, Success, Toolstack,
    UsbHost, UsbInterface, WaitFor, usb_controllers, usbctrl, vsnd,
};

use crate::world::{GUEST, World, added, path, told};

const PV: &str = "/local/domain/0/backend/vusb/1/0";
const QUSB: &str = "/local/domain/0/backend/qusb/1/0";

/// A kernel with a hub at 1:1, a keyboard with two interfaces at 1:26, and a stick with one at 1:3.
#[derive(Debug)]
struct Kernel {
    state: Mutex<State>,
    /// Whoever has this holds up what changes a driver.
    changing: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    devices: Vec<HostUsb>,
    drivers: Vec<&'static str>,
    /// What it refuses: a file, and the interface.
    refuses: Vec<(&'static str, &'static str)>,
}

fn device(bus_id: &str, device: u8, interfaces: &[(&str, &str)]) -> HostUsb {
    let interfaces = interfaces.iter().map(|(name, driver)| UsbInterface::new(*name, Some(driver)));
    HostUsb::new(bus_id, HostAddress { bus: 1, device }, interfaces.collect())
}

impl Kernel {
    fn new() -> Arc<Self> {
        let mut hub = device("usb1", 1, &[("1-0:1.0", "hub")]);
        hub.is_hub = true;
        let keyboard = device("1-2.1", 26, &[("1-2.1:1.0", "usbhid"), ("1-2.1:1.1", "usbhid")]);
        let stick = device("1-3", 3, &[("1-3:1.0", "usb-storage")]);
        let drivers = vec!["usbhid", "usb-storage", "usbback"];
        let devices = vec![hub, keyboard, stick];
        let state = Mutex::new(State { devices, drivers, refuses: Vec::new() });
        Arc::new(Self { state, changing: tokio::sync::Mutex::default() })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn refuses(&self, what: &[(&'static str, &'static str)]) {
        self.state().refuses = what.to_vec();
    }

    /// Which drivers have the interfaces.
    fn bound(&self) -> Vec<String> {
        let state = self.state();
        let interfaces =
            state.devices.iter().filter(|device| !device.is_hub).flat_map(|device| &device.interfaces);
        interfaces.map(|of| format!("{} {}", of.name, of.driver.as_deref().unwrap_or("-"))).collect()
    }

    fn change(&self, (file, name): (&str, &str), from: Option<&str>, to: Option<&str>) -> io::Result<()> {
        let mut state = self.state();
        if state.refuses.contains(&(file, name)) {
            return Err(io::Error::other(format!("{file} of {name}: Device or resource busy")));
        }
        let interfaces = state.devices.iter_mut().flat_map(|device| &mut device.interfaces);
        let found = interfaces.filter(|of| of.driver.as_deref() == from).find(|of| of.name == name);
        let found = found.ok_or_else(|| io::Error::other("No such device"))?;
        found.driver = to.map(str::to_owned);
        Ok(())
    }
}

impl UsbHost for Kernel {
    fn devices(&self) -> io::Result<Vec<HostUsb>> {
        Ok(self.state().devices.clone())
    }

    fn has_driver(&self, driver: &str) -> bool {
        self.state().drivers.contains(&driver)
    }

    fn unbind(&self, interface: &str, driver: &str) -> io::Result<()> {
        let _changing = self.changing.blocking_lock();
        self.change(("unbind", interface), Some(driver), None)
    }

    fn bind(&self, interface: &str, driver: &str) -> io::Result<()> {
        let _changing = self.changing.blocking_lock();
        self.change(("bind", interface), None, Some(driver))
    }
}

const UNTOUCHED: [&str; 3] = ["1-2.1:1.0 usbhid", "1-2.1:1.1 usbhid", "1-3:1.0 usb-storage"];
const KEYBOARD_GIVEN: [&str; 3] = ["1-2.1:1.0 usbback", "1-2.1:1.1 usbback", "1-3:1.0 usb-storage"];

/// The port of a device, and whether the controller was made for it.
fn port_of(attached: &Success) -> (u32, bool) {
    match attached.part {
        Some(Part::Port { port, made_controller, .. }) => (port, made_controller),
        ref other => panic!("{other:?}"),
    }
}

pub(crate) struct Host {
    pub(crate) world: World,
    kernel: Arc<Kernel>,
    pub(crate) toolstack: Toolstack,
}

impl Host {
    pub(crate) async fn new() -> Self {
        let (world, kernel) = (World::new().await, Kernel::new());
        let toolstack = world.toolstack.clone().with_usb_host(kernel.clone());
        Self { world, kernel, toolstack }
    }

    /// With a controller of this description.
    pub(crate) async fn with(words: &str) -> Self {
        let host = Self::new().await;
        let ctrl = Device::UsbCtrl(usbctrl::parse(&[words]).unwrap());
        host.world.add_with(ctrl, WaitFor::Tree, &CancellationToken::new()).await.unwrap();
        host
    }

    /// The kernel does not take these interfaces from their drivers.
    pub(crate) fn keeps(&self, interfaces: &[&'static str]) {
        let refused: Vec<_> = interfaces.iter().map(|interface| ("unbind", *interface)).collect();
        self.kernel.refuses(&refused);
    }

    /// Whether no interface has another driver than at first.
    pub(crate) fn is_untouched(&self) -> bool {
        self.kernel.bound() == UNTOUCHED
    }

    async fn attach(&self, words: &str) -> Result<Success, Box<Failure>> {
        let dev = usbdev::parse(&[words]).unwrap();
        self.toolstack.attach_usb(GUEST, &dev, &CancellationToken::new()).await
    }

    async fn detach(&self, controller: u32, port: u32) -> Result<Vec<String>, Box<Failure>> {
        let port = Port { controller, port };
        let done = self.toolstack.detach_usb(GUEST, port, &CancellationToken::new()).await?;
        Ok(done.warnings.iter().map(ToString::to_string).collect())
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_that_the_device_model_opens() {
    let host = Host::with("type=qusb,ports=2").await;
    let before = host.world.dump().await;
    let attached = host.attach("hostbus=1,hostaddr=3").await.unwrap();
    assert_eq!(attached.to_string(), "port 1 of vusb 0 of domain 1");
    let written = added(&before, &host.world.dump().await);
    assert_eq!(written, [format!("{QUSB}/port/1 = \"1-3\"   (n0,r1)")]);
    assert_eq!(port_of(&host.attach("hostbus=1,hostaddr=26").await.unwrap()), (2, false));
    assert_eq!(host.kernel.bound(), UNTOUCHED, "QEMU sees to that");
    assert_eq!(host.detach(0, 1).await.unwrap(), [""; 0]);
    assert_eq!(host.detach(0, 2).await.unwrap(), [""; 0]);
    assert_eq!(host.world.dump().await, before);
}

#[tokio::test(start_paused = true)]
async fn a_device_that_usbback_gets() {
    let host = Host::with("type=pv,ports=2").await;
    let before = host.world.dump().await;
    host.attach("hostbus=1,hostaddr=26,controller=0,port=2").await.unwrap();
    let notes = "/libxl/usbback/1-2_1";
    let noted = |interface: &str| {
        let driver = format!("{notes}/{interface}/driver_path = \"/sys/bus/usb/drivers/usbhid\"   (n0)");
        [format!("{notes}/{interface} = \"\"   (n0)"), driver]
    };
    let mut wanted = vec![format!("{PV}/port/2 = \"1-2.1\"   (n0,r1)")];
    wanted.extend(["/libxl/usbback = \"\"   (n0)".to_owned(), format!("{notes} = \"\"   (n0)")]);
    wanted.extend([noted("1-2_1@1_0"), noted("1-2_1@1_1")].concat());
    assert_eq!(added(&before, &host.world.dump().await), wanted);
    assert_eq!(host.kernel.bound(), KEYBOARD_GIVEN);
    assert_eq!(host.detach(0, 2).await.unwrap(), [""; 0]);
    assert_eq!(host.kernel.bound(), UNTOUCHED);
    assert_eq!(host.world.dump().await, before);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_had_is_refused_and_nothing_is_changed() {
    let host = Host::with("type=pv,ports=2").await;
    // Another guest has the stick.
    for (key, value) in
        [("type", "qusb"), ("num-ports", "1"), ("backend", "/local/domain/0/backend/qusb/7/4")]
    {
        host.world.write(&format!("/libxl/7/device/vusb/4/{key}"), value).await;
    }
    host.world.write("/local/domain/0/backend/qusb/7/4/port/1", "1-3").await;
    host.kernel.state().drivers.pop();
    let before = host.world.dump().await;
    for (words, code, hint, why) in [
        (
            "hostbus=1,hostaddr=3",
            "assigned",
            Hint::DetachElsewhere(xs_client::DomId(7)),
            "the USB device 1-3 is given to domain 7 already, in port 1 of its USB controller 4",
        ),
        (
            "hostbus=1,hostaddr=4",
            "no_host_device",
            Hint::ListHostDevices,
            "the host has no USB device 001:004",
        ),
        (
            "hostbus=1,hostaddr=1",
            "invalid",
            Hint::CorrectDevice,
            "the USB device 001:001 is a hub, which no guest can have",
        ),
        (
            "hostbus=1,hostaddr=26,controller=3",
            "invalid",
            Hint::CorrectDevice,
            "the guest has no USB controller 3",
        ),
        (
            "hostbus=1,hostaddr=26",
            "no_host_driver",
            Hint::LoadBackend("xen-usbback"),
            "the kernel has no driver usbback",
        ),
    ] {
        let failure = host.attach(words).await.unwrap_err();
        assert_eq!((failure.cause.code(), failure.hint()), (code, hint), "{words}");
        assert_eq!(failure.cause.to_string(), why);
    }
    let told = told(&host.attach("hostbus=1,hostaddr=4").await.unwrap_err());
    assert_eq!(told[0], "cannot attach vusb device 001:004 to domain 1");
    for (controller, port) in [(0, 1), (0, 9), (0, 0), (5, 1)] {
        let failure = host.detach(controller, port).await.unwrap_err();
        assert!(matches!(failure.cause, Cause::NoSuchDevice), "{controller} {port}");
        assert_eq!(failure.tried(), format!("cannot detach vusb {controller}, port {port} from domain 1"));
    }
    assert_eq!(host.world.dump().await, before);
    assert_eq!(host.kernel.bound(), UNTOUCHED);
}

#[tokio::test(start_paused = true)]
async fn an_attach_that_the_kernel_refuses_leaves_nothing() {
    let host = Host::with("type=pv").await;
    let before = host.world.dump().await;
    for refused in [("bind", "1-2.1:1.1"), ("unbind", "1-2.1:1.1"), ("unbind", "1-2.1:1.0")] {
        host.kernel.refuses(&[refused]);
        if refused.0 == "bind" {
            // The driver that had it does not get it back either.
            let failure = host.attach("hostbus=1,hostaddr=26").await.unwrap_err();
            assert_eq!(failure.hint(), Hint::ReadKernelLog);
            let warned = failure.warnings[0].to_string();
            assert!(warned.starts_with("giving an interface back to its driver failed"), "{warned}");
            assert_eq!(host.kernel.bound()[..2], ["1-2.1:1.0 usbhid", "1-2.1:1.1 -"]);
            host.kernel.refuses(&[]);
            host.kernel.change(("bind", "1-2.1:1.1"), None, Some("usbhid")).unwrap();
        } else {
            let failure = host.attach("hostbus=1,hostaddr=26").await.unwrap_err();
            assert!(failure.warnings.is_empty());
            assert_eq!(
                failure.cause.to_string(),
                format!("the host's kernel refused: unbind of {}: Device or resource busy", refused.1)
            );
        }
        assert_eq!(host.kernel.bound(), UNTOUCHED);
        assert_eq!(host.world.dump().await, before);
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_attach_leaves_nothing() {
    for doing in ["looking at the device", "looking for a port", "giving the device to usbback"] {
        let host = Host::with("type=pv").await;
        let cancel = CancellationToken::new();
        let stop = cancel.clone();
        let toolstack = host.toolstack.clone().with_observer(move |step| {
            if step.doing == doing {
                stop.cancel();
            }
        });
        let dev = usbdev::parse(&["hostbus=1,hostaddr=26"]).unwrap();
        let failure = toolstack.attach_usb(GUEST, &dev, &cancel).await.unwrap_err();
        assert!(matches!(failure.cause, Cause::Aborted) && failure.warnings.is_empty(), "{doing}");
        assert_eq!(host.kernel.bound(), UNTOUCHED, "{doing}");
        assert_eq!(host.world.read(&format!("{PV}/port/1")).await, "", "{doing}");
    }
}

/// Whoever got the port or the device then would meet usbback, which has it.
#[tokio::test(start_paused = true)]
async fn what_usbback_keeps_stays_in_its_port() {
    let host = Host::with("type=pv").await;
    host.attach("hostbus=1,hostaddr=26").await.unwrap();
    host.kernel.refuses(&[("unbind", "1-2.1:1.0")]);
    let failure = host.detach(0, 1).await.unwrap_err();
    assert!(matches!(failure.cause, Cause::Host(_)), "{failure}");
    assert_eq!(host.attach("hostbus=1,hostaddr=26").await.unwrap_err().cause.code(), "assigned");
    host.kernel.refuses(&[]);
    assert_eq!(host.detach(0, 1).await.unwrap(), [""; 0]);
    assert_eq!(host.kernel.bound(), UNTOUCHED);
}

#[tokio::test(start_paused = true)]
async fn an_attach_that_died_is_detached() {
    let host = Host::with("type=pv").await;
    let dead = CancellationToken::new();
    let dies = dead.clone();
    let toolstack = host.toolstack.clone().with_observer(move |step| {
        if step.doing == "giving the device to usbback" {
            dies.cancel();
        }
    });
    let dev = usbdev::parse(&["hostbus=1,hostaddr=26"]).unwrap();
    let never = CancellationToken::new();
    // The thread is not done before the attach has died.
    let changing = host.kernel.changing.lock().await;
    tokio::select! {
        biased;
        () = dead.cancelled() => {}
        _ = toolstack.attach_usb(GUEST, &dev, &never) => panic!("it did not die"),
    }
    drop(changing);
    assert_eq!(host.world.read(&format!("{PV}/port/1")).await, "1-2.1");
    assert_eq!(host.attach("hostbus=1,hostaddr=26").await.unwrap_err().cause.code(), "assigned");
    // A thread goes on with what it has begun.
    while host.kernel.bound()[0] != KEYBOARD_GIVEN[0] {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(host.detach(0, 1).await.unwrap(), [""; 0]);
    assert_eq!(host.kernel.bound(), UNTOUCHED);
    assert_eq!(host.world.read("/libxl/usbback/1-2_1").await, "not there");
}

#[tokio::test(start_paused = true)]
async fn a_device_that_was_unplugged_is_detached() {
    let host = Host::with("type=pv").await;
    host.attach("hostbus=1,hostaddr=26").await.unwrap();
    host.kernel.state().devices.remove(1);
    assert_eq!(host.detach(0, 1).await.unwrap(), [""; 0]);
    assert_eq!(host.world.read(&format!("{PV}/port/1")).await, "");
    assert_eq!(host.world.read("/libxl/usbback/1-2_1").await, "not there");
}

/// One of several: the others stay.
#[tokio::test(start_paused = true)]
async fn a_controller_that_goes_gives_its_devices_back() {
    let host = Host::with("type=pv").await;
    let before = host.kernel.bound();
    host.attach("hostbus=1,hostaddr=26").await.unwrap();
    host.attach("hostbus=1,hostaddr=3").await.unwrap();
    host.detach(0, 1).await.unwrap();
    assert_eq!(host.kernel.bound()[2], "1-3:1.0 usbback");
    let never = CancellationToken::new();
    host.toolstack.remove(GUEST, (Kind::Vusb, 0), Force::AtOnce, &never).await.unwrap();
    assert_eq!(host.kernel.bound(), before);
    assert_eq!(usb_controllers(&host.world.dom0, GUEST).await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn a_domain_that_goes_gives_its_devices_back() {
    let host = Host::with("type=pv").await;
    host.attach("hostbus=1,hostaddr=26").await.unwrap();
    let plan = Plan::destroy(&host.toolstack, GUEST).await.unwrap();
    let outcome = plan.run(&host.toolstack, &CancellationToken::new()).finish().await;
    assert!(outcome.is_done(), "{outcome:?}");
    assert_eq!(host.kernel.bound(), UNTOUCHED);
}

#[tokio::test(start_paused = true)]
async fn of_two_who_want_a_device_one_gets_it() {
    let host = Host::with("type=pv").await;
    let another = host.world.another_toolstack().await.with_usb_host(host.kernel.clone());
    let dev = usbdev::parse(&["hostbus=1,hostaddr=26"]).unwrap();
    let never = CancellationToken::new();
    let (one, other) =
        tokio::join!(host.toolstack.attach_usb(GUEST, &dev, &never), another.attach_usb(GUEST, &dev, &never));
    let codes =
        [&one, &other].map(|ended| ended.as_ref().map_or_else(|failure| failure.cause.code(), |_| "ok"));
    assert!(matches!(codes, ["ok", "assigned"] | ["assigned", "ok"]), "{codes:?}");
    assert_eq!(host.kernel.bound(), KEYBOARD_GIVEN);
}

/// What the guest can write leads nowhere.
#[tokio::test(start_paused = true)]
async fn a_hostile_guest() {
    let host = Host::with("type=pv").await;
    let guest = &host.world.guest;
    assert!(guest.write(&path(format!("{PV}/port/1")), "1-3").await.is_err());
    for (key, value) in [("backend", "/local/domain/0/backend/vusb/2/0"), ("port/1", "1-3"), ("state", "6")] {
        guest.write(&path(format!("/local/domain/1/device/vusb/0/{key}")), value).await.unwrap();
    }
    assert_eq!(port_of(&host.attach("hostbus=1,hostaddr=3").await.unwrap()), (1, false));
    assert_eq!(host.world.read(&format!("{PV}/port/1")).await, "1-3");
    host.detach(0, 1).await.unwrap();
    assert_eq!(host.kernel.bound(), UNTOUCHED);
}

/// What stands in a port may have come by hand, and is no name of a file.
#[tokio::test(start_paused = true)]
async fn a_port_with_what_is_no_device_is_emptied() {
    let host = Host::with("type=pv").await;
    host.world.write(&format!("{PV}/port/1"), "../../x\u{1b}").await;
    assert_eq!(host.detach(0, 1).await.unwrap(), [""; 0]);
    assert_eq!(host.world.read(&format!("{PV}/port/1")).await, "");
}

#[tokio::test(start_paused = true)]
async fn a_guest_without_a_controller_gets_one() {
    let host = Host::new().await;
    let before = host.world.dump().await;
    let failure = host.attach("hostbus=1,hostaddr=3").await.unwrap_err();
    assert!(matches!(failure.cause, Cause::NoDeviceModel(_)), "{failure}");
    assert_eq!(host.world.dump().await, before);
    host.world.write("/local/domain/0/device-model/1/state", "running").await;
    let served = async {
        host.world.exists(&format!("{QUSB}/state")).await;
        host.world.write(&format!("{QUSB}/state"), "2").await;
    };
    let (attached, ()) = tokio::join!(host.attach("hostbus=1,hostaddr=3"), served);
    assert_eq!(port_of(&attached.unwrap()), (1, true));
    assert_eq!(host.world.read(&format!("{QUSB}/num-ports")).await, "8");
}

/// Somebody puts a device into the controller that an attach has made for itself, before that fails; and into one of a
/// file whose other devices fail: it stays where it is.
#[tokio::test(start_paused = true)]
async fn a_controller_that_somebody_uses_by_now_is_not_taken_back() {
    let host = Host::new().await;
    host.world.write("/local/domain/0/device-model/1/state", "running").await;
    let (failed, ()) = tokio::join!(host.attach("hostbus=1,hostaddr=3"), async {
        host.world.exists(&format!("{QUSB}/state")).await;
        // A second operation that finds the first one's controller, and takes all of its ports.
        for port in 1..=8 {
            host.world.write(&format!("{QUSB}/port/{port}"), format!("9-{port}")).await;
        }
        host.world.write(&format!("{QUSB}/state"), "2").await;
    });
    assert!(matches!(failed.unwrap_err().cause, Cause::Taken));
    assert_eq!(host.world.read(&format!("{QUSB}/port/1")).await, "9-1");
    assert_eq!(host.world.read(&format!("{QUSB}/num-ports")).await, "8");

    let card = Device::Vsnd(vsnd::parse(&["card", "pcm, name=a", "stream, unique-id=0, type=p"]).unwrap());
    let controller = Device::UsbCtrl(usbctrl::parse(&["type=qusb"]).unwrap());
    let devices = [(controller, WaitFor::Tree.into()), (card, WaitFor::Script.into())];
    let cancel = CancellationToken::new();
    let (outcome, ()) =
        tokio::join!(Plan::add(GUEST, devices).undo(true).run(&host.toolstack, &cancel).finish(), async {
            let second = "/local/domain/0/backend/qusb/1/1";
            host.world.exists("/libxl/1/device/vsnd/0/backend").await;
            host.world.write(&format!("{second}/port/2"), "8-1").await;
        });
    let undone: Vec<_> = outcome
        .undone
        .iter()
        .map(|undone| match &undone.ended {
            Ended::Failed(failure) => failure.to_string(),
            other => format!("{other:?}"),
        })
        .collect();
    let stays = "cannot detach vusb 1 from domain 1: the USB device 8-1 is given to domain 1 already, in port 2 of its USB \
                 controller 1";
    assert_eq!(undone, [stays]);
    assert_eq!(host.world.read("/local/domain/0/backend/qusb/1/1/port/2").await, "8-1");
}

const VM: &str = "/vm/0a1b2c3d-0000-4000-8000-0123456789ab";

#[tokio::test(start_paused = true)]
async fn the_device_is_entered_into_libxls_configuration() {
    let host = Host::with("type=pv").await;
    host.world.write("/local/domain/1/vm", VM).await;
    let directory = tempfile::tempdir().unwrap();
    let userdata = Userdata::new(directory.path(), GUEST, VM).unwrap();
    fs::write(userdata.path(), "{\"c_info\": {}}\n\0").unwrap();
    let mut limits = Limits::default();
    limits.config = Duration::from_millis(100);
    let toolstack = host.toolstack.clone().with_libxl_dir(directory.path()).with_limits(limits);
    let host = Host { toolstack, ..host };
    let entries = || {
        let text = fs::read_to_string(userdata.path()).unwrap();
        let config: Value = serde_json::from_str(text.trim_end_matches('\0')).unwrap();
        config.get("usbdevs").map(ToString::to_string).unwrap_or_default()
    };
    host.attach("hostbus=1,hostaddr=26,controller=0,port=3").await.unwrap();
    host.attach("hostbus=1,hostaddr=3").await.unwrap();
    let stick = r#"{"ctrl":0,"port":1,"type.hostdev":{"hostbus":1,"hostaddr":3}}"#;
    let keyboard = r#"{"ctrl":0,"port":3,"type.hostdev":{"hostbus":1,"hostaddr":26}}"#;
    assert_eq!(entries(), format!("[{keyboard},{stick}]"));
    host.detach(0, 3).await.unwrap();
    assert_eq!(entries(), format!("[{stick}]"));
    host.detach(0, 1).await.unwrap();
    assert_eq!(entries(), "");

    // One that cannot be entered is not the guest's.
    let lock = userdata.try_lock().unwrap().unwrap();
    let failure = host.attach("hostbus=1,hostaddr=3").await.unwrap_err();
    assert_eq!(failure.cause.code(), "libxl_config");
    assert_eq!(host.kernel.bound(), UNTOUCHED);
    assert_eq!(host.world.read(&format!("{PV}/port/1")).await, "");
    drop(lock);
}
