//! The cases, and what is different in them.

use hotplug::native::vif::Script;
use hotplug::{Action, Kind};

/// A step of a course.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// The script is run, or the handler called; whether the handler succeeds.
    Run(Kind, Action, bool),
    /// `ip` is run with these words: something else happens on the host.
    Ip(&'static str),
}

/// A host, and what happens on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) script: Script,
    /// Commands of `ip` that make the host.
    pub(super) setup: &'static [&'static str],
    /// Keys of the backend.
    pub(super) keys: &'static [(&'static str, &'static str)],
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

/// A place, and why it is different there.
type Difference = (&'static str, &'static str);

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
    Case { name, script: Script::Bridge, setup, keys: &[BRIDGE], steps: &[], differences: &[] }
}

const ROUTED: &[&str] =
    &[ETH0, "address add 10.0.0.1/24 dev eth0", "address add 10.0.0.100/24 dev eth0", ETH0_UP];

const fn route(name: &'static str, setup: &'static [&'static str]) -> Case {
    Case { name, script: Script::Route, setup, keys: &[], steps: &[], differences: &[] }
}

const fn nat(name: &'static str) -> Case {
    Case { name, script: Script::Nat, setup: &[], keys: &[], steps: &[], differences: &[] }
}

/// A run that ends well.
const fn well(kind: Kind, action: Action) -> Step {
    Step::Run(kind, action, true)
}

/// A run of the handler that fails.
const fn badly(kind: Kind, action: Action) -> Step {
    Step::Run(kind, action, false)
}

const ONLINE: Step = well(Kind::Vif, Action::Add);
const OFFLINE: Step = well(Kind::Vif, Action::Remove);
const ONLINE_FAILS: Step = badly(Kind::Vif, Action::Add);

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
];
