//! What is told while an operation goes on: every step if asked, else a line on a terminal that
//! goes away again.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use xen_aodevice::Step;

use crate::args::Common;
use crate::printer::stderr;
use crate::problem::line;
use crate::signals;

/// Tells steps on standard error.
#[derive(Clone, Copy)]
pub(crate) struct Progress {
    verbose: bool,
    quiet: bool,
}

impl Progress {
    /// Tells the steps of an operation that begins now, and what a signal does to it.
    pub(crate) fn new(common: &Common) -> Self {
        if !common.quiet {
            signals::announce_roll_back();
        }
        Self { verbose: common.verbose > 0, quiet: common.quiet }
    }

    /// Tells whoever wants to know all.
    pub(crate) fn say(&self, what: &str) {
        if self.verbose {
            stderr().put(format!("{}\n", line(what)));
        }
    }

    pub(crate) fn step(&self, step: &Step) {
        if !self.verbose && (self.quiet || !stderr().is_terminal()) {
            return;
        }
        let told = line(&step.to_string());
        if self.verbose {
            stderr().put(format!("{:8.3} s  {told}\n", step.elapsed.as_secs_f64()));
        } else {
            stderr().status(Some(told));
        }
    }

    pub(crate) fn done(&self) {
        stderr().status(None);
    }
}

/// The moving line on a terminal. Only the thread that prints draws it, since a terminal that is
/// stopped (Ctrl-S) blocks whoever draws.
#[derive(Default)]
pub(crate) struct StatusLine(Option<ProgressBar>);

impl StatusLine {
    /// Draws the line anew, or takes it away.
    pub(crate) fn show(&mut self, status: Option<&str>) {
        match status {
            Some(status) => {
                let line = self.0.get_or_insert_with(spinner);
                line.set_message(status.to_owned());
                line.tick();
            }
            None => {
                if let Some(line) = self.0.take() {
                    line.finish_and_clear();
                }
            }
        }
    }

    /// Takes the line away while other text is written.
    pub(crate) fn above<T>(&self, write: impl FnOnce() -> T) -> T {
        match &self.0 {
            Some(line) => line.suspend(write),
            None => write(),
        }
    }
}

fn spinner() -> ProgressBar {
    let line = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    match ProgressStyle::with_template("{spinner} {elapsed:>3} {wide_msg}") {
        Ok(style) => line.with_style(style),
        Err(_) => line,
    }
}
