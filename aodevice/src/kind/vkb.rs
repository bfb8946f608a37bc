//! Keyboards with pointers. The guest's device model serves them, or a program of its own in the backend's domain, for
//! the input devices of a Linux host.
//!
//! Source of the keys: `xen/include/public/io/kbdif.h`, `tools/libs/light/libxl_types.idl` for the names in libxl's
//! JSON, and what `xl` of Xen 4.17 was seen to write. That of the specification: what `xl -N vkb-attach` of 4.17 was
//! seen to make of it.

use serde_json::{Map, Value};

use super::members::Members;
use super::words::{self, SpecError};
use super::{BackendKind, KindInfo, ListedKey, Spec};
use crate::libxl::Listing;
use crate::{DeviceId, Guest, Tree};

pub(crate) const INFO: KindInfo = KindInfo {
    name: "vkbd",
    backends: &[BackendKind::Vkbd, BackendKind::Vinput],
    frontend_module: "xen-kbdfront",
    listed: &[
        ListedKey::recorded("unique_id", "unique-id"),
        ListedKey::of_guest("event_channel", "event-channel"),
        ListedKey::of_guest("page_gref", "page-gref"),
    ],
    libxl: Listing::by_devid("vkbs"),
    ..super::SCRIPTLESS
};

/// What serves a keyboard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum VkbBackend {
    /// The guest's device model.
    Qemu,
    /// A program of its own.
    Linux,
}

impl VkbBackend {
    /// Its name in a specification, in libxl's JSON and in listings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Linux => "linux",
        }
    }

    /// The one that such a backend is.
    pub const fn of(backend: BackendKind) -> Self {
        match backend {
            BackendKind::Vinput => Self::Linux,
            _ => Self::Qemu,
        }
    }
}

/// A pad that tells several touches at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MultiTouch {
    /// Its width, in pixels.
    pub width: u32,
    /// Its height, in pixels.
    pub height: u32,
    /// How many touches at once it tells.
    pub contacts: u32,
}

impl MultiTouch {
    /// A pad of so many pixels that tells so many touches at once.
    pub fn new(width: u32, height: u32, contacts: u32) -> Self {
        Self { width, height, contacts }
    }
}

/// A keyboard with a pointer as it is asked for. `None` is what was not said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Vkb {
    /// The name of the domain that serves it, or its domid; the toolstack's own if it is empty.
    pub backend_name: Option<String>,
    /// Its device id; the smallest free one if none.
    pub devid: Option<u32>,
    /// What serves it; the guest's device model if not said.
    pub backend: Option<VkbBackend>,
    /// What tells it from others of its guest.
    pub unique_id: Option<String>,
    /// Whether it is without keys.
    pub disable_keyboard: bool,
    /// Whether it is without a pointer.
    pub disable_pointer: bool,
    /// Whether its pointer can tell a place on the screen.
    pub abs_pointer: bool,
    /// Whether its pointer can tell a place that is not scaled to the screen.
    pub raw_pointer: bool,
    /// The pad for several touches at once, if it has one.
    pub multi_touch: Option<MultiTouch>,
    /// Width and height of the screen that an absolute pointer moves on, in pixels.
    pub screen: Option<(u32, u32)>,
}

