//! The disk specification of `xl block-attach` and of domain configurations.
//!
//! Source: `docs/man/xl-disk-configuration.5.pod.in`. Positional parameters are target, format,
//! vdev and access; everything else is `key=value` or a bare word; `target=` takes the rest.

use thiserror::Error;

use super::{Format, Vbd, Vdev, VdevError};

/// Why a disk specification is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DiskSpecError {
    /// A parameter is not known, or has a value that it cannot have.
    #[error("disk specification: {problem} in {near:?}")]
    Parameter {
        /// What is wrong.
        problem: &'static str,
        /// The parameter.
        near: String,
    },
    /// Something was said twice, in different ways.
    #[error("disk specification: {0} respecified")]
    Respecified(&'static str),
    /// Something is missing.
    #[error("disk specification: {0} missing")]
    Missing(&'static str),
    /// The virtual device is not one.
    #[error("disk specification: {0}")]
    Vdev(#[from] VdevError),
    /// A valid specification that this version cannot serve.
    #[error(
        "disk specification: {what} is not supported here: only the phy backend of the toolstack's own domain is"
    )]
    Unsupported {
        /// The parameter that asks for it.
        what: String,
    },
}

/// What has been said so far; each thing once, or twice alike.
#[derive(Default)]
struct Said {
    target: Option<String>,
    format: Option<Format>,
    vdev: Option<String>,
    writable: Option<bool>,
    script: Option<String>,
    cdrom: Option<bool>,
    discard: Option<bool>,
    direct_io_safe: Option<bool>,
    trusted: Option<bool>,
    positionals: usize,
}

fn say<T: PartialEq>(slot: &mut Option<T>, value: T, name: &'static str) -> Result<(), DiskSpecError> {
    if slot.as_ref().is_some_and(|said| *said != value) {
        return Err(DiskSpecError::Respecified(name));
    }
    *slot = Some(value);
    Ok(())
}

fn bad(problem: &'static str, near: &str) -> DiskSpecError {
    DiskSpecError::Parameter { problem, near: near.chars().take(80).collect() }
}

impl Said {
    fn argument(&mut self, mut rest: &str) -> Result<(), DiskSpecError> {
        loop {
            rest = rest.trim_start();
            if let Some(target) = rest.strip_prefix("target=") {
                return self.target(target);
            }
            let (parameter, after) = match rest.split_once(',') {
                Some((parameter, after)) => (parameter, Some(after)),
                None => (rest, None),
            };
            match parameter.split_once('=') {
                Some((key, value)) => self.key(key, value, parameter)?,
                None => self.bare(parameter)?,
            }
            match after {
                Some(after) => rest = after,
                None => return Ok(()),
            }
        }
    }

    fn target(&mut self, target: &str) -> Result<(), DiskSpecError> {
        const FORMATS: [(&str, Format); 4] = [
            ("raw:", Format::Raw),
            ("qcow:", Format::Qcow),
            ("qcow2:", Format::Qcow2),
            ("vhd:", Format::Vhd),
        ];
        const SCRIPTS: [&str; 4] = ["iscsi:", "nbd:", "enbd:", "drbd:"];
        const DROPPED: [&str; 7] = ["tapdisk:", "tap:", "tap2:", "aio:", "ioemu:", "file:", "phy:"];
        let path_after = |prefix: &str| target.strip_prefix(prefix).filter(|rest| rest.starts_with('/'));
        for (prefix, format) in FORMATS {
            if let Some(rest) = path_after(prefix) {
                say(&mut self.format, format, "format")?;
                return self.target(rest);
            }
        }
        for prefix in SCRIPTS {
            if let Some(rest) = path_after(prefix) {
                let script = format!("block-{}", prefix.trim_end_matches(':'));
                say(&mut self.script, script, "script")?;
                return self.target(rest);
            }
        }
        if let Some(rest) = DROPPED.into_iter().find_map(path_after) {
            return self.target(rest);
        }
        if target.is_empty() { Ok(()) } else { say(&mut self.target, target.to_owned(), "target") }
    }

    fn key(&mut self, key: &str, value: &str, whole: &str) -> Result<(), DiskSpecError> {
        let unsupported = || Err(DiskSpecError::Unsupported { what: whole.to_owned() });
        match (key, value) {
            ("format", value) => {
                let format = Format::from_name(value).ok_or_else(|| bad("unknown format", whole))?;
                say(&mut self.format, format, "format")
            }
            ("vdev", value) => self.vdev(value),
            ("access", value) => self.access(value).ok_or_else(|| bad("unknown access", whole))?,
            ("devtype", "disk") => say(&mut self.cdrom, false, "devtype"),
            ("devtype", "cdrom") => say(&mut self.cdrom, true, "devtype"),
            ("devtype", _) => Err(bad("unknown devtype", whole)),
            ("script", value) => say(&mut self.script, value.to_owned(), "script"),
            ("backendtype", "phy") | ("backend", "0" | "Domain-0") | ("specification", "xen") => Ok(()),
            ("backendtype", "tap" | "qdisk" | "standalone")
            | ("specification", "virtio")
            | ("backend", _) => unsupported(),
            _ => Err(bad("unknown parameter or value", whole)),
        }
    }

