//! The tables of the grammars' documents, as tests read them.

/// The rows below a heading: the arguments of the first cell, and the other cells.
pub(crate) fn rows(document: &'static str, heading: &str) -> Vec<(Vec<&'static str>, Vec<&'static str>)> {
    let (_, section) = document.split_once(heading).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |"));
    let cells = rows.map(|row| row.split_once("` | ").unwrap());
    cells.map(|(arguments, cells)| (arguments.split("` `").collect(), cells.split(" | ").collect())).collect()
}
