//! USB devices of the host, each of which goes into a port of a controller.
//!
//! One has no directory of its own in the store: the port of its controller holds its bus id. So it is no
//! [`Kind`](crate::Kind), and not one of [`Device`](crate::Device): see
//! [`Toolstack::attach_usb`](crate::Toolstack::attach_usb).
//!
//! Source of the words: `docs/man/xl.cfg.5.pod.in`, `usbdev=`.

use std::fmt;

use serde_json::{Map, Value};

use super::members::Members;
use super::usbctrl::MOST_PORTS;
use super::words::{self, SpecError};

/// A device of the host, by the numbers that `lsusb` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostAddress {
    /// The number of its bus.
    pub bus: u8,
    /// Its number on the bus, which is another one each time that it is plugged in.
    pub device: u8,
}

/// As `lsusb` shows it, in decimal: `001:026`.
impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:03}:{:03}", self.bus, self.device)
    }
}

/// A port of a guest's controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// The device id of the controller.
    pub controller: u32,
    /// The number of the port, from 1.
    pub port: u32,
}

/// As in `1 of USB controller 0`.
impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of USB controller {}", self.port, self.controller)
    }
}

/// A USB device as it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UsbDev {
    /// Which device of the host.
    pub host: HostAddress,
    /// The device id of the controller; any that has a free port, or a new one, if not said.
    pub controller: Option<u32>,
    /// The number of the port; the first free one if not said. Without a controller it says nothing.
    pub port: Option<u32>,
}

impl UsbDev {
    /// A device of the host for any port that is free.
    pub fn new(host: HostAddress) -> Self {
        Self { host, controller: None, port: None }
    }

    /// The same in a port.
    pub(crate) fn in_port(self, Port { controller, port }: Port) -> Self {
        Self { controller: Some(controller), port: Some(port), ..self }
    }

    /// What libxl's configuration of a domain holds of it.
    pub(crate) fn libxl(&self) -> Map<String, Value> {
        let HostAddress { bus, device } = self.host;
        let mut members = Members::new();
        members.option("ctrl", self.controller).option("port", self.port);
        members.add("type.hostdev", serde_json::json!({"hostbus": bus, "hostaddr": device}));
        members.into()
    }

    /// What it has for itself alone, in words.
    pub(crate) fn claims(&self) -> Vec<String> {
        let port = self.controller.zip(self.port).map(|(controller, port)| Port { controller, port });
        let port = port.map(|port| format!("the port {port}"));
        std::iter::once(format!("the device {}", self.host)).chain(port).collect()
    }
}

/// Reads the words of `usbdev-attach`, or an entry of `usbdev=[...]` of a domain configuration, which is one argument.
///
/// `hostbus=` and `hostaddr=` are decimal, as `lsusb` shows them, or hexadecimal behind `0x`, as `usb-list` shows them. A
/// number such as `010` is refused: it is ten for `lsusb`, and eight for `xl`.
///
/// # Errors
///
/// They name the parameter.
pub fn parse(arguments: &[impl AsRef<str>]) -> Result<UsbDev, SpecError> {
    let (mut bus, mut device, mut controller, mut port) = (None, None, None, None);
    words::read(arguments, |key, value| {
        match key {
            "type" if value == "hostdev" => {}
            "type" => return Err("a USB device has the type hostdev"),
            "hostbus" => bus = Some(host_number(value)?),
            "hostaddr" => device = Some(host_number(value)?),
            "controller" => {
                controller = Some(words::number(value, u32::MAX).ok_or("a controller has a decimal number")?);
            }
            "port" => {
                let number = words::number(value, MOST_PORTS).filter(|number| *number > 0);
                port = Some(number.ok_or("a port has a number from 1 to 31")?);
            }
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    if port.is_some() && controller.is_none() {
        return Err(SpecError::Whole("port= is of a controller: say controller= too"));
    }
    let bus = bus.ok_or(SpecError::Missing("hostbus"))?;
    let device = device.ok_or(SpecError::Missing("hostaddr"))?;
    Ok(UsbDev { host: HostAddress { bus, device }, controller, port })
}

/// The number of a bus of the host, or of a device on it.
fn host_number(value: &str) -> Result<u8, &'static str> {
    let (digits, radix) = match value.strip_prefix("0x") {
        Some(digits) => (digits, 16),
        None => (value, 10),
    };
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| char::from(byte).is_digit(radix));
    let number = u8::from_str_radix(digits, radix).ok().filter(|number| is_number && *number > 0);
    let number = number.ok_or("give a number from 1 to 255, or from 0x1 to 0xff")?;
    if radix == 10 && digits.starts_with('0') && number > 7 {
        return Err("give it without the leading zero, with which xl takes it as octal");
    }
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        for (words, read) in [
            (&["hostbus=1", "hostaddr=3"][..], (1, 3, None, None)),
            (&["type=hostdev,hostbus=0x1,hostaddr=0x1a,controller=2"], (1, 26, Some(2), None)),
            (&["hostbus=001,hostaddr=26"], (1, 26, None, None)),
            (&["hostaddr=10", "controller=0,port=8", "hostbus=0xff"], (255, 10, Some(0), Some(8))),
        ] {
            let dev = parse(words).unwrap();
            assert_eq!((dev.host.bus, dev.host.device, dev.controller, dev.port), read, "{words:?}");
        }
    }

    #[test]
    fn refusals() {
        for (words, why) in [
            ("", "hostbus= is missing"),
            ("hostbus=1", "hostaddr= is missing"),
            ("hostbus=0,hostaddr=1", "\"hostbus=0\": give a number from 1 to 255, or from 0x1 to 0xff"),
            ("hostbus=1,hostaddr=+1", "\"hostaddr=+1\": give a number from 1 to 255, or from 0x1 to 0xff"),
            ("hostbus=1,hostaddr=1a", "\"hostaddr=1a\": give a number from 1 to 255, or from 0x1 to 0xff"),
            (
                "hostbus=1,hostaddr=0x100",
                "\"hostaddr=0x100\": give a number from 1 to 255, or from 0x1 to 0xff",
            ),
            (
                "hostbus=1,hostaddr=026",
                "\"hostaddr=026\": give it without the leading zero, with which xl takes it as octal",
            ),
            ("hostbus=1,hostaddr=1,port=1", "port= is of a controller: say controller= too"),
            ("hostbus=1,hostaddr=1,controller=0,port=0", "\"port=0\": a port has a number from 1 to 31"),
            ("hostbus=1,hostaddr=1,controller=x", "\"controller=x\": a controller has a decimal number"),
            ("type=other", "\"type=other\": a USB device has the type hostdev"),
            ("vendor=1", "\"vendor=1\" is no parameter"),
        ] {
            assert_eq!(parse(&[words]).unwrap_err().to_string(), why, "{words}");
        }
    }

    #[test]
    fn the_entry_of_a_configuration() {
        let dev = UsbDev::new(HostAddress { bus: 1, device: 26 });
        let json = r#"{"type.hostdev":{"hostbus":1,"hostaddr":26}}"#;
        assert_eq!(Value::from(dev.libxl()).to_string(), json);
        let json = r#"{"ctrl":0,"port":2,"type.hostdev":{"hostbus":1,"hostaddr":26}}"#;
        let port = Port { controller: 0, port: 2 };
        assert_eq!(Value::from(dev.in_port(port).libxl()).to_string(), json);
    }
}
