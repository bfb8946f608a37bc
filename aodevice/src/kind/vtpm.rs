//! Trusted platform modules.
//!
//! Source of the keys: `xen/include/public/io/tpmif.h`, and what `xl` of Xen 4.17 was seen to write. That of the
//! specification: what `xl -N vtpm-attach` of 4.17 was seen to make of it.

use std::fmt;
use std::str::FromStr;

use serde_json::{Map, Value};

use super::members::Members;
use super::words::{self, SpecError};
use super::{Among, BackendKind, KindInfo, ListedKey, Spec, Unique};
use crate::libxl::Listing;
use crate::{DeviceId, Guest, Tree};

pub(crate) const INFO: KindInfo = KindInfo {
    name: "vtpm",
    backends: &[BackendKind::Vtpm],
    frontend_module: "xen-tpmfront",
    listed: &[
        ListedKey::recorded("uuid", "uuid"),
        ListedKey::of_guest("event_channel", "event-channel"),
        ListedKey::of_guest("ring_ref", "ring-ref"),
    ],
    libxl: Listing::by_devid("vtpms"),
    ..super::SCRIPTLESS
};

/// What tells a module and its state from all others, printed as `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uuid(pub u128);

impl Uuid {
    /// A random one, of version 4.
    pub fn random() -> Self {
        let version = (fastrand::u128(..) & !(0xf << 76)) | (4 << 76);
        Self((version & !(0b11 << 62)) | (0b10 << 62))
    }
}

/// Where the hyphens of a UUID stand.
const HYPHENS: [usize; 4] = [8, 13, 18, 23];

impl FromStr for Uuid {
    type Err = &'static str;

    /// Exactly 32 hexadecimal digits, with a hyphen after 8, 12, 16 and 20 of them.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_right = |(place, byte): (usize, u8)| match HYPHENS.contains(&place) {
            true => byte == b'-',
            false => byte.is_ascii_hexdigit(),
        };
        let digits =
            (text.len() == 36 && text.bytes().enumerate().all(is_right)).then(|| text.replace('-', ""));
        let number = digits.and_then(|digits| u128::from_str_radix(&digits, 16).ok());
        number.map(Self).ok_or("give a UUID such as 0a1b2c3d-0000-4000-8000-0123456789ab")
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = format!("{:032x}", self.0);
        HYPHENS.iter().for_each(|place| text.insert(*place, '-'));
        f.write_str(&text)
    }
}

/// A trusted platform module as it is asked for. `None` is what was not said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Vtpm {
    /// The name of the domain that serves it, or its domid; the toolstack's own if it is empty.
    pub backend_name: Option<String>,
    /// Its device id; the smallest free one if none.
    pub devid: Option<u32>,
    /// What it is known by to the backend; a random one if none.
    pub uuid: Option<Uuid>,
}

/// Reads the arguments of `vtpm-attach`, or an entry of the list `vtpm` of a domain configuration: `backend=`,
/// `uuid=`, `devid=`.
///
/// # Errors
///
/// They name the parameter.
pub fn parse(arguments: &[impl AsRef<str>]) -> Result<Vtpm, SpecError> {
    let mut vtpm = Vtpm::default();
    words::read(arguments, |key, value| {
        match key {
            "backend" => vtpm.backend_name = Some(value.to_owned()),
            "devid" => vtpm.devid = words::devid(value)?,
            "uuid" => vtpm.uuid = Some(value.parse()?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(vtpm)
}

impl Spec for Vtpm {
    fn devid(&self) -> Option<u32> {
        self.devid
    }

    fn number(&mut self, devid: u32) {
        self.devid.get_or_insert(devid);
    }

    fn settle(&mut self) {
        self.uuid.get_or_insert_with(Uuid::random);
    }

    fn backend_name(&self) -> Option<&str> {
        self.backend_name.as_deref()
    }

    fn backend(&self, _: &Guest) -> BackendKind {
        BackendKind::Vtpm
    }

    /// A detach may name it by that.
    fn uniques(&self) -> Vec<Unique> {
        let unique = |uuid: Uuid| Unique { key: "uuid", value: uuid.to_string(), among: Among::OfGuest };
        self.uuid.map(unique).into_iter().collect()
    }

    fn libxl(&self) -> Map<String, Value> {
        let mut members = Members::new();
        members.text("backend_domname", &self.backend_name).option("devid", self.devid);
        members.option("uuid", self.uuid.map(|uuid| uuid.to_string()));
        members.into()
    }

    fn tree(&self, id: &DeviceId, _: &Guest) -> Tree {
        let mut tree = super::plain_tree(id);
        tree.frontend.add("handle", id.devid);
        tree.backend.add("handle", id.devid);
        if let Some(uuid) = self.uuid {
            tree.backend.add("uuid", uuid);
        }
        tree.backend.add("resume", "False");
        tree
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::table::outcomes;

    #[test]
    fn uuids() {
        let uuid: Uuid = "0A1b2c3d-0000-4000-8000-0123456789ab".parse().unwrap();
        assert_eq!(uuid.to_string(), "0a1b2c3d-0000-4000-8000-0123456789ab");
        for text in [
            "",
            "foo",
            "0a1b2c3d0000400080000123456789ab",
            "0a1b2c3d-0000-4000-8000-0123456789a",
            "0a1b2c3d-0000-4000-8000-0123456789abc",
            "0a1b2c3d-0000-4000-80000-123456789ab",
            "+a1b2c3d-0000-4000-8000-0123456789ab",
        ] {
            assert!(text.parse::<Uuid>().is_err(), "{text}");
        }
        let random = Uuid::random();
        assert_eq!(random.to_string().parse(), Ok(random));
        assert_eq!(random.to_string().as_bytes()[14], b'4');
        assert_ne!(Uuid::random(), random);
    }

    /// The first ones as `xl -N vtpm-attach` of 4.17 prints them.
    #[test]
    fn what_is_understood() {
        outcomes(
            |words| parse(words).map(crate::Device::Vtpm),
            &[
                ("", "{}"),
                ("backend=0", r#"{"backend_domname":"0"}"#),
                ("backend=", r#"{"backend_domname":""}"#),
                ("backend=0|backend=1", r#"{"backend_domname":"1"}"#),
                (
                    "uuid=11111111-2222-3333-4444-555555555555|backend=Domain-0",
                    r#"{"backend_domname":"Domain-0","uuid":"11111111-2222-3333-4444-555555555555"}"#,
                ),
                ("uuid=foo", r#""uuid=foo": give a UUID such as 0a1b2c3d-0000-4000-8000-0123456789ab"#),
                ("devid=3", r#"{"devid":3}"#),
                ("name=3", r#""name=3" is no parameter"#),
                ("backend", r#""backend" is no parameter"#),
                ("backend=a\nb", r#""backend=a\nb": it holds a control character"#),
                // Unlike xl's command, and like its configuration files.
                (
                    "backend=0, uuid=11111111-2222-3333-4444-555555555555",
                    r#"{"backend_domname":"0","uuid":"11111111-2222-3333-4444-555555555555"}"#,
                ),
            ],
        );
    }
}
