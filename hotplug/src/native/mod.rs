//! What stock hotplug scripts do, without a shell: handlers that take a [`Request`](crate::Request) in place of the
//! script, each proven equal to the text of some.

pub mod vif;
