//! What all schedules have in common that are made from seeds: threads that run them, whoever watches for panics, and
//! the search for the shortest that fails.

mod pool;
mod shrink;

use std::any::Any;
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

pub(crate) use pool::{HANG, Pool};
pub(crate) use shrink::{Parts, shrink};

thread_local! {
    /// Panics of this thread, those in tasks that nobody waits for included.
    static PANICS: Cell<u32> = const { Cell::new(0) };
}

/// What a course comes to, or what is told of a panic.
#[derive(Debug)]
pub(crate) enum Caught<T> {
    /// Nothing panicked.
    Calm(T),
    /// It came to its end, and a task that nobody waits for panicked.
    Beside(T),
    /// The course itself panicked, with these words.
    Panicked(String),
}

/// Runs a course in this thread, and sees whether anything panics in it.
pub(crate) fn catching<T>(course: impl FnOnce() -> T) -> Caught<T> {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let tell = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICS.set(PANICS.get() + 1);
            tell(info);
        }));
    });
    let before = PANICS.get();
    match panic::catch_unwind(AssertUnwindSafe(course)) {
        Ok(outcome) if PANICS.get() == before => Caught::Calm(outcome),
        Ok(outcome) => Caught::Beside(outcome),
        Err(panic) => Caught::Panicked(said(&*panic)),
    }
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    format!("a panic: {}", text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("without a word"))
}
