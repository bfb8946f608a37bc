//! `vif-bridge`: the interface becomes a port of a bridge.

use std::path::Path;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::LinkAttribute;

use super::error::VifError;
use super::interface::Names;
use super::session::{Link, SEE_LOG, Session};
use super::{Outcome, Request};
use crate::Kind;
use crate::process::DIRECTORIES;

/// The address of an interface towards a guest: the largest that is not a broadcast, so that no bridge takes it
/// for its own.
pub(super) const DUMMY: [u8; 6] = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff];

/// The tool by which the script lists bridges, if it is installed.
const BRCTL: &str = "brctl";

/// Puts the interface on its bridge.
pub(super) fn add(session: &mut Session<'_>, request: &Request, names: &Names) -> Result<Outcome, VifError> {
    // Before anything is changed: an interface that was renamed, and got no further, would be in the way of the next
    // attempt.
    let bridge = find(session, request, names)?;
    let link = names.wait(session)?;
    let mut link = names.give(session, link)?;
    let mut outcome = Outcome::new(&link.name);

    session.take_down(&link)?;
    let step = format_args!("give {} the address fe:ff:ff:ff:ff:ff", link.name);
    let set = session.change((step, SEE_LOG), &link, LinkAttribute::Address(DUMMY.to_vec()));
    outcome.tolerate(set)?;
    let addresses = session.addresses(&link, AddressFamily::Unspec)?;
    session.remove_addresses(&link, addresses)?;

    if let Some(mtu) = mtu(request, &bridge) {
        let step = format_args!("set the MTU of {} to {mtu}", link.name);
        let fix = "Give mtu= a value that the interface can have (ip -details link show)";
        let set = session.change((step, fix), &link, LinkAttribute::Mtu(mtu));
        if outcome.tolerate(set)? {
            link.mtu = mtu;
        }
        if request.kind != Kind::Tap {
            outcome.frontend.push(("mtu", link.mtu.to_string()));
        }
    }
    if link.master != Some(bridge.index) {
        let step = format_args!("put {} on {}", link.name, bridge.name);
        session.change((step, SEE_LOG), &link, LinkAttribute::Controller(bridge.index))?;
    }
    session.bring_up(&link)?;
    Ok(outcome)
}

/// Takes the interface off its bridge, as far as it is there.
pub(super) fn remove(
    session: &mut Session<'_>,
    request: &Request,
    names: &Names,
) -> Result<Outcome, VifError> {
    let outcome = Outcome::new(names.last());
    let Some(link) = names.find(session)? else { return Ok(outcome) };
    session.take_down(&link)?;
    let Some(master) = link.master else { return Ok(outcome) };
    // One that it was moved to later, by another tool, is not for us to undo.
    let is_its = match recorded(request) {
        Some(name) => named(session, name)?.is_some_and(|bridge| bridge.index == master),
        None => true,
    };
    if is_its {
        let step = format_args!("take {} off its bridge", link.name);
        session.change((step, SEE_LOG), &link, LinkAttribute::Controller(0))?;
    }
    Ok(outcome)
}

/// The bridge that the device names, or else the one that the script would choose.
fn find(session: &mut Session<'_>, request: &Request, names: &Names) -> Result<Link, VifError> {
    let interface = names.last().to_owned();
    let Some(name) = recorded(request) else {
        let links = session.links()?;
        let has_brctl = DIRECTORIES.iter().any(|directory| Path::new(directory).join(BRCTL).exists());
        let missing = || VifError::NoDefaultBridge { interface, bridges: bridges(&links) };
        return default(&links, has_brctl).cloned().ok_or_else(missing);
    };
    let bridge = name.to_owned();
    match named(session, name)? {
        Some(found) if found.is_bridge => Ok(found),
        Some(_) => Err(VifError::NotABridge { interface, bridge, bridges: bridges(&session.links()?) }),
        None => Err(VifError::BridgeMissing { interface, bridge, bridges: bridges(&session.links()?) }),
    }
}

