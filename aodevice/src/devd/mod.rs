//! Serves devices in a driver domain: what `xl devd` does there, and what it does not.
//!
//! A toolstack in another domain writes a device's tree, with its backend in this domain, and asks both ends to close
//! when it is to go. All that is to be done in between here is this module's: it runs the hotplug scripts, says in the
//! backend's directory how they ended, and removes that directory in the end, for which the toolstack waits.
//!
//! | what | where |
//! | --- | --- |
//! | where a device is, and which events are about it | `place` |
//! | what is noted of it | `note` |
//! | what is to be done for it, as a pure decision | `course` |
//! | what the store says of it, and of all devices in one pass | `look` |
//! | carrying out what was decided, for one device | `worker`, `undo` |
//! | which device has its turn | `turns` |
//! | whose script waits for its turn, and leaves its place to others | `aside` |
//! | the daemon as a program has it | `daemon` |
//! | that no other daemon serves this domain | `claim` |
//! | what it has noted, for whoever asks | `served` |
//! | what is among the notes and is none | `unreadable` |
//! | a guest's QEMU, and the devices that it serves | `qemu` |
//!
//! Events only say that a device is to be looked at. One worker at a time looks at a device, does what `course` says,
//! and looks again until there is nothing to do: so scripts of one device alternate, whatever toolstacks do to it
//! meanwhile, and a storm of events costs one look. Nothing is polled, but the store while it refuses to take down a device (a
//! quota that is used up).

mod aside;
mod claim;
mod course;
mod daemon;
mod event;
mod kick;
mod look;
mod note;
mod place;
mod qemu;
mod served;
mod turns;
mod undo;
mod unreadable;
mod worker;

pub use claim::{Claim, Holder, holder};
pub use daemon::{Daemon, DaemonError, Settings};
pub use event::Event;
pub use note::Stage;
pub(crate) use place::MARKER;
pub use place::Place;
pub use qemu::{Ended, ProcessId, QemuProcess, QemuProgram, Qemus, ServedQemu, qemus};
pub use served::{Served, served};
pub use unreadable::unreadable;
