//! One daemon for a domain: a lock, which goes with its process however that ends.

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tokio::time::{Instant, sleep};

use super::TRIED;
use crate::problem::{Code, Problem};

/// How long to wait for a daemon that ends.
const PATIENCE: Duration = Duration::from_secs(3);

/// Holds the lock.
pub(super) struct Lock {
    _file: File,
}

fn path(run_dir: &Path) -> PathBuf {
    run_dir.join("devd.lock")
}

/// The process that has the lock.
fn holder(file: &mut File) -> String {
    let mut pid = String::new();
    _ = file.rewind();
    _ = file.take(32).read_to_string(&mut pid);
    pid.trim().to_owned()
}

impl Lock {
    /// Takes the lock; one whose daemon is about to end is waited for.
    pub(super) async fn take(run_dir: &Path) -> Result<Self, Problem> {
        let path = path(run_dir);
        let failed = |error: io::Error| {
            let observed = format!("{}: {error}", path.display());
            Problem::new(
                Code::Start,
                TRIED,
                observed,
                "run it as root, or name a folder of yours with --run-dir",
            )
        };
        DirBuilder::new().recursive(true).mode(0o700).create(run_dir).map_err(failed)?;
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        let begun = Instant::now();
        while let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if error != Errno::WOULDBLOCK {
                return Err(failed(error.into()));
            }
            if begun.elapsed() >= PATIENCE {
                let observed =
                    format!("process {} serves them, and has {} locked", holder(&mut file), path.display());
                let hint = "end that one first; xendev devd --status tells what it does";
                return Err(Problem::new(Code::Of("runs_already"), TRIED, observed, hint));
            }
            sleep(Duration::from_millis(50)).await;
        }
        file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
        writeln!(file, "{}", process::id()).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

/// The process of the daemon that runs here.
pub(super) fn daemon(run_dir: &Path) -> Option<u32> {
    let mut file = File::open(path(run_dir)).ok()?;
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => None,
        Err(_) => holder(&mut file).parse().ok(),
    }
}
