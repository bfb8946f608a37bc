//! `block-tap`: an image that a tapdisk serves, by `tap-ctl`: through blktap's driver to blkback, or by itself to the guest
//! (`vbd3`).

use std::collections::BTreeMap;
use std::path::Path;

use super::error::DiskError;
use super::{Detached, Served, user_of};
use crate::native::ToolError;
use crate::native::block::{Domain, Mode, User};
use crate::native::tool::{Call, Course, Tool};
use crate::{LINE_SHOWN, Output, printable};

const TAP_CTL: Tool = Tool {
    name: "tap-ctl",
    install: "it belongs to blktap (https://github.com/xapi-project/blktap), which Debian 12 and 13 do not have",
};

/// How `tap-ctl allocate` names a minor: with and without blktap's driver.
const MINORS: [&str; 2] = ["/dev/xen/blktap-2/tapdev", "/run/blktap-control/tapdisk/tapdisk-"];

const EXPECTED: &str = "type:file, such as aio:/srv/d.img or vhd:/srv/d.vhd";

const SEE_LOG: &str = "See tapdisk's messages in the system's log (journalctl -t tapdisk)";

/// A target: what `params` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    format: String,
    file: String,
    /// Whether the guest is served by the tapdisk itself.
    by_itself: bool,
}

/// A tapdisk that serves an image: its process, and which of its disks it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tapdisk {
    pid: u32,
    minor: u32,
}

impl Tapdisk {
    fn args(self) -> [String; 4] {
        ["-p".to_owned(), self.pid.to_string(), "-m".to_owned(), self.minor.to_string()]
    }

    fn call(self, command: &str) -> Call {
        Call::new(&TAP_CTL, [command.to_owned()].into_iter().chain(self.args()))
    }

    /// The one that a backend's keys name.
    fn of(keys: &BTreeMap<String, String>) -> Option<Self> {
        let number = |key| keys.get(key)?.parse().ok();
        Some(Self { pid: number("pid")?, minor: number("minor")? })
    }
}

impl Target {
    pub(super) fn parse(params: &str, by_itself: bool) -> Result<Self, DiskError> {
        let invalid = || DiskError::Invalid { params: params.to_owned(), expected: EXPECTED };
        let (format, file) = params.split_once(':').ok_or_else(invalid)?;
        if format.is_empty() || file.is_empty() || format.starts_with('-') {
            return Err(invalid());
        }
        Ok(Self { format: format.to_owned(), file: file.to_owned(), by_itself })
    }

    fn shown(&self) -> String {
        printable(format!("{}:{}", self.format, self.file), LINE_SHOWN)
    }

    /// Looks whether the guest may have the image, and which tapdisk serves it already.
    pub(super) async fn look(
        &self,
        course: &Course,
        mode: Mode,
        guest: &Domain,
        users: &[User],
    ) -> Result<Option<Tapdisk>, DiskError> {
        let conflicts = |user: &&User| {
            (mode == Mode::Write || Mode::parse(&user.mode) == Mode::Write)
                && !guest.shares_with(&user.domain)
        };
        let user = users.iter().filter(|user| self.is_of(user)).find(conflicts);
        if let Some(user) = user.filter(|_| mode != Mode::Unchecked) {
            let fix = "Detach it there, or give it read-only to all";
            return Err(DiskError::InUse { what: self.shown(), by: format!("it is {}", user_of(user)), fix });
        }
        self.find(course).await
    }

    async fn find(&self, course: &Course) -> Result<Option<Tapdisk>, DiskError> {
        let call = Call::new(&TAP_CTL, ["list", "-t", &self.format, "-f", &self.file]);
        let listed = course.call(&call).await;
        let listed = listed.map_err(|error| DiskError::tool("list the tapdisks", error, SEE_LOG))?;
        Ok(tapdisk(&listed.text()))
    }

    /// Has a new tapdisk serve the image.
    pub(super) async fn create(&self, course: &Course) -> Result<Tapdisk, DiskError> {
        let call = |command: &str| Call::new(&TAP_CTL, [command]);
        let failed =
            |step: &str, error| DiskError::tool(format!("{step} for {}", self.shown()), error, SEE_LOG);
        let unread = |step: &str, output: &Output| DiskError::Missing {
            what: self.shown(),
            seen: format!("tap-ctl {step} printed no number: {}", output.last_line().unwrap_or_default()),
            fix: SEE_LOG,
        };
        let allocated =
            course.call(&call("allocate")).await.map_err(|error| failed("allocate a minor", error))?;
        let minor = minor(&allocated.text()).ok_or_else(|| unread("allocate", &allocated))?;
        let free = Call::new(&TAP_CTL, ["free".to_owned(), "-m".to_owned(), minor.to_string()]);

        let spawned = course.call(&call("spawn")).await.map_err(|error| failed("start a tapdisk", error));
        let spawned = spawned.and_then(|output| {
            let pid = output.text().trim().parse().ok();
            pid.ok_or_else(|| unread("spawn", &output))
        });
        let pid = match spawned {
            Ok(pid) => pid,
            Err(error) => return Err(error.undone(course.undo(&free).await.map(drop))),
        };
        let tapdisk = Tapdisk { pid, minor };

        let (mut undo, mut steps) = (vec![free], Vec::new());
        steps.push(("attach a tapdisk", tapdisk.call("attach"), tapdisk.call("detach")));
        let open = tapdisk.call("open").with(["-a".to_owned(), format!("{}:{}", self.format, self.file)]);
        steps.push(("open the image", open, tapdisk.call("close")));
        for (step, call, undone_by) in steps {
            if let Err(error) = course.call(&call).await {
                if error.exit_status().is_none() {
                    // One that was killed may have done its work. If not, this has nothing to undo, and fails.
                    _ = course.undo(&undone_by).await;
                }
                return Err(failed(step, error).undone(all(course, &undo).await));
            }
            undo.push(undone_by);
        }
        Ok(tapdisk)
    }

