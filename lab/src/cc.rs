//! What the lab has in C, compiled when it is first needed.

use std::env;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::failure::{Failure, missing};

/// Compiles a source, which stays beside the running program for the next time.
///
/// `packages` has the compiler and all headers.
pub(crate) fn compiled(name: &str, source: &str, options: &[&str], packages: &str) -> Result<PathBuf> {
    let program = env::current_exe().context("where is this program?")?;
    let folder = program.parent().context("this program has no folder")?;
    let mut hasher = DefaultHasher::new();
    (source, options).hash(&mut hasher);
    let done = folder.join(format!("{:016x}-{name}", hasher.finish()));
    if done.exists() {
        return Ok(done);
    }
    // Built aside and then moved: other tests may want it at the same moment.
    let aside = tempfile::Builder::new().prefix(name).tempdir_in(folder)?;
    let (file, built) = (aside.path().join("source.c"), aside.path().join(name));
    fs::write(&file, source)?;
    let tried = format!("compiling the source of {name}");
    let mut command = Command::new("cc");
    command.arg("-o").args([&built, &file]).args(options);
    let output = command.output().map_err(|error| missing(&tried, &error, packages))?;
    if !output.status.success() {
        return Err(Failure {
            tried,
            observed: String::from_utf8_lossy(&output.stderr).into_owned(),
            hint: format!("if a header or a library is missing: apt-get install {packages}"),
        }
        .into());
    }
    fs::rename(&built, &done)?;
    Ok(done)
}