/// Reads the arguments of `vkb-attach`, or an entry of the list `vkb` of a domain configuration.
///
/// `backend-type=` is `qemu` or `linux`, and must be said. The rest is `backend=`, `devid=`, `unique-id=`;
/// `feature-disable-keyboard=`, `feature-disable-pointer=`, `feature-abs-pointer=`, `feature-raw-pointer=` and
/// `feature-multi-touch=`, each 0 or 1; `multi-touch-width=`, `multi-touch-height=` and `multi-touch-num-contacts=`,
/// which go together; `width=` and `height=`, which do so too.
///
/// # Errors
///
/// They name the parameter.
pub fn parse(arguments: &[impl AsRef<str>]) -> Result<Vkb, SpecError> {
    let mut vkb = Vkb::default();
    let (mut touch, mut screen, mut touches) = ([None; 3], [None; 2], None);
    words::read(arguments, |key, value| {
        match key {
            "backend" => vkb.backend_name = Some(value.to_owned()),
            "devid" => vkb.devid = words::devid(value)?,
            "backend-type" => {
                let of = |backend: &VkbBackend| backend.name().eq_ignore_ascii_case(value);
                let backend = [VkbBackend::Qemu, VkbBackend::Linux].into_iter().find(of);
                vkb.backend = Some(backend.ok_or("a backend-type is qemu or linux")?);
            }
            "unique-id" => vkb.unique_id = Some(value.to_owned()),
            "feature-disable-keyboard" => vkb.disable_keyboard = words::flag(value)?,
            "feature-disable-pointer" => vkb.disable_pointer = words::flag(value)?,
            "feature-abs-pointer" => vkb.abs_pointer = words::flag(value)?,
            "feature-raw-pointer" => vkb.raw_pointer = words::flag(value)?,
            "feature-multi-touch" => touches = Some(words::flag(value)?),
            "multi-touch-width" => touch[0] = Some(words::positive(value)?),
            "multi-touch-height" => touch[1] = Some(words::positive(value)?),
            "multi-touch-num-contacts" => touch[2] = Some(words::positive(value)?),
            "width" => screen[0] = Some(words::positive(value)?),
            "height" => screen[1] = Some(words::positive(value)?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    vkb.multi_touch = match (touch, touches) {
        ([Some(width), Some(height), Some(contacts)], None | Some(true)) => {
            Some(MultiTouch::new(width, height, contacts))
        }
        ([None, None, None], None | Some(false)) => None,
        (_, Some(false)) => return Err(SpecError::Whole("feature-multi-touch=0 has no multi-touch-...=")),
        _ => {
            return Err(SpecError::Whole(
                "multi-touch-width=, multi-touch-height= and multi-touch-num-contacts= go together",
            ));
        }
    };
    vkb.screen = match screen {
        [Some(width), Some(height)] => Some((width, height)),
        [None, None] => None,
        _ => return Err(SpecError::Whole("width= and height= go together")),
    };
    if vkb.backend.is_none() {
        return Err(SpecError::Missing("backend-type"));
    }
    Ok(vkb)
}

impl Spec for Vkb {
    fn devid(&self) -> Option<u32> {
        self.devid
    }

    fn number(&mut self, devid: u32) {
        self.devid.get_or_insert(devid);
    }

    fn backend_name(&self) -> Option<&str> {
        self.backend_name.as_deref()
    }

    fn backend(&self, _: &Guest) -> BackendKind {
        match self.backend {
            Some(VkbBackend::Linux) => BackendKind::Vinput,
            Some(VkbBackend::Qemu) | None => BackendKind::Vkbd,
        }
    }

    fn domain0_lacks(&self) -> Option<&'static str> {
        Some("Linux's xen-kbdfront does not run there")
    }

    fn libxl(&self) -> Map<String, Value> {
        let mut members = Members::new();
        members.text("backend_domname", &self.backend_name).option("devid", self.devid);
        members.option("backend_type", self.backend.map(VkbBackend::name)).text("unique_id", &self.unique_id);
        let yes = |yes: bool| yes.then_some(true);
        members.option("feature_disable_keyboard", yes(self.disable_keyboard));
        members.option("feature_disable_pointer", yes(self.disable_pointer));
        members.option("feature_abs_pointer", yes(self.abs_pointer));
        members.option("feature_raw_pointer", yes(self.raw_pointer));
        members.option("feature_multi_touch", yes(self.multi_touch.is_some()));
        members.option("width", self.screen.map(|(width, _)| width));
        members.option("height", self.screen.map(|(_, height)| height));
        members.option("multi_touch_width", self.multi_touch.map(|pad| pad.width));
        members.option("multi_touch_height", self.multi_touch.map(|pad| pad.height));
        members.option("multi_touch_num_contacts", self.multi_touch.map(|pad| pad.contacts));
        members.into()
    }

    fn tree(&self, id: &DeviceId, _: &Guest) -> Tree {
        let mut tree = super::plain_tree(id);
        let be = &mut tree.backend;
        if let Some(unique_id) = &self.unique_id {
            be.add("unique-id", unique_id);
        }
        for (key, yes) in [
            ("feature-disable-keyboard", self.disable_keyboard),
            ("feature-disable-pointer", self.disable_pointer),
            ("feature-abs-pointer", self.abs_pointer),
            ("feature-raw-pointer", self.raw_pointer),
        ] {
            if yes {
                be.add(key, 1);
            }
        }
        if let Some(MultiTouch { width, height, contacts }) = self.multi_touch {
            be.add("feature-multi-touch", 1);
            be.add("multi-touch-width", width).add("multi-touch-height", height);
            be.add("multi-touch-num-contacts", contacts);
        }
        if let Some((width, height)) = self.screen {
            be.add("width", width).add("height", height);
        }
        tree
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::table::outcomes;

    /// What is taken as `xl -N vkb-attach` of 4.17 prints it.
    #[test]
    fn what_is_understood() {
        let together = "multi-touch-width=, multi-touch-height= and multi-touch-num-contacts= go together";
        outcomes(
            |words| parse(words).map(crate::Device::Vkb),
            &[
                ("backend-type=qemu", r#"{"backend_type":"qemu"}"#),
                ("backend-type=LINUX", r#"{"backend_type":"linux"}"#),
                (
                    "backend-type=linux|backend=Domain-0|unique-id=T:1 a",
                    r#"{"backend_domname":"Domain-0","backend_type":"linux","unique_id":"T:1 a"}"#,
                ),
                (
                    "backend-type=linux|feature-raw-pointer=1|feature-abs-pointer=1|feature-disable-pointer=0",
                    r#"{"backend_type":"linux","feature_abs_pointer":true,"feature_raw_pointer":true}"#,
                ),
                (
                    "backend-type=linux|feature-multi-touch=1|multi-touch-width=100|multi-touch-height=200|\
                     multi-touch-num-contacts=10",
                    r#"{"backend_type":"linux","feature_multi_touch":true,"multi_touch_width":100,"multi_touch_height":200,"multi_touch_num_contacts":10}"#,
                ),
                (
                    "backend-type=linux,feature-disable-keyboard=1,feature-disable-pointer=1,width=800,height=600",
                    r#"{"backend_type":"linux","feature_disable_keyboard":true,"feature_disable_pointer":true,"width":800,"height":600}"#,
                ),
                ("backend-type=linux|feature-multi-touch=0", r#"{"backend_type":"linux"}"#),
                ("", "backend-type= is missing"),
                ("unique-id=a", "backend-type= is missing"),
                ("backend-type=", r#""backend-type=": a backend-type is qemu or linux"#),
                ("backend-type=linux|foo=1", r#""foo=1" is no parameter"#),
                ("foo", r#""foo" is no parameter"#),
                ("backend-type=linux|feature-multi-touch=1", together),
                ("backend-type=linux|multi-touch-width=100", together),
                (
                    "backend-type=linux|feature-multi-touch=0|multi-touch-width=100",
                    "feature-multi-touch=0 has no multi-touch-...=",
                ),
                ("backend-type=linux|width=800", "width= and height= go together"),
                ("backend-type=linux|feature-raw-pointer=true", r#""feature-raw-pointer=true": give 0 or 1"#),
                ("backend-type=linux|width=-1", r#""width=-1": give a decimal number from 1 to 4294967295"#),
            ],
        );
    }
}
