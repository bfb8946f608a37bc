//! Dialogues with the store, for what the conformance cases of the lab do not reach: the rules of
//! the C daemon that were found by comparing, the bounds, and the driver.

mod control;
mod domains;
mod driver;
mod fair;
mod memory;
mod peer;
mod permissions;
mod quotas;
mod rings;
mod slow;
mod transactions;
mod watches;
