//! `block-nbd`: an export of a network block device, by `nbd-client`.

use std::fs;
use std::path::Path;

use super::error::DiskError;
use super::{Detached, Served, user_of};
use crate::native::ToolError;
use crate::native::block::{Mode, User};
use crate::native::tool::{Call, Course, Tool};
use crate::{LINE_SHOWN, printable};

const NBD_CLIENT: Tool = Tool { name: "nbd-client", install: "apt-get install nbd-client" };

const DEV: &str = "/dev";

/// What the tool says by its exit status of a device that serves nothing.
const FREE: i32 = 1;

const EXPECTED: &str = "server:port or server:port/export, such as 10.0.0.1:10809/disk or [fd00::1]:10809";

/// A target: what `params` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    server: String,
    port: u16,
    export: Option<String>,
}

impl Target {
    /// Reads `params`.
    pub(super) fn parse(params: &str) -> Result<Self, DiskError> {
        let invalid = || DiskError::Invalid { params: params.to_owned(), expected: EXPECTED };
        let (place, export) = match params.split_once('/') {
            Some((place, export)) => (place, Some(export)),
            None => (params, None),
        };
        let (server, port) = place.rsplit_once(':').ok_or_else(invalid)?;
        let server = match server.strip_prefix('[') {
            Some(address) => address.strip_suffix(']').ok_or_else(invalid)?,
            None if server.contains(':') => return Err(invalid()),
            None => server,
        };
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        let port = port.parse().ok().filter(|port| digits && *port != 0).ok_or_else(invalid)?;
        // The tool would take the one for an option, and the other for the default.
        let is_option = |text: &str| text.starts_with('-');
        if server.is_empty()
            || is_option(server)
            || export.is_some_and(|name| name.is_empty() || is_option(name))
        {
            return Err(invalid());
        }
        Ok(Self { server: server.to_owned(), port, export: export.map(str::to_owned) })
    }

    fn shown(&self) -> String {
        let export = self
            .export
            .as_deref()
            .map_or_else(|| "the export".to_owned(), |name| format!("the export {name}"));
        printable(format!("{export} of {}, port {}", self.server, self.port), LINE_SHOWN)
    }

    fn connect(&self, node: &str, mode: Mode) -> Call {
        let name = self.export.iter().flat_map(|name| ["-name", name]);
        let read_only = (mode == Mode::Read).then_some("-readonly");
        let port = self.port.to_string();
        let args = name.chain([self.server.as_str(), port.as_str(), node]).chain(read_only);
        Call::new(&NBD_CLIENT, args)
    }

    /// Connects this device, or says that somebody else has taken it meanwhile.
    pub(super) async fn make(
        &self,
        course: &Course,
        node: &str,
        mode: Mode,
    ) -> Result<Option<Served>, DiskError> {
        let step = || format!("connect {node} to {}", self.shown());
        match course.call(&self.connect(node, mode)).await {
            Ok(_) => {}
            Err(error) if error.exit_status().is_some() && !is_free(course, node).await? => return Ok(None),
            Err(error) => {
                // It may have connected before it was killed.
                let undo = match error.exit_status() {
                    Some(_) => Ok(()),
                    None => undo(course, node).await,
                };
                let fix = "See whether the server listens there and has the export for this host (nbd-client -l SERVER), \
                           and the kernel's log (dmesg)";
                return Err(DiskError::tool(step(), error, fix).undone(undo));
            }
        }
        if let Some(served) = Served::of(Path::new(node)) {
            return Ok(Some(served));
        }
        let (what, seen) = (self.shown(), format!("{node} is no block device"));
        let error = DiskError::Missing { what, seen, fix: "See the kernel's log (dmesg)" };
        Err(error.undone(undo(course, node).await))
    }
}

/// The first device from `from` on that serves nothing, by its number.
pub(super) async fn free(course: &Course, from: u32) -> Result<u32, DiskError> {
    let numbers = numbers(Path::new(DEV));
    for number in numbers.iter().copied().filter(|number| *number >= from) {
        if is_free(course, &node(number)).await? {
            return Ok(number);
        }
    }
    let what = "a network block device".to_owned();
    Err(match numbers.len() {
        0 => DiskError::Missing {
            what,
            seen: "there is no /dev/nbd0".to_owned(),
            fix: "Load the driver: modprobe nbd",
        },
        count => DiskError::Missing {
            what,
            seen: format!("all {count} devices are connected"),
            fix: "Have more of them: modprobe -r nbd; modprobe nbd nbds_max=64, or detach some",
        },
    })
}

