//! `vif-nat`: the guest gets an address of a private network that follows from its domid, and a route to it. The
//! translation itself is the administrator's; the DHCP server that the script can configure is left to it.

use std::net::Ipv4Addr;

use netlink_packet_route::link::LinkFlags;

use super::error::VifError;
use super::interface::Names;
use super::route::{answer_for_guest, network};
use super::session::{Network, Route, Session};
use super::{Outcome, Request};
use crate::Kind;

/// What lies between the last octets of the guest's address and of the host's towards it.
const DISTANCE: u8 = 127;

/// Sets the interface up with an address of this host, and routes the guest's address over it.
pub(super) fn add(session: &mut Session<'_>, request: &Request, names: &Names) -> Result<Outcome, VifError> {
    let addresses = addresses(request)?;
    let link = names.wait(session)?;
    let link = names.give(session, link)?;
    let outcome = Outcome::new(&link.name);
    // The script does nothing for an emulated twin but rename it.
    if request.kind == Kind::Tap || session.has_routes(&link)? {
        return Ok(outcome);
    }
    let step = format_args!("bring up {}", link.name);
    session.set_flags(step, &link, (LinkFlags::Up, LinkFlags::Up | LinkFlags::Noarp))?;
    session.add_address(&link, addresses.host, None)?;
    let to = Network { address: addresses.guest, prefix: 32 };
    session.add_route(&link, &Route { to, source: Some(addresses.host), metric: 0 })?;
    answer_for_guest(&link)?;
    Ok(outcome)
}

/// Takes the interface down, and with it its route.
pub(super) fn remove(
    session: &mut Session<'_>,
    request: &Request,
    names: &Names,
) -> Result<Outcome, VifError> {
    let outcome = Outcome::new(names.last());
    if request.kind == Kind::Tap {
        return Ok(outcome);
    }
    if let Some(link) = names.find(session)? {
        session.take_down(&link)?;
    }
    Ok(outcome)
}

/// The ends of the link between the host and the guest.
#[derive(Debug, PartialEq, Eq)]
struct Addresses {
    guest: Ipv4Addr,
    host: Ipv4Addr,
}

fn addresses(request: &Request) -> Result<Addresses, VifError> {
    let recorded = request.recorded.get("ip").map(String::as_str).filter(|ip| !ip.is_empty());
    let (text, guest) = match recorded {
        Some(text) => (text.to_owned(), network(text)?.address),
        None => {
            let [_, _, high, low] = request.fe.to_be_bytes();
            let last = request.devid.checked_add(1).and_then(|last| u8::try_from(last).ok());
            let last = last.ok_or_else(|| invalid(&format!("(none, and device id {})", request.devid)))?;
            let guest = Ipv4Addr::new(10, high, low, last);
            (guest.to_string(), guest)
        }
    };
    let [a, b, c, last] = guest.octets();
    let last = last.checked_add(DISTANCE).ok_or_else(|| invalid(&text))?;
    Ok(Addresses { guest, host: Ipv4Addr::new(a, b, c, last) })
}

fn invalid(value: &str) -> VifError {
    let expected = "one IPv4 address whose last octet is at most 128";
    VifError::Invalid { key: "ip", value: value.to_owned(), expected }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Action;

    #[test]
    fn addresses_follow_from_the_device() {
        let of = |fe, devid, ip: &str| {
            addresses(&Request::new(Kind::Vif, Action::Add, fe, devid, "s").recorded("ip", ip))
                .map(|addresses| (addresses.guest.to_string(), addresses.host.to_string()))
        };
        let found = |guest: &str, host: &str| Ok((guest.to_owned(), host.to_owned()));
        assert_eq!(of(7, 0, ""), found("10.0.7.1", "10.0.7.128"));
        assert_eq!(of(259, 1, ""), found("10.1.3.2", "10.1.3.129"));
        assert_eq!(of(7, 0, "192.168.1.5/24"), found("192.168.1.5", "192.168.1.132"));
        for (devid, ip) in [(0, "10.0.0.129"), (0, "10.0.0.1 10.0.0.2"), (128, ""), (u32::MAX, "")] {
            assert!(matches!(of(1, devid, ip), Err(VifError::Invalid { key: "ip", .. })), "{devid} {ip}");
        }
    }
}
