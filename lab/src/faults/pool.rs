//! The threads that run schedules, one after the other.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Instant;

use super::world::Outcome;
use super::{HANG, Trial};

pub(super) struct Pool {
    pub(super) results: mpsc::Receiver<(u64, io::Result<Outcome>)>,
    /// The next seed.
    next: Arc<AtomicU64>,
    /// What each thread is at.
    busy: Vec<Arc<Mutex<Busy>>>,
}

/// The seed of a schedule that is run, and since when.
type Busy = Option<(u64, Instant)>;

impl Pool {
    pub(super) fn start(trial: &Trial, seed: u64, schedules: u64) -> Self {
        let (sender, results) = mpsc::channel();
        let next = Arc::new(AtomicU64::new(seed));
        let end = seed.saturating_add(schedules);
        let busy = (0..trial.threads).map(|_| {
            let (sender, next, busy) = (sender.clone(), next.clone(), Arc::new(Mutex::new(None)));
            let (schedule, run) = (trial.schedule, trial.run);
            let mine = busy.clone();
            thread::spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    *mine.lock().unwrap_or_else(PoisonError::into_inner) = Some((seed, Instant::now()));
                    let outcome = run(&schedule(seed));
                    *mine.lock().unwrap_or_else(PoisonError::into_inner) = None;
                    if sender.send((seed, outcome)).is_err() {
                        return;
                    }
                }
            });
            busy
        });
        Self { busy: busy.collect(), results, next }
    }

    /// Lets no other schedule begin.
    pub(super) fn stop(&self) {
        self.next.store(u64::MAX / 2, Ordering::Relaxed);
    }

    /// The seed of a schedule that does not end, although its time is not real.
    pub(super) fn hangs(&self) -> Option<u64> {
        let all = self.busy.iter();
        all.filter_map(|busy| *busy.lock().unwrap_or_else(PoisonError::into_inner))
            .find(|(_, since)| since.elapsed() > HANG)
            .map(|(seed, _)| seed)
    }
}
