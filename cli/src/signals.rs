//! Signals that ask the program to end: the first one cancels, and what was begun is rolled back;
//! a second one gives up on that.
//!
//! They are handled on a thread of their own, so that a main thread that is blocked (by a file
//! system that does not answer, for example) does not make the program deaf to them.

use std::fs::File;
use std::io::Read;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::flag::register_conditional_default;
use signal_hook::iterator::Signals;
use tokio_util::sync::CancellationToken;

use crate::printer::{stderr, stdout};
use crate::problem::{Code, Exit, Problem};

/// Signals that follow the first one so soon are the same request: `timeout` sends TERM to a
/// process and to its group, and a shell whose terminal is closed passes the terminal's HUP on.
const SAME_REQUEST: Duration = Duration::from_millis(200);

/// How long the last words may take when the program ends at once.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// When the first signal came.
static FIRST: OnceLock<Instant> = OnceLock::new();

/// The exit status, once nothing but output is left to do.
static CONCLUDED: OnceLock<u8> = OnceLock::new();

/// Whether a person is told that the first signal makes an operation roll back.
static ANNOUNCED: AtomicBool = AtomicBool::new(false);

/// Whether all that is to be told of the outcome is with the printers.
static TOLD: AtomicBool = AtomicBool::new(false);

/// Whether standard output is to hold a JSON value.
static JSON: AtomicBool = AtomicBool::new(false);

/// What HUP asks for in place of the end.
static HANGUP: OnceLock<Box<dyn Fn() + Send + Sync>> = OnceLock::new();

/// From now on HUP asks for this and ends nothing, as it is with daemons.
pub(crate) fn on_hangup(then: impl Fn() + Send + Sync + 'static) {
    // The first stands.
    _ = HANGUP.set(Box::new(then));
}

/// The token that HUP, INT, QUIT and TERM cancel. The first call installs the handlers.
///
/// A signal that is ignored by inheritance (`nohup`, `trap '' INT`) stays ignored.
pub(crate) fn cancel_on_signal() -> CancellationToken {
    static CANCEL: OnceLock<CancellationToken> = OnceLock::new();
    CANCEL.get_or_init(install).clone()
}

/// From now on, a person is told that the first signal makes an operation roll back.
pub(crate) fn announce_roll_back() {
    ANNOUNCED.store(true, Ordering::Relaxed);
}

/// What ends the program at once is told as JSON as well.
pub(crate) fn tell_as_json(json: bool) {
    JSON.store(json, Ordering::Relaxed);
}

/// What there is to tell is with the printers.
pub(crate) fn told() {
    TOLD.store(true, Ordering::Release);
}

/// From now on, a signal ends the program with this exit status.
pub(crate) fn conclude(status: u8) {
    // The first conclusion stands.
    _ = CONCLUDED.set(status);
}

fn install() -> CancellationToken {
    let token = CancellationToken::new();
    let ignored = ignored_signals();
    let heeded = [SIGHUP, SIGINT, SIGQUIT, SIGTERM].into_iter().filter(|kind| ignored >> (kind - 1) & 1 == 0);
    let heeded: Vec<i32> = heeded.collect();
    // Where they cannot be heard of, they end the program as they always do.
    if let Ok(mut arrivals) = Signals::new(&heeded) {
        let cancel = token.clone();
        let listen = move || arrivals.forever().for_each(|kind| arrived(kind, &cancel));
        if thread::Builder::new().name("signals".to_owned()).spawn(listen).is_err() {
            for kind in heeded {
                _ = register_conditional_default(kind, Arc::new(AtomicBool::new(true)));
            }
        }
    }
    token
}

/// The signals that this process ignores, bit 0 for signal 1. None on a system that does not tell.
fn ignored_signals() -> u64 {
    // In one read: it has some 1500 bytes.
    let mut status = [0; 8192];
    let read = File::open("/proc/self/status").and_then(|mut file| file.read(&mut status));
    let status = String::from_utf8_lossy(&status[..read.unwrap_or(0)]);
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// What is not read by then is lost.
fn last_words() {
    _ = stdout().flush_within(LAST_WORDS);
    _ = stderr().flush_within(LAST_WORDS);
}

fn arrived(kind: i32, cancel: &CancellationToken) {
    if let Some(then) = HANGUP.get().filter(|_| kind == SIGHUP) {
        return then();
    }
    if let Some(status) = CONCLUDED.get() {
        let begun = Instant::now();
        while !TOLD.load(Ordering::Acquire) && begun.elapsed() < LAST_WORDS {
            thread::sleep(Duration::from_millis(1));
        }
        last_words();
        process::exit((*status).into());
    }
    let Some(first) = FIRST.get() else {
        // Cancelling comes first: it must not depend on what becomes of a message.
        cancel.cancel();
        _ = FIRST.set(Instant::now());
        if ANNOUNCED.load(Ordering::Relaxed) {
            stderr().put("cancelling, and cleaning up; interrupt again to stop at once\n");
        }
        return;
    };
    if first.elapsed() < SAME_REQUEST {
        return;
    }
    let hint = "what was begun is left: list the guest's devices, and detach it";
    let problem = Problem::new(Code::Cancelled, "stopped at once", "a second signal came", hint);
    problem.print();
    if JSON.load(Ordering::Relaxed) {
        stdout().put(format!("{}\n", problem.json()));
    }
    last_words();
    process::exit(Exit::Aborted.status(false).into());
}
