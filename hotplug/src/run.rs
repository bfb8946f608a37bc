//! What is to be executed: the argument vectors and variables of the contract, for Linux.

use std::fmt;
use std::path::PathBuf;

/// Whether a device comes or goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The device is being added.
    Add,
    /// The device is being removed.
    Remove,
}

impl Action {
    /// The word for it in the arguments of a NIC's first run.
    fn line(self) -> &'static str {
        match self {
            Self::Add => "online",
            Self::Remove => "offline",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Add => "add",
            Self::Remove => "remove",
        })
    }
}

/// One run of a script, as a plain value.
///
/// The constructors make the runs of the contract between a Linux toolstack and its scripts. In all of
/// them `fe` is the domain id of the guest, and the path in `XENBUS_PATH` is relative to the store's
/// home of the domain that runs the script.
///
/// | device | run | arguments | variables |
/// | --- | --- | --- | --- |
/// | disk | [`vbd`](Self::vbd), [`vbd3`](Self::vbd3) | `add` or `remove` | |
/// | NIC | [`vif`](Self::vif) | `online` or `offline`, `type_if=vif` | `netdev`, `vif` |
/// | NIC with an emulated twin, run 0 | [`vif_ioemu`](Self::vif_ioemu) | `online` or `offline`, `type_if=vif` | `netdev`, `vif`, `INTERFACE` |
/// | NIC with an emulated twin, run 1 | [`tap`](Self::tap) | `add` or `remove`, `type_if=tap` | `netdev`, `vif`, `INTERFACE` |
///
/// Besides, every run has `script`, `XENBUS_TYPE`, `XENBUS_PATH` and `XENBUS_BASE_PATH`.
///
/// The stock vif scripts evaluate `type_if=...` as shell code, so arguments must be constant strings;
/// whatever came from a configuration belongs into a variable. `Display` shows the command line.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ScriptRun {
    /// The program. A name without a slash is searched for in the `PATH` that the script will get.
    pub script: PathBuf,
    /// Its arguments, without the program's name.
    pub args: Vec<String>,
    /// Variables, which win over those of the same name from elsewhere.
    pub env: Vec<(String, String)>,
}

impl ScriptRun {
    /// The script of a disk whose backend is of kind `vbd`, such as blkback.
    pub fn vbd(script: impl Into<PathBuf>, action: Action, fe: u32, devid: u32) -> Self {
        Self::new(script, &[&action.to_string()], "vbd", fe, devid)
    }

    /// The script of a disk whose backend is of kind `vbd3`: a tapdisk that serves the guest itself.
    pub fn vbd3(script: impl Into<PathBuf>, action: Action, fe: u32, devid: u32) -> Self {
        Self::new(script, &[&action.to_string()], "vbd3", fe, devid)
    }

    /// The only run for a NIC of type `vif`.
    ///
    /// `gatewaydev` is the device that `vif-route` and `vif-nat` take their address from; empty if the
    /// configuration names none.
    pub fn vif(
        script: impl Into<PathBuf>,
        action: Action,
        fe: u32,
        devid: u32,
        gatewaydev: impl Into<String>,
    ) -> Self {
        Self::new(script, &[action.line(), "type_if=vif"], "vif", fe, devid)
            .var("netdev", gatewaydev)
            .var("vif", format!("vif{fe}.{devid}"))
    }

    /// Run 0 for a NIC of type `vif_ioemu`: the paravirtual interface.
    pub fn vif_ioemu(
        script: impl Into<PathBuf>,
        action: Action,
        fe: u32,
        devid: u32,
        gatewaydev: impl Into<String>,
    ) -> Self {
        Self::vif(script, action, fe, devid, gatewaydev).var("INTERFACE", format!("vif{fe}.{devid}-emu"))
    }

    /// Run 1 for a NIC of type `vif_ioemu`: the tap device of the emulated twin.
    ///
    /// It may start only after run 0 has ended. Beware that the stock scripts take the backend's path
    /// in this run from `INTERFACE` and not from `XENBUS_PATH`, and expect it under `/local/domain/0`.
    pub fn tap(
        script: impl Into<PathBuf>,
        action: Action,
        fe: u32,
        devid: u32,
        gatewaydev: impl Into<String>,
    ) -> Self {
        let args = vec![action.to_string(), "type_if=tap".to_owned()];
        Self { args, ..Self::vif_ioemu(script, action, fe, devid, gatewaydev) }
    }

    fn new(script: impl Into<PathBuf>, args: &[&str], kind: &str, fe: u32, devid: u32) -> Self {
        let script = script.into();
        let name = script.to_string_lossy().into_owned();
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        Self { script, args, env: Vec::new() }
            .var("script", name)
            .var("XENBUS_TYPE", kind)
            .var("XENBUS_PATH", format!("backend/{kind}/{fe}/{devid}"))
            .var("XENBUS_BASE_PATH", "backend")
    }

    fn var(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }
}

impl fmt::Display for ScriptRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.script.display())?;
        self.args.iter().try_for_each(|arg| write!(f, " {arg}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(run: &ScriptRun) -> Vec<String> {
        run.env.iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    #[test]
    fn disks() {
        let run = ScriptRun::vbd("/etc/xen/scripts/block", Action::Add, 1, 51712);
        assert_eq!(run.to_string(), "/etc/xen/scripts/block add");
        assert_eq!(
            env(&run),
            [
                "script=/etc/xen/scripts/block",
                "XENBUS_TYPE=vbd",
                "XENBUS_PATH=backend/vbd/1/51712",
                "XENBUS_BASE_PATH=backend",
            ]
        );
        let run = ScriptRun::vbd3("/etc/xen/scripts/block-tap", Action::Remove, 1, 51712);
        assert_eq!(run.args, ["remove"]);
        assert_eq!(env(&run)[1..3], ["XENBUS_TYPE=vbd3", "XENBUS_PATH=backend/vbd3/1/51712"]);
    }

    #[test]
    fn nics() {
        let common =
            ["script=s", "XENBUS_TYPE=vif", "XENBUS_PATH=backend/vif/7/0", "XENBUS_BASE_PATH=backend"];
        let run = ScriptRun::vif("s", Action::Add, 7, 0, "eth0");
        assert_eq!(run.args, ["online", "type_if=vif"]);
        assert_eq!(env(&run)[..4], common);
        assert_eq!(env(&run)[4..], ["netdev=eth0", "vif=vif7.0"]);
        assert_eq!(ScriptRun::vif("s", Action::Remove, 7, 0, "").args, ["offline", "type_if=vif"]);

        let run = ScriptRun::vif_ioemu("s", Action::Remove, 7, 0, "");
        assert_eq!(run.args, ["offline", "type_if=vif"]);
        assert_eq!(env(&run)[4..], ["netdev=", "vif=vif7.0", "INTERFACE=vif7.0-emu"]);

        let tap = ScriptRun::tap("s", Action::Remove, 7, 0, "");
        assert_eq!(tap.args, ["remove", "type_if=tap"]);
        assert_eq!(tap.env, run.env);
        assert_eq!(ScriptRun::tap("s", Action::Add, 7, 0, "").args, ["add", "type_if=tap"]);
    }
}
