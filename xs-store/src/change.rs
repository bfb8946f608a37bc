//! What a request has done to a node, for those who watch it.

use std::sync::Arc;

use crate::rights::Rights;

/// For whom a change fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Watches on the path and above.
    Above,
    /// Watches on exactly the path: the node went with one above it, which fires for the others.
    Exact,
}

/// Something that happened to a node.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) path: Arc<str>,
    pub(crate) scope: Scope,
    /// The node's permissions before and after. A guest that may read by one of them, or by
    /// those of the parent, gets the event.
    pub(crate) readers: [Option<Arc<Rights>>; 2],
    pub(crate) above: Above,
}

/// The permissions of the parent of a node that changed.
#[derive(Clone, Debug)]
pub(crate) enum Above {
    /// As they were then.
    Were(Option<Arc<Rights>>),
    /// The same as those it has when the change is told.
    Are,
}
