//! Why a disk was not given: what was tried, what was observed, what to do.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use super::sharing::Holder;
use crate::printable::printable_path as shown;

/// Why a disk could not be attached or detached. Nothing is left of the attempt.
///
/// `Display` tells all, the kernel's answer included.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum Failure {
    /// A key of the backend that the handler needs is not there, or empty.
    #[error("the backend has no {0}: the device was removed meanwhile, or whoever added it left that out")]
    NoKey(&'static str),
    /// There is no such file or device.
    #[error("cannot open {}: it does not exist; correct the disk's target, or create it", shown(.0))]
    Missing(PathBuf),
    /// It is a directory, a pipe or the like.
    #[error(
        "cannot make a disk of {}: it is neither a file nor a block device; name one that is",
        shown(.0)
    )]
    NotADisk(PathBuf),
    /// The file must not be written to, by its permissions or those of its file system.
    #[error(
        "cannot give {} read-write: {why}; make it writable, or give the disk read-only",
        shown(.path)
    )]
    ReadOnly {
        /// The file.
        path: PathBuf,
        /// What forbids it.
        why: &'static str,
    },
    /// Somebody else has it.
    #[error(
        "cannot give {} {}: it is {holder}; detach or unmount it there{}",
        shown(.path),
        if *.writes { "read-write" } else { "read-only" },
        if *.writes { ", or give it read-only to all" } else { "" }
    )]
    InUse {
        /// The file or device.
        path: PathBuf,
        /// Whether it was to be written to.
        writes: bool,
        /// Who has it.
        holder: Holder,
    },
    /// The target is a loop device without a file.
    #[error("cannot give {0}: it is a loop device that serves no file; name the file, or set it up: losetup")]
    Unbound(String),
    /// This process may not do it.
    #[error(
        "cannot {tried}: {error}; run as root, with the capability CAP_SYS_ADMIN, and see what the file allows: ls -l, lsattr"
    )]
    NoPermission {
        /// What it tried.
        tried: String,
        /// The kernel's answer.
        error: Arc<io::Error>,
    },
    /// The kernel has no loop devices.
    #[error("cannot open /dev/loop-control: {0}; load the driver of loop devices: modprobe loop")]
    NoLoopDriver(Arc<io::Error>),
    /// All loop devices are in use.
    #[error(
        "cannot find a free loop device: {0}; detach some that are not needed, losetup --list shows them"
    )]
    NoLoopDevice(Arc<io::Error>),
    /// The kernel cannot set up a loop device in one step.
    #[error(
        "cannot set up a loop device in one step: {0}; it is no file that it can serve, or the kernel is older than Linux 5.8: use the script block"
    )]
    OldKernel(Arc<io::Error>),
    /// Somebody holds the lock of all disks.
    #[error(
        "cannot take the lock {} within {within:?}: another attach holds it; see which program hangs: fuser -v {}",
        shown(.path),
        shown(.path)
    )]
    Locked {
        /// The lock's file.
        path: PathBuf,
        /// How long it was tried.
        within: Duration,
    },
    /// Storage, or the kernel, did not answer.
    #[error("cannot {tried} within {within:?}: there is no answer; see whether its storage is reachable")]
    NoAnswer {
        /// What was tried.
        tried: String,
        /// How long.
        within: Duration,
    },
    /// The caller cancelled.
    #[error("cancelled")]
    Cancelled,
    /// Something else.
    #[error("cannot {tried}: {error}; the kernel's log may tell more: dmesg")]
    Other {
        /// What was tried.
        tried: String,
        /// The kernel's answer.
        error: Arc<io::Error>,
    },
}

impl Failure {
    /// An answer of the kernel, for whatever has no story of its own.
    pub(super) fn of(tried: impl Into<String>, error: impl Into<io::Error>) -> Self {
        let (tried, error) = (tried.into(), Arc::new(error.into()));
        if error.kind() == io::ErrorKind::PermissionDenied {
            Self::NoPermission { tried, error }
        } else {
            Self::Other { tried, error }
        }
    }

    /// What the script would have written into the backend's directory, in its order: `hotplug-error` and
    /// `hotplug-status`, which is `busy` where it would say so and else `error`.
    pub fn keys(&self) -> [(&'static str, String); 2] {
        let status = match self {
            Self::InUse { .. } | Self::ReadOnly { .. } => "busy",
            _ => "error",
        };
        [("hotplug-error", self.to_string()), ("hotplug-status", status.to_owned())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_tell_what_was_tried_what_was_seen_and_what_to_do() {
        let path = || PathBuf::from("/srv/d.img");
        let denied = || io::Error::from_raw_os_error(libc::EPERM);
        let guest = Holder::Guest {
            domid: 7,
            name: Some("db\u{1b}[2J".to_owned()),
            vdev: "xvdb".to_owned(),
            writes: true,
        };
        for (failure, text) in [
            (
                Failure::Missing(path()),
                "cannot open /srv/d.img: it does not exist; correct the disk's target, or create it",
            ),
            (
                Failure::InUse { path: path(), writes: true, holder: guest },
                "cannot give /srv/d.img read-write: it is the disk xvdb of the guest 7 (db\\x1b[2J), read-write; \
                 detach or unmount it there, or give it read-only to all",
            ),
            (
                Failure::InUse {
                    path: path(),
                    writes: false,
                    holder: Holder::Mount { point: "/mnt".into(), through: None },
                },
                "cannot give /srv/d.img read-only: it is mounted at /mnt in this domain; detach or unmount it there",
            ),
            (
                Failure::of("set up /dev/loop0", denied()),
                "cannot set up /dev/loop0: Operation not permitted (os error 1); run as root, with the capability \
                 CAP_SYS_ADMIN, and see what the file allows: ls -l, lsattr",
            ),
        ] {
            assert_eq!(failure.to_string(), text);
        }
    }

    #[test]
    fn a_failure_is_reported_as_by_the_script() {
        let status = |failure: &Failure| failure.keys()[1].clone();
        let missing = Failure::Missing("/a".into());
        assert_eq!(missing.keys()[0], ("hotplug-error", missing.to_string()));
        assert_eq!(status(&missing), ("hotplug-status", "error".to_owned()));
        let busy = Failure::ReadOnly { path: "/a".into(), why: "its permissions forbid it" };
        assert_eq!(status(&busy).1, "busy");
    }
}
