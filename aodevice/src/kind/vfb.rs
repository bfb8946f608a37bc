//! Framebuffers, which the guest's device model shows.
//!
//! Source of the keys: `xen/include/public/io/fbif.h`, `tools/libs/light/libxl_types.idl` for the names in libxl's
//! JSON, and what `xl create` of Xen 4.17 was seen to write for a PV guest.

use serde_json::{Map, Value};
use thiserror::Error;

use super::members::Members;
use super::{BackendKind, KindInfo, Spec};
use crate::libxl::Listing;
use crate::{DeviceId, Guest, Tree};

pub(crate) const INFO: KindInfo = KindInfo {
    name: "vfb",
    backends: &[BackendKind::Vfb],
    frontend_module: "xen-fbfront",
    libxl: Listing::by_devid("vfbs"),
    ..super::SCRIPTLESS
};

/// A VNC server.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Vnc {
    /// The address that it listens at; `127.0.0.1` if none.
    pub listen: Option<String>,
    /// The password that it asks for, if any.
    pub passwd: Option<String>,
    /// The number of its display, of the port 5900 and so many.
    pub display: u16,
    /// Whether the next display that is free is taken if that one is not.
    pub find_unused: bool,
}

impl Default for Vnc {
    fn default() -> Self {
        Self { listen: None, passwd: None, display: 0, find_unused: true }
    }
}

/// A framebuffer as it is asked for. `None` is what was not said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Vfb {
    /// Its device id; the smallest free one if none.
    pub devid: Option<u32>,
    /// The VNC server that shows it, if one does.
    pub vnc: Option<Vnc>,
    /// Whether QEMU shows it in a window of this host, by SDL.
    pub sdl: bool,
}

impl Vfb {
    /// One that a VNC server shows.
    pub fn of_vnc(vnc: Vnc) -> Self {
        Self { vnc: Some(vnc), ..Self::default() }
    }
}

/// Why a framebuffer's specification is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{near:?}: {problem}")]
#[non_exhaustive]
pub struct VfbSpecError {
    /// The parameter, or the beginning of it.
    pub near: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

/// Reads an element of `vfb` of a domain's configuration: `vnc=1,vncdisplay=3`, as xl.cfg(5) has it.
///
/// What is said twice counts as it was said last. `type=`, which older files have, does not count.
///
/// # Errors
///
/// They name the parameter. Unlike for `xl`, one that is not known is none.
pub fn parse(text: &str) -> Result<Vfb, VfbSpecError> {
    let (mut vnc, mut has_vnc, mut sdl) = (Vnc::default(), true, false);
    let parameters = text.split(',').map(|parameter| parameter.trim_start_matches([' ', '\t', '\n']));
    for whole in parameters.filter(|whole| !whole.is_empty()) {
        let bad = |problem| VfbSpecError { near: whole.chars().take(80).collect(), problem };
        if whole.contains(char::is_control) {
            return Err(bad("it holds a control character"));
        }
        let (key, value) = whole.split_once('=').ok_or_else(|| bad("a parameter is key=value"))?;
        let flag = || match value {
            "0" => Ok(false),
            "1" => Ok(true),
            _ => Err(bad("it is 0 or 1")),
        };
        match key {
            "vnc" => has_vnc = flag()?,
            "vnclisten" => vnc.listen = Some(value.to_owned()),
            "vncpasswd" => vnc.passwd = Some(value.to_owned()),
            "vncdisplay" => vnc.display = value.parse().map_err(|_| bad("it is a number of 16 bits"))?,
            "vncunused" => vnc.find_unused = flag()?,
            "sdl" => sdl = flag()?,
            "type" => {}
            "opengl" if !flag()? => {}
            "opengl" | "keymap" | "display" | "xauthority" => return Err(bad("this is not served yet")),
            _ => return Err(bad("this is no parameter")),
        }
    }
    Ok(Vfb { devid: None, vnc: has_vnc.then_some(vnc), sdl })
}

impl Spec for Vfb {
    fn devid(&self) -> Option<u32> {
        self.devid
    }

    fn number(&mut self, devid: u32) {
        self.devid.get_or_insert(devid);
    }

    fn backend(&self, _: &Guest) -> BackendKind {
        BackendKind::Vfb
    }

    fn domain0_lacks(&self) -> Option<&'static str> {
        Some("Linux's xen-fbfront does not run there")
    }

    fn libxl(&self) -> Map<String, Value> {
        let mut vnc = Members::new();
        vnc.choice("enable", Some(self.vnc.is_some()));
        if let Some(Vnc { listen, passwd, display, find_unused }) = &self.vnc {
            vnc.text("listen", listen).text("passwd", passwd);
            vnc.option("display", (*display != 0).then_some(*display))
                .choice("findunused", Some(*find_unused));
        }
        let mut sdl = Members::new();
        sdl.choice("enable", Some(self.sdl));
        let mut members = Members::new();
        members.option("devid", self.devid);
        members.add("vnc", Map::from(vnc)).add("sdl", Map::from(sdl));
        members.into()
    }

    fn tree(&self, id: &DeviceId, _: &Guest) -> Tree {
        let flag = |yes: bool| if yes { "1" } else { "0" };
        let mut tree = super::plain_tree(id);
        let be = &mut tree.backend;
        be.add("vnc", flag(self.vnc.is_some()));
        let vnc = self.vnc.clone().unwrap_or_default();
        be.add("vnclisten", vnc.listen.as_deref().unwrap_or("127.0.0.1"));
        if let Some(passwd) = &vnc.passwd {
            be.add("vncpasswd", passwd);
        }
        be.add("vncdisplay", vnc.display).add("vncunused", flag(vnc.find_unused));
        be.add("sdl", flag(self.sdl)).add("opengl", 0);
        tree
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_of_a_configuration() {
        let all = parse("type=vnc, vnclisten=0.0.0.0,vncpasswd=x,vncdisplay=3,vncunused=0,sdl=1,opengl=0,")
            .unwrap();
        let vnc = Vnc {
            listen: Some("0.0.0.0".to_owned()),
            passwd: Some("x".to_owned()),
            display: 3,
            find_unused: false,
        };
        assert_eq!(all, Vfb { devid: None, vnc: Some(vnc), sdl: true });
        assert_eq!(parse("").unwrap(), Vfb::of_vnc(Vnc::default()));
        assert_eq!(parse("vnc=0").unwrap(), Vfb::default());
        for bad in
            ["vnc", "vnc=yes", "vncdisplay=70000", "colour=red", "keymap=de", "opengl=1", "vncpasswd=\n"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
