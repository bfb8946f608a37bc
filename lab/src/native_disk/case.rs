//! The cases, and what is different in them.

use crate::beside::Difference;
use xen_hotplug::native::disk::Script;
use xen_hotplug::{Action, Kind};

/// A step of a course.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// The script is run, or the handler called; whether the handler succeeds.
    Run(Action, bool),
    /// An add that is cancelled when the tool has done its work and has not ended.
    Cancelled,
    /// A command of the shell: something else happens on the host.
    Sh(&'static str),
    /// The backend's directory goes; what follows has a copy.
    Gone,
}

impl Step {
    pub(super) fn is_add(self) -> bool {
        matches!(self, Self::Run(Action::Add, _) | Self::Cancelled)
    }
}

/// A host, and what happens on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) script: Script,
    pub(super) kind: Kind,
    pub(super) params: &'static str,
    pub(super) mode: &'static str,
    /// Tools that are not installed.
    pub(super) without: &'static [&'static str],
    /// Commands of the shell that make the host.
    pub(super) setup: &'static [&'static str],
    pub(super) steps: &'static [Step],
    /// Whether a failed add leaves something, and must say so.
    pub(super) leaves: bool,
    /// What is different: the number of the step and the beginning of a place in it, and why.
    pub(super) differences: &'static [Difference],
}

const TARGET: &str = "echo iqn.2001-05.com.example:disk1 > /run/lab/targets";
const SESSION: &str = "iscsiadm -m node --targetname iqn.2001-05.com.example:disk1 -p 10.0.0.1 --login";
const OTHER_SESSION: &str =
    "iscsiadm -m node --targetname iqn.2001-05.com.example:disk10 -p 10.0.0.1 --login";
const FORGET: &str = ": > /run/lab/acts; rm -f /run/lab/began";
const OTHER_GUEST: &str = "cd /run; b=/local/domain/0/backend/vbd/2/51712; xenstore-write $b/dev xvda $b/mode w $b/params \
                           iqn=iqn.2001-05.com.example:disk1,portal=10.0.0.1";

const NODE: &str = "the script does not write what it is about to make";
const TEXT: &str = "the script says less, or nothing";
const WAITS: &str = "the script waits until it is killed, and leaves what there is";
const LEAVES: &str = "the script leaves what it has made";
const FOREIGN: &str = "the script logs out who was logged in before";
const PART: &str = "the script takes a part of a name for the name";
const ASKS: &str = "the script tries all devices, also if the server does not answer";
const ONLY: &str = "the script takes what it is given as an argument";

const fn iscsi(name: &'static str) -> Case {
    Case {
        name,
        script: Script::Iscsi,
        kind: Kind::Vbd,
        params: "iqn=iqn.2001-05.com.example:disk1,portal=10.0.0.1",
        mode: "w",
        without: &[],
        setup: &[TARGET],
        steps: &[ADD, REMOVE],
        leaves: false,
        differences: &[],
    }
}

const DEVICES: &str = "for n in 0 1 2; do rm -f /dev/nbd$n; mknod /dev/nbd$n b 43 0; done";

const fn nbd(name: &'static str) -> Case {
    Case { script: Script::Nbd, params: "nas:10809", setup: &[DEVICES], ..iscsi(name) }
}

const VMS: &str = "xenstore-write /local/domain/1/vm /vm/one /local/domain/2/vm /vm/two";
const SAME_VM: &str = "xenstore-write /local/domain/2/vm /vm/one";
const THEIRS: &str = "tap-ctl allocate; tap-ctl spawn; tap-ctl attach -p 4711 -m 0; tap-ctl open -p 4711 -m 0 -a \
                      aio:/srv/d.img; : > /run/lab/acts; rm -f /run/lab/began";
const OTHER_WRITES: &str = "b=/local/domain/0/backend/vbd3/2/51712; xenstore-write $b/dev xvda $b/mode w $b/params \
                            aio:/srv/d.img";
