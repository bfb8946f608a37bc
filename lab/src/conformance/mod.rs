//! Is it xenstore? `cargo lab conformance` replays dialogues whose outcome is known.
//!
//! The cases, in `conformance/xenstore-conformance.jsonl`, were found out on the real daemons.
//! They are replayed against a real daemon to trust the replayer and the cases, and against the
//! embedded store to trust that. [`Target`] says what is on the other side, [`Profile`] which
//! behaviour to expect where the implementations differ; a case that does not apply is skipped
//! with the reason.

mod case;
pub(crate) mod line;
mod replay;

pub use case::Case;

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use xs_store::Store;

use crate::daemon::{Daemon, DaemonKind};
use crate::fakexen::FakeXen;

const CASES: &str = include_str!("../../conformance/xenstore-conformance.jsonl");

/// Replays the conformance cases of the xenstore protocol against a server.
///
/// The last line printed tells how many passed and failed.
#[derive(Debug, clap::Args)]
pub struct ConformanceArgs {
    /// Unix socket of the server
    #[arg(required_unless_present_any = ["embedded", "daemon"], conflicts_with_all = ["embedded", "daemon"])]
    socket: Option<PathBuf>,
    /// Test the embedded store, in this process
    #[arg(long, conflicts_with = "daemon")]
    embedded: bool,
    /// Start a daemon of Debian under the stand-in hypervisor, and test it with its domains
    #[arg(long, value_enum, value_name = "KIND")]
    daemon: Option<DaemonKind>,
    /// What behaviour to expect; by default that of the server named, or of xenstored-4.17
    #[arg(long, value_enum)]
    profile: Option<Profile>,
    /// State folder of a server under the stand-in hypervisor: run its domains' cases too
    #[arg(long, value_name = "DIR", requires = "socket")]
    domains: Option<PathBuf>,
    /// Only cases whose name or number contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Tell every case
    #[arg(short, long)]
    verbose: bool,
}

/// Runs the subcommand. The result is an error if a case failed, after all of them were tried.
pub fn run(args: &ConformanceArgs) -> Result<()> {
    let daemon = args.daemon.map(Daemon::start).transpose()?;
    let (target, profile) = match (&args.socket, &daemon, args.daemon) {
        (Some(socket), ..) => {
            UnixStream::connect(socket)
                .with_context(|| format!("connecting to the server at {}", socket.display()))?;
            let target = Target::socket(socket);
            let domains = args.domains.as_ref();
            let target = domains.into_iter().fold(target, |target, folder| target.with_rings(folder));
            (target, Profile::Xenstored417)
        }
        (None, Some(daemon), Some(kind)) => (Target::daemon(daemon), Profile::of(kind)),
        _ => (Target::embedded(Store::new()), Profile::XenstoredMaster),
    };
    let profile = args.profile.unwrap_or(profile);
    let mut cases = cases()?;
    cases.retain(|case| case.name.contains(&args.only) || case.id.contains(&args.only));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tally = runtime.block_on(replay(&cases, &target, profile, |case, verdict| {
        if args.verbose || matches!(verdict, Verdict::Failed(_)) {
            println!("{} {} {verdict}", case.id, case.name);
        }
    }));
    println!("{tally}");
    anyhow::ensure!(tally.failures.is_empty(), "{} conformance cases failed", tally.failures.len());
    Ok(())
}

/// All cases.
pub fn cases() -> Result<Vec<Case>> {
    case::parse(CASES).context("conformance/xenstore-conformance.jsonl")
}

/// The implementation whose behaviour is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Profile {
    /// C daemon as in Debian 12.
    #[value(name = "xenstored-4.17")]
    Xenstored417,
    /// C daemon from Xen 4.22 on.
    XenstoredMaster,
    /// OCaml daemon as in Debian 12.
    #[value(name = "oxenstored-4.17")]
    Oxenstored417,
    /// What all have in common.
    Any,
}

impl Profile {
    /// What Debian's daemons are.
    pub fn of(kind: DaemonKind) -> Self {
        match kind {
            DaemonKind::Xenstored => Self::Xenstored417,
            DaemonKind::Oxenstored => Self::Oxenstored417,
        }
    }

    fn tags(self) -> &'static [&'static str] {
        match self {
            // Not nul-strict: those cases end the daemon.
            Self::Xenstored417 => &["c", "c-4.17", "directory-part"],
            Self::XenstoredMaster => &[
                "c",
                "c-master",
                "directory-part",
                "feature",
                "quota",
                "watch-depth",
                "nul-strict",
                "zero-length",
            ],
            Self::Oxenstored417 => &["oxenstored", "nul-strict"],
            Self::Any => &[],
        }
    }
}

/// Who is tested.
#[derive(Clone, Debug)]
pub struct Target {
    server: Server,
    guests: Guests,
}

/// Where privileged connections go.
#[derive(Clone, Debug)]
enum Server {
    Socket(PathBuf),
    Embedded(Store),
}

/// Where connections of other domains go.
#[derive(Clone, Debug)]
enum Guests {
    None,
    Rings(FakeXen),
    Embedded(Store),
}

impl Target {
    /// A server on a socket, without other domains.
    pub fn socket(path: impl Into<PathBuf>) -> Self {
        Self { server: Server::Socket(path.into()), guests: Guests::None }
    }

    /// The same server with domains on rings; it runs under the stand-in hypervisor of this folder.
    #[must_use]
    pub fn with_rings(self, state: &Path) -> Self {
        Self { guests: Guests::Rings(FakeXen::at(state)), ..self }
    }

