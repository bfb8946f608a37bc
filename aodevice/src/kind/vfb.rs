//! Framebuffers, which the guest's device model shows.
//!
//! Source of the keys: `xen/include/public/io/fbif.h`, `tools/libs/light/libxl_types.idl` for the names in libxl's
//! JSON, and what `xl create` of Xen 4.17 was seen to write for a PV guest.

use serde_json::{Map, Value};

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

impl Spec for Vfb {
    fn devid(&self) -> Option<u32> {
        self.devid
    }

    fn backend(&self, _: &Guest) -> BackendKind {
        BackendKind::Vfb
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
