//! The world that xendev is tested in.

pub mod conformance;
pub mod daemon;
pub mod fakexen;
pub mod proxy;
pub mod xen;