    /// The same server with domains in this process; the socket is served by this store.
    #[must_use]
    pub fn with_guests_of(self, store: Store) -> Self {
        Self { guests: Guests::Embedded(store), ..self }
    }

    /// An embedded store, in this process.
    pub fn embedded(store: Store) -> Self {
        Self { server: Server::Embedded(store.clone()), guests: Guests::Embedded(store) }
    }

    /// A daemon with its domains.
    pub fn daemon(daemon: &Daemon) -> Self {
        Self::socket(daemon.socket()).with_rings(daemon.state_dir())
    }

    /// Why a case cannot be replayed here, if it cannot.
    fn lacks(&self, case: &Case, profile: Profile) -> Option<String> {
        let provided = |tag: &&String| match tag.as_str() {
            "domains" => !matches!(self.guests, Guests::None),
            tag => profile.tags().contains(&tag),
        };
        let lacking: Vec<&str> =
            case.requires.iter().filter(|tag| !provided(tag)).map(String::as_str).collect();
        if !lacking.is_empty() {
            return Some(format!("needs {}", lacking.join(", ")));
        }
        let no_ring = matches!(self.guests, Guests::Embedded(_)) && case.needs_ring();
        no_ring.then(|| "looks into a ring page, which guests of the embedded store do not have".into())
    }
}

/// How a case went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As expected.
    Passed,
    /// Not as expected: where, and what happened instead.
    Failed(String),
    /// It does not apply, for this reason.
    Skipped(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("passed"),
            Self::Failed(text) => write!(f, "FAILED: {text}"),
            Self::Skipped(reason) => write!(f, "skipped: {reason}"),
        }
    }
}

/// How all cases went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many passed.
    pub passed: usize,
    /// Each that failed: its number and name, and what happened.
    pub failures: Vec<String>,
    /// How many were skipped, for each reason.
    pub skipped: BTreeMap<String, usize>,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (reason, count) in &self.skipped {
            writeln!(f, "{count} skipped: {reason}")?;
        }
        let (failed, skipped) = (self.failures.len(), self.skipped.values().sum::<usize>());
        write!(f, "{} passed, {failed} failed, {skipped} skipped", self.passed)
    }
}

/// Replays cases one after the other; `report` is called after each.
pub async fn replay(
    cases: &[Case],
    target: &Target,
    profile: Profile,
    mut report: impl FnMut(&Case, &Verdict),
) -> Tally {
    let mut tally = Tally::default();
    for case in cases {
        let verdict = match target.lacks(case, profile) {
            Some(reason) => Verdict::Skipped(reason),
            None => replay::replay(case, target).await.map_or(Verdict::Passed, Verdict::Failed),
        };
        report(case, &verdict);
        match verdict {
            Verdict::Passed => tally.passed += 1,
            Verdict::Failed(text) => tally.failures.push(format!("{} {}: {text}", case.id, case.name)),
            Verdict::Skipped(reason) => *tally.skipped.entry(reason).or_default() += 1,
        }
    }
    tally
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The JSON pointers of everything in a case that is expected, with something else to expect.
    fn falsehoods(case: &Value) -> Vec<(String, Value)> {
        let mut found = Vec::new();
        let steps = case["steps"].as_array().unwrap();
        for (at, step) in steps.iter().enumerate() {
            if let Some(events) = step["events"].as_array() {
                let more = events.iter().cloned().chain([json!("/no-such-event\0t\0")]);
                found.push((format!("/steps/{at}/events"), more.collect()));
            }
            let sequence = step["sequence"].as_array().into_iter().flatten();
            let messages = sequence.enumerate().map(|(n, expect)| (format!("sequence/{n}"), expect));
            for (field, expect) in messages.chain([("expect".to_owned(), &step["expect"])]) {
                for (key, value) in expect.as_object().into_iter().flatten() {
                    let other = match (&**key, value) {
                        ("op", value) if value == "CONTROL" => json!("READ"),
                        ("op", _) => json!("CONTROL"),
                        ("error", _) => json!("ENOSUCHERROR"),
                        ("len", value) => json!(value.as_u64().unwrap() + 1),
                        ("payload" | "prefix" | "suffix" | "contains", _) => json!("no such payload"),
                        ("strings_any_order", _) => json!(["no-such-name"]),
                        ("same_first" | "differs_first", _) => json!("no-such-variable"),
                        ("closed", _) => json!(false),
                        // These expect nothing that could be false.
                        ("bind" | "bind_first" | "tx", _) => continue,
                        (key, _) => panic!("the expectation {key} is new here"),
                    };
                    found.push((format!("/steps/{at}/{field}/{key}"), other));
                }
            }
        }
        found
    }

    /// A check that cannot fail proves nothing: whatever a case expects, expecting something else
    /// must fail.
    #[tokio::test]
    async fn every_expectation_can_fail() {
        let target = Target::embedded(Store::new());
        let mut tried = 0;
        for line in CASES.lines() {
            let case: Value = serde_json::from_str(line).unwrap();
            for (pointer, other) in falsehoods(&case) {
                let mut mutant = case.clone();
                *mutant.pointer_mut(&pointer).unwrap() = other;
                let mutant: Case = serde_json::from_value(mutant).unwrap();
                if target.lacks(&mutant, Profile::XenstoredMaster).is_none() {
                    let failure = replay::replay(&mutant, &target).await;
                    assert!(failure.is_some(), "{} passes with a falsehood at {pointer}", mutant.id);
                    tried += 1;
                }
            }
        }
        assert!(tried > 1000, "only {tried} falsehoods");
    }
}
