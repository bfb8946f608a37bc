//! The daemon in the background: this program again, in a session of its own, whose first process waits until it is
//! ready.
//!
//! It is executed anew and not forked, so no thread and no lock of the first process is in it. It says on its standard
//! output that it is ready; what keeps it from that it says on the standard error that both have until then.

use std::env;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use rustix::process::{Signal, set_parent_process_death_signal, setsid};
use rustix::stdio::{dup2_stderr, dup2_stdout};

use super::TRIED;
use super::log::Log;
use crate::problem::{Code, Exit, Problem};

/// What the process in the background says when it is ready.
const READY: &str = "ready\n";

/// Starts the daemon, and waits until it is ready or has ended.
pub(super) fn start() -> Result<Exit, Problem> {
    let failed = |error: io::Error| {
        Problem::new(Code::Start, TRIED, error, "see the limits of this process (ulimit -a), or use -F")
    };
    let program = env::current_exe().map_err(failed)?;
    xen_hotplug::pass_on_no_descriptors().map_err(failed)?;
    let mut command = Command::new(program);
    command.args(env::args_os().skip(1)).arg("--background");
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(failed)?;
    let mut line = String::new();
    if let Some(output) = child.stdout.take() {
        BufReader::new(output).read_line(&mut line).map_err(failed)?;
    }
    if line == READY {
        return Ok(Exit::Done);
    }
    // It has said why, as JSON too if that was asked for.
    if !line.is_empty() {
        crate::output::say(line);
    }
    let ended = child.wait().map_err(failed)?;
    match ended.code().and_then(|code| code.try_into().ok()) {
        Some(status) => Ok(Exit::Background(status)),
        None => Err(Problem::new(
            Code::Start,
            TRIED,
            format!("its process has ended before it was ready: {ended}"),
            "see the limits of this process (ulimit -a), and the kernel's log",
        )),
    }
}

/// Takes this process out of the session of whoever has started the daemon.
pub(super) fn leave_session() {
    // It fails for who leads a group, which a process that was just started does not.
    _ = setsid();
    _ = env::set_current_dir("/");
}

/// Until it is ready this process ends with the one that has started it: who ended that wants no daemon.
pub(super) fn end_with_starter() {
    _ = set_parent_process_death_signal(Some(Signal::TERM));
}

/// Tells the process that waits, and lets go of what it has in common with that; whether it did wait.
pub(super) fn is_ready(log: &Log) -> bool {
    _ = set_parent_process_death_signal(None);
    let mut output = io::stdout();
    let waited = output.write_all(READY.as_bytes()).and_then(|()| output.flush()).is_ok();
    leave_output_to(log);
    waited
}

/// What this process writes goes to the log's file.
pub(super) fn leave_output_to(log: &Log) {
    let rest = log.file().map_or_else(|| File::options().write(true).open("/dev/null"), Ok);
    if let Ok(rest) = rest {
        _ = dup2_stdout(&rest);
        _ = dup2_stderr(&rest);
    }
}
