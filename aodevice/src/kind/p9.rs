//! 9pfs: a directory of the backend's domain as a file system of the guest.
//!
//! Two programs serve it: the guest's device model (QEMU), and xen-9pfsd of Xen 4.19 and later, a daemon that the first
//! device starts (`operation/daemon.rs`).
//!
//! Source of the keys: `docs/misc/9pfs.pandoc`, `tools/libs/light/libxl_types.idl` for the names in libxl's JSON, and
//! what `xl create` of Xen 4.17 was seen to write. That of the words: `docs/man/xl.cfg.5.pod.in`, `p9=`.

use serde_json::{Map, Value};

use super::members::Members;
use super::words::{self, SpecError};
use super::{Among, BackendKind, KindInfo, ListedKey, Spec, Unique, vkb};
use crate::libxl::Listing;
use crate::tree::Keys;
use crate::{Cause, DeviceId, Guest, Tree};

pub(crate) const INFO: KindInfo = KindInfo {
    name: "9pfs",
    backends: &[BackendKind::P9, BackendKind::Xen9pfs],
    backend_module: "none: QEMU or xen-9pfsd serves it",
    frontend_module: "9pnet_xen",
    listed: &[
        ListedKey::text_of_guest("tag", "tag"),
        ListedKey::recorded("security_model", "security_model"),
        ListedKey::recorded("path", "path"),
    ],
    libxl: Listing {
        complete: |devid, entry| {
            // Behind the model, as libxl has it.
            if entry.insert("devid".to_owned(), devid.into()).is_none() {
                let place = entry.keys().position(|key| key == "security_model").map_or(0, |place| place + 1);
                entry.shift_insert(place, "devid".to_owned(), devid.into());
            }
        },
        ..Listing::by_devid("p9s")
    },
    ..vkb::INFO
};

/// What serves a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum P9Type {
    /// The guest's device model.
    Qemu,
    /// The daemon xen-9pfsd.
    Xen9pfsd,
}

impl P9Type {
    /// Its name in a configuration and in libxl's JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Xen9pfsd => "xen_9pfsd",
        }
    }
}

/// What xen-9pfsd keeps a file system within. 0 is what was not said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct P9Limits {
    /// How much may be stored, in MiB; 0 is no limit.
    pub space: u32,
    /// How many files there may be; 0 is no limit.
    pub files: u32,
    /// How many files may be open; 0 is the daemon's own limit.
    pub open_files: u32,
    /// Whether it deletes the oldest files to stay within the other two.
    pub auto_delete: bool,
}

/// A file system as it is asked for. `None` is what was not said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct P9 {
    /// Its device id; the smallest free one if none.
    pub devid: Option<u32>,
    /// The name of the domain that serves it, or its domid; the toolstack's own if it is empty.
    pub backend_name: Option<String>,
    /// By which the guest mounts it.
    pub tag: String,
    /// The directory, an absolute path.
    pub path: String,
    /// How the guest's users become those of the directory: `none` of xen-9pfsd; QEMU knows more.
    pub security_model: String,
    /// What serves it; the device model if not said.
    pub p9_type: Option<P9Type>,
    /// What xen-9pfsd keeps it within.
    pub limits: P9Limits,
}

/// The security models of QEMU.
const MODELS: [&str; 5] = ["none", "passthrough", "mapped", "mapped-xattr", "mapped-file"];

/// Reads the words of `p9-attach`, or an entry of `p9=[...]` of a domain configuration, which is one argument.
///
/// As for xl, `tag=` and `path=` must be said for QEMU, and the model is `none` if it is not. xen-9pfsd has the tag
/// `Xen` if none is said.
///
/// # Errors
///
/// They name the parameter.
pub fn parse(arguments: &[impl AsRef<str>]) -> Result<P9, SpecError> {
    let mut p9 = P9::default();
    let mut limited = None;
    words::read(arguments, |key, value| {
        let text = || value.to_owned();
        let limit = || words::number(value, u32::MAX).ok_or("give a decimal number");
        match key {
            "tag" => p9.tag = text(),
            "path" if value.starts_with('/') => p9.path = text(),
            "path" => return Err("a path begins with a slash"),
            "security_model" if MODELS.contains(&value) => p9.security_model = text(),
            "security_model" => {
                return Err("a security_model is none, passthrough, mapped, mapped-xattr or mapped-file");
            }
            "backend" => p9.backend_name = Some(text()),
            "devid" => p9.devid = words::devid(value)?,
            "type" => {
                p9.p9_type = Some(match value {
                    "qemu" => P9Type::Qemu,
                    "xen_9pfsd" => P9Type::Xen9pfsd,
                    _ => return Err("a type is qemu or xen_9pfsd"),
                });
            }
            "max-space" => p9.limits.space = limit()?,
            "max-files" => p9.limits.files = limit()?,
            "max-open-files" => p9.limits.open_files = limit()?,
            "auto-delete" => {
                p9.limits.auto_delete = match value {
                    "0" => false,
                    "1" => true,
                    _ => return Err("auto-delete is 0 or 1"),
                };
            }
            _ => return Ok(false),
        }
        if key.starts_with("max-") || key == "auto-delete" {
            limited.get_or_insert_with(|| format!("{key}={value}"));
        }
        Ok(true)
    })?;
    let by_daemon = p9.p9_type == Some(P9Type::Xen9pfsd);
    if let Some(near) = limited.filter(|_| !by_daemon) {
        return Err(SpecError::Value { near, problem: "only type=xen_9pfsd has limits" });
    }
    if p9.tag.is_empty() && by_daemon {
        "Xen".clone_into(&mut p9.tag);
    }
    if p9.security_model.is_empty() {
        "none".clone_into(&mut p9.security_model);
    }
    match (&*p9.tag, &*p9.path) {
        ("", _) => Err(SpecError::Missing("tag")),
        (_, "") => Err(SpecError::Missing("path")),
        _ => Ok(p9),
    }
}

