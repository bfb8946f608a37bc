//! The file that holds a configuration: where it is, its lock, and how it is replaced.
//!
//! The lock is an exclusive `flock` on a file beside it. Whoever has it removes that file before giving it
//! back, so who opened the file meanwhile may get the lock of a file without a name, and tries again with
//! the one that is there now. A file that was left over is harmless.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Access, FlockOperation, access, flock};
use rustix::io::Errno;
use serde_json::{Map, Value};
use xs_client::DomId;

use super::{ConfigError, config};
use crate::Kind;

/// The size of a file that is not read. Real ones have a few KiB.
const MAX: u64 = 16 << 20;

/// The file in which libxl keeps the configuration of a domain.
///
/// Its calls wait for the storage that it is on, and block the thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Userdata {
    directory: PathBuf,
    fe: DomId,
    uuid: String,
}

impl Userdata {
    /// The file of a domain in libxl's directory, which is `/var/lib/xen` unless libxl was built otherwise.
    ///
    /// `vm` is the value of the domain's node `vm`: `/vm/` and its UUID; `None` if it is not of this form.
    pub fn new(directory: impl Into<PathBuf>, fe: DomId, vm: &str) -> Option<Self> {
        let uuid = vm.strip_prefix("/vm/")?;
        let is_uuid = uuid.len() == 36 && uuid.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        is_uuid.then(|| Self { directory: directory.into(), fe, uuid: uuid.to_owned() })
    }

    /// Its path.
    pub fn path(&self) -> PathBuf {
        self.sibling('d', "libxl-json")
    }

    fn sibling(&self, class: char, name: &str) -> PathBuf {
        self.directory.join(format!("userdata-{class}.{}.{}.{name}", self.fe, self.uuid))
    }

    /// Whether it is there. One that cannot be looked at counts as there.
    pub fn exists(&self) -> bool {
        !matches!(fs::metadata(self.path()), Err(error) if error.kind() == io::ErrorKind::NotFound)
    }

    /// Takes its lock, unless another program has it.
    ///
    /// # Errors
    ///
    /// Those of the file system, with the path of the lock's file.
    pub fn try_lock(&self) -> io::Result<Option<Locked>> {
        let lock = self.try_lock_of("domain-userdata-lock")?;
        Ok(lock.map(|lock| Locked { userdata: self.clone(), _lock: lock }))
    }

    /// Takes another of libxl's locks of the domain, unless another program has it.
    fn try_lock_of(&self, name: &str) -> io::Result<Option<Lock>> {
        let path = self.sibling('l', name);
        Lock::take(&path).map_err(|error| at(&path, &error))
    }

    /// Takes its lock, as soon as it can be had within this time.
    ///
    /// libxl's waiters sleep in the kernel, and one of them has the lock a moment after it was given back. So
    /// it is looked at again and again, at intervals shorter than that moment.
    ///
    /// # Errors
    ///
    /// Those of the file system, with the path of the lock's file.
    pub fn lock_within(&self, limit: Duration) -> io::Result<Option<Locked>> {
        within(limit, || self.try_lock())
    }

    /// The same of another of libxl's locks of the domain.
    pub(crate) fn lock_of_within(&self, name: &str, limit: Duration) -> io::Result<Option<Lock>> {
        within(limit, || self.try_lock_of(name))
    }

    /// Sees that devices of a kind can be entered and struck out: that it can be understood, and its directory
    /// be written to.
    ///
    /// # Errors
    ///
    /// What would keep a change from being made.
    pub fn check(&self, kind: Kind) -> Result<(), ConfigError> {
        if let Some(text) = self.read()? {
            config::entries(&config::parse(&text)?, kind)?;
        }
        access(&self.directory, Access::WRITE_OK).map_err(io::Error::from)?;
        Ok(())
    }

    /// Whether it has an entry of a device. One that cannot be read has none.
    pub fn has(&self, which: (Kind, u32)) -> bool {
        let config = self.read().ok().flatten().and_then(|text| config::parse(&text).ok());
        config.is_some_and(|config| config::has(&config, which))
    }

