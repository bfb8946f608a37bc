//! The vectors of the device layer: operations against a store in memory, with scripted peers, in
//! virtual time.

mod add;
mod cancel;
mod console;
mod defects;
mod disks;
mod driver_domain;
mod facts;
mod from_file;
mod front;
mod hostile;
mod kinds;
mod libxl;
mod lost;
mod machine;
mod medium;
mod not_ours;
mod outsiders;
mod owners;
mod p9;
mod pci;
mod plan;
mod qemu;
mod races;
mod remove;
mod reports;
mod traces;
mod tree;
mod usb;
mod usbdev;
mod words;
mod world;
