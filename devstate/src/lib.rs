//! `XenbusState`, and waiting for a device to reach one.
//!
//! Both ends of a paravirtual device tell where they stand by a number in a `state` node. What
//! one side wants of the other is a [`Goal`]: the states that satisfy it, those that defeat it,
//! and what the absence of the node means. [`wait`] watches the node, reads it after every hint,
//! and ends with an [`Outcome`]; what it decides is in [`Wait`], a plain value. [`wait_until`] waits for
//! any other node.
//!
//! Level-triggered: a wait looks only at what the store says now. States that come and go between
//! two looks are missed on purpose, and a change that happened before the wait began counts.
//!
//! Source: `xen/include/public/io/xenbus.h`.

mod change;
mod goal;
mod state;
mod wait;

pub use change::move_state;
pub use goal::{Absent, Goal, Outcome};
pub use state::{StateError, StateSet, StateValue, XenbusState};
pub use wait::{Action, Ended, Event, Wait, deadline, wait, wait_until};
