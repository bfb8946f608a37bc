//! A configuration as a value: reading and printing it, entering a device into it, and striking it out.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::{ConfigError, text};
use crate::Kind;
use crate::usbdev::Port;

/// How libxl's configuration of a domain lists the devices of a kind.
#[derive(Debug)]
pub(crate) struct Listing {
    /// The member with the array of them.
    pub(crate) array: &'static str,
    /// The device id of an entry; `None` if it cannot be told.
    pub(crate) devid: fn(&Map<String, Value>) -> Option<u32>,
    /// Completes an entry by what libxl always enters.
    pub(crate) complete: fn(u32, &mut Map<String, Value>),
}

impl Listing {
    /// A listing whose entries hold their device id.
    pub(crate) const fn by_devid(array: &'static str) -> Self {
        Self {
            array,
            devid: |entry| entry.get("devid")?.as_u64()?.try_into().ok(),
            complete: |devid, entry| {
                if entry.insert("devid".to_owned(), devid.into()).is_none() {
                    // It was not said. libxl has it first, behind the backend's domain.
                    let of_backend = ["backend_domid", "backend_domname"];
                    let place = of_backend.iter().filter(|name| entry.contains_key(**name)).count();
                    entry.shift_insert(place, "devid".to_owned(), devid.into());
                }
            },
        }
    }
}

/// The members of a configuration in libxl's order, as far as a new array has to find its place there.
const MEMBERS: [&str; 23] = [
    "c_info",
    "b_info",
    "disks",
    "nics",
    "pcidevs",
    "rdms",
    "dtdevs",
    "vfbs",
    "vkbs",
    "virtios",
    "vtpms",
    "p9s",
    "pvcallsifs",
    "vdispls",
    "vsnds",
    "channels",
    "usbctrls",
    "usbdevs",
    "on_poweroff",
    "on_reboot",
    "on_watchdog",
    "on_crash",
    "on_soft_reset",
];

/// Enters a device into a configuration, in place of all entries that it has of the device's number.
///
/// # Errors
///
/// [`ConfigError::NotAnArray`]; the configuration is as it was then.
pub fn enter(
    config: &mut Map<String, Value>,
    (kind, devid): (Kind, u32),
    entry: Map<String, Value>,
) -> Result<(), ConfigError> {
    let listing = &kind.info().libxl;
    enter_into(config, listing.array, |old| is_of(listing, old, devid), entry)
}

/// The same of an array whose entries are known otherwise.
fn enter_into(
    config: &mut Map<String, Value>,
    array: &'static str,
    is_it: impl Fn(&Value) -> bool,
    entry: Map<String, Value>,
) -> Result<(), ConfigError> {
    let mut entry = Some(Value::Object(entry));
    let entries = match config.get_mut(array) {
        Some(member) => member.as_array_mut().ok_or(ConfigError::NotAnArray(array))?,
        None => {
            let entries = entry.take().into_iter().collect();
            config.shift_insert(place(config, array), array.to_owned(), entries);
            return Ok(());
        }
    };
    // The first one is replaced where it is, as libxl does.
    entries.retain_mut(|old| {
        if !is_it(old) {
            return true;
        }
        let new = entry.take();
        let first = new.is_some();
        if let Some(new) = new {
            *old = new;
        }
        first
    });
    entries.extend(entry);
    Ok(())
}

/// The array of USB devices of the host.
const USB: &str = "usbdevs";

/// Enters a USB device of the host, which is known by its port.
///
/// # Errors
///
/// [`ConfigError::NotAnArray`]; the configuration is as it was then.
pub(crate) fn enter_usb(
    config: &mut Map<String, Value>,
    port: Port,
    entry: Map<String, Value>,
) -> Result<(), ConfigError> {
    enter_into(config, USB, |old| is_at(old, port), entry)
}

/// Strikes the USB device of a port out.
///
/// # Errors
///
/// [`ConfigError::NotAnArray`]; the configuration is as it was then.
pub(crate) fn strike_usb(config: &mut Map<String, Value>, port: Port) -> Result<(), ConfigError> {
    strike_from(config, USB, |old| is_at(old, port))
}

fn is_at(entry: &Value, port: Port) -> bool {
    let is = |member: &str, number: u32| entry.get(member).and_then(Value::as_u64) == Some(number.into());
    is("ctrl", port.controller) && is("port", port.port)
}

