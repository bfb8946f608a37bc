//! The lock of a device: no script of one device runs beside another of the same device.
//!
//! It is an exclusive `flock` on a file whose name says the device. All programs of this host that run
//! scripts with this crate share the directory of these files, so it works across processes. The guard of a
//! script keeps the descriptor open (`process/guard.rs`), so a script whose program was killed holds the
//! lock until it is gone.
//!
//! Whoever has the lock and knows that nobody else has its descriptor may remove the file. A file
//! that is left over is harmless. Whoever opens a file may therefore find it removed when the lock comes,
//! and tries again with the file that is there now.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use crate::Request;
use crate::printable::printable_path;

/// Where a script's tools look for the store if no variable says otherwise; `/var/run` is the same.
const DEFAULT_STORE: [&str; 2] = ["/run/xenstored/socket", "/var/run/xenstored/socket"];

/// The right to run a script of one device, as long as any descriptor of the open file lives.
#[derive(Debug)]
pub(crate) struct DeviceLock {
    file: File,
    path: PathBuf,
}

impl DeviceLock {
    /// Waits until the lock is free, and takes it. Somebody else's is tried again so often.
    pub(crate) async fn take(path: &Path, poll: Duration) -> io::Result<Self> {
        loop {
            if let Some(lock) = Self::try_take(path)? {
                return Ok(lock);
            }
            tokio::time::sleep(poll).await;
        }
    }

