//! The network specification, of `xl network-attach` and of domain configurations.

use std::fmt;

use thiserror::Error;

use super::{Mac, MacError, NicType, RateError, Vif};

/// Why a network specification is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NicSpecError {
    /// The parameter is not known.
    #[error("{0:?} is no parameter")]
    Unknown(String),
    /// The value cannot be had.
    #[error("{near:?}: {problem}")]
    Value {
        /// The parameter.
        near: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The address is none.
    #[error("{0}")]
    Mac(#[from] MacError),
    /// The rate is none.
    #[error("{0}")]
    Rate(#[from] RateError),
}

/// Something to tell about a specification that is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// `netdev=` was said for `gatewaydev=`.
    NetdevDeprecated,
    /// `accel=` was said, which has no effect.
    AccelIgnored,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NetdevDeprecated => "netdev= is deprecated: say gatewaydev=",
            Self::AccelIgnored => "accel= has no effect",
        })
    }
}

/// What an interface has where its specification says nothing, as `xl.conf` may set it with
/// `vif.default.*`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Defaults {
    /// `vif.default.bridge`.
    pub bridge: Option<String>,
    /// `vif.default.script`.
    pub script: Option<String>,
    /// `vif.default.gatewaydev`.
    pub gatewaydev: Option<String>,
    /// `vif.default.backend`.
    pub backend: Option<String>,
}

impl Vif {
    /// Fills in what was not said. What was said empty stays so.
    #[must_use]
    pub fn or(mut self, defaults: &Defaults) -> Self {
        let Defaults { bridge, script, gatewaydev, backend } = defaults.clone();
        self.bridge = self.bridge.or(bridge);
        self.script = self.script.or(script);
        self.gatewaydev = self.gatewaydev.or(gatewaydev);
        self.backend_name = self.backend_name.or(backend);
        self
    }
}

/// libxl's members for COLO, in its order. Each is also a parameter; the first is `forwarddev=` there.
pub(super) const COLO: [&str; 49] = [
    "coloft_forwarddev",
    "colo_sock_mirror_id",
    "colo_sock_mirror_ip",
    "colo_sock_mirror_port",
    "colo_sock_compare_pri_in_id",
    "colo_sock_compare_pri_in_ip",
    "colo_sock_compare_pri_in_port",
    "colo_sock_compare_sec_in_id",
    "colo_sock_compare_sec_in_ip",
    "colo_sock_compare_sec_in_port",
    "colo_sock_compare_notify_id",
    "colo_sock_compare_notify_ip",
    "colo_sock_compare_notify_port",
    "colo_sock_redirector0_id",
    "colo_sock_redirector0_ip",
    "colo_sock_redirector0_port",
    "colo_sock_redirector1_id",
    "colo_sock_redirector1_ip",
    "colo_sock_redirector1_port",
    "colo_sock_redirector2_id",
    "colo_sock_redirector2_ip",
    "colo_sock_redirector2_port",
    "colo_filter_mirror_queue",
    "colo_filter_mirror_outdev",
    "colo_filter_redirector0_queue",
    "colo_filter_redirector0_indev",
    "colo_filter_redirector0_outdev",
    "colo_filter_redirector1_queue",
    "colo_filter_redirector1_indev",
    "colo_filter_redirector1_outdev",
    "colo_compare_pri_in",
    "colo_compare_sec_in",
    "colo_compare_out",
    "colo_compare_notify_dev",
    "colo_sock_sec_redirector0_id",
    "colo_sock_sec_redirector0_ip",
    "colo_sock_sec_redirector0_port",
    "colo_sock_sec_redirector1_id",
    "colo_sock_sec_redirector1_ip",
    "colo_sock_sec_redirector1_port",
    "colo_filter_sec_redirector0_queue",
    "colo_filter_sec_redirector0_indev",
    "colo_filter_sec_redirector0_outdev",
    "colo_filter_sec_redirector1_queue",
    "colo_filter_sec_redirector1_indev",
    "colo_filter_sec_redirector1_outdev",
    "colo_filter_sec_rewriter0_queue",
    "colo_checkpoint_host",
    "colo_checkpoint_port",
];

/// The name of a Linux network interface; an empty one is none.
fn interface(value: &str) -> Result<String, &'static str> {
    let is_bad = |c: char| c.is_whitespace() || matches!(c, '/' | ':');
    if value.len() > super::LONGEST_NAME || value.contains(is_bad) || matches!(value, "." | "..") {
        return Err(
            "the name of an interface has at most 15 bytes, no blank, slash or colon, and is not . or ..",
        );
    }
    Ok(value.to_owned())
}

