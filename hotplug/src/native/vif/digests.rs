//! The texts that the handlers are proven equal to, by their SHA-256: those of Debian's package
//! `xen-utils-common`. `cargo lab native-vif` compares the handlers with scripts of exactly these texts.

use super::Script;

/// The texts of a script and of all that it sources, of one version of the package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Texts {
    /// The version of the package whose texts were compared.
    pub version: &'static str,
    /// Names of files in the directory of the scripts, each with the SHA-256 of its text in lower-case hexadecimal.
    pub files: &'static [(&'static str, &'static str)],
}

/// The texts of a script in Debian 12 and 13, which differ in one: that has the paths of Xen's programs.
macro_rules! debian {
    ($name:literal, $digest:literal) => {
        [
            debian!(
                $name,
                $digest,
                "4.17.7+13-g2445b30a44-0+deb12u1",
                "2fad68b8fd43bd8c87e5e33150afb8f3296f498ecfe3967da417a182bed0daa9"
            ),
            debian!(
                $name,
                $digest,
                "4.20.4+63-g7abfd2bce2-0+deb13u1",
                "c6cd3714a461e2f5fdff293f415fbe0ae35fc73c7c7d1bce7956d12a68970ede"
            ),
        ]
    };
    ($name:literal, $digest:literal, $version:literal, $paths:literal) => {
        Texts {
            version: $version,
            files: &[
                ($name, $digest),
                ("hotplugpath.sh", $paths),
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

const BRIDGE: [Texts; 2] =
    debian!("vif-bridge", "82529bd2e11e9d49d76b0570314b45ec99605b9bacf7eff4380efe435f773ad6");
const ROUTE: [Texts; 2] =
    debian!("vif-route", "c3e5b46b58ff6de2bbae9a001c817f316694881a743c70b27843d0534e2cd041");
const NAT: [Texts; 2] =
    debian!("vif-nat", "8e52c9dca8f6067687d9180fd9d514d43bba56995dbee6387cb8a0bb80a59224");

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
}
