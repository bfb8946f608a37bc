//! Closes every descriptor above 2, at once or at `exec`, in a process that was just forked.
//!
//! Only system calls, no allocation: the process is a copy of one thread of a program with many.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use rustix::fs::{Mode, OFlags, RawDir};
use rustix::io::FdFlags;

/// What happens to the descriptors.
#[derive(Clone, Copy)]
enum When {
    Now,
    OnExec,
}

/// Every descriptor above 2 is closed at `exec`. Not earlier: through one of them the standard library
/// learns whether the `exec` worked.
pub(super) fn close_on_exec() -> io::Result<()> {
    close_range(When::OnExec).or_else(|_| list_and_close(When::OnExec))
}

/// From now on no program that this process executes inherits a descriptor above 2 which is open now. For daemons, which
/// must not hold what their starters had open: locks, and pipes that somebody reads to their end.
///
/// # Errors
///
/// If neither the kernel takes the request nor `/proc` lists the descriptors.
pub fn pass_on_no_descriptors() -> io::Result<()> {
    close_on_exec()
}

/// Every descriptor above 2 is closed now. Whoever calls this must have no use for any of them.
pub(super) fn close() -> io::Result<()> {
    close_range(When::Now).or_else(|_| list_and_close(When::Now))
}

fn close_range(when: When) -> io::Result<()> {
    const FIRST: libc::c_uint = 3;
    let flags = match when {
        When::Now => 0,
        When::OnExec => libc::CLOSE_RANGE_CLOEXEC,
    };
    // SAFETY: takes three integers. In a forked process nobody uses the descriptors that it closes.
    let result = unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The same for kernels before 5.11, XenServer's among them: one by one, as `/proc` lists them.
fn list_and_close(when: When) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(c"/proc/self/fd", flags, Mode::empty())?;
    let mut buffer = [MaybeUninit::uninit(); 2048];
    let mut entries = RawDir::new(&directory, &mut buffer);
    while let Some(entry) = entries.next() {
        match number(entry?.file_name()) {
            Some(fd @ 3..) if fd != directory.as_raw_fd() => close_one(fd, when)?,
            _ => {}
        }
    }
    Ok(())
}

fn close_one(fd: RawFd, when: When) -> io::Result<()> {
    match when {
        // SAFETY: as for `close_range`.
        When::Now => unsafe { rustix::io::close(fd) },
        When::OnExec => {
            // SAFETY: listed as open, and no other thread exists here that could close it.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC)?;
        }
    }
    Ok(())
}

fn number(name: &CStr) -> Option<RawFd> {
    name.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;

    /// How many descriptors for `/dev/zero` a child has after `exec`.
    fn zeros(prepare: fn() -> io::Result<()>) -> usize {
        let mut command = Command::new("sh");
        command.args(["-c", "for fd in /proc/$$/fd/*; do readlink $fd; done"]);
        // SAFETY: see the head of this module.
        unsafe { command.pre_exec(prepare) };
        let listing = String::from_utf8(command.output().unwrap().stdout).unwrap();
        assert!(listing.contains("/dev/null\n"), "standard input is missing in {listing}");
        listing.lines().filter(|target| *target == "/dev/zero").count()
    }

    #[test]
    fn both_ways_to_close_descriptors_close_all() {
        let leaks: Vec<_> = (0..200).map(|_| std::fs::File::open("/dev/zero").unwrap()).collect();
        for leak in &leaks {
            rustix::io::fcntl_setfd(leak, FdFlags::empty()).unwrap();
        }
        assert_eq!(zeros(|| Ok(())), 200);
        assert_eq!(zeros(|| list_and_close(When::OnExec)), 0);
        assert_eq!(zeros(close_on_exec), 0);
        assert_eq!(zeros(|| list_and_close(When::Now)), 0);
        assert_eq!(zeros(close), 0);
    }
}
