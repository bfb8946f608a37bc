//! Looking at files of this domain: a target, and what has been made of it.
//!
//! A file on dead network storage does not answer, so all of this happens in a thread of its own, has
//! a deadline and can be given up; the thread stays until the storage answers.

use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, fs};

use xen_devstate::deadline;

/// Where the kernel tells of block devices.
const SYS_BLOCK: &str = "/sys/block";

/// Runs `work` in a thread of its own; `None` if it takes too long.
pub(crate) async fn blocking<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    tokio::select! {
        done = tokio::task::spawn_blocking(work) => done.ok(),
        () = deadline(limit) => None,
    }
}

/// Whether a target can be served: an absolute path to a file or block device.
pub(crate) async fn check_target(target: &str, limit: Duration) -> Result<(), String> {
    if !target.starts_with('/') {
        return Err(format!("{target:?} is not an absolute path"));
    }
    let path = PathBuf::from(target);
    let Some(metadata) = blocking(limit, move || fs::metadata(path)).await else {
        return Err(format!("{target} does not answer within {limit:?}"));
    };
    let kind = metadata.map_err(|error| format!("{target}: {error}"))?;
    if kind.is_file() || kind.file_type().is_block_device() {
        return Ok(());
    }
    Err(format!("{target} is neither a file nor a block device"))
}

/// Whether a directory can be served: an absolute path to one.
pub(crate) async fn check_directory(target: &str, limit: Duration) -> Result<(), String> {
    let path = PathBuf::from(target);
    match blocking(limit, move || fs::metadata(path)).await {
        None => Err(format!("{target} does not answer within {limit:?}")),
        Some(Err(error)) => Err(format!("{target}: {error}")),
        Some(Ok(metadata)) if metadata.is_dir() => Ok(()),
        Some(Ok(_)) => Err(format!("{target} is not a directory")),
    }
}

/// Whether there is such a file. One that does not answer in time is not there.
pub(crate) async fn exists(path: &Path, limit: Duration) -> bool {
    let path = path.to_owned();
    blocking(limit, move || path.exists()).await == Some(true)
}

/// The numbers of a block device as `physical-device` holds them: `7:1f`. `None` if the path leads to none,
/// or does not answer in time.
pub(crate) async fn device_numbers(path: &str, limit: Duration) -> Option<String> {
    let path = PathBuf::from(path);
    let numbers = move || {
        let found = fs::metadata(path).ok().filter(|found| found.file_type().is_block_device())?;
        Some(numbers(found.rdev()))
    };
    blocking(limit, numbers).await?
}

fn numbers(device: u64) -> String {
    format!("{:x}:{:x}", rustix::fs::major(device), rustix::fs::minor(device))
}

/// What there is of a target now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) is_file: bool,
    /// The file that it leads to.
    pub(crate) origin: Origin,
    /// The loop devices that serve it, the youngest last.
    loops: Vec<LoopDevice>,
    /// The youngest use of any loop device by the kernel's count, if it counts and one is in use.
    latest: Option<u64>,
}

/// A file as it is known again: renamed, replaced, or with the link to it pointed elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Origin {
    /// Its device and number in that, if it is there.
    pub(super) inode: Option<(u64, u64)>,
    /// Its path, without links on the way.
    path: PathBuf,
}

impl Origin {
    fn of(path: PathBuf) -> Self {
        let path = fs::canonicalize(&path).unwrap_or(path);
        Self { inode: inode(&path), path }
    }

    /// Reads what `Display` writes.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (inode, path) = text.split_once(' ')?;
        let inode = inode.split_once(':').and_then(|(dev, ino)| Some((dev.parse().ok()?, ino.parse().ok()?)));
        Some(Self { inode, path: path.into() })
    }

    /// Whether a loop device whose `backing_file` reads so serves the file. That path follows renames, and
    /// ends in a remark once the file has no name.
    fn is_in(&self, backing: &str) -> bool {
        let same = |own| inode(Path::new(backing)).map(|found| found == own);
        self.inode.and_then(same).unwrap_or_else(|| {
            [backing, backing.strip_suffix(" (deleted)").unwrap_or(backing)]
                .iter()
                .any(|backing| Path::new(backing) == self.path)
        })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.inode {
            Some((dev, ino)) => write!(f, "{dev}:{ino} {}", self.path.display()),
            None => write!(f, "- {}", self.path.display()),
        }
    }
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// A loop device in use.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct LoopDevice {
    /// Which use of it this is.
    sequence: Option<u64>,
    /// As `/dev/loop0`.
    node: String,
}

impl Found {
    /// A text by which is known later what has been made of the target since.
    pub(crate) fn baseline(&self) -> String {
        match self.latest {
            Some(latest) => format!("after {latest}"),
            None => self.loops.iter().map(|device| &*device.node).collect::<Vec<_>>().join(" "),
        }
    }

