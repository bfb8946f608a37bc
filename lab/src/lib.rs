//! The world that xendev is tested in.

pub mod api;
pub mod apt;
mod beside;
pub mod builds;
mod cargo;
mod cc;
pub mod clients;
pub mod conformance;
pub mod creation;
pub mod daemon;
pub mod differential;
pub mod ends;
pub mod failure;
pub mod fakexen;
pub mod faults;
pub mod fuzz;
pub mod grammar;
pub mod guest;
pub mod hostile;
mod lanes;
pub mod lives;
pub mod native;
pub mod native_disk;
pub mod native_vif;
pub mod peers;
#[cfg(doctest)]
mod readmes;
mod seeded;
pub mod suite;
pub mod xen;
pub mod xendev;
