//! Why a script could not be started: the kernel's answers, put into words that name the fault.
//!
//! The kernel says "no such file" for a script whose interpreter is missing, and "permission denied" for a
//! directory. So after a failure the file is looked at, and its first line read as the kernel reads it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};
use thiserror::Error;

use crate::printable::printable_path;

/// What is wrong with a script that could not be started, as far as it can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SpawnFault {
    /// There is no such file.
    NotFound,
    /// It is a directory, or another thing that is no file.
    NotAFile,
    /// The file has nothing in it.
    Empty,
    /// It may not be executed: mostly its execute bit is not set.
    NotExecutable,
    /// The interpreter that its first line names is not there, or cannot be executed.
    Interpreter,
    /// Its first line ends with a carriage return, which the kernel takes for a part of the interpreter's
    /// name: the file was written with the line ends of DOS.
    LineEnds,
    /// It is no program of this machine and does not begin with `#!`.
    Format,
    /// The lock of the device could not be taken, so nothing was started.
    Lock,
    /// Something else, which the message tells.
    Other,
}

/// Why a script could not be started.
///
/// Holds what an [`io::Error`] holds, in a form that can be cloned and compared.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct SpawnError {
    kind: io::ErrorKind,
    fault: SpawnFault,
    message: String,
}

impl SpawnError {
    /// What kind of error it is: `NotFound` and `PermissionDenied` are the likely ones.
    pub fn kind(&self) -> io::ErrorKind {
        self.kind
    }

    /// What is wrong with the script.
    pub fn fault(&self) -> SpawnFault {
        self.fault
    }

    /// A script that need not be started, since nothing can come of it: one that is not there, may not be executed, or
    /// has no interpreter; and an empty file. The C library hands what the kernel does not know to a shell, and so an
    /// empty file is run, and ends well.
    pub(crate) fn foresee(script: &Path) -> Option<Self> {
        if !is_path(script) {
            return None;
        }
        let explained = |kind: io::ErrorKind| Some(Self::explain(script, &kind.into()));
        match script.metadata() {
            Err(error) => Some(Self::explain(script, &error)),
            Ok(found) if !found.is_file() || found.permissions().mode() & 0o111 == 0 => {
                explained(io::ErrorKind::PermissionDenied)
            }
            Ok(found) if found.len() == 0 => Some(Self {
                kind: io::ErrorKind::InvalidData,
                fault: SpawnFault::Empty,
                message: "the file is empty".to_owned(),
            }),
            Ok(_) => match interpreter(script).map(|interpreter| interpreter.metadata()) {
                Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => explained(error.kind()),
                _ => None,
            },
        }
    }

    /// The kernel's answer to the attempt to execute `script`, in words that name the fault.
    pub(crate) fn explain(script: &Path, error: &io::Error) -> Self {
        let (fault, message) =
            diagnose(script, error).unwrap_or_else(|| (SpawnFault::Other, error.to_string()));
        Self { kind: error.kind(), fault, message }
    }

    /// The lock of a device could not be taken, and without it no script is run.
    pub(crate) fn lock(lock: &Path, error: &io::Error) -> Self {
        Self::lock_dir(&io::Error::new(
            error.kind(),
            format!("the device's lock {}: {error}", printable_path(lock)),
        ))
    }

    /// The same, if there is no directory for locks.
    pub(crate) fn lock_dir(error: &io::Error) -> Self {
        Self { kind: error.kind(), fault: SpawnFault::Lock, message: error.to_string() }
    }
}

/// As its message.
impl Serialize for SpawnError {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.message)
    }
}

impl From<io::Error> for SpawnError {
    fn from(error: io::Error) -> Self {
        let fault = match error.kind() {
            io::ErrorKind::NotFound => SpawnFault::NotFound,
            io::ErrorKind::PermissionDenied => SpawnFault::NotExecutable,
            _ => SpawnFault::Other,
        };
        Self { kind: error.kind(), fault, message: error.to_string() }
    }
}

/// Whether a script is a path, and not a name that is searched for in `PATH`.
fn is_path(script: &Path) -> bool {
    script.as_os_str().as_bytes().contains(&b'/')
}

