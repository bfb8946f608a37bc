//! The host's side of a USB device: which it is, and which drivers its interfaces have.
//!
//! Linux tells both in sysfs, where a driver is also made to let go of an interface (`unbind`) or to take it (`bind`).
//! Source: `Documentation/ABI/testing/sysfs-bus-usb` of Linux.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::usbdev::HostAddress;

/// The driver that serves the ports of paravirtual controllers.
pub(super) const USBBACK: &str = "usbback";

/// The class of a hub, as `bDeviceClass` has it.
const HUB: &str = "09";

/// An interface of a USB device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UsbInterface {
    /// As in `1-2.3:1.0`: the bus id of its device, a configuration, and its number.
    pub name: String,
    /// The name of the driver that has it.
    pub driver: Option<String>,
}

impl UsbInterface {
    /// An interface with its driver, if it has one.
    pub fn new(name: impl Into<String>, driver: Option<&str>) -> Self {
        Self { name: name.into(), driver: driver.map(str::to_owned) }
    }
}

/// A USB device of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HostUsb {
    /// The place where it is plugged in: a bus and the ports on the way, as in `1-2.3`.
    pub bus_id: String,
    /// By which number it is known now.
    pub address: HostAddress,
    /// Whether it is a hub, which is no guest's.
    pub is_hub: bool,
    /// Its interfaces, in the order of their names.
    pub interfaces: Vec<UsbInterface>,
}

impl HostUsb {
    /// A device that is no hub.
    pub fn new(bus_id: impl Into<String>, address: HostAddress, interfaces: Vec<UsbInterface>) -> Self {
        Self { bus_id: bus_id.into(), address, is_hub: false, interfaces }
    }
}

/// What a host knows of its USB devices and does with them. Its calls may block: they are made in threads.
pub trait UsbHost: std::fmt::Debug + Send + Sync {
    /// All devices that are plugged in.
    ///
    /// # Errors
    ///
    /// Those of looking.
    fn devices(&self) -> io::Result<Vec<HostUsb>>;

    /// Whether there is this driver.
    fn has_driver(&self, driver: &str) -> bool;

    /// Makes a driver let go of an interface.
    ///
    /// # Errors
    ///
    /// Those of the kernel.
    fn unbind(&self, interface: &str, driver: &str) -> io::Result<()>;

    /// Makes a driver take an interface that has none.
    ///
    /// # Errors
    ///
    /// Those of the kernel and the driver.
    fn bind(&self, interface: &str, driver: &str) -> io::Result<()>;
}

/// Linux's own word, by sysfs.
#[derive(Clone, Debug)]
pub(crate) struct Sysfs(PathBuf);

impl Sysfs {
    /// In this directory: `/sys`.
    pub(crate) fn new(directory: &Path) -> Self {
        Self(directory.join("bus/usb"))
    }

    /// Has a driver do something with an interface.
    fn tell(&self, driver: &str, file: &str, interface: &str) -> io::Result<()> {
        let plain = |name: &str| !name.is_empty() && !name.contains('/') && !name.starts_with('.');
        if !plain(driver) || !plain(interface) {
            let told = format!("{driver:?} and {interface:?} are no names of a driver and an interface");
            return Err(io::Error::new(ErrorKind::InvalidInput, told));
        }
        let path = self.0.join("drivers").join(driver).join(file);
        // As it is: a file that is not there is not made.
        let written = fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut file| io::Write::write_all(&mut file, interface.as_bytes()));
        written.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    }

    fn interface(&self, name: &str) -> UsbInterface {
        let driver = fs::read_link(self.0.join("devices").join(name).join("driver")).ok();
        let driver = driver.and_then(|driver| Some(driver.file_name()?.to_str()?.to_owned()));
        UsbInterface { name: name.to_owned(), driver }
    }
}