    /// What is written of a tapdisk that serves the image.
    pub(super) fn keys(&self, tapdisk: Tapdisk) -> Result<Vec<(&'static str, String)>, DiskError> {
        let Tapdisk { pid, minor } = tapdisk;
        let mut keys = vec![("pid", pid.to_string()), ("minor", minor.to_string())];
        if self.by_itself {
            // A socket, which has no numbers.
            keys.push(("physical-device-path", format!("/run/blktap-control/nbd{pid}.{minor}")));
            keys.push(("hotplug-status", "connected".to_owned()));
            return Ok(keys);
        }
        let path = format!("{}{minor}", MINORS[0]);
        let Some(served) = Served::of(Path::new(&path)) else {
            let fix = "Load blktap's driver, or attach the disk with backendtype=tap, which needs none";
            let seen = format!("{path} is no block device");
            return Err(DiskError::Missing { what: self.shown(), seen, fix });
        };
        keys.extend(served.keys());
        Ok(keys)
    }

    /// Whether a disk of a guest is of this image.
    fn is_of(&self, user: &User) -> bool {
        let Some(params) = user.params.as_deref() else { return false };
        let file =
            if params.starts_with('/') { Some(params) } else { params.split_once(':').map(|(_, file)| file) };
        file == Some(&*self.file)
    }

    /// Has the tapdisk close the image, unless a guest has it.
    pub(super) async fn detach(
        &self,
        course: &Course,
        keys: &BTreeMap<String, String>,
        users: &[User],
    ) -> Result<Detached, DiskError> {
        let Some(tapdisk) = Tapdisk::of(keys) else { return Ok(Detached::Before) };
        if let Some(user) = users.iter().find(|user| self.is_of(user)) {
            return Ok(Detached::Used { by: user_of(user) });
        }
        // Its process may have ended, and another have the number.
        if self.find(course).await? != Some(tapdisk) {
            return Ok(Detached::Before);
        }
        let destroyed = course.call(&tapdisk.call("destroy")).await;
        let step = || format!("have the tapdisk {} close {}", tapdisk.pid, self.shown());
        destroyed.map_err(|error| DiskError::tool(step(), error, SEE_LOG))?;
        Ok(Detached::Now)
    }
}

/// Undoes what was done, the last first; the first that fails of it.
async fn all(course: &Course, undo: &[Call]) -> Result<(), ToolError> {
    let mut undone = Ok(());
    for call in undo.iter().rev() {
        let done = course.undo(call).await.map(drop);
        undone = undone.and(done);
    }
    undone
}

/// Has a tapdisk that was made close its image.
pub(super) async fn undo(course: &Course, tapdisk: Tapdisk) -> Result<(), ToolError> {
    course.undo(&tapdisk.call("destroy")).await.map(drop)
}

/// The first that the tool lists: `pid=4711 minor=0 state=0 args=aio:/srv/d.img`.
fn tapdisk(text: &str) -> Option<Tapdisk> {
    let number = |line: &str, key: &str| {
        let mut words = line.split([' ', ',', '\t']);
        words.find_map(|word| word.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
    };
    text.lines().find_map(|line| Some(Tapdisk { pid: number(line, "pid")?, minor: number(line, "minor")? }))
}

/// The number in the name that the tool prints.
fn minor(text: &str) -> Option<u32> {
    MINORS.iter().find_map(|prefix| text.trim().strip_prefix(prefix)?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_type_and_a_file() {
        let target = Target::parse("vhd:/srv/a:b.vhd", true).unwrap();
        assert_eq!((&*target.format, &*target.file), ("vhd", "/srv/a:b.vhd"));
        for bad in ["", "/srv/d.img", "aio:", ":/srv/d.img", "-x:/srv/d.img"] {
            assert!(Target::parse(bad, true).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_tools_words_are_read() {
        let listed = "pid=4711 minor=3 state=0 args=aio:/srv/d.img\n";
        assert_eq!(tapdisk(listed), Some(Tapdisk { pid: 4711, minor: 3 }));
        // A process that serves nothing, and a minor that nothing serves.
        assert_eq!(tapdisk("pid=4711\nminor=3 state=-\n"), None);
        assert_eq!(minor("/run/blktap-control/tapdisk/tapdisk-7\n"), Some(7));
        assert_eq!(minor("/dev/xen/blktap-2/tapdev12"), Some(12));
        assert_eq!(minor("no minor"), None);
    }
}
