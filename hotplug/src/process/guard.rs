//! The guard: the process that kills a script's group when it is told to, or when this program is gone.
//!
//! It begins as the child that the standard library forks, in the place where that child would go on to
//! `exec`. There it forks the script's own process, which does go on; the guard stays and never
//! executes another program.
//!
//! ```text
//!               the script ends by itself: the guard sends its status and ends; what is left lives on
//!   watching ──────────────────────────────────────────────────────────────────────────────────> end
//!      │  T, this program is gone: SIGTERM to the group                                           ^
//!      │  K, 2 s after this program is gone: SIGKILL to the group                                 │
//!      └──────────────────────────> given up ─────────────────────────────────────────────────────┘
//!                                   (T, K as before)      no process of the group is alive
//! ```
//!
//! The script's process leads its group, so the group's number is its process id. The kernel gives that
//! number to nobody else until the leader is reaped. Hence the rule for signals: none is sent after
//! the leader was reaped. While the guard watches it reaps whatever dies, and ends as soon as that is the
//! leader; once it has given the group up, it reaps only at its end.
//!
//! The guard is a copy of one thread of a program with many, so it may only do what is async-signal-safe:
//! system calls, no allocation, nothing that takes a lock. `unsafe` is allowed here for the system calls
//! without a safe wrapper.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitOptions};

use super::descriptors;

/// The order to ask the group to end.
pub(super) const TERMINATE: u8 = b'T';
/// The order to kill the group.
pub(super) const KILL: u8 = b'K';
/// What the guard sends when the script has ended by itself: the status as `waitpid` gives it, in the
/// machine's byte order.
pub(super) type Status = [u8; size_of::<i32>()];

/// How often to look without an event whether this program still exists, and whether the last process
/// has left the group by `setsid`, of which nothing tells. The lifeline alone does not do for the former:
/// another thread may just have forked a process that holds a copy of this program's end.
const LOOK: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// How long, in seconds, a script may still clean up after itself when this program is gone.
const ORPHAN_GRACE: i64 = 2;

/// The descriptors that the guard keeps, as they are numbered in this program.
#[derive(Clone, Copy, Debug)]
pub(super) struct Guard {
    /// The guard's end of the lifeline.
    pub(super) lifeline: RawFd,
    /// The lock of the device.
    pub(super) lock: RawFd,
}

impl Guard {
    /// Called in the child that the standard library has forked. Returns in the script's own process,
    /// which goes on to `exec`, and in the child itself only if there can be no guard.
    pub(super) fn begin(self) -> io::Result<()> {
        let owner = rustix::process::getppid();
        let guard = rustix::process::getpid();
        rustix::process::setsid()?;
        rustix::process::set_child_subreaper(Some(guard))?;
        set_blocked_signals(Blocked::All)?;
        default_child_signal()?;
        descriptors::close_on_exec()?;
        let deaths = child_deaths()?;
        let Some(leader) = fork()? else {
            return become_script(guard);
        };
        if self.keep(&deaths).is_err() {
            // With it dies the script's process, which has asked the kernel for that.
            exit();
        }
        let _ = rustix::thread::set_name(c"hotplug-guard");
        Watch { leader, owner, given_up: false, orphaned: None }.run()
    }

    /// Closes all but the descriptors that the guard needs, which it keeps as 0, 1 and 2. So the pipe
    /// of the script's output ends with the script, the standard library learns of the `exec`, and no
    /// guard holds the lifeline of another run.
    fn keep(self, deaths: &OwnedFd) -> io::Result<()> {
        // SAFETY: this program has both open while it forks, and they were copied with it.
        let (lifeline, lock) =
            unsafe { (BorrowedFd::borrow_raw(self.lifeline), BorrowedFd::borrow_raw(self.lock)) };
        rustix::stdio::dup2_stdin(lifeline)?;
        rustix::stdio::dup2_stdout(lock)?;
        rustix::stdio::dup2_stderr(deaths)?;
        descriptors::close()
    }
}

/// The script's own process, before its `exec`.
fn become_script(guard: Pid) -> io::Result<()> {
    rustix::process::setsid()?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // The signal is only for a death that is still to come.
    if rustix::process::getppid() != Some(guard) {
        return Err(Errno::SRCH.into());
    }
    set_blocked_signals(Blocked::None)
}

/// What the guard knows while it runs.
struct Watch {
    leader: Pid,
    /// The parent at the beginning: this program.
    owner: Option<Pid>,
    given_up: bool,
    /// Since when this program is gone, and so the lifeline has nothing more to say.
    orphaned: Option<i64>,
}

impl Watch {
    fn run(mut self) -> ! {
        loop {
            if self.given_up {
                self.end_if_group_is_dead();
            } else {
                self.end_with_leader();
            }
            self.wait_for_event();
            match self.order() {
                Some(TERMINATE) => self.signal(Signal::TERM),
                Some(_) => self.signal(Signal::KILL),
                None => {}
            }
        }
    }

