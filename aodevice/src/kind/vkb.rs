//! Keyboards with pointers, which the guest's device model serves.
//!
//! Source of the keys: `xen/include/public/io/kbdif.h`, `tools/libs/light/libxl_types.idl` for the names in libxl's
//! JSON, and what `xl create` of Xen 4.17 was seen to write for an HVM guest.

use serde_json::{Map, Value};

use super::members::Members;
use super::{BackendKind, KindInfo, Recorded, Spec};
use crate::libxl::Listing;
use crate::tree::Keys;
use crate::{Cause, DeviceId, Guest, Tree};

pub(crate) const INFO: KindInfo = KindInfo {
    name: "vkbd",
    backends: &[BackendKind::Vkbd],
    backend_module: "none: QEMU serves it",
    frontend_module: "xen-kbdfront",
    first_devid: 0,
    id_name: |devid| devid.to_string(),
    listed: &[],
    made: &[],
    outlives_backend: false,
    libxl: Listing::by_devid("vkbs"),
    runs: |_| &[],
    unreported: |_| None,
    numbers: None,
    target: |_| None,
    undo: |_, _| Some(Recorded::new()),
};

/// A keyboard with a pointer as it is asked for. `None` is what was not said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Vkb {
    /// Its device id; the smallest free one if none.
    pub devid: Option<u32>,
    /// What tells it from others of its guest.
    pub unique_id: Option<String>,
    /// Whether it is without keys.
    pub disable_keyboard: bool,
    /// Whether it is without a pointer.
    pub disable_pointer: bool,
    /// Width and height of the screen that an absolute pointer moves on, in pixels.
    pub screen: Option<(u32, u32)>,
}

impl Spec for Vkb {
    fn devid(&self) -> Option<u32> {
        self.devid
    }

    fn label(&self) -> String {
        self.devid.map_or_else(|| "with the next id".to_owned(), |devid| devid.to_string())
    }

    fn backend(&self, _: &Guest) -> BackendKind {
        BackendKind::Vkbd
    }

    fn check(&self, _: &Guest) -> Result<(), Cause> {
        Ok(())
    }

    fn libxl(&self) -> Map<String, Value> {
        let mut members = Members::new();
        members.option("devid", self.devid).text("unique_id", &self.unique_id);
        members.option("feature_disable_keyboard", self.disable_keyboard.then_some(true));
        members.option("feature_disable_pointer", self.disable_pointer.then_some(true));
        members.option("width", self.screen.map(|(width, _)| width));
        members.option("height", self.screen.map(|(_, height)| height));
        members.into()
    }

    fn tree(&self, id: &DeviceId, _: &Guest) -> Tree {
        let mut be = Keys::new();
        be.add("frontend-id", id.fe).add("online", 1).add("state", 1);
        if let Some(unique_id) = &self.unique_id {
            be.add("unique-id", unique_id);
        }
        for (key, yes) in [
            ("feature-disable-keyboard", self.disable_keyboard),
            ("feature-disable-pointer", self.disable_pointer),
        ] {
            if yes {
                be.add(key, 1);
            }
        }
        if let Some((width, height)) = self.screen {
            be.add("width", width).add("height", height);
        }
        Tree { frontend: super::plain_frontend(id), frontend_read_only: Keys::new(), backend: be }
    }
}
