//! The cargo that runs the lab, for what it builds and checks.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::failure::{Failure, output_of};

/// A command for cargo: the one that runs us, else the one on the path.
pub(crate) fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Builds a program of the workspace, unless that is done already, and tells where it is.
pub(crate) fn build(package: &str, program: &str, release: bool) -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "--package", package, "--bin", program]);
    command.args(["--message-format", "json-render-diagnostics"]);
    if release {
        command.arg("--release");
    }
    let messages = output_of(&mut command)?;
    let is_it = |message: &Value| message["target"]["name"] == program && message["executable"].is_string();
    let mut messages =
        messages.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
    let built = messages.find(is_it);
    let built = built.as_ref().and_then(|message: &Value| message["executable"].as_str());
    let missing = || Failure {
        tried: format!("building {program} with {command:?}"),
        observed: "cargo names no program that it built".into(),
        hint: "the lab reads cargo's JSON messages; has their form changed?".into(),
    };
    Ok(built.ok_or_else(missing)?.into())
}

/// Runs a command that shows what it does.
pub(crate) fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

/// Builds a subcommand of cargo, such as `cargo-deny`, if it is not there.
pub(crate) fn install(tool: &str, may_install: bool) -> Result<()> {
    if Command::new(tool).arg("--version").output().is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    ensure!(may_install, "{tool} is missing: cargo install --locked {tool}");
    succeed(cargo().args(["install", "--locked", "--quiet", tool]))
}
