//! The texts that the handlers are proven equal to, by their SHA-256: those of Debian's package
//! `xen-utils-common`. `cargo lab native-vif` compares the handlers with scripts of exactly these texts.

use std::io;
use std::path::Path;

use super::Script;
use crate::native::Texts;
use crate::native::digest;

/// What all scripts for interfaces source, in Debian 12.
macro_rules! debian_12 {
    ($name:literal, $digest:literal) => {
        Texts {
            version: "4.17.7+13-g2445b30a44-0+deb12u1",
            files: &[
                ($name, $digest),
                ("hotplugpath.sh", "2fad68b8fd43bd8c87e5e33150afb8f3296f498ecfe3967da417a182bed0daa9"),
                ("locking.sh", "6cc8c1fae81bf1cded7bef07256b9518ffaa40eff32d8bbbf05e21a8392b1be1"),
                ("logging.sh", "60bf8d530962dcd390864effca6489772ef0cb9e91c3390ff5cfff7693ef04ca"),
                ("vif-common.sh", "2ab11fa10f4817f5838b08175a6e529fab97cb5caad756988e14aee9c0230459"),
                ("xen-hotplug-common.sh", "d52cdbf3649222a64bdd842fbdcd0ec0302caa6737d9274490cdd295cbd3f1f3"),
                ("xen-network-common.sh", "ec81a4c006292601b6dfa3103a7794bc2442d8d2504fc2bb2e4bc63af03c1e72"),
                ("xen-script-common.sh", "111773d49072538273b334e8cd04b181adfb2096c96b2603e98b8ab7d9d32af9"),
            ],
        }
    };
}

const BRIDGE: [Texts; 1] =
    [debian_12!("vif-bridge", "82529bd2e11e9d49d76b0570314b45ec99605b9bacf7eff4380efe435f773ad6")];
const ROUTE: [Texts; 1] =
    [debian_12!("vif-route", "c3e5b46b58ff6de2bbae9a001c817f316694881a743c70b27843d0534e2cd041")];
const NAT: [Texts; 1] =
    [debian_12!("vif-nat", "8e52c9dca8f6067687d9180fd9d514d43bba56995dbee6387cb8a0bb80a59224")];

impl Script {
    /// The texts of this script that its handler is proven equal to.
    #[must_use]
    pub fn texts(self) -> &'static [Texts] {
        match self {
            Self::Bridge => &BRIDGE,
            Self::Route => &ROUTE,
            Self::Nat => &NAT,
        }
    }

    /// Which version of the stock script this is, if its handler was proven equal to that: by the texts of the script
    /// and of all files that it sources, which are looked for beside it. It reads files, which may block.
    ///
    /// # Errors
    ///
    /// If the path is not absolute, or one of the files cannot be read: then it is none.
    pub fn release_of(self, script: &Path) -> io::Result<Option<&'static str>> {
        digest::release_of(script, self.texts())
    }
}
