//! `XenbusState`, and waiting for a device to reach one.
//!
//! Both ends of a paravirtual device tell where they stand by a number in a `state` node. What
//! one side wants of the other is a [`Goal`]: the states that satisfy it, those that defeat it,
//! and what the absence of the node means. [`wait`] watches the node, reads it after every hint,
//! and ends with an [`Outcome`]; what it decides is in [`Wait`], a plain value.
//!
//! Level-triggered: a wait looks only at what the store says now. States that come and go between
//! two looks are missed on purpose, and a change that happened before the wait began counts.
//!
//! Source: `xen/include/public/io/xenbus.h`.

mod goal;
mod state;
mod wait;

pub use goal::{Absent, Goal, Outcome};
pub use state::{StateSet, StateValue, XenbusState};
pub use wait::{Action, Event, Wait, wait};
