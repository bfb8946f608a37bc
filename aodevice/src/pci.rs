//! The PCI functions of a guest that the kernel's pciback serves.
//!
//! All functions of a guest are in one directory of the backend, which is always in domain 0, and no record of them is
//! elsewhere. That directory is read here; how functions come and go is in `operation/pci`.

use serde::Serialize;
use xs_client::{Client, DomId, Error, Path};

use crate::kind::pcidev::{PciAddress, hexadecimal};
use crate::operation::pci::bus::MOST;
use crate::operation::text;

/// A PCI function of the host, and its place in a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PciFunction {
    /// Its domain of the host, also called its segment.
    pub domain: u16,
    /// Its bus.
    pub bus: u8,
    /// Its device.
    pub device: u8,
    /// Its function.
    pub function: u8,
    /// The slot that it has in the guest.
    pub guest_slot: u8,
    /// The function that it is there.
    pub guest_function: u8,
}

impl PciFunction {
    /// The function of a node `dev-N`, as in `0000:03:00.1`, and of a node `vdevfn-N`, in hexadecimal.
    fn read(address: &str, place: Option<&str>) -> Option<Self> {
        let PciAddress { domain, bus, device, function } = address.parse().ok()?;
        let place = place.and_then(|place| hexadecimal(place.trim_start_matches("0x"), 0xff)).unwrap_or(0);
        Some(Self {
            domain,
            bus,
            device,
            function,
            guest_slot: u8::try_from(place >> 3).ok()?,
            guest_function: u8::try_from(place & 7).ok()?,
        })
    }
}

/// The PCI functions of a guest, in the order in which it was given them. What is no address is left out.
///
/// # Errors
///
/// Those of reading.
pub async fn pci_functions(client: &Client, fe: DomId) -> Result<Vec<PciFunction>, Error> {
    let backend = Path::new(format!("/local/domain/0/backend/pci/{fe}/0"))?;
    let count = text(client.read_opt(&backend.join("num_devs")?).await?);
    let count: u32 = count.and_then(|count| count.parse().ok()).unwrap_or(0);
    let mut nodes = Vec::new();
    for index in 0..count.min(MOST) {
        nodes.extend([backend.join(format!("dev-{index}"))?, backend.join(format!("vdevfn-{index}"))?]);
    }
    let values: Vec<Option<String>> = client.read_many(&nodes).await?.into_iter().map(text).collect();
    let function = |pair: &[Option<String>]| PciFunction::read(pair[0].as_deref()?, pair[1].as_deref());
    Ok(values.chunks_exact(2).filter_map(function).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let read = |address, place| {
            let PciFunction { domain, bus, device, function, guest_slot, guest_function } =
                PciFunction::read(address, place)?;
            Some((domain, bus, device, function, guest_slot, guest_function))
        };
        assert_eq!(read("0000:03:00.1", Some("29")), Some((0, 3, 0, 1, 5, 1)));
        assert_eq!(read("ffff:ff:1f.7", None), Some((0xffff, 0xff, 0x1f, 7, 0, 0)));
        for bad in
            ["", "0000:03:00", "0000:03:20.0", "0000:03:00.8", "10000:03:00.0", "0000:+3:00.0", "x:y:z.0"]
        {
            assert_eq!(read(bad, None), None, "{bad}");
        }
        assert_eq!(read("0000:03:00.1", Some("100")), Some((0, 3, 0, 1, 0, 0)), "no place");
    }
}
