//! What a disk specification means: parameter after parameter, into the fields of a [`Vbd`].

use thiserror::Error;

use super::grammar::{Parameter, parameters};
use super::{Backend, Colo, Format, Specification, Vbd, Vdev, VdevError};

/// Why a disk specification is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DiskSpecError {
    /// A parameter is not known, or has a value that it cannot have.
    #[error("{problem}: {near:?}")]
    Parameter {
        /// What is wrong.
        problem: &'static str,
        /// The parameter, or the beginning of it.
        near: String,
    },
    /// Something was said twice.
    #[error("{0} is said twice")]
    Respecified(&'static str),
    /// Something is missing.
    #[error("no {0} is given")]
    Missing(&'static str),
    /// The virtual device is not one.
    #[error("{0}")]
    Vdev(#[from] VdevError),
}

fn bad(problem: &'static str, near: &str) -> DiskSpecError {
    DiskSpecError::Parameter { problem, near: near.chars().take(80).collect() }
}

/// A deprecated prefix of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prefix {
    /// It names the format.
    Format(Format),
    /// It names the script, `block-` and itself.
    Script,
    /// It once chose a backend, and has no meaning any more.
    Dropped,
}

impl Prefix {
    pub(super) fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "raw" | "qcow" | "qcow2" | "vhd" => Self::Format(Format::from_name(name)?),
            "iscsi" | "nbd" | "enbd" | "drbd" => Self::Script,
            "tapdisk" | "tap" | "tap2" | "aio" | "ioemu" | "file" | "phy" => Self::Dropped,
            _ => return None,
        })
    }
}

/// What has been said so far.
#[derive(Debug, Default)]
struct Said {
    backend_name: Option<String>,
    target: Option<String>,
    vdev: Option<String>,
    backend: Option<Backend>,
    format: Option<Format>,
    script: Option<String>,
    cdrom: bool,
    writable: bool,
    direct_io_safe: bool,
    discard: Option<bool>,
    specification: Option<Specification>,
    colo: Colo,
    trusted: Option<bool>,
    grant_usage: Option<bool>,
    /// Whether a prefix was seen: the positional parameters have no format then.
    prefixed: bool,
    /// Whether the positional access was seen.
    access_placed: bool,
}

/// A text can be said once; an empty one does not count.
fn set_text(slot: &mut Option<String>, value: &str, name: &'static str) -> Result<(), DiskSpecError> {
    if slot.as_ref().is_some_and(|said| !said.is_empty()) {
        return Err(DiskSpecError::Respecified(name));
    }
    *slot = Some(value.to_owned());
    Ok(())
}

/// A choice can be said again, but not changed.
fn set_choice<T: PartialEq>(slot: &mut Option<T>, value: T, name: &'static str) -> Result<(), DiskSpecError> {
    if slot.as_ref().is_some_and(|said| *said != value) {
        return Err(DiskSpecError::Respecified(name));
    }
    *slot = Some(value);
    Ok(())
}

impl Said {
    fn parameter(&mut self, parameter: Parameter<'_>) -> Result<(), DiskSpecError> {
        match parameter {
            Parameter::Prefix(name) => self.prefix(name),
            Parameter::UnknownPrefix(name) => Err(bad("this prefix is not known", name)),
            Parameter::Target(target) => set_text(&mut self.target, target, "target"),
            Parameter::Key(key, value) => self.key(key, value),
            Parameter::Word(word) => {
                self.word(word);
                Ok(())
            }
            Parameter::Positional(text) => self.positional(text),
            Parameter::Nonsense(text) => Err(bad("this is no parameter", text)),
        }
    }

    fn prefix(&mut self, name: &str) -> Result<(), DiskSpecError> {
        self.prefixed = true;
        match Prefix::from_name(name) {
            Some(Prefix::Format(format)) => set_choice(&mut self.format, format, "format"),
            Some(Prefix::Script) => set_text(&mut self.script, &format!("block-{name}"), "script"),
            Some(Prefix::Dropped) | None => Ok(()),
        }
    }