/// The name of a bridge, or what `vif-openvswitch` takes for one: `BRIDGE.TAG:TRUNK:TRUNK`, either without the other too.
fn bridge(value: &str) -> Result<String, &'static str> {
    let (port, trunks) = value.split_once(':').unwrap_or((value, ""));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let has_trunks = port.len() < value.len() && trunks.split(':').all(is_number);
    let tagged = port.rsplit_once('.').filter(|(_, tag)| is_number(tag));
    if has_trunks || tagged.is_some() {
        interface(tagged.map_or(port, |(bridge, _)| bridge))?;
        return Ok(value.to_owned());
    }
    interface(value)
}

fn parameter(vif: &mut Vif, key: &str, value: &str) -> Result<(), Option<&'static str>> {
    let text = || Some(value.to_owned());
    match key {
        "type" => {
            vif.nic_type = match value {
                "vif" => Some(NicType::Vif),
                "ioemu" => Some(NicType::VifIoemu),
                _ => return Err(Some("a type is vif or ioemu")),
            };
        }
        "bridge" => vif.bridge = Some(bridge(value)?),
        "ip" => vif.ip = text(),
        "script" => vif.script = text(),
        "backend" => vif.backend_name = text(),
        "vifname" => vif.vifname = Some(interface(value)?),
        "model" => vif.model = text(),
        // It has no effect, see `notices`.
        "accel" => {}
        "gatewaydev" | "netdev" => vif.gatewaydev = Some(interface(value)?),
        "mtu" => {
            let mtu = value.parse().ok().filter(|mtu| (68..=65535).contains(mtu));
            vif.mtu = Some(mtu.ok_or("an mtu is a number of bytes from 68 to 65535")?);
        }
        "devid" => {
            let devid = value.parse().ok().filter(|devid| i32::try_from(*devid).is_ok());
            vif.devid = Some(devid.ok_or("a devid is a decimal number of at most 31 bits")?);
        }
        "vlan" => vif.vlan = text(),
        key => {
            let name = if key == "forwarddev" { COLO[0] } else { key };
            if !COLO.contains(&name) || key == COLO[0] {
                return Err(None);
            }
            vif.colo.insert(name.to_owned(), value.to_owned());
        }
    }
    Ok(())
}

/// The parameters of arguments. Blanks before one do not count.
fn parameters(arguments: &[impl AsRef<str>]) -> impl Iterator<Item = &str> {
    let parameters = arguments.iter().flat_map(|argument| argument.as_ref().split(','));
    parameters.map(|parameter| parameter.trim_start_matches([' ', '\t', '\n']))
}

/// What is to be told of arguments that [`parse`] takes.
pub fn notices(arguments: &[impl AsRef<str>]) -> Vec<Notice> {
    let keys = parameters(arguments).filter_map(|parameter| parameter.split_once('='));
    let notices = keys.filter_map(|(key, _)| match key {
        "netdev" => Some(Notice::NetdevDeprecated),
        "accel" => Some(Notice::AccelIgnored),
        _ => None,
    });
    notices.collect()
}