    /// The loop devices that have been made of the target since, the youngest last.
    pub(crate) fn made_since(&self, baseline: &str) -> Vec<String> {
        let after = baseline.strip_prefix("after ").and_then(|latest| latest.parse::<u64>().ok());
        let is_new = |device: &&LoopDevice| match after {
            Some(after) => device.sequence.is_some_and(|sequence| sequence > after),
            None => baseline.split(' ').all(|known| known != device.node),
        };
        self.loops.iter().filter(is_new).map(|device| device.node.clone()).collect()
    }
}

/// Looks at a target, and at what is made of the file that it led to when it was added, or leads to now;
/// `None` if it does not answer in time.
pub(crate) async fn look_at(target: &str, origin: Option<&String>, limit: Duration) -> Option<Found> {
    let path = PathBuf::from(target);
    let origin = origin.and_then(|origin| Origin::parse(origin));
    blocking(limit, move || look_in(Path::new(SYS_BLOCK), path, origin)).await
}

fn look_in(sys_block: &Path, path: PathBuf, origin: Option<Origin>) -> Found {
    let is_file = path.is_file();
    let now = Origin::of(path);
    // The files of all loop devices are looked at only where one that nobody reported is searched for: each
    // may be on storage that does not answer.
    let wanted = origin.clone().unwrap_or_else(|| Origin { inode: None, ..now.clone() });
    let devices = fs::read_dir(sys_block).into_iter().flatten().flatten();
    let names = devices.filter_map(|device| device.file_name().into_string().ok());
    let names = names.filter(|name| name.starts_with("loop"));
    let sequence = |name: &str| -> Option<u64> {
        fs::read_to_string(sys_block.join(name).join("diskseq")).ok()?.trim().parse().ok()
    };
    let (mut loops, mut latest) = (Vec::new(), None);
    for name in names {
        // Only one that is in use has it. The count goes on for all: what is set up later has a higher one.
        let Ok(backing) = fs::read(sys_block.join(&name).join("loop/backing_file")) else { continue };
        let sequence = sequence(&name);
        latest = latest.max(sequence);
        let backing = String::from_utf8_lossy(&backing);
        if wanted.is_in(backing.strip_suffix('\n').unwrap_or(&backing)) {
            loops.push(LoopDevice { sequence, node: format!("/dev/{name}") });
        }
    }
    loops.sort();
    Found { is_file, origin: origin.unwrap_or(now), loops, latest }
}

/// Which use of a loop device this is: the kernel counts each time that one is set up (Linux 5.15). `None` if
/// it is no loop device of this machine, or the kernel does not count.
pub(crate) fn sequence(node: &str) -> Option<String> {
    sequence_in(Path::new(SYS_BLOCK), node)
}

fn sequence_in(sys_block: &Path, node: &str) -> Option<String> {
    let name = node.strip_prefix("/dev/").filter(|name| name.starts_with("loop") && !name.contains('/'))?;
    let device = sys_block.join(name);
    if !device.join("loop").exists() {
        return None;
    }
    Some(fs::read_to_string(device.join("diskseq")).ok()?.trim().to_owned())
}

/// Whether a device that was made of a target still serves it; `None` if it is no loop device of this
/// machine. Numbers of loop devices are used again, so it is told by the kernel's count, if that was saved,
/// and else by the file.
pub(crate) fn serves(node: &str, saved: Option<&String>, found: &Found) -> Option<bool> {
    serves_in(Path::new(SYS_BLOCK), node, saved, found)
}