    /// Reads it; `None` if it is not there.
    fn read(&self) -> Result<Option<Vec<u8>>, ConfigError> {
        let file = match File::open(self.path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let mut text = Vec::new();
        file.take(MAX + 1).read_to_end(&mut text)?;
        if text.len() as u64 > MAX { Err(ConfigError::TooLarge(MAX)) } else { Ok(Some(text)) }
    }

    /// Puts a new file in its place, if that is permitted in the end.
    fn replace(&self, text: &[u8], permit: impl FnOnce() -> bool) -> io::Result<()> {
        let new = self.sibling('n', "libxl-json");
        let replaced = write_new(&new, text)
            .map_err(|error| at(&new, &error))
            .and_then(|()| if permit() { fs::rename(&new, self.path()) } else { fs::remove_file(&new) });
        if replaced.is_err() {
            // What cannot be removed is harmless: the next who writes begins with it.
            let _ = fs::remove_file(&new);
        }
        replaced
    }
}

/// Tries again and again to take a lock.
fn within<T>(limit: Duration, take: impl Fn() -> io::Result<Option<T>>) -> io::Result<Option<T>> {
    const PAUSE: Duration = Duration::from_micros(100);
    let begun = Instant::now();
    loop {
        match take()? {
            None if begun.elapsed() < limit => thread::sleep(PAUSE),
            taken => return Ok(taken),
        }
    }
}

/// Writes a file that was not there, so that nobody but its owner can ever read it.
fn write_new(path: &Path, text: &[u8]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text)?;
    file.sync_all()
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// The right to change a domain's configuration, until it is dropped.
#[derive(Debug)]
pub struct Locked {
    userdata: Userdata,
    _lock: Lock,
}

/// A lock as libxl takes it, until it is dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    path: PathBuf,
    /// The lock ends as this is closed, after the file has been removed.
    _file: File,
}