    fn key(&mut self, key: &str, value: &str) -> Result<(), DiskSpecError> {
        match key {
            "format" => self.format(value),
            "vdev" => set_text(&mut self.vdev, value, "vdev"),
            "access" => self.access(value),
            "backend" => set_text(&mut self.backend_name, value, "backend"),
            "script" => set_text(&mut self.script, value, "script"),
            "devtype" => {
                self.cdrom = match value {
                    "cdrom" => true,
                    "disk" => false,
                    _ => return Err(bad("a devtype is disk or cdrom", value)),
                };
                Ok(())
            }
            "backendtype" => {
                let backend = Backend::from_name(value);
                let backend =
                    backend.ok_or_else(|| bad("a backendtype is phy, tap, qdisk or standalone", value))?;
                set_choice(&mut self.backend, backend, "backendtype")
            }
            "specification" => {
                let specification = Specification::from_name(value);
                let specification =
                    specification.ok_or_else(|| bad("a specification is xen or virtio", value))?;
                set_choice(&mut self.specification, specification, "specification")
            }
            "grant_usage" => {
                self.grant_usage = match value {
                    "0" => Some(false),
                    "1" => Some(true),
                    _ => return Err(bad("grant_usage is 0 or 1", value)),
                };
                Ok(())
            }
            "colo-port" => {
                let port = value.parse().ok().filter(|port| *port != 0);
                self.colo.port = Some(port.ok_or_else(|| bad("colo-port is no port", value))?);
                Ok(())
            }
            "colo-host" => set_text(&mut self.colo.host, value, "colo-host"),
            "colo-export" => set_text(&mut self.colo.export, value, "colo-export"),
            "active-disk" => set_text(&mut self.colo.active_disk, value, "active-disk"),
            "hidden-disk" => set_text(&mut self.colo.hidden_disk, value, "hidden-disk"),
            _ => Err(bad("this parameter is not known", key)),
        }
    }

    fn word(&mut self, word: &str) {
        match word {
            "cdrom" => self.cdrom = true,
            "colo" => self.colo.enable = Some(true),
            "no-colo" => self.colo.enable = Some(false),
            "direct-io-safe" => self.direct_io_safe = true,
            "discard" => self.discard = Some(true),
            "no-discard" => self.discard = Some(false),
            "trusted" => self.trusted = Some(true),
            "untrusted" => self.trusted = Some(false),
            _ => {}
        }
    }

    /// Fills the first field that nothing is said of yet: target, format (unless there was a prefix), vdev, access.
    fn positional(&mut self, text: &str) -> Result<(), DiskSpecError> {
        if self.target.is_none() {
            return set_text(&mut self.target, text, "target");
        }
        let wants_format = !self.prefixed && self.format.is_none();
        // `,hdc:cdrom`: a drive without a medium, for which nobody gives a format.
        let is_drive = self.target.as_ref().is_some_and(String::is_empty) && text.contains(':');
        if wants_format && !is_drive {
            return self.format(text);
        }
        if wants_format {
            self.format = Some(Format::Empty);
        }
        if wants_format || self.vdev.is_none() {
            let vdev = match text.rsplit_once(':') {
                Some((vdev, "cdrom")) => {
                    self.cdrom = true;
                    vdev
                }
                Some((vdev, "disk")) => {
                    self.cdrom = false;
                    vdev
                }
                Some(_) => return Err(bad("after the vdev's colon stands disk or cdrom", text)),
                None => text,
            };
            return set_text(&mut self.vdev, vdev, "vdev");
        }
        if self.access_placed {
            return Err(bad("there are too many positional parameters", text));
        }
        self.access_placed = true;
        self.access(text)
    }

    fn format(&mut self, name: &str) -> Result<(), DiskSpecError> {
        let format = if name.is_empty() { Some(Format::Raw) } else { Format::from_name(name) };
        let format = format.ok_or_else(|| bad("a format is raw, qcow, qcow2, qed, vhd or empty", name))?;
        set_choice(&mut self.format, format, "format")
    }

