//! Writing initramfs archives (`newc` cpio).
//!
//! The archives are written here instead of by cpio(1) for three reasons: nothing has to be staged on disk
//! first, the same inputs always give the same bytes (no owner, no times), and no privilege is needed. They
//! are not compressed: under emulation the kernel takes longer to inflate an image than QEMU takes to load it
//! whole.
//!
//! Linux accepts several archives one after the other, later entries replacing earlier ones, as long as each
//! starts on a four-byte boundary; [`Archive::finish`] pads for that.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// A cpio archive being written to a file. Names are absolute paths in the machine that will boot it.
#[derive(Debug)]
pub struct Archive {
    out: BufWriter<File>,
    names: BTreeSet<String>,
}

impl Archive {
    /// Starts an archive at `path`, replacing what is there.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { out: BufWriter::new(file), names: BTreeSet::new() })
    }

    /// Whether an entry of that name was added already.
    pub fn contains(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// Adds a directory and its missing parents.
    pub fn directory(&mut self, name: &str, permissions: u32) -> Result<()> {
        self.entry(name, DIRECTORY | permissions, &[])
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, name: &str, target: &str) -> Result<()> {
        self.entry(name, SYMLINK | 0o777, target.as_bytes())
    }

    /// Adds a file with the given content.
    pub fn file(&mut self, name: &str, permissions: u32, content: &[u8]) -> Result<()> {
        self.entry(name, REGULAR | permissions, content)
    }

    /// Adds a copy of a host file; symbolic links are followed and the permission bits kept.
    pub fn copy(&mut self, name: &str, source: &Path) -> Result<()> {
        let read = || -> std::io::Result<_> { Ok((fs::metadata(source)?.permissions(), fs::read(source)?)) };
        let (permissions, content) = read().with_context(|| format!("cannot read {}", source.display()))?;
        self.file(name, permissions.mode() & 0o777, &content)
    }

    /// Adds a host directory with everything below it.
    pub fn copy_tree(&mut self, name: &str, source: &Path) -> Result<()> {
        self.directory(name, 0o755)?;
        let mut children = fs::read_dir(source)
            .and_then(Iterator::collect::<std::io::Result<Vec<_>>>)
            .with_context(|| format!("cannot list {}", source.display()))?;
        children.sort_by_key(fs::DirEntry::file_name);
        for child in children {
            let child_name = format!("{name}/{}", child.file_name().to_string_lossy());
            if child.path().is_dir() {
                self.copy_tree(&child_name, &child.path())?;
            } else {
                self.copy(&child_name, &child.path())?;
            }
        }
        Ok(())
    }

    /// Writes the trailer and pads, so that another archive may follow.
    pub fn finish(mut self) -> Result<()> {
        self.record("TRAILER!!!", 0, &[])?;
        self.out.flush()?;
        Ok(())
    }

    /// Adds one entry unless its name is taken: the first one stays, so that a caller can add what must be a
    /// real program before it adds stand-ins.
    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        if !self.names.insert(name.to_owned()) {
            return Ok(());
        }
        if let Some((parent, _)) = name.rsplit_once('/')
            && !parent.is_empty()
        {
            self.directory(parent, 0o755)?;
        }
        self.record(name.trim_start_matches('/'), mode, content)
    }

    fn record(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        let inode = self.names.len();
        let links = 1;
        write!(
            self.out,
            "070701{inode:08x}{mode:08x}{owner:08x}{group:08x}{links:08x}{mtime:08x}{size:08x}\
             {zero:08x}{zero:08x}{zero:08x}{zero:08x}{name_size:08x}{zero:08x}{name}\0",
            owner = 0,
            group = 0,
            mtime = 0,
            size = content.len(),
            name_size = name.len() + 1,
            zero = 0,
        )?;
        self.pad(110 + name.len() + 1)?;
        self.out.write_all(content)?;
        self.pad(content.len())
    }

    /// Fills up to the next four-byte boundary after `length` bytes that began on one.
    fn pad(&mut self, length: usize) -> Result<()> {
        let padding = length.next_multiple_of(4) - length;
        Ok(self.out.write_all(&[0; 3][..padding])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names and contents of an archive, read back by following the lengths in its headers.
    fn entries(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
        let field = |at: usize, index: usize| {
            let start = at + 6 + index * 8;
            usize::from_str_radix(std::str::from_utf8(&bytes[start..start + 8]).unwrap(), 16).unwrap()
        };
        let (mut found, mut at) = (Vec::new(), 0);
        while at < bytes.len() {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let (size, name_size) = (field(at, 6), field(at, 11));
            let name = String::from_utf8(bytes[at + 110..at + 110 + name_size - 1].to_vec()).unwrap();
            let body = (at + 110 + name_size).next_multiple_of(4);
            found.push((name, bytes[body..body + size].to_vec()));
            at = (body + size).next_multiple_of(4);
        }
        found
    }

    #[test]
    fn parents_come_first_and_the_first_entry_of_a_name_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.cpio");
        let mut archive = Archive::create(&path).unwrap();
        archive.file("/usr/bin/ip", 0o755, b"real").unwrap();
        archive.symlink("/usr/bin/ip", "busybox").unwrap();
        archive.symlink("/bin", "usr/bin").unwrap();
        archive.finish().unwrap();

        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let expected: [(&str, &[u8]); 5] = [
            ("usr", b""),
            ("usr/bin", b""),
            ("usr/bin/ip", b"real"),
            ("bin", b"usr/bin"),
            ("TRAILER!!!", b""),
        ];
        let expected = expected.map(|(name, content)| (name.to_owned(), content.to_vec()));
        assert_eq!(entries(&bytes), expected);
    }
}
