//! The cases, and what is different in them.

use crate::beside::Difference;
use xen_hotplug::native::vif::Script;
use xen_hotplug::{Action, Kind};

/// A step of a course.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// The script is run, or the handler called; whether the handler succeeds.
    Run(Kind, Action, bool),
    /// `ip` is run with these words: something else happens on the host.
    Ip(&'static str),
    /// `ovs-vsctl` is run with these words.
    Vsctl(&'static str),
    /// Open vSwitch ends.
    NoSwitch,
}

/// A host, and what happens on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) script: Script,
    /// Commands of `ip` that make the host.
    pub(super) setup: &'static [&'static str],
    /// Commands of `ovs-vsctl` that make switches; none, and Open vSwitch does not run.
    pub(super) switch: &'static [&'static str],
    /// Keys of the backend.
    pub(super) keys: &'static [(&'static str, &'static str)],
    /// The guest's name and UUID in `/vm`, if it has such a directory.
    pub(super) vm: Option<(&'static str, &'static str)>,
    pub(super) steps: &'static [Step],
    /// What is different: the number of the step and the beginning of a path in it, and why.
    pub(super) differences: &'static [Difference],
}

const BR0: &str = "link add br0 address 02:00:00:00:01:00 type bridge forward_delay 0";
const BR0_UP: &str = "link set br0 up";
const BR1: &str = "link add br1 address 02:00:00:00:01:01 type bridge forward_delay 0";
const ETH0: &str =
    "link add eth0 address 02:00:00:00:02:00 type veth peer name port0 address 02:00:00:00:02:02";
const ETH0_UP: &str = "link set eth0 up";
const ETH0_ON_BR0: &str = "link set eth0 master br0";
const ETH1: &str =
    "link add eth1 address 02:00:00:00:02:01 type veth peer name port1 address 02:00:00:00:02:03";

const BRIDGE: (&str, &str) = ("bridge", "br0");

const STRAY: &str = "the script takes the new name for one that says domid and device id";
const RENAMED: &str = "the script renames the interface before it looks whether the rest can be done";
const LATE: &str = "the script notices in the midst of its work";
const LEFT: &str = "the script leaves the interface as it is, since it fails";
const FOREIGN: &str = "the script takes down another guest's interface";
const SAME: &str = "the script takes the name for another's";
const NO_PORT: &str = "the script looks for bridges among ports";
const PORTS: &str = "the script takes a list of ports for the name of a bridge";

const fn text(place: &'static str) -> Difference {
    (place, "the script says only that it failed, where it gave up, or nothing")
}

const TEXT_0: Difference = text("0/store/0/backend/vif/1/0/hotplug-error");
const TEXT_1: Difference = text("1/store/0/backend/vif/1/0/hotplug-error");
const TEXTS: &[Difference] = &[TEXT_0, TEXT_1];