impl Spec for P9 {
    fn devid(&self) -> Option<u32> {
        self.devid
    }

    fn number(&mut self, devid: u32) {
        self.devid.get_or_insert(devid);
    }

    fn label(&self) -> String {
        self.devid.map_or_else(|| self.tag.clone(), |devid| devid.to_string())
    }

    fn must_be_directory(&self) -> Option<&str> {
        Some(&self.path)
    }

    fn backend(&self, _: &Guest) -> BackendKind {
        match self.p9_type {
            Some(P9Type::Xen9pfsd) => BackendKind::Xen9pfs,
            Some(P9Type::Qemu) | None => BackendKind::P9,
        }
    }

    fn backend_name(&self) -> Option<&str> {
        self.backend_name.as_deref()
    }

    fn check(&self, guest: &Guest) -> Result<(), Cause> {
        let invalid = |why: String| Err(Cause::Invalid(why));
        match self.backend(guest) {
            BackendKind::Xen9pfs if self.security_model != "none" => {
                invalid(format!("xen-9pfsd knows the security_model none alone, not {}", self.security_model))
            }
            BackendKind::P9 if self.limits != P9Limits::default() => {
                invalid("only type=xen_9pfsd has limits".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// The guest mounts it by that.
    fn uniques(&self) -> Vec<Unique> {
        vec![Unique { key: "tag", value: self.tag.clone(), among: Among::InFrontends }]
    }

    fn libxl(&self) -> Map<String, Value> {
        let number = |number: u32| (number != 0).then_some(number);
        let P9Limits { space, files, open_files, auto_delete } = self.limits;
        let mut members = Members::new();
        members.text("backend_domname", &self.backend_name);
        members.add("tag", &*self.tag).add("path", &*self.path);
        members.add("security_model", &*self.security_model).option("devid", self.devid);
        members.option("type", self.p9_type.map(P9Type::name));
        members.option("max_space", number(space)).option("max_files", number(files));
        members.option("max_open_files", number(open_files));
        members.option("auto_delete", auto_delete.then_some(true));
        members.into()
    }

    fn tree(&self, id: &DeviceId, _: &Guest) -> Tree {
        let mut be = Keys::new();
        be.add("frontend-id", id.fe).add("online", 1).add("state", 1);
        be.add("path", &self.path).add("security_model", &self.security_model);
        if id.be_kind == BackendKind::Xen9pfs {
            let P9Limits { space, files, open_files, auto_delete } = self.limits;
            be.add("max-space", space).add("max-files", files).add("max-open-files", open_files);
            be.add("auto-delete", u8::from(auto_delete));
        }
        let mut fe = super::plain_frontend(id);
        fe.add("tag", &self.tag);
        Tree { frontend: fe, frontend_read_only: Keys::new(), backend: be }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    #[test]
    fn words_and_what_libxl_makes_of_them() {
        for (words, json) in [
            (
                &["tag=share,security_model=none,path=/srv/s"][..],
                r#"{"tag":"share","path":"/srv/s","security_model":"none"}"#,
            ),
            (
                &["path=/srv/s", "tag=t", "devid=3", "type=qemu", "security_model=mapped"],
                r#"{"tag":"t","path":"/srv/s","security_model":"mapped","devid":3,"type":"qemu"}"#,
            ),
            (
                &["type=xen_9pfsd,path=/srv/s,max-space=10,max-files=20,max-open-files=5,auto-delete=1"],
                r#"{"tag":"Xen","path":"/srv/s","security_model":"none","type":"xen_9pfsd","max_space":10,"max_files":20,"max_open_files":5,"auto_delete":true}"#,
            ),
        ] {
            let libxl = Value::from(Device::P9(parse(words).unwrap()).libxl());
            assert_eq!(libxl.to_string(), json, "{words:?}");
        }
    }

    #[test]
    fn its_id_is_entered_where_libxl_has_it() {
        let mut entry = Device::P9(parse(&["tag=t,path=/s,type=qemu"]).unwrap()).libxl();
        (INFO.libxl.complete)(2, &mut entry);
        let expected = r#"{"tag":"t","path":"/s","security_model":"none","devid":2,"type":"qemu"}"#;
        assert_eq!(Value::from(entry).to_string(), expected);
    }

    #[test]
    fn refusals() {
        for (words, why) in [
            ("path=/s", "tag= is missing"),
            ("tag=t", "path= is missing"),
            ("type=xen_9pfsd", "path= is missing"),
            ("tag=t,path=s", "\"path=s\": a path begins with a slash"),
            ("tag=t,path=/s,max-files=3", "\"max-files=3\": only type=xen_9pfsd has limits"),
            ("tag=t,path=/s,max-files=-1", "\"max-files=-1\": give a decimal number"),
            ("type=vhost", "\"type=vhost\": a type is qemu or xen_9pfsd"),
            ("auto-delete=yes", "\"auto-delete=yes\": auto-delete is 0 or 1"),
            ("colour=red", "\"colour=red\" is no parameter"),
        ] {
            assert_eq!(parse(&[words]).unwrap_err().to_string(), why, "{words}");
        }
        let unknown = parse(&["tag=t,path=/s,security_model=all"]).unwrap_err();
        assert!(unknown.to_string().contains("a security_model is none, passthrough"), "{unknown}");
    }
}
