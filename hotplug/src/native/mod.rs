//! What the stock scripts do, done without a shell.
//!
//! Each handler does the work of one script, and was proven to leave a host as that script leaves it: `cargo lab native`
//! runs both and compares. It holds for the very texts of the script that were compared; whether a script on this
//! host is one of them, the handler tells by the digest of its text ([`block::release_of`]), so that a script that an
//! administrator has changed is run and not replaced.
//!
//! A handler does not speak to the store. It is given what stands there, and yields what is to be written. Who calls it
//! holds the device meanwhile ([`ScriptRunner::hold`](crate::ScriptRunner::hold)), as a run of the script would.

pub mod block;
mod digest;
pub mod disk;
mod tool;
pub mod vif;

pub use tool::{ToolError, Tools};
