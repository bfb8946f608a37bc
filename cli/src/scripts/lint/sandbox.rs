//! Where a script is checked: namespaces in which nothing of this host's locks, logs and store is seen, for an interface
//! also nothing of its network; and a folder that goes at the end.
//!
//! `unsafe` is allowed here for the call that makes the namespaces.
#![allow(unsafe_code)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use rustix::process::{geteuid, getpid, set_child_subreaper};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use tempfile::TempDir;

use crate::problem::{Code, Problem};

/// What a script does not see of this host.
const HIDDEN: [&str; 2] = ["/run", "/var/log"];

/// Whether what is at this path, which has no links, is not seen where scripts are checked.
pub(super) fn is_hidden(path: &Path) -> bool {
    HIDDEN.iter().any(|hidden| path.starts_with(hidden))
}

/// The namespaces and the folder.
pub(super) struct Sandbox {
    /// It goes when this is dropped.
    _folder: TempDir,
    root: PathBuf,
    /// Whether there are namespaces: only root can make them.
    pub(super) is_isolated: bool,
}

impl Sandbox {
    /// Moves this thread, and what is started from it, into namespaces of its own.
    pub(super) fn enter(with_network: bool) -> Result<Self, Problem> {
        let tried = "cannot make a place to check a script in";
        let problem =
            |error: &dyn std::fmt::Display, hint: &str| Problem::new(Code::Start, tried, error, hint);
        let place = "see that the directory for temporary files can be written (TMPDIR)";
        // The loop driver shows the path behind a device without links.
        let parent = std::env::temp_dir().canonicalize().map_err(|error| problem(&error, place))?;
        if geteuid().is_root() && is_hidden(&parent) {
            let observed = format!("{} is hidden while a script is checked", parent.display());
            return Err(problem(&observed, "name a directory for temporary files elsewhere (TMPDIR)"));
        }
        let folder = tempfile::Builder::new().prefix("xendev-lint-").tempdir_in(parent);
        let folder = folder.map_err(|error| problem(&error, place))?;
        let root = folder.path().to_owned();
        let is_isolated = geteuid().is_root();
        if with_network && !is_isolated {
            let observed =
                "the network of this host is not to be touched, and only root can make another one";
            return Err(problem(&observed, "run it as root"));
        }
        let sandbox = Self { _folder: folder, root, is_isolated };
        if is_isolated {
            sandbox.isolate(with_network).map_err(|error| {
                problem(
                    &error,
                    "run it where namespaces can be made: as root, and not in a container without them",
                )
            })?;
        }
        // What outlives its script is to be seen here.
        _ = set_child_subreaper(Some(getpid()));
        Ok(sandbox)
    }

    fn isolate(&self, with_network: bool) -> Result<(), String> {
        let network = if with_network { UnshareFlags::NEWNET } else { UnshareFlags::empty() };
        let said = |what: &str, error: rustix::io::Errno| format!("{what}: {error}");
        // SAFETY: no table of descriptors is unshared.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS | network) }
            .map_err(|error| said("namespaces", error))?;
        let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
        mount_change("/", private).map_err(|error| said("mounts of its own", error))?;
        let tmpfs = |at: &str| {
            mount("tmpfs", at, "tmpfs", MountFlags::empty(), c"mode=755").map_err(|error| said(at, error))
        };
        HIDDEN.into_iter().try_for_each(tmpfs)?;
        if with_network {
            mount("sysfs", "/sys", "sysfs", MountFlags::empty(), None::<&std::ffi::CStr>)
                .map_err(|error| said("/sys", error))?;
        }
        let made = fs::create_dir_all("/var/log/xen")
            .and_then(|()| fs::create_dir_all("/run/xenstored"))
            // For a script that forgets where its store is: it must not find this host's.
            .and_then(|()| symlink(self.socket(), "/run/xenstored/socket"));
        made.map_err(|error| error.to_string())
    }

    /// Where the store listens.
    pub(super) fn socket(&self) -> PathBuf {
        self.root.join("store")
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Whether a file is in the folder.
    pub(super) fn holds(&self, file: &Path) -> bool {
        file.starts_with(&self.root)
    }

    /// Hides `/dev/stdin` as long as the value lives; `None` if that cannot be.
    pub(super) fn without_stdin(&self) -> Option<WithoutStdin> {
        if !self.is_isolated {
            return None;
        }
        let top = self.path("dev");
        fs::create_dir_all(&top).ok()?;
        // A file system of its own: not every one can be an upper layer.
        mount("tmpfs", &top, "tmpfs", MountFlags::empty(), c"mode=755").ok()?;
        let mut hidden = WithoutStdin { mounts: vec![top.clone()] };
        let (upper, work) = (top.join("upper"), top.join("work"));
        [&upper, &work].into_iter().try_for_each(fs::create_dir_all).ok()?;
        let options = format!("lowerdir=/dev,upperdir={},workdir={}", upper.display(), work.display());
        let options = std::ffi::CString::new(options).ok()?;
        mount("overlay", "/dev", "overlay", MountFlags::empty(), options.as_c_str()).ok()?;
        hidden.mounts.insert(0, "/dev".into());
        fs::remove_file("/dev/stdin").ok()?;
        Some(hidden)
    }
}

/// `/dev/stdin` is hidden.
pub(super) struct WithoutStdin {
    mounts: Vec<PathBuf>,
}

impl Drop for WithoutStdin {
    fn drop(&mut self) {
        for at in &self.mounts {
            // What stays goes with the namespace.
            _ = unmount(at, UnmountFlags::DETACH);
        }
    }
}

/// Runs `ip` with these words.
pub(super) fn ip(words: &str) -> Result<(), String> {
    let output = Command::new("ip").args(words.split_ascii_whitespace()).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("ip: {error} (it is in the package iproute2)"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {words}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
