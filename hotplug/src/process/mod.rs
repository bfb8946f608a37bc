//! The processes of a run.
//!
//! ```text
//!   this program ──── lifeline ──── guard ──── the script, leader of a group ──── its children
//!     child, group                  guard
//! ```
//!
//! The guard is a process between this program and the script. It exists because no other means ends
//! a script with all its children when this program is gone: a killed program runs no code, and
//! the kernel's parent-death signal reaches one process and not a group. The guard is the parent of the
//! script, and becomes the parent of every process of the group that loses its own. It holds one end of
//! a *lifeline*, a pair of connected sockets. The kernel closes the other end with this program, whatever
//! ended it; then the guard kills the group.
//!
//! The guard also holds the lock of the device until no process of a group that was given up is left,
//! so that the next script of this device starts only then.

mod child;
mod descriptors;
mod environment;
mod group;
mod guard;
mod output;

pub(crate) use child::start;
pub use descriptors::pass_on_no_descriptors;
pub(crate) use environment::{DIRECTORIES, Environment};
pub(crate) use group::Group;
pub use output::{OUTPUT_MAX, Output};
