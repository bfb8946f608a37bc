//! `vif-openvswitch`: the interface becomes a port of a switch of Open vSwitch, by `ovs-vsctl`.
//!
//! A port is a row of Open vSwitch's database, and no property of the interface: it stays when the interface goes. So a
//! remove takes the port away by the interface's name, whether the interface is there or not.

use std::fmt::Write as _;
use std::time::Duration;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::LinkAttribute;

use super::bridge::{DUMMY, recorded};
use super::error::VifError;
use super::interface::Names;
use super::session::{SEE_LOG, Session};
use super::{Outcome, Request};
use crate::native::ToolError;
use crate::native::tool::{Call, Tool};
use crate::{Ending, LINE_SHOWN, Output, printable};

const OVS_VSCTL: Tool = Tool { name: "ovs-vsctl", install: "apt-get install openvswitch-switch" };

/// How long the tool itself waits for the daemon, as the script has it wait.
const WAIT: Duration = Duration::from_secs(30);

/// The recorded keys that say which virtual machine has the interface, and the ids by which Open vSwitch's port tells.
/// The caller adds the first two to a request: the script reads them from the guest's directory in `/vm`.
const IDS: [(&str, &str); 3] =
    [(super::VM_NAME, "xen-vm-name"), (super::VM_UUID, "xen-vm-uuid"), ("mac", "attached-mac")];

/// What the tool says of a port that it has made and that does not work. It exits with 0 all the same.
const BROKEN: &str = "Error detected while setting up";

/// The largest number of a VLAN that Open vSwitch takes.
const VLAN_MAX: u16 = 4095;

const SEE_DAEMON: &str = "See whether Open vSwitch runs (systemctl status openvswitch-switch) and what its log tells \
                          (/var/log/openvswitch/ovs-vswitchd.log)";

/// Where the interface is to be: `ovsbr0.5:10:20` is the switch `ovsbr0`, the tag 5, and the trunks 10 and 20.
#[derive(Debug, PartialEq, Eq)]
struct Place<'a> {
    bridge: &'a str,
    tag: Option<&'a str>,
    /// With commas between them.
    trunks: Option<String>,
}

impl<'a> Place<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let is_number = |text: &str| {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            digits && text.parse().is_ok_and(|vlan: u16| vlan <= VLAN_MAX)
        };
        let (port, trunks) = match text.split_once(':') {
            Some((port, trunks)) => (port, Some(trunks)),
            None => (text, None),
        };
        let (bridge, tag) = match port.split_once('.') {
            Some((bridge, tag)) => (bridge, Some(tag)),
            None => (port, None),
        };
        let is_good = !bridge.is_empty()
            && tag.is_none_or(is_number)
            && trunks.is_none_or(|trunks| trunks.split(':').all(is_number));
        is_good.then(|| Self { bridge, tag, trunks: trunks.map(|trunks| trunks.replace(':', ",")) })
    }
}

/// Puts the interface on its switch.
pub(super) fn add(session: &mut Session<'_>, request: &Request, names: &Names) -> Result<Outcome, VifError> {
    let interface = || names.last().to_owned();
    // Before anything is changed.
    let bridges = bridges(session)?;
    let Some(text) = recorded(request) else {
        return Err(VifError::NoDefaultBridge { interface: interface(), bridges });
    };
    let place = Place::parse(text).ok_or_else(|| VifError::Invalid {
        key: "bridge",
        value: text.to_owned(),
        expected: "a switch of Open vSwitch, perhaps with a VLAN as its tag (ovsbr0.5) and others as its trunks \
                   (ovsbr0:10:20, ovsbr0.5:10:20), each at most 4095",
    })?;
    if !bridges.iter().any(|bridge| bridge == place.bridge) {
        let bridge = place.bridge.to_owned();
        return Err(VifError::SwitchMissing { interface: interface(), bridge, bridges });
    }
    let link = names.wait(session)?;
    let link = names.give(session, link)?;
    let mut outcome = Outcome::new(&link.name);

    session.take_down(&link)?;
    let step = format_args!("give {} the address fe:ff:ff:ff:ff:ff", link.name);
    let set = session.change((step, SEE_LOG), &link, LinkAttribute::Address(DUMMY.to_vec()));
    outcome.tolerate(set)?;
    let addresses = session.addresses(&link, AddressFamily::Unspec)?;
    session.remove_addresses(&link, addresses)?;

    let added = put_on(session, request, &link.name, &place).and_then(|()| session.bring_up(&link));
    if let Err(error) = added {
        // The daemon may have done what the tool did not see the end of. One that does not run is not waited for.
        let undo = call(["--timeout=5", "--no-wait", "--if-exists", "del-port", &link.name]);
        if let Err(left) = session.undo(&undo) {
            tracing::debug!(%left, interface = link.name, "the port may be left");
        }
        return Err(error);
    }
    Ok(outcome)
}

