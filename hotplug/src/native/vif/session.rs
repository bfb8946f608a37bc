//! The interfaces of this network namespace, looked at and changed one step at a time, until the deadline or a
//! cancellation.

use std::fmt;
use std::net::Ipv4Addr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

use super::error::{Refusal, VifError};
use super::netlink::Netlink;
use crate::native::ToolError;
use crate::native::tool::{Call, Course, Tools, on_thread};
use crate::{Limits, Output};

/// What to do about a refusal that is not foreseen.
pub(super) const SEE_LOG: &str = "See the kernel's log (dmesg)";

/// How often to look for an interface that is awaited.
const LOOK: Duration = Duration::from_millis(5);

/// An interface as it was when it was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mtu: u32,
    /// The index of the bridge that it is a port of.
    pub(super) master: Option<u32>,
    pub(super) is_bridge: bool,
    /// The device in the xenstore that the kernel serves with it, such as `vif-7-0`.
    pub(super) xenbus: Option<String>,
}

/// A destination of a route: a network and the length of its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Network {
    pub(super) address: Ipv4Addr,
    pub(super) prefix: u8,
}

/// A route over an interface.
#[derive(Clone, Copy, Debug)]
pub(super) struct Route {
    pub(super) to: Network,
    /// The address that is used by this host on it.
    pub(super) source: Option<Ipv4Addr>,
    /// Its metric; 0 is none.
    pub(super) metric: u32,
}

/// The work of one run.
#[derive(Debug)]
pub(super) struct Session<'a> {
    netlink: Netlink,
    /// No deadline if it is beyond what the clock can tell.
    deadline: Option<Instant>,
    cancel: &'a CancellationToken,
    /// The calls of tools that belong to it.
    course: Course,
}

impl<'a> Session<'a> {
    pub(super) fn open(
        tools: &Tools,
        limits: &Limits,
        cancel: &'a CancellationToken,
    ) -> Result<Self, VifError> {
        let deadline = Instant::now().checked_add(limits.deadline);
        let netlink = Netlink::open().map_err(|error| {
            failure(format_args!("open a netlink socket"), SEE_LOG, Refusal::from_io(&error))
        })?;
        Ok(Self { netlink, deadline, cancel, course: tools.course(limits, cancel) })
    }

    /// Calls a tool, in the network namespace of this thread.
    pub(super) fn call(&self, call: &Call) -> Result<Output, ToolError> {
        on_thread(call, self.course.call(call))
    }

    /// Calls a tool to undo something, also after the deadline.
    pub(super) fn undo(&self, call: &Call) -> Result<Output, ToolError> {
        on_thread(call, self.course.undo(call))
    }

    /// How much time is left, at most `most`.
    pub(super) fn left(&self, most: Duration) -> Duration {
        self.course.left(most)
    }

    /// Waits for an interface to appear.
    pub(super) fn wait_for<T>(
        &mut self,
        name: &str,
        limit: Duration,
        mut look: impl FnMut(&mut Self) -> Result<Option<T>, VifError>,
    ) -> Result<T, VifError> {
        let begun = Instant::now();
        loop {
            if let Some(found) = look(self)? {
                return Ok(found);
            }
            let waited = begun.elapsed();
            if waited >= limit {
                return Err(VifError::InterfaceMissing { interface: name.to_owned(), waited });
            }
            sleep(LOOK);
        }
    }

    /// The interface with this name.
    pub(super) fn find(&mut self, name: &str) -> Result<Option<Link>, VifError> {
        let step = format_args!("look for interface {name}");
        let mut message = links_message();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.request(step, RouteNetlinkMessage::GetLink(message), 0)? {
            Ok(found) => Ok(found.into_iter().find_map(link)),
            // No interface can have a name that is too long, or none.
            Err(refusal) if matches!(refusal.errno, Errno::NODEV | Errno::RANGE | Errno::INVAL) => Ok(None),
            Err(refusal) => Err(failure(step, SEE_LOG, refusal)),
        }
    }

    /// All interfaces.
    pub(super) fn links(&mut self) -> Result<Vec<Link>, VifError> {
        let found = self.list("list the interfaces", &RouteNetlinkMessage::GetLink(links_message()))?;
        Ok(found.into_iter().filter_map(link).collect())
    }

