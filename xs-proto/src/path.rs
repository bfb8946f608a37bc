//! Node paths.
//!
//! A [`Path`] is checked once, where it enters the program; everything behind that may rely on
//! the grammar. Three forms exist: absolute (`/local/domain/1`), relative to the home of the
//! connection's domain (`device/vbd`), and special (`@releaseDomain`), which only watches and
//! permission requests take.

mod check;

use alloc::format;
use alloc::string::String;
use core::borrow::Borrow;
use core::fmt;
use core::ops::Deref;
use core::str::FromStr;

use bytes::Bytes;
use bytestring::ByteString;
use thiserror::Error;

use check::{is_allowed, is_well_formed};

/// The longest absolute path, in bytes (`XENSTORE_ABS_PATH_MAX`).
///
/// Every known server takes 2048 bytes after a leading `/local/domain/N/`; some take more.
pub const ABSOLUTE_MAX: usize = 3072;

/// The longest relative path, in bytes (`XENSTORE_REL_PATH_MAX`).
pub const RELATIVE_MAX: usize = 2048;

/// A valid node path. Cloning is cheap. One that was decoded shares the buffer of its message, and
/// keeps it; [`Path::detached`] gives it one of its own.
///
/// Grammar: names of letters, digits, `-`, `_` and `@`, separated by single slashes, no slash at
/// the end but in `/` itself. Source: `docs/misc/xenstore.txt`, and what the C and the OCaml
/// daemon were seen to accept.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Path(ByteString);

/// Why a text is not a path.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PathError {
    /// The text is empty.
    #[error("the path is empty")]
    Empty,
    /// The path is too long.
    #[error("the path has {len} bytes, over the limit of {max}")]
    TooLong {
        /// Its length in bytes.
        len: usize,
        /// The limit for its form.
        max: usize,
    },
    /// A byte outside letters, digits, `-`, `_`, `@` and `/`.
    #[error("the path {path:?} holds the byte {byte:#04x} at offset {at}")]
    BadByte {
        /// The path, invalid UTF-8 replaced, cut at 80 bytes.
        path: String,
        /// The byte.
        byte: u8,
        /// Where it stands.
        at: usize,
    },
    /// `//`, or a slash at the end.
    #[error("the path {path:?} has an empty component")]
    EmptyComponent {
        /// The path, cut at 80 bytes.
        path: String,
    },
}

fn excerpt(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned()
}

/// Checks everything but the length.
fn check(bytes: &[u8]) -> Result<(), PathError> {
    let Some(last) = bytes.last() else { return Err(PathError::Empty) };
    if is_well_formed(bytes) && (*last != b'/' || bytes.len() == 1) {
        return Ok(());
    }
    Err(match bytes.iter().position(|byte| !is_allowed(*byte)) {
        Some(at) => PathError::BadByte { path: excerpt(bytes), byte: bytes[at], at },
        None => PathError::EmptyComponent { path: excerpt(bytes) },
    })
}

fn check_length(bytes: &[u8]) -> Result<(), PathError> {
    let max = if bytes.first() == Some(&b'/') { ABSOLUTE_MAX } else { RELATIVE_MAX };
    if bytes.len() > max { Err(PathError::TooLong { len: bytes.len(), max }) } else { Ok(()) }
}

/// Both checks, for constants.
const fn is_path(bytes: &[u8]) -> bool {
    let mut at = 0;
    while at < bytes.len() {
        let is_slash = bytes[at] == b'/';
        let ends_name = at > 0 && bytes[at - 1] != b'/' && at + 1 < bytes.len();
        if !is_allowed(bytes[at]) || is_slash && at > 0 && !ends_name {
            return false;
        }
        at += 1;
    }
    at > 0 && at <= if bytes[0] == b'/' { ABSOLUTE_MAX } else { RELATIVE_MAX }
}

/// A [`Path`] of the program text. One that is none does not compile.
///
/// ```
/// use xs_proto::path;
///
/// assert_eq!(path!("/local/domain/0").name(), "0");
/// ```
///
/// ```compile_fail
/// xs_proto::path!("/local//domain");
/// ```
#[macro_export]
macro_rules! path {
    ($text:expr) => {
        const { $crate::Path::from_static($text) }
    };
}

impl Path {
    /// Checks a text. Bytes that are not a path give an error that names the offending byte.
    pub fn new(text: impl AsRef<[u8]>) -> Result<Self, PathError> {
        let text = text.as_ref();
        check_length(text)?;
        Self::from_wire(Bytes::copy_from_slice(text))
    }

    /// A path of the program text, checked by the compiler where it is a constant. [`path!`](crate::path!) makes it one.
    ///
    /// # Panics
    ///
    /// If the text is not a path.
    pub const fn from_static(text: &'static str) -> Self {
        assert!(is_path(text.as_bytes()), "not a path: letters, digits and -_@ between single slashes");
        Self(ByteString::from_static(text))
    }

    /// Checks the text of a path in a message, which may be as long as there is room in one.
    // For the same reason as in the grammars.
    #[inline(always)]
    pub(crate) fn from_wire(text: Bytes) -> Result<Self, PathError> {
        check(&text)?;
        // What was checked is ASCII, so this cannot fail.
        ByteString::try_from(text).map(Self).map_err(|_| PathError::Empty)
    }

