//! The checks as values: what each is about, and what was found.

use serde::Serialize;

/// One check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Check {
    Executable,
    Tools,
    Ends,
    Add,
    Reports,
    Device,
    Outside,
    Processes,
    Remove,
    RemoveTwice,
    Vanished,
    Copy,
    BadTarget,
    TargetGone,
    Killed,
    Again,
    SideBySide,
    Shared,
    Environment,
    NoStdin,
}

impl Check {
    /// In the order in which they are made.
    pub(crate) const ALL: [Self; 20] = [
        Self::Executable,
        Self::Tools,
        Self::Ends,
        Self::Add,
        Self::Reports,
        Self::Device,
        Self::Outside,
        Self::Processes,
        Self::Remove,
        Self::RemoveTwice,
        Self::Vanished,
        Self::Copy,
        Self::BadTarget,
        Self::TargetGone,
        Self::Killed,
        Self::Again,
        Self::SideBySide,
        Self::Shared,
        Self::Environment,
        Self::NoStdin,
    ];

    /// Its id, and what a script does that passes it.
    fn told(self) -> (&'static str, &'static str) {
        match self {
            Self::Executable => ("executable", "the file can be executed, and its interpreter is there"),
            Self::Tools => ("tools", "xenstore-read and xenstore-write are installed"),
            Self::Ends => ("ends", "add ends in time, with standard input from /dev/null"),
            Self::Add => ("add", "add exits with 0 and reports no failure"),
            Self::Reports => ("reports", "add writes what the backend and the toolstack read"),
            Self::Device => {
                ("device", "physical-device is major:minor in hexadecimal, of the device that is served")
            }
            Self::Outside => ("outside", "add writes nothing outside of its backend's directory"),
            Self::Processes => ("processes", "add leaves no process behind that holds a lock"),
            Self::Remove => ("remove", "remove undoes what add made on the host"),
            Self::RemoveTwice => ("remove-twice", "a second remove harms nothing"),
            Self::Vanished => ("vanished", "remove does not bring a backend's directory back that is gone"),
            Self::Copy => ("copy", "remove does its work in a copy of the keys, by an absolute XENBUS_PATH"),
            Self::BadTarget => ("bad-target", "add fails, and says why, if there is no such target"),
            Self::TargetGone => {
                ("target-gone", "remove undoes what add made of a file that was deleted since")
            }
            Self::Killed => ("killed", "remove undoes what an add has made that was killed"),
            Self::Again => ("again", "add does its work again after all that"),
            Self::SideBySide => {
                ("side-by-side", "two devices that are added at once do not disturb each other")
            }
            Self::Shared => ("shared", "a second guest does not get a target that another one may write"),
            Self::Environment => ("environment", "add needs no variables but those of the contract and PATH"),
            Self::NoStdin => ("no-stdin", "add ends also where /dev/stdin is missing"),
        }
    }

    pub(crate) fn id(self) -> &'static str {
        self.told().0
    }

    pub(crate) fn about(self) -> &'static str {
        self.told().1
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Ok,
    Skipped,
    Warning,
    Failed,
}

impl Verdict {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Skipped => "skipped",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }
}

/// What a check found: nothing, if all is well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) check: Check,
    pub(crate) verdict: Verdict,
    pub(crate) observed: Vec<String>,
    pub(crate) hint: String,
}

impl Finding {
    pub(crate) fn ok(check: Check) -> Self {
        Self { check, verdict: Verdict::Ok, observed: Vec::new(), hint: String::new() }
    }

    pub(crate) fn skipped(check: Check, why: impl Into<String>) -> Self {
        Self { verdict: Verdict::Skipped, observed: vec![why.into()], ..Self::ok(check) }
    }

    /// Adds something that was observed, and what to do about it; the graver verdict stands.
    pub(crate) fn with(mut self, verdict: Verdict, observed: impl Into<String>, hint: &str) -> Self {
        self.note(verdict, observed, hint);
        self
    }

    pub(crate) fn note(&mut self, verdict: Verdict, observed: impl Into<String>, hint: &str) {
        if verdict > self.verdict || self.hint.is_empty() {
            hint.clone_into(&mut self.hint);
        }
        self.verdict = self.verdict.max(verdict);
        self.observed.push(observed.into());
    }

    /// Adds each of what was found on the host and should not be there.
    pub(crate) fn left(&mut self, when: &str, left: &[String], hint: &str) {
        for left in left {
            self.note(Verdict::Failed, format!("{when}{left}"), hint);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_graver_verdict_stands_with_its_hint() {
        let finding =
            Finding::ok(Check::Add).with(Verdict::Failed, "a", "mend a").with(Verdict::Warning, "b", "b");
        assert_eq!((finding.verdict, &*finding.hint, finding.observed.len()), (Verdict::Failed, "mend a", 2));
        let finding =
            Finding::ok(Check::Add).with(Verdict::Warning, "a", "a").with(Verdict::Failed, "b", "mend b");
        assert_eq!((finding.verdict, &*finding.hint), (Verdict::Failed, "mend b"));
    }

    #[test]
    fn every_check_has_an_id_of_its_own() {
        let ids: std::collections::BTreeSet<_> = Check::ALL.map(Check::id).into();
        assert_eq!(ids.len(), Check::ALL.len());
        for check in Check::ALL {
            assert_eq!(serde_json::to_value(check).unwrap(), check.id());
        }
    }
}