const OTHER_READS: &str = "b=/local/domain/0/backend/vbd3/2/51712; xenstore-write $b/dev xvda $b/mode r $b/params \
                           aio:/srv/d.img";
const OTHER_BY_QEMU: &str = "b=/local/domain/0/backend/qdisk/2/51712; xenstore-write $b/dev xvda $b/mode w $b/params \
                             aio:/srv/d.img";

const CREATES: &str =
    "the script looks at other disks only if a tapdisk serves the image, and of its own kind alone";
const COUNTS: &str = "the script counts its own backend, which is gone";
const CUTS: &str = "the script cuts the file's name at a colon";

const fn tap(name: &'static str) -> Case {
    Case { script: Script::Tap, kind: Kind::Vbd3, params: "aio:/srv/d.img", setup: &[VMS], ..iscsi(name) }
}

const ADD: Step = Step::Run(Action::Add, true);
const ADD_FAILS: Step = Step::Run(Action::Add, false);
const REMOVE: Step = Step::Run(Action::Remove, true);
const REMOVE_FAILS: Step = Step::Run(Action::Remove, false);

/// After an add and a remove.
const NODES: &[Difference] = &[("0/keys/node", NODE), ("1/keys/node", NODE)];

/// After an add that failed in both, and a remove that has nothing to do.
const FAILED: &[Difference] =
    &[("0/keys/hotplug-error", TEXT), ("1/ended", WAITS), ("1/keys/hotplug-", TEXT)];

