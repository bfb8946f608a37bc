//! What is told while an operation goes on: every step if asked, else a line on a terminal that
//! goes away again.

use std::time::Duration;

use aodevice::Step;
use indicatif::{ProgressBar, ProgressStyle};

use crate::args::Telling;

/// Tells steps on standard error.
#[derive(Clone)]
pub(crate) struct Progress {
    verbose: bool,
    line: ProgressBar,
}

impl Progress {
    pub(crate) fn new(telling: &Telling) -> Self {
        let quiet = telling.quiet || telling.verbose;
        // On anything but a terminal the bar draws nothing.
        let line = if quiet { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed:>3} {wide_msg}") {
            line.set_style(style);
        }
        line.enable_steady_tick(Duration::from_millis(200));
        Self { verbose: telling.verbose, line }
    }

    pub(crate) fn step(&self, step: &Step) {
        let Step { device, elapsed, doing } = step;
        if self.verbose {
            eprintln!("{:8.3} s  {device}: {doing}", elapsed.as_secs_f64());
        }
        self.line.set_message(format!("{device}: {doing}"));
    }

    pub(crate) fn done(&self) {
        self.line.finish_and_clear();
    }
}
