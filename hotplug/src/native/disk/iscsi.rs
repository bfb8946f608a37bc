//! `block-iscsi`: a target of iSCSI, by `iscsiadm`; through `multipath` if that is asked for.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::select;
use tokio::time::sleep;

use super::error::DiskError;
use super::{Detached, Served, user_of};
use crate::native::ToolError;
use crate::native::block::User;
use crate::native::tool::{Call, Course, Tool};
use crate::{LINE_SHOWN, Output, printable};

const ISCSIADM: Tool = Tool { name: "iscsiadm", install: "apt-get install open-iscsi" };
const MULTIPATH: Tool = Tool { name: "multipath", install: "apt-get install multipath-tools" };

/// Where udev names disks by the way to them.
const BY_PATH: &str = "/dev/disk/by-path";

/// Where the devices of multipath are.
const MAPPER: &str = "/dev/mapper";

/// How often to look for a device that is awaited.
const LOOK: Duration = Duration::from_millis(50);

/// The tool's exit statuses that are told apart.
const LOGIN: [i32; 3] = [5, 19, 24];
const UNREACHABLE: [i32; 3] = [4, 8, 23];
const DAEMON: [i32; 3] = [12, 18, 20];
const NONE_FOUND: i32 = 21;

const EXPECTED: &str = "iqn=<name of the target>,portal=<address of the portal>, and perhaps ,multipath=y";

/// A target: what `params` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    iqn: String,
    portal: String,
    multipath: bool,
}

impl Target {
    /// Reads `params` as the script does: words with commas or blanks between them, of which the last of a name counts and
    /// unknown ones do not.
    pub(super) fn parse(params: &str) -> Result<Self, DiskError> {
        let (mut iqn, mut portal, mut multipath) = ("", "", "n");
        for word in params.split([',', ' ', '\t', '\n']) {
            match word.split_once('=') {
                Some(("iqn", value)) => iqn = value,
                Some(("portal", value)) => portal = value,
                Some(("multipath", value)) => multipath = value,
                _ => {}
            }
        }
        if iqn.is_empty() || portal.is_empty() || !matches!(multipath, "y" | "n") {
            return Err(DiskError::Invalid { params: params.to_owned(), expected: EXPECTED });
        }
        Ok(Self { iqn: iqn.to_owned(), portal: portal.to_owned(), multipath: multipath == "y" })
    }

    /// The session that is opened for it.
    pub(super) fn node(&self) -> &str {
        &self.iqn
    }

    fn shown(&self) -> String {
        printable(format!("the iSCSI target {} of {}", self.iqn, self.portal), LINE_SHOWN)
    }

    fn session(&self, act: &str) -> Call {
        Call::new(&ISCSIADM, ["-m", "node", "--targetname", &self.iqn, "-p", &self.portal, act])
    }

    /// Looks whether it is free, and whether its portal has it.
    pub(super) async fn look(&self, course: &Course, users: &[User]) -> Result<(), DiskError> {
        if self.multipath {
            course.find(&MULTIPATH).map_err(|error| {
                DiskError::tool("give a disk through multipath", error, "Or attach it without multipath=y")
            })?;
        }
        if self.is_open(course).await? {
            let user = users.iter().find(|user| self.is_of(user)).map(user_of);
            let by = user.map_or("this host has a session with it already".to_owned(), |user| {
                format!("it is {user}, and opened for that")
            });
            let fix = "Detach it there, or log out (iscsiadm -m session lists the sessions)";
            return Err(DiskError::InUse { what: self.shown(), by, fix });
        }
        let step = || format!("ask the portal {} for its targets", printable(&self.portal, LINE_SHOWN));
        let discovery = Call::new(&ISCSIADM, ["-m", "discovery", "-t", "st", "-p", &self.portal]);
        let found = match course.call(&discovery).await {
            Ok(found) => found,
            Err(error) if error.exit_status() == Some(NONE_FOUND) => Output::default(),
            Err(error) => return Err(failed(step(), error)),
        };
        let text = found.text();
        let mut targets = text.lines().filter_map(|line| line.split_whitespace().nth(1));
        if targets.any(|target| target == self.iqn) || found.truncated() {
            return Ok(());
        }
        let seen = match text.lines().count() {
            0 => "the portal has no target for this host".to_owned(),
            count => format!("the portal does not name it among its {count} targets"),
        };
        let fix = "See what it has for this host (iscsiadm -m discovery -t st -p PORTAL), which it knows by \
                   /etc/iscsi/initiatorname.iscsi";
        Err(DiskError::Missing { what: self.shown(), seen, fix })
    }

