//! What to do about a failure, typed: whoever shows it words it.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use xen_hotplug::SpawnFault;

use crate::id::domid_number;
use crate::{BackendKind, Kind};
use xs_client::DomId;

/// What to do about a failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Hint {
    /// See which domains there are.
    ListDomains,
    /// See what is left of this domain's devices, and remove it, by its number.
    CleanUpById(#[serde(serialize_with = "domid_number")] DomId),
    /// See which devices of this kind the guest has.
    ListDevices(Kind),
    /// Remove the device and add it again: what was left to do was not done.
    AddAnew(Kind),
    /// The device was made by hand or by another toolstack: remove it there, or adopt it.
    RemoveOrAdopt(Kind),
    /// Let the guest close its frontend, or remove it where it was made.
    FreeFrontend,
    /// Describe the device correctly.
    CorrectDevice,
    /// Name a file or block device that is there, or the script that makes one of the target.
    NameTarget,
    /// Have the guest made with a device of QEMU's, or have the kernel serve the device.
    UseKernelBackend,
    /// See whether the device model is stopped, and what its log says.
    CheckModel,
    /// Remove the device and add it with the other image: it is no drive whose medium can be changed.
    ReplaceDevice(Kind),
    /// Let the guest let go of the medium, or do without its consent.
    FreeMedium,
    /// Name an image that QEMU can read, and its format.
    CorrectMedium,
    /// Change the medium again.
    ChangeAgain,
    /// Describe the interface in the guest's configuration, or do without its emulated twin.
    AddAtCreation,
    /// See that this program, which is to serve the device, is there and runs.
    CheckDaemon(&'static str),
    /// Correct the device by what the log of the device model says.
    ReadModelLog(PathBuf),
    /// Give the device to the guest when that is created, or do without it.
    MakeWithDomain,
    /// See which devices the host has, and by which numbers.
    ListHostDevices,
    /// Take the device from this domain first.
    DetachElsewhere(#[serde(serialize_with = "domid_number")] DomId),
    /// Name a domain that runs to have the backend.
    NameBackendDomain,
    /// See that this driver domain runs the daemon that runs hotplug scripts there.
    CheckDriverDomain(#[serde(serialize_with = "domid_number")] DomId),
    /// The log of the daemon and the stock scripts in this driver domain tells why.
    ReadDriverDomainLog(#[serde(serialize_with = "domid_number")] DomId),
    /// Start the driver domain again, and add the device anew.
    StartDriverDomain(#[serde(serialize_with = "domid_number")] DomId),
    /// Name a target that is there in this driver domain.
    NameTargetThere(#[serde(serialize_with = "domid_number")] DomId),
    /// See that this driver domain runs its daemon and remove the device again, or do without that: it is left closing.
    RemoveAgainOrLeave(#[serde(serialize_with = "domid_number")] DomId),
    /// Use the toolstack that knows this backend.
    UseOtherToolstack,
    /// Wait longer for the other operation, ask it to cancel, or end its process.
    WaitOrTakeOver {
        /// The process, if it is known.
        pid: Option<u32>,
    },
    /// The log of the program that serves backends of this kind tells why.
    ReadBackendLog(BackendKind),
    /// Name a guest, and not domain 0.
    NameGuest,
    /// Start the program that serves backends of this kind.
    StartBackend(BackendKind),
    /// Load this module in the backend's domain.
    LoadBackend(&'static str),
    /// Load this module in this driver domain.
    LoadBackendIn(&'static str, #[serde(serialize_with = "domid_number")] DomId),
    /// See that the guest runs and has this driver.
    CheckGuest(&'static str),
    /// Unpause this domain, the guest, and try again; a device that was to be removed is left closing, and can be
    /// removed without the guest.
    Unpause(#[serde(serialize_with = "domid_number")] DomId),
    /// Free the device in the guest and remove it again, or do without the guest: it is left closing.
    RemoveAgainOrForce,
    /// The kernel log of the backend's domain tells why.
    ReadKernelLog,
    /// The kernel log of this driver domain tells why.
    ReadKernelLogOf(#[serde(serialize_with = "domid_number")] DomId),
    /// Name a script that exists and can be executed.
    NameScript,
    /// Put the script back that is recorded of the device, or remove the device without it.
    RestoreScript(String),
    /// Mend the file of the script.
    MendScript {
        /// Its path, in a form that can be shown.
        script: String,
        /// What is wrong with it.
        fault: SpawnFault,
    },
    /// See that the directory for locks can be written: its file system may be full.
    MendLocks,
    /// Install the program that the script's last line names, or see that it can be executed.
    InstallProgram,
    /// Free what the device is to serve where it is in use.
    FreeTarget,
    /// What is told of the cause ends with what to do.
    DoAsTold,
    /// Run the script by hand, or give it more time.
    GiveScriptTime(Duration),
    /// The log of the stock scripts tells why.
    ReadScriptLog,
    /// See what else works on the guest's devices, then try again.
    SeeWhoElse,
    /// Mend the program's own runner: `Runner::run_if` awaits its permit.
    MendRunner,
    /// Mend libxl's configuration of the domain, or add the device without an entry in it; then it is gone
    /// after a reboot, a restore or a migration.
    AddWithoutConfig,
    /// The store's own advice.
    Store(&'static str),
    /// Give all the operations of which it is one more time.
    AllowMoreTime,
    /// Remove it again to go on.
    RemoveAgain,
    /// Nothing is left of it: add it again.
    AddAgain,
    /// Remove the device, which runs the script when nobody uses it any more, or insist.
    RemoveOrInsist(Kind),
    /// Run the script that removes first, or insist.
    UndoOrInsist(Kind),
    /// Run the script again.
    RunAgain,
}