    /// Takes the lock, unless somebody else has it.
    fn try_take(path: &Path) -> io::Result<Option<Self>> {
        loop {
            let file = open(path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if is_at(&file, path)? => return Ok(Some(Self { file, path: path.to_owned() })),
                // Whoever had the lock before has removed the file.
                Ok(()) | Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Gives the lock back and removes its file. For an owner whose guard is gone: as long as there is
    /// one, removing the file would let somebody else lock a new one of the same name.
    pub(crate) fn remove(self) {
        // A file that cannot be removed is harmless.
        let _ = fs::remove_file(&self.path);
    }
}

/// A lock that is held. Dropping it gives it back, as soon as no tool that was started under it is alive, and removes
/// its file.
#[derive(Debug)]
pub struct Held {
    lock: Option<DeviceLock>,
    /// How many guards may still have the descriptor.
    guards: AtomicUsize,
}

impl Held {
    /// Waits until the lock is free, and takes it. Somebody else's is tried again so often.
    pub(crate) async fn take(path: &Path, poll: Duration) -> io::Result<Self> {
        Ok(Self { lock: Some(DeviceLock::take(path, poll).await?), guards: AtomicUsize::new(0) })
    }

    /// The descriptor for one more guard, which keeps the lock until its group is dead.
    pub(crate) fn lend(&self) -> Option<BorrowedFd<'_>> {
        self.guards.fetch_add(1, Ordering::Relaxed);
        self.lock.as_ref().map(DeviceLock::as_fd)
    }

    /// A guard that had the descriptor is gone.
    pub(crate) fn returned(&self) {
        self.guards.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // As long as there is a guard, removing the file would let somebody else lock a new one of the same name.
        if let Some(lock) = self.lock.take().filter(|_| *self.guards.get_mut() == 0) {
            lock.remove();
        }
    }
}

impl AsFd for DeviceLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Opens the file of a lock, which is made unless it is there.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(path)
}

/// Whether an open file is the one that a path leads to.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let id = |found: fs::Metadata| (found.dev(), found.ino());
    match fs::symlink_metadata(path) {
        Ok(found) => Ok(id(found) == id(file.metadata()?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The name of a device's lock, for a script with these variables. The runs of one device share it.
pub(crate) fn name(request: &Request, variables: &BTreeMap<OsString, OsString>) -> String {
    format!("{}-{}-{}-{}", store(variables), request.kind.backend(), request.fe, request.devid)
}

/// What tells the store of a script from other stores on this host.
fn store(variables: &BTreeMap<OsString, OsString>) -> String {
    let given = variables.get(OsStr::new("XENSTORED_PATH")).filter(|path| !path.is_empty());
    let Some(path) = given.map(Path::new) else {
        return "default".to_owned();
    };
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if DEFAULT_STORE.map(Path::new).iter().any(|default| *default == path || *default == real) {
        return "default".to_owned();
    }
    format!("{:016x}", fnv1a(real.as_os_str().as_bytes()))
}

/// FNV-1a: a hash that is the same in every program and every version.
fn fnv1a(bytes: &[u8]) -> u64 {
    let hash = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, hash)
}

/// Makes the directory of the locks unless it is there, and says where it is. A directory that the caller
/// has named is taken as it is.
pub(crate) fn directory(named: Option<&Path>) -> io::Result<PathBuf> {
    let uid = rustix::process::geteuid();
    let (path, result) = match named {
        Some(path) => (path.to_owned(), fs::create_dir_all(path)),
        None => {
            let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
            let (path, forbidden) = match runtime {
                _ if uid.is_root() => (PathBuf::from("/run/xendev"), 0o022),
                Some(runtime) => (runtime.join("xendev"), 0o022),
                // The place where anybody can make a directory of this name first.
                None => (env::temp_dir().join(format!("xendev-{uid}")), 0o077),
            };
            let result = private(&path, uid.as_raw(), forbidden);
            (path, result)
        }
    };
    let told = |error: io::Error| {
        io::Error::new(error.kind(), format!("the directory {} for locks: {error}", printable_path(&path)))
    };
    result.map_err(told)?;
    Ok(path)
}

/// Makes a directory that only this user can enter, or checks that it belongs to this user and gives
/// nobody else a forbidden permission.
fn private(path: &Path, uid: u32, forbidden: u32) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let found = fs::symlink_metadata(path)?;
    if !found.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    let refuse = |why: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    if found.uid() != uid {
        return refuse(format!("it belongs to the user {}", found.uid()));
    }
    if found.mode() & forbidden != 0 {
        return refuse(format!("others have permissions there (mode {:o})", found.mode() & 0o7777));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::{Action, Kind};

    #[test]
    fn the_runs_of_a_device_share_a_lock_and_no_others_do() {
        let none = BTreeMap::new();
        let of = |kind, fe, devid| name(&Request::new(kind, Action::Add, fe, devid, "s"), &none);
        assert_eq!(of(Kind::Vif, 1, 0), "default-vif-1-0");
        assert_eq!(of(Kind::VifIoemu, 1, 0), of(Kind::Vif, 1, 0));
        assert_eq!(of(Kind::Tap, 1, 0), of(Kind::Vif, 1, 0));
        assert_eq!(of(Kind::Vbd, 1, 0), "default-vbd-1-0");
        assert_eq!(of(Kind::Vbd3, 1, 0), "default-vbd3-1-0");
    }

    #[test]
    fn stores_are_told_apart() {
        let of = |path: &str| store(&[("XENSTORED_PATH".into(), path.into())].into());
        assert_eq!(of("/run/xenstored/socket"), "default");
        assert_eq!(of("/var/run/xenstored/socket"), "default");
        assert_eq!(of(""), "default");
        assert_eq!(of("/a"), format!("{:016x}", fnv1a(b"/a")));
        assert_ne!(of("/a"), of("/b"));
        // The published test vector of the hash.
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn a_removed_file_locks_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = DeviceLock::try_take(&path).unwrap().unwrap();
        assert!(DeviceLock::try_take(&path).unwrap().is_none());
        // Opened before the file is removed, locked after it.
        let late = open(&path).unwrap();
        assert!(is_at(&late, &path).unwrap());
        first.remove();
        flock(&late, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert!(!is_at(&late, &path).unwrap());
        let second = DeviceLock::try_take(&path).unwrap().unwrap();
        assert!(!is_at(&late, &path).unwrap());
        drop(second);
        assert!(path.exists());
        DeviceLock::try_take(&path).unwrap().unwrap().remove();
        assert!(!path.exists());
    }

    /// So many threads take the lock, count and remove it that some open a file which is then removed.
    #[test]
    fn nobody_else_has_the_lock_whoever_removes_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let holders = std::sync::atomic::AtomicU32::new(0);
        let work = || {
            let mut taken = 0;
            while taken < 100 {
                let Some(lock) = DeviceLock::try_take(&path).unwrap() else { continue };
                taken += 1;
                assert_eq!(holders.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                std::thread::yield_now();
                holders.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                lock.remove();
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(work);
            }
        });
    }

    #[test]
    fn a_directory_of_others_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let uid = rustix::process::geteuid().as_raw();
        let path = dir.path().join("xendev");
        private(&path, uid, 0o077).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o700);
        private(&path, uid, 0o077).unwrap();
        let error = private(&path, uid + 1, 0o077).unwrap_err();
        assert!(error.to_string().contains("belongs to the user"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let error = private(&path, uid, 0o077).unwrap_err();
        assert!(error.to_string().contains("mode 755"), "{error}");
        private(&path, uid, 0o022).unwrap();
        let link = dir.path().join("link");
        symlink(&path, &link).unwrap();
        assert_eq!(private(&link, uid, 0o022).unwrap_err().kind(), io::ErrorKind::NotADirectory);
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(directory(Some(&file)).unwrap_err().to_string().contains("for locks"));
    }
}
