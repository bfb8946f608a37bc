//! Who has a disk already: a pure function over what was seen.
//!
//! The rules are those of the stock script:
//!
//! | wanted | refused if |
//! | --- | --- |
//! | read-only | domain 0 has it mounted for writing, or another guest has it for writing |
//! | for writing | domain 0 has it mounted, or another guest has it |
//! | unchecked (`w!`) | never |
//!
//! The devices of one virtual machine may share: those of one guest, of its stub domain, and of the two halves of a
//! migration to the same host, which are known by their path in `/vm`. A guest that has left the store shares as well:
//! it is gone, and its backend's directory is what is left of it.
//!
//! How things are compared is not the script's. It looks for the loop devices of a file by the number of the file's
//! system, as `stat` prints it, in hexadecimal, in a list of `losetup`, which prints it in decimal. So it finds none
//! wherever the two differ, and gives one image to two guests. Here numbers are numbers.

use std::fmt;
use std::path::PathBuf;

/// The numbers of a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Numbers {
    /// Which driver.
    pub major: u32,
    /// Which of its devices.
    pub minor: u32,
}

impl Numbers {
    pub(in crate::native) fn of(device: u64) -> Self {
        Self { major: rustix::fs::major(device), minor: rustix::fs::minor(device) }
    }

    /// Reads what the key `physical-device` holds; `None` if it holds something else.
    ///
    /// # Examples
    ///
    /// ```
    /// use xen_hotplug::native::block::Numbers;
    ///
    /// assert_eq!(Numbers::parse("7:1f"), Some(Numbers { major: 7, minor: 31 }));
    /// assert_eq!(Numbers::parse("7:+1"), None);
    /// ```
    pub fn parse(text: &str) -> Option<Self> {
        let number = |text: &str| {
            let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
            u32::from_str_radix(text, 16).ok().filter(|_| digits)
        };
        let (major, minor) = text.split_once(':')?;
        Some(Self { major: number(major)?, minor: number(minor)? })
    }
}

/// As the key `physical-device` holds them: hexadecimal, `7:1f`.
impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}:{:x}", self.major, self.minor)
    }
}

/// A file, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    /// The number of its file system (`st_dev`).
    pub dev: u64,
    /// Its number in that (`st_ino`).
    pub ino: u64,
}

/// How a guest may use a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// It may read.
    Read,
    /// It may read and write.
    Write,
    /// It may read and write, and nobody looks who else does.
    Unchecked,
}

impl Mode {
    /// Reads the key `mode`: without a `w` it is read-only, with a `w` and a `!` it is unchecked.
    pub fn parse(text: &str) -> Self {
        match (text.contains('w'), text.contains('!')) {
            (false, _) => Self::Read,
            (true, false) => Self::Write,
            (true, true) => Self::Unchecked,
        }
    }
}

/// A domain that has disks, as the store tells of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Domain {
    /// Its domid.
    pub domid: u32,
    /// Its name, for messages: `/local/domain/<domid>/name`.
    pub name: Option<String>,
    /// Which virtual machine it is: `/local/domain/<domid>/vm`, which holds `/vm/<uuid>`.
    pub vm: Option<String>,
    /// If it is a stub domain, the same of the domain that `/local/domain/<domid>/target` names.
    pub target_vm: Option<String>,
}

impl Domain {
    /// Whether the other, who has the disk already, is the same virtual machine, or gone.
    pub(in crate::native) fn shares_with(&self, other: &Self) -> bool {
        let Some(other_vm) = &other.vm else { return true };
        // xend marked the second half of a local migration so.
        let vm = self.vm.as_deref().map(|vm| vm.strip_suffix("-1").unwrap_or(vm));
        let target = self.target_vm.as_deref();
        let is_ours = |theirs: &str| vm == Some(theirs) || target == Some(theirs);
        is_ours(other_vm) || other.target_vm.as_deref().is_some_and(is_ours)
    }
}

/// What a disk is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// A block device.
    Device(Numbers),
    /// A file.
    File(FileId),
}

/// A loop device in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loop {
    /// The device.
    pub device: Numbers,
    /// The file that it serves.
    pub file: FileId,
}

/// A mount of a block device in domain 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The devices that it may be of: that of the file system and that which is named as its source. They differ
    /// where a file system numbers its devices by itself, as btrfs does.
    pub devices: Vec<Numbers>,
    /// Where it is mounted.
    pub point: PathBuf,
    /// Whether the file system writes nothing, through whichever mount.
    pub read_only: bool,
}

