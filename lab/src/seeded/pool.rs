//! The threads that run schedules, one after the other.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// A schedule takes some milliseconds, or seconds; one that takes this long does not end.
pub(crate) const HANG: Duration = Duration::from_secs(120);

/// Runs a schedule for each seed.
#[derive(Debug)]
pub(crate) struct Pool<T> {
    /// What each came to, with its seed.
    pub(crate) results: mpsc::Receiver<(u64, T)>,
    /// The next seed.
    next: Arc<AtomicU64>,
    /// What each thread is at.
    busy: Vec<Arc<Mutex<Busy>>>,
}

/// The seed of a schedule that is run, and since when.
type Busy = Option<(u64, Instant)>;

impl<T: Send + 'static> Pool<T> {
    /// Runs `count` schedules from this seed on, in so many threads.
    pub(crate) fn start(
        threads: usize,
        seed: u64,
        count: u64,
        run: impl Fn(u64) -> T + Copy + Send + 'static,
    ) -> Self {
        let (sender, results) = mpsc::channel();
        let next = Arc::new(AtomicU64::new(seed));
        let end = seed.saturating_add(count);
        let busy = (0..threads).map(|_| {
            let (sender, next, busy) = (sender.clone(), next.clone(), Arc::new(Mutex::new(None)));
            let mine = busy.clone();
            thread::spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    *mine.lock().unwrap_or_else(PoisonError::into_inner) = Some((seed, Instant::now()));
                    let outcome = run(seed);
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
    pub(crate) fn stop(&self) {
        self.next.store(u64::MAX / 2, Ordering::Relaxed);
    }

    /// The seed of a schedule that does not end.
    pub(crate) fn hangs(&self) -> Option<u64> {
        let all = self.busy.iter();
        all.filter_map(|busy| *busy.lock().unwrap_or_else(PoisonError::into_inner))
            .find(|(_, since)| since.elapsed() > HANG)
            .map(|(seed, _)| seed)
    }
}
