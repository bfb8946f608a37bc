//! Names of virtual disks, and the device ids that they stand for.
//!
//! Source: `docs/man/xen-vbd-interface.7.pandoc`. Stricter than libxl where libxl makes
//! nonsense of nonsense: a drive letter is required, signs and blanks are refused, and so are
//! numbers with a leading zero, which C reads as octal.

use std::fmt;

use thiserror::Error;

/// A virtual disk: its name as given, and its device id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vdev {
    name: String,
    devid: u32,
}

/// A text that names no virtual disk.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{0:?} names no virtual disk: give a name such as xvda, xvdb2, hdc, sda1 or d0p1, or a device id such as 51712"
)]
pub struct VdevError(String);

const MAX_DISK: u32 = (1 << 20) - 1;

fn xvd(disk: u32, partition: u32) -> Option<u32> {
    match (disk, partition) {
        (0..=15, 0..=15) => Some(202 << 8 | disk << 4 | partition),
        (0..=MAX_DISK, 0..=255) => Some(1 << 28 | disk << 8 | partition),
        _ => None,
    }
}

fn hd(disk: u32, partition: u32) -> Option<u32> {
    let major = if disk < 2 { 3 } else { 22 };
    (disk <= 3 && partition <= 63).then_some(major << 8 | (disk & 1) << 6 | partition)
}

fn sd(disk: u32, partition: u32) -> Option<u32> {
    (disk <= 15 && partition <= 15).then_some(8 << 8 | disk << 4 | partition)
}

/// A number of plain digits without a leading zero, or in hexadecimal with `0x`.
fn number(text: &str) -> Option<u32> {
    if let Some(hex) = text.strip_prefix("0x") {
        return hex
            .bytes()
            .all(|byte| byte.is_ascii_hexdigit())
            .then(|| u32::from_str_radix(hex, 16).ok())?;
    }
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok())?
}

/// Drive letters in bijective base 26 (`a` = 0, `z` = 25, `aa` = 26), then perhaps a partition.
fn letters_and_partition(text: &str) -> Option<(u32, u32)> {
    let end = text.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(text.len());
    let (letters, digits) = text.split_at(end);
    let disk = letters
        .bytes()
        .try_fold(0u32, |number, letter| number.checked_mul(26)?.checked_add(u32::from(letter - b'a') + 1));
    let partition = match digits {
        "" => 0,
        zero if zero.starts_with('0') => return None,
        digits => number(digits)?,
    };
    // No letter leaves 0, one below the first disk.
    Some((disk?.checked_sub(1)?, partition))
}

/// The drive letters of a disk.
fn letters(disk: u32) -> String {
    let mut letters = Vec::new();
    let mut rest = disk + 1;
    while rest > 0 {
        rest -= 1;
        letters.push(char::from(b'a' + (rest % 26) as u8));
        rest /= 26;
    }
    letters.iter().rev().collect()
}

fn devid(text: &str) -> Option<u32> {
    if let Some((disk, partition)) = text.strip_prefix('d').and_then(|rest| rest.split_once('p')) {
        return xvd(number(disk)?, number(partition)?);
    }
    let named = |prefix, id: fn(u32, u32) -> Option<u32>| {
        let (disk, partition) = letters_and_partition(text.strip_prefix(prefix)?)?;
        id(disk, partition)
    };
    let id =
        named("xvd", xvd).or_else(|| named("hd", hd)).or_else(|| named("sd", sd)).or_else(|| number(text))?;
    (id > 0 && id <= i32::MAX as u32).then_some(id)
}

impl Vdev {
    /// Reads a name (`xvda`, `hdb1`, `sdc`, `d5p2`) or a device id (`51712`, `0xca00`).
    pub fn new(name: &str) -> Result<Self, VdevError> {
        let devid = devid(name).ok_or_else(|| VdevError(name.to_owned()))?;
        Ok(Self { name: name.to_owned(), devid })
    }

    /// The disk of a device id, by its usual name: `xvda` for 51712. An id that has none is its
    /// own name.
    pub fn from_devid(devid: u32) -> Self {
        let (minor, disk_of_16) = (devid & 0xff, (devid >> 4) & 0xf);
        let (prefix, disk, partition) = match devid >> 8 {
            202 => ("xvd", disk_of_16, devid & 0xf),
            8 => ("sd", disk_of_16, devid & 0xf),
            3 => ("hd", minor >> 6, devid & 0x3f),
            22 => ("hd", 2 + (minor >> 6), devid & 0x3f),
            extended => ("xvd", extended & MAX_DISK, minor),
        };
        let partition = if partition == 0 { String::new() } else { partition.to_string() };
        let usual = Self::new(&format!("{prefix}{}{partition}", letters(disk)));
        let numbered = || Self { name: devid.to_string(), devid };
        usual.ok().filter(|vdev| vdev.devid == devid).unwrap_or_else(numbered)
    }

    /// The name as it was given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The device id.
    pub fn devid(&self) -> u32 {
        self.devid
    }
}

impl fmt::Display for Vdev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table() {
        for (name, devid) in [
            ("xvda", 51712),
            ("xvda1", 51713),
            ("xvdb", 51728),
            ("xvdp", 51952),
            ("xvdp15", 51967),
            ("xvdq", 268_439_552),
            ("xvda16", 268_435_472),
            ("xvdaa", 268_442_112),
            ("hda", 768),
            ("hdb", 832),
            ("hdc", 5632),
            ("hdd", 5696),
            ("hda63", 831),
            ("sda", 2048),
            ("sdb", 2064),
            ("d0p0", 51712),
            ("d1p2", 51730),
            ("d16p0", 268_439_552),
            ("51712", 51712),
            ("0xca00", 51712),
        ] {
            assert_eq!(Vdev::new(name).map(|vdev| vdev.devid()), Ok(devid), "{name}");
        }
    }

    /// B-58.
    #[test]
    fn nonsense() {
        for name in [
            "",
            "xvd",
            "sd",
            "hd",
            "xvd1",
            "xvdA",
            "xvda01",
            "xvda0",
            "xvda256",
            "hde",
            "hda64",
            "sdq",
            "sda16",
            "d-1p0",
            "d1p",
            "dp1",
            "d1048576p0",
            "-16",
            "+1",
            " 1",
            "1 ",
            "012",
            "0",
            "0x",
            "4294967295",
            "2147483648",
            "nvme0",
            "xvdzzzzzzzzz",
        ] {
            assert!(Vdev::new(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn usual_names() {
        for name in [
            "xvda", "xvda1", "xvdb", "xvdp15", "xvdq", "xvdz255", "xvdaa", "xvdzz3", "hda", "hdb2", "hdc",
            "hdd63", "sda", "sdp15",
        ] {
            let devid = Vdev::new(name).unwrap().devid();
            assert_eq!(Vdev::from_devid(devid).name(), name);
        }
        assert_eq!(Vdev::from_devid(7).name(), "7");
    }

    proptest::proptest! {
        #[test]
        fn every_name_stands_for_its_id(devid in 1..=i32::MAX as u32) {
            let vdev = Vdev::from_devid(devid);
            proptest::prop_assert_eq!(vdev.devid(), devid);
            proptest::prop_assert_eq!(Vdev::new(vdev.name()).map(|vdev| vdev.devid()), Ok(devid));
        }
    }
}