/// Reads the arguments of `network-attach`, or an interface of a domain configuration, which is one argument.
///
/// A parameter is `key=value`, or `trusted` or `untrusted`. Each may be an argument of its own, as
/// `xl network-attach` has it; commas separate several in one argument, as in a configuration file.
/// Thus no value holds a comma. Blanks before a parameter do not count. What is said twice counts as it was
/// said last.
///
/// All that xl understands is understood; whether it can be served, adding it tells.
///
/// # Errors
///
/// They name the parameter.
pub fn parse(arguments: &[impl AsRef<str>]) -> Result<Vif, NicSpecError> {
    let mut vif = Vif::default();
    for whole in parameters(arguments) {
        let near = || whole.chars().take(80).collect();
        let value_error = |problem| NicSpecError::Value { near: near(), problem };
        if whole.contains(char::is_control) {
            return Err(value_error("it holds a control character"));
        }
        match whole.split_once('=') {
            _ if whole.is_empty() => {}
            None if whole == "trusted" => vif.trusted = Some(true),
            None if whole == "untrusted" => vif.trusted = Some(false),
            None => return Err(NicSpecError::Unknown(near())),
            Some(("mac", value)) => {
                let mac: Mac = value.parse()?;
                vif.mac = (!mac.is_zero()).then_some(mac);
            }
            Some(("rate", value)) => vif.rate = Some(value.parse()?),
            Some((key, value)) => parameter(&mut vif, key, value)
                .map_err(|problem| problem.map_or_else(|| NicSpecError::Unknown(near()), value_error))?,
        }
    }
    Ok(vif)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;
    use crate::kind::table::rows;

    fn parsed(arguments: &[&str]) -> Vif {
        parse(arguments).unwrap()
    }

    #[test]
    fn parameters_as_arguments_and_as_in_a_configuration_file() {
        let expected = Vif {
            bridge: Some("br1".to_owned()),
            mac: Some("00:16:3e:11:22:33".parse().unwrap()),
            script: Some("vif-route".to_owned()),
            nic_type: Some(NicType::Vif),
            mtu: Some(1500),
            devid: Some(3),
            model: Some("e1000".to_owned()),
            ip: Some("10.0.0.1 10.0.0.2".to_owned()),
            trusted: Some(false),
            ..Vif::default()
        };
        let words = [
            "model=e1000",
            "bridge=br1",
            "mac=00:16:3e:11:22:33",
            "script=vif-route",
            "type=vif",
            "mtu=1500",
            "devid=3",
            "ip=10.0.0.1 10.0.0.2",
            "untrusted",
        ];
        assert_eq!(parsed(&words), expected);
        assert_eq!(parsed(&[&words.join(",")]), expected);
        assert_eq!(parsed(&[&words.join(", ")]), expected);
        assert_eq!(parsed(&[&words[..4].join(","), &words[4..].join(","), ""]), expected);
        assert_eq!(parsed(&[]), Vif::default());
        assert_eq!(parsed(&["mac=00:00:00:00:00:00"]).mac, None);
    }

    #[test]
    fn what_is_deprecated_is_told() {
        let arguments = ["netdev=eth3, accel=no", "bridge=x"];
        assert_eq!(parsed(&arguments).gatewaydev.as_deref(), Some("eth3"));
        assert_eq!(notices(&arguments), [Notice::NetdevDeprecated, Notice::AccelIgnored]);
    }

    #[test]
    fn defaults_fill_in_what_was_not_said() {
        let bridge = Some("br9".to_owned());
        let defaults = Defaults { bridge, backend: Some("dd".to_owned()), ..Defaults::default() };
        assert_eq!(parsed(&[]).or(&defaults).bridge.as_deref(), Some("br9"));
        let said = parsed(&["bridge=", "backend=0"]).or(&defaults);
        assert_eq!((said.bridge.as_deref(), said.backend_name.as_deref()), (Some(""), Some("0")));
    }

    #[test]
    fn the_examples_of_the_table() {
        let rows = rows(include_str!("grammar.md"), "\n## Examples\n");
        assert!(rows.len() > 15, "{}", rows.len());
        for (arguments, cells) in rows {
            let outcome = match parse(&arguments) {
                Ok(vif) => format!("`{}`", serde_json::Value::from(Device::Vif(vif).libxl())),
                Err(error) => error.to_string(),
            };
            assert_eq!([&*outcome], *cells, "{arguments:?}");
        }
    }

    /// D4 is the first of them.
    #[test]
    fn the_differences_of_the_table() {
        for (arguments, cells) in rows(include_str!("grammar.md"), "\n## Where it differs") {
            assert_eq!(parse(&arguments).is_ok(), cells[1] == "accepted", "{arguments:?}");
        }
        assert_eq!(parsed(&["model=e1000,bridge=br1"]).bridge.as_deref(), Some("br1"));
    }

    #[test]
    fn refusals() {
        for argument in [
            "colour=red",
            "bridge",
            "coloft_forwarddev=x",
            "bridge=a b",
            "bridge=a,b",
            "ip=10.0.0.1,10.0.0.2",
            "mac=1",
            "rate=1",
            "mtu=1",
            "mtu=99999",
            "devid=-1",
            "devid=4294967295",
            "devid=0x1",
            "vifname=sixteen-bytes-xx",
            "vifname=a/b",
            "vifname=..",
            "type=pcnet",
            "type= vif",
            "ip=10.0.0.1\n",
            "script=\u{1b}[2J",
            "=x",
        ] {
            assert!(parse(&[argument]).is_err(), "{argument}");
        }
        assert!(parse(&["colo_checkpoint_port=9", "forwarddev=x"]).is_ok());
    }

    /// As the stock `vif-openvswitch` reads them, which are no names of interfaces.
    #[test]
    fn a_bridge_may_have_a_tag_and_trunks() {
        let of = |value: &str| parse(&[&format!("bridge={value}")]).map(|vif| vif.bridge);
        for good in ["xenbr0", "br0.10", "ovsbr0.10:20:30", "ovsbr0:20", "a-bridge-of-15b.4094", ""] {
            assert_eq!(of(good).unwrap().as_deref(), Some(good));
        }
        for bad in ["a-bridge-of-16-b", "ovsbr0:", "ovsbr0:a", "br0:1:", "a/b", "a-bridge-of-16-b.10"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
}