    fn access(&mut self, value: &str) -> Result<(), DiskSpecError> {
        self.writable = match value {
            "" | "w" | "rw" => true,
            "r" | "ro" => false,
            _ => return Err(bad("an access is r, ro, w or rw", value)),
        };
        Ok(())
    }

    fn disk(self) -> Result<Vbd, DiskSpecError> {
        let vdev = Vdev::new(&self.vdev.ok_or(DiskSpecError::Missing("vdev"))?)?;
        if self.target.is_none() && !self.cdrom {
            return Err(DiskSpecError::Missing("target"));
        }
        let is_empty = self.cdrom && self.target.as_ref().is_none_or(String::is_empty);
        Ok(Vbd {
            backend_name: self.backend_name,
            target: self.target,
            vdev,
            backend: self.backend,
            format: if is_empty { Format::Empty } else { self.format.unwrap_or(Format::Raw) },
            script: self.script,
            writable: self.writable && !self.cdrom,
            cdrom: self.cdrom,
            direct_io_safe: self.direct_io_safe,
            discard: self.discard,
            specification: self.specification,
            colo: self.colo,
            trusted: self.trusted,
            mmio: None,
            grant_usage: self.grant_usage,
            target_is_local: true,
        })
    }
}

/// Reads the arguments of `block-attach`, one after the other into the same disk, or a disk of a
/// domain configuration, which is one argument.
///
/// All that xl understands is understood; whether it can be served, adding it tells.
///
/// # Errors
///
/// They name the parameter.
pub fn parse(arguments: &[impl AsRef<str>]) -> Result<Vbd, DiskSpecError> {
    let mut said = Said { writable: true, ..Said::default() };
    for argument in arguments {
        for parameter in parameters(argument.as_ref()) {
            if parameter.holds_control() {
                return Err(bad("this holds a control character", argument.as_ref()));
            }
            said.parameter(parameter)?;
        }
    }
    said.disk()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;
    use crate::kind::table::rows;

    fn outcome(arguments: &[&str]) -> String {
        match parse(arguments) {
            Ok(disk) => format!("`{}`", serde_json::Value::from(Device::Vbd(disk).libxl())),
            Err(error) => error.to_string(),
        }
    }

    /// D1 to D3.
    #[test]
    fn the_examples_of_the_table() {
        let rows = rows(include_str!("grammar.md"), "\n## Examples\n");
        assert!(rows.len() > 70, "{}", rows.len());
        for (arguments, cells) in rows {
            assert_eq!([&*outcome(&arguments)], *cells, "{arguments:?}");
        }
    }

    #[test]
    fn the_differences_of_the_table() {
        for (arguments, cells) in rows(include_str!("grammar.md"), "\n## Where it differs") {
            assert_eq!(parse(&arguments).is_ok(), cells[1] == "accepted", "{arguments:?}");
        }
        for argument in
            ["/d\u{7},raw,xvda", "/d,raw,xvda,script=\u{1b}[2J", "vdev=xvda,target=/d\n", "/d\u{85},raw,xvda"]
        {
            let refused = parse(&[argument]).unwrap_err().to_string();
            assert!(refused.starts_with("this holds a control character"), "{refused}");
        }
        assert!(parse(&["\n\t /d,\nraw,xvda"]).is_ok());
    }

    #[test]
    fn what_is_long_is_no_trouble() {
        assert_eq!(parse(&["x".repeat(1 << 20)]), Err(DiskSpecError::Missing("vdev")));
        assert_eq!(parse(&["phy:".repeat(1 << 18)]), Err(DiskSpecError::Missing("vdev")));
        assert!(parse(&[",".repeat(1 << 20)]).is_err());
        let last = format!("/d,raw,xvda{},access=x", ",discard".repeat(1000));
        assert!(parse(&[last]).is_err());
    }
}
