//! The published schema of what the command prints with `--json`.

use std::fs;
use std::path::Path;

use serde_json::Value;

/// The one value that a command has printed, which must be one of the schema. `by` tells which command.
#[track_caller]
pub(crate) fn checked(printed: &str, by: &str) -> Value {
    let value = serde_json::from_str(printed).unwrap_or_else(|error| panic!("{by}: {error}: {printed:?}"));
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/output.schema.json");
    let schema = serde_json::from_str(&fs::read_to_string(schema).unwrap()).unwrap();
    if let Err(error) = jsonschema::validator_for(&schema).unwrap().validate(&value) {
        panic!("{by} printed what the schema does not have: {error}: {value:#}");
    }
    value
}
