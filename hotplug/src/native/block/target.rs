//! What a disk is made of: its target found, looked at and opened.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::failure::Failure;
use super::sharing::{FileId, Medium, Mode, Numbers};

/// A disk's target, found.
#[derive(Debug)]
pub(super) struct Target {
    /// Its path as the script would report it: of a link, what it leads to; of a file, without links on the way.
    pub(super) path: PathBuf,
    pub(super) medium: Medium,
    /// A file, opened as its loop device needs it.
    pub(super) image: Option<File>,
}

impl Target {
    /// Finds what `params` names. It blocks for as long as storage does.
    pub(super) fn open(params: &str, mode: Mode) -> Result<Self, Failure> {
        let named = absolute(params);
        let found = fs::metadata(&named).map_err(|error| unopened(&named, error))?;
        if found.file_type().is_block_device() {
            let is_link = fs::symlink_metadata(&named).is_ok_and(|link| link.is_symlink());
            let path = if is_link { real(&named)? } else { named };
            return Ok(Self { path, medium: Medium::Device(Numbers::of(found.rdev())), image: None });
        }
        if !found.is_file() {
            return Err(Failure::NotADisk(named));
        }
        let path = real(&named)?;
        // Root may write to it all the same, so it is asked who may, as the script does.
        if mode == Mode::Write && found.permissions().mode() & 0o222 == 0 {
            return Err(Failure::ReadOnly { path, why: "nobody has the permission to write to it" });
        }
        let image = OpenOptions::new().read(true).write(mode != Mode::Read).open(&path);
        let image = image.map_err(|error| unopened(&path, error))?;
        // What was looked at may have been replaced before it was opened.
        let opened = image.metadata().map_err(|error| unopened(&path, error))?;
        if !opened.is_file() {
            return Err(Failure::NotADisk(path));
        }
        let file = FileId { dev: opened.dev(), ino: opened.ino() };
        Ok(Self { path, medium: Medium::File(file), image: Some(image) })
    }
}

/// A name without a directory is one of `/dev`.
fn absolute(params: &str) -> PathBuf {
    Path::new("/dev").join(params)
}

fn real(path: &Path) -> Result<PathBuf, Failure> {
    fs::canonicalize(path).map_err(|error| unopened(path, error))
}

fn unopened(path: &Path, error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Failure::Missing(path.to_owned()),
        io::ErrorKind::ReadOnlyFilesystem => {
            Failure::ReadOnly { path: path.to_owned(), why: "its file system is read-only" }
        }
        _ => Failure::of(format!("open {}", crate::printable::printable_path(path)), error),
    }
}

/// What a path names, if it is a file or a block device.
pub(super) fn medium(path: &Path) -> Option<Medium> {
    let found = fs::metadata(path).ok()?;
    if found.file_type().is_block_device() {
        return Some(Medium::Device(Numbers::of(found.rdev())));
    }
    found.is_file().then(|| Medium::File(FileId { dev: found.dev(), ino: found.ino() }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn failure(path: &Path, mode: Mode) -> String {
        Target::open(path.to_str().unwrap(), mode).unwrap_err().to_string()
    }

    #[test]
    fn only_files_and_block_devices_are_disks() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        let missing = failure(&folder.join("none"), Mode::Read);
        assert!(missing.ends_with("it does not exist; correct the disk's target, or create it"), "{missing}");
        for path in [folder.as_path(), Path::new("/dev/null"), Path::new("null")] {
            assert!(failure(path, Mode::Read).contains("neither a file nor a block device"), "{path:?}");
        }
    }

    #[test]
    fn a_file_is_known_by_itself_and_not_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        let (image, link, hard) = (folder.join("image"), folder.join("link"), folder.join("hard"));
        fs::write(&image, "").unwrap();
        symlink(&image, &link).unwrap();
        fs::hard_link(&image, &hard).unwrap();
        let open = |path: &Path| Target::open(path.to_str().unwrap(), Mode::Write).unwrap();
        assert_eq!(open(&link).path, image);
        assert_eq!(open(&link).medium, open(&hard).medium);
        assert_eq!(medium(&link), Some(open(&image).medium));
    }

    #[test]
    fn a_file_that_nobody_may_write_to_is_not_given_read_write() {
        let image = tempfile::NamedTempFile::new().unwrap();
        fs::set_permissions(image.path(), fs::Permissions::from_mode(0o444)).unwrap();
        assert!(failure(image.path(), Mode::Write).contains("nobody has the permission"));
        assert!(Target::open(image.path().to_str().unwrap(), Mode::Read).is_ok());
    }
}