    /// Logs in, and waits for the disk.
    pub(super) async fn make(&self, course: &Course) -> Result<Served, DiskError> {
        let login = course.call(&self.session("--login")).await;
        let step = || format!("log in to {}", self.shown());
        let served = match login {
            Ok(_) => self.disk(course).await,
            // It is another's.
            Err(error) if error.exit_status() == Some(15) => {
                let by = "a session was opened meanwhile".to_owned();
                let fix = "See who has it: iscsiadm -m session";
                return Err(DiskError::InUse { what: self.shown(), by, fix });
            }
            Err(error) => Err(failed(step(), error)),
        };
        match served {
            Ok(served) => Ok(served),
            Err(error) => Err(error.undone(self.undo(course).await)),
        }
    }

    /// Logs out, whatever became of the login.
    pub(super) async fn undo(&self, course: &Course) -> Result<(), ToolError> {
        match course.undo(&self.session("--logout")).await {
            Err(error) if error.exit_status() != Some(NONE_FOUND) => Err(error),
            _ => Ok(()),
        }
    }

    /// Waits for the disk of the session.
    async fn disk(&self, course: &Course) -> Result<Served, DiskError> {
        loop {
            let found = disk_of(&self.iqn).filter(|disk| Served::of(disk).is_some());
            let device = match found {
                Some(disk) if self.multipath => self.map(course, &disk).await?,
                found => found,
            };
            if let Some(served) = device.as_deref().and_then(Served::of) {
                return Ok(served);
            }
            if course.left(LOOK).is_zero() {
                let way = if self.multipath { "its device of multipath" } else { "its disk (LUN 0)" };
                return Err(DiskError::Late {
                    what: self.shown(),
                    awaited: way.to_owned(),
                    within: course.within(),
                    fix: "See whether the target has a LUN 0 (lsblk -S), and the kernel's log (dmesg)",
                });
            }
            select! {
                biased;
                () = course.cancel.cancelled() => return Err(DiskError::Cancelled),
                () = sleep(LOOK) => {}
            }
        }
    }

    /// The device by which multipath serves a disk, if there is one yet.
    async fn map(&self, course: &Course, disk: &Path) -> Result<Option<PathBuf>, DiskError> {
        let call = Call::new(&MULTIPATH, ["-ll".to_owned(), disk.to_string_lossy().into_owned()]);
        let listed = course.call(&call).await.map_err(|error| {
            DiskError::tool(
                "find the device of multipath",
                error,
                "See multipathd's log (journalctl -u multipathd)",
            )
        })?;
        let text = listed.text();
        let name = text.split_whitespace().next().filter(|name| !name.contains('/'));
        Ok(name.map(|name| Path::new(MAPPER).join(name)))
    }

    /// Whether there is a session with it.
    async fn is_open(&self, course: &Course) -> Result<bool, DiskError> {
        let step = "list the sessions of iSCSI";
        let listed = match course.call(&Call::new(&ISCSIADM, ["-m", "session"])).await {
            Ok(listed) => listed,
            Err(error) if error.exit_status() == Some(NONE_FOUND) => return Ok(false),
            Err(error) => return Err(failed(step, error)),
        };
        Ok(sessions(&listed.text()).any(|iqn| iqn == self.iqn))
    }

    /// Whether a disk of a guest is this target.
    fn is_of(&self, user: &User) -> bool {
        let target = user.params.as_deref().and_then(|params| Self::parse(params).ok());
        target.is_some_and(|target| target.iqn == self.iqn)
    }

