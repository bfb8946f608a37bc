//! Starts the process of a script: one pipe for what it prints, a session of its own, nothing
//! inherited that it should not have.
//!
//! `unsafe` is allowed here because that work is for the child, between `fork` and `exec`, where the
//! standard library lets only a `pre_exec` closure in; and because some of its calls, on the signal mask
//! and on descriptors known by number only, have no safe wrapper.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::{CStr, OsString};
use std::io::{self, PipeReader};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use rustix::fs::{Mode, OFlags, RawDir};
use rustix::io::FdFlags;

use crate::ScriptRun;

/// Starts a script with exactly these variables; returns its process and the pipe it prints into.
///
/// When this returns, the process leads its own session and group: the standard library waits for the
/// `exec`. Nobody but the script holds the writing end of the pipe.
pub(crate) fn spawn(
    run: &ScriptRun,
    variables: &BTreeMap<OsString, OsString>,
) -> io::Result<(Child, PipeReader)> {
    let (reader, writer) = io::pipe()?;
    let mut command = Command::new(&run.script);
    command.args(&run.args).env_clear().envs(variables);
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    // SAFETY: everything that `detach` calls is async-signal-safe: system calls and no allocation.
    unsafe { command.pre_exec(detach) };
    Ok((command.spawn()?, reader))
}

/// In the child: cuts what ties it to this program.
fn detach() -> io::Result<()> {
    rustix::process::setsid()?;
    unblock_signals()?;
    close_range_on_exec().or_else(|_| list_and_close_on_exec())
}

/// No signal is blocked. (The standard library has put `SIGPIPE`, which it ignores in Rust programs, back
/// to its default, so that `yes | head` ends in a script as it does in a shell; handlers end with `exec`
/// by themselves.)
fn unblock_signals() -> io::Result<()> {
    let mut none = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigemptyset` initialises the set that `sigprocmask` reads; both pointers are valid.
    let result = unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Every descriptor above 2 shall close at `exec`. Not earlier: through one of them the standard
/// library learns whether the `exec` worked.
fn close_range_on_exec() -> io::Result<()> {
    const FIRST: libc::c_uint = 3;
    // SAFETY: takes three integers; the descriptors stay open until `exec`.
    let result =
        unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The same for kernels before 5.11, XenServer's among them: one by one, as `/proc` lists them.
fn list_and_close_on_exec() -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(c"/proc/self/fd", flags, Mode::empty())?;
    let mut buffer = [MaybeUninit::uninit(); 2048];
    let mut entries = RawDir::new(&directory, &mut buffer);
    while let Some(entry) = entries.next() {
        if let Some(fd @ 3..) = number(entry?.file_name()) {
            // SAFETY: listed as open, and no other thread exists here that could close it.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC)?;
        }
    }
    Ok(())
}

fn number(name: &CStr) -> Option<i32> {
    name.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many descriptors for `/dev/zero` a child has after `exec`.
    fn zeros(prepare: fn() -> io::Result<()>) -> usize {
        let mut command = Command::new("sh");
        command.args(["-c", "for fd in /proc/$$/fd/*; do readlink $fd; done"]);
        // SAFETY: see `spawn`.
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
        assert_eq!(zeros(list_and_close_on_exec), 0);
        assert_eq!(zeros(|| close_range_on_exec().or_else(|_| list_and_close_on_exec())), 0);
    }
}
