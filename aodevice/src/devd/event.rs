//! What the daemon tells whoever keeps its log.

use std::fmt;

use xen_hotplug::Request;
use xs_client::DomId;

use super::Place;

/// Something that has happened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A device that was there was looked at, and is taken as it is.
    Adopted(Place),
    /// A script begins.
    Begins(Place, Box<Request>),
    /// A device has what it needs.
    Attached(Place),
    /// A device could not be set up, for this reason.
    Failed(Place, String),
    /// A device that is to be set up anew, or has gone, was cleaned up after.
    Undone(Place),
    /// A device is gone.
    Removed(Place),
    /// A script that undoes its work, or a look that nothing depends on, has failed; the daemon goes on.
    Trouble(Place, String),
    /// This node stood among the notes and is none. It is gone if nothing was lost with it.
    Unreadable {
        /// Where it is, relative to the domain's home.
        path: String,
        /// Whether it was removed.
        removed: bool,
    },
    /// Something has happened to the QEMU of this guest.
    Qemu(DomId, String),
    /// The store failed; the daemon tries again.
    Store(String),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Adopted(place) => write!(f, "{place}: taken as it is"),
            Self::Begins(place, request) => write!(f, "{place}: {request}"),
            Self::Attached(place) => write!(f, "{place}: attached"),
            Self::Failed(place, why) => write!(f, "{place}: failed: {why}"),
            Self::Undone(place) => write!(f, "{place}: undone"),
            Self::Removed(place) => write!(f, "{place}: removed"),
            Self::Trouble(place, what) => write!(f, "{place}: {what}"),
            Self::Unreadable { path, removed: true } => {
                write!(f, "{path}: is no note, and tells of nothing: removed")
            }
            Self::Unreadable { path, removed: false } => write!(
                f,
                "{path}: is no note that can be read; it stays, since it may tell of what a script has made"
            ),
            Self::Qemu(domid, what) => write!(f, "the QEMU of domain {domid}: {what}"),
            Self::Store(error) => write!(f, "the store: {error}"),
        }
    }
}