/// Takes the interface off its switch, as far as it is there.
pub(super) fn remove(session: &mut Session<'_>, _: &Request, names: &Names) -> Result<Outcome, VifError> {
    let link = names.find(session)?;
    let ports: Vec<String> = match &link {
        Some(link) => vec![link.name.clone()],
        // What has one of its names is another's: its port as well.
        None => names.free(session)?,
    };
    let mut args = vec![timeout(session)];
    args.extend(ports.iter().flat_map(|port| ["--", "--if-exists", "del-port", port].map(str::to_owned)));
    let deleted = if ports.is_empty() { Ok(()) } else { session.call(&call(args)).map(drop) };
    if let Some(link) = link {
        session.take_down(&link)?;
    }
    let step = || format!("take {} off its switch", names.last());
    deleted.map_err(|error| VifError::Tool { step: step(), error, fix: PORT_STAYS })?;
    Ok(Outcome::new(names.last()))
}

const PORT_STAYS: &str = "Its port stays in the database of Open vSwitch: when that runs again, remove it with ovs-vsctl \
                          --if-exists del-port";

/// Makes the interface a port.
fn put_on(
    session: &Session<'_>,
    request: &Request,
    interface: &str,
    place: &Place<'_>,
) -> Result<(), VifError> {
    let mut args: Vec<String> = vec![timeout(session)];
    args.extend(["--", "--if-exists", "del-port", interface].map(str::to_owned));
    args.extend(["--", "add-port", place.bridge, interface].map(str::to_owned));
    args.extend(place.tag.map(|tag| format!("tag={tag}")));
    args.extend(place.trunks.as_ref().map(|trunks| format!("trunks={trunks}")));
    for (key, id) in IDS {
        if let Some(value) = request.recorded.get(key) {
            args.extend(["--", "set", "interface", interface].map(str::to_owned));
            args.push(format!("external-ids:\"{id}\"={}", quoted(value)));
        }
    }
    let call = call(args);
    let added = session.call(&call).and_then(|output| broken(&call, &output));
    added.map_err(|error| VifError::Tool {
        step: format!("put {interface} on {}", place.bridge),
        error,
        fix: SEE_DAEMON,
    })
}

/// Whether the tool has told of a port that does not work.
fn broken(call: &Call, output: &Output) -> Result<(), ToolError> {
    let text = output.text();
    let Some(line) = text.lines().find(|line| line.contains(BROKEN)) else { return Ok(()) };
    let said = Some(printable(line.trim(), LINE_SHOWN));
    Err(ToolError::Failed { call: call.to_string(), ending: Ending::Exited(0), said })
}

/// The switches that there are.
fn bridges(session: &Session<'_>) -> Result<Vec<String>, VifError> {
    let listed = session.call(&call([timeout(session), "list-br".to_owned()]));
    let listed = listed.map_err(|error| {
        let step = "list the switches of Open vSwitch".to_owned();
        VifError::Tool { step, error, fix: SEE_DAEMON }
    })?;
    Ok(listed.text().lines().map(|line| printable(line.trim(), LINE_SHOWN)).collect())
}

fn call<A: Into<String>>(args: impl IntoIterator<Item = A>) -> Call {
    Call::new(&OVS_VSCTL, args)
}

fn timeout(session: &Session<'_>) -> String {
    // Where the run ends before, its end is what ends the tool. 0 would be for ever.
    let left = session.left(WAIT);
    let seconds = if left < WAIT { left.as_secs() + 1 } else { WAIT.as_secs() };
    format!("--timeout={seconds}")
}

/// A text as the tool reads it: a string of JSON.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            // Writing to a String cannot fail.
            control if control.is_control() => _ = write!(quoted, "\\u{:04x}", u32::from(control)),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_as_the_script_reads_it() {
        let place =
            |text| Place::parse(text).map(|place| (place.bridge, place.tag.unwrap_or("-"), place.trunks));
        let trunks = |text: &str| Some(text.to_owned());
        assert_eq!(place("ovsbr0"), Some(("ovsbr0", "-", None)));
        assert_eq!(place("ovsbr0.5"), Some(("ovsbr0", "5", None)));
        assert_eq!(place("ovsbr0:10"), Some(("ovsbr0", "-", trunks("10"))));
        assert_eq!(place("ovs-br_0.5:10:20"), Some(("ovs-br_0", "5", trunks("10,20"))));
        for bad in
            ["", ".5", ":5", "br.", "br:", "br.5.6", "br.x", "br:5:", "br:5.6", "br::5", "br.+5", "br.4096"]
        {
            assert_eq!(place(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_name_is_no_part_of_the_grammar() {
        assert_eq!(quoted("web"), r#""web""#);
        assert_eq!(quoted("a \"b\", c=d\\\n"), r#""a \"b\", c=d\\\u000a""#);
    }

    #[test]
    fn a_port_that_does_not_work_is_a_failure() {
        let call = call(["add-port", "ovsbr0", "vif1.0"]);
        let said = "ovs-vsctl: Error detected while setting up 'vif1.0': could not open network device vif1.0 \
                    (No such device).  See ovs-vswitchd log at \"/var/log/openvswitch\".\n";
        let error = broken(&call, &Output::from(said)).unwrap_err().to_string();
        assert!(error.contains("(No such device)"), "{error}");
        assert_eq!(broken(&call, &Output::from("")), Ok(()));
    }
}
