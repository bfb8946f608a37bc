//! The hypervisor's half of giving a PCI function to a guest.

use xs_client::DomId;

use crate::Cause;
use crate::pcidev::PciAddress;

/// Who assigns PCI functions to domains, with the permissions of their ports, memory and interrupts. Its calls may block:
/// they are made in threads.
pub trait PciHost: std::fmt::Debug + Send + Sync {
    /// Sees whether a function could be given or taken here, before anything is changed: that there is a way to do it,
    /// and that pciback has the function.
    ///
    /// # Errors
    ///
    /// Why not, as [`Cause::NotSupported`] or [`Cause::Host`].
    fn check(&self, address: PciAddress) -> Result<(), Cause>;

    /// Assigns a function to a guest, and lets the guest use its ports, memory and interrupt. Done again it changes
    /// nothing.
    ///
    /// # Errors
    ///
    /// Those of the hypervisor. What was done before them is undone by [`Self::take`].
    fn give(&self, fe: DomId, address: PciAddress) -> Result<(), Cause>;

    /// Takes all of that back, as far as it was given.
    ///
    /// # Errors
    ///
    /// Those of the hypervisor.
    fn take(&self, fe: DomId, address: PciAddress) -> Result<(), Cause>;
}

/// A host whose hypervisor is not asked: nothing can be given or taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NoPciHost;

impl NoPciHost {
    fn refusal(address: PciAddress) -> Cause {
        let needs = "hypercalls that this version does not make (XEN_DOMCTL_assign_device, and the permissions of ports, \
                     memory and interrupts)";
        Cause::NotSupported { what: format!("giving the PCI function {address} or taking it back"), needs }
    }
}

impl PciHost for NoPciHost {
    fn check(&self, address: PciAddress) -> Result<(), Cause> {
        Err(Self::refusal(address))
    }

    fn give(&self, _: DomId, address: PciAddress) -> Result<(), Cause> {
        Err(Self::refusal(address))
    }

    fn take(&self, _: DomId, address: PciAddress) -> Result<(), Cause> {
        Err(Self::refusal(address))
    }
}
