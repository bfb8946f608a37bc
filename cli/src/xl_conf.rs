//! `xl.conf`: what `xl` takes for interfaces where their specification says nothing.
//!
//! Source: xl.conf(5). Settings of other subjects are passed over.

use std::path::Path;
use std::{fs, io};

use xen_aodevice::vif::Defaults;
use xen_aodevice::xl_cfg::{Settings, Value};

use crate::problem::{Code, Problem};

/// The largest file that is read, in bytes.
const LARGEST: u64 = 1 << 20;

/// What `xl.conf` says, as far as it matters here.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct XlConf {
    pub(crate) vif: Defaults,
    /// Whether it has `run_hotplug_scripts=0`, which has had no effect since Xen 4.5 or so.
    pub(crate) forbids_scripts: bool,
}

impl XlConf {
    fn parse(text: &str) -> Result<Self, String> {
        let settings = Settings::parse(text).map_err(|error| format!("line {error}"))?;
        let text_of = |name: &str| match settings.get(name).map(|item| &item.value) {
            None => Ok(None),
            Some(Value::List(_)) => Err(format!("{name} is a list")),
            Some(Value::Text(text)) if text.contains(char::is_control) => {
                Err(format!("{name} holds a control character"))
            }
            Some(Value::Text(text)) => Ok(Some(text.clone())),
        };
        let mut conf = Self::default();
        // The deprecated names count where the others are not there.
        let (bridge, script) = (text_of("defaultbridge")?, text_of("vifscript")?);
        conf.vif.bridge = text_of("vif.default.bridge")?.or(bridge);
        conf.vif.script = text_of("vif.default.script")?.or(script);
        conf.vif.gatewaydev = text_of("vif.default.gatewaydev")?;
        conf.vif.backend = text_of("vif.default.backend")?;
        let scripts = settings.get("run_hotplug_scripts").and_then(|item| item.value.as_text());
        // As C reads numbers: all zeros are 0, whatever the base.
        let is_zero = |text: &str| !text.is_empty() && text.trim_matches(['0', 'x', 'X']).is_empty();
        conf.forbids_scripts = scripts.is_some_and(is_zero);
        Ok(conf)
    }

    /// Reads the file. One that was not asked for by name need not be there, and says nothing then.
    pub(crate) fn read(file: &Path, asked_for: bool) -> Result<Self, Problem> {
        let bad = |what: &str, observed: String| {
            let hint = "mend it, name another file with --xl-conf, or do without with --no-xl-conf";
            Problem::new(Code::BadXlConf, format!("cannot {what} {}", file.display()), observed, hint)
        };
        let text = match read_bounded(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !asked_for => return Ok(Self::default()),
            text => text.map_err(|error| bad("read", error.to_string()))?,
        };
        Self::parse(&text).map_err(|error| bad("understand", error))
    }
}

/// Reads a configuration file.
pub(crate) fn read_bounded(file: &Path) -> io::Result<String> {
    use std::io::Read;

    // Room for most of them, so that they are read at once.
    let mut text = Vec::with_capacity(16 << 10);
    fs::File::open(file)?.take(LARGEST + 1).read_to_end(&mut text)?;
    if text.len() as u64 > LARGEST {
        return Err(io::Error::other(format!("it has more than {LARGEST} bytes")));
    }
    // A comment may be in any encoding.
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings() {
        let text = "\
## Global XL config file ##\n\
#vif.default.bridge=\"no\"\n\
autoballoon=\"off\" # a comment\n\
vm.cpumask = [ \"0-1\", '2',\n  3 ]\n\
vif.default.bridge = 'br\\'1'; vif.default.script=\"vif\"\n\
\r\n  vif.default.script += '-route'\n\
vif.default.gatewaydev=\"old\"\nvif.default.gatewaydev =\t7\n\
vif.default.backend=\"\"\n\
run_hotplug_scripts=0";
        let conf = XlConf::parse(text).unwrap();
        assert_eq!(conf.vif.bridge.as_deref(), Some("br'1"));
        assert_eq!(conf.vif.script.as_deref(), Some("vif-route"));
        assert_eq!(conf.vif.gatewaydev.as_deref(), Some("7"));
        assert_eq!(conf.vif.backend.as_deref(), Some(""));
        assert!(conf.forbids_scripts);
        let both = "vif.default.script='new'\nvifscript='old'\ndefaultbridge='br0'\nx=[['a'], ['b',]]";
        let both = XlConf::parse(both).unwrap().vif;
        assert_eq!((both.script.as_deref(), both.bridge.as_deref()), (Some("new"), Some("br0")));
        assert_eq!(XlConf::parse(""), Ok(XlConf::default()));
        let old = XlConf::parse("defaultbridge=\"a\\'b\"\nrun_hotplug_scripts=1").unwrap();
        assert_eq!((old.vif.bridge.as_deref(), old.forbids_scripts), (Some("a'b"), false));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, wrong) in [
            ("a=1\nb==2\n", "line 2: this cannot stand here: \"=2\""),
            ("vif.default.bridge=['a']", "vif.default.bridge is a list"),
            ("vif.default.bridge='a\\t'", "vif.default.bridge holds a control character"),
        ] {
            assert_eq!(XlConf::parse(text), Err(wrong.to_owned()), "{text}");
        }
    }
}
