//! Whether a script is one that a handler was proven equal to.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

use sha2::{Digest as _, Sha256};

/// A stock script with the texts of it that were proven.
pub(super) struct Stock {
    /// The files that it sources, which are looked for in its own directory.
    pub(super) sources: &'static [&'static str],
    /// The digests of its texts, and what they are of.
    pub(super) proven: &'static [(&'static str, &'static str)],
}

impl Stock {
    /// Which of the proven texts a script has, if any.
    pub(super) fn release_of(&self, script: &Path) -> io::Result<Option<&'static str>> {
        let digest = self.digest(script)?;
        Ok(self.proven.iter().find(|(proven, _)| *proven == digest).map(|(_, release)| *release))
    }

    /// The SHA-256 of the length and text of the script and of each file that it sources, in hexadecimal.
    pub(super) fn digest(&self, script: &Path) -> io::Result<String> {
        // What it sources is found by the name that it was called by.
        let folder = script.parent().filter(|_| script.is_absolute());
        let folder = folder.ok_or(io::ErrorKind::InvalidInput)?;
        let mut hash = Sha256::new();
        let sources = self.sources.iter().map(|name| folder.join(name));
        for file in [script.to_owned()].into_iter().chain(sources) {
            let text = fs::read(file)?;
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        }
        let mut digest = String::new();
        for byte in hash.finalize() {
            // Writing to a String cannot fail.
            _ = write!(digest, "{byte:02x}");
        }
        Ok(digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_text_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("script");
        let stock = Stock {
            sources: &["common.sh"],
            // printf '\3\0\0\0\0\0\0\0abc\0\0\0\0\0\0\0\0' | sha256sum
            proven: &[("3e2f8940c3a0e0fd6f6e07bbf07f015dd7c147431e5fa14bf3f225d782641540", "a release")],
        };
        fs::write(&script, "abc").unwrap();
        assert_eq!(stock.release_of(&script).unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::write(folder.path().join("common.sh"), "").unwrap();
        assert_eq!(stock.release_of(&script).unwrap(), Some("a release"));
        fs::write(&script, "ab").unwrap();
        fs::write(folder.path().join("common.sh"), "c").unwrap();
        assert_eq!(stock.release_of(&script).unwrap(), None);
        assert_eq!(stock.release_of(Path::new("script")).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