fn diagnose(script: &Path, error: &io::Error) -> Option<(SpawnFault, String)> {
    let found = is_path(script).then(|| script.metadata().ok()).flatten();
    let said = |fault, words: &str| Some((fault, words.to_owned()));
    match (error.kind(), found) {
        (io::ErrorKind::NotFound, None) => said(SpawnFault::NotFound, "there is no such file"),
        (io::ErrorKind::NotADirectory, _) => {
            said(SpawnFault::NotFound, "there is no such file: a part of its path is no directory")
        }
        (io::ErrorKind::PermissionDenied, None) => {
            said(SpawnFault::NotExecutable, "this user may not execute it, or not enter a directory above it")
        }
        (io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied, Some(found)) if !found.is_file() => {
            let what = if found.is_dir() { "it is a directory" } else { "it is no file" };
            said(SpawnFault::NotAFile, what)
        }
        (io::ErrorKind::NotFound, Some(_)) => match interpreter(script) {
            Some(interpreter) => Some(of_interpreter(&interpreter, "does not exist")),
            None => said(SpawnFault::Interpreter, "its interpreter or loader does not exist"),
        },
        (io::ErrorKind::PermissionDenied, Some(found)) if found.permissions().mode() & 0o111 == 0 => {
            said(SpawnFault::NotExecutable, "the file is not executable")
        }
        (io::ErrorKind::PermissionDenied, Some(_)) => match interpreter(script) {
            Some(interpreter) if !is_executable(&interpreter) => {
                Some(of_interpreter(&interpreter, "is not executable"))
            }
            _ => said(
                SpawnFault::NotExecutable,
                "this user may not execute the file, or its file system is mounted noexec",
            ),
        },
        _ if error.raw_os_error() == Some(libc::ENOEXEC) => said(
            SpawnFault::Format,
            "it is no program of this machine, and its first line does not name an interpreter (#!)",
        ),
        _ => None,
    }
}

fn of_interpreter(interpreter: &Path, fault: &str) -> (SpawnFault, String) {
    let shown = printable_path(interpreter);
    if interpreter.as_os_str().as_bytes().ends_with(b"\r") {
        let message = format!(
            "its first line ends with a carriage return (CR LF, as DOS ends lines), so its interpreter {shown} {fault}"
        );
        return (SpawnFault::LineEnds, message);
    }
    (SpawnFault::Interpreter, format!("its interpreter {shown} {fault}"))
}

fn is_executable(file: &Path) -> bool {
    file.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// The program in a script's `#!` line, read like the kernel does: from the first 256 bytes, up to a blank.
/// A carriage return is part of the name.
fn interpreter(script: &Path) -> Option<PathBuf> {
    let mut head = Vec::new();
    File::open(script).ok()?.take(256).read_to_end(&mut head).ok()?;
    let line = head.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let mut words = line.split(|byte| matches!(byte, b' ' | b'\t'));
    words.find(|word| !word.is_empty()).map(|word| PathBuf::from(OsStr::from_bytes(word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_of_the_lock() {
        let full = io::Error::from_raw_os_error(libc::ENOSPC);
        let error = SpawnError::lock(Path::new("/run/xendev/default-vbd-1-51712"), &full);
        assert_eq!((error.fault(), error.kind()), (SpawnFault::Lock, io::ErrorKind::StorageFull));
        let words = "the device's lock /run/xendev/default-vbd-1-51712: No space left on device";
        assert!(error.to_string().starts_with(words), "{error}");
    }

    /// What the kernel would say, without asking it.
    #[test]
    fn a_script_that_cannot_be_started_is_foreseen() {
        use std::fs::{self, Permissions};

        let folder = tempfile::tempdir().unwrap();
        let script = |name: &str, text: &str, mode| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            path
        };
        let fault = |path: &Path| SpawnError::foresee(path).map(|error| error.fault());
        assert_eq!(fault(&script("good", "#!/bin/sh\n", 0o755)), None);
        assert_eq!(fault(&script("plain", "exit 0\n", 0o755)), None, "a shell may run it");
        assert_eq!(fault(&script("empty", "", 0o755)), Some(SpawnFault::Empty));
        assert_eq!(fault(&script("data", "#!/bin/sh\n", 0o644)), Some(SpawnFault::NotExecutable));
        assert_eq!(fault(&script("dos", "#!/bin/sh\r\n", 0o755)), Some(SpawnFault::LineEnds));
        assert_eq!(fault(&script("other", "#!/nonexistent\n", 0o755)), Some(SpawnFault::Interpreter));
        assert_eq!(fault(folder.path()), Some(SpawnFault::NotAFile));
        assert_eq!(fault(Path::new("/nonexistent/script")), Some(SpawnFault::NotFound));
        assert_eq!(fault(Path::new("true")), None, "it is searched for in PATH");
    }

    #[test]
    fn what_only_a_c_library_without_a_shell_to_fall_back_on_tells() {
        let error = SpawnError::explain(Path::new("/x"), &io::Error::from_raw_os_error(libc::ENOEXEC));
        assert_eq!(error.fault(), SpawnFault::Format);
        assert!(error.to_string().contains("does not name an interpreter (#!)"), "{error}");
    }
}
