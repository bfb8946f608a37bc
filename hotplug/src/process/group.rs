//! The process group of a running script, as this program sees it: through its guard.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::thread;
use std::time::Duration;

use rustix::net::SendFlags;
use rustix::process::{Pid, WaitOptions};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use super::guard::{KILL, Status, TERMINATE};
use crate::Ending;

/// How long to wait for processes to be gone that got `SIGKILL`. One that hangs in the kernel, on dead
/// storage for instance, can stay for ever.
const KILL_WAIT: Duration = Duration::from_secs(2);

/// How often to look whether a guard is gone that has said its last.
const REAP_POLL: Duration = Duration::from_millis(1);

/// A script's process with all the descendants that stayed in its group.
///
/// Dropping it closes the lifeline, so that the guard kills the group if the script has not ended by
/// itself. The guard is reaped, in a thread of its own if it is still there.
#[derive(Debug)]
pub(crate) struct Group {
    guard: Child,
    lifeline: UnixStream,
    /// What the guard has told, or [`Ending::Lost`] if it has ended without.
    ending: Option<Ending>,
    reaped: bool,
}

impl Group {
    /// Takes a guard, and this program's end of its lifeline.
    pub(super) fn new(guard: Child, lifeline: UnixStream) -> Self {
        Self { guard, lifeline, ending: None, reaped: false }
    }

    /// Waits until the script has ended by itself, and says how. It is [`Ending::Lost`] if only the guard
    /// has ended: because it was killed, or because it has done what [`Group::terminate`] wants.
    ///
    /// Dropping the future loses nothing: it can be called again.
    pub(crate) async fn ended(&mut self) -> Ending {
        let ending = match self.ending.take() {
            Some(ending) => ending,
            None => self.hear().await,
        };
        self.ending = Some(ending.clone());
        // A guard that has said its last is about to end, and with it goes its hold on the device's lock.
        let _ = timeout(KILL_WAIT, self.reap()).await;
        ending
    }

    async fn hear(&self) -> Ending {
        let mut status = Status::default();
        loop {
            if self.lifeline.readable().await.is_err() {
                return Ending::Lost;
            }
            match self.lifeline.try_read(&mut status) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(len) if len == status.len() => return ending(i32::from_ne_bytes(status)),
                Ok(_) | Err(_) => return Ending::Lost,
            }
        }
    }

    async fn reap(&mut self) {
        while !self.is_gone() {
            sleep(REAP_POLL).await;
        }
    }

    /// Whether the guard is gone, and with it its hold on the device's lock.
    pub(crate) fn is_gone(&mut self) -> bool {
        // An error means that other code in this program has reaped it.
        self.reaped = self.reaped || !matches!(self.guard.try_wait(), Ok(None));
        self.reaped
    }

    /// Asks the group to end (`SIGTERM`), and kills after `grace` what is left of it.
    ///
    /// Returns as soon as no member is alive; how the script ended, if it had ended by itself before the
    /// guard got the order. If this future is dropped, the group is still killed when `self` is.
    pub(crate) async fn terminate(&mut self, grace: Duration) -> Option<Ending> {
        self.tell(TERMINATE);
        let ending = match timeout(grace, self.ended()).await {
            Ok(ending) => ending,
            Err(_) => {
                self.tell(KILL);
                timeout(KILL_WAIT, self.ended()).await.unwrap_or_else(|_| {
                    tracing::warn!("processes of a hotplug script survive SIGKILL, hung in the kernel");
                    Ending::Lost
                })
            }
        };
        (ending != Ending::Lost).then_some(ending)
    }

    fn tell(&self, order: u8) {
        // Fails if the guard has ended. Not by way of tokio, which would first wait for the socket to
        // be known as writable.
        let _ = rustix::net::send(&self.lifeline, &[order], SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.is_gone() {
            self.tell(KILL);
            let guard = Pid::from_child(&self.guard);
            let reap = move || rustix::process::waitpid(Some(guard), WaitOptions::empty());
            // Without a thread the guard stays a zombie until this program ends: no harm beyond that.
            let _ = thread::Builder::new().name("hotplug-reap".into()).stack_size(64 * 1024).spawn(reap);
        }
    }
}

fn ending(status: i32) -> Ending {
    let status = ExitStatus::from_raw(status);
    match (status.code(), status.signal()) {
        (Some(code), _) => Ending::Exited(code),
        (None, Some(signal)) => Ending::Signalled(signal),
        (None, None) => Ending::Lost,
    }
}
