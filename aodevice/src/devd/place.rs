//! Where a served device is: the kind of its backend, its guest and its number, from which all paths follow.
//!
//! All paths are relative to the home of the domain that serves, so no device of another domain can be meant.

use std::fmt;

use serde::{Serialize, Serializer};
use xs_client::{DomId, Path, PathError};

use super::qemu::SERVED;
use crate::{BackendKind, Kind};

/// The directory of all backends that this domain serves.
pub(super) const BACKENDS: &str = "backend";

/// The directory with what a toolstack keeps in this domain, by the guests.
pub(super) const NOTES: &str = "libxl";

/// The node below a guest's directory in [`NOTES`] under which the daemon's notes are.
pub(super) const OURS: &str = "devd";

/// The key of a backend that tells which add of the daemon's it belongs to.
pub(crate) const MARKER: &str = "xendev-devd";

/// A device that this domain serves.
///
/// `Display` shows its backend's directory, relative to the domain's home.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[non_exhaustive]
pub struct Place {
    /// The kind of its backend.
    pub backend_kind: BackendKind,
    /// The guest.
    #[serde(serialize_with = "domid")]
    pub domid: DomId,
    /// Its number.
    pub devid: u32,
}

pub(super) fn domid<S: Serializer>(domid: &DomId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u32(domid.0)
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{BACKENDS}/{}/{}/{}", self.backend_kind, self.domid, self.devid)
    }
}

/// A number as the toolstacks write it: no sign, and no zero before it, so that every device has one name.
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|number: &u32| number.to_string() == text)
}

impl Place {
    /// The device of these names; `None` if they are not those of a device.
    pub(super) fn of(kind: &str, fe: &str, devid: &str) -> Option<Self> {
        Some(Self {
            backend_kind: BackendKind::from_name(kind)?,
            domid: DomId(number(fe)?),
            devid: number(devid)?,
        })
    }

    /// The device that this note is about; `None` if the path is not that of a note.
    pub(super) fn of_note(path: &Path) -> Option<Self> {
        let names: Vec<&str> = path.names().collect();
        let [NOTES, fe, OURS, kind, devid] = names[..] else { return None };
        Self::of(kind, fe, devid)
    }

    /// The kind of the frontend, where the daemon has work for it.
    pub(super) fn kind(&self) -> Option<Kind> {
        match self.backend_kind {
            BackendKind::Vbd | BackendKind::Vbd3 => Some(Kind::Vbd),
            BackendKind::Vif => Some(Kind::Vif),
            _ => None,
        }
    }

    /// Whether a QEMU of this daemon's serves it, so that it is a matter of the guest's keeper.
    pub(super) fn is_of_qemu(&self) -> bool {
        SERVED.contains(&self.backend_kind)
    }

    /// Its backend's directory.
    pub(super) fn backend(&self) -> Result<Path, PathError> {
        Path::new(self.to_string())
    }

    /// The daemon's note of it.
    pub(super) fn note(&self) -> Result<Path, PathError> {
        Path::new(format!("{NOTES}/{}/{OURS}/{}/{}", self.domid, self.backend_kind, self.devid))
    }
}

/// Which devices an event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hint {
    /// Those below this directory, which came or went as a whole.
    Below(Path),
    /// One.
    Device(Place),
    /// None: it is about a key that decides nothing, or about what is no device's.
    Nothing,
}

/// The keys of a backend that decide something.
const DECIDING: [&str; 2] = ["state", "online"];

impl Hint {
    /// What the path of an event tells.
    pub(super) fn of(path: &Path) -> Self {
        let names: Vec<&str> = path.names().take(6).collect();
        match names[..] {
            [BACKENDS] | [BACKENDS, _] | [BACKENDS, _, _] => Self::Below(path.clone()),
            [BACKENDS, kind, fe, devid] => Place::of(kind, fe, devid).map_or(Self::Nothing, Self::Device),
            [BACKENDS, kind, fe, devid, key] if DECIDING.contains(&key) => {
                Place::of(kind, fe, devid).map_or(Self::Nothing, Self::Device)
            }
            _ => Self::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(path: &str) -> Hint {
        Hint::of(&Path::new(path).unwrap())
    }

    #[test]
    fn what_an_event_is_about() {
        let place = Place { backend_kind: BackendKind::Vbd, domid: DomId(2), devid: 51712 };
        assert_eq!(place.to_string(), "backend/vbd/2/51712");
        for path in ["backend/vbd/2/51712", "backend/vbd/2/51712/state", "backend/vbd/2/51712/online"] {
            assert_eq!(hint(path), Hint::Device(place), "{path}");
        }
        for path in ["backend", "backend/vbd", "backend/vbd/2"] {
            assert_eq!(hint(path), Hint::Below(Path::new(path).unwrap()));
        }
        for path in [
            "backend/vbd/2/51712/sectors",
            "backend/vbd/2/51712/queue-0/state",
            "backend/vbd/02/51712/state",
            "backend/vbd/2/-1",
            "backend/vbd/2/99999999999/state",
            "backend/nonsense/2/1/state",
            "device/vbd/2/state",
            "/local/domain/2/device/vbd/51712/state",
        ] {
            assert_eq!(hint(path), Hint::Nothing, "{path}");
        }
    }
}
