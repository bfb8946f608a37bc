//! Adds and removes the paravirtual devices of Xen domains, to an end or to an exact account of
//! where it stands.
//!
//! A [`Toolstack`] works on a connection to the store, with something that runs hotplug scripts.
//! [`Toolstack::add`] writes a device's tree, waits for its backend, and runs its script; if any
//! of that fails, nothing is left of it. [`Toolstack::remove`] asks both ends to close, undoes
//! the script's work, and removes the tree with the parents that it leaves empty.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//!
//! use xen_aodevice::{Device, Toolstack, WaitFor, vbd};
//! use xen_hotplug::ScriptRunner;
//! use tokio_util::sync::CancellationToken;
//! use xs_client::{Client, DomId};
//!
//! let toolstack = Toolstack::new(Client::connect().await?, Arc::new(ScriptRunner::new())).await?;
//! let disk = Device::Vbd(vbd::parse(&["/srv/d.img,raw,xvda,w"])?);
//! let cancel = CancellationToken::new();
//! toolstack.add(DomId(1), &disk, WaitFor::Script, &cancel).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # The parts
//!
//! What an operation does next is decided by [`machine`], plain values whose [`diagram`]s are drawn by
//! walking them, and whose transitions are traced under the same names. What a device's nodes are is a [`Tree`], another plain value. What
//! each step does to the store is one transaction each.
//!
//! # Whom it trusts
//!
//! The toolstack's own record (`/libxl/...`) alone. What the guest writes in its directory is
//! read for reports and listings, and for one decision: whether a frontend is at work there. Whether anybody runs
//! there who can answer is told by [`DomainFacts`].

pub mod devd;
mod device;
pub mod diagram;
mod facts;
mod guest;
mod id;
mod kind;
pub mod libxl;
mod list;
pub mod machine;
pub mod multi;
mod native;
mod operation;
mod pci;
mod plan;
mod report;
#[cfg(feature = "sim")]
pub mod sim;
mod toolstack;
mod tree;
mod usb;
pub mod xl_cfg;

pub use device::{Attachment, Device};
pub use facts::{Condition, DomainFacts, Hypercalls, Looking, Reason, StoreFacts};
use guest::Guest;
pub use guest::find_domain;
pub use id::{DeviceId, Paths, Which};
pub use kind::{
    BackendKind, Kind, KindInfo, ListedKey, Parts, Server, SpecError, console, p9, pcidev, pvcalls, usbctrl,
    usbdev, vbd, vdispl, vfb, vif, virtio, vkb, vsnd, vtpm,
};
pub use list::{Listed, ListedValue, ListedValues, list, list_all};
pub use machine::{Force, Limits, WaitFor};
pub use native::{Hotplug, NativeRunner};
pub use operation::daemon::Daemons;
pub use operation::owner::Owner;
pub use operation::record::{Occupant, Record, Stage, Token};
pub use operation::{
    ByHand, ByHandPreview, HostUsb, Medium, MediumChange, MediumPreview, MonitorError, PciHost, PlannedRun,
    PlannedScript, PlannedWrite, Preview, Ran, Rerun, RunBy, Target, UsbHost, UsbInterface,
};
pub use pci::{PciFunction, pci_functions};
pub use plan::{Ended, ModelEnd, Outcome, Plan, Planned, Progress, Run, Undone};
pub use report::{
    Cause, DriverDomainFault, End, Failure, FailureKind, Hint, InDrive, Named, Observation, Operation, Part,
    Step, Success, Warning,
};
pub use toolstack::{Addition, Removal, Toolstack};
pub use tree::{Keys, Tree};
pub use usb::{UsbController, usb_controllers};
