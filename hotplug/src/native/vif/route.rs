//! `vif-route`: the guest is reached over a route to each of its addresses, and the host answers for it (proxy ARP).

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};

use super::error::{Refusal, VifError};
use super::interface::Names;
use super::session::{Link, Network, Route, SEE_LOG, Session, failure};
use super::{Outcome, Request};
use crate::Kind;

/// The device that has the host's address, if none is recorded.
const NETDEV: &str = "eth0";

/// Sets the interface up with the host's address, and routes the guest's addresses over it.
pub(super) fn add(session: &mut Session<'_>, request: &Request, names: &Names) -> Result<Outcome, VifError> {
    let host = host_address(session, request)?;
    let networks = networks(request)?;
    let link = names.wait(session)?;
    let link = names.give(session, link)?;

    // The address of an interface is replaced, not added to.
    let old = session.addresses(&link, AddressFamily::Inet)?;
    session.remove_addresses(&link, old)?;
    session.add_address(&link, host, class_broadcast(host))?;
    session.bring_up(&link)?;
    answer_for_guest(&link)?;
    for network in networks {
        session.add_route(&link, &route(request, network, Some(host)))?;
    }
    Ok(Outcome::new(&link.name))
}

/// Removes the routes, as far as they are there. The interface goes with its backend, and its address with it.
pub(super) fn remove(
    session: &mut Session<'_>,
    request: &Request,
    names: &Names,
) -> Result<Outcome, VifError> {
    let outcome = Outcome::new(names.last());
    let Some(link) = names.find(session)? else { return Ok(outcome) };
    // With one that is none the add had failed.
    for network in networks(request).unwrap_or_default() {
        session.remove_route(&link, &route(request, network, None))?;
    }
    Ok(outcome)
}

/// Makes the host answer for the guest's addresses on an interface, and for those of others to the guest.
pub(super) fn answer_for_guest(link: &Link) -> Result<(), VifError> {
    // A name of an interface is no path: the kernel takes none with a slash.
    let path = format!("/proc/sys/net/ipv4/conf/{}/proxy_arp", link.name);
    fs::write(&path, "1\n").map_err(|error| {
        let step = format_args!("write 1 to {path}");
        if error.kind() == ErrorKind::NotFound {
            return VifError::Vanished { step: step.to_string() };
        }
        failure(step, SEE_LOG, Refusal::from_io(&error))
    })
}

/// The first address of the device that routes go over.
fn host_address(session: &mut Session<'_>, request: &Request) -> Result<Ipv4Addr, VifError> {
    let recorded = request.recorded.get("gatewaydev").map(String::as_str).filter(|name| !name.is_empty());
    let netdev = recorded.unwrap_or(NETDEV);
    let missing = || VifError::NoAddress { netdev: netdev.to_owned() };
    let link = session.find(netdev)?.ok_or_else(missing)?;
    let addresses = session.addresses(&link, AddressFamily::Inet)?;
    addresses.iter().find_map(primary).ok_or_else(missing)
}

fn primary(message: &AddressMessage) -> Option<Ipv4Addr> {
    if message.header.flags.contains(AddressHeaderFlags::Secondary) {
        return None;
    }
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
        _ => None,
    })
}

/// The networks of the guest, which stand in its key `ip` with blanks between them.
fn networks(request: &Request) -> Result<Vec<Network>, VifError> {
    let ip = request.recorded.get("ip").map(String::as_str).unwrap_or_default();
    let whole = |text: &str| {
        let network = network(text)?;
        let host_bits = u32::MAX.checked_shr(network.prefix.into()).unwrap_or(0);
        if u32::from(network.address) & host_bits == 0 { Ok(network) } else { Err(invalid(text)) }
    };
    ip.split_ascii_whitespace().map(whole).collect()
}

/// An IPv4 address, with the length of a prefix if it has one.
pub(super) fn network(text: &str) -> Result<Network, VifError> {
    let (address, prefix) = text.split_once('/').unwrap_or((text, "32"));
    let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32);
    let network = prefix.and_then(|prefix| Some(Network { address: address.parse().ok()?, prefix }));
    network.ok_or_else(|| invalid(text))
}

fn invalid(text: &str) -> VifError {
    let expected = "IPv4 addresses, and networks whose last bits are 0, such as 10.0.0.2 and 10.0.1.0/24";
    VifError::Invalid { key: "ip", value: text.to_owned(), expected }
}

fn route(request: &Request, to: Network, source: Option<Ipv4Addr>) -> Route {
    // The emulated twin comes first for as long as the guest's BIOS uses it.
    let metric = if request.kind == Kind::Tap { 1 } else { 2 };
    Route { to, source, metric }
}

/// The broadcast address that the kernel gives to an address without a prefix: that of its class.
fn class_broadcast(address: Ipv4Addr) -> Option<Ipv4Addr> {
    let host_bits = match address.octets()[0] {
        0..128 => 0x00ff_ffff,
        128..192 => 0xffff,
        192..224 => 0xff,
        _ => return None,
    };
    Some(Ipv4Addr::from(u32::from(address) | host_bits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Action;

    #[test]
    fn addresses_and_networks() {
        let of = |ip: &str| {
            let networks = networks(&Request::new(Kind::Vif, Action::Add, 1, 0, "s").recorded("ip", ip))?;
            Ok(networks.iter().map(|network| format!("{}/{}", network.address, network.prefix)).collect())
        };
        assert_eq!(
            of(" 10.0.0.2  10.1.0.0/16 0.0.0.0/0 "),
            Ok(vec!["10.0.0.2/32".to_owned(), "10.1.0.0/16".to_owned(), "0.0.0.0/0".to_owned()])
        );
        assert_eq!(of(""), Ok(vec![]));
        for bad in ["10.0.0", "10.0.0.2/33", "10.0.0.2/", "fe80::1", "10.0.0.256", "10.0.0.1/24", "a"] {
            assert!(matches!(of(bad), Err::<Vec<String>, _>(VifError::Invalid { key: "ip", .. })), "{bad}");
        }
    }

    #[test]
    fn broadcast_addresses_of_classes() {
        let of = |address: [u8; 4]| class_broadcast(address.into()).map(|broadcast| broadcast.octets());
        assert_eq!(of([10, 1, 2, 3]), Some([10, 255, 255, 255]));
        assert_eq!(of([172, 16, 2, 3]), Some([172, 16, 255, 255]));
        assert_eq!(of([192, 168, 2, 3]), Some([192, 168, 2, 255]));
        assert_eq!(of([240, 0, 0, 1]), None);
    }
}