/// A disk of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// Whose.
    pub domain: Domain,
    /// The guest's name for the disk: `xvda`.
    pub vdev: String,
    /// What it is made of.
    pub medium: Medium,
    /// How the guest may use it.
    pub mode: Mode,
}

/// What there is on a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The loop devices in use.
    pub loops: Vec<Loop>,
    /// The mounts of domain 0.
    pub mounts: Vec<Mount>,
    /// The disks that guests have.
    pub uses: Vec<Use>,
}

/// Who has a disk. `Display` completes a sentence: "it is ...".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Domain 0 has it mounted.
    Mount {
        /// Where.
        point: PathBuf,
        /// The loop device through which it is, if it is a file.
        through: Option<Numbers>,
    },
    /// A guest has it.
    Guest {
        /// Which.
        domid: u32,
        /// Its name, if the store tells.
        name: Option<String>,
        /// The guest's name for the disk.
        vdev: String,
        /// Whether the guest may write.
        writes: bool,
    },
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mount { point, through } => {
                write!(f, "mounted at {} in this domain", crate::printable::printable_path(point))?;
                match through {
                    Some(Numbers { major: 7, minor }) => write!(f, " through /dev/loop{minor}"),
                    _ => Ok(()),
                }
            }
            Self::Guest { domid, name, vdev, writes } => {
                let name = name.as_ref().map_or_else(String::new, |name| format!(" ({name})"));
                let how = if *writes { "read-write" } else { "read-only" };
                let text = format!("the disk {vdev} of the guest {domid}{name}, {how}");
                f.write_str(&crate::printable(text, crate::LINE_SHOWN))
            }
        }
    }
}

/// Who has the medium in a way that does not go with what is wanted, if anyone: mounts first, as the script looks.
pub fn holder(medium: Medium, mode: Mode, guest: &Domain, seen: &Seen) -> Option<Holder> {
    if mode == Mode::Unchecked {
        return None;
    }
    // A file may be had by its name, and by any loop device of it.
    let file_of = |medium: Medium| match medium {
        Medium::File(file) => Some(file),
        Medium::Device(numbers) => {
            seen.loops.iter().find(|loop_| loop_.device == numbers).map(|loop_| loop_.file)
        }
    };
    let file = file_of(medium);
    let is_same = |other: Medium| medium == other || file.is_some() && file == file_of(other);
    let mounted =
        seen.mounts.iter().filter(|mount| mode == Mode::Write || !mount.read_only).find_map(|mount| {
            let device = mount.devices.iter().find(|numbers| is_same(Medium::Device(**numbers)))?;
            let through = (Medium::Device(*device) != medium).then_some(*device);
            Some(Holder::Mount { point: mount.point.clone(), through })
        });
    mounted.or_else(|| {
        let conflicts = |other: &&Use| mode == Mode::Write || other.mode == Mode::Write;
        let mut others = seen.uses.iter().filter(conflicts);
        let other = others.find(|other| is_same(other.medium) && !guest.shares_with(&other.domain))?;
        Some(Holder::Guest {
            domid: other.domain.domid,
            name: other.domain.name.clone(),
            vdev: other.vdev.clone(),
            writes: other.mode != Mode::Read,
        })
    })
}

/// Reads `/proc/self/mountinfo`. `numbers_of` tells the numbers of the block device that a source names.
pub(super) fn mounts(mountinfo: &str, numbers_of: impl Fn(&str) -> Option<Numbers>) -> Vec<Mount> {
    mountinfo.lines().filter_map(|line| mount(line, &numbers_of)).collect()
}

fn mount(line: &str, numbers_of: impl Fn(&str) -> Option<Numbers>) -> Option<Mount> {
    // 36 35 98:0 /root /mount/point rw,noatime shared:1 - ext3 /dev/root rw,errors=continue
    let (mount, system) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(2);
    let (major, minor) = mount.next()?.split_once(':')?;
    let own = Numbers { major: major.parse().ok()?, minor: minor.parse().ok()? };
    let point = PathBuf::from(unescape(mount.nth(1)?));
    let mut system = system.split(' ').skip(1);
    let source = unescape(system.next()?);
    let read_only = system.next()?.split(',').any(|option| option == "ro");
    let devices = [own].into_iter().chain(numbers_of(&source)).collect();
    Some(Mount { devices, point, read_only })
}

