//! The contract between a Linux toolstack and its hotplug scripts: the arguments and the variables that
//! a script is given for a [`Request`].
//!
//! | device | kind | arguments | variables |
//! | --- | --- | --- | --- |
//! | disk | `Vbd`, `Vbd3` | `add` or `remove` | |
//! | NIC | `Vif` | `online` or `offline`, `type_if=vif` | `netdev`, `vif` |
//! | NIC with an emulated twin, run 0 | `VifIoemu` | `online` or `offline`, `type_if=vif` | `netdev`, `vif`, `INTERFACE` |
//! | NIC with an emulated twin, run 1 | `Tap` | `add` or `remove`, `type_if=tap` | `netdev`, `vif`, `INTERFACE` |
//!
//! Besides, every script gets `script`, `XENBUS_TYPE`, `XENBUS_PATH` and `XENBUS_BASE_PATH`.

use crate::{Action, Kind, Request};

impl Request {
    /// The arguments of the script, without the program's name.
    ///
    /// The stock vif scripts evaluate an argument `a=b` as shell code. Therefore arguments are constant
    /// strings; whatever comes from a configuration is in a variable.
    pub fn args(&self) -> Vec<&'static str> {
        let (add, online) = match self.action {
            Action::Add => ("add", "online"),
            Action::Remove => ("remove", "offline"),
        };
        match self.kind {
            Kind::Vbd | Kind::Vbd3 => vec![add],
            Kind::Vif | Kind::VifIoemu => vec![online, "type_if=vif"],
            Kind::Tap => vec![add, "type_if=tap"],
        }
    }

    /// The variables of the script. They win over those of the same name from elsewhere.
    ///
    /// `XENBUS_PATH` is relative to the store's home of the domain that runs the script, and absolute if
    /// it is a copy. `netdev` is the device that `vif-route` and `vif-nat` take their address from, the
    /// recorded `gatewaydev`; it is empty if none is recorded.
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        let directory = self.copy.clone().unwrap_or_else(|| self.relative());
        let mut variables = vec![
            ("script", self.script.to_string_lossy().into_owned()),
            ("XENBUS_TYPE", self.kind.backend().to_owned()),
            ("XENBUS_PATH", directory),
            ("XENBUS_BASE_PATH", "backend".to_owned()),
        ];
        let interface = format!("vif{}.{}", self.fe, self.devid);
        if matches!(self.kind, Kind::Vif | Kind::VifIoemu | Kind::Tap) {
            variables.push(("netdev", self.recorded.get("gatewaydev").cloned().unwrap_or_default()));
            variables.push(("vif", interface.clone()));
        }
        if matches!(self.kind, Kind::VifIoemu | Kind::Tap) {
            variables.push(("INTERFACE", format!("{interface}-emu")));
        }
        variables
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(request: &Request) -> Vec<String> {
        request.variables().iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    #[test]
    fn disks() {
        let request = Request::new(Kind::Vbd, Action::Add, 1, 51712, "/etc/xen/scripts/block");
        assert_eq!(request.to_string(), "/etc/xen/scripts/block add");
        assert_eq!(
            env(&request),
            [
                "script=/etc/xen/scripts/block",
                "XENBUS_TYPE=vbd",
                "XENBUS_PATH=backend/vbd/1/51712",
                "XENBUS_BASE_PATH=backend",
            ]
        );
        let request = Request::new(Kind::Vbd3, Action::Remove, 1, 51712, "/etc/xen/scripts/block-tap");
        assert_eq!(request.args(), ["remove"]);
        assert_eq!(env(&request)[1..3], ["XENBUS_TYPE=vbd3", "XENBUS_PATH=backend/vbd3/1/51712"]);
    }

    #[test]
    fn nics() {
        let common =
            ["script=s", "XENBUS_TYPE=vif", "XENBUS_PATH=backend/vif/7/0", "XENBUS_BASE_PATH=backend"];
        let request = |kind, action| Request::new(kind, action, 7, 0, "s");
        let vif = request(Kind::Vif, Action::Add).recorded("gatewaydev", "eth0").recorded("bridge", "br0");
        assert_eq!(vif.args(), ["online", "type_if=vif"]);
        assert_eq!(env(&vif)[..4], common);
        assert_eq!(env(&vif)[4..], ["netdev=eth0", "vif=vif7.0"]);
        assert_eq!(request(Kind::Vif, Action::Remove).args(), ["offline", "type_if=vif"]);

        let run0 = request(Kind::VifIoemu, Action::Remove);
        assert_eq!(run0.args(), ["offline", "type_if=vif"]);
        assert_eq!(env(&run0)[4..], ["netdev=", "vif=vif7.0", "INTERFACE=vif7.0-emu"]);

        let run1 = request(Kind::Tap, Action::Remove);
        assert_eq!(run1.args(), ["remove", "type_if=tap"]);
        assert_eq!(env(&run1), env(&run0));
        assert_eq!(request(Kind::Tap, Action::Add).args(), ["add", "type_if=tap"]);
    }

    #[test]
    fn a_copy_takes_the_place_of_the_backend() {
        let request = Request::new(Kind::Vbd, Action::Remove, 1, 51712, "s").own(3);
        assert_eq!(request.backend(), "/local/domain/3/backend/vbd/1/51712");
        assert_eq!(request.directory(), request.backend());
        let request = request.copy("/libxl/1/copy");
        assert_eq!(request.backend(), "/local/domain/3/backend/vbd/1/51712");
        assert_eq!(request.directory(), "/libxl/1/copy");
        assert_eq!(env(&request)[2], "XENBUS_PATH=/libxl/1/copy");
    }

    #[test]
    fn requests_as_json() {
        let request = Request::new(Kind::VifIoemu, Action::Add, 1, 0, "/s").recorded("bridge", "br0");
        assert_eq!(
            serde_json::to_string(&request).unwrap(),
            r#"{"action":"add","kind":"vif_ioemu","fe":1,"devid":0,"own":0,"script":"/s","copy":null,"recorded":{"bridge":"br0"}}"#
        );
    }
}
