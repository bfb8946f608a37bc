//! Displays, of which each connector is a screen.
//!
//! Source of the keys: `xen/include/public/io/displif.h`, and what `xl` of Xen 4.17 was seen to write. That of the
//! specification: what `xl -N vdispl-attach` of 4.17 was seen to make of it.

use serde_json::{Map, Value};

use super::members::Members;
use super::words::{self, SpecError};
use super::{BackendKind, KindInfo, ListedKey, Parts, Spec};
use crate::libxl::Listing;
use crate::list::PARTS_MOST;
use crate::{DeviceId, Guest, Tree};

pub(crate) const INFO: KindInfo = KindInfo {
    name: "vdispl",
    backends: &[BackendKind::Vdispl],
    frontend_module: "drm_xen_front",
    listed: &[ListedKey::of_guest("be_alloc", "be-alloc")],
    parts: Some(&Parts {
        name: "connectors",
        listed: &[
            ListedKey::text_of_guest("unique_id", "unique-id"),
            ListedKey::text_of_guest("resolution", "resolution"),
            ListedKey::of_guest("req_ring_ref", "req-ring-ref"),
            ListedKey::of_guest("req_event_channel", "req-event-channel"),
            ListedKey::of_guest("evt_ring_ref", "evt-ring-ref"),
            ListedKey::of_guest("evt_event_channel", "evt-event-channel"),
        ],
        parts: None,
    }),
    libxl: Listing::by_devid("vdispls"),
    ..super::SCRIPTLESS
};

/// A screen.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Connector {
    /// What tells the backend which screen it is.
    pub unique_id: String,
    /// Its width, in pixels.
    pub width: u32,
    /// Its height, in pixels.
    pub height: u32,
}

impl Connector {
    /// A screen of so many pixels.
    pub fn new(unique_id: impl Into<String>, width: u32, height: u32) -> Self {
        Self { unique_id: unique_id.into(), width, height }
    }
}

/// A display as it is asked for. `None` is what was not said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Vdispl {
    /// The name of the domain that serves it, or its domid; the toolstack's own if it is empty.
    pub backend_name: Option<String>,
    /// Its device id; the smallest free one if none.
    pub devid: Option<u32>,
    /// Whether the backend allocates the buffers.
    pub be_alloc: bool,
    /// Its screens: one at least.
    pub connectors: Vec<Connector>,
}

fn connector(text: &str) -> Result<Connector, &'static str> {
    let form = "a connector is ID:WIDTHxHEIGHT, as in id0:800x600";
    let (unique_id, (width, height)) = text
        .split_once(':')
        .and_then(|(id, size)| Some((id, size.split_once('x')?)))
        .filter(|(id, _)| !id.is_empty())
        .ok_or(form)?;
    let pixels = |text: &str| words::positive(text).map_err(|_| form);
    Ok(Connector::new(unique_id, pixels(width)?, pixels(height)?))
}

/// Reads the arguments of `vdispl-attach`, or an entry of the list `vdispl` of a domain configuration.
///
/// `connectors=` has one screen or several, `ID:WIDTHxHEIGHT` with semicolons between them. The rest is `be-alloc=`,
/// which is 0 or 1, `backend=` and `devid=`.
///
/// # Errors
///
/// They name the parameter.
pub fn parse(arguments: &[impl AsRef<str>]) -> Result<Vdispl, SpecError> {
    let mut vdispl = Vdispl::default();
    words::read(arguments, |key, value| {
        match key {
            "backend" => vdispl.backend_name = Some(value.to_owned()),
            "devid" => vdispl.devid = words::devid(value)?,
            "be-alloc" => vdispl.be_alloc = words::flag(value)?,
            "connectors" => vdispl.connectors = words::list(value, connector)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    if vdispl.connectors.is_empty() {
        return Err(SpecError::Missing("connectors"));
    }
    if vdispl.connectors.len() > PARTS_MOST {
        return Err(SpecError::Whole("a display has at most 1024 connectors here"));
    }
    let ids = || vdispl.connectors.iter().map(|connector| &connector.unique_id);
    if ids().enumerate().any(|(index, id)| ids().take(index).any(|other| other == id)) {
        return Err(SpecError::Whole("two connectors have the same id"));
    }
    Ok(vdispl)
}

impl Spec for Vdispl {
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
        BackendKind::Vdispl
    }

    fn domain0_lacks(&self) -> Option<&'static str> {
        Some("Linux's drm_xen_front does not run there")
    }

    fn libxl(&self) -> Map<String, Value> {
        let mut members = Members::new();
        members.text("backend_domname", &self.backend_name).option("devid", self.devid);
        members.option("be_alloc", self.be_alloc.then_some(true));
        let connectors = self.connectors.iter().map(|Connector { unique_id, width, height }| {
            let mut members = Members::new();
            members.add("unique_id", &**unique_id).add("width", *width).add("height", *height);
            Value::Object(members.into())
        });
        members.add("connectors", connectors.collect::<Vec<_>>());
        members.into()
    }

    fn tree(&self, id: &DeviceId, _: &Guest) -> Tree {
        let mut tree = super::plain_tree(id);
        let keys = &mut tree.frontend_read_only;
        keys.add("be-alloc", u8::from(self.be_alloc));
        for (index, Connector { unique_id, width, height }) in self.connectors.iter().enumerate() {
            keys.add(format!("{index}/resolution"), format!("{width}x{height}"));
            keys.add(format!("{index}/unique-id"), unique_id);
        }
        tree
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::table::outcomes;

    /// What is taken as `xl -N vdispl-attach` of 4.17 prints it.
    #[test]
    fn what_is_understood() {
        let form =
            |near: &str| format!("\"connectors={near}\": a connector is ID:WIDTHxHEIGHT, as in id0:800x600");
        outcomes(
            |words| parse(words).map(crate::Device::Vdispl),
            &[
                (
                    "connectors=id0:800x600",
                    r#"{"connectors":[{"unique_id":"id0","width":800,"height":600}]}"#,
                ),
                (
                    "backend=0|be-alloc=1|connectors=id0:800x600;id1:1024x768;",
                    r#"{"backend_domname":"0","be_alloc":true,"connectors":[{"unique_id":"id0","width":800,"height":600},{"unique_id":"id1","width":1024,"height":768}]}"#,
                ),
                (
                    "connectors=a:1x1|connectors=b:2x2",
                    r#"{"connectors":[{"unique_id":"b","width":2,"height":2}]}"#,
                ),
                ("", "connectors= is missing"),
                ("be-alloc=1", "connectors= is missing"),
                ("be-alloc=2|connectors=a:1x1", r#""be-alloc=2": give 0 or 1"#),
                ("connectors=", r#""connectors=": give at least one, with ; between several"#),
                ("connectors=a:1x1;a:2x2", "two connectors have the same id"),
                ("foo=1", r#""foo=1" is no parameter"#),
            ],
        );
        for bad in [
            "id0",
            "id0:800",
            "id0:800x",
            "id0:x600",
            ":800x600",
            "id0:1x2x3",
            "a:b:1x1",
            "a:0x1",
            "a:-1x5",
            "a:1X1",
        ] {
            assert_eq!(parse(&[format!("connectors={bad}")]).unwrap_err().to_string(), form(bad));
        }
    }
}
