//! Channels: consoles besides the first one, whose other end the guest's device model connects to a pty or a socket of
//! the backend's domain.
//!
//! The first console, number 0, is made and unmade with its domain: it is in another place, has no state, and is no
//! device here. A channel is the console of the next higher number (with xl 4.17 it has
//! the same, so that its channel 0 takes the place of the first console, and is lost; later versions do as here). The device model connects it to a character device
//! that it was started with, so that a channel can be added only before it runs.
//!
//! Source of the keys: `xen/include/public/io/console.h`, `tools/libs/light/libxl_types.idl` for the names in libxl's
//! JSON, and what `xl create` of Xen 4.17 was seen to write. That of the words: `docs/man/xl.cfg.5.pod.in`, `channel=`.

use serde_json::{Map, Value};

use super::members::Members;
use super::words::{self, SpecError};
use super::{Among, BackendKind, KindInfo, ListedKey, Spec, Unique, vkb};
use crate::libxl::Listing;
use crate::tree::Keys;
use crate::{Cause, DeviceId, Guest, Tree};

pub(crate) const INFO: KindInfo = KindInfo {
    name: "console",
    noun: Some("channel"),
    id_name: |devid| devid.saturating_sub(1).to_string(),
    backends: &[BackendKind::Console],
    frontend_module: "hvc_xen",
    first_devid: 1,
    listed: &[
        ListedKey::recorded("channel_name", "name"),
        ListedKey::recorded("connection", "connection"),
        ListedKey::recorded("path", "path"),
        ListedKey::text_of_guest("tty", "tty"),
        ListedKey::of_guest("event_channel", "port"),
        ListedKey::of_guest("ring_ref", "ring-ref"),
    ],
    libxl: Listing {
        array: "channels",
        devid: |entry| Some(u32::try_from(entry.get("devid")?.as_u64()?).ok()?.saturating_add(1)),
        complete: |devid, entry| {
            let devid = devid.saturating_sub(1);
            if entry.insert("devid".to_owned(), devid.into()).is_none() {
                entry.shift_insert(0, "devid".to_owned(), devid.into());
            }
        },
    },
    ..vkb::INFO
};

/// What a channel is connected to in the backend's domain.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Connection {
    /// A pseudo-terminal.
    Pty,
    /// A Unix socket at this absolute path, which the device model listens at.
    Socket(String),
}

impl Connection {
    /// Its name in a configuration and in the store.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Pty => "pty",
            Self::Socket(_) => "socket",
        }
    }
}

/// A channel as it is asked for. `None` is what was not said.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Channel {
    /// Its number among the guest's channels, one less than its device id; the smallest free one if none.
    pub number: Option<u32>,
    /// The name of the domain that serves it, or its domid; the toolstack's own if it is empty.
    pub backend_name: Option<String>,
    /// By which the guest finds it.
    pub name: String,
    /// What it is connected to.
    pub connection: Connection,
}