    /// Changes an interface.
    pub(super) fn change(
        &mut self,
        (step, fix): (fmt::Arguments<'_>, &'static str),
        link: &Link,
        to: LinkAttribute,
    ) -> Result<(), VifError> {
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        message.attributes.push(to);
        self.demand(step, fix, RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Sets flags of an interface; those of `change` that are not in `flags` are cleared.
    pub(super) fn set_flags(
        &mut self,
        step: fmt::Arguments<'_>,
        link: &Link,
        (flags, change): (LinkFlags, LinkFlags),
    ) -> Result<(), VifError> {
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        message.header.flags = flags;
        message.header.change_mask = change;
        self.demand(step, SEE_LOG, RouteNetlinkMessage::SetLink(message), 0)
    }

    pub(super) fn bring_up(&mut self, link: &Link) -> Result<(), VifError> {
        self.set_flags(format_args!("bring up {}", link.name), link, (LinkFlags::Up, LinkFlags::Up))
    }

    pub(super) fn take_down(&mut self, link: &Link) -> Result<(), VifError> {
        self.set_flags(format_args!("take down {}", link.name), link, (LinkFlags::empty(), LinkFlags::Up))
    }

    /// The addresses of an interface; of one family, or of all.
    pub(super) fn addresses(
        &mut self,
        link: &Link,
        family: AddressFamily,
    ) -> Result<Vec<AddressMessage>, VifError> {
        let mut message = AddressMessage::default();
        message.header.family = family;
        message.header.index = link.index;
        let found = self.list("list addresses", &RouteNetlinkMessage::GetAddress(message))?;
        let of_link = |message| match message {
            // Older kernels list those of all interfaces.
            RouteNetlinkMessage::NewAddress(address) if address.header.index == link.index => Some(address),
            _ => None,
        };
        Ok(found.into_iter().filter_map(of_link).collect())
    }

    /// Removes addresses of an interface. One that is gone by then, as secondary ones go with their primary, is no
    /// failure.
    pub(super) fn remove_addresses(
        &mut self,
        link: &Link,
        addresses: Vec<AddressMessage>,
    ) -> Result<(), VifError> {
        let step = format_args!("remove an address of {}", link.name);
        for address in addresses {
            match self.request(step, RouteNetlinkMessage::DelAddress(address), 0)? {
                Err(refusal) if refusal.errno != Errno::ADDRNOTAVAIL => {
                    return Err(failure(step, SEE_LOG, refusal));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Adds an address of a single host to an interface.
    pub(super) fn add_address(
        &mut self,
        link: &Link,
        address: Ipv4Addr,
        broadcast: Option<Ipv4Addr>,
    ) -> Result<(), VifError> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = 32;
        message.header.index = link.index;
        message.attributes =
            vec![AddressAttribute::Local(address.into()), AddressAttribute::Address(address.into())];
        message.attributes.extend(broadcast.map(AddressAttribute::Broadcast));
        let step = format_args!("give {} the address {address}", link.name);
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        match self.request(step, RouteNetlinkMessage::NewAddress(message), flags)? {
            Err(refusal) if refusal.errno != Errno::EXIST => Err(failure(step, SEE_LOG, refusal)),
            _ => Ok(()),
        }
    }

    /// The IPv4 routes of the main table that go over an interface.
    pub(super) fn has_routes(&mut self, link: &Link) -> Result<bool, VifError> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        let found = self.list("list routes", &RouteNetlinkMessage::GetRoute(message))?;
        Ok(found.iter().any(|message| {
            let RouteNetlinkMessage::NewRoute(route) = message else { return false };
            route.header.table == RouteHeader::RT_TABLE_MAIN
                && route.attributes.contains(&RouteAttribute::Oif(link.index))
        }))
    }

    /// Adds a route over an interface.
    pub(super) fn add_route(&mut self, link: &Link, route: &Route) -> Result<(), VifError> {
        let step = format_args!("route {}/{} over {}", route.to.address, route.to.prefix, link.name);
        let fix = "Look for a route to the same addresses (ip route), which another guest may have";
        let message = RouteNetlinkMessage::NewRoute(route_message(link, route));
        self.demand(step, fix, message, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Removes a route over an interface. One that is not there is no failure.
    pub(super) fn remove_route(&mut self, link: &Link, route: &Route) -> Result<(), VifError> {
        let step =
            format_args!("remove the route to {}/{} over {}", route.to.address, route.to.prefix, link.name);
        let message = RouteNetlinkMessage::DelRoute(route_message(link, route));
        match self.request(step, message, 0)? {
            Err(refusal) if refusal.errno != Errno::SRCH => Err(failure(step, SEE_LOG, refusal)),
            _ => Ok(()),
        }
    }

    fn list(
        &mut self,
        step: &str,
        message: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, VifError> {
        let step = format_args!("{step}");
        self.check(step)?;
        self.netlink.dump(message).map_err(|refusal| failure(step, SEE_LOG, refusal))
    }

    fn demand(
        &mut self,
        step: fmt::Arguments<'_>,
        fix: &'static str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), VifError> {
        self.request(step, message, flags)?.map_err(|refusal| failure(step, fix, refusal))?;
        Ok(())
    }

    fn request(
        &mut self,
        step: fmt::Arguments<'_>,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Result<Vec<RouteNetlinkMessage>, Refusal>, VifError> {
        self.check(step)?;
        Ok(self.netlink.request(message, flags))
    }

    /// Whether there is time left for a step.
    fn check(&self, step: fmt::Arguments<'_>) -> Result<(), VifError> {
        if self.cancel.is_cancelled() {
            return Err(VifError::Cancelled { step: step.to_string() });
        }
        match self.deadline {
            Some(deadline) if Instant::now() >= deadline => {
                Err(VifError::TimedOut { step: step.to_string() })
            }
            _ => Ok(()),
        }
    }
}

/// The error for a refusal.
pub(super) fn failure(step: fmt::Arguments<'_>, fix: &'static str, error: Refusal) -> VifError {
    let step = step.to_string();
    match error.errno {
        Errno::NODEV | Errno::NXIO => VifError::Vanished { step },
        Errno::PERM | Errno::ACCESS => VifError::NotPermitted { step, error },
        _ => VifError::Refused { step, error, fix },
    }
}

/// A request for links, without their counters.
fn links_message() -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    message
}

fn link(message: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let mut link = Link { index: message.header.index, ..Link::default() };
    let (mut bus, mut parent) = (None, None);
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Controller(master) => link.master = Some(master),
            LinkAttribute::LinkInfo(infos) => {
                link.is_bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
            }
            LinkAttribute::ParentDevBusName(name) => bus = Some(name),
            LinkAttribute::ParentDevName(name) => parent = Some(name),
            _ => {}
        }
    }
    link.xenbus = parent.filter(|_| bus.as_deref() == Some("xen-backend"));
    Some(link)
}

fn route_message(link: &Link, route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = route.to.prefix;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = RouteScope::Link;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        RouteAttribute::Destination(RouteAddress::Inet(route.to.address)),
        RouteAttribute::Oif(link.index),
    ];
    message.attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(source.into())));
    if route.metric != 0 {
        message.attributes.push(RouteAttribute::Priority(route.metric));
    }
    message
}