    fn bare(&mut self, word: &str) -> Result<(), DiskSpecError> {
        match word {
            "cdrom" => return say(&mut self.cdrom, true, "devtype"),
            "discard" => return say(&mut self.discard, true, "discard"),
            "no-discard" => return say(&mut self.discard, false, "discard"),
            "direct-io-safe" => return say(&mut self.direct_io_safe, true, "direct-io-safe"),
            "trusted" => return say(&mut self.trusted, true, "trusted"),
            "untrusted" => return say(&mut self.trusted, false, "trusted"),
            _ => {}
        }
        self.positionals += 1;
        // An empty positional takes its place without saying anything.
        match (self.positionals, word) {
            (1..=4, "") => Ok(()),
            (1, target) => self.target(target),
            (2, format) => {
                let format = Format::from_name(format).ok_or_else(|| bad("unknown format", word))?;
                say(&mut self.format, format, "format")
            }
            (3, vdev) => self.vdev(vdev),
            (4, access) => self.access(access).ok_or_else(|| bad("unknown access", word))?,
            _ => Err(bad("too many positional parameters", word)),
        }
    }

    fn vdev(&mut self, value: &str) -> Result<(), DiskSpecError> {
        let name = match value.split_once(':') {
            Some((name, "cdrom")) => {
                say(&mut self.cdrom, true, "devtype")?;
                name
            }
            Some((name, "disk")) => {
                say(&mut self.cdrom, false, "devtype")?;
                name
            }
            Some(_) => return Err(bad("unknown device type", value)),
            None => value,
        };
        say(&mut self.vdev, name.to_owned(), "vdev")
    }

    fn access(&mut self, value: &str) -> Option<Result<(), DiskSpecError>> {
        let writable = match value {
            "r" | "ro" => false,
            "w" | "rw" => true,
            _ => return None,
        };
        Some(say(&mut self.writable, writable, "access"))
    }
}

/// Reads the arguments of `block-attach`, one after the other into the same disk.
///
/// Errors name the parameter. Only disks of the phy backend in format raw can be had; others are
/// [`DiskSpecError::Unsupported`].
pub fn parse(arguments: &[impl AsRef<str>]) -> Result<Vbd, DiskSpecError> {
    let mut said = Said::default();
    for argument in arguments {
        said.argument(argument.as_ref())?;
    }
    let vdev = Vdev::new(&said.vdev.ok_or(DiskSpecError::Missing("vdev"))?)?;
    let format = said.format.unwrap_or(Format::Raw);
    if format != Format::Raw {
        return Err(DiskSpecError::Unsupported { what: format!("format={}", format.name()) });
    }
    let cdrom = said.cdrom.unwrap_or(false);
    let writable = said.writable.unwrap_or(!cdrom);
    if cdrom && writable {
        return Err(bad("a cdrom cannot be writable", "access=rw"));
    }
    let mut vbd = Vbd::new(said.target.ok_or(DiskSpecError::Missing("target"))?, vdev);
    vbd.writable = writable;
    vbd.cdrom = cdrom;
    vbd.script = said.script.filter(|script| !script.is_empty());
    vbd.discard = said.discard;
    vbd.direct_io_safe = said.direct_io_safe.unwrap_or(false);
    vbd.trusted = said.trusted.unwrap_or(true);
    Ok(vbd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ways_to_say_it() {
        let plain = parse(&["/srv/d.img,raw,xvda,w"]).unwrap();
        assert_eq!((plain.target.as_str(), plain.vdev.devid(), plain.writable), ("/srv/d.img", 51712, true));
        for arguments in [
            &["format=raw,vdev=xvda,access=rw,target=/srv/d.img"][..],
            &["/srv/d.img", "raw", "xvda", "w"],
            &["/srv/d.img,,xvda"],
            &["phy:/srv/d.img,raw,xvda,rw"],
            &["raw:/srv/d.img,,xvda"],
            &["vdev=xvda", "target=/srv/d.img"],
            &[" vdev=xvda, /srv/d.img"],
            &["vdev=xvda:disk,backendtype=phy,specification=xen,backend=0,/srv/d.img"],
            &["file:/srv/d.img,raw,xvda,w,vdev=xvda"],
        ] {
            assert_eq!(parse(arguments).unwrap(), plain, "{arguments:?}");
        }
        let comma = parse(&["vdev=xvdb,target=/a,b=c"]).unwrap();
        assert_eq!(comma.target, "/a,b=c");
        let script = parse(&["iscsi:/iqn,raw,xvda,r"]).unwrap();
        assert_eq!((script.script.as_deref(), script.writable), (Some("block-iscsi"), false));
        let cdrom = parse(&["/i.iso,raw,hdc:cdrom"]).unwrap();
        assert!(cdrom.cdrom && !cdrom.writable);
    }

    #[test]
    fn refusals() {
        use DiskSpecError::{Missing, Parameter, Respecified, Unsupported};
        let refused = |text: &str| parse(&[text]).unwrap_err();
        assert_eq!(refused("/d,raw"), Missing("vdev"));
        assert_eq!(refused("vdev=xvda"), Missing("target"));
        assert_eq!(refused("/d,raw,xvda,w,vdev=xvdb"), Respecified("vdev"));
        assert_eq!(refused("/d,raw,xvda,w,access=ro"), Respecified("access"));
        for text in
            ["/d,rew,xvda", "/d,raw,xvda,x", "/d,raw,xvda,w,y", "/d,raw,xvda,colour=red", "/d,raw,xvda:tape"]
        {
            assert!(matches!(refused(text), Parameter { .. }), "{text}");
        }
        assert!(matches!(refused("/d,raw,xvd,w"), DiskSpecError::Vdev(_)));
        for text in [
            "/d,qcow2,xvda",
            "/d,raw,xvda,backendtype=qdisk",
            "/d,raw,xvda,backend=dd",
            "/d,raw,xvda,specification=virtio",
        ] {
            assert!(matches!(refused(text), Unsupported { .. }), "{text}");
        }
        assert!(matches!(refused(&"x".repeat(1 << 20)), Missing("vdev")));
    }
}
