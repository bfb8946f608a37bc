//! The texts that the handlers are proven equal to: those of Debian's package `xen-utils-common`. `cargo lab native-vif`
//! compares the handlers with scripts of exactly these texts.

use std::io;
use std::path::Path;

use super::Script;
use crate::native::digest::Stock;

/// What all scripts for interfaces source.
const SOURCES: [&str; 7] = [
    "hotplugpath.sh",
    "locking.sh",
    "logging.sh",
    "vif-common.sh",
    "xen-hotplug-common.sh",
    "xen-network-common.sh",
    "xen-script-common.sh",
];

/// Their texts differ in one file alone, which has the paths of Xen's programs.
const DEBIAN_12: &str = "Debian 12 (Xen 4.17)";
const DEBIAN_13: &str = "Debian 13 (Xen 4.20)";

const BRIDGE: Stock = Stock {
    sources: &SOURCES,
    proven: &[
        ("84b41771889588cf759cf84b7a5bf8804289a6dae79ce88be612cf4aef7d0615", DEBIAN_12),
        ("55b9d307a089e56db1d4ccc9cba8d87b1b738a8075e71650898c8386872a1e81", DEBIAN_13),
    ],
};
const ROUTE: Stock = Stock {
    sources: &SOURCES,
    proven: &[
        ("2f4abbce2e384e483ae5d3e05f550faad1b83f68621a373ebbaf4ae7ad81bcf7", DEBIAN_12),
        ("f3df31ffb467db3ed1010f0592f6fdb050c9230cc085fe0a1d6a4cc9b7ea818e", DEBIAN_13),
    ],
};
const NAT: Stock = Stock {
    sources: &SOURCES,
    proven: &[
        ("7b682f6a1c3baa4c7e24196f1c57086241a9e64e81af65e7e7b0837bb7a119ff", DEBIAN_12),
        ("97244c47d4dd5018b35e39bc6a558c10eead34fe25b21b2b3957ab111fd6492b", DEBIAN_13),
    ],
};

const OPEN_VSWITCH: Stock = Stock {
    sources: &SOURCES,
    proven: &[
        ("191df664c6d1541c97f366a05eda2791893cb447bf05f3f2ce87240488662055", DEBIAN_12),
        ("d03e72ff09d252f9d734714f4e4d34d73ee0a4d2b6df9b3476c8b18ca5affd09", DEBIAN_13),
    ],
};

impl Script {
    fn stock(self) -> &'static Stock {
        match self {
            Self::Bridge => &BRIDGE,
            Self::Route => &ROUTE,
            Self::Nat => &NAT,
            Self::OpenVswitch => &OPEN_VSWITCH,
        }
    }

    /// Which stock script this is, as in `Debian 12 (Xen 4.17)`, if it is one that the handler was proven equal to: by
    /// the text of the script and of all files that it sources. It reads files, which may block.
    ///
    /// # Errors
    ///
    /// If the path is not absolute, or one of the files cannot be read: then it is none.
    pub fn release_of(self, script: &Path) -> io::Result<Option<&'static str>> {
        self.stock().release_of(script)
    }

    /// The digest of a script's text and of the texts of all files that it sources: a SHA-256, in hexadecimal. It reads
    /// files, which may block.
    ///
    /// # Errors
    ///
    /// As [`Script::release_of`].
    pub fn digest(self, script: &Path) -> io::Result<String> {
        self.stock().digest(script)
    }
}
