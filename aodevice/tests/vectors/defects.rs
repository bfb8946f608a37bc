//! The table of known defects names tests that are there and bear their numbers.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(directory: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

/// The lines right before a test: its attributes and its comment.
fn head<'a>(source: &'a str, test: &str) -> Option<Vec<&'a str>> {
    let lines: Vec<&str> = source.lines().collect();
    let at = lines.iter().position(|line| line.contains(&format!("fn {test}(")))?;
    let before = lines[..at].iter().rev().map(|line| line.trim());
    Some(before.take_while(|line| line.starts_with("#[") || line.starts_with("///")).collect())
}

#[test]
fn every_defect_has_a_test_that_bears_its_number_or_a_reason() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = fs::read_to_string(root.join("../docs/defects.md")).unwrap();
    let mut files = Vec::new();
    sources(root, &mut files);
    let sources: Vec<String> = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| B-")?.strip_suffix('|'));
    let mut defects = 0;
    for row in rows {
        let cells: Vec<&str> = row.split(" | ").map(str::trim).collect();
        let [number, _, here, test] = cells[..] else { panic!("{row}") };
        defects += 1;
        if test.is_empty() {
            assert!(here.contains("not served"), "B-{number} has neither a test nor a reason");
            continue;
        }
        let test = test.trim_matches('`');
        let heads: Vec<_> = sources.iter().filter_map(|source| head(source, test)).collect();
        assert!(!heads.is_empty(), "B-{number}: there is no test {test}");
        let bears = |head: &Vec<&str>| {
            let words = head
                .iter()
                .flat_map(|line| line.split(|letter: char| !letter.is_alphanumeric() && letter != '-'));
            words.into_iter().any(|word| word == format!("B-{number}"))
        };
        assert!(heads.iter().any(bears), "{test} does not bear B-{number}");
    }
    assert!(defects > 25, "{defects}");
}
