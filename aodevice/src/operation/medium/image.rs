//! Opening the image of a medium, before anything is changed.

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::Duration;

use rustix::fs::OFlags;

use super::Medium;
use crate::Cause;
use crate::operation::files::{blocking, check_target};
use crate::vbd::Format;

/// An open image.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) fd: OwnedFd,
    pub(super) block_device: bool,
}

/// Opens the image of a medium to read it. QEMU gets this very descriptor, so whatever becomes of the path, and
/// whatever QEMU itself may open, the guest gets what was looked at.
pub(super) async fn open(medium: &Medium, limit: Duration) -> Result<Image, Cause> {
    let target = &medium.target;
    if medium.format == Format::Empty {
        return Err(Cause::Invalid("a medium has a format; an empty drive is had by ejecting it".to_owned()));
    }
    check_target(target, limit).await.map_err(Cause::Target)?;
    let path = target.clone();
    let opened = blocking(limit, move || open_now(Path::new(&path))).await;
    let opened = opened.ok_or_else(|| Cause::Target(format!("{target} does not answer within {limit:?}")))?;
    opened.map_err(|why| Cause::Target(format!("{target}: {why}")))
}

fn open_now(path: &Path) -> Result<Image, String> {
    // What was a file a moment ago may be a pipe by now, which would not be opened until somebody writes there.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file =
        OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|error| error.to_string())?;
    let kind = file.metadata().map_err(|error| error.to_string())?.file_type();
    if kind.is_file() || kind.is_block_device() {
        Ok(Image { fd: file.into(), block_device: kind.is_block_device() })
    } else {
        Err("it is neither a file nor a block device".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[tokio::test]
    async fn only_what_can_be_read_is_a_medium() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("a.iso"), "").unwrap();
        mknodat(CWD, path("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let why = async |target: String| {
            let opened = open(&Medium::new(target), Duration::from_secs(10)).await;
            opened.err().map(|cause| cause.to_string()).unwrap_or_default()
        };
        assert_eq!(why(path("a.iso")).await, "");
        for (target, told) in [
            (path("none.iso"), "none.iso: No such file or directory"),
            (path(""), "is neither a file nor a block device"),
            (path("pipe"), "pipe is neither a file nor a block device"),
            ("a.iso".to_owned(), "\"a.iso\" is not an absolute path"),
            ("/dev/null".to_owned(), "is neither a file nor a block device"),
        ] {
            let why = why(target).await;
            assert!(why.starts_with("the target ") && why.contains(told), "{why}");
        }
        assert!(open_now(Path::new(&path("pipe"))).is_err(), "it is not waited for");
        let empty = Medium::new(path("a.iso")).with_format(Format::Empty);
        assert_eq!(open(&empty, Duration::from_secs(10)).await.unwrap_err().code(), "invalid");
    }
}