impl UsbHost for Sysfs {
    fn devices(&self) -> io::Result<Vec<HostUsb>> {
        let directory = self.0.join("devices");
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut names = Vec::new();
        for entry in entries {
            names.extend(entry?.file_name().into_string().ok());
        }
        names.sort_unstable();
        let read = |name: &str, file: &str| fs::read_to_string(directory.join(name).join(file)).ok();
        let number = |name: &str, file: &str| read(name, file)?.trim().parse().ok();
        let device = |name: &String| {
            // One that is unplugged meanwhile is left out; an interface has no such numbers.
            let address = HostAddress { bus: number(name, "busnum")?, device: number(name, "devnum")? };
            let is_of = |other: &&String| other.strip_prefix(name).is_some_and(|rest| rest.starts_with(':'));
            Some(HostUsb {
                bus_id: name.clone(),
                address,
                is_hub: read(name, "bDeviceClass").is_some_and(|class| class.trim() == HUB),
                interfaces: names.iter().filter(is_of).map(|name| self.interface(name)).collect(),
            })
        };
        Ok(names.iter().filter_map(device).collect())
    }

    fn has_driver(&self, driver: &str) -> bool {
        self.0.join("drivers").join(driver).is_dir()
    }

    fn unbind(&self, interface: &str, driver: &str) -> io::Result<()> {
        self.tell(driver, "unbind", interface)
    }

    fn bind(&self, interface: &str, driver: &str) -> io::Result<()> {
        self.tell(driver, "bind", interface)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A directory like `/sys`, with a hub, a keyboard that has two interfaces, and two drivers.
    fn sysfs() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let usb = directory.path().join("bus/usb");
        for (name, files) in [
            ("usb1", &[("busnum", "1"), ("devnum", "1"), ("bDeviceClass", "09")][..]),
            ("1-2", &[("busnum", "1"), ("devnum", "26"), ("bDeviceClass", "00")]),
            ("1-2.1", &[("busnum", "1")]),
            ("1-2:1.1", &[]),
            ("1-2:1.0", &[]),
        ] {
            let device = usb.join("devices").join(name);
            fs::create_dir_all(&device).unwrap();
            for (file, text) in files {
                fs::write(device.join(file), format!("{text}\n")).unwrap();
            }
        }
        for driver in ["usbhid", USBBACK] {
            let driver = usb.join("drivers").join(driver);
            fs::create_dir_all(&driver).unwrap();
            for file in ["bind", "unbind"] {
                fs::write(driver.join(file), "").unwrap();
            }
        }
        symlink("../../drivers/usbhid", usb.join("devices/1-2:1.0/driver")).unwrap();
        directory
    }

    #[test]
    fn devices_and_their_interfaces() {
        let directory = sysfs();
        let host = Sysfs::new(directory.path());
        let interfaces =
            vec![UsbInterface::new("1-2:1.0", Some("usbhid")), UsbInterface::new("1-2:1.1", None)];
        let keyboard = HostUsb::new("1-2", HostAddress { bus: 1, device: 26 }, interfaces);
        let hub = HostUsb::new("usb1", HostAddress { bus: 1, device: 1 }, Vec::new());
        assert_eq!(host.devices().unwrap(), [keyboard, HostUsb { is_hub: true, ..hub }]);
        assert_eq!(Sysfs::new(Path::new("/nowhere")).devices().unwrap(), []);
    }

    #[test]
    fn drivers_are_told_by_their_files() {
        let directory = sysfs();
        let host = Sysfs::new(directory.path());
        assert!(host.has_driver(USBBACK) && !host.has_driver("uas"));
        host.unbind("1-2:1.0", "usbhid").unwrap();
        host.bind("1-2:1.0", USBBACK).unwrap();
        let read =
            |file: &str| fs::read_to_string(directory.path().join("bus/usb/drivers").join(file)).unwrap();
        assert_eq!(
            (read("usbhid/unbind"), read("usbback/bind")),
            ("1-2:1.0".to_owned(), "1-2:1.0".to_owned())
        );
        let refused = host.bind("1-2:1.0", "uas").unwrap_err();
        assert!(refused.to_string().contains("drivers/uas/bind"), "{refused}");
        for (interface, driver) in
            [("../x", "usbhid"), ("1-2:1.0", "../../x"), ("", "usbhid"), ("1-2:1.0", "..")]
        {
            assert_eq!(host.bind(interface, driver).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
    }
}