/// The path of a device.
pub(super) fn node(number: u32) -> String {
    format!("{DEV}/nbd{number}")
}

/// The number of a device, by its path.
pub(super) fn number(node: &str) -> Option<u32> {
    let number = node.strip_prefix(DEV)?.strip_prefix("/nbd")?;
    number.parse().ok().filter(|_| number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The numbers of the devices, in order; partitions have names that are longer.
fn numbers(folder: &Path) -> Vec<u32> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let named = |name: &str| number(&format!("{DEV}/{name}"));
    let mut numbers: Vec<u32> =
        entries.filter_map(|entry| named(&entry.file_name().to_string_lossy())).collect();
    numbers.sort_unstable();
    numbers
}

async fn is_free(course: &Course, node: &str) -> Result<bool, DiskError> {
    match course.call(&check(node)).await {
        Ok(_) => Ok(false),
        Err(error) if error.exit_status() == Some(FREE) => Ok(true),
        Err(error) => Err(DiskError::tool(
            format!("see whether {node} is connected"),
            error,
            "See whether the driver is loaded (modprobe nbd)",
        )),
    }
}

/// Disconnects a device, if it is connected.
pub(super) async fn undo(course: &Course, node: &str) -> Result<(), ToolError> {
    let Err(error) = course.undo(&disconnect(node)).await else { return Ok(()) };
    match course.undo(&check(node)).await {
        Err(free) if free.exit_status() == Some(FREE) => Ok(()),
        _ => Err(error),
    }
}

fn check(node: &str) -> Call {
    Call::new(&NBD_CLIENT, ["-c", node])
}

fn disconnect(node: &str) -> Call {
    Call::new(&NBD_CLIENT, ["-d", node])
}

/// Disconnects a device, unless a guest has it.
pub(super) async fn detach(course: &Course, recorded: &str, users: &[User]) -> Result<Detached, DiskError> {
    let Some(node) = number(recorded).map(node) else {
        return Err(DiskError::Missing {
            what: printable(recorded, LINE_SHOWN),
            seen: "it is no network block device, and was recorded as the disk's node".to_owned(),
            fix: "Disconnect the right one: nbd-client -d /dev/nbdN",
        });
    };
    let Some(served) = Served::of(Path::new(&node)) else { return Ok(Detached::Before) };
    if is_free(course, &node).await? {
        return Ok(Detached::Before);
    }
    let numbers = served.numbers.to_string();
    if let Some(user) = users.iter().find(|user| user.physical_device.as_ref() == Some(&numbers)) {
        return Ok(Detached::Used { by: user_of(user) });
    }
    let disconnected = course.call(&disconnect(&node)).await;
    disconnected.map_err(|error| {
        DiskError::tool(format!("disconnect {node}"), error, "See who has it open: fuser -v, lsblk")
    })?;
    Ok(Detached::Now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_server_with_a_port_and_perhaps_an_export() {
        let target =
            |params| Target::parse(params).ok().map(|target| (target.server, target.port, target.export));
        let some = |server: &str, port, export: &str| {
            Some((server.to_owned(), port, Some(export.to_owned()).filter(|name| !name.is_empty())))
        };
        assert_eq!(target("10.0.0.1:10809"), some("10.0.0.1", 10809, ""));
        assert_eq!(target("nas.example.org:2000/a/b:c"), some("nas.example.org", 2000, "a/b:c"));
        assert_eq!(target("[fd00::1]:10809/d"), some("fd00::1", 10809, "d"));
        for bad in [
            "",
            "nas",
            "nas:",
            ":1",
            "nas:0",
            "nas:65536",
            "nas:+1",
            "fd00::1:5",
            "[fd00::1:5",
            "nas:1/",
            "-x:1",
            "nas:1/-x",
        ] {
            assert_eq!(target(bad), None, "{bad}");
        }
    }

    #[test]
    fn arguments_are_those_of_the_tool() {
        let call = |params, mode| Target::parse(params).unwrap().connect("/dev/nbd3", mode).to_string();
        assert_eq!(call("nas:10809", Mode::Write), "nbd-client nas 10809 /dev/nbd3");
        assert_eq!(call("nas:10809/a b", Mode::Read), "nbd-client -name 'a b' nas 10809 /dev/nbd3 -readonly");
    }

    #[test]
    fn partitions_are_no_devices() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["nbd10", "nbd2", "nbd2p1", "nbd", "nbdx", "loop0"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(numbers(folder.path()), [2, 10]);
        assert_eq!((number("/dev/nbd7"), number("/dev/nbd7p1"), number("/dev/sda")), (Some(7), None, None));
    }
}
