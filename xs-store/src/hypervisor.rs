//! What the store asks of the hypervisor, if there is one.

use std::fmt::Debug;

use xs_proto::{DomId, ErrorCode, Features};

/// Whether a domain that exists runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DomainState {
    /// It runs, or is paused.
    Alive,
    /// It has shut down or crashed, and is still there.
    Down,
}

/// The domains of a machine, and their ring pages.
pub(crate) trait Hypervisor: Debug + Send {
    /// The state of a domain; `None` if there is none such, or it is going away.
    fn state(&self, domid: DomId) -> Option<DomainState>;

    /// Begins to serve the ring of a domain, from the start if it was served before.
    fn connect(&mut self, domid: DomId, features: Features) -> Result<(), ErrorCode>;

    /// Does not begin to serve the ring of a domain that has ended.
    fn disconnect(&mut self, domid: DomId);
}