/// Reads the words of `channel-attach`, or an entry of `channel=[...]` of a domain configuration, which is one argument.
///
/// As for xl, `name=` and `connection=` must be said, and `path=` for a socket.
///
/// # Errors
///
/// They name the parameter.
pub fn parse(arguments: &[impl AsRef<str>]) -> Result<Channel, SpecError> {
    let (mut name, mut connection, mut path, mut backend_name) = (None, None, None, None);
    words::read(arguments, |key, value| {
        let text = || Some(value.to_owned());
        match key {
            "backend" => backend_name = text(),
            "name" if value.is_empty() => return Err("a channel has a name"),
            "name" => name = text(),
            "connection" if matches!(value, "pty" | "socket") => connection = text(),
            "connection" => return Err("a connection is pty or socket"),
            "path" if value.starts_with('/') => path = text(),
            "path" => return Err("a path begins with a slash"),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let connection = match connection.ok_or(SpecError::Missing("connection"))?.as_str() {
        "socket" => Connection::Socket(path.ok_or(SpecError::Missing("path"))?),
        _ => Connection::Pty,
    };
    Ok(Channel { number: None, backend_name, name: name.ok_or(SpecError::Missing("name"))?, connection })
}

impl Spec for Channel {
    fn devid(&self) -> Option<u32> {
        self.number.map(|number| number.saturating_add(1))
    }

    fn number(&mut self, devid: u32) {
        self.number.get_or_insert(devid.saturating_sub(1));
    }

    fn label(&self) -> String {
        self.name.clone()
    }

    fn backend(&self, _: &Guest) -> BackendKind {
        BackendKind::Console
    }

    fn backend_name(&self) -> Option<&str> {
        self.backend_name.as_deref()
    }

    fn check_hot(&self, _: &Guest) -> Result<(), Cause> {
        Err(Cause::NotSupported {
            what: "a channel of a domain whose device model runs".to_owned(),
            needs: "a character device that the device model is started with",
        })
    }

    fn domain0_lacks(&self) -> Option<&'static str> {
        Some("no device model is started with channels for it")
    }

    fn uniques(&self) -> Vec<Unique> {
        let claim = |key, value: &str| Unique { key, value: value.to_owned(), among: Among::OfGuest };
        let name = claim("name", &self.name);
        let path = match &self.connection {
            Connection::Socket(path) => Some(claim("path", path)),
            Connection::Pty => None,
        };
        [name].into_iter().chain(path).collect()
    }

    fn libxl(&self) -> Map<String, Value> {
        let mut members = Members::new();
        members.text("backend_domname", &self.backend_name).option("devid", self.number);
        members.add("name", &*self.name);
        let mut socket = Members::new();
        match &self.connection {
            Connection::Pty => members.add("connection.pty", Map::new()),
            Connection::Socket(path) => {
                socket.add("path", &**path);
                members.add("connection.socket", Map::from(socket))
            }
        };
        members.into()
    }

    fn tree(&self, id: &DeviceId, _: &Guest) -> Tree {
        let mut be = Keys::new();
        be.add("frontend-id", id.fe).add("online", 1).add("state", 1).add("protocol", "vt100");
        be.add("name", &self.name).add("connection", self.connection.name());
        if let Connection::Socket(path) = &self.connection {
            be.add("path", path);
        }
        let mut fe = Keys::new();
        fe.add("backend-id", id.be).add("state", 1).add("protocol", "vt100");
        let mut read_only = Keys::new();
        // The limit is in bytes, of what waits for a reader.
        read_only.add("name", &self.name).add("limit", 1 << 20).add("type", "ioemu");
        read_only.add("output", format!("chardev:libxl-channel{}", id.devid.saturating_sub(1)));
        read_only.add("tty", "");
        Tree { frontend: fe, frontend_read_only: read_only, backend: be }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, Kind};

    #[test]
    fn words_and_what_libxl_makes_of_them() {
        for (words, json) in [
            (&["connection=pty,name=org.x"][..], r#"{"name":"org.x","connection.pty":{}}"#),
            (
                &["name=org.x", "connection=socket", "path=/run/x", "backend=0"],
                r#"{"backend_domname":"0","name":"org.x","connection.socket":{"path":"/run/x"}}"#,
            ),
        ] {
            let libxl = Value::from(Device::Channel(parse(words).unwrap()).libxl());
            assert_eq!(libxl.to_string(), json, "{words:?}");
        }
    }

    #[test]
    fn its_entry_has_the_number_of_the_channel() {
        let mut entry = Device::Channel(parse(&["connection=pty,name=x"]).unwrap()).libxl();
        (INFO.libxl.complete)(3, &mut entry);
        assert_eq!(entry.get("devid"), Some(&Value::from(2)));
        assert_eq!((INFO.libxl.devid)(&entry), Some(3));
        assert_eq!(Kind::Console.info().first_devid, 1);
    }

    #[test]
    fn refusals() {
        for (words, why) in [
            ("connection=pty", "name= is missing"),
            ("name=x", "connection= is missing"),
            ("name=x,connection=socket", "path= is missing"),
            ("name=x,connection=tcp", "\"connection=tcp\": a connection is pty or socket"),
            ("name=x,connection=socket,path=x", "\"path=x\": a path begins with a slash"),
            ("name=,connection=pty", "\"name=\": a channel has a name"),
            ("colour=red", "\"colour=red\" is no parameter"),
        ] {
            assert_eq!(parse(&[words]).unwrap_err().to_string(), why, "{words}");
        }
    }
}