/// Enters what is in a CD-ROM drive: into the entry that the drive has, as this new entry of it says, or else all of
/// that.
///
/// # Errors
///
/// [`ConfigError::NotAnArray`]; the configuration is as it was then.
pub(crate) fn set_medium(
    config: &mut Map<String, Value>,
    devid: u32,
    entry: Map<String, Value>,
) -> Result<(), ConfigError> {
    let listing = &Kind::Vbd.info().libxl;
    let entries = match config.get_mut(listing.array) {
        Some(member) => member.as_array_mut().ok_or(ConfigError::NotAnArray(listing.array))?,
        None => return enter(config, (Kind::Vbd, devid), entry),
    };
    let Some(old) = entries.iter_mut().find(|old| is_of(listing, old, devid)).and_then(Value::as_object_mut)
    else {
        return enter(config, (Kind::Vbd, devid), entry);
    };
    // In libxl's order: pdev_path, vdev, backend, format.
    old.shift_remove("pdev_path");
    old.shift_remove("format");
    let behind = |old: &Map<String, Value>, name: &str| old.keys().position(|key| key == name);
    if let Some(path) = entry.get("pdev_path") {
        let place = behind(old, "vdev").unwrap_or(0);
        old.shift_insert(place, "pdev_path".to_owned(), path.clone());
    }
    if let Some(format) = entry.get("format") {
        let place = behind(old, "backend").or(behind(old, "vdev")).map_or(0, |place| place + 1);
        old.shift_insert(place, "format".to_owned(), format.clone());
    }
    Ok(())
}

/// Strikes all entries of a device out of a configuration, and the array if it is empty then.
///
/// # Errors
///
/// [`ConfigError::NotAnArray`]; the configuration is as it was then.
pub fn strike(config: &mut Map<String, Value>, (kind, devid): (Kind, u32)) -> Result<(), ConfigError> {
    let listing = &kind.info().libxl;
    strike_from(config, listing.array, |entry| is_of(listing, entry, devid))
}

fn strike_from(
    config: &mut Map<String, Value>,
    array: &'static str,
    is_it: impl Fn(&Value) -> bool,
) -> Result<(), ConfigError> {
    let Some(member) = config.get_mut(array) else { return Ok(()) };
    let entries = member.as_array_mut().ok_or(ConfigError::NotAnArray(array))?;
    let before = entries.len();
    entries.retain(|entry| !is_it(entry));
    if entries.is_empty() && before > 0 {
        // libxl prints no array without entries.
        config.shift_remove(array);
    }
    Ok(())
}

/// The entries of devices of a kind.
pub(super) fn entries(config: &Map<String, Value>, kind: Kind) -> Result<&[Value], ConfigError> {
    let array = kind.info().libxl.array;
    match config.get(array) {
        Some(member) => member.as_array().map(Vec::as_slice).ok_or(ConfigError::NotAnArray(array)),
        None => Ok(&[]),
    }
}

/// Whether a configuration has an entry of a device.
pub(super) fn has(config: &Map<String, Value>, (kind, devid): (Kind, u32)) -> bool {
    let is_of = |entry| is_of(&kind.info().libxl, entry, devid);
    entries(config, kind).is_ok_and(|entries| entries.iter().any(is_of))
}

fn is_of(listing: &Listing, entry: &Value, devid: u32) -> bool {
    entry.as_object().and_then(listing.devid) == Some(devid)
}

/// Where a new member goes: before the first of those that libxl puts behind it.
fn place(config: &Map<String, Value>, member: &str) -> usize {
    let rank = |name: &str| MEMBERS.iter().position(|known| *known == name);
    let own = rank(member);
    let behind = |name: &String| rank(name).is_some_and(|rank| Some(rank) > own);
    config.keys().position(behind).unwrap_or(config.len())
}

/// Reads a configuration. libxl writes the NUL that ends a string of C too, and reads up to there.
pub(super) fn parse(file: &[u8]) -> Result<Map<String, Value>, ConfigError> {
    let text = file.split(|byte| *byte == 0).next().unwrap_or_default();
    let syntax = |error: serde_json::Error| ConfigError::Syntax(error.to_string());
    let Unambiguous(config) = serde_json::from_slice(text).map_err(syntax)?;
    let Value::Object(config) = config else {
        return Err(ConfigError::Syntax("it begins with no brace".to_owned()));
    };
    config.values().try_for_each(check_numbers)?;
    Ok(config)
}