/// The kernel writes a space, a tab, a line feed and a backslash in paths as `\040` and the like.
fn unescape(text: &str) -> String {
    // Mostly there is none.
    if !text.contains('\\') {
        return text.to_owned();
    }
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (escaped, letter)| text.replace(escaped, letter))
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: FileId = FileId { dev: 0xfe00, ino: 17 };
    const LOOP: Numbers = Numbers { major: 7, minor: 3 };
    const DISK: Numbers = Numbers { major: 8, minor: 16 };

    fn guest(domid: u32) -> Domain {
        Domain { domid, name: Some(format!("g{domid}")), vm: Some(format!("/vm/{domid}")), target_vm: None }
    }

    fn disk(domid: u32, medium: Medium, mode: &str) -> Use {
        Use { domain: guest(domid), vdev: "xvda".to_owned(), medium, mode: Mode::parse(mode) }
    }

    fn seen(uses: &[Use]) -> Seen {
        let loops = vec![
            Loop { device: LOOP, file: IMAGE },
            Loop { device: Numbers { minor: 4, ..LOOP }, file: FileId { ino: 18, ..IMAGE } },
        ];
        Seen { loops, uses: uses.to_vec(), mounts: Vec::new() }
    }

    /// `-`, or who has it.
    fn asked(medium: Medium, mode: &str, seen: &Seen) -> String {
        let holder = holder(medium, Mode::parse(mode), &guest(1), seen);
        holder.map_or_else(|| "-".to_owned(), |holder| holder.to_string())
    }

    #[test]
    fn modes_are_read_as_the_script_reads_them() {
        for (text, mode) in [
            ("r", Mode::Read),
            ("ro", Mode::Read),
            ("r!", Mode::Read),
            ("", Mode::Read),
            ("w", Mode::Write),
            ("rw", Mode::Write),
            ("w!", Mode::Unchecked),
            ("!rw", Mode::Unchecked),
        ] {
            assert_eq!(Mode::parse(text), mode, "{text}");
        }
    }

    #[test]
    fn a_file_is_the_same_through_another_loop_device() {
        let second = Numbers { minor: 5, ..LOOP };
        let twice = |seen: Seen| Seen {
            loops: [seen.loops, vec![Loop { device: second, file: IMAGE }]].concat(),
            ..seen
        };
        let other = Medium::Device(second);
        let writes = "the disk xvda of the guest 2 (g2), read-write";
        for theirs in [Medium::Device(LOOP), Medium::File(IMAGE)] {
            assert_eq!(asked(other, "w", &twice(seen(&[disk(2, theirs, "w")]))), writes);
        }
        let mount = Mount { devices: vec![LOOP], point: "/mnt".into(), read_only: false };
        let mounted = Seen { mounts: vec![mount], ..twice(seen(&[])) };
        assert_eq!(asked(other, "w", &mounted), "mounted at /mnt in this domain through /dev/loop3");
        assert_eq!(asked(Medium::Device(DISK), "w", &mounted), "-");
    }

    #[test]
    fn who_wants_to_write_is_alone_and_readers_are_with_readers() {
        for medium in [Medium::Device(DISK), Medium::File(IMAGE)] {
            let theirs = |mode: &str| match medium {
                // A guest has a file by its loop device.
                Medium::File(_) => seen(&[disk(2, Medium::Device(LOOP), mode)]),
                Medium::Device(_) => seen(&[disk(2, medium, mode)]),
            };
            let (writes, reads) = (
                "the disk xvda of the guest 2 (g2), read-write",
                "the disk xvda of the guest 2 (g2), read-only",
            );
            for (wanted, has, answer) in [
                ("w", "w", writes),
                ("w", "r", reads),
                ("w", "w!", writes),
                ("r", "w", writes),
                ("r", "r", "-"),
                // The script lets a reader be with whoever asked not to be looked at.
                ("r", "w!", "-"),
                ("w!", "w", "-"),
            ] {
                assert_eq!(asked(medium, wanted, &theirs(has)), answer, "{wanted} where another has {has}");
            }
            assert_eq!(asked(medium, "w", &seen(&[])), "-");
        }
    }

    #[test]
    fn what_is_alike_is_not_the_same() {
        let other = Medium::Device(Numbers { minor: 4, ..LOOP });
        assert_eq!(asked(Medium::File(IMAGE), "w", &seen(&[disk(2, other, "w")])), "-");
        assert_eq!(asked(Medium::Device(DISK), "w", &seen(&[disk(2, other, "w")])), "-");
        // Numbers that only read alike: 0x10 is 16.
        let device = Medium::Device(Numbers { major: 8, minor: 10 });
        assert_eq!(asked(device, "w", &seen(&[disk(2, Medium::Device(DISK), "w")])), "-");
    }

    #[test]
    fn a_file_that_a_device_model_serves_is_known_by_itself() {
        let theirs = seen(&[disk(2, Medium::File(IMAGE), "w")]);
        assert_ne!(asked(Medium::File(IMAGE), "r", &theirs), "-");
        assert_eq!(asked(Medium::File(FileId { ino: 18, ..IMAGE }), "w", &theirs), "-");
    }

    #[test]
    fn one_machine_shares_with_itself() {
        let shares = |ours: Domain, theirs: Domain| {
            let theirs = Use { domain: theirs, ..disk(2, Medium::Device(DISK), "w") };
            holder(Medium::Device(DISK), Mode::Write, &ours, &seen(&[theirs])).is_none()
        };
        let vm = |domid, vm: &str| Domain { vm: Some(format!("/vm/{vm}")), ..guest(domid) };
        let stub =
            |domid, target: &str| Domain { target_vm: Some(format!("/vm/{target}")), ..vm(domid, "s") };
        assert!(shares(vm(1, "a"), vm(1, "a")), "two disks of one guest");
        assert!(shares(vm(1, "a"), vm(2, "a")), "a migration to the same host");
        assert!(shares(vm(1, "a-1"), vm(2, "a")), "and as xend named it");
        assert!(shares(vm(1, "a"), Domain { vm: None, ..vm(2, "b") }), "of a guest that is gone");
        assert!(shares(stub(1, "a"), vm(2, "a")), "a stub domain and its target");
        assert!(shares(vm(1, "a"), stub(2, "a")), "a target and its stub domain");
        assert!(shares(stub(1, "a"), Domain { vm: Some("/vm/t".to_owned()), ..stub(2, "a") }));
        assert!(!shares(vm(1, "a"), vm(2, "b")));
        assert!(!shares(Domain { vm: None, ..vm(1, "a") }, vm(2, "b")));
        assert!(!shares(Domain { vm: None, ..vm(1, "a") }, stub(2, "b")));
    }

    const MOUNTS: &str = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
