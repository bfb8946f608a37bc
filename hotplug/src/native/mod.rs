//! What the stock scripts do, done without a shell.
//!
//! | handler | scripts | by | compared by |
//! | --- | --- | --- | --- |
//! | [`block`] | `block` | ioctls | `cargo lab native` |
//! | [`vif`] | `vif-bridge`, `vif-route`, `vif-nat`, `vif-openvswitch` | netlink; `ovs-vsctl` | `cargo lab native-vif` |
//! | [`disk`] | `block-iscsi`, `block-nbd`, `block-tap` | `iscsiadm`, `nbd-client`, `tap-ctl` | `cargo lab native-disk` |
//!
//! Each handler does the work of its script, and was compared with it: both leave a host alike, but for the differences that
//! its documentation lists. It holds for the very texts of the script that were compared; whether a script on this
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
