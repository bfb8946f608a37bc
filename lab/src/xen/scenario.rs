//! The scenarios: shell scripts in `lab/scenarios`, run in dom0.
//!
//! The first line of a script that is a comment says what it shows. A line `# needs xendev` asks for the
//! command under test to be built and put into the image, a line `# needs lab` for the lab itself, a line
//! `# needs qemu` for a host with QEMU as a backend and as a device model. A line `# limit SECONDS` is for one that takes long.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::failure::Failure;

/// Sourced by the scenarios, not one of them.
const COMMON: &str = "common.sh";

/// One scenario.
#[derive(Debug)]
pub struct Scenario {
    /// What the user calls it.
    pub name: String,
    /// What it shows, in one line.
    pub description: String,
    /// Whether it runs the command under test.
    pub needs_xendev: bool,
    /// Whether it runs the lab's own program.
    pub needs_lab: bool,
    /// Whether its host runs QEMU, and PVH and HVM guests.
    pub needs_qemu: bool,
    /// The seconds that it may take, if that is more than most.
    pub limit: Option<u64>,
}

impl Scenario {
    /// The file's name in the folder of scenarios.
    pub fn file_name(&self) -> String {
        format!("{}.sh", self.name)
    }
}

/// The folder that holds the scenarios.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")
}

/// All scenarios by name.
pub fn all() -> Result<Vec<Scenario>> {
    let folder = folder();
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if path.extension() != Some("sh".as_ref()) || path.file_name() == Some(COMMON.as_ref()) {
            continue;
        }
        let Some(name) = path.file_stem() else { continue };
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        found.push(parse(&name.to_string_lossy(), &text)?);
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// The scenario of that name.
pub fn find(name: &str) -> Result<Scenario> {
    let all = all()?;
    let names = all.iter().map(|scenario| scenario.name.as_str()).collect::<Vec<_>>().join(", ");
    all.into_iter().find(|scenario| scenario.name == name).ok_or_else(|| {
        Failure {
            tried: format!("looking for the scenario {name}"),
            observed: format!("the lab has: {names}"),
            hint: "choose one of these; `cargo lab xen --list` describes them".into(),
        }
        .into()
    })
}

fn parse(name: &str, text: &str) -> Result<Scenario> {
    let mut comments = text.lines().filter_map(|line| line.strip_prefix("# "));
    let description = comments.next().unwrap_or_default().to_owned();
    let comments: Vec<&str> = comments.collect();
    let needs: Vec<&str> = comments.iter().filter_map(|comment| comment.strip_prefix("needs ")).collect();
    let limit = comments.iter().find_map(|comment| comment.strip_prefix("limit "));
    let seconds = |limit: &str| limit.parse().with_context(|| format!("the limit of {name}: {limit:?}"));
    Ok(Scenario {
        name: name.to_owned(),
        description,
        needs_xendev: needs.contains(&"xendev"),
        needs_lab: needs.contains(&"lab"),
        needs_qemu: needs.contains(&"qemu"),
        limit: limit.map(seconds).transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shebang_is_no_description() {
        let scenario =
            parse("x", "#!/bin/bash\n# Shows a thing.\n# More.\n# needs xendev\n# limit 7200\nplan 1\n")
                .unwrap();
        assert_eq!(scenario.description, "Shows a thing.");
        assert_eq!(scenario.limit, Some(7200));
        assert!(scenario.needs_xendev && !scenario.needs_lab && !scenario.needs_qemu);
        assert!(parse("x", "# Shows a thing.\n# limit 20m\n").is_err());
    }

    #[test]
    fn the_default_scenario_exists() {
        assert!(find("main").is_ok());
        assert!(find("common").is_err());
    }
}
