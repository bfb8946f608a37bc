//! The cargo that runs the lab, for what it builds and checks.

use std::env;
use std::process::Command;

/// A command for cargo: the one that runs us, else the one on the path.
pub(crate) fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}