pub(super) const CASES: &[Case] = &[
    Case { differences: NODES, ..iscsi("iscsi/plain") },
    Case {
        params: "portal=10.0.0.1 lun=7,multipath=n,iqn=iqn.2001-05.com.example:disk1",
        differences: NODES,
        ..iscsi("iscsi/grammar")
    },
    Case {
        params: "iqn=iqn.2001-05.com.example:disk1",
        steps: &[ADD_FAILS],
        differences: &[("0/keys/hotplug-error", TEXT)],
        ..iscsi("iscsi/grammar/portal")
    },
    Case {
        params: "iqn=iqn.2001-05.com.example:disk1,portal=10.0.0.1,multipath=y",
        differences: NODES,
        ..iscsi("iscsi/multipath")
    },
    Case {
        params: "iqn=iqn.2001-05.com.example:disk1,portal=10.0.0.1,multipath=y",
        setup: &[TARGET, "touch /run/lab/late"],
        differences: &[
            ("0/ended", "the script does not wait for multipathd"),
            ("0/keys/", LEAVES),
            ("1/keys/", NODE),
        ],
        ..iscsi("iscsi/multipath/late")
    },
    Case {
        params: "iqn=iqn.2001-05.com.example:disk1,portal=10.0.0.1,multipath=y",
        without: &["multipath"],
        steps: &[ADD_FAILS],
        differences: &[("0/keys/hotplug-error", TEXT)],
        ..iscsi("iscsi/multipath/none")
    },
    Case {
        steps: &[ADD, REMOVE, REMOVE],
        differences: &[
            ("0/keys/node", NODE),
            ("1/keys/node", NODE),
            ("2/ended", WAITS),
            ("2/keys/node", NODE),
        ],
        ..iscsi("iscsi/again")
    },
    Case {
        steps: &[ADD, Step::Gone, REMOVE],
        differences: &[("0/keys/node", NODE), ("1/keys/node", NODE), ("2/keys/node", NODE)],
        ..iscsi("iscsi/gone")
    },
    Case {
        steps: &[ADD, Step::Sh(OTHER_GUEST), REMOVE],
        differences: &[
            ("0/keys/node", NODE),
            ("1/keys/node", NODE),
            ("2/keys/node", NODE),
            ("2/acts", FOREIGN),
            ("2/host/", FOREIGN),
        ],
        ..iscsi("iscsi/shared")
    },
    Case {
        setup: &[TARGET, SESSION, FORGET],
        steps: &[Step::Sh("true"), ADD_FAILS, REMOVE],
        differences: &[
            ("1/keys/hotplug-error", TEXT),
            ("2/keys/hotplug-error", TEXT),
            ("2/acts", FOREIGN),
            ("2/host/", FOREIGN),
        ],
        ..iscsi("iscsi/in-use")
    },
    Case {
        setup: &[
            "printf '%s\\n' iqn.2001-05.com.example:disk10 iqn.2001-05.com.example:disk1 > /run/lab/targets",
            OTHER_SESSION,
            FORGET,
        ],
        differences: &[("0/ended", PART), ("0/keys/", PART), ("0/", PART), ("1/ended", WAITS), ("1/", PART)],
        ..iscsi("iscsi/in-use/part")
    },
    Case {
        setup: &["echo iqn.2001-05.com.example:disk2 > /run/lab/targets"],
        steps: &[ADD_FAILS, REMOVE],
        differences: FAILED,
        ..iscsi("iscsi/no-target")
    },
    Case {
        setup: &["touch /run/lab/unreachable"],
        steps: &[ADD_FAILS],
        differences: &[("0/keys/hotplug-error", TEXT)],
        ..iscsi("iscsi/unreachable")
    },
    Case {
        setup: &[TARGET, "touch /run/lab/refused"],
        steps: &[Step::Sh("true"), ADD_FAILS],
        differences: &[
            ("1/keys/hotplug-error", TEXT),
            ("1/acts", "the handler sees to it that no session is left"),
        ],
        ..iscsi("iscsi/refused")
    },
    Case {
        setup: &[TARGET, "touch /run/lab/no-disk"],
        steps: &[Step::Sh("true"), ADD_FAILS],
        differences: &[("1/keys/hotplug-", WAITS), ("1/acts", WAITS), ("1/host/sessions", WAITS)],
        ..iscsi("iscsi/no-disk")
    },
    Case {
        setup: &[TARGET, "touch /run/lab/hangs"],
        steps: &[Step::Sh("true"), ADD_FAILS],
        differences: &[("1/keys/hotplug-", WAITS), ("1/acts", WAITS), ("1/host/", WAITS)],
        ..iscsi("iscsi/hangs")
    },
    Case {
        setup: &[TARGET, "touch /run/lab/hangs"],
        steps: &[Step::Sh("true"), Step::Cancelled],
        differences: &[("1/acts", LEAVES), ("1/host/", LEAVES)],
        ..iscsi("iscsi/cancelled")
    },
    Case {
        setup: &[TARGET, "touch /run/lab/hangs /run/lab/busy"],
        steps: &[Step::Sh("true"), ADD_FAILS, Step::Sh("rm /run/lab/busy"), REMOVE],
        leaves: true,
        differences: &[("1/keys/", WAITS), ("1/acts", WAITS), ("2/keys/", WAITS), ("3/keys/", WAITS)],
        ..iscsi("iscsi/hangs/left")
    },
    Case {
        steps: &[ADD, Step::Sh("touch /run/lab/busy"), REMOVE_FAILS],
        differences: &[
            ("0/keys/node", NODE),
            ("1/keys/node", NODE),
            ("2/keys/node", NODE),
            ("2/keys/hotplug-error", TEXT),
        ],
        ..iscsi("iscsi/busy")
    },
    Case {
        without: &["iscsiadm"],
        steps: &[ADD_FAILS],
        differences: &[("0/keys/hotplug-error", TEXT)],
        ..iscsi("iscsi/no-tool")
    },
    Case { differences: NODES, ..nbd("nbd/plain") },
    Case {
        params: "nas:10809/disk",
        mode: "r",
        differences: &[
            ("0/acts", "the script knows no exports, and no read-only disks"),
            ("0/keys/node", NODE),
            ("1/keys/node", NODE),
        ],
        ..nbd("nbd/export")
    },
    Case {
        setup: &[DEVICES, "nbd-client other 10809 /dev/nbd0; : > /run/lab/acts"],
        steps: &[Step::Sh("true"), ADD],
        differences: &[("1/acts", ASKS), ("1/keys/node", NODE)],
        ..nbd("nbd/second")
    },
    Case {
        setup: &[DEVICES, "touch /run/lab/race"],
        steps: &[ADD],
        differences: &[("0/keys/node", NODE)],
        ..nbd("nbd/race")
    },
    Case {
        steps: &[ADD, REMOVE, REMOVE],
        differences: &[
            ("0/keys/node", NODE),
            ("1/keys/node", NODE),
            ("2/ended", ONLY),
            ("2/keys/hotplug-", ONLY),
            ("2/acts", ONLY),
            ("2/keys/node", NODE),
        ],
        ..nbd("nbd/again")
    },
    Case {
        steps: &[ADD, Step::Gone, REMOVE],
        differences: &[("0/keys/node", NODE), ("1/keys/node", NODE), ("2/keys/node", NODE)],
        ..nbd("nbd/gone")
    },
    Case {
        steps: &[
            ADD,
            Step::Sh(
                "b=/local/domain/0/backend/vbd/2/51712; xenstore-write $b/dev xvda $b/mode w $b/params nas:10809 \
                 $b/physical-device $(stat -c %t:%T /dev/nbd0)",
            ),
            REMOVE,
        ],
        differences: &[
            ("0/keys/node", NODE),
            ("1/keys/node", NODE),
            ("2/keys/node", NODE),
            ("2/acts", ONLY),
            ("2/host/", ONLY),
        ],
        ..nbd("nbd/reused")
    },
    Case {
        setup: &[DEVICES, "touch /run/lab/refused"],
        steps: &[Step::Sh("true"), ADD_FAILS, REMOVE],
        differences: &[
            ("1/acts", ASKS),
            ("1/keys/hotplug-", TEXT),
            ("2/ended", ONLY),
            ("2/acts", ONLY),
            ("2/keys/hotplug-", TEXT),
        ],
        ..nbd("nbd/refused")
    },
    Case {
        setup: &["rm -f /dev/nbd*"],
        steps: &[Step::Sh("true"), ADD_FAILS],
        differences: &[("1/acts", ASKS), ("1/keys/hotplug-", TEXT)],
        ..nbd("nbd/no-driver")
    },
    Case {
        setup: &[DEVICES, "touch /run/lab/hangs"],
        steps: &[Step::Sh("true"), ADD_FAILS],
        differences: &[("1/keys/hotplug-", TEXT), ("1/acts", LEAVES), ("1/host/", LEAVES)],
        ..nbd("nbd/hangs")
    },
    Case {
        without: &["nbd-client"],
        steps: &[ADD_FAILS],
        differences: &[("0/keys/hotplug-", TEXT)],
        ..nbd("nbd/no-tool")
    },
    tap("tap/plain"),
    Case { kind: Kind::Vbd, setup: &[VMS, "touch /run/lab/driver"], ..tap("tap/driver") },
    Case {
        kind: Kind::Vbd,
        steps: &[Step::Sh("true"), ADD_FAILS],
        differences: &[
            ("1/keys/hotplug-error", TEXT),
            ("1/keys/", LEAVES),
            ("1/acts", LEAVES),
            ("1/host/", LEAVES),
        ],
        ..tap("tap/no-driver")
    },
    Case { setup: &[VMS, THEIRS], ..tap("tap/found") },
    Case { setup: &[VMS, THEIRS, SAME_VM, OTHER_WRITES], ..tap("tap/same-vm") },
    Case { mode: "r", setup: &[VMS, THEIRS, OTHER_READS], ..tap("tap/readers") },
    Case {
        setup: &[VMS, THEIRS, OTHER_WRITES],
        steps: &[Step::Sh("true"), ADD_FAILS, REMOVE],
        differences: &[("1/keys/hotplug-", TEXT), ("2/keys/hotplug-", TEXT)],
        ..tap("tap/in-use")
    },
    Case {
        mode: "r",
        setup: &[VMS, THEIRS, OTHER_WRITES],
        steps: &[Step::Sh("true"), ADD_FAILS],
        differences: &[("1/keys/hotplug-", TEXT)],
        ..tap("tap/in-use/read")
    },
    Case {
        setup: &[VMS, OTHER_BY_QEMU],
        steps: &[Step::Sh("true"), ADD_FAILS],
        differences: &[("1/ended", CREATES), ("1/", CREATES)],
        ..tap("tap/in-use/qemu")
    },
    Case { steps: &[ADD, Step::Gone, REMOVE], ..tap("tap/gone") },
    Case {
        setup: &[VMS, THEIRS, SAME_VM, OTHER_WRITES],
        steps: &[ADD, Step::Gone, REMOVE],
        differences: &[("2/acts", COUNTS), ("2/host/", COUNTS)],
        ..tap("tap/gone/shared")
    },
    Case {
        steps: &[ADD, REMOVE, REMOVE],
        differences: &[
            ("2/ended", "the script does not look whether the tapdisk is there"),
            ("2/acts", "the script does not look whether the tapdisk is there"),
            ("2/keys/hotplug-", TEXT),
        ],
        ..tap("tap/again")
    },
    Case {
        params: "aio:/srv/a:b.img",
        setup: &[
            VMS,
            "tap-ctl allocate; tap-ctl spawn; tap-ctl attach -p 4711 -m 0; tap-ctl open -p 4711 -m 0 -a aio:/srv/a:b.img; \
             : > /run/lab/acts",
        ],
        steps: &[ADD],
        differences: &[
            ("0/acts", CUTS),
            ("0/keys/minor", CUTS),
            ("0/keys/physical-device-path", CUTS),
            ("0/host/", CUTS),
        ],
        ..tap("tap/colon")
    },
    Case {
        params: "/srv/d.img",
        steps: &[ADD_FAILS],
        differences: &[("0/keys/hotplug-error", TEXT)],
        ..tap("tap/grammar")
    },
    Case {
        setup: &[VMS, "touch /run/lab/no-spawn"],
        steps: &[Step::Sh("true"), ADD_FAILS],
        differences: &[("1/keys/hotplug-error", TEXT)],
        ..tap("tap/no-spawn")
    },
    Case {
        setup: &[VMS, "touch /run/lab/no-attach"],
        steps: &[Step::Sh("true"), ADD_FAILS],
        differences: &[("1/keys/hotplug-error", TEXT)],
        ..tap("tap/no-attach")
    },
    Case {
        setup: &[VMS, "touch /run/lab/refused"],
        steps: &[Step::Sh("true"), ADD_FAILS],
        differences: &[("1/keys/hotplug-error", TEXT)],
        ..tap("tap/refused")
    },
    Case {
        setup: &[VMS, "touch /run/lab/hangs"],
        steps: &[Step::Sh("true"), ADD_FAILS],
        differences: &[("1/keys/hotplug-", WAITS), ("1/acts", WAITS), ("1/host/", WAITS)],
        ..tap("tap/hangs")
    },
    Case {
        setup: &[VMS, "touch /run/lab/hangs"],
        steps: &[Step::Sh("true"), Step::Cancelled],
        differences: &[("1/acts", LEAVES), ("1/host/", LEAVES)],
        ..tap("tap/cancelled")
    },
    Case {
        without: &["tap-ctl"],
        steps: &[ADD_FAILS],
        differences: &[("0/keys/hotplug-error", TEXT)],
        ..tap("tap/no-tool")
    },
];