impl Lock {
    fn take(path: &Path) -> io::Result<Option<Self>> {
        loop {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false).mode(0o666).open(path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if is_at(&file, path)? => {
                    return Ok(Some(Self { path: path.to_owned(), _file: file }));
                }
                // Whoever had the lock before has removed the file.
                Ok(()) | Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Locked {
    /// Changes the configuration, unless its file is not there or nothing is different then.
    ///
    /// `permit` is asked when nothing is left to do but to put the new file in its place.
    ///
    /// # Errors
    ///
    /// Those of `change`, and of reading and writing. The file is as it was then.
    pub fn change(
        &self,
        change: impl FnOnce(&mut Map<String, Value>) -> Result<(), ConfigError>,
        permit: impl FnOnce() -> bool,
    ) -> Result<(), ConfigError> {
        let Some(text) = self.userdata.read()? else { return Ok(()) };
        let before = config::parse(&text)?;
        let mut after = before.clone();
        change(&mut after)?;
        if after != before {
            self.userdata.replace(&config::print(&after), permit)?;
        }
        Ok(())
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether an open file is the one that a path leads to.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let id = |found: fs::Metadata| (found.dev(), found.ino());
    match fs::metadata(path) {
        Ok(found) => Ok(id(found) == id(file.metadata()?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use serde_json::json;

    use super::*;

    const UUID: &str = "0a1b2c3d-0000-4000-8000-0123456789ab";

    fn domain(directory: &Path) -> Userdata {
        Userdata::new(directory, DomId(7), &format!("/vm/{UUID}")).unwrap()
    }

    /// A directory with the file of a domain that has no devices.
    fn world() -> (tempfile::TempDir, Userdata) {
        let directory = tempfile::tempdir().unwrap();
        let userdata = domain(directory.path());
        fs::write(userdata.path(), "{\n    \"c_info\": {\n\n    }\n}\n\0").unwrap();
        (directory, userdata)
    }

    fn names(directory: &Path) -> Vec<String> {
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<String> = fs::read_dir(directory).unwrap().map(name).collect();
        names.sort();
        names
    }

    fn content(userdata: &Userdata) -> Map<String, Value> {
        config::parse(&userdata.read().unwrap().unwrap()).unwrap()
    }

    /// Waits for the lock.
    fn lock(userdata: &Userdata) -> Locked {
        loop {
            if let Some(locked) = userdata.try_lock().unwrap() {
                return locked;
            }
            std::thread::yield_now();
        }
    }

    fn set(name: &str) -> impl FnOnce(&mut Map<String, Value>) -> Result<(), ConfigError> {
        let name = name.to_owned();
        move |config| {
            config.insert(name, json!(1));
            Ok(())
        }
    }

    /// What libxl does to set a member: it waits in `flock`, and writes by way of the same new file.
    fn set_as_libxl(userdata: &Userdata, name: &str) {
        let path = userdata.sibling('l', "domain-userdata-lock");
        let lock = loop {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false).open(&path).unwrap();
            flock(&file, FlockOperation::LockExclusive).unwrap();
            match fs::metadata(&path) {
                Ok(found) if found.ino() == file.metadata().unwrap().ino() => break file,
                _ => {}
            }
        };
        let mut config = content(userdata);
        config.insert(name.to_owned(), json!(1));
        let new = userdata.sibling('n', "libxl-json");
        fs::write(&new, config::print(&config)).unwrap();
        fs::rename(&new, userdata.path()).unwrap();
        fs::remove_file(&path).unwrap();
        drop(lock);
    }

    #[test]
    fn paths_are_libxls() {
        let userdata = domain(Path::new("/var/lib/xen"));
        let path = format!("/var/lib/xen/userdata-d.7.{UUID}.libxl-json");
        assert_eq!(userdata.path().to_str(), Some(&*path));
        for vm in ["", "/vm/", UUID, "/vm/../../etc/passwd", "/vm/0a1b2c3d-0000-4000-8000-0123456789a/"] {
            assert_eq!(Userdata::new("/", DomId(7), vm), None, "{vm}");
        }
    }

    #[test]
    fn a_change_replaces_the_file() {
        let (directory, userdata) = world();
        // What a crash has left.
        fs::write(userdata.sibling('n', "libxl-json"), "half of").unwrap();
        fs::write(userdata.sibling('l', "domain-userdata-lock"), "").unwrap();
        lock(&userdata).change(set("x"), || true).unwrap();
        let text = fs::read_to_string(userdata.path()).unwrap();
        assert_eq!(text, "{\n    \"c_info\": {\n\n    },\n    \"x\": 1\n}\n\0");
        assert_eq!(fs::metadata(userdata.path()).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(names(directory.path()), [format!("userdata-d.7.{UUID}.libxl-json")]);
    }

    #[test]
    fn what_is_not_permitted_or_changes_nothing_is_not_written() {
        let (directory, userdata) = world();
        let inode = || fs::metadata(userdata.path()).unwrap().ino();
        let before = (inode(), content(&userdata));
        lock(&userdata).change(set("x"), || false).unwrap();
        lock(&userdata).change(|_| Ok(()), || panic!("there is nothing to permit")).unwrap();
        assert_eq!((inode(), content(&userdata)), before);
        assert_eq!(names(directory.path()).len(), 1);
    }

    #[test]
    fn no_file_is_made() {
        let directory = tempfile::tempdir().unwrap();
        let userdata = domain(directory.path());
        assert!(!userdata.exists());
        lock(&userdata).change(set("x"), || true).unwrap();
        assert_eq!(names(directory.path()), [""; 0]);
    }

    #[test]
    fn a_file_that_cannot_be_understood_or_replaced_stays() {
        let (directory, userdata) = world();
        let new = userdata.sibling('n', "libxl-json");
        // As a full disk does it: the new file cannot be made.
        fs::create_dir(&new).unwrap();
        let before = content(&userdata);
        let error = lock(&userdata).change(set("x"), || true).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{}: ", new.display())), "{error}");
        assert_eq!(content(&userdata), before);
        fs::remove_dir(&new).unwrap();
        fs::write(userdata.path(), "[]").unwrap();
        let error = lock(&userdata).change(set("x"), || true).unwrap_err();
        assert!(matches!(error, ConfigError::Syntax(_)), "{error}");
        // Sparse: it has no bytes to be read before that is known.
        let large = File::create(userdata.path()).unwrap();
        large.set_len(MAX + 1).unwrap();
        let error = lock(&userdata).change(set("x"), || true).unwrap_err();
        assert!(matches!(error, ConfigError::TooLarge(MAX)), "{error}");
        assert_eq!(names(directory.path()).len(), 1);
        // Nothing to read.
        fs::remove_file(userdata.path()).unwrap();
        fs::create_dir(userdata.path()).unwrap();
        assert!(userdata.exists());
        assert!(matches!(lock(&userdata).change(set("x"), || true), Err(ConfigError::Io(_))));
    }

    #[test]
    fn the_lock_is_one_programs() {
        let (_directory, userdata) = world();
        let first = userdata.try_lock().unwrap().unwrap();
        assert!(userdata.try_lock().unwrap().is_none());
        drop(first);
        assert!(userdata.try_lock().unwrap().is_some());
        // Its directory is gone.
        let error = domain(Path::new("/nowhere")).try_lock().unwrap_err().to_string();
        assert!(error.starts_with("/nowhere/userdata-l.7."), "{error}");
    }

    /// Threads that follow our protocol beside threads that follow libxl's: `flock` is of the open file, so
    /// threads get into each other's way as processes do.
    #[test]
    fn no_entry_is_lost_between_many_writers() {
        const EACH: usize = 40;
        let (directory, userdata) = world();
        std::thread::scope(|scope| {
            for writer in 0..3 {
                let userdata = &userdata;
                scope.spawn(move || {
                    for entry in 0..EACH {
                        lock(userdata).change(set(&format!("ours {writer} {entry}")), || true).unwrap();
                    }
                });
                scope.spawn(move || {
                    for entry in 0..EACH {
                        set_as_libxl(userdata, &format!("libxl {writer} {entry}"));
                    }
                });
            }
        });
        assert_eq!(content(&userdata).len(), 1 + 6 * EACH);
        assert_eq!(names(directory.path()).len(), 1);
    }
}
