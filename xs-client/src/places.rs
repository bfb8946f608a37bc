//! Where a machine has its store.

use std::env;
use std::path::{Path, PathBuf};

/// Where the device is, in the order in which it is looked for. The second needs xenfs.
const DEVICES: [&str; 2] = ["/dev/xen/xenbus", "/proc/xen/xenbus"];

/// Where xenstored listens: `$XENSTORED_PATH`, else `$XENSTORED_RUNDIR/socket`, else
/// `/run/xenstored/socket`, as libxenstore has it.
pub fn default_socket() -> PathBuf {
    if let Some(path) = env::var_os("XENSTORED_PATH") {
        return path.into();
    }
    let run_dir = env::var_os("XENSTORED_RUNDIR").unwrap_or_else(|| "/run/xenstored".into());
    PathBuf::from(run_dir).join("socket")
}

/// Where the kernel has its xenstore device: `/dev/xen/xenbus`, or `/proc/xen/xenbus` if only that
/// is there.
pub fn default_device() -> PathBuf {
    let there = DEVICES.iter().find(|path| Path::new(path).exists());
    there.unwrap_or(&DEVICES[0]).into()
}

/// Where libxenstore looks, in this order.
#[cfg(feature = "tokio")]
pub(crate) fn all_places() -> Vec<PathBuf> {
    match env::var_os("XENSTORED_PATH") {
        Some(path) => vec![path.into()],
        None => [default_socket()].into_iter().chain(DEVICES.map(PathBuf::from)).collect(),
    }
}
