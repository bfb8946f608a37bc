//! The daemon of a driver domain against an embedded store: domain 0 as a toolstack that writes what `xl` writes, simulated
//! kernels of the driver domain and of the guest, and scripts that play their lines. Time is virtual.

mod claim;
mod life;
mod losses;
mod many;
mod qemu;
mod qemus;
mod restart;
mod undo;
mod unreadable;
mod world;
