//! docs/machines.md holds the diagrams as the command prints them, and names no state that they do not have.
//!
//! `SNAPSHOTS=overwrite cargo test -p xendev --test machines` writes the diagrams there anew.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use xen_aodevice::diagram::{self, Diagram};

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/machines.md")
}

fn printed(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_xendev")).arg("machine").args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The text with the diagram of the machine in its place.
fn with_diagram(text: &str, machine: &str) -> String {
    let (before, rest) = text
        .split_once(&format!("```mermaid\n%% {machine}\n"))
        .unwrap_or_else(|| panic!("docs/machines.md has no place for the diagram of {machine}"));
    let (_, after) = rest.split_once("```\n").expect("the end of a diagram");
    format!("{before}```mermaid\n{}```\n{after}", printed(&[machine]))
}

#[test]
fn the_diagrams_are_those_of_the_code() {
    let is = fs::read_to_string(file()).unwrap();
    let current = diagram::NAMES.iter().fold(is.clone(), |text, machine| with_diagram(&text, machine));
    if is == current {
        return;
    }
    if env::var_os("SNAPSHOTS").is_some_and(|wish| wish == "overwrite") {
        return fs::write(file(), current).unwrap();
    }
    let differ = is.lines().zip(current.lines()).find(|(is, current)| is != current);
    panic!(
        "docs/machines.md is not current: SNAPSHOTS=overwrite cargo test -p xendev --test machines\n{differ:#?}"
    );
}

/// The cells of the column "today" of the table about the diagram of 2012.
fn todays_forms(text: &str) -> Vec<String> {
    let (_, section) = text.split_once("## The diagram of 2012").expect("the section about 2012");
    let rows = section.lines().filter(|line| line.starts_with('|')).skip(2);
    rows.map(|row| row.split('|').nth(2).expect("three columns").trim().trim_matches('`').to_owned())
        .collect()
}

#[test]
fn every_state_and_arc_of_the_table_is_in_the_diagram() {
    let Diagram { states, arcs, .. } = diagram::of("remove").unwrap();
    let forms = todays_forms(&fs::read_to_string(file()).unwrap());
    assert!(forms.len() > 10, "{forms:?}");
    for form in forms.iter().filter(|form| !form.is_empty()) {
        let is_there = match form.split_once(" --> ") {
            Some(ends) => arcs.iter().any(|arc| (arc.from, arc.to) == ends),
            None => states.iter().any(|state| state.name == form),
        };
        assert!(is_there, "{form}");
    }
}

#[test]
fn all_machines_one_after_the_other() {
    for (format, begins) in [("mermaid", "%% "), ("dot", "digraph ")] {
        let each = diagram::NAMES.map(|machine| printed(&[machine, "--format", format]));
        assert!(each.iter().all(|text| text.starts_with(begins)), "{each:?}");
        assert_eq!(printed(&["--format", format]), each.join("\n"));
    }
    assert_eq!(printed(&[]), printed(&["--format", "mermaid"]));
}
