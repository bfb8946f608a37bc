//! Starts a script, or a tool of a native handler, behind its guard.
//!
//! `unsafe` is allowed here because the guard begins between `fork` and `exec`, where the standard
//! library lets only a `pre_exec` closure in.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use super::group::Group;
use super::guard::Guard;
use super::output::Capture;

/// Starts a program with exactly these arguments and variables, behind a guard that holds the lock of the device, if
/// there is one. Returns the program's group and what reads its output. Needs a tokio runtime with I/O around it.
///
/// When this returns, the program leads its own session and group: the standard library waits for the
/// `exec`. Nobody but the program holds the writing end of the pipe.
pub(crate) fn start(
    program: &OsStr,
    args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    variables: &BTreeMap<OsString, OsString>,
    lock: Option<BorrowedFd<'_>>,
) -> io::Result<(Group, Capture)> {
    let (reader, writer) = io::pipe()?;
    let capture = Capture::new(reader)?;
    let (lifeline, guards_end) = UnixStream::pair()?;
    lifeline.set_nonblocking(true)?;
    let lifeline = tokio::net::UnixStream::from_std(lifeline)?;

    let mut command = Command::new(program);
    command.args(args).env_clear().envs(variables);
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    // Without a lock the guard keeps its lifeline twice.
    let lock = lock.map_or(guards_end.as_raw_fd(), |lock| lock.as_raw_fd());
    let guard = Guard { lifeline: guards_end.as_raw_fd(), lock };
    // SAFETY: everything that the closure calls is async-signal-safe: system calls and no allocation.
    unsafe { command.pre_exec(move || guard.begin()) };
    Ok((Group::new(command.spawn()?, lifeline), capture))
}
