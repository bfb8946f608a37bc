//! Which interface is the device's, by its name; and the name that it is to have.
//!
//! Netback and the device model make interfaces under names that say the device; on add they get the name
//! that the administrator wants. A name is no proof: when an add fails since its name is taken, the interface of that
//! name is another guest's. So whatever still has the device's own name has not been renamed, and an interface of
//! netback tells which device it serves.

use std::time::Duration;

use netlink_packet_route::link::LinkAttribute;
use rustix::io::Errno;

use super::error::VifError;
use super::session::{Link, SEE_LOG, Session};
use crate::{Kind, Request};

/// For how long an interface is awaited. Netback has made its one before it tells that it is ready, so that
/// mostly it is there.
const APPEAR: Duration = Duration::from_secs(2);

/// The names of a device's interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Names {
    /// The one that it is made with.
    own: String,
    /// The one that it is to get.
    given: Option<String>,
    /// The device in the xenstore that it serves, if netback makes it.
    xenbus: Option<String>,
}

impl Names {
    pub(super) fn of(request: &Request) -> Self {
        let is_tap = request.kind == Kind::Tap;
        let suffix = if is_tap { "-emu" } else { "" };
        let own = format!("vif{}.{}{suffix}", request.fe, request.devid);
        let given = request.recorded.get("vifname").filter(|name| !name.is_empty());
        let given = given.map(|name| format!("{name}{suffix}")).filter(|name| *name != own);
        let xenbus = (!is_tap).then(|| format!("vif-{}-{}", request.fe, request.devid));
        Self { own, given, xenbus }
    }

    /// The name that it has when it is set up.
    pub(super) fn last(&self) -> &str {
        self.given.as_ref().unwrap_or(&self.own)
    }

    /// Waits for the interface, which has been renamed already if an earlier add got so far.
    pub(super) fn wait(&self, session: &mut Session<'_>) -> Result<Link, VifError> {
        session.wait_for(&self.own, APPEAR, |session| {
            if let Some(link) = session.find(&self.own)? {
                return Ok(Some(link));
            }
            let renamed = match &self.given {
                Some(name) => session.find(name)?,
                None => None,
            };
            Ok(renamed.filter(|link| link.xenbus.is_some() && link.xenbus == self.xenbus))
        })
    }

    /// Gives the interface its name.
    pub(super) fn give(&self, session: &mut Session<'_>, link: Link) -> Result<Link, VifError> {
        let Some(name) = self.given.as_ref().filter(|name| **name != link.name) else { return Ok(link) };
        let taken = || VifError::NameTaken { interface: link.name.clone(), vifname: name.clone() };
        if session.find(name)?.is_some() {
            return Err(taken());
        }
        // The kernel would make a number of it.
        if name.contains('%') {
            let expected = "a name without '%'";
            return Err(VifError::Invalid { key: "vifname", value: name.clone(), expected });
        }
        let step = format_args!("rename {} to {name}", link.name);
        match session.change((step, SEE_LOG), &link, LinkAttribute::IfName(name.clone())) {
            Ok(()) => Ok(Link { name: name.clone(), ..link }),
            Err(VifError::Refused { error, .. }) if error.errno == Errno::EXIST => Err(taken()),
            Err(VifError::Refused { error, .. }) if matches!(error.errno, Errno::INVAL | Errno::RANGE) => {
                let expected =
                    "a name of at most 15 bytes (11 for an emulated interface) without '/', ':' and blanks";
                Err(VifError::Invalid { key: "vifname", value: name.clone(), expected })
            }
            Err(error) => Err(error),
        }
    }

    /// The names under which there is no interface at all.
    pub(super) fn free(&self, session: &mut Session<'_>) -> Result<Vec<String>, VifError> {
        let mut free = Vec::new();
        for name in [Some(&self.own), self.given.as_ref()].into_iter().flatten() {
            if session.find(name)?.is_none() {
                free.push(name.clone());
            }
        }
        Ok(free)
    }

    /// The interface, if it is still there, under whatever name.
    pub(super) fn find(&self, session: &mut Session<'_>) -> Result<Option<Link>, VifError> {
        if let Some(link) = session.find(&self.own)? {
            return Ok(Some(link));
        }
        if let Some(name) = &self.given {
            let is_ours = |link: &Link| link.xenbus.is_none() || link.xenbus == self.xenbus;
            if let Some(link) = session.find(name)?.filter(is_ours) {
                return Ok(Some(link));
            }
        }
        let serves = |link: &Link| link.xenbus.is_some() && link.xenbus == self.xenbus;
        Ok(session.links()?.into_iter().find(serves))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Action;

    #[test]
    fn an_emulated_twin_has_a_suffix_under_both_names() {
        let names = |kind, vifname: &str| {
            Names::of(&Request::new(kind, Action::Add, 7, 1, "s").recorded("vifname", vifname))
        };
        assert_eq!(names(Kind::Vif, "").last(), "vif7.1");
        assert_eq!(names(Kind::VifIoemu, "web").last(), "web");
        assert_eq!(names(Kind::Tap, "web").last(), "web-emu");
        assert_eq!(names(Kind::Tap, "").last(), "vif7.1-emu");
        assert_eq!(names(Kind::Vif, "web").xenbus.as_deref(), Some("vif-7-1"));
        assert_eq!(names(Kind::Tap, "web").xenbus, None);
        // To be named as it is.
        assert_eq!(names(Kind::Vif, "vif7.1").given, None);
    }
}
