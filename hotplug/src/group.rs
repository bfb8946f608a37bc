//! The process group of a running script: noticing that its leader ended, and killing all of it.
//!
//! The script's process is the leader of its group, so the group's number is its process id. The
//! kernel gives that number to nobody else while the leader exists, and a leader that has died exists
//! until it is reaped. So the rule that everything here obeys: the leader is reaped last, when no
//! signal will be sent any more. Its death is looked at with `waitid(WNOWAIT)`, which does not reap;
//! this is also why tokio's child processes are not used, which reap as soon as they can.

use std::fs;
use std::process::Child;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitOptions};
use tokio::signal::unix;
use tokio::time::{sleep, timeout};

use crate::Ending;

/// How often to look at the leader when no `SIGCHLD` comes: embedding programs may have it blocked.
const LOOK: Duration = Duration::from_secs(1);

/// How often to look for members that are still alive, of which the kernel does not tell.
const POLL: Duration = Duration::from_millis(20);

/// How long to wait for processes to be gone that got `SIGKILL`. One that hangs in the kernel, on dead
/// storage for instance, can stay for ever.
const KILL_WAIT: Duration = Duration::from_secs(2);

/// A script's process with all the descendants that stayed in its group.
///
/// Dropping it reaps the leader, in a thread of its own if the leader is still alive; before that the
/// group is killed, unless [`Group::leave`] said otherwise.
#[derive(Debug)]
pub(crate) struct Group {
    leader: Child,
    id: Pid,
    /// Fires when any child of this program has died. (A pidfd would tell of this one alone, but
    /// kernels before 5.3 have none, and tokio lets only `unsafe` code wait for one.)
    deaths: unix::Signal,
    kill_on_drop: bool,
}

impl Group {
    /// Takes a child that leads a group and has not been waited for, and a stream of `SIGCHLD` that is
    /// older than the child, so that its death cannot be missed.
    pub(crate) fn new(leader: Child, deaths: unix::Signal) -> Self {
        let id = Pid::from_child(&leader);
        Self { leader, id, deaths, kill_on_drop: true }
    }

    /// Waits until the leader has died, and says how. It is not reaped by that.
    pub(crate) async fn ended(&mut self) -> Ending {
        loop {
            if let Some(ending) = self.look() {
                return ending;
            }
            let _ = timeout(LOOK, self.deaths.recv()).await;
        }
    }

    fn look(&self) -> Option<Ending> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        match rustix::process::waitid(WaitId::Pid(self.id), options) {
            Ok(None) | Err(rustix::io::Errno::INTR) => None,
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(status), _) => Some(Ending::Exited(status)),
                (None, Some(signal)) => Some(Ending::Signalled(signal)),
                (None, None) => None,
            },
            Err(_) => Some(Ending::Lost),
        }
    }

    /// Lets the rest of the group live when this value is dropped: the leader has ended by itself, and
    /// what it left behind it left on purpose. With the leader reaped by somebody else, the group's
    /// number may be that of others already.
    pub(crate) fn leave(&mut self) {
        self.kill_on_drop = false;
    }

    /// Asks the group to end (`SIGTERM`), and kills after `grace` what is left of it.
    ///
    /// Returns as soon as no member is alive. If this future is dropped, the group is still killed when
    /// `self` is.
    pub(crate) async fn terminate(&mut self, grace: Duration) {
        self.signal(Signal::TERM);
        if timeout(grace, self.gone()).await.is_ok() {
            return;
        }
        self.signal(Signal::KILL);
        if timeout(KILL_WAIT, self.gone()).await.is_err() {
            tracing::warn!(group = %self.id, "processes of a hotplug script survive SIGKILL, hung in the kernel");
        }
    }

    /// Waits until no member is alive.
    async fn gone(&mut self) {
        if self.ended().await == Ending::Lost {
            return;
        }
        while has_living_members(self.id) {
            sleep(POLL).await;
        }
    }

    fn signal(&self, signal: Signal) {
        if self.look() != Some(Ending::Lost) {
            // Fails only when every member is gone, or runs as somebody whom this program may not kill.
            let _ = rustix::process::kill_process_group(self.id, signal);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.kill_on_drop {
            self.signal(Signal::KILL);
        }
        if let Ok(None) = self.leader.try_wait() {
            let id = self.id;
            let reap = move || rustix::process::waitpid(Some(id), WaitOptions::empty());
            // Without a thread the leader stays a zombie until this program ends: no harm beyond that.
            let _ = thread::Builder::new().name("hotplug-reap".into()).stack_size(64 * 1024).spawn(reap);
        }
    }
}

/// Whether any process of a group is neither dead nor a zombie. The kernel has no other way to ask:
/// a signal of 0 counts zombies, and so always finds the leader, which is kept one.
fn has_living_members(group: Pid) -> bool {
    let Ok(processes) = fs::read_dir("/proc") else {
        return true;
    };
    let is_number = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    let names = processes.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| is_number(name)).any(|process| {
        // Gone again if it cannot be read.
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        is_living_member(&stat, group)
    })
}

/// Reads a line of `/proc/*/stat`: `number (name) state parent group ...`. The name may hold anything.
fn is_living_member(stat: &str, group: Pid) -> bool {
    let Some((_, fields)) = stat.rsplit_once(')') else {
        return false;
    };
    let mut fields = fields.split_ascii_whitespace();
    let (state, its_group) = (fields.next(), fields.nth(1));
    !matches!(state, Some("Z" | "X")) && its_group.and_then(|id| id.parse().ok()) == Some(group.as_raw_pid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_told_by_group_and_state() {
        let group = Pid::from_raw(7).unwrap();
        assert!(is_living_member("12 (sh) S 1 7 7 0 -1", group));
        assert!(is_living_member("12 (a) Z 1 7) R 1 7 7 0 -1", group));
        assert!(!is_living_member("12 (sh) Z 1 7 7 0 -1", group));
        assert!(!is_living_member("7 (sh) S 1 12 12 0 -1", group));
        assert!(!is_living_member("", group));
    }
}
