//! The disks and file systems of a guest that QEMU serves, and the QEMU that serves them: one a guest.
//!
//! No kernel moves these devices and no script sets them up: a QEMU takes up whatever stands in the backends' directories of
//! its guest, and says so in their states. So all of a guest's devices of this sort, and its QEMU, are one matter, with one
//! worker: its QEMU is started for the first, ended after the last, and never started before the one before it has
//! ended. Who uses it is no count that may go wrong, but what directories there are.
//!
//! | what | where |
//! | --- | --- |
//! | what is to be done, as a pure decision | `course` |
//! | looking, doing it, and waiting for what comes next | `keeper` |
//! | what is recorded of a QEMU | `record` |
//! | the process | `process` |

mod course;
mod keeper;
mod process;
mod record;

pub use process::{Ended, ProcessId, QemuProcess, QemuProgram, Qemus};
pub use record::{ServedQemu, qemus};

pub(super) use keeper::keep;
pub(super) use record::recorded;

use crate::BackendKind;

/// The kinds of backends that a QEMU of this daemon's serves.
pub(super) const SERVED: [BackendKind; 2] = [BackendKind::Qdisk, BackendKind::P9];