/// The bridge of this name. What was once called `xenbr0` may have taken the place, and the name, of `eth0`.
fn named(session: &mut Session<'_>, name: &str) -> Result<Option<Link>, VifError> {
    if let Some(link) = session.find(name)? {
        return Ok(Some(link));
    }
    match name.strip_prefix("xenbr") {
        Some(number) => Ok(session.find(&format!("eth{number}"))?.filter(|link| link.is_bridge)),
        None => Ok(None),
    }
}

/// The bridge that the device names.
pub(super) fn recorded(request: &Request) -> Option<&str> {
    request.recorded.get("bridge").map(String::as_str).filter(|name| !name.is_empty())
}

/// The MTU that the device asks for, or else the bridge's. What is no number is passed over.
fn mtu(request: &Request, bridge: &Link) -> Option<u32> {
    match request.recorded.get("mtu").map(|mtu| mtu.trim()).filter(|mtu| !mtu.is_empty()) {
        Some(mtu) => mtu.parse().ok().filter(|mtu| *mtu > 0),
        None => Some(bridge.mtu),
    }
}

/// The names of all bridges, in order.
fn bridges(links: &[Link]) -> Vec<String> {
    let mut names: Vec<_> =
        links.iter().filter(|link| link.is_bridge).map(|link| link.name.clone()).collect();
    names.sort();
    names
}

/// The bridge for a device that names none. With `brctl` the script takes the first by name; without, the one that
/// has a port. It fails there if there are several ports; here only if it matters.
fn default(links: &[Link], has_brctl: bool) -> Option<&Link> {
    let mut bridges: Vec<_> = links.iter().filter(|link| link.is_bridge).collect();
    bridges.sort_by_key(|bridge| &bridge.name);
    if !has_brctl && bridges.len() > 1 {
        bridges.retain(|bridge| links.iter().any(|link| link.master == Some(bridge.index)));
        if bridges.len() > 1 {
            return None;
        }
    }
    bridges.into_iter().next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Action;

    fn links(of: &[(&str, u32, u32)]) -> Vec<Link> {
        let link = |&(name, index, master): &(&str, u32, u32)| Link {
            index,
            name: name.to_owned(),
            master: (master != 0).then_some(master),
            is_bridge: name.contains("br"),
            ..Link::default()
        };
        of.iter().map(link).collect()
    }

    #[test]
    fn a_bridge_is_chosen_as_the_script_would() {
        let chosen = |of: &[(&str, u32, u32)], has_brctl| {
            default(&links(of), has_brctl).map(|bridge| bridge.name.clone()).unwrap_or_default()
        };
        let ports = [("lo", 1, 0), ("xenbr1", 2, 0), ("br0", 3, 0), ("eth0", 4, 2)];
        assert_eq!(chosen(&ports, true), "br0");
        assert_eq!(chosen(&ports, false), "xenbr1");
        let several = [("br1", 2, 0), ("br0", 3, 0), ("eth0", 4, 2), ("eth1", 5, 3)];
        assert_eq!(chosen(&several, true), "br0");
        assert_eq!(chosen(&several, false), "");
        assert_eq!(chosen(&several[..2], false), "");
        // Where there is one, there is nothing to choose.
        assert_eq!(chosen(&[("br0", 2, 0)], false), "br0");
        assert_eq!(chosen(&[("eth0", 2, 0)], true), "");
        assert_eq!(bridges(&links(&several)), ["br0", "br1"]);
    }

    #[test]
    fn an_mtu_that_is_no_number_is_passed_over() {
        let bridge = Link { mtu: 1400, ..Link::default() };
        let of = |value: &str| {
            mtu(&Request::new(Kind::Vif, Action::Add, 1, 0, "s").recorded("mtu", value), &bridge)
        };
        assert_eq!((of("9000"), of(" 9000\n"), of("")), (Some(9000), Some(9000), Some(1400)));
        assert_eq!((of("0"), of("-1"), of("big")), (None, None, None));
    }
}
