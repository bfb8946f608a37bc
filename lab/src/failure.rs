//! How the lab says that it could not do its work.
//!
//! Whoever reads such a message sits in front of a machine that they cannot log in to, often a CI log from
//! last night. So every message has the same three parts: what was tried, what was observed, what to do.

use std::fmt;
use std::io;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

/// An error in three parts.
#[derive(Debug)]
pub struct Failure {
    /// What the lab was doing.
    pub tried: String,
    /// What it saw instead of success; may have several lines.
    pub observed: String,
    /// What the reader can do.
    pub hint: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let observed = self.observed.trim_end().replace('\n', "\n            ");
        write!(f, "{}\n  observed: {observed}\n  hint: {}", self.tried, self.hint)
    }
}

impl std::error::Error for Failure {}

/// A program that cannot be run, and the packages that have it.
pub(crate) fn missing(tried: &str, error: &io::Error, packages: &str) -> anyhow::Error {
    let hint = format!("if it is not installed: apt-get install {packages}");
    Failure { tried: tried.into(), observed: error.to_string(), hint }.into()
}

/// Runs a helper program to its end and returns what it printed; its diagnostics become part of the error.
pub(crate) fn output_of(command: &mut Command) -> Result<Vec<u8>> {
    let shown = format!("{command:?}");
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {shown}"))?;
    anyhow::ensure!(
        output.status.success(),
        "{shown} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim_end(),
    );
    Ok(output.stdout)
}
