//! Loop devices: made for a file, found, and given back.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::io::Errno;

use super::failure::Failure;
use super::ioctl;
use super::sharing::{FileId, Loop, Numbers};

/// Hands out free loop devices.
const CONTROL: &str = "/dev/loop-control";

/// The number of the loop driver.
pub(super) const MAJOR: u32 = 7;

/// How often somebody else may take the device that the kernel said was free.
const RACES: usize = 100;

/// A loop device that serves a file. It is given back when this is dropped, unless it is kept.
///
/// The descriptor is open as long. A device that others clear meanwhile is not free before it is closed, so
/// that what is cleared here is never another's.
#[derive(Debug)]
pub(super) struct LoopDevice {
    file: File,
    number: u32,
    kept: bool,
}

impl LoopDevice {
    /// Makes one that serves `image`, which is called `path`.
    pub(super) fn set_up(image: &File, path: &Path, read_only: bool) -> Result<Self, Failure> {
        let control = OpenOptions::new().read(true).write(true).open(CONTROL).map_err(no_control)?;
        let mut taken = io::Error::from(Errno::BUSY);
        for _ in 0..RACES {
            let number = ioctl::get_free(&control).map_err(no_device)?;
            let node = format!("/dev/loop{number}");
            let file = match OpenOptions::new().read(true).write(true).open(&node) {
                Ok(file) => file,
                // Somebody was faster, and is giving it back.
                Err(error) if is_none(&error) => {
                    taken = error;
                    continue;
                }
                Err(error) => return Err(Failure::of(format!("open {node}"), error)),
            };
            match ioctl::configure(&file, image, path.as_os_str().as_bytes(), read_only) {
                Ok(()) => return Ok(Self { file, number, kept: false }),
                // Somebody was faster.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::BUSY) => taken = error,
                Err(error) if is_unknown(&error) => return Err(Failure::OldKernel(error.into())),
                Err(error) => return Err(Failure::of(format!("set up {node}"), error)),
            }
        }
        Err(Failure::NoLoopDevice(taken.into()))
    }

    /// Its path: `/dev/loop3`.
    pub(super) fn node(&self) -> String {
        format!("/dev/loop{}", self.number)
    }

    /// Which use of the device this is, by the kernel's count (Linux 5.15).
    pub(super) fn sequence(&self) -> Option<u64> {
        sequence(self.number)
    }

    /// Its numbers.
    pub(super) fn numbers(&self) -> Numbers {
        Numbers { major: MAJOR, minor: self.number }
    }

    /// Lets it stay.
    pub(super) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = ioctl::clear(&self.file)
        {
            tracing::warn!(%error, "cannot give /dev/loop{} back", self.number);
        }
    }
}

fn no_control(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::PermissionDenied => Failure::of(format!("open {CONTROL}"), error),
        _ => Failure::NoLoopDriver(error.into()),
    }
}

fn no_device(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::PermissionDenied => Failure::of("make a loop device", error),
        _ => Failure::NoLoopDevice(error.into()),
    }
}

/// Whether the kernel does not know the request. The loop driver says so by `EINVAL`.
fn is_unknown(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::INVAL | Errno::NOTTY))
}

/// The number in the name of a loop device's node.
pub(super) fn number(node: &str) -> Option<u32> {
    let number = node.strip_prefix("/dev/loop")?;
    number.parse().ok().filter(|parsed: &u32| parsed.to_string() == number)
}

/// Which use of the loop device of this number there is.
pub(super) fn sequence(number: u32) -> Option<u64> {
    fs::read_to_string(format!("/sys/block/loop{number}/diskseq")).ok()?.trim().parse().ok()
}

/// The path of the file that the loop device of this number serves; it ends in ` (deleted)` once the file has no name.
pub(super) fn backing_file(number: u32) -> Option<String> {
    let path = fs::read(format!("/sys/block/loop{number}/loop/backing_file")).ok()?;
    Some(String::from_utf8_lossy(path.strip_suffix(b"\n").unwrap_or(&path)).into_owned())
}

/// All loop devices that serve a file.
pub(super) fn all() -> io::Result<Vec<Loop>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block")? {
        let name = entry?.file_name();
        let Some(number) = name.to_str().and_then(|name| number(&format!("/dev/{name}"))) else { continue };
        // Only one that serves a file has it.
        if backing_file(number).is_none() {
            continue;
        }
        // It may go meanwhile.
        if let Some(device) = open(number)?
            && let Some(file) = served(&device)?
        {
            found.push(Loop { device: Numbers { major: MAJOR, minor: number }, file });
        }
    }
    Ok(found)
}

/// Opens the loop device of this number; `None` if it is not there, or is just being given back.
pub(super) fn open(number: u32) -> io::Result<Option<File>> {
    match File::open(format!("/dev/loop{number}")) {
        Ok(device) => Ok(Some(device)),
        Err(error) if error.kind() == io::ErrorKind::NotFound || is_none(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The file that it serves.
pub(super) fn served(device: &File) -> io::Result<Option<FileId>> {
    match ioctl::served(device) {
        Ok((dev, ino)) => Ok(Some(FileId { dev, ino })),
        Err(error) if is_none(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes it serve nothing.
pub(super) fn clear(device: &File) -> io::Result<()> {
    match ioctl::clear(device) {
        Err(error) if !is_none(&error) => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Whether the driver says that the device serves nothing, or is about to.
fn is_none(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::NXIO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_nodes_of_loop_devices_have_a_number() {
        assert_eq!(number("/dev/loop0"), Some(0));
        assert_eq!(number("/dev/loop200"), Some(200));
        for other in [
            "/dev/loop",
            "/dev/loop-1",
            "/dev/loop+1",
            "/dev/loop01",
            "/dev/loop0p1",
            "/dev/loop-control",
            "loop0",
            "/dev/sda",
        ] {
            assert_eq!(number(other), None, "{other}");
        }
    }

    #[test]
    fn what_the_driver_lacks_has_its_story() {
        let error = |errno: Errno| io::Error::from(errno);
        for (failure, story) in [
            (no_control(error(Errno::NOENT)), "load the driver of loop devices: modprobe loop"),
            (no_control(error(Errno::NODEV)), "load the driver of loop devices: modprobe loop"),
            (no_control(error(Errno::ACCESS)), "CAP_SYS_ADMIN, and see what the file allows: ls -l, lsattr"),
            (no_device(error(Errno::PERM)), "CAP_SYS_ADMIN, and see what the file allows: ls -l, lsattr"),
            (no_device(error(Errno::NOSPC)), "losetup --list shows them"),
        ] {
            assert!(failure.to_string().ends_with(story), "{failure}");
        }
        assert!(is_unknown(&error(Errno::INVAL)) && !is_unknown(&error(Errno::BUSY)));
    }
}