fn serves_in(sys_block: &Path, node: &str, saved: Option<&String>, found: &Found) -> Option<bool> {
    let name = node.strip_prefix("/dev/").filter(|name| name.starts_with("loop"))?;
    if !sys_block.join(name).exists() {
        return None;
    }
    match saved {
        Some(saved) => Some(sequence_in(sys_block, node).as_ref() == Some(saved)),
        None => Some(found.loops.iter().any(|device| device.node == node)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sys_block(devices: &[(&str, &str, &str)]) -> tempfile::TempDir {
        let sys = tempfile::tempdir().unwrap();
        for (device, backing, sequence) in devices {
            let device = sys.path().join(device);
            fs::create_dir_all(device.join("loop")).unwrap();
            fs::write(device.join("loop/backing_file"), backing).unwrap();
            if !sequence.is_empty() {
                fs::write(device.join("diskseq"), sequence).unwrap();
            }
        }
        sys
    }

    #[test]
    fn numbers_of_devices_are_hexadecimal() {
        assert_eq!(numbers(rustix::fs::makedev(7, 31)), "7:1f");
        assert_eq!(numbers(rustix::fs::makedev(259, 1_000_000)), "103:f4240");
    }

    #[tokio::test]
    async fn only_block_devices_have_numbers() {
        for path in ["/dev/null", "/", "/no/such/device"] {
            assert_eq!(device_numbers(path, Duration::MAX).await, None, "{path}");
        }
    }

    #[test]
    fn loop_devices_are_found_by_their_file() {
        let sys = sys_block(&[
            ("loop0", "/srv/d.img\n", "9\n"),
            ("loop1", "/srv/e.img\n", "3\n"),
            ("loop2", "/srv/d.img (deleted)\n", "7\n"),
            ("sda", "/srv/d.img\n", "12\n"),
        ]);
        fs::create_dir_all(sys.path().join("loop3")).unwrap();
        let found = look_in(sys.path(), "/srv/d.img".into(), None);
        let nodes: Vec<&str> = found.loops.iter().map(|device| &*device.node).collect();
        assert_eq!(nodes, ["/dev/loop2", "/dev/loop0"]);
        assert_eq!(found.baseline(), "after 9");
        assert_eq!(look_in(sys.path(), "/srv/f.img".into(), None).loops, []);
        // A link that leads elsewhere since, and a file that was renamed.
        let moved = look_in(sys.path(), "/srv/f.img".into(), Some(found.origin.clone()));
        assert_eq!((moved.is_file, moved.loops), (false, found.loops));
        let file = sys.path().join("was.img");
        fs::write(&file, "").unwrap();
        let origin = Origin::of(file.clone());
        assert_eq!(Origin::parse(&origin.to_string()), Some(origin.clone()));
        let renamed = sys.path().join("is.img (deleted)");
        fs::rename(&file, &renamed).unwrap();
        fs::write(&file, "").unwrap();
        fs::write(sys.path().join("loop0/loop/backing_file"), format!("{}\n", renamed.display())).unwrap();
        let of = |origin| look_in(sys.path(), file.clone(), origin).loops.len();
        assert_eq!((of(Some(origin)), of(None)), (1, 0));
    }

    /// A number that was in use before the script and is used again since is known as new.
    #[test]
    fn what_was_made_since_is_known_by_the_kernels_count() {
        let of = |devices| look_in(sys_block(devices).path(), "/srv/d.img".into(), None);
        let before = of(&[("loop200", "/srv/d.img", "5")]);
        let after = of(&[("loop200", "/srv/d.img", "6")]);
        assert_eq!(before.made_since(&before.baseline()), [""; 0]);
        assert_eq!(after.made_since(&before.baseline()), ["/dev/loop200"]);
        // A kernel that does not count.
        let before = of(&[("loop0", "/srv/d.img", "")]);
        let after = of(&[("loop0", "/srv/d.img", ""), ("loop1", "/srv/d.img", "")]);
        assert_eq!(after.made_since(&before.baseline()), ["/dev/loop1"]);
        assert_eq!(after.made_since(""), ["/dev/loop0", "/dev/loop1"]);
    }

    /// A number of a loop device that is used again is not taken for what it was.
    #[test]
    fn a_loop_device_is_known_by_the_kernels_count() {
        let sys = tempfile::tempdir().unwrap();
        let device = sys.path().join("loop0");
        fs::create_dir_all(device.join("loop")).unwrap();
        fs::write(device.join("diskseq"), "17\n").unwrap();
        let (sys, node) = (sys.path(), "/dev/loop0");
        assert_eq!(sequence_in(sys, node).as_deref(), Some("17"));
        let renamed = Found::default();
        let serves = |saved: Option<&str>, found: &Found| {
            serves_in(sys, node, saved.map(str::to_owned).as_ref(), found)
        };
        assert_eq!(serves(Some("17"), &renamed), Some(true), "whatever became of the file");
        assert_eq!(serves(Some("16"), &renamed), Some(false));
        // Without the count, by the file.
        assert_eq!(serves(None, &renamed), Some(false));
        assert_eq!(
            serves(
                None,
                &Found {
                    loops: vec![LoopDevice { sequence: None, node: node.to_owned() }],
                    ..renamed.clone()
                }
            ),
            Some(true)
        );
        // Given back since.
        fs::remove_dir(device.join("loop")).unwrap();
        assert_eq!(serves(Some("17"), &renamed), Some(false));
        assert_eq!(serves_in(sys, "/dev/loop1", None, &renamed), None);
        assert_eq!(serves_in(sys, "/dev/sim0", None, &renamed), None);
    }

    /// A6: a target that does not answer, such as a pipe that nobody writes would be if it were opened.
    #[tokio::test]
    async fn a6_a_target_that_does_not_answer_is_given_up() {
        assert!(
            blocking(Duration::from_millis(10), || std::thread::sleep(Duration::from_millis(500)))
                .await
                .is_none()
        );
        assert_eq!(blocking(Duration::MAX, || 1).await, Some(1));
    }
}
