//! Scenarios of a real Xen host side by side: an emulated machine keeps one CPU busy, and needs some memory.

use std::collections::VecDeque;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, thread};

/// A step that was run: its name, how long it took, and whether it passed.
pub(crate) type Ended = (&'static str, Duration, bool);

/// What two machines need, in kibibytes, with what the lab itself needs.
const MEMORY: u64 = 10 << 20;

/// Runs scenarios by their names, each in a process of its own; what one has printed is printed when it has ended.
pub(crate) fn run(scenarios: &[(&'static str, &'static str)], may_install: bool) -> Vec<Ended> {
    let lanes = if cpus() > 1 && free_memory() > MEMORY { 2 } else { 1 };
    let queue = Mutex::new(VecDeque::from(scenarios.to_vec()));
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let ended = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..lanes {
            scope.spawn(|| {
                while let Some((name, scenario)) = next() {
                    println!("lab: {name} begins");
                    let begun = Instant::now();
                    let (passed, said) = boot(scenario, may_install);
                    let took = begun.elapsed();
                    let mut ended = ended.lock().unwrap_or_else(PoisonError::into_inner);
                    // Under the lock, so that reports do not mix.
                    println!("\nlab: === {name}\n{said}");
                    if !passed {
                        eprintln!("lab: {name} failed");
                    }
                    ended.push((name, took, passed));
                }
            });
        }
    });
    ended.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a scenario; whether it passed, and what was printed.
fn boot(scenario: &str, may_install: bool) -> (bool, String) {
    // This very program, though a build may have put another one in its place.
    let mut command = Command::new("/proc/self/exe");
    command.args(["xen", "--quiet", scenario]).stdin(Stdio::null());
    if !may_install {
        command.arg("--no-install");
    }
    match command.output() {
        Ok(output) => {
            let said = [output.stdout, output.stderr].concat();
            (output.status.success(), String::from_utf8_lossy(&said).into_owned())
        }
        Err(error) => (false, format!("cannot run the scenario: {error}")),
    }
}

fn cpus() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// What could be used, in kibibytes; nothing if the kernel does not tell.
fn free_memory() -> u64 {
    let told = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = told.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok()).unwrap_or(0)
}