    /// Reaps what has died. If that is the leader, tells its status and ends.
    fn end_with_leader(&self) {
        while let Some((child, status)) = reap() {
            if child == self.leader {
                let status: Status = status.to_ne_bytes();
                let _ = rustix::net::send(lifeline(), &status, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
                while reap().is_some() {}
                exit();
            }
        }
    }

    /// Ends if no process of the group is alive.
    fn end_if_group_is_dead(&self) {
        // The kernel answers "no such child" if all children of the group are dead, because the dead
        // cannot stop. Every member whose ancestors are all in the group is a child of the guard or has
        // one among its ancestors.
        let stops = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        if rustix::process::waitid(WaitId::Pgid(Some(self.leader)), stops).err() == Some(Errno::CHILD) {
            // For a member whose parent has left the group and lives on.
            self.kill_group(Signal::KILL);
            while reap().is_some() {}
            exit();
        }
    }

    fn wait_for_event(&self) {
        let (lifeline, deaths) = (lifeline(), deaths());
        let mut events = [PollFd::new(&deaths, PollFlags::IN), PollFd::new(&lifeline, PollFlags::IN)];
        let heard = if self.orphaned.is_some() { 1 } else { 2 };
        let _ = rustix::event::poll(&mut events[..heard], Some(&LOOK));
        let mut death = [MaybeUninit::<u8>::uninit(); size_of::<libc::signalfd_siginfo>()];
        // One is enough: the kernel queues the signal once, however many children have died.
        let _ = rustix::io::read(deaths, &mut death);
    }

    /// What this program wants, if it wants something. The end of the lifeline is the order to end, and
    /// soon to kill.
    fn order(&mut self) -> Option<u8> {
        if let Some(since) = self.orphaned {
            return (seconds() - since >= ORPHAN_GRACE).then_some(KILL);
        }
        let mut order = [0];
        match rustix::net::recv(lifeline(), &mut order, RecvFlags::DONTWAIT) {
            Ok((_, 1)) => Some(order[0]),
            Err(Errno::AGAIN | Errno::INTR) if rustix::process::getppid() == self.owner => None,
            _ => {
                self.orphaned = Some(seconds());
                Some(TERMINATE)
            }
        }
    }

    fn signal(&mut self, signal: Signal) {
        self.given_up = true;
        self.kill_group(signal);
    }

    fn kill_group(&self, signal: Signal) {
        // Fails only when every member is gone, or runs as somebody whom the guard may not kill.
        let _ = rustix::process::kill_process_group(self.leader, signal);
    }
}

/// The time, in seconds since some moment.
fn seconds() -> i64 {
    rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_sec
}

/// Reaps one dead child, if there is any.
fn reap() -> Option<(Pid, i32)> {
    let (child, status) = rustix::process::wait(WaitOptions::NOHANG).ok()??;
    Some((child, status.as_raw()))
}

fn lifeline() -> BorrowedFd<'static> {
    rustix::stdio::stdin()
}

fn deaths() -> BorrowedFd<'static> {
    rustix::stdio::stderr()
}

fn exit() -> ! {
    // SAFETY: ends the process at once, without anything that this program has registered.
    unsafe { libc::_exit(0) }
}

enum Blocked {
    All,
    None,
}

/// Sets the signal mask. In the guard all are blocked: what would end this program politely must
/// not end the guard before it has killed the group, and no handler of this program may run in it. In the
/// script none is, whatever this program has blocked. (The standard library has put `SIGPIPE`, which it
/// ignores in Rust programs, back to its default, so that `yes | head` ends in a script as it does in a
/// shell; handlers end with `exec` by themselves.)
fn set_blocked_signals(blocked: Blocked) -> io::Result<()> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is initialised before `sigprocmask` reads it; both pointers are valid.
    let result = unsafe {
        match blocked {
            Blocked::All => libc::sigfillset(set.as_mut_ptr()),
            Blocked::None => libc::sigemptyset(set.as_mut_ptr()),
        };
        libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A program that ignores `SIGCHLD` would hand that on, and the kernel would reap the guard's children.
fn default_child_signal() -> io::Result<()> {
    // SAFETY: sets a disposition that runs no code.
    let former = unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    if former == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A descriptor that can be read when a child has died.
fn child_deaths() -> io::Result<OwnedFd> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is initialised before it is read.
    let fd = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
        libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Forks. `None` in the child. The system call itself and not `fork`, which runs handlers and takes locks
/// that another thread of this program may have held when this process was forked.
fn fork() -> io::Result<Option<Pid>> {
    const UNSET: libc::c_long = 0;
    let signal = libc::c_long::from(libc::SIGCHLD);
    // SAFETY: without `CLONE_VM` the child has a copy of this process's memory, and goes on in it with a
    // copy of the stack.
    let child = unsafe { libc::syscall(libc::SYS_clone, signal, UNSET, UNSET, UNSET, UNSET) };
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(i32::try_from(child).ok().and_then(Pid::from_raw))
}
