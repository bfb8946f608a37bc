//! Whether a script is one that a handler was proven equal to.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

use sha2::{Digest as _, Sha256};

/// The texts of a script and of all that it sources, of one version of the package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Texts {
    /// The version of the package whose texts were compared.
    pub version: &'static str,
    /// Names of files in the directory of the scripts, the script's first, each with the SHA-256 of its text in lower-case
    /// hexadecimal.
    pub files: &'static [(&'static str, &'static str)],
}

/// The version of which a script has the text, and the files beside it that it sources.
pub(super) fn release_of(script: &Path, proven: &'static [Texts]) -> io::Result<Option<&'static str>> {
    // What it sources is found by the name that it was called by.
    let folder = script.parent().filter(|_| script.is_absolute());
    let folder = folder.ok_or(io::ErrorKind::InvalidInput)?;
    let own = digest(script)?;
    'versions: for texts in proven {
        let Some(((_, first), sources)) = texts.files.split_first() else { continue };
        if own != *first {
            continue;
        }
        for (name, text) in sources {
            if digest(&folder.join(name))? != *text {
                continue 'versions;
            }
        }
        return Ok(Some(texts.version));
    }
    Ok(None)
}

/// The SHA-256 of a file, in lower-case hexadecimal.
pub(super) fn digest(file: &Path) -> io::Result<String> {
    let mut digest = String::new();
    for byte in Sha256::digest(fs::read(file)?) {
        // Writing to a String cannot fail.
        _ = write!(digest, "{byte:02x}");
    }
    Ok(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_text_is_another() {
        // printf abc | sha256sum; sha256sum < /dev/null
        const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        const PROVEN: &[Texts] =
            &[Texts { version: "a release", files: &[("script", ABC), ("common.sh", EMPTY)] }];
        let folder = tempfile::tempdir().unwrap();
        let (script, common) = (folder.path().join("script"), folder.path().join("common.sh"));
        fs::write(&script, "abc").unwrap();
        assert_eq!(release_of(&script, PROVEN).unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::write(&common, "").unwrap();
        assert_eq!(release_of(&script, PROVEN).unwrap(), Some("a release"));
        fs::write(&common, "\n").unwrap();
        assert_eq!(release_of(&script, PROVEN).unwrap(), None);
        fs::write(&script, "ab").unwrap();
        assert_eq!(release_of(&script, PROVEN).unwrap(), None);
        let error = release_of(Path::new("script"), PROVEN).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