    /// The same path in a buffer of its own, of just its length.
    #[must_use]
    pub fn detached(&self) -> Self {
        Self(ByteString::from(&*self.0))
    }

    /// The root, `/`.
    pub fn root() -> Self {
        Self(ByteString::from_static("/"))
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it begins with `/`.
    pub fn is_absolute(&self) -> bool {
        self.0.starts_with('/')
    }

    /// Whether it is one of the special paths, which begin with `@`.
    pub fn is_special(&self) -> bool {
        self.0.starts_with('@')
    }

    /// This path with `below` (one name, or several with slashes) appended.
    pub fn join(&self, below: impl AsRef<str>) -> Result<Self, PathError> {
        let below = below.as_ref();
        if below.is_empty() {
            return Err(PathError::Empty);
        }
        let slash = if &*self.0 == "/" { "" } else { "/" };
        Self::new(format!("{}{slash}{below}", self.0))
    }

    /// The path without its last name; `None` for the root and for a relative path of one name.
    pub fn parent(&self) -> Option<Self> {
        if &*self.0 == "/" {
            return None;
        }
        match self.0.rfind('/')? {
            0 => Some(Self::root()),
            at => Some(Self(self.0.slice_ref(&self.0[..at]))),
        }
    }

    /// The last name; empty for the root.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// The names from the first to the last.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.split('/').filter(|name| !name.is_empty())
    }

    /// Whether this path is `ancestor` or lies below it.
    pub fn is_within(&self, ancestor: &Self) -> bool {
        match self.0.strip_prefix(&*ancestor.0) {
            Some(rest) => rest.is_empty() || rest.starts_with('/') || &*ancestor.0 == "/",
            None => false,
        }
    }
}

impl Deref for Path {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Path {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Path {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl FromStr for Path {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        Self::new(text)
    }
}

impl TryFrom<&str> for Path {
    type Error = PathError;

    fn try_from(text: &str) -> Result<Self, PathError> {
        Self::new(text)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::ToOwned;
    use std::vec::Vec;

    use super::*;

    fn path(text: &str) -> Path {
        Path::new(text).unwrap()
    }

    #[test]
    fn forms() {
        assert!(path("/").is_absolute());
        assert!(path("/a@b/-_9Z").is_absolute());
        assert!(!path("device/vbd").is_absolute());
        assert!(path("@releaseDomain").is_special());
        assert!(!path("/@x").is_special());
    }

    #[test]
    fn refusals() {
        assert_eq!(Path::new(""), Err(PathError::Empty));
        for text in ["//", "/a//b", "/a/", "a/"] {
            assert!(matches!(Path::new(text), Err(PathError::EmptyComponent { .. })), "{text}");
        }
        for text in ["/a.b", "/a b", "..", "/a\0b", "/ä", "/a:b"] {
            assert!(matches!(Path::new(text), Err(PathError::BadByte { .. })), "{text}");
        }
        assert!(Path::new(format!("/{}", "a".repeat(ABSOLUTE_MAX - 1))).is_ok());
        assert!(matches!(
            Path::new(format!("/{}", "a".repeat(ABSOLUTE_MAX))),
            Err(PathError::TooLong { .. })
        ));
        assert!(matches!(Path::new("a".repeat(RELATIVE_MAX + 1)), Err(PathError::TooLong { .. })));
    }

    /// Of the texts that have up to five of these bytes, and at the limits.
    #[test]
    fn a_constant_is_checked_like_any_other() {
        let mut texts = std::vec![String::new()];
        for _ in 0..5 {
            let longer: Vec<_> = texts
                .iter()
                .flat_map(|text| "/a@.".chars().map(move |byte| format!("{text}{byte}")))
                .collect();
            texts.extend(longer);
        }
        for (first, max) in [("/", ABSOLUTE_MAX), ("a", RELATIVE_MAX)] {
            texts.extend([max - 1, max].map(|more| first.to_owned() + &"a".repeat(more)));
        }
        for text in texts {
            assert_eq!(is_path(text.as_bytes()), Path::new(&text).is_ok(), "{text}");
        }
        assert_eq!(path!("/a/b"), path("/a/b"));
    }

    #[test]
    fn walking() {
        assert_eq!(path("/a/b").parent(), Some(path("/a")));
        assert_eq!(path("/a").parent(), Some(Path::root()));
        assert_eq!(Path::root().parent(), None);
        assert_eq!(path("a").parent(), None);
        assert_eq!(path("/a/b").name(), "b");
        assert_eq!(Path::root().name(), "");
        assert_eq!(Path::root().join("a").unwrap(), path("/a"));
        assert_eq!(path("/a").join("b/c").unwrap(), path("/a/b/c"));
        assert!(path("/a").join("").is_err());
        assert!(Path::root().join("").is_err());
        assert_eq!(path("/a/b").names().collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn containment_is_by_whole_names() {
        assert!(path("/a/b").is_within(&path("/a")));
        assert!(path("/a").is_within(&path("/a")));
        assert!(path("/a").is_within(&Path::root()));
        assert!(!path("/ab").is_within(&path("/a")));
        assert!(!path("/a").is_within(&path("/a/b")));
    }
}
