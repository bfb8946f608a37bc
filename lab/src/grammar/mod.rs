//! `cargo lab grammar`: our reading of disk specifications, rates and configuration files against libxlutil's.
//!
//! Every one must be refused by both, or have the same fields for both, or be among the differences that
//! are intended (`differ`). The cases are the rows of aodevice's own table, and then whatever
//! `generate` makes.

mod differ;
mod file;
mod generate;
mod oracle;

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use fastrand::Rng;
use xen_aodevice::vbd;
use xen_aodevice::vif::Rate;

use crate::apt::Apt;
use oracle::Question;

/// The grammar's table, whose examples are the first cases.
const TABLE: &str = include_str!("../../../aodevice/src/kind/vbd/grammar.md");

/// How many are tried in CI.
const SHORT: usize = 10_000;

/// Compare our reading of disk specifications, rates and configuration files with libxlutil's
#[derive(Debug, clap::Args)]
pub struct GrammarArgs {
    /// How many disks, how many rates and how many files to make
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    count: usize,
    /// Which ones: the same seed makes the same
    #[arg(long, value_name = "N", default_value_t = 15)]
    seed: u64,
    /// Fail instead of installing missing packages
    #[arg(long)]
    no_install: bool,
}

impl GrammarArgs {
    /// What CI runs.
    pub(crate) fn for_ci(may_install: bool) -> Self {
        Self { count: SHORT, seed: 15, no_install: !may_install }
    }
}

/// What became of a case.
enum Verdict {
    Same,
    Intended(&'static str),
    Differs,
}

/// The arguments in the first cell of each row of the table.
fn table() -> impl Iterator<Item = Question> {
    let rows = TABLE.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
    rows.map(|(arguments, _)| Question::Disk(arguments.split("` `").map(str::to_owned).collect()))
}

fn ours(question: &Question) -> Result<String, String> {
    match question {
        Question::Disk(arguments) => {
            let disk = vbd::parse(arguments).map_err(|error| error.to_string())?;
            Ok(serde_json::Value::from(xen_aodevice::Device::Vbd(disk).libxl()).to_string())
        }
        Question::Rate(rate) => {
            rate.parse::<Rate>().map(|rate| rate.to_string()).map_err(|error| error.to_string())
        }
        Question::File(text) => file::ours(text),
    }
}

fn judge(question: &Question, ours: &Result<String, String>, theirs: Option<&str>) -> Verdict {
    match (ours, theirs) {
        (Ok(ours), Some(theirs)) if ours == theirs => Verdict::Same,
        (Err(_), None) => Verdict::Same,
        _ => differ::intended(question, ours, theirs).map_or(Verdict::Differs, Verdict::Intended),
    }
}

/// Runs the subcommand: an error if any case differs in a way that is not intended.
pub fn run(args: &GrammarArgs) -> Result<()> {
    Apt::new(!args.no_install).install_missing(&oracle::PACKAGES)?;
    let mut rng = Rng::with_seed(args.seed);
    let mut questions: Vec<Question> = table().collect();
    let of_table = questions.len();
    questions.extend((0..args.count).map(|_| generate::disk(&mut rng)));
    questions.extend((0..args.count).map(|_| generate::rate(&mut rng)));
    questions.extend((0..args.count).map(|_| file::generate(&mut rng)));
    let (mut refused, mut differing) = (0, 0);
    let mut good: BTreeMap<&str, usize> = BTreeMap::new();
    let mut intended: BTreeMap<&str, usize> = BTreeMap::new();
    for (question, theirs) in questions.iter().zip(oracle::ask(&questions)?) {
        let ours = ours(question);
        match judge(question, &ours, theirs.as_deref()) {
            Verdict::Same if ours.is_ok() => *good.entry(question.subject()).or_default() += 1,
            Verdict::Same => refused += 1,
            Verdict::Intended(reason) => *intended.entry(reason).or_default() += 1,
            Verdict::Differs => {
                differing += 1;
                if differing <= 20 {
                    println!("{question:?}\n  xendev: {ours:?}\n  xl:     {theirs:?}");
                }
            }
        }
    }
    println!("seed {}: {of_table} of the table and three times {} more", args.seed, args.count);
    for (subject, count) in &good {
        println!("  {count} {subject} are good and have the same fields");
    }
    println!("  {refused} are refused by both");
    for (reason, count) in intended {
        println!("  {count} differ on purpose: {reason}");
    }
    ensure!(differing == 0, "{differing} differ");
    // A generator that makes nothing but nonsense shows nothing.
    for subject in oracle::SUBJECTS {
        let good = good.get(subject).copied().unwrap_or_default();
        ensure!(good * 20 >= args.count, "only {good} {subject} of {} are good", args.count);
    }
    Ok(())
}
