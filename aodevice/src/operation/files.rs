//! Looking at files of this domain: a target, and what has been made of it.
//!
//! A file on dead network storage does not answer, so all of this happens in a thread of its own, has
//! a deadline and can be given up; the thread stays until the storage answers.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use devstate::deadline;

/// Where the kernel tells of block devices.
const SYS_BLOCK: &str = "/sys/block";

/// Runs `work` in a thread of its own; `None` if it takes too long.
async fn blocking<T: Send + 'static>(
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
        return Err(format!("the target {target:?} is not an absolute path"));
    }
    let path = PathBuf::from(target);
    let Some(metadata) = blocking(limit, move || fs::metadata(path)).await else {
        return Err(format!("the target {target} does not answer within {limit:?}"));
    };
    let kind = metadata.map_err(|error| format!("the target {target}: {error}"))?;
    if kind.is_file() || kind.file_type().is_block_device() {
        return Ok(());
    }
    Err(format!("the target {target} is neither a file nor a block device"))
}

/// What there is of a target now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) is_file: bool,
    /// The loop devices that serve it, as `/dev/loop0`.
    pub(crate) loops: Vec<String>,
}

/// Looks at a target; `None` if it does not answer in time.
pub(crate) async fn look_at(target: &str, limit: Duration) -> Option<Found> {
    let path = PathBuf::from(target);
    blocking(limit, move || Found {
        is_file: path.is_file(),
        loops: loops_of(Path::new(SYS_BLOCK), &fs::canonicalize(&path).unwrap_or(path)),
    })
    .await
}

/// The loop devices whose backing file is this one, deleted or not.
fn loops_of(sys_block: &Path, file: &Path) -> Vec<String> {
    let devices = fs::read_dir(sys_block).into_iter().flatten().flatten();
    let names = devices.filter_map(|device| device.file_name().into_string().ok());
    let serves = |name: &String| {
        let backing = fs::read(sys_block.join(name).join("loop/backing_file")).unwrap_or_default();
        let backing = String::from_utf8_lossy(&backing);
        let backing = backing.trim_end_matches('\n');
        Path::new(backing.strip_suffix(" (deleted)").unwrap_or(backing)) == file
    };
    let mut loops: Vec<String> = names.filter(|name| name.starts_with("loop")).filter(serves).collect();
    loops.sort();
    loops.into_iter().map(|name| format!("/dev/{name}")).collect()
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
        None => Some(found.loops.iter().any(|device| device == node)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loop_devices_are_found_by_their_file() {
        let sys = tempfile::tempdir().unwrap();
        for (device, backing) in [
            ("loop0", "/srv/d.img\n"),
            ("loop1", "/srv/e.img\n"),
            ("loop2", "/srv/d.img (deleted)\n"),
            ("sda", ""),
        ] {
            fs::create_dir_all(sys.path().join(device).join("loop")).unwrap();
            fs::write(sys.path().join(device).join("loop/backing_file"), backing).unwrap();
        }
        fs::create_dir_all(sys.path().join("loop3")).unwrap();
        assert_eq!(loops_of(sys.path(), Path::new("/srv/d.img")), ["/dev/loop0", "/dev/loop2"]);
        assert_eq!(loops_of(sys.path(), Path::new("/srv/f.img")), [""; 0]);
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
        let renamed = Found { is_file: false, loops: Vec::new() };
        let serves = |saved: Option<&str>, found: &Found| {
            serves_in(sys, node, saved.map(str::to_owned).as_ref(), found)
        };
        assert_eq!(serves(Some("17"), &renamed), Some(true), "whatever became of the file");
        assert_eq!(serves(Some("16"), &renamed), Some(false));
        // Without the count, by the file.
        assert_eq!(serves(None, &renamed), Some(false));
        assert_eq!(serves(None, &Found { loops: vec![node.to_owned()], ..renamed.clone() }), Some(true));
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
