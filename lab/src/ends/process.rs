//! Processes, as `/proc` shows them.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal};

/// Processes that have a folder in their command line or environment, with their command lines. What
/// a cell starts has its folder there, and so has what that starts in turn.
pub(super) fn with_mark(folder: &Path) -> Vec<(Pid, String)> {
    let mark = format!("{}/", folder.display());
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let marked = |pid: i32| {
        // A process that is gone, or dead and not reaped, has neither.
        let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let (line, environment) = (read("cmdline"), read("environ"));
        let has_mark = |text: &[u8]| text.windows(mark.len()).any(|window| window == mark.as_bytes());
        if !has_mark(&line) && !has_mark(&environment) {
            return None;
        }
        let line = String::from_utf8_lossy(&line).replace('\0', " ").replace(&mark, "");
        Some((Pid::from_raw(pid)?, line.trim_end().to_owned()))
    };
    pids.filter_map(marked).collect()
}

/// Kills what a cell has left, which is the lab's, until nothing of it is left.
pub(super) fn kill_marked(folder: &Path) {
    loop {
        let left = with_mark(folder);
        if left.is_empty() {
            return;
        }
        for (pid, _) in left {
            // It may have ended meanwhile.
            _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a thread of the process waits for room in a pipe.
pub(super) fn is_stuck_writing(pid: Pid) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{}/task", pid.as_raw_pid())) else { return false };
    let waits_where = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("wchan")).ok();
    threads.flatten().filter_map(waits_where).any(|function| function.contains("pipe_write"))
}
