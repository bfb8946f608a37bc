//! The `key=value` arguments of `xl network-attach`.
//!
//! Source: `docs/man/xl-network-configuration.5.pod.in`.

use thiserror::Error;

use super::{MacError, RateError, Vif};

/// Why the arguments of a network interface are refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NicSpecError {
    /// The parameter is not known.
    #[error("network specification: {0:?} is not known")]
    Unknown(String),
    /// The value cannot be had.
    #[error("network specification: {near:?}: {problem}")]
    Value {
        /// The argument.
        near: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The address is none.
    #[error("network specification: {0}")]
    Mac(#[from] MacError),
    /// The rate is none.
    #[error("network specification: {0}")]
    Rate(#[from] RateError),
    /// A valid specification that this version cannot serve.
    #[error("network specification: {0} is not supported here")]
    Unsupported(String),
}

fn excerpt(text: &str) -> String {
    text.chars().take(80).collect()
}

/// A name that goes into the store and to scripts: not empty, no blanks, commas or control bytes.
fn plain(value: &str, whole: &str) -> Result<String, NicSpecError> {
    let bad = |c: char| c.is_whitespace() || c.is_control() || c == ',';
    if value.is_empty() || value.contains(bad) {
        let problem =
            "it may not be empty nor hold blanks or commas; give each key as an argument of its own";
        return Err(NicSpecError::Value { near: excerpt(whole), problem });
    }
    Ok(value.to_owned())
}

/// The name of a Linux network interface.
fn interface(value: &str, whole: &str) -> Result<String, NicSpecError> {
    let name = plain(value, whole)?;
    if name.len() > 15 || name.contains('/') || matches!(&*name, "." | "..") {
        let problem = "an interface name has at most 15 bytes, no slash, and is not . or ..";
        return Err(NicSpecError::Value { near: excerpt(whole), problem });
    }
    Ok(name)
}

/// Reads the arguments of `network-attach`.
pub fn parse(arguments: &[impl AsRef<str>]) -> Result<Vif, NicSpecError> {
    let mut vif = Vif::default();
    for argument in arguments {
        let whole = argument.as_ref();
        let value_error = |problem| NicSpecError::Value { near: excerpt(whole), problem };
        let Some((key, value)) = whole.split_once('=') else {
            match whole {
                "trusted" => vif.trusted = true,
                "untrusted" => vif.trusted = false,
                _ => return Err(NicSpecError::Unknown(excerpt(whole))),
            }
            continue;
        };
        match key {
            "type" if value == "vif" => {}
            "type" if value == "ioemu" => return Err(NicSpecError::Unsupported("type=ioemu".to_owned())),
            "type" => return Err(value_error("a type is vif or ioemu")),
            "mac" => {
                let mac: super::Mac = value.parse()?;
                vif.mac = if mac.is_zero() { None } else { Some(mac) };
            }
            "bridge" => vif.bridge = plain(value, whole)?,
            "ip" => vif.ip = Some(value.to_owned()),
            "script" => vif.script = Some(plain(value, whole)?),
            "backend" if matches!(value, "0" | "Domain-0") => {}
            "backend" => return Err(NicSpecError::Unsupported(excerpt(whole))),
            "vifname" => vif.vifname = Some(interface(value, whole)?),
            // The model is QEMU's affair, and no emulated interface can be hot-plugged.
            "model" | "accel" => {}
            "rate" => vif.rate = Some(value.parse()?),
            "gatewaydev" | "netdev" => vif.gatewaydev = Some(interface(value, whole)?),
            "mtu" => {
                let mtu = value.parse().ok().filter(|mtu| (68..=65535).contains(mtu));
                vif.mtu = mtu.ok_or(value_error("an mtu is a number of bytes from 68 to 65535"))?;
            }
            "devid" => {
                let devid = value.parse().map_err(|_| value_error("a devid is a decimal number"))?;
                vif.devid = Some(devid);
            }
            "vlan" => vif.vlan = Some(plain(value, whole)?),
            _ => return Err(NicSpecError::Unknown(excerpt(whole))),
        }
    }
    Ok(vif)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        let vif = parse(&[
            "bridge=br1",
            "mac=00:16:3e:11:22:33",
            "script=vif-bridge",
            "type=vif",
            "mtu=9000",
            "devid=3",
        ])
        .unwrap();
        assert_eq!(vif.bridge, "br1");
        assert_eq!(vif.mac.unwrap().to_string(), "00:16:3e:11:22:33");
        assert_eq!((vif.script.as_deref(), vif.mtu, vif.devid), (Some("vif-bridge"), 9000, Some(3)));
        assert_eq!(parse(&[""; 0]).unwrap(), Vif::default());
        assert_eq!(parse(&["mac=00:00:00:00:00:00"]).unwrap().mac, None);
    }

    #[test]
    fn refusals() {
        for argument in [
            "colour=red",
            "bridge",
            "bridge=",
            "bridge=a,mac=b",
            "mac=1",
            "rate=1",
            "mtu=1",
            "mtu=99999",
            "devid=-1",
            "vifname=sixteen-bytes-xx",
            "vifname=a/b",
            "vifname=..",
            "type=pcnet",
            "type=ioemu",
            "backend=dd",
            "",
        ] {
            assert!(parse(&[argument]).is_err(), "{argument}");
        }
    }
}
