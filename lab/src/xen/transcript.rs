//! What a scenario tells through the console.
//!
//! A scenario runs in a machine whose only way out is a serial line that the hypervisor and the kernel write
//! to as well. So its results are lines that begin with a word of this little language, and anything else is
//! noise:
//!
//! ```text
//! SCENARIO PLAN 12                    how many verdicts will come
//! VERDICT ok disk-attached
//! VERDICT FAIL store-as-before: 3 lines differ
//! TIMING 4154 xl block-attach         milliseconds, then what took them
//! ARTIFACT trees.txt                  a file, gzip in base64, up to the line
//! ARTIFACT END
//! SCENARIO END 0                      the exit status of the scenario's shell
//! ```
//!
//! The scenario's side is `scenarios/common.sh`.

/// Everything that a scenario has told so far.
#[derive(Debug, Default)]
pub struct Transcript {
    /// The number of verdicts that it announced.
    pub plan: Option<usize>,
    /// Its verdicts in order.
    pub verdicts: Vec<Verdict>,
    /// Labels and milliseconds in order.
    pub timings: Vec<(String, u64)>,
    /// Files that it sent.
    pub artifacts: Vec<Artifact>,
    /// Its exit status, once it has ended.
    pub end: Option<i32>,
    /// Lines that begin like ours but make no sense.
    pub garbled: Vec<String>,
    artifact_is_open: bool,
}

/// One thing that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// What was checked.
    pub name: String,
    /// Why the check failed, if it did.
    pub failure: Option<String>,
}

/// A file sent by the scenario, still encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// A plain file name.
    pub name: String,
    /// The lines of base64.
    pub base64: String,
}

/// What kind of line was seen, for the decision whether to show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// A verdict.
    Verdict,
    /// Part of an artifact.
    Artifact,
    /// Any other line, also of ours.
    Other,
}

impl Transcript {
    /// Takes in one line of the console.
    pub fn line(&mut self, line: &str) -> Seen {
        let (keyword, rest) = line.split_once(' ').unwrap_or((line, ""));
        let understood = match keyword {
            "SCENARIO" => self.scenario(rest),
            "VERDICT" => self.verdict(rest),
            "TIMING" => self.timing(rest),
            "ARTIFACT" => self.artifact(rest),
            _ if self.artifact_is_open && is_base64(line) => {
                if let Some(artifact) = self.artifacts.last_mut() {
                    artifact.base64.push_str(line);
                }
                return Seen::Artifact;
            }
            _ => return Seen::Other,
        };
        if understood.is_none() {
            self.garbled.push(line.to_owned());
        }
        if keyword == "VERDICT" { Seen::Verdict } else { Seen::Other }
    }

    fn scenario(&mut self, rest: &str) -> Option<()> {
        match rest.split_once(' ')? {
            ("PLAN", count) if self.plan.is_none() => self.plan = Some(count.parse().ok()?),
            ("END", status) => self.end = Some(status.parse().ok()?),
            _ => return None,
        }
        Some(())
    }

    fn verdict(&mut self, rest: &str) -> Option<()> {
        let (name, failure) = match rest.split_once(' ')? {
            ("ok", name) => (name, None),
            ("FAIL", text) => text.split_once(": ").map(|(name, why)| (name, Some(why.to_owned())))?,
            _ => return None,
        };
        self.verdicts.push(Verdict { name: name.to_owned(), failure });
        Some(())
    }

    fn timing(&mut self, rest: &str) -> Option<()> {
        let (milliseconds, label) = rest.split_once(' ')?;
        self.timings.push((label.to_owned(), milliseconds.parse().ok()?));
        Some(())
    }

    fn artifact(&mut self, name: &str) -> Option<()> {
        if name == "END" {
            return std::mem::take(&mut self.artifact_is_open).then_some(());
        }
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if self.artifact_is_open || name.is_empty() || name.starts_with('.') || !name.chars().all(is_plain) {
            return None;
        }
        self.artifacts.push(Artifact { name: name.to_owned(), base64: String::new() });
        self.artifact_is_open = true;
        Some(())
    }
}

fn is_base64(line: &str) -> bool {
    !line.is_empty() && line.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transcript(lines: &[&str]) -> Transcript {
        let mut transcript = Transcript::default();
        for line in lines {
            transcript.line(line);
        }
        transcript
    }

    #[test]
    fn a_whole_scenario() {
        let seen = transcript(&[
            "(XEN) Freed 656kB init memory",
            "SCENARIO PLAN 2",
            "VERDICT ok disk-attached",
            "VERDICT FAIL store-as-before: 3 lines differ: see above",
            "TIMING 4154 xl block-attach",
            "SCENARIO END 0",
        ]);
        assert_eq!(seen.plan, Some(2));
        assert_eq!(seen.end, Some(0));
        assert_eq!(seen.timings, [("xl block-attach".to_owned(), 4154)]);
        assert_eq!(seen.verdicts[0], Verdict { name: "disk-attached".into(), failure: None });
        assert_eq!(seen.verdicts[1].name, "store-as-before");
        assert_eq!(seen.verdicts[1].failure.as_deref(), Some("3 lines differ: see above"));
        assert!(seen.garbled.is_empty());
    }

    #[test]
    fn noise_inside_an_artifact_is_left_out() {
        let seen =
            transcript(&["ARTIFACT a.txt", "H4sI+/", "(XEN) a word", "", "AA==", "ARTIFACT END", "AAAA"]);
        assert_eq!(seen.artifacts, [Artifact { name: "a.txt".into(), base64: "H4sI+/AA==".into() }]);
        assert!(seen.garbled.is_empty());
    }

    #[test]
    fn lines_that_make_no_sense_are_kept() {
        let lines = [
            "SCENARIO PLAN many",
            "VERDICT maybe x",
            "VERDICT FAIL without-a-reason",
            "TIMING soon x",
            "ARTIFACT ../up",
            "ARTIFACT END",
            "SCENARIO",
        ];
        assert_eq!(transcript(&lines).garbled, lines);
    }
}
