//! Judging a run and telling the result.
//!
//! A run can go wrong in ways that no verdict tells of: the machine dies half way, the scenario's shell stops
//! at a typing error, a file arrives damaged. Each of these becomes a failed row of its own, so that the
//! count at the end is the whole truth and a scenario that checks nothing cannot pass.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::transcript::{Artifact, Transcript, Verdict};

/// Stores the artifacts in `folder` and returns the scenario's own verdicts, then what the lab has to add.
pub fn judge(transcript: &Transcript, folder: &Path) -> Vec<Verdict> {
    let mut rows = transcript.verdicts.clone();
    let mut add = |name: &str, why: String| rows.push(Verdict { name: name.into(), failure: Some(why) });
    match (transcript.plan, transcript.verdicts.len()) {
        (None, _) => add("lab: plan", "the scenario did not announce how many verdicts it gives".into()),
        (Some(_), 0) => add("lab: plan", "the scenario gave no verdict".into()),
        (Some(plan), given) if plan != given => {
            add("lab: plan", format!("the scenario announced {plan} verdicts and gave {given}"));
        }
        _ => {}
    }
    match transcript.end {
        None => add("lab: end", "the scenario did not reach its end".into()),
        Some(0) => {}
        Some(status) => add("lab: end", format!("the scenario's shell ended with status {status}")),
    }
    for line in &transcript.garbled {
        add("lab: console", format!("line not understood: {line}"));
    }
    for artifact in &transcript.artifacts {
        if let Err(error) = store(artifact, folder) {
            add(&format!("lab: artifact {}", artifact.name), format!("{error:#}"));
        }
    }
    rows
}

/// Decodes an artifact into the run's folder. gzip's checksum tells whether it came through unharmed, and a
/// name that promises JSON is taken at its word.
fn store(artifact: &Artifact, folder: &Path) -> Result<()> {
    let mut decoder = Command::new("sh")
        .args(["-c", "base64 -d | gzip -dc"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run base64 and gzip")?;
    let mut input = decoder.stdin.take().context("the decoder has no input")?;
    let base64 = artifact.base64.clone();
    let writer = std::thread::spawn(move || input.write_all(base64.as_bytes()));
    let output = decoder.wait_with_output()?;
    anyhow::ensure!(
        output.status.success() && writer.join().is_ok_and(|written| written.is_ok()),
        "damaged on its way: {}",
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    fs::write(folder.join(&artifact.name), &output.stdout)?;
    if artifact.name.ends_with(".json") {
        serde_json::from_slice::<serde_json::Value>(&output.stdout).context("not JSON")?;
    }
    Ok(())
}

/// Prints the tables and, last, the count. Returns the number of failed rows.
pub fn print(rows: &[Verdict], timings: &[(String, u64)]) -> usize {
    if !timings.is_empty() {
        println!("\n{:<40} {:>8}  single runs", "wall time in dom0, ms", "median");
        for (label, mut runs) in by_label(timings) {
            let single = runs.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
            runs.sort_unstable();
            println!("{label:<40} {:>8}  {single}", runs[runs.len() / 2]);
        }
    }
    println!();
    for row in rows {
        match &row.failure {
            None => println!("ok    {}", row.name),
            Some(why) => println!("FAIL  {}: {why}", row.name),
        }
    }
    let failed = rows.iter().filter(|row| row.failure.is_some()).count();
    println!("\n{} passed, {failed} failed", rows.len() - failed);
    failed
}

/// Groups by label, in the order of first appearance.
fn by_label(timings: &[(String, u64)]) -> Vec<(&str, Vec<u64>)> {
    let mut groups: Vec<(&str, Vec<u64>)> = Vec::new();
    for (label, milliseconds) in timings {
        match groups.iter_mut().find(|(known, _)| known == label) {
            Some((_, runs)) => runs.push(*milliseconds),
            None => groups.push((label, vec![*milliseconds])),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failures(lines: &[&str]) -> Vec<String> {
        let mut transcript = Transcript::default();
        for line in lines {
            transcript.line(line);
        }
        let folder = tempfile::tempdir().unwrap();
        let rows = judge(&transcript, folder.path());
        rows.into_iter().filter(|row| row.failure.is_some()).map(|row| row.name).collect()
    }

    #[test]
    fn a_complete_run_has_no_failures() {
        assert!(failures(&["SCENARIO PLAN 1", "VERDICT ok a", "SCENARIO END 0"]).is_empty());
    }

    #[test]
    fn a_run_that_is_not_complete_fails() {
        assert_eq!(failures(&[]), ["lab: plan", "lab: end"]);
        assert_eq!(failures(&["SCENARIO PLAN 0", "SCENARIO END 0"]), ["lab: plan"]);
        assert_eq!(failures(&["SCENARIO PLAN 2", "VERDICT ok a", "SCENARIO END 0"]), ["lab: plan"]);
        assert_eq!(failures(&["SCENARIO PLAN 1", "VERDICT ok a", "SCENARIO END 2"]), ["lab: end"]);
        assert_eq!(failures(&["SCENARIO PLAN 1", "VERDICT FAIL a: b", "SCENARIO END 0"]), ["a"]);
    }

    #[test]
    fn artifacts_are_decoded_and_checked() {
        // `printf '[1]' | gzip -n | base64`, then the same with one letter changed, then `printf '[1'`.
        let json = "H4sIAAAAAAAAA4s2jAUAuDIvTAMAAAA=";
        let run = |name: &str, base64: &str| {
            let artifact = Artifact { name: name.into(), base64: base64.into() };
            store(&artifact, tempfile::tempdir().unwrap().path()).map_err(|error| format!("{error:#}"))
        };
        assert_eq!(run("a.json", json), Ok(()));
        assert!(run("a.json", &json.replacen('s', "t", 1)).unwrap_err().starts_with("damaged"));
        assert!(run("a.json", "H4sIAAAAAAAAA4s2BABalkhJAgAAAA==").unwrap_err().starts_with("not JSON"));
    }
}