    /// Logs out, unless a guest has the target.
    pub(super) async fn detach(
        &self,
        course: &Course,
        numbers: Option<&str>,
        users: &[User],
    ) -> Result<Detached, DiskError> {
        if !self.is_open(course).await? {
            return Ok(Detached::Before);
        }
        let has = |user: &&User| {
            self.is_of(user) || numbers.is_some() && user.physical_device.as_deref() == numbers
        };
        if let Some(user) = users.iter().find(has) {
            return Ok(Detached::Used { by: user_of(user) });
        }
        match course.call(&self.session("--logout")).await {
            Ok(_) => Ok(Detached::Now),
            Err(error) if error.exit_status() == Some(NONE_FOUND) => Ok(Detached::Before),
            Err(error) => Err(failed(format!("log out of {}", self.shown()), error)),
        }
    }
}

/// The targets of the sessions that the tool lists: `tcp: [1] 10.0.0.1:3260,1 iqn.2001-05.com.example:disk (non-flash)`.
fn sessions(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| line.split_whitespace().nth(3))
}

/// The disk that udev names for a target.
fn disk_of(iqn: &str) -> Option<PathBuf> {
    let ending = format!("-iscsi-{iqn}-lun-0");
    let entries = fs::read_dir(BY_PATH).ok()?.filter_map(Result::ok);
    let mut names: Vec<PathBuf> = entries
        .filter(|entry| entry.file_name().to_string_lossy().ends_with(&ending))
        .map(|entry| entry.path())
        .collect();
    names.sort();
    fs::canonicalize(names.first()?).ok()
}

/// The failure of `iscsiadm`, with what its exit status tells.
fn failed(step: impl Into<String>, error: ToolError) -> DiskError {
    let fix = match error.exit_status() {
        Some(status) if LOGIN.contains(&status) => {
            "The target refuses this host: see the name that it knows it by (/etc/iscsi/initiatorname.iscsi), and user and \
             password (/etc/iscsi/iscsid.conf, node.session.auth)"
        }
        Some(status) if UNREACHABLE.contains(&status) => {
            "See whether the portal's address and port are right and can be reached"
        }
        Some(status) if DAEMON.contains(&status) => {
            "See whether iscsid runs (systemctl status iscsid), and whether its module can be loaded (modprobe iscsi_tcp)"
        }
        _ => "See the log of iscsid (journalctl -u iscsid)",
    };
    DiskError::tool(step, error, fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_read_as_the_script_reads_it() {
        let target = |params: &str| {
            Target::parse(params).ok().map(|target| (target.iqn, target.portal, target.multipath))
        };
        let plain =
            |multipath| Some(("iqn.2001-05.com.example:d".to_owned(), "10.0.0.1:3260".to_owned(), multipath));
        assert_eq!(target("iqn=iqn.2001-05.com.example:d,portal=10.0.0.1:3260"), plain(false));
        assert_eq!(
            target("portal=10.0.0.1:3260,lun=1,multipath=y,iqn=iqn.2001-05.com.example:d"),
            plain(true)
        );
        assert_eq!(
            target("iqn=x iqn=iqn.2001-05.com.example:d portal=10.0.0.1:3260,multipath=n"),
            plain(false)
        );
        for bad in ["", "iqn=x", "portal=y", "iqn=,portal=y", "iqn=x,portal=y,multipath=yes", "/dev/sda"] {
            assert_eq!(target(bad), None, "{bad}");
        }
    }

    #[test]
    fn sessions_are_told_apart_by_their_whole_names() {
        let listed = "tcp: [1] 10.0.0.1:3260,1 iqn.x:disk10 (non-flash)\ntcp: [2] 10.0.0.1:3260,1 iqn.x:d (non-flash)\n";
        assert_eq!(sessions(listed).collect::<Vec<_>>(), ["iqn.x:disk10", "iqn.x:d"]);
        assert_eq!(
            sessions("iscsiadm: No active sessions.\n\n").filter(|iqn| iqn.starts_with("iqn")).count(),
            0
        );
    }
}
