//! The file that holds a configuration: where it is, its lock, and how it is replaced.
//!
//! The lock is an exclusive `flock` on a file beside it. Whoever has it removes that file before giving it
//! back, so who opened the file meanwhile may get the lock of a file without a name, and tries again with
//! the one that is there now. A file that was left over is harmless.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde_json::{Map, Value};
use xs_client::DomId;

use super::{ConfigError, config};

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
        let path = self.sibling('l', "domain-userdata-lock");
        Locked::take(&path, self).map_err(|error| at(&path, &error))
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
        let replaced = write_new(&new, text).map_err(|error| at(&new, &error)).and_then(|()| {
            if permit() { fs::rename(&new, self.path()) } else { fs::remove_file(&new) }
        });
        if replaced.is_err() {
            // What cannot be removed is harmless: the next who writes begins with it.
            let _ = fs::remove_file(&new);
        }
        replaced
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
    path: PathBuf,
    /// The lock ends as this is closed, after the file has been removed.
    _file: File,
}

impl Locked {
    fn take(path: &Path, userdata: &Userdata) -> io::Result<Option<Self>> {
        loop {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false).mode(0o666).open(path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if is_at(&file, path)? => {
                    return Ok(Some(Self { userdata: userdata.clone(), path: path.to_owned(), _file: file }));
                }
                // Whoever had the lock before has removed the file.
                Ok(()) | Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

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

impl Drop for Locked {
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
