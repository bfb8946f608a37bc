//! Specifications that are nearly right: every prefix, key and odd value at every place.

use fastrand::Rng;

use super::oracle::Question;

const PREFIXES: [&str; 24] = [
    "raw:", "qcow:", "qcow2:", "vhd:", "qed:", "iscsi:", "nbd:", "enbd:", "drbd:", "phy:", "file:", "tap:",
    "tap2:", "tapdisk:", "aio:", "ioemu:", "foo:", "rbd:", "9p:", "PHY:", "x1:", "f-o:", "phy: ", ":",
];
const KEYS: [&str; 22] = [
    "format",
    "vdev",
    "access",
    "backend",
    "backendtype",
    "specification",
    "devtype",
    "script",
    "target",
    "colo-host",
    "colo-port",
    "colo-export",
    "active-disk",
    "hidden-disk",
    "cdrom",
    "discard",
    "colour",
    "x",
    "grant_usage",
    "targets",
    "Format",
    "",
];
const WORDS: [&str; 9] = [
    "cdrom",
    "colo",
    "no-colo",
    "discard",
    "no-discard",
    "direct-io-safe",
    "trusted",
    "untrusted",
    "discards",
];
const VALUES: [&str; 44] = [
    "",
    "raw",
    "qcow",
    "qcow2",
    "qed",
    "vhd",
    "empty",
    "RAW",
    "r",
    "ro",
    "w",
    "rw",
    "W",
    "!",
    "phy",
    "tap",
    "qdisk",
    "standalone",
    "xen",
    "virtio",
    "disk",
    "cdrom",
    "xvda",
    "xvdb1",
    "hdc",
    "sda",
    "51712",
    "xvd",
    "xvda:cdrom",
    "hdc:disk",
    "hdc:tape",
    "a:b:cdrom",
    ":cdrom",
    "/d",
    "/dev/vg/x",
    "/a b",
    "host:1",
    "//",
    "block-x",
    "Domain-0",
    "0",
    "1",
    "99",
    "é",
];
const BLANKS: [&str; 5] = [" ", "  ", "\t", "\n", "\r"];

/// Keys with values that they can have, so that most of what is made is nearly good.
const FITTING: [(&str, &[&str]); 16] = [
    ("format", &["raw", "", "qcow2", "empty"]),
    ("vdev", &["xvda", "hdc", "", "xvdb1"]),
    ("access", &["w", "ro", "", "rw"]),
    ("backend", &["", "Domain-0", "dd", "0"]),
    ("backendtype", &["phy", "qdisk", "tap", "standalone"]),
    ("specification", &["xen", "virtio"]),
    ("devtype", &["disk", "cdrom"]),
    ("script", &["", "block-x", "/etc/x"]),
    ("target", &["", "/d", "phy:/d", "host:1", "raw,xvda"]),
    ("colo-host", &["", "h"]),
    ("colo-port", &["9", "65535"]),
    ("colo-export", &["", "e"]),
    ("active-disk", &["", "/a"]),
    ("hidden-disk", &["", "/h"]),
    ("vdev", &["xvda"]),
    ("target", &["/d"]),
];

/// The usual order of the positional parameters, so that most of what is made is nearly good.
const USUAL: [&[&str]; 4] =
    [&["/d", "/dev/vg/x", ""], &["raw", "", "qcow2"], &["xvda", "hdc:cdrom", "xvdb"], &["w", "ro", ""]];

fn one<'a>(rng: &mut Rng, of: &[&'a str]) -> &'a str {
    of[rng.usize(..of.len())]
}

fn parameter(rng: &mut Rng, usual: &mut usize) -> String {
    let mut text = String::new();
    if rng.u8(..8) == 0 {
        text += one(rng, &BLANKS);
    }
    while rng.u8(..10) == 0 {
        text += one(rng, &PREFIXES);
    }
    match rng.u8(..20) {
        0..12 if *usual < USUAL.len() => {
            text += one(rng, USUAL[*usual]);
            *usual += 1;
        }
        0..13 => text += one(rng, &VALUES),
        13..15 => text += one(rng, &WORDS),
        15..19 => {
            let (key, values) = FITTING[rng.usize(..FITTING.len())];
            text += &format!("{key}={}", one(rng, values));
        }
        _ => text += &format!("{}={}", one(rng, &KEYS), one(rng, &VALUES)),
    }
    if rng.u8(..60) == 0 {
        text += one(rng, &BLANKS);
    }
    text
}

/// A disk in one to three arguments.
pub(super) fn disk(rng: &mut Rng) -> Question {
    let mut usual = 0;
    let arguments = (0..[1, 1, 1, 2, 3][rng.usize(..5)]).map(|_| {
        let parameters: Vec<String> = (0..rng.usize(..6)).map(|_| parameter(rng, &mut usual)).collect();
        let mut argument = parameters.join(",");
        if rng.u8(..8) == 0 {
            argument += ",";
        }
        argument
    });
    Question::Disk(arguments.collect())
}

/// A rate.
pub(super) fn rate(rng: &mut Rng) -> Question {
    const NUMBERS: [&str; 14] = [
        "1",
        "8",
        "10",
        "250",
        "4295",
        "0",
        "007",
        "",
        "-1",
        "+1",
        " 1",
        "0x10",
        "4294967296",
        "18446744073709551615",
    ];
    const UNITS: [&str; 15] = [
        "MB/s", "Kb/s", "Gb/s", "B/s", "b/s", "KB/s", "Kb/s", "MB/s", "Mb/s", "GB/s", "Gb/s", "kB/s", "B",
        "/s", "B/sx",
    ];
    const INTERVALS: [&str; 14] = [
        "",
        "",
        "",
        "@20ms",
        "@1s",
        "@500us",
        "@20m",
        "@5u",
        "@7",
        "@",
        "@0ms",
        "@1x",
        "@5000s",
        "@4294967295us",
    ];
    let bits = rng.u32(..63);
    let number = if rng.bool() { (rng.u64(..) >> bits).to_string() } else { one(rng, &NUMBERS).to_owned() };
    Question::Rate(format!("{number}{}{}", one(rng, &UNITS), one(rng, &INTERVALS)))
}