30 1 8:16 / / rw,relatime shared:1 - ext4 /dev/sdb rw
31 30 7:3 / /mnt/a\\040b ro,relatime - ext4 /dev/loop3 rw
32 30 0:45 /sub /btrfs rw - btrfs /dev/sdc ro,space_cache
not a mount
";

    #[test]
    fn mounts_are_read() {
        let numbers = |source: &str| {
            let minor = match source {
                "/dev/sdb" => 16,
                "/dev/sdc" => 32,
                _ => return None,
            };
            Some(Numbers { major: 8, minor })
        };
        let mounts = mounts(MOUNTS, numbers);
        assert_eq!(mounts.len(), 4);
        assert_eq!(mounts[1].devices, [DISK, DISK]);
        // What a mount forbids, another of the same file system may allow.
        assert_eq!((&*mounts[2].point.to_string_lossy(), mounts[2].read_only), ("/mnt/a b", false));
        assert_eq!(mounts[3].devices[1], Numbers { major: 8, minor: 32 });
        assert!(mounts[3].read_only);

        let seen = Seen { mounts, ..seen(&[]) };
        assert_eq!(asked(Medium::Device(DISK), "r", &seen), "mounted at / in this domain");
        assert_eq!(
            asked(Medium::File(IMAGE), "w", &seen),
            "mounted at /mnt/a b in this domain through /dev/loop3"
        );
        let btrfs = Medium::Device(Numbers { minor: 32, ..DISK });
        assert_eq!((asked(btrfs, "r", &seen), asked(btrfs, "w!", &seen)), ("-".to_owned(), "-".to_owned()));
        assert_eq!(asked(btrfs, "w", &seen), "mounted at /btrfs in this domain");
    }
}