/// A value without objects that have two members of one name: of these, one would be lost.
struct Unambiguous(Value);

impl<'de> Deserialize<'de> for Unambiguous {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(UnambiguousVisitor).map(Self)
    }
}

struct UnambiguousVisitor;

impl<'de> Visitor<'de> for UnambiguousVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Unambiguous(item)) = from.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some((name, Unambiguous(value))) = from.next_entry::<String, _>()? {
            if members.contains_key(&name) {
                return Err(de::Error::custom(format_args!("the member {name:?} is there twice")));
            }
            members.insert(name, value);
        }
        Ok(Value::Object(members))
    }
}

/// Refuses a number that would not be printed as it was read.
fn check_numbers(value: &Value) -> Result<(), ConfigError> {
    match value {
        Value::Number(number) if number.is_f64() => Err(ConfigError::NotAnInteger(number.to_string())),
        Value::Array(items) => items.iter().try_for_each(check_numbers),
        Value::Object(members) => members.values().try_for_each(check_numbers),
        _ => Ok(()),
    }
}

/// The content of a file, as libxl writes it.
pub(super) fn print(config: &Map<String, Value>) -> Vec<u8> {
    let mut file = text::pretty_object(config).into_bytes();
    file.push(0);
    file
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const XVDA: (Kind, u32) = (Kind::Vbd, 51712);
    const NIC_1: (Kind, u32) = (Kind::Vif, 1);

    /// The file of domain 0, as Xen 4.17 writes it.
    const DOMAIN_0: &str = r#"{
    "c_info": {
        "type": "pv"
    },
    "b_info": {
        "sched_params": {

        },
        "type.pv": {

        },
        "arch_arm": {

        },
        "arch_x86": {

        }
    }
}
"#;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    fn disk(vdev: &str, path: &str) -> Value {
        json!({"pdev_path": path, "vdev": vdev, "format": "raw", "readwrite": 1})
    }

    /// A configuration after an entry was made in it.
    fn entered(mut config: Value, which: (Kind, u32), entry: Value) -> Value {
        enter(config.as_object_mut().unwrap(), which, object(entry)).unwrap();
        config
    }

    fn struck(mut config: Value, which: (Kind, u32)) -> Value {
        strike(config.as_object_mut().unwrap(), which).unwrap();
        config
    }

    #[test]
    fn a_file_of_libxl_is_printed_as_it_was_read() {
        let file = format!("{DOMAIN_0}\0");
        assert_eq!(file.len(), 209);
        for read in [&*file, DOMAIN_0, DOMAIN_0.trim_end(), &format!("{file}garbage")] {
            assert_eq!(String::from_utf8(print(&parse(read.as_bytes()).unwrap())).unwrap(), file);
        }
    }

    /// What an attach enters, a detach strikes out, and the file is as it was, byte for byte.
    #[test]
    fn a_device_comes_and_goes() {
        let config = || Value::Object(parse(DOMAIN_0.as_bytes()).unwrap());
        let with_disk = entered(config(), XVDA, disk("xvda", "/d.img"));
        let lines = r#"
    },
    "disks": [
        {
            "pdev_path": "/d.img",
            "vdev": "xvda",
            "format": "raw",
            "readwrite": 1
        }
    ]
}
"#;
        assert!(text::pretty(&with_disk).ends_with(lines), "{}", text::pretty(&with_disk));
        let with_both = entered(with_disk, NIC_1, json!({"devid": 1, "nictype": "vif"}));
        let without = struck(struck(with_both, XVDA), NIC_1);
        assert_eq!(text::pretty(&without), DOMAIN_0);
    }

    #[test]
    fn disks_are_known_by_their_number() {
        let others = [disk("xvdb", "/b"), disk("nonsense", "/c"), json!(7), json!({"vdev": 51712})];
        let [b, c, d, e] = others.clone();
        for spelling in ["xvda", "51712", "0xca00", "d0p0"] {
            let config = json!({"disks": [b, disk(spelling, "/old"), c, disk("51712", "/older"), d, e]});
            let new = disk("xvda", "/new");
            assert_eq!(entered(config.clone(), XVDA, new.clone()), json!({"disks": [b, new, c, d, e]}));
            assert_eq!(struck(config, XVDA), json!({"disks": others}));
        }
        let config = json!({"disks": others});
        assert_eq!(struck(config.clone(), XVDA), config);
        let new = disk("xvda", "/new");
        assert_eq!(entered(config, XVDA, new.clone()), json!({"disks": [b, c, d, e, new]}));
    }

    #[test]
    fn interfaces_are_known_by_their_number() {
        let config =
            json!({"nics": [{"devid": 0}, {"devid": 1}, {"mac": "00:16:3e:00:00:01"}, {"devid": 1}]});
        let rest = json!({"nics": [{"devid": 0}, {"mac": "00:16:3e:00:00:01"}]});
        assert_eq!(struck(config.clone(), NIC_1), rest);
        let new = json!({"devid": 1, "bridge": "br1"});
        let after = json!({"nics": [{"devid": 0}, new, {"mac": "00:16:3e:00:00:01"}]});
        assert_eq!(entered(config, NIC_1, new), after);
    }

    #[test]
    fn a_new_array_goes_where_libxl_puts_it() {
        let names =
            |config: &Value| config.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
        let config =
            json!({"c_info": 1, "b_info": 2, "new": 3, "vfbs": [], "on_reboot": "restart", "newer": 4});
        let with_nic = entered(config, NIC_1, json!({"devid": 1}));
        assert_eq!(names(&with_nic), "c_info b_info new nics vfbs on_reboot newer");
        let with_both = entered(with_nic, XVDA, disk("xvda", "/d"));
        assert_eq!(names(&with_both), "c_info b_info new disks nics vfbs on_reboot newer");
        // The order stays also as the first array goes.
        assert_eq!(names(&struck(with_both, XVDA)), "c_info b_info new nics vfbs on_reboot newer");
        assert_eq!(names(&entered(json!({}), XVDA, disk("xvda", "/d"))), "disks");
    }

    /// What this version does not know stays as it is, numbers too.
    #[test]
    fn unknown_members_stay() {
        let known =
            r#""big": 18446744073709551615, "small": -9223372036854775808, "z": null, "a": "\u0001\/é""#;
        let config = parse(format!("{{{known}, \"disks\": [{{{known}}}]}}").as_bytes()).unwrap();
        let with_disk = entered(Value::Object(config.clone()), XVDA, disk("xvda", "/d"));
        let shown = text::pretty(&with_disk);
        let lines = r#"    "big": 18446744073709551615,
    "small": -9223372036854775808,
    "z": null,
    "a": "\u0001/é",
    "disks": ["#;
        assert!(shown.starts_with(&format!("{{\n{lines}\n")), "{shown}");
        assert_eq!(struck(with_disk, XVDA), Value::Object(config));
    }

    #[test]
    fn what_cannot_be_kept_is_refused() {
        let problem = |text: &str| parse(text.as_bytes()).unwrap_err().to_string();
        for text in ["", "{", "[]", "7", "{} {}", "{\"a\": \"\u{1}\"}"] {
            assert!(problem(text).starts_with("it is not a JSON object: "), "{text}: {}", problem(text));
        }
        assert!(matches!(parse(b"{\"a\": \"\xff\"}"), Err(ConfigError::Syntax(_))));
        assert_eq!(problem("{\"a\": [{\"b\": 1.5}]}"), "it holds 1.5, which is not an integer of 64 bits");
        assert!(problem("{\"a\": 18446744073709551616}").contains("not an integer"));
        let twice = problem("{\"disks\": [{\"vdev\": \"xvdb\"}], \"disks\": []}");
        assert!(twice.contains("the member \"disks\" is there twice"), "{twice}");
        assert!(problem("{\"a\": [{\"b\": 1, \"b\": 1}]}").contains("twice"));
        for (which, array) in [(XVDA, "disks"), (NIC_1, "nics")] {
            let mut config = object(json!({array: {"vdev": "xvda", "devid": 1}}));
            let before = config.clone();
            assert!(matches!(enter(&mut config, which, Map::new()), Err(ConfigError::NotAnArray(_))));
            assert!(matches!(strike(&mut config, which), Err(ConfigError::NotAnArray(_))));
            assert_eq!(config, before);
        }
    }
}
