//! The other side of a device, for tests and demonstrations: a guest's frontend drivers, a
//! kernel's backend drivers, and hotplug scripts, all of which live in the store alone.
//!
//! They run over any connection, to an embedded store as to a real daemon, and go through the
//! same states in the same order as Linux's blkfront, blkback, netfront and netback. No disk is
//! served and no packet moved.

mod backend;
mod bus;
mod devd;
mod frontend;
mod pci;
mod scripts;
mod world;

pub use bus::Drivers;
pub use devd::Devd;
pub use pci::PciDriver;
pub use scripts::Scripts;
pub use world::{create_domain, create_domain0};