const fn bridge(name: &'static str, setup: &'static [&'static str]) -> Case {
    Case { script: Script::Bridge, setup, keys: &[BRIDGE], ..nat(name) }
}

const ROUTED: &[&str] =
    &[ETH0, "address add 10.0.0.1/24 dev eth0", "address add 10.0.0.100/24 dev eth0", ETH0_UP];

const fn route(name: &'static str, setup: &'static [&'static str]) -> Case {
    Case { script: Script::Route, setup, ..nat(name) }
}

const fn nat(name: &'static str) -> Case {
    Case {
        name,
        script: Script::Nat,
        setup: &[],
        switch: &[],
        keys: &[],
        vm: None,
        steps: &[],
        differences: &[],
    }
}

const OVSBR0: &str = "add-br ovsbr0 -- set bridge ovsbr0 datapath_type=netdev";
const OVSBR1: &str = "add-br ovsbr1 -- set bridge ovsbr1 datapath_type=netdev";
const MAC: (&str, &str) = ("mac", "00:16:3e:00:00:01");
const ON_OVSBR0: &[(&str, &str)] = &[("bridge", "ovsbr0"), MAC];

const fn switched(name: &'static str) -> Case {
    let vm = Some(("web", "11111111-2222-3333-4444-555555555555"));
    Case { script: Script::OpenVswitch, switch: &[OVSBR0, OVSBR1], keys: ON_OVSBR0, vm, ..nat(name) }
}

/// A run that ends well.
const fn well(kind: Kind, action: Action) -> Step {
    Step::Run(kind, action, true)
}

/// A run of the handler that fails.
const fn badly(kind: Kind, action: Action) -> Step {
    Step::Run(kind, action, false)
}

const SPLIT: &str = "the script splits the guest's name into arguments";
const NO_ID: &str = "the script writes an empty id, and an error beside connected";
const SILENT: &str = "the script does not say that it has done nothing";

const ONLINE: Step = well(Kind::Vif, Action::Add);
const OFFLINE: Step = well(Kind::Vif, Action::Remove);
const ONLINE_FAILS: Step = badly(Kind::Vif, Action::Add);
const OFFLINE_FAILS: Step = badly(Kind::Vif, Action::Remove);

pub(super) const CASES: &[Case] = &[
    Case { steps: &[ONLINE, OFFLINE, OFFLINE], ..bridge("bridge/plain", &[BR0, BR0_UP]) },
    Case { steps: &[ONLINE, ONLINE, OFFLINE], ..bridge("bridge/twice", &[BR0, BR0_UP]) },
    Case {
        keys: &[BRIDGE, ("vifname", "web")],
        steps: &[ONLINE, OFFLINE, OFFLINE],
        differences: &[("0/store/web", STRAY), ("1/store/web", STRAY), ("2/store/web", STRAY)],
        ..bridge("bridge/vifname", &[BR0, BR0_UP])
    },
    Case {
        keys: &[BRIDGE, ("vifname", "vif1.0")],
        steps: &[ONLINE, OFFLINE],
        differences: &[("0/", SAME), ("1/", SAME)],
        ..bridge("bridge/vifname/same", &[BR0, BR0_UP])
    },
    Case {
        keys: &[BRIDGE, ("vifname", "web")],
        steps: &[ONLINE_FAILS, OFFLINE],
        differences: &[TEXT_0, ("1/ports/web", FOREIGN), ("1/links/web/flags", FOREIGN), ("1/", FOREIGN)],
        ..bridge(
            "bridge/vifname/taken",
            &[BR0, BR0_UP, "link set vif1.0-emu name web", "link set web master br0", "link set web up"],
        )
    },
    Case {
        keys: &[BRIDGE, ("vifname", "a-name-of-16-chr")],
        steps: &[ONLINE_FAILS, OFFLINE],
        differences: TEXTS,
        ..bridge("bridge/vifname/long", &[BR0, BR0_UP])
    },
    Case {
        keys: &[BRIDGE, ("mtu", "1400")],
        steps: &[ONLINE, OFFLINE],
        ..bridge("bridge/mtu", &[BR0, BR0_UP])
    },
    Case {
        keys: &[BRIDGE, ("mtu", "100000")],
        steps: &[ONLINE, OFFLINE],
        differences: &[
            (
                "0/store/1/device/vif/0/mtu",
                "the script tells the guest of an MTU that the interface does not have",
            ),
            ("1/store/1/device/vif/0/mtu", "likewise"),
        ],
        ..bridge("bridge/mtu/refused", &[BR0, BR0_UP])
    },
    Case { keys: &[BRIDGE, ("mtu", "large")], steps: &[ONLINE], ..bridge("bridge/mtu/text", &[BR0, BR0_UP]) },
    Case { steps: &[ONLINE, OFFLINE], ..bridge("bridge/mtu/of-bridge", &[BR0, "link set br0 mtu 1450 up"]) },
    Case {
        keys: &[BRIDGE, ("ip", "10.0.0.2 10.0.0.3")],
        steps: &[ONLINE, OFFLINE],
        ..bridge("bridge/ip", &[BR0, BR0_UP])
    },
    Case {
        steps: &[ONLINE, OFFLINE],
        ..bridge(
            "bridge/addresses",
            &[
                BR0,
                BR0_UP,
                "link set vif1.0 up",
                "address add 10.0.0.1/24 dev vif1.0",
                "address add 10.0.0.2/24 dev vif1.0",
                "address add fd00::1/64 dev vif1.0",
            ],
        )
    },
    Case {
        keys: &[("bridge", "nobr")],
        steps: &[ONLINE_FAILS, OFFLINE],
        differences: &[TEXT_0, TEXT_1, ("1/ended", LEFT)],
        ..bridge("bridge/missing", &[BR0])
    },
    Case {
        keys: &[("bridge", "nobr"), ("vifname", "web")],
        steps: &[ONLINE_FAILS, OFFLINE],
        differences: &[
            TEXT_0,
            ("0/links/vif1.0/", RENAMED),
            ("0/", RENAMED),
            ("1/ended", LEFT),
            ("1/", LEFT),
        ],
        ..bridge("bridge/missing/vifname", &[BR0])
    },
    Case {
        steps: &[ONLINE, Step::Ip("link delete br0"), OFFLINE],
        differences: &[("2/ended", LEFT), ("2/links/vif1.0/flags", LEFT), ("2/", LEFT)],
        ..bridge("bridge/missing/later", &[BR0, BR0_UP])
    },
    Case {
        keys: &[("bridge", "")],
        steps: &[ONLINE, OFFLINE],
        differences: &[("1/ended", PORTS), ("1/ports/vif1.0", PORTS), ("1/", PORTS)],
        ..bridge("bridge/default", &[BR0, BR1, BR0_UP, ETH0, ETH0_ON_BR0])
    },
    Case {
        keys: &[],
        steps: &[ONLINE],
        ..bridge("bridge/default/unrecorded", &[BR0, BR0_UP, ETH0, ETH0_ON_BR0])
    },
    Case {
        keys: &[],
        steps: &[ONLINE],
        differences: &[("0/ended", NO_PORT), ("0/ports/vif1.0", NO_PORT), ("0/", NO_PORT)],
        ..bridge("bridge/default/no-port", &[BR0, BR0_UP])
    },
    Case { keys: &[], steps: &[ONLINE_FAILS], differences: &[TEXT_0], ..bridge("bridge/default/none", &[]) },
    Case {
        keys: &[],
        steps: &[ONLINE],
        differences: &[("0/ended", PORTS), ("0/ports/vif1.0", PORTS), ("0/", PORTS)],
        ..bridge("bridge/default/ports", &[BR0, BR0_UP, ETH0, ETH0_ON_BR0, ETH1, "link set eth1 master br0"])
    },
    Case {
        keys: &[],
        steps: &[ONLINE_FAILS],
        differences: &[TEXT_0],
        ..bridge("bridge/default/several", &[BR0, BR1, ETH0, ETH0_ON_BR0, ETH1, "link set eth1 master br1"])
    },
    Case {
        keys: &[("bridge", "xenbr0")],
        steps: &[ONLINE, OFFLINE],
        ..bridge("bridge/old-name", &["link add eth0 address 02:00:00:00:01:00 type bridge forward_delay 0"])
    },
    Case {
        steps: &[ONLINE_FAILS, OFFLINE],
        differences: &[
            text("0/store/0/backend/vif/1/0/hotplug-"),
            text("1/store/0/backend/vif/1/0/hotplug-"),
            ("0/", LATE),
            ("1/", LATE),
        ],
        ..bridge("bridge/no-bridge", &["link set vif1.0-emu name br0"])
    },
    Case {
        steps: &[ONLINE, OFFLINE],
        ..bridge("bridge/moved", &[BR0, BR0_UP, BR1, "link set vif1.0 master br1"])
    },
    Case {
        steps: &[ONLINE, Step::Ip("link set vif1.0 master br1"), OFFLINE],
        ..bridge("bridge/moved/later", &[BR0, BR0_UP, BR1])
    },
    Case {
        steps: &[ONLINE, Step::Ip("link delete vif1.0"), OFFLINE],
        ..bridge("bridge/gone", &[BR0, BR0_UP])
    },
    Case {
        steps: &[Step::Ip("link delete vif1.0"), ONLINE_FAILS, OFFLINE],
        differences: &[
            text("1/store/0/backend/vif/1/0/hotplug-"),
            text("2/store/0/backend/vif/1/0/hotplug-"),
        ],
        ..bridge("bridge/absent", &[BR0, BR0_UP])
    },
    Case {
        steps: &[
            well(Kind::VifIoemu, Action::Add),
            well(Kind::Tap, Action::Add),
            well(Kind::Tap, Action::Remove),
            well(Kind::VifIoemu, Action::Remove),
        ],
        keys: &[BRIDGE, ("mtu", "1400")],
        ..bridge("bridge/twin", &[BR0, BR0_UP])
    },
    Case {
        steps: &[well(Kind::Tap, Action::Add), well(Kind::Tap, Action::Remove)],
        keys: &[BRIDGE, ("vifname", "web")],
        ..bridge("bridge/twin/vifname", &[BR0, BR0_UP])
    },
    Case { steps: &[ONLINE, OFFLINE], ..route("route/plain", ROUTED) },
    Case {
        keys: &[("ip", "10.0.0.2 10.2.0.0/16")],
        steps: &[ONLINE, OFFLINE, OFFLINE],
        ..route("route/ip", ROUTED)
    },
    Case {
        keys: &[("ip", "10.0.0.2"), ("gatewaydev", "eth1"), ("vifname", "web")],
        steps: &[ONLINE, OFFLINE],
        ..route("route/gatewaydev", &[ETH1, "address add 192.168.7.1/24 dev eth1", "link set eth1 up"])
    },
    Case {
        keys: &[("ip", "10.0.0.2")],
        steps: &[ONLINE],
        ..route(
            "route/addresses",
            &[ETH0, "address add 172.20.0.1/24 dev eth0", "address add 10.9.9.9/24 dev vif1.0"],
        )
    },
    Case {
        keys: &[("ip", "10.0.0.2"), ("vifname", "web")],
        steps: &[ONLINE_FAILS, OFFLINE],
        differences: &[
            TEXT_0,
            ("0/links/vif1.0/", RENAMED),
            ("0/", RENAMED),
            ("1/ended", LEFT),
            ("1/", LEFT),
        ],
        ..route("route/no-address", &[ETH0])
    },
    Case {
        keys: &[("ip", "10.0.0.2 fd00::2")],
        steps: &[ONLINE_FAILS, OFFLINE],
        differences: &[TEXT_0, TEXT_1, ("0/", LATE), ("1/", LATE)],
        ..route("route/ipv6", ROUTED)
    },
    Case {
        keys: &[("ip", "10.3.0.1/24")],
        steps: &[ONLINE_FAILS, OFFLINE],
        differences: &[TEXT_0, TEXT_1, ("0/", LATE), ("1/", LATE)],
        ..route("route/host-bits", ROUTED)
    },
    Case {
        keys: &[("ip", "10.0.0.2")],
        steps: &[ONLINE_FAILS, OFFLINE],
        differences: TEXTS,
        ..route(
            "route/taken",
            &[ETH0, "address add 10.0.0.1/24 dev eth0", ETH0_UP, "route add 10.0.0.2 dev eth0 metric 2"],
        )
    },
    Case {
        keys: &[("ip", "10.0.0.2")],
        steps: &[ONLINE, Step::Ip("link delete vif1.0"), OFFLINE],
        ..route("route/gone", ROUTED)
    },
    Case {
        keys: &[("ip", "10.0.0.2")],
        steps: &[
            well(Kind::VifIoemu, Action::Add),
            well(Kind::Tap, Action::Add),
            well(Kind::Tap, Action::Remove),
            well(Kind::VifIoemu, Action::Remove),
        ],
        ..route("route/twin", ROUTED)
    },
    Case { steps: &[ONLINE, OFFLINE, OFFLINE], ..nat("nat/plain") },
    Case {
        keys: &[("ip", "192.168.1.5/24"), ("vifname", "web")],
        steps: &[ONLINE, OFFLINE],
        ..nat("nat/ip")
    },
    Case {
        keys: &[("ip", "192.168.1.200")],
        steps: &[ONLINE_FAILS, OFFLINE],
        differences: &[TEXT_0, TEXT_1, ("0/", LATE), ("1/", LATE)],
        ..nat("nat/ip/large")
    },
    Case { steps: &[ONLINE, ONLINE], ..nat("nat/twice") },
    Case { steps: &[ONLINE, Step::Ip("link delete vif1.0"), OFFLINE], ..nat("nat/gone") },
    Case {
        keys: &[("vifname", "web")],
        steps: &[
            well(Kind::VifIoemu, Action::Add),
            well(Kind::Tap, Action::Add),
            well(Kind::Tap, Action::Remove),
            well(Kind::VifIoemu, Action::Remove),
        ],
        ..nat("nat/twin")
    },
    Case { steps: &[ONLINE, OFFLINE, OFFLINE], ..switched("switch/plain") },
    Case { steps: &[ONLINE, ONLINE, OFFLINE], ..switched("switch/twice") },
    Case { keys: &[("bridge", "ovsbr0.5"), MAC], steps: &[ONLINE, OFFLINE], ..switched("switch/tag") },
    Case { keys: &[("bridge", "ovsbr0:10:20"), MAC], steps: &[ONLINE, OFFLINE], ..switched("switch/trunks") },
    Case {
        keys: &[("bridge", "ovsbr1.5:10"), MAC, ("mtu", "1400")],
        steps: &[ONLINE, OFFLINE],
        ..switched("switch/tag/trunks")
    },
    Case {
        keys: &[("bridge", "ovsbr0"), MAC, ("vifname", "web")],
        steps: &[ONLINE, OFFLINE, OFFLINE],
        ..switched("switch/vifname")
    },
    Case {
        keys: &[("bridge", "ovsbr0"), MAC, ("vifname", "web")],
        setup: &["link set vif1.0-emu name web"],
        switch: &[OVSBR0, "add-port ovsbr0 web"],
        steps: &[ONLINE_FAILS, OFFLINE],
        differences: &[TEXT_0, ("1/switch/port/web/", FOREIGN), ("1/", FOREIGN)],
        ..switched("switch/vifname/taken")
    },
    Case {
        setup: &[
            "link set vif1.0 up",
            "address add 10.0.0.1/24 dev vif1.0",
            "address add fd00::1/64 dev vif1.0",
        ],
        steps: &[ONLINE],
        ..switched("switch/addresses")
    },
    Case {
        vm: Some(("my web, \"1\"", "11111111-2222-3333-4444-555555555555")),
        steps: &[ONLINE, OFFLINE],
        differences: &[("0/ended", SPLIT), ("0/switch/port/vif1.0/", SPLIT), ("0/", SPLIT), ("1/", SPLIT)],
        ..switched("switch/name")
    },
    Case {
        vm: None,
        steps: &[ONLINE, OFFLINE],
        differences: &[
            ("0/switch/interface/vif1.0/external_ids", NO_ID),
            ("0/store/0/backend/vif/1/0/hotplug-error", NO_ID),
            ("1/store/0/backend/vif/1/0/hotplug-error", NO_ID),
        ],
        ..switched("switch/name/none")
    },
    Case {
        keys: &[("bridge", "nobr"), MAC, ("vifname", "web")],
        steps: &[ONLINE_FAILS, OFFLINE],
        differences: &[TEXT_0, ("0/links/vif1.0/", RENAMED), ("0/", RENAMED), ("1/", RENAMED)],
        ..switched("switch/missing")
    },
    Case {
        keys: &[("bridge", "ovsbr0.5.6"), MAC],
        steps: &[ONLINE_FAILS, OFFLINE],
        differences: &[TEXT_0, TEXT_1, ("0/", LATE), ("1/", LATE)],
        ..switched("switch/grammar")
    },
    Case {
        keys: &[MAC],
        steps: &[ONLINE_FAILS],
        differences: &[TEXT_0, ("0/", LATE)],
        ..switched("switch/default")
    },
    Case {
        keys: &[("bridge", "ovsbr0.5000"), MAC],
        steps: &[ONLINE_FAILS, OFFLINE],
        differences: &[TEXT_0, TEXT_1, ("0/", LATE), ("1/", LATE)],
        ..switched("switch/tag/large")
    },
    Case {
        steps: &[ONLINE, Step::Vsctl("del-port vif1.0 -- add-port ovsbr1 vif1.0"), OFFLINE],
        ..switched("switch/moved")
    },
    Case { steps: &[ONLINE, Step::Ip("link delete vif1.0"), OFFLINE], ..switched("switch/gone") },
    Case {
        keys: &[("bridge", "ovsbr0"), MAC, ("vifname", "web")],
        steps: &[ONLINE, Step::Ip("link delete web"), OFFLINE],
        ..switched("switch/gone/vifname")
    },
    Case {
        steps: &[Step::Ip("link delete vif1.0"), ONLINE_FAILS],
        differences: &[text("1/store/0/backend/vif/1/0/hotplug-")],
        ..switched("switch/absent")
    },
    Case {
        steps: &[ONLINE, Step::NoSwitch, OFFLINE_FAILS],
        differences: &[("2/ended", SILENT), ("2/store/0/backend/vif/1/0/hotplug-", SILENT)],
        ..switched("switch/ended")
    },
    Case {
        steps: &[Step::NoSwitch, ONLINE_FAILS],
        differences: &[text("1/store/0/backend/vif/1/0/hotplug-error"), ("1/", LATE)],
        ..switched("switch/none")
    },
    Case {
        steps: &[
            well(Kind::VifIoemu, Action::Add),
            well(Kind::Tap, Action::Add),
            well(Kind::Tap, Action::Remove),
            well(Kind::VifIoemu, Action::Remove),
        ],
        ..switched("switch/twin")
    },
];
