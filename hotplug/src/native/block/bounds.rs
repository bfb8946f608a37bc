//! How long an operation may take, and who may end it: for work that blocks, and for the lock of all disks.

use std::fs;
use std::future::pending;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::select;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::failure::Failure;
use crate::lock::Held;

/// How often to try the lock of all disks: it is mostly held for as long as a few requests to the store take.
const POLL: Duration = Duration::from_millis(2);

/// For how long a cancellation waits for the kernel.
const PATIENCE: Duration = Duration::from_secs(2);

/// The lock of all disks, for the attaches of this process that share this value: only one of them at a time tries the file,
/// the others wait in their order.
#[derive(Clone, Debug)]
pub(super) struct Lock {
    path: PathBuf,
    turn: Arc<Mutex<()>>,
}

impl Lock {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, turn: Arc::default() }
    }

    async fn take(&self) -> std::io::Result<Locked> {
        let turn = self.turn.clone().lock_owned().await;
        Ok(Locked { _held: Held::take(&self.path, POLL).await?, _turn: turn })
    }
}

/// The lock, taken.
#[derive(Debug)]
pub(in crate::native) struct Locked {
    // Before the turn: fields are dropped in their order.
    _held: Held,
    _turn: OwnedMutexGuard<()>,
}

/// A deadline and a means to cancel.
#[derive(Clone, Debug)]
pub(super) struct Bounds {
    within: Duration,
    /// None for no deadline.
    deadline: Option<Instant>,
    cancel: CancellationToken,
}

impl Bounds {
    /// From now on.
    pub(super) fn new(within: Duration, cancel: &CancellationToken) -> Self {
        Self { within, deadline: Instant::now().checked_add(within), cancel: cancel.clone() }
    }

    /// Does in a thread what may block. Whatever the thread yields after it was given up is dropped there.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        tried: String,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        select! {
            biased;
            () = self.cancel.cancelled() => Err(Failure::Cancelled),
            done = spawn_blocking(work) => match done {
                Ok(done) => done,
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                // The runtime shuts down.
                Err(_) => Err(Failure::Cancelled),
            },
            () = self.passed() => Err(Failure::NoAnswer { tried, within: self.within }),
        }
    }

    /// The same for what makes something that is to be given back: a cancellation waits a while for its end, so that
    /// nothing is left when the program ends.
    pub(super) async fn finished<T: Send + 'static>(
        &self,
        tried: String,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let gives_up = CancellationToken::new();
        let bounds = Self { cancel: gives_up.clone(), ..self.clone() };
        let mut work = pin!(bounds.blocking(tried, work));
        select! {
            biased;
            done = &mut work => return done,
            () = self.cancel.cancelled() => {}
        }
        select! {
            biased;
            done = &mut work => drop(done),
            () = sleep(PATIENCE) => gives_up.cancel(),
        }
        Err(Failure::Cancelled)
    }

    /// Takes a lock of the stock scripts: an exclusive `flock` on a file of this name, which the holder removes.
    pub(super) async fn lock(&self, lock: &Lock) -> Result<Locked, Failure> {
        let path: &Path = &lock.path;
        let failed = |error| Failure::of(format!("lock {}", crate::printable::printable_path(path)), error);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        select! {
            biased;
            () = self.cancel.cancelled() => Err(Failure::Cancelled),
            lock = lock.take() => lock.map_err(failed),
            () = self.passed() => Err(Failure::Locked { path: PathBuf::from(path), within: self.within }),
        }
    }

    async fn passed(&self) {
        match self.deadline {
            Some(deadline) => sleep_until(deadline).await,
            None => pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;

    #[tokio::test]
    async fn the_lock_is_the_one_that_scripts_take() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/block");
        let lock = Lock::new(path.clone());
        let bounds = |millis| Bounds::new(Duration::from_millis(millis), &CancellationToken::new());
        let held = bounds(10_000).lock(&lock).await.unwrap();
        let tried = |path: &Path| {
            let mut command = Command::new("flock");
            command.args(["--nonblock", "--exclusive"]).arg(path).arg("true").stdin(Stdio::null());
            command.status().expect("flock is needed, of the package util-linux").success()
        };
        assert!(!tried(&path), "a script would have it");
        // Be it of those who share it, or another's.
        for other in [lock.clone(), Lock::new(path.clone())] {
            let error = bounds(20).lock(&other).await.unwrap_err().to_string();
            assert!(error.contains("within 20ms: another attach holds it"), "{error}");
        }
        drop(held);
        assert!(!path.exists());
        drop(bounds(10_000).lock(&lock).await.unwrap());
        assert!(tried(&path));
    }

    #[tokio::test]
    async fn nothing_outlives_its_bounds() {
        let (cancel, never) = (CancellationToken::new(), CancellationToken::new());
        let slow = || {
            thread::sleep(Duration::from_millis(200));
            Ok(())
        };
        let bounds = Bounds::new(Duration::from_millis(10), &never);
        let error = bounds.blocking("look".to_owned(), slow).await.unwrap_err().to_string();
        assert!(error.starts_with("cannot look within 10ms: there is no answer"), "{error}");
        cancel.cancel();
        let bounds = Bounds::new(Duration::MAX, &cancel);
        assert!(matches!(bounds.blocking("look".to_owned(), slow).await, Err(Failure::Cancelled)));
        struct Made(Arc<AtomicBool>);
        impl Drop for Made {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let given_back = Arc::new(AtomicBool::new(false));
        let made = Made(given_back.clone());
        let make = move || slow().map(|()| made);
        let bounds = Bounds::new(Duration::MAX, &cancel);
        assert!(matches!(bounds.finished("make".to_owned(), make).await, Err(Failure::Cancelled)));
        assert!(given_back.load(Ordering::Relaxed), "it is left to a thread");
        let bounds = Bounds::new(Duration::MAX, &never);
        assert_eq!(bounds.blocking("look".to_owned(), || Ok(1)).await.unwrap(), 1);
    }
}
