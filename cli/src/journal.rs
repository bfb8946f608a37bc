//! Systemd's journal in the place of standard error.

use std::env;
use std::sync::LazyLock;

use rustix::fs::fstat;
use rustix::stdio;

/// Whether standard error is the journal, which says itself which file that is: a program that was started from a service
/// of another kind has the variable too.
pub(crate) fn is_journal() -> bool {
    static IS_JOURNAL: LazyLock<bool> = LazyLock::new(|| {
        let Ok(told) = env::var("JOURNAL_STREAM") else { return false };
        fstat(stdio::stderr()).is_ok_and(|found| told == format!("{}:{}", found.st_dev, found.st_ino))
    });
    *IS_JOURNAL
}

/// How much a line matters, by the numbers of syslog(3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Priority {
    Error = 3,
    Warning = 4,
    Info = 6,
}

/// Lines for standard error. The journal takes the priority of each from before it.
pub(crate) fn marked(priority: Priority, text: &str) -> String {
    if is_journal() { of_journal(priority, text) } else { text.to_owned() }
}

fn of_journal(priority: Priority, text: &str) -> String {
    text.split_inclusive('\n').map(|line| format!("<{}>{line}", priority as u8)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_has_its_priority() {
        assert_eq!(of_journal(Priority::Error, "error: a\n  b\n"), "<3>error: a\n<3>  b\n");
    }
}
