//! What tests have for descriptions of devices: tables of words and what is made of them.

use super::SpecError;
use crate::Device;

/// The rows below a heading: the arguments of the first cell, and the other cells.
pub(crate) fn rows(document: &'static str, heading: &str) -> Vec<(Vec<&'static str>, Vec<&'static str>)> {
    let (_, section) = document.split_once(heading).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |"));
    let cells = rows.map(|row| row.split_once("` | ").unwrap());
    cells.map(|(arguments, cells)| (arguments.split("` `").collect(), cells.split(" | ").collect())).collect()
}

/// Sees what is made of words, which `|` separates: a device in libxl's JSON, or an error.
pub(crate) fn outcomes(
    parse: impl Fn(&[&str]) -> Result<Device, SpecError>,
    rows: &[(&'static str, &'static str)],
) {
    for (words, expected) in rows {
        let outcome = match parse(&words.split('|').collect::<Vec<_>>()) {
            Ok(device) => serde_json::Value::from(device.libxl()).to_string(),
            Err(error) => error.to_string(),
        };
        assert_eq!(outcome, *expected, "{words}");
    }
}
